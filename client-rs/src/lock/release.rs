//! Releasing a lock by its id.

use rollcall_proto::v1;

use crate::client::{Attempt, Call, Client};
use crate::error::{Error, Reason};

impl Client {
    /// Releases a lock, or a place in its queue, by the id that [`LockGuard::leave`](crate::LockGuard::leave) gave. Any
    /// program can do so.
    ///
    /// # Errors
    /// [`Error::Refused`], reason [`LockLost`](Reason::LockLost): it is no longer held under this id.
    /// [`Error::Unreachable`]: it may have been released; otherwise it goes with its ttl.
    ///
    /// # Cancellation
    /// It may or may not have been released.
    ///
    /// # Connection loss
    /// Another replica is asked.
    pub async fn release_lock(&self, lock_id: impl Into<String>) -> Result<(), Error> {
        let request = v1::ReleaseLockRequest { lock_id: lock_id.into() };
        let mut attempts = 0_u32;
        let release = |attempt: Attempt| {
            attempts += 1;
            let request = request.clone();
            async move { attempt.bounded(attempt.stub().release_lock(request)).await }
        };
        // Releasing twice is the same as once.
        match self.call(Call::read(""), release).await {
            // An earlier attempt was carried out, and its answer was lost.
            Err(error) if attempts > 1 && error.reason() == Some(&Reason::LockLost) => Ok(()),
            answer => answer.map(|_| ()),
        }
    }
}

/// Releases a lock in the background; [`Client::settled`] waits for it.
pub(super) fn release_later(client: &Client, lock_id: String) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let client = client.clone();
        let under_way = client.shared().background.begin();
        runtime.spawn(async move {
            // An error means that the lock is gone already, which is just as good.
            let _ = client.release_lock(lock_id).await;
            drop(under_way);
        });
    }
}
