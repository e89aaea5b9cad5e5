//! Heartbeats: messages on streams where nothing happens, because proxies end quiet streams.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::times::SHORTEST;

/// The time at which a stream sends a message though nothing has happened.
pub(super) struct Heartbeat {
    asked: Duration,
    /// At most `asked`.
    interval: Duration,
    due: Instant,
    /// Set once an interval, not with each message.
    alarm: Pin<Box<Sleep>>,
}

impl Heartbeat {
    /// `None` for an interval of zero.
    pub(super) fn every(interval: Duration) -> Option<Self> {
        let alarm = || Box::pin(tokio::time::sleep(interval));
        (!interval.is_zero()).then(|| Self {
            asked: interval,
            interval,
            due: Instant::now() + interval,
            alarm: alarm(),
        })
    }

    /// From now on the interval is the asked one or `limit`, whichever is shorter.
    pub(super) fn at_most(&mut self, limit: Duration) {
        let interval = self.asked.min(limit.max(SHORTEST));
        if interval != self.interval {
            self.interval = interval;
            self.again_in(interval);
        }
    }

    /// The next heartbeat is due after `time`, unless the stream sends a message before.
    pub(super) fn again_in(&mut self, time: Duration) {
        self.due = Instant::now() + time;
        self.alarm.as_mut().reset(self.due);
    }

    /// Resolves when the heartbeat is due.
    async fn is_due(&mut self) {
        loop {
            self.alarm.as_mut().await;
            if self.due <= Instant::now() {
                return;
            }
            let due = self.due;
            self.alarm.as_mut().reset(due);
        }
    }
}

/// Waits for `next`; `None` if a heartbeat is due first.
///
/// # Cancellation
/// As cancel safe as `next`.
pub(super) async fn or_due<T>(heartbeat: &mut Option<Heartbeat>, next: impl Future<Output = T>) -> Option<T> {
    let Some(heartbeat) = heartbeat else { return Some(next.await) };
    let next = tokio::select! {
        biased;
        next = next => Some(next),
        () = heartbeat.is_due() => None,
    };
    heartbeat.due = Instant::now() + heartbeat.interval;
    next
}

/// Waits for `time`, in which the stream makes no message. Returns true as soon as a heartbeat is due.
pub(super) async fn is_due_within(heartbeat: &mut Option<Heartbeat>, time: Duration) -> bool {
    let Some(heartbeat) = heartbeat else {
        tokio::time::sleep(time).await;
        return false;
    };
    let is_due = tokio::time::timeout(time, heartbeat.is_due()).await.is_ok();
    if is_due {
        heartbeat.due = Instant::now() + heartbeat.interval;
    }
    is_due
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_is_due_an_interval_after_the_last_message() {
        const INTERVAL: Duration = Duration::from_secs(20);
        let mut heartbeat = Heartbeat::every(INTERVAL);
        let began = Instant::now();
        assert_eq!(or_due(&mut heartbeat, pending::<()>()).await, None);
        tokio::time::sleep(INTERVAL / 2).await;
        assert_eq!(or_due(&mut heartbeat, ready(1)).await, Some(1));
        assert_eq!(or_due(&mut heartbeat, pending::<()>()).await, None);
        assert_eq!(began.elapsed(), INTERVAL * 5 / 2);
        assert_eq!(or_due(&mut Heartbeat::every(Duration::ZERO), ready(2)).await, Some(2));
        heartbeat.as_mut().unwrap().at_most(INTERVAL / 4);
        assert_eq!(or_due(&mut heartbeat, pending::<()>()).await, None);
        assert_eq!(began.elapsed(), INTERVAL * 11 / 4);
        heartbeat.as_mut().unwrap().again_in(INTERVAL / 8);
        assert_eq!(or_due(&mut heartbeat, pending::<()>()).await, None);
        assert_eq!(began.elapsed(), INTERVAL * 23 / 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_interval_is_not_kept_for_ever_and_none_is_so_short_that_it_keeps_a_connection_busy() {
        const INTERVAL: Duration = Duration::from_secs(20);
        let mut heartbeat = Heartbeat::every(INTERVAL);
        for (limit, expected) in [
            (Duration::ZERO, SHORTEST),
            (INTERVAL / 4, INTERVAL / 4),
            (INTERVAL / 2, INTERVAL / 2),
            (INTERVAL * 2, INTERVAL),
        ] {
            heartbeat.as_mut().unwrap().at_most(limit);
            let began = Instant::now();
            assert_eq!(or_due(&mut heartbeat, pending::<()>()).await, None);
            assert_eq!(began.elapsed(), expected);
        }
        let mut often = Heartbeat::every(SHORTEST / 10);
        often.as_mut().unwrap().at_most(INTERVAL);
        assert_eq!(often.unwrap().interval, SHORTEST / 10, "it was asked for");
    }
}
