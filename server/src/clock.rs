//! The wall clock, as it is written into nodes, and a clock that goes on while the machine is suspended.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

static SUSPENDED: Suspended = Suspended::new();

/// The current time, UTC, as nd_service_registry writes the time of a call.
pub(crate) fn created_now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// The current time, ahead of [`Instant::now`] by the time for which the machine was suspended since the first call. On
/// Linux the clock of [`Instant`] stops during a suspension, while ZooKeeper's sessions and the ttls of clients go on.
pub(crate) fn now() -> Instant {
    let now = Instant::now() + SUSPENDED.so_far();
    #[cfg(test)]
    let now = now + IN_TEST.get();
    now
}

#[cfg(test)]
thread_local! {
    static IN_TEST: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::ZERO) };
}

/// Advances the clock of this thread as a suspension does, until this is dropped.
#[cfg(test)]
pub(crate) struct InTest(Duration);

#[cfg(test)]
impl InTest {
    #[must_use]
    pub(crate) fn suspend(time: Duration) -> Self {
        IN_TEST.set(IN_TEST.get() + time);
        Self(time)
    }
}

#[cfg(test)]
impl Drop for InTest {
    fn drop(&mut self) {
        IN_TEST.set(IN_TEST.get() - self.0);
    }
}

/// Waits until [`now`] is `at`. The runtime's timers do not count a suspension, so this looks at the clock every
/// second.
pub(crate) async fn sleep_until(at: Instant) {
    const CHECK_INTERVAL: Duration = Duration::from_secs(1);
    loop {
        let left = at.saturating_duration_since(now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(CHECK_INTERVAL)).await;
    }
}

/// Measures for how long the machine was suspended: the time by which one clock is ahead of another that does not count
/// suspensions.
#[derive(Debug)]
struct Suspended {
    /// The lead at the first call.
    base: OnceLock<Duration>,
    /// The longest time that was measured, in nanoseconds.
    longest: AtomicU64,
}

impl Suspended {
    const fn new() -> Self {
        Self { base: OnceLock::new(), longest: AtomicU64::new(0) }
    }

    #[cfg(target_os = "linux")]
    fn so_far(&self) -> Duration {
        use rustix::time::{ClockId, clock_gettime};
        // In this order, a pause between the two makes the lead smaller, and never looks like a suspension.
        let counting = clock_gettime(ClockId::Boottime);
        let standing = clock_gettime(ClockId::Monotonic);
        let since_boot = |time| Duration::try_from(time).unwrap_or_default();
        self.note(since_boot(counting), since_boot(standing))
    }

    #[cfg(not(target_os = "linux"))]
    fn so_far(&self) -> Duration {
        Duration::ZERO
    }

    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "there are no two clocks"))]
    fn note(&self, counting: Duration, standing: Duration) -> Duration {
        let ahead = counting.saturating_sub(standing);
        let suspended = ahead.saturating_sub(*self.base.get_or_init(|| ahead));
        let nanoseconds = u64::try_from(suspended.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.longest.fetch_max(nanoseconds, Ordering::AcqRel).max(nanoseconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspension_counts_and_a_pause_between_two_looks_does_not() {
        let second = Duration::from_secs;
        let suspended = Suspended::new();
        assert_eq!(suspended.note(second(100), second(70)), second(0), "before this process began");
        assert_eq!(suspended.note(second(110), second(80)), second(0));
        assert_eq!(suspended.note(second(200), second(90)), second(80));
        assert_eq!(suspended.note(second(200), second(95)), second(80), "a pause between the two looks");
        assert_eq!(suspended.note(second(300), second(110)), second(160));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_moment_is_not_late_by_a_suspension() {
        const HOUR: Duration = Duration::from_secs(3600);
        let (begun, at) = (Instant::now(), now() + HOUR);
        let waiting = tokio::spawn(sleep_until(at));
        tokio::task::yield_now().await;
        let _suspended = InTest::suspend(HOUR);
        waiting.await.unwrap();
        assert!(begun.elapsed() <= Duration::from_secs(1));
    }

    #[test]
    fn without_a_suspension_it_is_the_same_clock() {
        let before = Instant::now();
        let now = now();
        assert!(now >= before && now - before < Duration::from_secs(60));
    }
}
