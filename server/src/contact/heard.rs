//! When a client was last heard, as the task that reads its messages knows it.
//!
//! A message of a Register stream counts from the moment at which it was read, however long it then waits for a place
//! in the queue of the task that owns the registrations. So a ttl does not depend on how busy that task is with other
//! streams. While bytes have arrived that this replica does not take, because no memory is left for them, their client
//! counts as heard.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use crate::clock;

/// Stored while a message waits for its place, or is not taken.
const WAITING: u64 = u64::MAX;

/// The last sign of life of one stream or connection. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    start: Instant,
    /// Milliseconds after `start`, or [`WAITING`].
    at: Arc<AtomicU64>,
}

/// A message that was read and waits for its place, or bytes that have arrived and are not taken. Until this is
/// dropped, the client counts as heard.
#[derive(Debug)]
pub(crate) struct Arriving(Heard);

impl Heard {
    pub(crate) fn new(now: Instant) -> Self {
        Self { start: now, at: Arc::default() }
    }

    /// Marks that a message was read, or that nothing is read from now on. Only one may exist at a time.
    pub(crate) fn arriving(&self) -> Arriving {
        self.wait();
        Arriving(self.clone())
    }

    /// From now until the next [`Heard::note`] the client counts as heard: its messages are not read meanwhile.
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

    /// Notes that the client was heard at this moment.
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
