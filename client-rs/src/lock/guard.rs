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
/// The client renews it until it is [released](LockGuard::release) or lost. Dropping the guard gives the lock back in the
/// background, for which [`Client::settled`](crate::Client::settled) waits; a program that ends before leaves it for its ttl.
#[derive(Debug)]
pub struct LockGuard {
    terms: Terms,
    lock_id: String,
    token: i64,
    state: watch::Sender<LockState>,
    /// Keeps the lock; ends with the guard.
    keeper: JoinSet<()>,
    /// Whether the guard's end is the lock's.
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

    /// Rises with every grant of this lock. Pass it to what the lock guards, and have that refuse a smaller one than it has
    /// seen.
    #[must_use]
    pub fn fencing_token(&self) -> i64 {
        self.token
    }

    /// The path of the lock.
    #[must_use]
    pub fn path(&self) -> &str {
        self.terms.path()
    }

    /// How the lock stands now, by this program's clock.
    #[must_use]
    pub fn state(&self) -> LockState {
        let state = self.state.borrow().clone();
        match state {
            // The keeper may not have come to say so.
            LockState::Held { until } | LockState::Suspended { until } if Instant::now() >= until => {
                LockState::Lost { reason: LostReason::Expired }
            }
            state => state,
        }
    }

    /// How the lock stands, as it changes: Tokio's watch channel. `until` may pass without a word.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<LockState> {
        self.state.subscribe()
    }

    /// Waits until the lock is lost, and says why. Before anybody else can be given it, as long as this program runs.
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
                // The guard has a sender: there is always another state to wait for.
                _ = states.changed() => {}
            }
        }
    }

    /// Does something only for as long as the lock is held: when it is lost, `work` is dropped where it stands.
    ///
    /// # Errors
    /// [`Error::Lost`]: `work` was not done to its end. What it had begun elsewhere may go on: see
    /// [`fencing_token`](LockGuard::fencing_token).
    ///
    /// # Cancellation
    /// As of `work`; the lock is kept.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, Error> {
        let (mut work, mut lost) = (pin!(work), pin!(self.lost()));
        poll_fn(|context| {
            // The clock is looked at before each step of the work, so that a program that was paused does not take one.
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
    /// [`Error::Lost`]: it was lost before. [`Error::Unreachable`]: no replica could be told; it goes with its ttl.
    ///
    /// # Cancellation
    /// It is given back all the same.
    ///
    /// # Connection loss
    /// Another replica is told.
    pub async fn release(mut self) -> Result<(), Error> {
        let state = self.state();
        keep::show(&self.state, LockState::Released);
        let released = self.terms.client.release_lock(self.lock_id.as_str()).await;
        let is_gone = released.as_ref().is_err_and(|error| error.reason() == Some(&Reason::LockLost));
        // What could not be told is told once more by the drop.
        self.ends = released.is_err() && !is_gone;
        let path = self.path().to_owned();
        match state {
            LockState::Lost { reason } => Err(Error::Lost { path, reason }),
            _ if is_gone => Err(Error::Lost { path, reason: LostReason::SessionLost }),
            _ => released,
        }
    }

    /// Leaves the lock held for its ttl, without renewing it, and gives the id by which any program may give it back with
    /// [`Client::release_lock`](crate::Client::release_lock). The id is a secret: who has it can release the lock. A lock
    /// without a ttl is given back.
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
