//! The shares of their connection's account that registrations, and requests for them, take.

use crate::budget::{Account, Resource, Share};
use crate::error::Error;
use crate::types::NodePath;

/// Memory for a registration, or for a request that waits, besides its path and its value: its entry, its places in the
/// maps by path, by parent and by session, the claim. Measured.
const OVERHEAD: usize = 1024;

/// One registration of a stream, and its node. Given back on drop.
#[derive(Debug)]
pub(super) struct Footprint {
    _registration: Share,
    _path: Share,
    /// The memory of the registration, once it is made.
    memory: Option<Share>,
}

impl Footprint {
    /// For a registration that is asked for.
    pub(super) fn take(account: &Account, path: &NodePath) -> Result<Self, Error> {
        let registration = account.take(Resource::Registrations, 1)?;
        let path = account.take(Resource::PathBytes, path.as_str().len())?;
        Ok(Self { _registration: registration, _path: path, memory: None })
    }

    /// The memory of the request that was carried out becomes that of the registration.
    pub(super) fn keep(&mut self, mut memory: Share, path: &NodePath, value: usize) {
        // The keys that the server added may not fit. They are not counted then.
        drop(memory.resize(memory_for(path, value)));
        self.memory = Some(memory);
    }
}

/// Memory for a request, in bytes.
fn memory_for(path: &NodePath, value: usize) -> usize {
    OVERHEAD + path.as_str().len() + value
}

/// Memory for a request that may have to wait.
pub(super) fn request(account: &Account, path: &NodePath, value: usize) -> Result<Share, Error> {
    account.take(Resource::Bytes, memory_for(path, value))
}
