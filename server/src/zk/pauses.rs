//! Pauses between attempts that fail.

use std::time::Duration;

/// Pauses that double each time, up to the longest.
#[derive(Debug)]
pub(crate) struct Pauses {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Pauses {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The pause before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        let next = self.next;
        self.next = (next * 2).min(self.longest);
        next
    }

    /// An attempt has made progress: the next pause is the first again.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_begin_anew_after_progress() {
        let (first, longest) = (Duration::from_millis(5), Duration::from_millis(30));
        let mut pauses = Pauses::new(first, longest);
        let taken: Vec<_> = (0..5).map(|_| pauses.next()).collect();
        assert_eq!(taken, [first, first * 2, first * 4, longest, longest]);
        pauses.reset();
        assert_eq!(pauses.next(), first);
    }
}
