//! The durable nodes of a lock, and their removal when nobody uses the lock.
//!
//! A lock is two nodes, which kazoo's recipe leaves for ever: its own, with a number, and its queue beside it. They can
//! be removed when neither has a child. A holder has a child below the first and a waiter below the second, and a
//! contender becomes a holder without a moment in which it has neither. Both nodes are deleted in one transaction,
//! which ZooKeeper refuses if either has a child by then.
//!
//! A lock that was made through Rollcall has a record, `/.rollcall/locks/<2 hex>/<30 hex>` by the hash of its path.
//! Replicas find unused locks by their records, without reading the whole tree (`locks/hold/idle.rs`).

use bytes::Bytes;
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::types::{NodePath, Zxid};
use crate::zk::layout::{LOCK_RECORDS, lock_queue};
use crate::zk::{self, CreateMode, ErrorCode, Read, Request, Session};

/// The record of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LockRecord {
    /// The lock.
    pub(crate) path: NodePath,
    /// The transaction of the last use that was seen; 0 if none was seen.
    pub(crate) used: Zxid,
}

/// The kind of the nodes at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockNodes {
    /// Neither exists.
    None,
    /// Only a node with a number. With a record it belongs to a lock that was begun by a replica that ended before it
    /// had made the queue; without one it may be anything. `used` is the transaction that has last written it.
    Begun { used: Zxid, version: i32 },
    /// Nodes that may not belong to a lock.
    Other,
    /// The nodes of a lock. `is_busy`: a client holds it or waits for it. `used`: the transaction of the last use.
    Lock { is_busy: bool, used: Zxid, versions: Versions },
}

/// The versions of a lock's node and of its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Versions {
    /// The version of the lock's node.
    pub(crate) lock: i32,
    queue: i32,
}

/// The path of the record of the lock at `path`.
pub(crate) fn lock_record(path: &NodePath) -> NodePath {
    let hex = HEXLOWER.encode(&Sha256::digest(path.as_str())[..16]);
    let (shard, name) = hex.split_at(2);
    NodePath::trusted(format!("{LOCK_RECORDS}/{shard}/{name}"))
}

impl LockRecord {
    /// Reads a record's data; `None` if Rollcall did not write it.
    pub(crate) fn parse(data: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(data).ok()?;
        let path = NodePath::parse_below_root(value.get("path")?.as_str()?).ok()?;
        Some(Self { path, used: Zxid(value.get("used")?.as_i64()?) })
    }

    fn data(&self) -> Bytes {
        json!({ "path": self.path.as_str(), "used": self.used.0 }).to_string().into()
    }

    /// The request that creates the record.
    pub(crate) fn create(&self) -> Request {
        zk::create(lock_record(&self.path).as_str(), self.data(), CreateMode::Persistent)
    }

    /// The request that deletes the record, if it still has this version.
    pub(crate) fn delete(&self, version: i32) -> Request {
        zk::delete(lock_record(&self.path).as_str(), version)
    }

    /// The request that writes the record, if it still has this version; −1 matches any version.
    pub(crate) fn write(&self, version: i32) -> Request {
        zk::set_data(lock_record(&self.path).as_str(), self.data(), version)
    }
}

impl LockNodes {
    /// The kind of the nodes, from a reading of both.
    pub(crate) fn of(lock: Option<&Read>, queue: Option<&Read>) -> Self {
        // Not ephemeral, nor a container or a node with a ttl, which ZooKeeper removes.
        let is_plain = |read: &Read| read.stat.ephemeral_owner == 0;
        let is_lock = |lock: &Read| is_plain(lock) && is_a_number(&lock.data);
        let (lock, queue) = match (lock, queue) {
            (None, None) => return Self::None,
            (Some(lock), Some(queue)) if is_lock(lock) && is_plain(queue) => (lock, queue),
            (Some(lock), None) if is_lock(lock) && lock.stat.num_children == 0 => {
                let used = Zxid(lock.stat.pzxid.max(lock.stat.mzxid));
                return Self::Begun { used, version: lock.stat.version };
            }
            _ => return Self::Other,
        };
        Self::Lock {
            is_busy: lock.stat.num_children > 0 || queue.stat.num_children > 0,
            // A use creates or deletes children, or writes the queue's node.
            used: Zxid([lock.stat.pzxid, queue.stat.pzxid, queue.stat.mzxid].into_iter().max().unwrap_or_default()),
            versions: Versions { lock: lock.stat.version, queue: queue.stat.version },
        }
    }

    /// Reads both nodes.
    pub(crate) async fn read(session: &Session, path: &NodePath) -> Result<Self, zk::Error> {
        let reads = session.get_many([path.as_str(), lock_queue(path).as_str()]).await?;
        let reads: Result<Vec<_>, ErrorCode> = reads.into_iter().collect();
        match reads.map_err(zk::Error::Refused)?.as_slice() {
            [lock, queue] => Ok(Self::of(lock.as_ref(), queue.as_ref())),
            _ => Err(zk::Error::OutcomeUnknown),
        }
    }
}

impl Versions {
    /// The requests that delete both nodes, if they still have these versions and no children.
    pub(crate) fn removal(self, path: &NodePath) -> [Request; 2] {
        [zk::delete(lock_queue(path).as_str(), self.queue), zk::delete(path.as_str(), self.lock)]
    }
}

/// The requests that delete the node of a [begun](LockNodes::Begun) lock, if it still has this version, no children and
/// no queue.
pub(crate) fn removal_of_begun(path: &NodePath, version: i32) -> [Request; 3] {
    let queue = lock_queue(path);
    // The first request is refused if there is a queue.
    let create = zk::create(queue.as_str(), Bytes::new(), CreateMode::Persistent);
    [create, zk::delete(queue.as_str(), -1), zk::delete(path.as_str(), version)]
}

/// Whether the data is a lock node's number, as kazoo and Rollcall write it.
fn is_a_number(data: &[u8]) -> bool {
    !data.is_empty() && data.len() <= 10 && data.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Stat;

    fn read(data: &'static str, children: i32, pzxid: i64) -> Read {
        let stat = Stat { num_children: children, pzxid, mzxid: 3, version: 7, ..Stat::default() };
        Read { data: data.into(), stat }
    }

    #[test]
    fn only_what_is_surely_a_lock_is_one() {
        let queue = read("", 0, 5);
        let of = |lock: &Read| LockNodes::of(Some(lock), Some(&queue));
        let versions = Versions { lock: 7, queue: 7 };
        assert_eq!(of(&read("12", 0, 9)), LockNodes::Lock { is_busy: false, used: Zxid(9), versions });
        assert_eq!(of(&read("1", 2, 4)), LockNodes::Lock { is_busy: true, used: Zxid(5), versions });
        for other in ["", "{}", "-1", "1 ", "1.5", "12345678901"] {
            assert_eq!(of(&read(other, 0, 9)), LockNodes::Other, "{other:?}");
        }
        let ephemeral = Read { stat: Stat { ephemeral_owner: 1, ..Stat::default() }, ..read("1", 0, 9) };
        assert_eq!(of(&ephemeral), LockNodes::Other);
        assert_eq!(LockNodes::of(Some(&read("1", 0, 9)), None), LockNodes::Begun { used: Zxid(9), version: 7 });
        assert_eq!(LockNodes::of(Some(&read("1", 1, 9)), None), LockNodes::Other);
        assert_eq!(LockNodes::of(Some(&read("a", 0, 9)), None), LockNodes::Other);
        assert_eq!(LockNodes::of(None, Some(&queue)), LockNodes::Other);
        assert_eq!(LockNodes::of(None, None), LockNodes::None);
        let waited_for = LockNodes::of(Some(&read("1", 0, 9)), Some(&read("", 1, 5)));
        assert_eq!(waited_for, LockNodes::Lock { is_busy: true, used: Zxid(9), versions });
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_is_found_by_its_path() {
        let record = LockRecord { path: NodePath::trusted("/jobs/\"ä\""), used: Zxid(1 << 40) };
        assert_eq!(LockRecord::parse(&record.data()), Some(record.clone()));
        assert_eq!(LockRecord::parse(b"{}"), None);
        let place = lock_record(&record.path);
        let [shard, name] = [place.parent().unwrap(), place.clone()].map(|path| path.name().len());
        assert_eq!((shard, name), (2, 30), "{place}");
    }
}
