//! Messages of streams on which nothing happens: quiet streams die in proxies.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// When a message is due though nothing has happened.
pub(super) struct Heartbeat {
    interval: Duration,
    /// When the last message was made.
    last: Instant,
    /// It is set once an interval, and not with each message.
    alarm: Pin<Box<Sleep>>,
}

impl Heartbeat {
    /// `None` for zero.
    pub(super) fn every(interval: Duration) -> Option<Self> {
        let alarm = || Box::pin(tokio::time::sleep(interval));
        (!interval.is_zero()).then(|| Self { interval, last: Instant::now(), alarm: alarm() })
    }

    /// Resolves when the last message is that long ago.
    async fn is_due(&mut self) {
        loop {
            self.alarm.as_mut().await;
            let due = self.last + self.interval;
            if due <= Instant::now() {
                return;
            }
            self.alarm.as_mut().reset(due);
        }
    }
}

/// What comes next; `None` when a heartbeat is due before it.
///
/// # Cancellation
/// As safe as `next`.
pub(super) async fn or_due<T>(heartbeat: &mut Option<Heartbeat>, next: impl Future<Output = T>) -> Option<T> {
    let Some(heartbeat) = heartbeat else { return Some(next.await) };
    let next = tokio::select! {
        biased;
        next = next => Some(next),
        () = heartbeat.is_due() => None,
    };
    heartbeat.last = Instant::now();
    next
}

/// Waits for this time, in which no message is made; whether a heartbeat is due before it is over.
pub(super) async fn is_due_within(heartbeat: &mut Option<Heartbeat>, time: Duration) -> bool {
    let Some(heartbeat) = heartbeat else {
        tokio::time::sleep(time).await;
        return false;
    };
    let is_due = tokio::time::timeout(time, heartbeat.is_due()).await.is_ok();
    if is_due {
        heartbeat.last = Instant::now();
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
    }
}
