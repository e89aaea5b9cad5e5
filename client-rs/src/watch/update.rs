//! The updates of a watch.

use std::time::SystemTime;

use crate::node::{Change, Node};

/// An update of a watch.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Update {
    /// The full state, which replaces the earlier one. It comes first, and again when a replica no longer knows the
    /// changes since.
    Snapshot {
        /// The node with all its children.
        node: Node,
        /// The revision of this state.
        revision: i64,
        /// Whether ZooKeeper itself went back in time, as after a restored backup.
        reset: bool,
    },
    /// The changes since the last state, as a whole: there is no state between the changes of one update.
    Changes {
        /// The changes. Apply them in order, with [`Node::apply`].
        changes: Vec<Change>,
        /// The revision of the state after them.
        revision: i64,
    },
    /// From now on the state may be out of date: ZooKeeper, or every replica, can't be reached.
    Stale {
        /// When it was last known to be current, if a replica gave that.
        as_of: Option<SystemTime>,
    },
    /// The state is current again. Changes made meanwhile come as an update of their own.
    Current,
}
