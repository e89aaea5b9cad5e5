//! When to look for another replica that has ZooKeeper, and the results of looking. Pure: the time is given.
//!
//! A replica that has lost ZooKeeper keeps its streams: it goes on answering from memory, and holds waiting requests.
//! So a stream stays where it is until another replica is known to have ZooKeeper. If none has it, moving gains
//! nothing, and puts at risk the state that the replica still holds for the stream.

use std::time::Duration;

use tokio::time::Instant;

/// First and longest pause before a stream whose replica has lost ZooKeeper looks for another replica. If the first
/// pause is shorter, streams move for a ZooKeeper server that is merely replaced; if the last is longer, a stream stays
/// without ZooKeeper for longer than it has to.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];

/// Decides when a stream looks for another replica.
#[derive(Debug, Default)]
pub(crate) struct Unease {
    /// When to look next. Set while the replica has no ZooKeeper.
    look_at: Option<Instant>,
    /// Number of times that the stream has looked, or moved, in this outage.
    looks: u32,
    /// Whether the stream stays where it is for the rest of this outage.
    stays: bool,
    /// Extra part of the first pause, up to one more of it, so that clients that lose ZooKeeper together do not move
    /// together.
    spread: f64,
}

impl Unease {
    /// `spread` is from 0 to 1, and the same for all streams of a client, which share their rounds of questions.
    pub(crate) fn new(spread: f64) -> Self {
        Self { spread, ..Self::default() }
    }

    /// Records whether the stream's replica is without ZooKeeper.
    pub(crate) fn set(&mut self, is_without: bool, now: Instant) {
        match is_without {
            true if self.stays => {}
            true => self.look_at = self.look_at.or_else(|| Some(now + self.pause())),
            false => *self = Self::new(self.spread),
        }
    }

    /// When to look; `None`: the replica has ZooKeeper.
    pub(crate) fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// The stream looks. The next look, at whichever replica it then is, comes after a longer pause, so that a stream
    /// does not hop for ever between replicas that promise more than they can do.
    pub(crate) fn looks(&mut self, now: Instant) {
        self.looks += 1;
        self.look_at = Some(now + self.pause());
    }

    /// The stream has moved. Whether the new replica has ZooKeeper is not known yet.
    pub(crate) fn moved(&mut self) {
        (self.look_at, self.stays) = (None, false);
    }

    /// The stream has gone back: the other replica could not take it.
    pub(crate) fn returned(&mut self) {
        (self.look_at, self.stays) = (None, true);
    }

    fn pause(&self) -> Duration {
        let spread = if self.looks == 0 { self.spread } else { 0.0 };
        pause(self.looks).mul_f64(1.0 + spread)
    }
}

fn pause(looks: u32) -> Duration {
    PAUSES[0].saturating_mul(1 << looks.min(16)).min(PAUSES[1])
}

/// The result of the last round of questions. All streams of a client share it, so that a client with a thousand
/// streams asks no more than a client with one.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Memory {
    last: Option<(Instant, bool)>,
    in_vain: u32,
}

impl Memory {
    /// The result of a round that was made a moment ago; `None`: it is time for another.
    pub(crate) fn get(&self, now: Instant) -> Option<bool> {
        let (at, found) = self.last?;
        // Kept for less time than a stream waits, or each stream would come just too early.
        let kept = if found { PAUSES[0] / 2 } else { pause(self.in_vain.saturating_sub(1)) / 2 };
        (now < at + kept).then_some(found)
    }

    /// Records the result of a round.
    pub(crate) fn put(&mut self, found: bool, now: Instant) {
        let is_old = self.last.is_none_or(|(at, _)| now > at + 4 * PAUSES[1]);
        self.in_vain = if found || is_old { u32::from(!found) } else { self.in_vain + 1 };
        self.last = Some((now, found));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_looks_after_a_moment_and_then_less_and_less_often_wherever_it_is() {
        let (mut unease, mut now) = (Unease::default(), Instant::now());
        assert_eq!(unease.look_at(), None);
        let mut pauses = Vec::new();
        for round in 0..8 {
            unease.set(true, now);
            unease.set(true, now + PAUSES[0] / 2);
            let at = unease.look_at().unwrap();
            pauses.push(at - now);
            now = at;
            unease.looks(now);
            if round % 2 == 0 {
                unease.moved();
            }
        }
        assert!(pauses.is_sorted() && pauses[0] == PAUSES[0] && pauses[7] == PAUSES[1], "{pauses:?}");
        unease.set(false, now);
        assert_eq!(unease.look_at(), None);
        unease.set(true, now);
        assert_eq!(unease.look_at(), Some(now + PAUSES[0]), "the next trouble begins anew");
        unease.returned();
        unease.set(true, now);
        assert_eq!(unease.look_at(), None, "it stays");
        unease.moved();
        unease.set(true, now);
        assert!(unease.look_at().is_some(), "it is elsewhere now");
    }

    #[test]
    fn clients_do_not_look_in_the_same_moment() {
        let now = Instant::now();
        let at = |spread| {
            let mut unease = Unease::new(spread);
            unease.set(false, now);
            unease.set(true, now);
            unease.look_at().unwrap() - now
        };
        assert_eq!([0.0, 0.25, 1.0].map(at), [PAUSES[0], PAUSES[0] * 5 / 4, PAUSES[0] * 2]);
    }

    #[test]
    fn a_round_serves_all_for_a_while_and_longer_when_it_was_in_vain() {
        let (mut memory, mut now) = (Memory::default(), Instant::now());
        assert_eq!(memory.get(now), None);
        let mut kept = Vec::new();
        for _ in 0..8 {
            memory.put(false, now);
            let begun = now;
            while memory.get(now) == Some(false) {
                now += PAUSES[0] / 10;
            }
            kept.push(now - begun);
        }
        assert!(kept.is_sorted() && kept[0] <= PAUSES[0] && kept[7] <= PAUSES[1], "{kept:?}");
        memory.put(true, now);
        assert_eq!(memory.get(now), Some(true));
        assert_eq!(memory.get(now + PAUSES[0]), None);
        memory.put(false, now + PAUSES[0]);
        assert_eq!(memory.get(now + 2 * PAUSES[0]), None, "the next trouble begins anew");
    }
}
