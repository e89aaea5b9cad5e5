//! Claims for which ZooKeeper could not be asked, or that found no room. They are tried again in rounds, each of a
//! bounded number. A round begins at once if something has changed or the last one had a success, and after a growing
//! pause otherwise, so that thousands of claims that wait in vain cost next to nothing. A round is over when half of
//! its claims are, or after a second: a few that hang hold up no others.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::times::{FIRST_RETRY_PAUSE, LONGEST_RETRY_PAUSE, LONGEST_ROUND};
use crate::spare;
use crate::types::NodePath;

/// Maximum number of claims that are tried again at once.
const CLAIMS_PER_ROUND: usize = 1024;

/// Claims that are tried at once.
#[derive(Debug)]
struct RetryRound {
    begun_at: Instant,
    size: usize,
    has_succeeded: bool,
}

/// The paths whose claims wait, in the order in which they came.
#[derive(Debug)]
pub(super) struct Retries {
    by_number: BTreeMap<u64, NodePath>,
    numbers: HashMap<NodePath, u64>,
    next_number: u64,
    /// Claims of all rounds that are under way.
    under_way: usize,
    /// The last round, until it is over.
    round: Option<RetryRound>,
    pause: Duration,
    /// The next round does not begin before this time.
    due: Instant,
}

impl Retries {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            by_number: BTreeMap::new(),
            numbers: HashMap::new(),
            next_number: 0,
            under_way: 0,
            round: None,
            pause: FIRST_RETRY_PAUSE,
            due: now,
        }
    }

    /// The path's claim waits.
    pub(super) fn add(&mut self, path: &NodePath, now: Instant) {
        if self.numbers.is_empty() && self.under_way == 0 {
            self.pause = FIRST_RETRY_PAUSE;
            self.due = self.due.max(now + self.pause);
        }
        if !self.numbers.contains_key(path) {
            self.by_number.insert(self.next_number, path.clone());
            self.numbers.insert(path.clone(), self.next_number);
            self.next_number += 1;
        }
    }

    /// The path's claim does not wait any more.
    pub(super) fn remove(&mut self, path: &NodePath) {
        if let Some(number) = self.numbers.remove(path) {
            self.by_number.remove(&number);
            spare::shrink(&mut self.numbers);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Whether nothing waits, and nothing is being tried again.
    pub(super) fn is_idle(&self) -> bool {
        self.is_empty() && self.under_way == 0
    }

    /// When the next round is due, as far as is known.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.is_empty() {
            return None;
        }
        match &self.round {
            Some(round) if self.is_open(round) => Some(self.due.max(round.begun_at + LONGEST_ROUND)),
            _ => Some(self.due),
        }
    }

    fn is_open(&self, round: &RetryRound) -> bool {
        self.under_way * 2 > round.size
    }

    /// Something has changed, so that failed claims may succeed.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.pause = FIRST_RETRY_PAUSE;
        self.due = now;
        // The next round is due even if the one under way fails: that began before the change.
        if let Some(round) = &mut self.round {
            round.has_succeeded = true;
        }
    }

    /// Takes the paths of the next round, if it is due. [`Retries::begun`] follows for each that is tried.
    pub(super) fn round(&mut self, now: Instant) -> Vec<NodePath> {
        if self.due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        self.round = Some(RetryRound { begun_at: now, size: 0, has_succeeded: false });
        let paths: Vec<_> = self.by_number.values().take(CLAIMS_PER_ROUND).cloned().collect();
        paths.iter().for_each(|path| self.remove(path));
        paths
    }

    /// A claim of the round is under way.
    pub(super) fn begun(&mut self) {
        self.under_way += 1;
        if let Some(round) = &mut self.round {
            round.size += 1;
        }
    }

    /// A claim of a round is over. `jitter` is the factor by which the pause is shortened.
    pub(super) fn finished(&mut self, is_success: bool, now: Instant, jitter: f64) {
        self.under_way = self.under_way.saturating_sub(1);
        let Some(mut round) = self.round.take() else {
            if is_success {
                self.pause = FIRST_RETRY_PAUSE;
                self.due = self.due.min(now);
            }
            return;
        };
        round.has_succeeded |= is_success;
        if self.is_open(&round) {
            self.round = Some(round);
        } else if round.has_succeeded {
            self.pause = FIRST_RETRY_PAUSE;
            self.due = now;
        } else {
            self.due = now + self.pause.mul_f64(jitter);
            self.pause = (self.pause * 2).min(LONGEST_RETRY_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(index: usize) -> NodePath {
        NodePath::trusted(format!("/{index}"))
    }

    /// One round, all of whose claims have the same result; returns their number.
    fn round(retries: &mut Retries, now: Instant, is_success: bool) -> usize {
        let paths = retries.round(now);
        paths.iter().for_each(|_| retries.begun());
        assert!(retries.round(now).is_empty(), "one round at a time");
        for path in &paths {
            if !is_success {
                retries.add(path, now);
            }
            retries.finished(is_success, now, 1.0);
        }
        paths.len()
    }

    #[test]
    fn thousands_that_wait_in_vain_are_tried_ever_less_often() {
        let mut now = Instant::now();
        let mut retries = Retries::new(now);
        (0..10_000).for_each(|index| retries.add(&path(index), now));
        assert!(retries.round(now).is_empty(), "it has only just failed");
        let (mut tried, end) = (0, now + Duration::from_secs(60));
        while let Some(due) = retries.due().filter(|due| *due < end) {
            now = due;
            tried += round(&mut retries, now, false);
        }
        assert!(tried < 20 * CLAIMS_PER_ROUND, "{tried}");
        assert!(tried > 10_000, "each was tried");
    }

    #[test]
    fn once_something_has_changed_they_go_round_by_round_without_a_pause() {
        let now = Instant::now();
        let mut retries = Retries::new(now);
        (0..10_000).for_each(|index| retries.add(&path(index), now));
        let later = now + Duration::from_secs(1);
        assert_eq!(round(&mut retries, later, false), CLAIMS_PER_ROUND);
        assert!(retries.round(later).is_empty());
        retries.hurry(later);
        let mut tried = 0;
        while !retries.is_empty() {
            let count = round(&mut retries, later, true);
            assert!(count <= CLAIMS_PER_ROUND && count > 0);
            tried += count;
        }
        assert_eq!(tried, 10_000);
    }

    #[test]
    fn a_change_while_a_round_is_under_way_is_not_forgotten() {
        let now = Instant::now();
        let mut retries = Retries::new(now);
        retries.add(&path(1), now);
        let later = now + FIRST_RETRY_PAUSE;
        assert_eq!(retries.round(later).len(), 1);
        retries.begun();
        retries.hurry(later);
        retries.add(&path(1), later);
        retries.finished(false, later, 1.0);
        assert_eq!(retries.round(later).len(), 1);
    }

    #[test]
    fn claims_that_hang_hold_up_the_others_for_a_second_at_most() {
        let now = Instant::now();
        let mut retries = Retries::new(now);
        (0..4 * CLAIMS_PER_ROUND).for_each(|index| retries.add(&path(index), now));
        let later = now + FIRST_RETRY_PAUSE;
        let begin = |retries: &mut Retries, now| {
            let paths = retries.round(now);
            paths.iter().for_each(|_| retries.begun());
            paths.len()
        };
        assert_eq!(begin(&mut retries, later), CLAIMS_PER_ROUND);
        (0..CLAIMS_PER_ROUND / 2).for_each(|_| retries.finished(true, later, 1.0));
        assert_eq!(begin(&mut retries, later), CLAIMS_PER_ROUND, "half of the first hang");
        assert_eq!(begin(&mut retries, later), 0);
        assert_eq!(begin(&mut retries, later + LONGEST_ROUND), CLAIMS_PER_ROUND, "all of the second hang");
        assert!(!retries.is_idle());
    }

    #[test]
    fn what_no_longer_waits_is_kept_nowhere() {
        let now = Instant::now();
        let mut retries = Retries::new(now);
        for _ in 0..1000 {
            retries.add(&path(1), now);
            retries.remove(&path(1));
        }
        assert!(retries.by_number.is_empty() && retries.numbers.is_empty() && retries.due().is_none());
    }
}
