//! When a client was last heard, as the task that reads what it sends knows it.
//!
//! Of a Register stream a message counts from the moment at which it was read, however long it then waits for a place in
//! the queue of the task that owns the registrations. So a ttl does not depend on how busy that task is with others. For as
//! long as something has come that this replica does not take, since no memory is left for it, its client counts as heard.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use crate::clock;

/// What is stored while a message waits for its place, or is not taken.
const WAITING: u64 = u64::MAX;

/// The last sign of life of one stream or connection. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    start: Instant,
    /// Milliseconds after `start`, or [`WAITING`].
    at: Arc<AtomicU64>,
}

/// A message that was read and waits for its place, or something that has come and is not taken: for as long its client
/// counts as heard.
#[derive(Debug)]
pub(crate) struct Arriving(Heard);

impl Heard {
    pub(crate) fn new(now: Instant) -> Self {
        Self { start: now, at: Arc::default() }
    }

    /// A message was read, or none is read from now on. One at a time.
    pub(crate) fn arriving(&self) -> Arriving {
        self.wait();
        Arriving(self.clone())
    }

    /// From now until the next [`Heard::note`] the client counts as heard: what it sends is not read meanwhile.
    pub(super) fn wait(&self) {
        self.at.store(WAITING, Ordering::Release);
    }

    /// When the client was last heard.
    pub(crate) fn last(&self, now: Instant) -> Instant {
        match self.at.load(Ordering::Acquire) {
            WAITING => now,
            at => self.start + std::time::Duration::from_millis(at),
        }
    }

    /// The client was heard at this moment.
    pub(crate) fn note(&self, now: Instant) {
        let at = now.saturating_duration_since(self.start).as_millis();
        self.at.store(u64::try_from(at).unwrap_or(WAITING - 1), Ordering::Release);
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.note(clock::now());
    }
}
