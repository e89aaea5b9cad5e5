//! The fence of a session, as its owner writes it.
//!
//! Each session of the pool has an ephemeral fence, which is created before anything else. Versions of nodes don't tell
//! incarnations apart, since each incarnation starts at 0. Therefore:
//!
//! - A takeover from session S is one multi: write S's fence at the version that was read before the node, delete the
//!   node, create ours.
//! - A delete of our own node is one multi: write our fence at the version that we know, delete. The node is read just
//!   before.
//! - A replica that finds a fence moved reads again and decides again.
//! - A registration that is gone is put back: at once when the watch, unbroken since the node was last read, has told
//!   of a delete and of no create, since it tells of a takeover as both; after a gap only if the fence has not moved.
//!
//! One write of the fence covers all deletes, or all takeovers from one session, of a batch. The data of a fence tell
//! our own writes, which have the replica's name, from those of others. So a lost answer does not look like a takeover.
//! The heartbeat writes the fence too: a write that ZooKeeper has carried out is the evidence by which the holder of a
//! lock is told that it is safe.
//!
//! Nodes of kazoo and nd_service_registry have no fence. There a read just before the delete is all that can be done.

use bytes::Bytes;
use rollcall_wire::Request;

use super::calls::set_data;

/// The session's own fence.
#[derive(Debug, Clone)]
pub(super) struct Fence {
    pub(super) path: String,
    /// The data that its owner writes into it: no other replica writes the same.
    pub(super) mark: Bytes,
}

impl Fence {
    /// The write of a fence at the beginning of a multi. Its data shows whose session has written it.
    pub(super) fn guard(&self, path: &str, version: i32) -> Request {
        let data = if path == self.path { self.mark.clone() } else { Bytes::copy_from_slice(self.path.as_bytes()) };
        set_data(path, data, version)
    }
}
