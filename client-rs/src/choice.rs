//! Chooses the replica to talk to. The choice stays with one replica while that answers and moves to another at once
//! when it does not; the pause before the same replica is tried again grows. Pure: the time and the seed are given.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

/// Shortest and longest pause before a failed replica is tried again. Jitter shortens a pause to as little as half.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// Longest pause that a replica may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(30);

/// Longer than any program runs, and short enough to be added to any clock.
pub(crate) const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The choice among several replicas. It has one owner; the failures and successes of all callers come together here.
#[derive(Debug)]
pub(crate) struct Choice {
    replicas: Vec<Health>,
    current: usize,
    rng: StdRng,
}

#[derive(Debug, Clone, Copy, Default)]
struct Health {
    /// Rises with each failure, so that many streams that break at once count as one failure.
    era: u64,
    failures: u32,
    pause: Option<Pause>,
}

/// The pause after a failure.
#[derive(Debug, Clone, Copy)]
struct Pause {
    since: Instant,
    length: Duration,
    /// From a half to one: spreads clients that failed at the same moment.
    jitter: f64,
}

impl Health {
    /// The time from which the replica may be tried again, with its pause cut to `longest`.
    fn free_at(&self, longest: Duration) -> Option<Instant> {
        let Pause { since, length, jitter } = self.pause?;
        Some(since + length.min(longest.mul_f64(jitter)))
    }
}

/// A replica that was chosen, and its era at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) index: usize,
    era: u64,
}

/// The result of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Use(Chosen),
    /// Every replica has failed lately: choose again at this time.
    Wait(Instant),
}

impl Choice {
    pub(crate) fn new(count: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        // Clients that start together do not all begin with the first replica.
        let current = rng.random_range(0..count);
        Self { replicas: vec![Health::default(); count], current, rng }
    }

    /// Chooses a replica. `but` is chosen only while no other may be tried. A pause counts for no more than `longest`:
    /// a caller whose lock or registration runs out cannot wait longer.
    pub(crate) fn choose(&mut self, now: Instant, but: Option<usize>, longest: Duration) -> Verdict {
        let is_free = |health: &Health| health.free_at(longest).is_none_or(|at| at <= now);
        if Some(self.current) == but || !is_free(&self.replicas[self.current]) {
            let mut free: Vec<usize> =
                (0..self.replicas.len()).filter(|&index| is_free(&self.replicas[index])).collect();
            if free.len() > 1 {
                free.retain(|index| Some(*index) != but);
            }
            if free.is_empty() {
                let soonest = self.replicas.iter().filter_map(|health| health.free_at(longest)).min();
                return Verdict::Wait(soonest.unwrap_or(now));
            }
            // Not simply the next replica: the clients of a replica that died spread over all others.
            self.current = free[self.rng.random_range(0..free.len())];
        }
        Verdict::Use(Chosen { index: self.current, era: self.replicas[self.current].era })
    }

    /// The replica answers.
    pub(crate) fn succeeded(&mut self, chosen: Chosen) {
        let health = &mut self.replicas[chosen.index];
        if health.era == chosen.era {
            (health.failures, health.pause) = (0, None);
        }
    }

    /// The index of the replica that is used until it fails.
    pub(crate) fn current(&self) -> usize {
        self.current
    }

    /// The replica is known to serve where the present one does not: it is used next.
    pub(crate) fn prefer(&mut self, index: usize) {
        self.current = index;
        let health = &mut self.replicas[index];
        (health.failures, health.pause) = (0, None);
    }

    /// The replica does not answer, or can't serve now; `asked` is the pause that it has asked for. Returns whether
    /// that was news.
    pub(crate) fn failed(&mut self, chosen: Chosen, asked: Option<Duration>, now: Instant) -> bool {
        let health = &mut self.replicas[chosen.index];
        if health.era != chosen.era {
            return false;
        }
        let grown = PAUSES[0].saturating_mul(1 << health.failures.min(16)).min(PAUSES[1]);
        let jitter = self.rng.random_range(0.5..=1.0);
        let length = grown.mul_f64(jitter).max(asked.unwrap_or_default().min(LONGEST_ASKED));
        health.era += 1;
        health.failures = health.failures.saturating_add(1);
        health.pause = Some(Pause { since: now, length, jitter });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(choice: &mut Choice, now: Instant) -> Chosen {
        match choice.choose(now, None, FOREVER) {
            Verdict::Use(chosen) => chosen,
            Verdict::Wait(_) => panic!("all are avoided"),
        }
    }

    #[test]
    fn a_replica_that_answers_is_kept() {
        let mut choice = Choice::new(3, 1);
        let now = Instant::now();
        let first = chosen(&mut choice, now);
        choice.succeeded(first);
        assert!((0..100).all(|_| chosen(&mut choice, now) == first));
    }

    #[test]
    fn another_is_tried_at_once_and_the_same_after_a_growing_pause() {
        let mut choice = Choice::new(2, 1);
        let mut now = Instant::now();
        let (first, _) = (chosen(&mut choice, now), choice.choose(now, None, FOREVER));
        assert!(choice.failed(first, None, now));
        assert!(!choice.failed(first, None, now), "streams that break together count once");
        let second = chosen(&mut choice, now);
        assert_ne!(second.index, first.index);
        let mut longest = Duration::ZERO;
        choice.failed(second, None, now);
        for _ in 0..40 {
            let Verdict::Wait(until) = choice.choose(now, None, FOREVER) else { panic!("no pause") };
            longest = longest.max(until - now);
            assert!(until - now <= PAUSES[1]);
            now = until;
            let again = chosen(&mut choice, now);
            choice.failed(again, None, now);
        }
        assert!(longest > PAUSES[1] / 2, "{longest:?}");
        let Verdict::Wait(until) = choice.choose(now, None, FOREVER) else { panic!("no pause") };
        let again = chosen(&mut choice, until);
        choice.succeeded(again);
        let again = chosen(&mut choice, until);
        choice.failed(again, None, until);
        let Verdict::Wait(next) = choice.choose(until, None, FOREVER) else { panic!("no pause") };
        assert!(next - until <= PAUSES[1]);
    }

    #[test]
    fn a_pause_that_was_asked_for_is_kept_within_reason() {
        let mut choice = Choice::new(1, 1);
        let now = Instant::now();
        let first = chosen(&mut choice, now);
        choice.failed(first, Some(Duration::from_secs(7)), now);
        assert_eq!(choice.choose(now, None, FOREVER), Verdict::Wait(now + Duration::from_secs(7)));
        let again = chosen(&mut choice, now + Duration::from_secs(7));
        choice.failed(again, Some(Duration::from_secs(3600)), now);
        assert_eq!(choice.choose(now, None, FOREVER), Verdict::Wait(now + LONGEST_ASKED));
    }

    #[test]
    fn one_that_drains_is_left_for_any_other_and_kept_without_one() {
        let now = Instant::now();
        let mut two = Choice::new(2, 1);
        let first = chosen(&mut two, now);
        let Verdict::Use(other) = two.choose(now, Some(first.index), FOREVER) else { panic!("there is another") };
        assert_ne!(other.index, first.index);
        let mut one = Choice::new(1, 1);
        assert!(matches!(one.choose(now, Some(0), FOREVER), Verdict::Use(_)));
    }

    /// The index that is chosen once the pauses are over; moves the clock to that time.
    fn next(choice: &mut Choice, now: &mut Instant, but: Option<usize>, longest: Duration) -> Chosen {
        loop {
            match choice.choose(*now, but, longest) {
                Verdict::Use(chosen) => return chosen,
                Verdict::Wait(until) => *now = until,
            }
        }
    }

    #[test]
    fn one_that_drains_is_tried_again_while_the_others_fail() {
        for seed in 0..50 {
            let mut choice = Choice::new(3, seed);
            let start = Instant::now();
            let mut now = start;
            let drained = chosen(&mut choice, now);
            choice.failed(drained, Some(Duration::from_millis(500)), now);
            let mut tries = [0; 3];
            while now < start + Duration::from_secs(20) {
                let next = next(&mut choice, &mut now, Some(drained.index), FOREVER);
                tries[next.index] += 1;
                choice.failed(next, None, now);
            }
            assert!(tries.iter().all(|count| (4..15).contains(count)), "{tries:?}");
        }
    }

    #[test]
    fn who_cannot_wait_for_long_tries_each_in_time() {
        const LONGEST: Duration = Duration::from_secs(1);
        let mut choice = Choice::new(2, 1);
        let mut now = Instant::now();
        for _ in 0..20 {
            let next = next(&mut choice, &mut now, None, FOREVER);
            choice.failed(next, Some(Duration::from_secs(20)), now);
        }
        let mut last = [now; 2];
        for _ in 0..40 {
            let next = next(&mut choice, &mut now, Some(0), LONGEST);
            assert!(now - last[next.index] <= LONGEST);
            last[next.index] = now;
            choice.failed(next, Some(Duration::from_secs(20)), now);
        }
    }

    #[test]
    fn one_that_is_known_to_serve_is_used_next_though_it_has_failed() {
        let now = Instant::now();
        let mut choice = Choice::new(3, 1);
        let first = chosen(&mut choice, now);
        let other = (first.index + 1) % 3;
        choice.current = other;
        let failed = chosen(&mut choice, now);
        choice.failed(failed, Some(LONGEST_ASKED), now);
        choice.current = first.index;
        choice.prefer(other);
        assert_eq!(chosen(&mut choice, now).index, other);
        let Verdict::Use(kept) = choice.choose(now, Some(first.index), FOREVER) else { panic!("it is free") };
        assert_eq!(kept.index, other);
    }

    #[test]
    fn the_clients_of_one_that_died_spread() {
        let mut seen = [0; 4];
        for seed in 0..400 {
            let mut choice = Choice::new(4, seed);
            let now = Instant::now();
            choice.current = 0;
            let first = chosen(&mut choice, now);
            choice.failed(first, None, now);
            seen[chosen(&mut choice, now).index] += 1;
        }
        assert!(seen[0] == 0 && seen[1..].iter().all(|count| *count > 80), "{seen:?}");
    }
}
