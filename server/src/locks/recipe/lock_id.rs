//! The id of a lock: a secret that only its client knows, and the mark of it that the names of its nodes show.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::types::NodePath;

const SECRET_BYTES: usize = 16;
const MARK_DIGITS: usize = 16;
/// Maximum length of an id: that of the longest path.
const MAX_TEXT: usize = (SECRET_BYTES + crate::types::MAX_PATH_BYTES).div_ceil(3) * 4;

/// A lock's path and a secret. A client that has the text can release the lock: it is never logged, nor written into
/// ZooKeeper.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct LockId {
    path: NodePath,
    secret: [u8; SECRET_BYTES],
}

/// The first half of the names of a [`LockId`]'s nodes: 16 hex digits of its hash.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Mark(String);

impl LockId {
    /// A new id, from the system's randomness.
    pub(crate) fn fresh(path: &NodePath) -> Self {
        Self { path: path.clone(), secret: rand::random() }
    }

    /// Reads a text that [`LockId::text`] made; `None` for any other.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_TEXT {
            return None;
        }
        let bytes = decode(text)?;
        let (secret, path) = bytes.split_first_chunk::<SECRET_BYTES>()?;
        let path = NodePath::parse_below_root(std::str::from_utf8(path).ok()?).ok()?;
        Some(Self { path, secret: *secret })
    }

    /// The id as clients carry it: opaque, and safe in a URL.
    pub(crate) fn text(&self) -> String {
        let mut bytes = self.secret.to_vec();
        bytes.extend_from_slice(self.path.as_str().as_bytes());
        encode(&bytes)
    }

    /// The lock's path.
    pub(crate) fn path(&self) -> &NodePath {
        &self.path
    }

    /// The beginning of the names of this id's nodes.
    pub(crate) fn mark(&self) -> Mark {
        let hash = Sha256::new().chain_update(self.secret).chain_update(self.path.as_str()).finalize();
        Mark(hex(&hash[..MARK_DIGITS / 2]))
    }
}

impl fmt::Debug for LockId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("LockId").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Mark {
    /// A new name of 32 hex digits, as kazoo's names are. No other node ever has it.
    pub(crate) fn fresh_name(&self) -> String {
        format!("{}{}", self.0, hex(&rand::random::<[u8; 8]>()))
    }

    /// The mark in the name of a lease; `None`: the lease is none of ours.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let (mark, _) = name.split_at_checked(MARK_DIGITS)?;
        Some(Self(mark.to_owned()))
    }

    /// Whether the names with this mark come after this one.
    pub(crate) fn is_after(&self, name: &str) -> bool {
        name < self.0.as_str()
    }

    /// Whether a contender or a lease of this name belongs to the id.
    pub(crate) fn names(&self, name: &str) -> bool {
        name.starts_with(&self.0)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The alphabet of RFC 4648's base64url, without padding.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for index in 0..=chunk.len() {
            let sextet = (bits >> (18 - 6 * index)) & 0x3f;
            text.push(char::from(ALPHABET[sextet as usize]));
        }
    }
    text
}

/// Only what [`encode`] writes is read: each sequence of bytes has one text.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for (index, letter) in chunk.iter().enumerate() {
            let sextet = ALPHABET.iter().position(|other| other == letter)?;
            bits |= u32::try_from(sextet).ok()? << (18 - 6 * index);
        }
        let [_, group @ ..] = bits.to_be_bytes();
        bytes.extend_from_slice(&group[..chunk.len().checked_sub(1).filter(|&length| length > 0)?]);
    }
    (encode(&bytes) == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back_as_it_was_written_and_nothing_else_is() {
        for path in ["/a", "/ab", "/abc", "/jobs/nächtlich"] {
            let id = LockId::fresh(&NodePath::trusted(path));
            let text = id.text();
            assert!(text.bytes().all(|letter| ALPHABET.contains(&letter)), "{text}");
            assert_eq!(LockId::parse(&text), Some(id));
            assert_eq!(LockId::parse(&format!("{text}=")), None);
        }
        for bad in ["", "x", "AAAA", "é", &"A".repeat(MAX_TEXT + 4), &encode(&[7; 40]), &encode(&[0; 17])] {
            assert_eq!(LockId::parse(bad), None, "{bad:?}");
        }
        let reserved = LockId::fresh(&NodePath::trusted("/.rollcall/x"));
        assert_eq!(LockId::parse(&reserved.text()), None);
    }

    #[test]
    fn names_share_a_mark_are_never_used_twice_and_do_not_tell_the_secret() {
        let id = LockId::fresh(&NodePath::trusted("/a"));
        let (first, second) = (id.mark().fresh_name(), id.mark().fresh_name());
        assert_ne!(first, second);
        assert_eq!(first.len(), 32);
        assert!(first.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit)));
        assert!(id.mark().names(&first) && id.mark().names(&format!("{second}__lock__0000000001")));
        assert!(!LockId::fresh(&NodePath::trusted("/a")).mark().names(&first));
        assert_eq!(Mark::of(&first), Some(id.mark()));
        assert_eq!((Mark::of(&first[..15]), Mark::of("0123456789abcdeé")), (None, None));
        let elsewhere = LockId { path: NodePath::trusted("/b"), ..id.clone() };
        assert_ne!(elsewhere.mark(), id.mark(), "an id that somebody makes up belongs to no other lock");
        assert!(!first.contains(&hex(&id.secret)[..16]));
        assert!(!format!("{id:?}").contains(&hex(&id.secret)));
    }

    #[test]
    fn fuzz_bytes_have_one_text_and_an_id_is_read_back_as_it_was_written() {
        bolero::check!().with_type::<([u8; SECRET_BYTES], Vec<u8>, String)>().for_each(|(secret, bytes, text)| {
            assert_eq!(decode(&encode(bytes)).as_ref(), Some(bytes));
            let letters = bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 64)])).collect::<String>();
            assert!(decode(&letters).is_none_or(|bytes| encode(&bytes) == letters));
            let id_bytes = [&secret[..], b"/", bytes].concat();
            for text in [text, &letters, &encode(bytes), &encode(&id_bytes)] {
                if let Some(id) = LockId::parse(text) {
                    assert_eq!(id.text(), *text);
                    assert!(NodePath::parse_below_root(id.path().as_str()).is_ok());
                }
            }
            if let Ok(path) = NodePath::parse_below_root(&format!("/{text}")) {
                let id = LockId { path, secret: *secret };
                assert_eq!(LockId::parse(&id.text()), Some(id));
            }
        });
    }
}
