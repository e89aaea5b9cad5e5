//! Nodes and their changes.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rollcall_proto::v1;

use crate::choice::FOREVER;
use crate::value::Value;

/// A node and everything that was read below it. A path that does not exist is an answer, not an error.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Node {
    /// The absolute path.
    pub path: String,
    /// Whether the node exists.
    pub exists: bool,
    /// Its value; `None`: it holds nothing.
    pub value: Option<Value>,
    /// ZooKeeper's record of it; `None` when it does not exist.
    pub stat: Option<Stat>,
    /// Its children by name. With `recursive`: everything below it, by relative path such as `a/b`.
    pub children: BTreeMap<String, Child>,
}

/// A child of a node.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Child {
    /// Its value; `None`: it holds nothing.
    pub value: Option<Value>,
    /// ZooKeeper's record of it. A watch sends it with each change, so it is as of the last change.
    pub stat: Option<Stat>,
}

/// ZooKeeper's own record of a node. A zxid is the number of a transaction; later ones are larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    /// The zxid that created the node. For a registration: its generation.
    pub czxid: i64,
    /// The zxid that last changed its data.
    pub mzxid: i64,
    /// The zxid that last added or removed a child.
    pub pzxid: i64,
    /// When it was created, in milliseconds since 1970-01-01 UTC, by ZooKeeper's clock.
    pub ctime: i64,
    /// When its data last changed, in milliseconds since 1970-01-01 UTC, by ZooKeeper's clock.
    pub mtime: i64,
    /// Number of changes of the data since the node was created; a compare-and-set expects it.
    pub version: i32,
    /// Number of times that a child was added or removed.
    pub cversion: i32,
    /// Number of changes of the access control list.
    pub aversion: i32,
    /// The ZooKeeper session that a registration belongs to; 0 for a durable node.
    pub ephemeral_owner: i64,
    /// The size of the data, in bytes.
    pub data_length: i32,
    /// Number of its children.
    pub num_children: i32,
}

/// A path, as a replica showed it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Lookup {
    /// The node with all its children.
    pub node: Node,
    /// The revision of this state.
    pub revision: i64,
    /// Whether it may be out of date: ZooKeeper, or every replica, could not be reached.
    pub stale: bool,
    /// When it was last known to be current; set when `stale` is.
    pub as_of: Option<SystemTime>,
}

impl Stat {
    /// Whether the node is ephemeral: a registration, or a part of a lock.
    #[must_use]
    pub fn is_ephemeral(&self) -> bool {
        self.ephemeral_owner != 0
    }

    /// When the node was created, by ZooKeeper's clock.
    #[must_use]
    pub fn created(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(u64::try_from(self.ctime).unwrap_or_default())
    }

    /// When the data last changed, by ZooKeeper's clock.
    #[must_use]
    pub fn modified(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(u64::try_from(self.mtime).unwrap_or_default())
    }
}

/// One change of a watched path.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Change {
    /// A child has appeared.
    Added {
        /// Its name.
        name: String,
        /// Its value and stat.
        child: Child,
    },
    /// A child's data has changed.
    Updated {
        /// Its name.
        name: String,
        /// Its new value and stat.
        child: Child,
    },
    /// A child has gone.
    Removed {
        /// Its name.
        name: String,
    },
    /// The watched path was created.
    Created(Child),
    /// The watched path's own data has changed.
    DataChanged(Child),
    /// The watched path and all its children are gone.
    Deleted,
}

impl Node {
    /// Applies a change. Apply changes in the order in which they come.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Added { name, child } | Change::Updated { name, child } => {
                self.children.insert(name, child);
            }
            Change::Removed { name } => {
                self.children.remove(&name);
            }
            Change::Created(own) | Change::DataChanged(own) => {
                (self.exists, self.value, self.stat) = (true, own.value, own.stat);
            }
            Change::Deleted => {
                (self.exists, self.value, self.stat) = (false, None, None);
                self.children.clear();
            }
        }
    }

    pub(crate) fn from_proto(node: v1::Node) -> Self {
        Self {
            path: node.path,
            exists: node.exists,
            value: Value::from_proto(node.value),
            stat: node.stat.map(Stat::from_proto),
            children: node.children.into_iter().map(|(name, child)| (name, Child::from_proto(child))).collect(),
        }
    }
}

impl Lookup {
    pub(crate) fn from_proto(answer: v1::GetResponse) -> Self {
        Self {
            node: answer.node.map(Node::from_proto).unwrap_or_default(),
            revision: answer.revision,
            stale: answer.stale,
            as_of: answer.as_of.and_then(time_from_proto),
        }
    }
}

impl Child {
    fn from_proto(child: v1::Child) -> Self {
        Self { value: Value::from_proto(child.value), stat: child.stat.map(Stat::from_proto) }
    }
}

impl Stat {
    pub(crate) fn from_proto(stat: v1::Stat) -> Self {
        Self {
            czxid: stat.czxid,
            mzxid: stat.mzxid,
            pzxid: stat.pzxid,
            ctime: stat.ctime,
            mtime: stat.mtime,
            version: stat.version,
            cversion: stat.cversion,
            aversion: stat.aversion,
            ephemeral_owner: stat.ephemeral_owner,
            data_length: stat.data_length,
            num_children: stat.num_children,
        }
    }
}

impl Change {
    /// `None` for a kind that this version does not know.
    pub(crate) fn from_proto(change: v1::Change) -> Option<Self> {
        let (kind, name) = (change.kind(), change.name);
        let child = change.child.map(Child::from_proto).unwrap_or_default();
        Some(match kind {
            v1::ChangeKind::Unspecified => return None,
            v1::ChangeKind::Added => Self::Added { name, child },
            v1::ChangeKind::Updated => Self::Updated { name, child },
            v1::ChangeKind::Removed => Self::Removed { name },
            v1::ChangeKind::Created => Self::Created(child),
            v1::ChangeKind::DataChanged => Self::DataChanged(child),
            v1::ChangeKind::Deleted => Self::Deleted,
        })
    }
}

/// Converts a timestamp of the API; `None` when it is out of range.
pub(crate) fn time_from_proto(time: prost_types::Timestamp) -> Option<SystemTime> {
    SystemTime::try_from(time).ok()
}

/// Converts a duration for the API. A duration that is too long becomes the longest possible.
pub(crate) fn duration_to_proto(duration: Duration) -> prost_types::Duration {
    let longest = prost_types::Duration { seconds: 315_576_000_000, nanos: 0 };
    prost_types::Duration::try_from(duration).unwrap_or(longest)
}

/// Converts a duration of the API. A negative duration becomes zero, and a very long one is cut so that no clock
/// overflows.
pub(crate) fn duration_from_proto(duration: prost_types::Duration) -> Duration {
    Duration::try_from(duration).unwrap_or_default().min(FOREVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_duration_of_a_replica_overflows_a_clock() {
        let from_seconds = |seconds| duration_from_proto(prost_types::Duration { seconds, nanos: 0 });
        let now = tokio::time::Instant::now();
        assert!(now + from_seconds(i64::MAX) * 2 > now + from_seconds(3600));
        assert_eq!(from_seconds(-1), Duration::ZERO);
    }

    fn child(text: &str) -> Child {
        Child { value: Some(text.into()), stat: None }
    }

    #[test]
    fn changes_make_the_next_state() {
        let mut node = Node { path: "/a".to_owned(), ..Node::default() };
        node.apply(Change::Created(child("own")));
        node.apply(Change::Added { name: "x".to_owned(), child: child("1") });
        node.apply(Change::Added { name: "y".to_owned(), child: child("2") });
        node.apply(Change::Updated { name: "x".to_owned(), child: child("3") });
        node.apply(Change::Removed { name: "y".to_owned() });
        assert!(node.exists && node.children.len() == 1);
        assert_eq!(node.children["x"], child("3"));
        node.apply(Change::DataChanged(child("new")));
        assert_eq!(node.value, child("new").value);
        node.apply(Change::Deleted);
        assert_eq!(node, Node { path: "/a".to_owned(), ..Node::default() });
    }
}
