//! The decisions that depend on whether this replica was itself stopped.
//!
//! A process that was stopped finds two things at once when it goes on: ttls and ZooKeeper sessions are over, and the
//! messages and ends of streams that came meanwhile are in its sockets. The order in which it reads them is chance. So
//! nothing is decided before the bytes that have arrived could be read:
//!
//! - a ttl ends [`EXPIRY_GRACE`] later than its clock says ([`Ticks`]);
//! - a registration is made again, or put back, only if its client is not about to be found gone ([`decided_at`]);
//! - a registration whose ZooKeeper session is over is made again after [`RESTORE_DELAY`], and not at all if this
//!   replica was stopped so long that its client has come back elsewhere ([`after_loss`]);
//! - a claim that would replace another node waits [`REPLACE_DELAY`] for the end of its own stream ([`replace_delay`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::times::{DOUBT_INTERVAL, EXPIRY_GRACE, REPLACE_DELAY, RESTORE_DELAY};
use crate::contact::StallDetector;

/// The times of the state's ticks. While any ttl is in doubt ticks come often, so that a longer pause means that this
/// replica was stopped. The pause counts for all streams at once: the time that a look at each of many streams takes
/// does not count.
#[derive(Debug)]
pub(super) struct Ticks {
    last: Instant,
    /// When the last pause ended that was longer than [`EXPIRY_GRACE`].
    unbroken_since: Instant,
    /// Until when a ttl is in doubt.
    wanted_until: Instant,
}

impl Ticks {
    pub(super) fn new(now: Instant) -> Self {
        Self { last: now, unbroken_since: now, wanted_until: now }
    }

    pub(super) fn note(&mut self, now: Instant) {
        if now > self.last + EXPIRY_GRACE {
            self.unbroken_since = now;
        }
        self.last = now;
    }

    /// When the next tick is due.
    pub(super) fn next(&self) -> Option<Instant> {
        (self.last < self.wanted_until).then(|| self.last + DOUBT_INTERVAL)
    }

    /// Until when a ttl is in doubt, if it has been in doubt since `since`.
    pub(super) fn doubt_ends(&mut self, since: Instant) -> Instant {
        let end = since.max(self.unbroken_since) + EXPIRY_GRACE;
        self.wanted_until = self.wanted_until.max(end);
        end
    }
}

/// When something may be made again for a client, if its ttl has gone by (`is_overdue`): its stream is about to end,
/// unless a message of its client is still to be read.
pub(super) fn decided_at(is_overdue: bool, now: Instant) -> Instant {
    if is_overdue { now + RESTORE_DELAY } else { now }
}

/// The reaction to the end of the ZooKeeper session that held a registration.
#[derive(Debug, PartialEq)]
pub(super) enum AfterLoss {
    /// Nothing before this time.
    Wait(Instant),
    /// It is made again.
    Restore,
    /// It is forgotten. A replica that was stopped for that long is as good as one that died. The client, which is no
    /// longer here, has come back elsewhere, and may have ended there, or will come back.
    LetGo,
}

/// Decides about a registration whose ZooKeeper session is over. `restore_at` is the time before which it is not made
/// again, once that is known; `is_here` tells whether its client is connected, `is_overdue` whether its ttl has gone by,
/// `expired_during_stall` whether the session ended because this replica was stalled.
pub(super) fn after_loss(
    restore_at: &mut Option<Instant>,
    is_here: bool,
    is_overdue: bool,
    expired_during_stall: bool,
    now: Instant,
) -> AfterLoss {
    let at = decided_at(is_overdue, now).max(*restore_at.get_or_insert(now + RESTORE_DELAY));
    if at > now {
        return AfterLoss::Wait(at);
    }
    *restore_at = None;
    if !is_here && expired_during_stall { AfterLoss::LetGo } else { AfterLoss::Restore }
}

/// Time that a claim waits before it replaces a node. `is_later`: the node is later than the incarnation that the client
/// knows of. Either the client is here and an answer to it was lost, or the end of its stream is about to be read.
pub(super) fn replace_delay(is_later: bool, stall_detector: &StallDetector) -> Option<Duration> {
    (is_later || stall_detector.was_stalled()).then_some(REPLACE_DELAY)
}

/// Tells whether ZooKeeper sessions ended because this replica was stalled.
#[derive(Debug)]
pub(super) struct SessionStalls {
    detector: Arc<StallDetector>,
    /// The time-out of the sessions, once there was one.
    session_timeout: Option<Duration>,
}

impl SessionStalls {
    pub(super) fn new(detector: Arc<StallDetector>) -> Self {
        Self { detector, session_timeout: None }
    }

    /// Notes that this process runs.
    pub(super) fn tick(&self) {
        self.detector.tick();
    }

    /// The sessions have changed. Returns whether those that are over ended because this replica was stalled. `timeout`
    /// is the time-out of the sessions that live, if there is one.
    pub(super) fn sessions_changed(&mut self, timeout: Option<Duration>) -> bool {
        let expired = self.session_timeout.is_some_and(|timeout| self.detector.stalled_past(timeout));
        self.session_timeout = timeout.or(self.session_timeout);
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_whose_session_is_over_waits_for_what_has_arrived_and_is_then_decided() {
        let now = Instant::now();
        for (is_here, expired_during_stall, expected) in [
            (true, false, AfterLoss::Restore),
            (true, true, AfterLoss::Restore),
            (false, false, AfterLoss::Restore),
            (false, true, AfterLoss::LetGo),
        ] {
            let mut restore_at = None;
            let later = now + RESTORE_DELAY;
            let waits = after_loss(&mut restore_at, is_here, false, expired_during_stall, now);
            assert_eq!(waits, AfterLoss::Wait(later));
            let waits = after_loss(&mut restore_at, is_here, true, expired_during_stall, later);
            assert_eq!(waits, AfterLoss::Wait(later + RESTORE_DELAY), "its ttl is in doubt");
            assert_eq!(after_loss(&mut restore_at, is_here, false, expired_during_stall, later), expected);
            assert_eq!(restore_at, None, "the next loss waits again");
        }
    }

    #[test]
    fn a_claim_waits_before_it_replaces_a_later_node() {
        let stall_detector = StallDetector::default();
        assert_eq!(replace_delay(true, &stall_detector), Some(REPLACE_DELAY));
        assert_eq!(replace_delay(false, &stall_detector), None);
    }
}
