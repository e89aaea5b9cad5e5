//! Names of the znodes that are ours, or that a recipe puts beside a client's.
//!
//! ```text
//! /.rollcall/fences/<session, 16 hex>   ephemeral; its version moves with every takeover from that session
//! /.rollcall/leases/<32 hex>            records of locks with a ttl
//! /.rollcall/locks/<2 hex>/<30 hex>     records of locks that were made through Rollcall, by the hash of the path
//! /.rollcall/evicted/<hash of a path>   durable; the path of a registration that is kept out, and for how long
//! ```
//!
//! Everything else is where clients put it: registrations are ephemeral nodes, their parents durable and empty; a lock
//! is `/lock` (data: the limit) with its leases below it, and its queue is `/lock-__lock__`.

use crate::types::{NodePath, SessionId};

/// The parent of the fences; each ZooKeeper session of a replica has one.
pub(crate) const FENCES: &str = "/.rollcall/fences";
/// The parent of the records of locks with a ttl.
pub(crate) const LEASES: &str = "/.rollcall/leases";
/// The parent of the records of locks that were made through Rollcall.
pub(crate) const LOCK_RECORDS: &str = "/.rollcall/locks";
/// The parent of the records of evictions.
pub(crate) const EVICTED: &str = "/.rollcall/evicted";

/// The fence of a session: an ephemeral of that session. Every takeover from the session increases its version.
pub(crate) fn fence(session: SessionId) -> String {
    format!("{FENCES}/{:016x}", session.0)
}

/// The session whose fence has this name.
pub(crate) fn session_of_fence(name: &str) -> Option<SessionId> {
    let id = u64::from_str_radix(name, 16).ok().filter(|_| name.len() == 16)?;
    Some(SessionId(i64::from_be_bytes(id.to_be_bytes())))
}

/// The mark that kazoo puts between a contender's unique prefix and its digits, and at the end of a queue's name.
pub(crate) const LOCK_MARK: &str = "__lock__";

/// The node whose children are the contenders for the lock at `path`: a sibling.
pub(crate) fn lock_queue(path: &NodePath) -> NodePath {
    NodePath::trusted(format!("{path}-{LOCK_MARK}"))
}

/// Whether a path, or a path above it, is named like a [`lock_queue`]: a node there belongs to a lock's contenders, or
/// would be in their way.
pub(crate) fn is_in_lock_queue(path: &NodePath) -> bool {
    std::iter::successors(Some(path.clone()), NodePath::parent).any(|path| is_lock_queue(&path))
}

/// Whether a path is named like a [`lock_queue`].
pub(crate) fn is_lock_queue(path: &NodePath) -> bool {
    path.name().strip_suffix(LOCK_MARK).is_some_and(|name| name.ends_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_named_by_its_session() {
        for id in [1, i64::MAX, -2] {
            let fence = fence(SessionId(id));
            assert_eq!(
                session_of_fence(fence.strip_prefix(FENCES).unwrap().trim_start_matches('/')),
                Some(SessionId(id))
            );
        }
        assert!(session_of_fence("1").is_none() && session_of_fence("000000000000000x").is_none());
    }

    #[test]
    fn a_locks_queue_stands_beside_it_as_kazoo_has_it() {
        let queue = lock_queue(&NodePath::trusted("/a/foo"));
        assert_eq!(queue.as_str(), "/a/foo-__lock__");
        assert!(is_lock_queue(&queue) && !is_lock_queue(&NodePath::trusted("/a/foo__lock__")));
        let contender = NodePath::trusted("/a-__lock__/foo");
        assert!(is_in_lock_queue(&queue) && is_in_lock_queue(&contender) && is_in_lock_queue(&contender.join("x")));
        assert!(!is_lock_queue(&contender) && !is_in_lock_queue(&NodePath::trusted("/a/foo__lock__")));
    }
}
