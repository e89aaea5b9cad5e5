//! A lock that is held.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::keep::{self, Grant, LockState};
use super::release::release_later;
use super::stream::{Stream, Terms};
use crate::error::{Error, LostReason, Reason};

/// A lock that is held: from [`Lock::acquire`](super::Lock::acquire).
///
/// The client renews the lock until it is [released](LockGuard::release) or lost. Dropping the guard gives the lock
/// back in the background; [`Client::settled`](crate::Client::settled) waits for that. If the program ends earlier, the
/// lock goes with its ttl.
#[derive(Debug)]
pub struct LockGuard {
    terms: Terms,
    lock_id: String,
    token: i64,
    state: watch::Sender<LockState>,
    /// Keeps the lock; ends with the guard.
    keeper: JoinSet<()>,
    /// Whether the end of the guard gives the lock back.
    ends: bool,
}

impl LockGuard {
    pub(super) fn new(terms: Terms, ttl: Option<Duration>, stream: Stream, grant: Grant) -> Self {
        let (lock_id, token) = (grant.lock_id.clone(), grant.token);
        let now = tokio::time::Instant::now();
        let until = match ttl {
            Some(ttl) => grant.sent_at + ttl,
            None => now + grant.horizon,
        };
        let state = watch::Sender::new(LockState::Held { until: until.into() });
        let mut keeper = JoinSet::new();
        match ttl {
            Some(ttl) => drop(keeper.spawn(keep::lasting(terms.clone(), ttl, stream, grant, state.clone()))),
            None => drop(keeper.spawn(keep::bound_to_stream(terms.clone(), stream, grant, now, state.clone()))),
        }
        Self { terms, lock_id, token, state, keeper, ends: true }
    }

    /// Rises with every grant of this lock. Pass it to the resource that the lock guards, and have that resource refuse
    /// a token smaller than the largest it has seen.
    #[must_use]
    pub fn fencing_token(&self) -> i64 {
        self.token
    }

    /// The path of the lock.
    #[must_use]
    pub fn path(&self) -> &str {
        self.terms.path()
    }

    /// The present state of the lock, by this program's clock.
    #[must_use]
    pub fn state(&self) -> LockState {
        let state = self.state.borrow().clone();
        match state {
            // The keeper may not have noticed the time yet.
            LockState::Held { until } | LockState::Suspended { until } if Instant::now() >= until => {
                LockState::Lost { reason: LostReason::Expired }
            }
            state => state,
        }
    }

    /// The state of the lock, as it changes: Tokio's watch channel. Nothing is sent when `until` passes.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<LockState> {
        self.state.subscribe()
    }

    /// Waits until the lock is lost, and returns why. For as long as this program runs, that is before any other client
    /// can get the lock.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn lost(&self) -> LostReason {
        let mut states = self.states();
        loop {
            states.mark_unchanged();
            let until = match self.state() {
                LockState::Lost { reason } => return reason,
                LockState::Released => std::future::pending().await,
                LockState::Held { until } | LockState::Suspended { until } => until,
            };
            tokio::select! {
                () = sleep_until(until.into()) => {}
                // The guard has a sender, so the channel stays open.
                _ = states.changed() => {}
            }
        }
    }

    /// Runs `work` only for as long as the lock is held. When the lock is lost, `work` is dropped where it is.
    ///
    /// # Errors
    /// [`Error::Lost`]: `work` did not finish. Anything that it has begun elsewhere may go on: see
    /// [`fencing_token`](LockGuard::fencing_token).
    ///
    /// # Cancellation
    /// As for `work`; the lock is kept.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, Error> {
        let (mut work, mut lost) = (pin!(work), pin!(self.lost()));
        poll_fn(|context| {
            // The clock is checked before each step of the work, so that a program that was paused does not take
            // another step.
            let reason = match self.state() {
                LockState::Lost { reason } => Some(reason),
                _ => match lost.as_mut().poll(context) {
                    Poll::Ready(reason) => Some(reason),
                    Poll::Pending => None,
                },
            };
            match reason {
                Some(reason) => Poll::Ready(Err(Error::Lost { path: self.path().to_owned(), reason })),
                None => work.as_mut().poll(context).map(Ok),
            }
        })
        .await
    }

    /// Gives the lock back, and waits until that is done.
    ///
    /// # Errors
    /// [`Error::Lost`]: it was lost before. [`Error::Unreachable`]: no replica could be reached; the lock goes with its
    /// ttl.
    ///
    /// # Cancellation
    /// It is given back all the same.
    ///
    /// # Connection loss
    /// Another replica is asked.
    pub async fn release(mut self) -> Result<(), Error> {
        let state = self.state();
        keep::show(&self.state, LockState::Released);
        let released = self.terms.client.release_lock(self.lock_id.as_str()).await;
        let is_gone = released.as_ref().is_err_and(|error| error.reason() == Some(&Reason::LockLost));
        // A release that failed is tried once more by the drop.
        self.ends = released.is_err() && !is_gone;
        let path = self.path().to_owned();
        match state {
            LockState::Lost { reason } => Err(Error::Lost { path, reason }),
            _ if is_gone => Err(Error::Lost { path, reason: LostReason::SessionLost }),
            _ => released,
        }
    }

    /// Stops renewing the lock and leaves it held for its ttl. Returns the id by which any program can give it back
    /// with [`Client::release_lock`](crate::Client::release_lock). The id is a secret: anyone who knows it can release
    /// the lock. A lock without a ttl is given back.
    #[must_use]
    pub fn leave(mut self) -> String {
        self.ends = false;
        self.keeper.abort_all();
        self.lock_id.clone()
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if self.ends {
            release_later(&self.terms.client, self.lock_id.clone());
        }
    }
}
