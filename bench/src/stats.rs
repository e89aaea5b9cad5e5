//! Medians, extremes, percentiles. Pure.

use std::time::Duration;

/// The spread of the values of several rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    /// The middle value, or the mean of the two middle values.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The most.
    pub(crate) max: f64,
}

impl Spread {
    /// The spread of at least one value; `None` without values.
    pub(crate) fn of(values: &[f64]) -> Option<Spread> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        Some(Spread { median, min, max })
    }
}

/// The durations of many operations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies {
    times: Vec<Duration>,
}

impl Latencies {
    /// Adds the duration of one more operation.
    pub(crate) fn push(&mut self, time: Duration) {
        self.times.push(time);
    }

    /// The time that `percent` of a hundred operations did not exceed, by nearest rank: always a measured value, never
    /// one in between. `None` where nothing was measured.
    pub(crate) fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.times.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent.min(100)).div_ceil(100).max(1);
        sorted.get(rank - 1).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies(millis: impl IntoIterator<Item = u64>) -> Latencies {
        Latencies { times: millis.into_iter().map(Duration::from_millis).collect() }
    }

    #[test]
    fn the_median_does_not_follow_an_outlier() {
        let spread = Spread::of(&[3.0, 1.0, 1000.0]).unwrap();
        assert_eq!(spread, Spread { median: 3.0, min: 1.0, max: 1000.0 });
    }

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
    }

    #[test]
    fn nothing_has_no_statistics() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Latencies::default().percentile(50), None);
    }

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let hundred = latencies((1..=100).rev());
        let at = |percent| hundred.percentile(percent).unwrap().as_millis();
        assert_eq!((at(0), at(1), at(50), at(99), at(100)), (1, 1, 50, 99, 100));
    }

    #[test]
    fn of_few_times_the_99th_percentile_is_the_longest() {
        assert_eq!(latencies([7, 5, 6]).percentile(99), Some(Duration::from_millis(7)));
        assert_eq!(latencies([7]).percentile(50), Some(Duration::from_millis(7)));
    }
}
