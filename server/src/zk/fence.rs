//! The fence of a session, as its owner writes it.

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
