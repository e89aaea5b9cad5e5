//! Names of the znodes that are ours.

use crate::types::SessionId;

/// Where each ZooKeeper session of a replica has its fence.
pub(crate) const FENCES: &str = "/.rollcall/fences";
/// Where the records of locks with a ttl are.
pub(crate) const LEASES: &str = "/.rollcall/leases";

/// The fence of a session: an ephemeral of that session. Its version moves with every takeover from the session.
pub(crate) fn fence(session: SessionId) -> String {
    format!("{FENCES}/{:016x}", session.0)
}
