//! What a watch tells.

use std::time::SystemTime;

use crate::node::{Change, Node};

/// What a watch tells.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Update {
    /// The full state: forget what you had. Comes first, and again when a replica no longer knows what has changed since.
    Snapshot {
        /// The node with all its children.
        node: Node,
        /// What dates this state.
        revision: i64,
        /// ZooKeeper itself went back in time, as after a restored backup.
        reset: bool,
    },
    /// What has changed since, as a whole: between the changes of one update there is no state of its own.
    Changes {
        /// Apply them in order, with [`Node::apply`].
        changes: Vec<Change>,
        /// What dates the state after them.
        revision: i64,
    },
    /// From now on the state may be out of date: ZooKeeper, or every replica, can't be reached.
    Stale {
        /// When it was last known to be current, if a replica has told.
        as_of: Option<SystemTime>,
    },
    /// It is current again. What has changed meanwhile comes as an update of its own.
    Current,
}
