//! Names of the znodes that are ours, or that a recipe puts beside a client's.

use crate::types::{NodePath, SessionId};

/// Where each ZooKeeper session of a replica has its fence.
pub(crate) const FENCES: &str = "/.rollcall/fences";
/// Where the records of locks with a ttl are.
pub(crate) const LEASES: &str = "/.rollcall/leases";

/// The fence of a session: an ephemeral of that session. Its version moves with every takeover from the session.
pub(crate) fn fence(session: SessionId) -> String {
    format!("{FENCES}/{:016x}", session.0)
}

/// What kazoo puts between a contender's unique prefix and its digits, and at the end of a queue's name.
pub(crate) const LOCK_MARK: &str = "__lock__";

/// The node whose children are the contenders for the lock at `path`: a sibling.
pub(crate) fn lock_queue(path: &NodePath) -> NodePath {
    NodePath::trusted(format!("{path}-{LOCK_MARK}"))
}

/// Whether a path is named as a [`lock_queue`] is.
pub(crate) fn is_lock_queue(path: &NodePath) -> bool {
    path.name().strip_suffix(LOCK_MARK).is_some_and(|name| name.ends_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locks_queue_stands_beside_it_as_kazoo_has_it() {
        let queue = lock_queue(&NodePath::trusted("/a/foo"));
        assert_eq!(queue.as_str(), "/a/foo-__lock__");
        assert!(is_lock_queue(&queue) && !is_lock_queue(&NodePath::trusted("/a/foo__lock__")));
        assert!(!is_lock_queue(&NodePath::trusted("/a-__lock__/foo")));
    }
}
