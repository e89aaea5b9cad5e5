//! Locks: queueing for a lock, holding it, releasing it.

mod acquire;
mod describe;
mod guard;
mod keep;
mod release;
mod stream;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use self::acquire::Place;
pub use self::describe::{LockDescription, LockParty};
pub use self::guard::LockGuard;
pub use self::keep::LockState;

use self::acquire::Tell;
use self::stream::Terms;
use crate::client::Client;
use crate::error::Error;

/// Default ttl: time for which a lock outlives its client.
const TTL: Duration = Duration::from_secs(30);
/// Range of ttls that a replica accepts.
const TTLS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);

/// A builder of a lock: from [`Client::lock`].
#[derive(Clone)]
#[must_use = "nothing is locked before it is acquired"]
pub struct Lock {
    client: Client,
    path: String,
    simultaneous: u32,
    ttl: Option<Duration>,
    name: Option<String>,
    wait: Option<Duration>,
    on_queued: Option<Tell>,
}

impl Client {
    /// Takes a lock: first come, first served, across all replicas and all programs that use kazoo's Semaphore.
    ///
    /// ```no_run
    /// # async fn example(client: rollcall::Client) -> Result<(), rollcall::Error> {
    /// let guard = client.lock("/jobs/nightly").acquire().await?;
    /// guard.run(async { /* what must not run twice */ }).await?;
    /// guard.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A lock alone does not keep out a program that was paused while its lock ran out: between its last check and its
    /// write, another program may have got the lock. Where that matters, pass the [fencing
    /// token](LockGuard::fencing_token) to the guarded resource, and have it refuse a token smaller than the largest it
    /// has seen.
    pub fn lock(&self, path: impl Into<String>) -> Lock {
        Lock {
            client: self.clone(),
            path: path.into(),
            simultaneous: 1,
            ttl: Some(TTL),
            name: None,
            wait: None,
            on_queued: None,
        }
    }
}

impl Lock {
    /// Maximum number of holders at once. All users of the path must give the same number. Default: 1.
    pub fn simultaneous(mut self, simultaneous: u32) -> Self {
        self.simultaneous = simultaneous;
        self
    }

    /// Time for which the lock is kept after the program has died or lost every replica, from 1 second to 10 minutes.
    /// Default: 30 seconds. The client renews the lock, at any replica that answers. If none answers for that long, the
    /// lock is lost, and the [guard](LockGuard) knows before any other client can get it.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Releases the lock at once when the connection to the replica ends, for whatever reason, a restart of the replica
    /// included.
    pub fn without_ttl(mut self) -> Self {
        self.ttl = None;
        self
    }

    /// The holder's name, which others see. Default: the client's name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Waits for at most this time. Zero tries, and takes no place in the queue. Default: for ever.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Calls `tell` with the place in the queue, and with each later place. It must not block.
    pub fn on_queued(mut self, tell: impl Fn(&Place) + Send + Sync + 'static) -> Self {
        self.on_queued = Some(Arc::new(tell));
        self
    }

    /// Queues for the lock, and waits until it is held.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reasons [`LockBusy`](crate::Reason::LockBusy) (the time is over; the detail
    /// `holders` names the holders), [`LockLimitDiffers`](crate::Reason::LockLimitDiffers),
    /// [`NotALock`](crate::Reason::NotALock) and those of every call. [`Error::Unreachable`]: no replica answered for
    /// the client's time-out. [`Error::Invalid`]: the ttl is out of range.
    ///
    /// # Cancellation
    /// Dropping the future leaves the queue.
    ///
    /// # Connection loss
    /// The place is kept if the replica still knows it; otherwise a new place is taken, at the end of the queue.
    pub async fn acquire(self) -> Result<LockGuard, Error> {
        if self.ttl.is_some_and(|ttl| !TTLS.contains(&ttl)) {
            return Err(Error::invalid("ttl", "it must be from 1 second to 10 minutes"));
        }
        let terms = Terms::new(self.client, self.path, self.simultaneous, self.ttl, self.name);
        acquire::acquire(terms, self.ttl, self.wait, self.on_queued).await
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, simultaneous, ttl, name, wait, .. } = self;
        formatter
            .debug_struct("Lock")
            .field("path", path)
            .field("simultaneous", simultaneous)
            .field("ttl", ttl)
            .field("name", name)
            .field("wait", wait)
            .finish_non_exhaustive()
    }
}
