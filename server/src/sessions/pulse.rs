//! Whether this process was stopped, the machine suspended, or too busy for it: what came meanwhile lies in its sockets, and
//! in which order it is read is chance.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock;
use crate::mutex::lock;

/// The longest pause between two beats that is no stop.
const STOP: Duration = Duration::from_millis(500);
/// For how long after a stop some of what came meanwhile may be unread.
const WAKING: Duration = Duration::from_secs(2);

/// Beats regularly while the process runs.
#[derive(Debug)]
pub(super) struct Pulse(Mutex<Beats>);

#[derive(Debug, Clone, Copy)]
struct Beats {
    last: Instant,
    /// When the last stop was noticed, and how long it was.
    woke: Option<(Instant, Duration)>,
}

impl Beats {
    fn beat(self, now: Instant) -> Self {
        let pause = now - self.last;
        if pause <= STOP {
            return Self { last: now, ..self };
        }
        // A short one right after a long one does not make that short.
        let before = self.woke.filter(|(woke, before)| now < *woke + *before).map(|(_, before)| before);
        Self { last: now, woke: Some((now, pause.max(before.unwrap_or_default()))) }
    }

    fn was_stopped(self, now: Instant) -> bool {
        self.beat(now).woke.is_some_and(|(woke, _)| now < woke + WAKING)
    }

    fn slept_through(self, timeout: Duration, now: Instant) -> bool {
        self.beat(now).woke.is_some_and(|(woke, pause)| now < woke + timeout && pause >= timeout / 2)
    }
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Beats { last: clock::now(), woke: None }))
    }

    /// One beat: much more often than twice a second.
    pub(super) fn beat(&self) {
        let mut beats = self.lock();
        *beats = beats.beat(clock::now());
    }

    /// Whether the process was stopped just now, though no beat may have told yet.
    pub(super) fn was_stopped(&self) -> bool {
        self.lock().was_stopped(clock::now())
    }

    /// Whether a ZooKeeper session with this time-out that is found to be over has ended because the process was stopped.
    pub(super) fn slept_through(&self, timeout: Duration) -> bool {
        self.lock().slept_through(timeout, clock::now())
    }

    fn lock(&self) -> MutexGuard<'_, Beats> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_known_at_once_and_for_a_while() {
        let start = Instant::now();
        let mut beats = Beats { last: start, woke: None };
        for count in 1..10 {
            assert!(!beats.was_stopped(start + STOP * count));
            beats = beats.beat(start + STOP * count);
        }
        let woke = beats.last + STOP * 2;
        assert!(beats.was_stopped(woke), "before the first beat");
        let mut now = woke;
        while now < woke + WAKING {
            beats = beats.beat(now);
            assert!(beats.was_stopped(now));
            now += STOP / 2;
        }
        assert!(!beats.beat(now).was_stopped(now));
    }

    #[test]
    fn a_session_ends_by_a_stop_that_is_long_enough_for_it() {
        let start = Instant::now();
        let timeout = STOP * 8;
        let slept = |pause| {
            let woke = start + pause;
            (Beats { last: start, woke: None }.beat(woke), woke)
        };
        let (short, woke) = slept(timeout / 2 - Duration::from_millis(1));
        assert!(!short.slept_through(timeout, woke));
        let (long, woke) = slept(timeout / 2);
        assert!(long.slept_through(timeout, woke));
        let again = woke + STOP * 2;
        assert!(long.beat(again).slept_through(timeout, again), "a hiccup does not make it short");
        let later = woke + timeout;
        assert!(!Beats { last: later, ..long }.slept_through(timeout, later));
    }
}
