//! Access control lists: the identities of a connection, and the operations that they allow.

use std::net::IpAddr;

use data_encoding::BASE64;
use rollcall_wire::{Acl, ErrorCode};
use sha1::{Digest as _, Sha1};

/// The scheme of the user who may do everything. It can't be asked for, and is in no access control list.
const SUPER: &str = "super";

/// An identity that a connection has proven, for example `digest` and `user:hash`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) scheme: &'static str,
    pub(crate) id: String,
}

impl Identity {
    /// The identity that every connection has from its start: its address.
    pub(crate) fn address(peer: IpAddr) -> Self {
        Self { scheme: "ip", id: peer.to_canonical().to_string() }
    }

    /// The identities that an auth packet proves; none if the scheme is not known. `super_digest` is the digest of the
    /// user whom no access control list restricts.
    pub(crate) fn prove(scheme: &str, proof: &[u8], peer: IpAddr, super_digest: Option<&str>) -> Vec<Self> {
        match scheme {
            "ip" => vec![Self::address(peer)],
            "digest" => {
                let id = digest(&String::from_utf8_lossy(proof));
                let is_super = super_digest == Some(id.as_str());
                let user = is_super.then(|| Self { scheme: SUPER, id: String::new() });
                user.into_iter().chain([Self { scheme: "digest", id }]).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The name without the secret.
    pub(crate) fn user(&self) -> &str {
        match self.scheme {
            "digest" => self.id.split(':').next().unwrap_or_default(),
            _ => &self.id,
        }
    }

    fn matches(&self, scheme: &str, id: &str) -> bool {
        self.scheme == scheme
            && match scheme {
                "ip" => network(id).is_some_and(|network| network.contains(&self.id)),
                _ => self.id == id,
            }
    }
}

/// `user:password` in the form that access control lists have: the password is hashed together with the name.
fn digest(user_and_password: &str) -> String {
    let user = user_and_password.split(':').next().unwrap_or_default();
    format!("{user}:{}", BASE64.encode(&Sha1::digest(user_and_password.as_bytes())))
}

struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    fn contains(&self, address: &str) -> bool {
        match (self.address, address.parse()) {
            (IpAddr::V4(network), Ok(IpAddr::V4(address))) => {
                let mask = u32::MAX.checked_shl(32 - self.bits).unwrap_or(0);
                network.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V6(network), Ok(IpAddr::V6(address))) => {
                let mask = u128::MAX.checked_shl(128 - self.bits).unwrap_or(0);
                network.to_bits() & mask == address.to_bits() & mask
            }
            _ => false,
        }
    }
}

/// An address, or an address and the number of bits that count.
fn network(text: &str) -> Option<Network> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let all = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Some(all), |bits| bits.parse().ok().filter(|&bits| bits <= all))?;
    Some(Network { address, bits })
}

/// Whether one of these identities has the permission. An empty list allows everything.
pub(crate) fn check(acl: &[Acl], permission: i32, identities: &[Identity]) -> Result<(), ErrorCode> {
    let allows = |entry: &Acl| {
        entry.permissions & permission != 0
            && (is_anyone(entry) || identities.iter().any(|identity| identity.matches(&entry.scheme, &entry.id)))
    };
    let is_super = || identities.iter().any(|identity| identity.scheme == SUPER);
    if acl.is_empty() || is_super() || acl.iter().any(allows) { Ok(()) } else { Err(ErrorCode::NoAuth) }
}

fn is_anyone(entry: &Acl) -> bool {
    entry.scheme == "world" && entry.id == "anyone"
}

/// A list as it is stored: checked, without duplicates, and with `auth` replaced by the writer's identities.
pub(crate) fn resolve(acl: Vec<Acl>, identities: &[Identity]) -> Result<Vec<Acl>, ErrorCode> {
    let mut entries: Vec<Acl> = Vec::with_capacity(acl.len());
    for entry in acl {
        if !entries.contains(&entry) {
            entries.push(entry);
        }
    }
    let mut resolved = Vec::with_capacity(entries.len());
    for entry in entries {
        let is_valid = match entry.scheme.as_str() {
            "world" => is_anyone(&entry),
            "digest" => is_digest(&entry.id),
            "ip" => network(&entry.id).is_some(),
            "auth" => {
                let before = resolved.len();
                // An address alone is no authentication.
                let proven = identities.iter().filter(|identity| !["ip", SUPER].contains(&identity.scheme));
                resolved.extend(proven.map(|identity| Acl {
                    permissions: entry.permissions,
                    scheme: identity.scheme.to_owned(),
                    id: identity.id.clone(),
                }));
                if resolved.len() == before {
                    return Err(ErrorCode::InvalidAcl);
                }
                continue;
            }
            _ => false,
        };
        if !is_valid {
            return Err(ErrorCode::InvalidAcl);
        }
        resolved.push(entry);
    }
    if resolved.is_empty() { Err(ErrorCode::InvalidAcl) } else { Ok(resolved) }
}

/// Two parts between colons; empty ones at the end do not count.
fn is_digest(id: &str) -> bool {
    id.trim_end_matches(':').split(':').count() == 2
}

/// The list for a reader who may not administrate the node: digests have no hash.
pub(crate) fn masked(acl: &[Acl]) -> Vec<Acl> {
    let mask = |entry: &Acl| match entry.id.split_once(':') {
        Some((user, _)) if entry.scheme == "digest" => Acl { id: format!("{user}:x"), ..entry.clone() },
        _ => entry.clone(),
    };
    acl.iter().map(mask).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn entry(scheme: &str, id: &str) -> Acl {
        Acl { permissions: 1, scheme: scheme.into(), id: id.into() }
    }

    #[test]
    fn a_digest_is_the_one_that_zookeeper_makes() {
        assert_eq!(digest("super:test"), "super:D/InIHSb7yEEbrWz8b9l71RjZJU=");
    }

    #[test]
    fn lists_are_checked_before_they_are_stored() {
        let me = [Identity::address(PEER), Identity::prove("digest", b"u:p", PEER, None).remove(0)];
        assert_eq!(resolve(vec![], &me), Err(ErrorCode::InvalidAcl));
        for bad in [
            entry("world", "x"),
            entry("digest", "u"),
            entry("ip", "1.2.3"),
            entry("ip", "1.2.3.4/33"),
            entry("x", "y"),
        ] {
            assert_eq!(resolve(vec![bad.clone()], &me), Err(ErrorCode::InvalidAcl), "{bad:?}");
        }
        assert_eq!(resolve(vec![entry("auth", "")], &me[..1]), Err(ErrorCode::InvalidAcl));
        let resolved = resolve(vec![entry("auth", ""), entry("auth", "")], &me).unwrap();
        assert_eq!(resolved, [entry("digest", &digest("u:p"))]);
    }

    #[test]
    fn networks_contain_their_addresses() {
        let me = [Identity::address(PEER)];
        assert_eq!(check(&[entry("ip", "127.0.0.0/8")], 1, &me), Ok(()));
        assert_eq!(check(&[entry("ip", "0.0.0.0/0")], 1, &me), Ok(()));
        assert_eq!(check(&[entry("ip", "127.0.0.2")], 1, &me), Err(ErrorCode::NoAuth));
        assert_eq!(check(&[entry("ip", "127.0.0.1")], 2, &me), Err(ErrorCode::NoAuth));
    }

    #[test]
    fn the_super_user_is_told_by_the_digest_and_is_in_no_list() {
        let digest = digest("super:test");
        let prove = |proof: &[u8], known| Identity::prove("digest", proof, PEER, known);
        assert_eq!(prove(b"super:guess", Some(&digest)).len(), 1);
        assert_eq!(prove(b"super:test", None).len(), 1);
        let me = prove(b"super:test", Some(&digest));
        assert_eq!((me[0].scheme, me[0].user(), me[1].id.as_str()), (SUPER, "", digest.as_str()));
        assert_eq!(check(&[entry("digest", "other:x")], 16, &me), Ok(()));
        assert_eq!(resolve(vec![entry("auth", "")], &me).unwrap(), [entry("digest", &digest)]);
        assert_eq!(resolve(vec![entry(SUPER, "")], &me), Err(ErrorCode::InvalidAcl));
        assert!(Identity::prove(SUPER, b"", PEER, Some(&digest)).is_empty());
    }
}
