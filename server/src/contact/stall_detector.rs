//! Detects stalls: this process was stopped, the machine suspended, or too busy for it. Bytes that arrived meanwhile
//! are then in its sockets, and the order in which they are read is chance.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::GRACE;
use crate::clock;

/// Longest pause between two ticks that is no stall.
const STALL: Duration = Duration::from_millis(500);
/// Time after a stall in which some bytes that arrived meanwhile may be unread.
const WAKING: Duration = Duration::from_secs(2);

/// Maximum number of stalls that are remembered one by one. Beyond it the oldest is added to the next, which makes a
/// client's time longer and never shorter.
const STALLS: usize = 64;

/// Ticked regularly while the process runs: a tick that comes late ends a stall.
#[derive(Debug, Default)]
pub(crate) struct StallDetector {
    ticks: Mutex<TickRecord>,
    /// When each of the last stalls ended, and how long it was; the oldest first.
    stalls: Mutex<VecDeque<(Instant, Duration)>>,
}

#[derive(Debug, Clone, Copy)]
struct TickRecord {
    last: Instant,
    /// When the last stall was noticed, and how long it was.
    woke: Option<(Instant, Duration)>,
}

impl TickRecord {
    fn tick(self, now: Instant) -> Self {
        let pause = now - self.last;
        if pause <= STALL {
            return Self { last: now, ..self };
        }
        // A short stall right after a long one does not make the long one short.
        let before = self.woke.filter(|(woke, before)| now < *woke + *before).map(|(_, before)| before);
        Self { last: now, woke: Some((now, pause.max(before.unwrap_or_default()))) }
    }

    fn was_stalled(self, now: Instant) -> bool {
        self.tick(now).woke.is_some_and(|(woke, _)| now < woke + WAKING)
    }

    fn stalled_past(self, timeout: Duration, now: Instant) -> bool {
        self.tick(now).woke.is_some_and(|(woke, pause)| now < woke + timeout && pause >= timeout / 2)
    }
}

impl Default for TickRecord {
    fn default() -> Self {
        Self { last: clock::now(), woke: None }
    }
}

impl StallDetector {
    /// One tick. Must be called much more often than twice a second.
    pub(crate) fn tick(&self) {
        let now = clock::now();
        let mut ticks = self.ticks.lock();
        let pause = now - ticks.last;
        *ticks = ticks.tick(now);
        drop(ticks);
        if pause > STALL {
            note_stall(&mut self.stalls.lock(), now, pause);
        }
    }

    /// Whether the process was stalled just now, even if no tick has noticed it yet.
    pub(crate) fn was_stalled(&self) -> bool {
        self.ticks().was_stalled(clock::now())
    }

    /// Whether a ZooKeeper session with this time-out that is found to be over has ended because the process was
    /// stalled.
    pub(crate) fn stalled_past(&self, timeout: Duration) -> bool {
        self.ticks().stalled_past(timeout, clock::now())
    }

    /// When a client that was last heard at `heard` has been silent for `time`, as far as this process can know. A
    /// stall of the process is no silence of the client, and after a stall the client has a moment to be heard again.
    pub(crate) fn silent_at(&self, heard: Instant, time: Duration) -> Instant {
        // A stall that no tick has noticed yet counts too.
        self.tick();
        let mut at = heard + time + GRACE;
        for (woke, pause) in self.stalls.lock().iter().filter(|(woke, _)| *woke > heard) {
            let stalled = (*woke - heard).min(*pause);
            at = (at + stalled).max(*woke + WAKING);
        }
        at
    }

    fn ticks(&self) -> TickRecord {
        *self.ticks.lock()
    }
}

fn note_stall(stalls: &mut VecDeque<(Instant, Duration)>, woke: Instant, pause: Duration) {
    stalls.push_back((woke, pause));
    if stalls.len() > STALLS
        && let Some((_, oldest)) = stalls.pop_front()
        && let Some((_, pause)) = stalls.front_mut()
    {
        *pause += oldest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_known_at_once_and_for_a_while() {
        let start = Instant::now();
        let mut ticks = TickRecord { last: start, woke: None };
        for count in 1..10 {
            assert!(!ticks.was_stalled(start + STALL * count));
            ticks = ticks.tick(start + STALL * count);
        }
        let woke = ticks.last + STALL * 2;
        assert!(ticks.was_stalled(woke), "before the first tick");
        let mut now = woke;
        while now < woke + WAKING {
            ticks = ticks.tick(now);
            assert!(ticks.was_stalled(now));
            now += STALL / 2;
        }
        assert!(!ticks.tick(now).was_stalled(now));
    }

    #[test]
    fn a_session_ends_by_a_stop_that_is_long_enough_for_it() {
        let start = Instant::now();
        let timeout = STALL * 8;
        let stalled = |pause| {
            let woke = start + pause;
            (TickRecord { last: start, woke: None }.tick(woke), woke)
        };
        let (short, woke) = stalled(timeout / 2 - Duration::from_millis(1));
        assert!(!short.stalled_past(timeout, woke));
        let (long, woke) = stalled(timeout / 2);
        assert!(long.stalled_past(timeout, woke));
        let again = woke + STALL * 2;
        assert!(long.tick(again).stalled_past(timeout, again), "a hiccup does not make it short");
        let later = woke + timeout;
        assert!(!TickRecord { last: later, ..long }.stalled_past(timeout, later));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_of_the_process_is_no_silence_of_the_client() {
        const TTL: Duration = Duration::from_secs(10);
        let stall_detector = StallDetector::default();
        let heard = Instant::now();
        let tick_for = async |time: Duration| {
            let until = Instant::now() + time;
            while Instant::now() < until {
                tokio::time::advance(STALL / 5).await;
                stall_detector.tick();
            }
        };
        assert_eq!(stall_detector.silent_at(heard, TTL), heard + TTL + GRACE);
        tick_for(TTL / 2).await;
        tokio::time::advance(TTL * 6).await;
        let stalled = Instant::now() - stall_detector.ticks().last;
        assert_eq!(stall_detector.silent_at(heard, TTL), heard + TTL + GRACE + stalled, "before the first tick too");
        tick_for(TTL / 2).await;
        assert_eq!(stall_detector.silent_at(heard, TTL), heard + TTL + GRACE + stalled);
        let late = Instant::now();
        assert_eq!(stall_detector.silent_at(late, TTL), late + TTL + GRACE, "a stall before counts no more");
        tokio::time::advance(TTL).await;
        let woke = Instant::now();
        assert_eq!(stall_detector.silent_at(late, TTL / 100), woke + WAKING, "after a stall there is time to be heard");
    }

    #[test]
    fn of_many_stops_none_is_forgotten() {
        let (start, mut stalls) = (Instant::now(), VecDeque::new());
        for count in 1..=10 * u32::try_from(STALLS).unwrap() {
            note_stall(&mut stalls, start + STALL * count, STALL / 2);
        }
        let all: Duration = stalls.iter().map(|(_, pause)| *pause).sum();
        assert_eq!((stalls.len(), all), (STALLS, STALL * 5 * u32::try_from(STALLS).unwrap()));
    }
}
