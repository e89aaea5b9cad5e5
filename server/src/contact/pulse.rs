//! Notices that this process was stopped, the machine suspended, or too busy for it. Bytes that arrived meanwhile are
//! then in its sockets, and the order in which they are read is chance.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::GRACE;
use crate::clock;
use crate::mutex::lock;

/// Longest pause between two beats that is no stop.
const STOP: Duration = Duration::from_millis(500);
/// Time after a stop in which some bytes that arrived meanwhile may be unread.
const WAKING: Duration = Duration::from_secs(2);

/// Maximum number of stops that are remembered one by one. Beyond it the oldest is added to the next, which makes a
/// client's time longer and never shorter.
const STOPS: usize = 64;

/// A pulse that beats regularly while the process runs.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    beats: Mutex<Beats>,
    /// When each of the last stops ended, and how long it was; the oldest first.
    stops: Mutex<VecDeque<(Instant, Duration)>>,
}

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
        // A short stop right after a long one does not make the long one short.
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

impl Default for Beats {
    fn default() -> Self {
        Self { last: clock::now(), woke: None }
    }
}

impl Pulse {
    /// One beat. Must be called much more often than twice a second.
    pub(crate) fn beat(&self) {
        let now = clock::now();
        let mut beats = lock(&self.beats);
        let pause = now - beats.last;
        *beats = beats.beat(now);
        drop(beats);
        if pause > STOP {
            note_stop(&mut lock(&self.stops), now, pause);
        }
    }

    /// Whether the process was stopped just now, even if no beat has noticed it yet.
    pub(crate) fn was_stopped(&self) -> bool {
        self.beats().was_stopped(clock::now())
    }

    /// Whether a ZooKeeper session with this time-out that is found to be over has ended because the process was
    /// stopped.
    pub(crate) fn slept_through(&self, timeout: Duration) -> bool {
        self.beats().slept_through(timeout, clock::now())
    }

    /// When a client that was last heard at `heard` has been silent for `time`, as far as this process can know. A stop
    /// of the process is no silence of the client, and after a stop the client has a moment to be heard again.
    pub(crate) fn silent_at(&self, heard: Instant, time: Duration) -> Instant {
        // A stop that no beat has noticed yet counts too.
        self.beat();
        let mut at = heard + time + GRACE;
        for (woke, pause) in lock(&self.stops).iter().filter(|(woke, _)| *woke > heard) {
            let stopped = (*woke - heard).min(*pause);
            at = (at + stopped).max(*woke + WAKING);
        }
        at
    }

    fn beats(&self) -> Beats {
        *lock(&self.beats)
    }
}

fn note_stop(stops: &mut VecDeque<(Instant, Duration)>, woke: Instant, pause: Duration) {
    stops.push_back((woke, pause));
    if stops.len() > STOPS
        && let Some((_, oldest)) = stops.pop_front()
        && let Some((_, pause)) = stops.front_mut()
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

    #[tokio::test(start_paused = true)]
    async fn a_stop_of_the_process_is_no_silence_of_the_client() {
        const TTL: Duration = Duration::from_secs(10);
        let pulse = Pulse::default();
        let heard = Instant::now();
        let beat_for = async |time: Duration| {
            let until = Instant::now() + time;
            while Instant::now() < until {
                tokio::time::advance(STOP / 5).await;
                pulse.beat();
            }
        };
        assert_eq!(pulse.silent_at(heard, TTL), heard + TTL + GRACE);
        beat_for(TTL / 2).await;
        tokio::time::advance(TTL * 6).await;
        let stopped = Instant::now() - pulse.beats().last;
        assert_eq!(pulse.silent_at(heard, TTL), heard + TTL + GRACE + stopped, "before the first beat too");
        beat_for(TTL / 2).await;
        assert_eq!(pulse.silent_at(heard, TTL), heard + TTL + GRACE + stopped);
        let late = Instant::now();
        assert_eq!(pulse.silent_at(late, TTL), late + TTL + GRACE, "a stop before counts no more");
        tokio::time::advance(TTL).await;
        let woke = Instant::now();
        assert_eq!(pulse.silent_at(late, TTL / 100), woke + WAKING, "after a stop there is time to be heard");
    }

    #[test]
    fn of_many_stops_none_is_forgotten() {
        let (start, mut stops) = (Instant::now(), VecDeque::new());
        for count in 1..=10 * u32::try_from(STOPS).unwrap() {
            note_stop(&mut stops, start + STOP * count, STOP / 2);
        }
        let all: Duration = stops.iter().map(|(_, pause)| *pause).sum();
        assert_eq!((stops.len(), all), (STOPS, STOP * 5 * u32::try_from(STOPS).unwrap()));
    }
}
