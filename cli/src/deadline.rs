//! The time at which COMMAND must end so that it does not outlive its lock. Pure.

use std::time::{Duration, Instant};

/// Times before the end of the lock at which COMMAND is asked to end, and killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Notice {
    /// Time between SIGTERM and SIGKILL.
    pub(crate) grace: Duration,
    /// Time between SIGKILL and the end of the lock. The kernel needs it to kill, and this process to be scheduled.
    pub(crate) margin: Duration,
}

impl Notice {
    /// # Errors
    /// When the notice would take so much of the ttl that a renewal could not come in time.
    pub(crate) fn new(ttl: Duration, grace: Option<Duration>) -> Result<Self, String> {
        let margin = (ttl / 10).min(Duration::from_millis(500));
        let grace = grace.unwrap_or_else(|| (ttl / 6).min(Duration::from_secs(5)));
        if grace > ttl / 3 {
            return Err(format!("--grace {grace:?} is more than a third of the ttl of {ttl:?}: give a longer --ttl"));
        }
        Ok(Self { grace, margin })
    }

    /// When to send SIGTERM.
    pub(crate) fn term_at(self, until: Instant) -> Instant {
        before(until, self.margin + self.grace)
    }

    /// When to send SIGKILL.
    pub(crate) fn kill_at(self, until: Instant) -> Instant {
        before(until, self.margin)
    }
}

fn before(until: Instant, time: Duration) -> Instant {
    until.checked_sub(time).unwrap_or(until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_over_before_the_lock_is() {
        let until = Instant::now() + Duration::from_secs(3600);
        for (ttl, grace) in [(1, None), (6, None), (30, None), (600, None), (30, Some(Duration::from_secs(10)))] {
            let ttl = Duration::from_secs(ttl);
            let notice = Notice::new(ttl, grace).unwrap();
            assert!(notice.term_at(until) < notice.kill_at(until) && notice.kill_at(until) < until);
            // A renewal is sent after a third of the ttl, so there is time left for its answer.
            assert!(notice.grace + notice.margin < ttl * 2 / 3, "{notice:?}");
        }
        assert!(Notice::new(Duration::from_secs(30), Some(Duration::from_secs(11))).is_err());
    }
}
