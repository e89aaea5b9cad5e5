//! The content of a view's file. Pure.
//!
//! ```text
//! 8 bytes   magic
//! 4         version of the format
//! 8         length of the body
//! 4         CRC-32 of the body
//! 8 + 4     when the state was last known to be right, in milliseconds since 1970, and the CRC-32 of that
//! …         the body, a protobuf message
//! ```
//!
//! Numbers are big-endian. The time is outside the body, so that it can be updated without writing everything again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message as _;

use super::node::ViewNode;
use super::scope::Scope;
use super::state::State;
use crate::types::{NodePath, Revision, Stat};

const MAGIC: [u8; 8] = *b"\x89rcview\n";
const VERSION: u32 = 1;
/// Offset and length of the time.
const SEEN_AT: usize = 24;
const SEEN_BYTES: usize = 12;
/// Number of bytes before the body.
const HEADER: usize = SEEN_AT + SEEN_BYTES;

/// The reason why bytes are not a view.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("it is none of rollcall's files")]
    Magic,
    #[error("it has version {0} of the format, not {VERSION}")]
    Version(u32),
    #[error("it has {actual} bytes, not {expected}")]
    Length { expected: u64, actual: usize },
    #[error("its checksum is wrong")]
    Checksum,
    #[error("what it holds can't be understood: {0}")]
    Content(String),
}

/// The content of a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stored {
    pub(super) state: Arc<State>,
    /// When the state was last known to be right.
    pub(super) as_of: SystemTime,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Body {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(bool, tag = "2")]
    recursive: bool,
    #[prost(int64, tag = "3")]
    revision: i64,
    #[prost(message, optional, tag = "4")]
    node: Option<Node>,
    #[prost(message, repeated, tag = "5")]
    children: Vec<Node>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Node {
    /// Empty for the path itself.
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "bytes", tag = "2")]
    data: Bytes,
    /// Absent when ZooKeeper's access control list hides the node.
    #[prost(message, optional, tag = "3")]
    stat: Option<NodeStat>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NodeStat {
    #[prost(int64, tag = "1")]
    czxid: i64,
    #[prost(int64, tag = "2")]
    mzxid: i64,
    #[prost(int64, tag = "3")]
    ctime: i64,
    #[prost(int64, tag = "4")]
    mtime: i64,
    #[prost(int32, tag = "5")]
    version: i32,
    #[prost(int32, tag = "6")]
    cversion: i32,
    #[prost(int32, tag = "7")]
    aversion: i32,
    #[prost(int64, tag = "8")]
    ephemeral_owner: i64,
    #[prost(int32, tag = "9")]
    data_length: i32,
    #[prost(int32, tag = "10")]
    num_children: i32,
    #[prost(int64, tag = "11")]
    pzxid: i64,
}

/// A state as a file; `None` if it would be larger than `most` bytes.
pub(super) fn encode(state: &State, as_of: SystemTime, most: usize) -> Option<Vec<u8>> {
    let children = state.children.iter().map(|(name, entry)| Node::new(name, entry)).collect();
    let body = Body {
        path: state.path.as_str().to_owned(),
        recursive: state.recursive,
        revision: state.revision.0,
        node: state.node.as_ref().map(|entry| Node::new("", entry)),
        children,
    };
    let length = body.encoded_len();
    if HEADER + length > most {
        return None;
    }
    let body = body.encode_to_vec();
    let mut file = Vec::with_capacity(HEADER + length);
    file.put_slice(&MAGIC);
    file.put_u32(VERSION);
    file.put_u64(u64::try_from(length).unwrap_or(u64::MAX));
    file.put_u32(crc32fast::hash(&body));
    file.put_slice(&seen(as_of));
    file.put_slice(&body);
    Some(file)
}

/// Reads a file. `modified` replaces a time that can't be read.
///
/// # Errors
/// [`Broken`] for everything that [`encode`] has not made.
pub(super) fn decode(file: &Bytes, modified: SystemTime) -> Result<Stored, Broken> {
    if !file.starts_with(&MAGIC) {
        return Err(Broken::Magic);
    }
    if file.len() < HEADER {
        return Err(Broken::Length { expected: u64::try_from(HEADER).unwrap_or(u64::MAX), actual: file.len() });
    }
    let mut header = &file[MAGIC.len()..HEADER];
    let version = header.get_u32();
    if version != VERSION {
        return Err(Broken::Version(version));
    }
    let (length, checksum) = (header.get_u64(), header.get_u32());
    let as_of = read_seen(header).unwrap_or(modified);
    let body = file.slice(HEADER..);
    if u64::try_from(body.len()) != Ok(length) {
        let expected = length.saturating_add(u64::try_from(HEADER).unwrap_or(u64::MAX));
        return Err(Broken::Length { expected, actual: file.len() });
    }
    if crc32fast::hash(&body) != checksum {
        return Err(Broken::Checksum);
    }
    let body = Body::decode(body).map_err(|error| Broken::Content(error.to_string()))?;
    let path = NodePath::parse(&body.path).map_err(|error| Broken::Content(error.to_string()))?;
    let children = body.children.into_iter().map(|node| (node.name.as_str().into(), node.into_entry())).collect();
    let scope = Scope { path, recursive: body.recursive };
    let state = State::restored(scope, Revision(body.revision), body.node.map(Node::into_entry), children);
    Ok(Stored { state: Arc::new(state), as_of })
}

/// The offset of the time in a file, and its new bytes.
pub(super) fn seen_at(as_of: SystemTime) -> (u64, [u8; SEEN_BYTES]) {
    (u64::try_from(SEEN_AT).unwrap_or_default(), seen(as_of))
}

fn seen(as_of: SystemTime) -> [u8; SEEN_BYTES] {
    let since_epoch = as_of.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let milliseconds = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX).to_be_bytes();
    let mut bytes = [0; SEEN_BYTES];
    bytes[..8].copy_from_slice(&milliseconds);
    bytes[8..].copy_from_slice(&crc32fast::hash(&milliseconds).to_be_bytes());
    bytes
}

fn read_seen(mut bytes: &[u8]) -> Option<SystemTime> {
    let (milliseconds, checksum) = (bytes.get_u64(), bytes.get_u32());
    let is_whole = crc32fast::hash(&milliseconds.to_be_bytes()) == checksum;
    is_whole.then(|| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(milliseconds)))?
}

impl Node {
    fn new(name: &str, entry: &ViewNode) -> Self {
        let stat = entry.is_readable.then_some(NodeStat {
            czxid: entry.stat.czxid,
            mzxid: entry.stat.mzxid,
            ctime: entry.stat.ctime,
            mtime: entry.stat.mtime,
            version: entry.stat.version,
            cversion: entry.stat.cversion,
            aversion: entry.stat.aversion,
            ephemeral_owner: entry.stat.ephemeral_owner,
            data_length: entry.stat.data_length,
            num_children: entry.stat.num_children,
            pzxid: entry.stat.pzxid,
        });
        Self { name: name.to_owned(), data: entry.data.clone(), stat }
    }

    fn into_entry(self) -> Arc<ViewNode> {
        let Some(stat) = self.stat else { return Arc::new(ViewNode::default()) };
        let stat = Stat {
            czxid: stat.czxid,
            mzxid: stat.mzxid,
            ctime: stat.ctime,
            mtime: stat.mtime,
            version: stat.version,
            cversion: stat.cversion,
            aversion: stat.aversion,
            ephemeral_owner: stat.ephemeral_owner,
            data_length: stat.data_length,
            num_children: stat.num_children,
            pzxid: stat.pzxid,
        };
        Arc::new(ViewNode::new(&self.data, stat))
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt as _;

    use super::*;
    use crate::types::Zxid;
    use crate::views::state::{NodeRead, Reads};

    const AS_OF: SystemTime = SystemTime::UNIX_EPOCH;

    fn state(recursive: bool) -> State {
        let stat = |zxid, num_children| Stat { czxid: zxid, mzxid: zxid, pzxid: zxid, num_children, ..Stat::default() };
        let entry = |data: &[u8], stat| Some(Arc::new(ViewNode::new(data, stat)));
        let mut reads = Reads::new();
        reads.insert("a".into(), entry(b"\xff{}", stat(2, i32::from(recursive))));
        reads.insert("hidden".into(), Some(Arc::new(ViewNode::default())));
        if recursive {
            reads.insert("a/b".into(), entry(b"", stat(4, 0)));
        }
        let mut state = State::empty(NodePath::trusted("/p"), recursive);
        state.apply(NodeRead::Present(Arc::new(ViewNode::new(b"own", stat(1, 2)))), reads, Zxid(9));
        // The absence of a node nearby, or a changed access control list, may date it so.
        state.revision = Revision(9);
        state
    }

    fn file(state: &State) -> Vec<u8> {
        encode(state, AS_OF + Duration::from_millis(1234), 1 << 20).unwrap()
    }

    #[test]
    fn what_was_kept_comes_back_as_it_was() {
        for recursive in [false, true] {
            let state = state(recursive);
            assert!(state.agrees());
            let stored = decode(&file(&state).into(), AS_OF).unwrap();
            assert_eq!(*stored.state, state);
            assert_eq!(stored.as_of, AS_OF + Duration::from_millis(1234));
        }
        let absent = State::empty(NodePath::trusted("/absent"), false);
        assert_eq!(decode(&file(&absent).into(), AS_OF).unwrap().state.as_ref(), &absent);
    }

    #[test]
    fn what_would_be_too_large_is_not_kept() {
        let bytes = file(&state(false)).len();
        assert!(encode(&state(false), AS_OF, bytes).is_some());
        assert_eq!(encode(&state(false), AS_OF, bytes - 1), None);
    }

    #[test]
    fn broken_files_are_told_from_whole_ones() {
        let whole = file(&state(true));
        for length in 0..whole.len() {
            let error = decode(&Bytes::copy_from_slice(&whole[..length]), AS_OF).unwrap_err();
            assert!(matches!(error, Broken::Magic | Broken::Length { .. }), "{length}: {error}");
        }
        let longer = [whole.as_slice(), b"x"].concat();
        assert!(matches!(decode(&longer.into(), AS_OF), Err(Broken::Length { .. })));
        assert_eq!(decode(&Bytes::from_static(b"# somebody's notes"), AS_OF), Err(Broken::Magic));
        let mut newer = whole.clone();
        newer[11] = 2;
        assert_eq!(decode(&newer.into(), AS_OF), Err(Broken::Version(2)));
        for place in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[place] ^= 1 << rand::rng().random_range(0..8);
            let read = decode(&flipped.into(), AS_OF);
            match read {
                // Nothing but the time can be lost alone.
                Ok(stored) => {
                    assert!((SEEN_AT..HEADER).contains(&place), "{place}");
                    assert_eq!((&*stored.state, stored.as_of), (&state(true), AS_OF));
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }

    #[test]
    fn the_time_can_be_moved_alone() {
        let mut moved = file(&state(false));
        let (at, bytes) = seen_at(AS_OF + Duration::from_secs(77));
        let at = usize::try_from(at).unwrap();
        moved[at..at + bytes.len()].copy_from_slice(&bytes);
        assert_eq!(decode(&moved.into(), AS_OF).unwrap().as_of, AS_OF + Duration::from_secs(77));
    }

    #[derive(Debug, bolero::TypeGenerator)]
    struct DrawnNode {
        name: String,
        /// Of an inner node, so that names share parents.
        parent: Option<u8>,
        data: Vec<u8>,
        stat: Option<([i64; 6], [i32; 5])>,
    }

    impl DrawnNode {
        fn node(&self, is_own: bool) -> Node {
            let stat = self.stat.map(|(longs, ints)| NodeStat {
                czxid: longs[0],
                mzxid: longs[1],
                ctime: longs[2],
                mtime: longs[3],
                version: ints[0],
                cversion: ints[1],
                aversion: ints[2],
                ephemeral_owner: longs[4],
                data_length: ints[3],
                num_children: ints[4],
                pzxid: longs[5],
            });
            let name = self.parent.map_or(self.name.clone(), |parent| format!("{}/{}", parent % 4, self.name));
            Node { name: if is_own { String::new() } else { name }, data: self.data.clone().into(), stat }
        }
    }

    /// A file with any body, as [`encode`] puts a body into a file.
    fn file_of(body: &[u8], as_of: SystemTime) -> Bytes {
        let length = u64::try_from(body.len()).unwrap().to_be_bytes();
        let checksum = crc32fast::hash(body).to_be_bytes();
        [&MAGIC, &VERSION.to_be_bytes()[..], &length, &checksum, &seen(as_of), body].concat().into()
    }

    /// Reads a file, and asserts that a view that was read is written and read again as it was.
    fn read(file: &Bytes) -> Result<Stored, Broken> {
        let stored = decode(file, AS_OF)?;
        let again = encode(&stored.state, stored.as_of, usize::MAX).unwrap();
        assert_eq!(decode(&again.into(), AS_OF).as_ref(), Ok(&stored));
        Ok(stored)
    }

    #[test]
    fn fuzz_any_file_is_read_without_a_panic() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let with_magic = [&MAGIC, &VERSION.to_be_bytes()[..], bytes].concat();
            for file in [Bytes::copy_from_slice(bytes), with_magic.into(), file_of(bytes, AS_OF)] {
                drop(read(&file));
            }
        });
    }

    #[test]
    fn fuzz_a_view_comes_back_as_it_was_and_no_changed_file_is_taken_for_another_view() {
        type Input = ((String, bool, i64, u64), Option<DrawnNode>, Vec<DrawnNode>, Vec<(usize, u8)>);
        bolero::check!().with_type::<Input>().for_each(
            |((path, recursive, revision, seen), node, children, changes)| {
                let body = Body {
                    path: format!("/{path}"),
                    recursive: *recursive,
                    revision: *revision,
                    node: node.as_ref().map(|node| node.node(true)),
                    children: children.iter().map(|child| child.node(false)).collect(),
                };
                let as_of = AS_OF + Duration::from_millis(*seen);
                let mut bytes = body.encode_to_vec();
                let whole = file_of(&bytes, as_of);
                let stored = read(&whole);
                assert_eq!(stored.is_ok(), NodePath::parse(&body.path).is_ok(), "{stored:?}");
                assert!(stored.as_ref().is_ok_and(|stored| stored.as_of == as_of) || stored.is_err());
                let mut changed = whole.to_vec();
                for (at, byte) in changes {
                    let (in_file, in_body) = (at % changed.len(), at % bytes.len());
                    changed[in_file] = *byte;
                    bytes[in_body] = *byte;
                }
                // The checksum is wrong, unless it was made for the changed body.
                if let (Ok(changed), Ok(stored)) = (read(&changed.into()), stored) {
                    assert_eq!(changed.state, stored.state);
                }
                drop(read(&file_of(&bytes, as_of)));
            },
        );
    }
}
