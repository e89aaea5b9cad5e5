//! Whether a client lives: when its connection was last heard, and when a silent connection has to be asked for a sign
//! of life.
//!
//! A ttl counts from the last sign of life of the client's connection. HTTP/2's own keep-alive asks for one every
//! `--keepalive`, which is too seldom for a short ttl. So the holder of a ttl says how often its connection must be
//! asked, and the connection sends pings of its own (`grpc/pings.rs`).
//!
//! Nothing that other clients send delays the end of a ttl: it counts from the last message that was read, or for a
//! lock, whose stream has no messages from the client, from the last bytes of its connection. A suspension of the
//! machine counts as time that has passed (`clock`). A replica that was itself stopped gives the bytes in its sockets
//! half a second to be read; for a lock it subtracts the time for which it was stopped (`stall_detector`).

mod heard;
mod stall_detector;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::Instant;

pub(crate) use heard::{Arriving, Heard};
pub(crate) use stall_detector::StallDetector;

use crate::clock;

/// Time after a client's deadline in which bytes that have arrived, or are about to, may still be read. With a longer
/// one, a ttl ends later; with a shorter one, a busy replica takes a living client for a silent one.
pub(crate) const GRACE: Duration = Duration::from_millis(500);

/// The signs of life of one connection, for everything that depends on its client. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Contact(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    heard: Heard,
    keepalive: Duration,
    /// The silences after which the connection is to be asked, and the number of requests for each. It has as many
    /// entries as ttls are in use.
    wanted: Mutex<BTreeMap<Duration, usize>>,
    /// The connection's task, which is woken when `wanted` changes.
    connection: AtomicWaker,
}

/// Has a connection asked for a sign of life when it is silent, until this is dropped.
#[derive(Debug)]
pub(crate) struct Asking {
    contact: Contact,
    interval: Duration,
}

impl Contact {
    /// A connection that has just been made. `keepalive` is the silence after which HTTP/2 asks for a sign of life, and
    /// the time for which it waits for one before it ends the connection.
    pub(crate) fn new(keepalive: Duration) -> Self {
        let heard = Heard::new(clock::now());
        Self(Arc::new(Shared { heard, keepalive, wanted: Mutex::default(), connection: AtomicWaker::new() }))
    }

    /// When bytes last arrived.
    pub(crate) fn last_heard(&self, now: Instant) -> Instant {
        self.0.heard.last(now)
    }

    /// Notes that bytes have arrived.
    pub(crate) fn note(&self, now: Instant) {
        self.0.heard.note(now);
    }

    /// Nothing is read until the next [`Contact::note`]; the client counts as heard meanwhile.
    pub(crate) fn wait(&self) {
        self.0.heard.wait();
    }

    /// See [`Contact::new`].
    pub(crate) fn keepalive(&self) -> Duration {
        self.0.keepalive
    }

    /// The silence after which a connection is asked if its end would be that of a lock.
    pub(crate) fn ask_after(&self) -> Duration {
        self.0.keepalive / 3
    }

    /// Whether the client, which is asked after a silence of `interval`, was heard since, or may be about to be.
    pub(crate) fn is_heard(&self, interval: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.last_heard(now)) <= interval.saturating_add(grace(interval))
    }

    /// How long the client may hear nothing before its connection may have been given up, after a message that was sent
    /// while it [was heard](Contact::is_heard) within [`Contact::ask_after`]. HTTP/2 may have asked for a sign of life
    /// just before the last bytes arrived, not all of which it counts as one. It gives the connection up a keep-alive's
    /// time after it has asked.
    pub(crate) fn horizon(&self) -> Duration {
        let interval = self.ask_after();
        // Allows for the latest moment at which the client may have been heard, and for the message's
        // way.
        self.0.keepalive.saturating_sub(interval + 2 * grace(interval))
    }

    /// Has the connection asked for a sign of life whenever it has been silent for `interval`.
    pub(crate) fn ask_every(&self, interval: Duration) -> Asking {
        *self.0.wanted.lock().entry(interval).or_default() += 1;
        self.0.connection.wake();
        Asking { contact: self.clone(), interval }
    }

    /// The silence after which the connection is to be asked. Wakes `waker` when it changes.
    pub(crate) fn asked_every(&self, waker: &Waker) -> Option<Duration> {
        self.0.connection.register(waker);
        self.0.wanted.lock().keys().next().copied()
    }
}

/// [`GRACE`]; less if that is much of the interval.
pub(crate) fn grace(interval: Duration) -> Duration {
    GRACE.min(interval / 2)
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut wanted = self.contact.0.wanted.lock();
        if let Some(count) = wanted.get_mut(&self.interval) {
            *count -= 1;
            if *count == 0 {
                wanted.remove(&self.interval);
            }
        }
    }
}

impl Asking {
    /// The silence after which the connection is asked.
    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_interval_that_anybody_wants_counts() {
        let contact = Contact::new(Duration::from_secs(10));
        let every = || contact.asked_every(Waker::noop());
        let [short, long] = [1, 5].map(Duration::from_secs);
        assert_eq!(every(), None);
        let (first, second, third) = (contact.ask_every(long), contact.ask_every(short), contact.ask_every(short));
        drop(second);
        assert_eq!(every(), Some(short));
        drop(third);
        assert_eq!(every(), Some(long));
        drop(first);
        assert_eq!(every(), None);
    }

    #[test]
    fn what_was_told_to_a_client_ends_before_its_connection_does() {
        for keepalive in [1, 2, 3, 20, 600].map(Duration::from_secs) {
            let contact = Contact::new(keepalive);
            let heard = Instant::now();
            contact.note(heard);
            let heard = contact.last_heard(heard);
            let mut now = heard;
            while contact.is_heard(contact.ask_after(), now) {
                now += Duration::from_millis(1);
            }
            let way = contact.ask_after().min(Duration::from_secs(1)) / 2;
            assert!(now + contact.horizon() + way <= heard + keepalive + Duration::from_millis(1), "{keepalive:?}");
            assert!(contact.horizon() >= keepalive / 7, "{keepalive:?}");
        }
    }

    #[test]
    fn a_connection_that_is_not_read_counts_as_heard() {
        let contact = Contact::new(Duration::from_secs(10));
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        contact.note(now);
        assert!(contact.last_heard(later) <= now + Duration::from_millis(1));
        contact.wait();
        assert_eq!(contact.last_heard(later), later);
        contact.note(now);
        assert!(contact.last_heard(later) <= now + Duration::from_millis(1));
    }
}
