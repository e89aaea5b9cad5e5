//! Decides when to read again which nodes exist in a session from which another replica has taken something over.
//!
//! The first reading comes soon after the first takeover. While takeovers follow each other, as when a fleet moves or
//! two programs fight over a path, the pause doubles: a session's nodes are not read again for each of them.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::times::{FIRST_CONFIRMATION_PAUSE, LONGEST_CONFIRMATION_PAUSE};
use crate::types::SessionId;

/// The confirmations of one session.
#[derive(Debug)]
struct SessionConfirmations {
    is_due: bool,
    /// Number of reads under way.
    under_way: usize,
    not_before: Instant,
    pause: Duration,
}

/// The sessions whose nodes are to be read, or were.
#[derive(Debug, Default)]
pub(super) struct Confirmations(HashMap<SessionId, SessionConfirmations>);

impl Confirmations {
    /// Something was taken over from a session.
    pub(super) fn soon(&mut self, session: SessionId, now: Instant) {
        self.session(session, now).is_due = true;
    }

    fn session(&mut self, session: SessionId, now: Instant) -> &mut SessionConfirmations {
        let new = || SessionConfirmations { is_due: false, under_way: 0, not_before: now, pause: Duration::ZERO };
        self.0.entry(session).or_insert_with(new)
    }

    /// Takes the sessions whose reading begins now.
    pub(super) fn next(&mut self, now: Instant) -> Vec<SessionId> {
        let is_next =
            |session: &SessionConfirmations| session.is_due && session.under_way == 0 && session.not_before <= now;
        let mut begun = Vec::new();
        for (id, session) in self.0.iter_mut().filter(|(_, session)| is_next(session)) {
            let is_quiet = session.pause.is_zero() || now >= session.not_before + session.pause;
            session.pause =
                if is_quiet { FIRST_CONFIRMATION_PAUSE } else { (session.pause * 2).min(LONGEST_CONFIRMATION_PAUSE) };
            (session.is_due, session.not_before) = (false, now + session.pause);
            begun.push(*id);
        }
        begun
    }

    /// `reads` reads have begun.
    pub(super) fn begun(&mut self, session: SessionId, reads: usize, now: Instant) {
        self.session(session, now).under_way += reads;
    }

    /// One read is over.
    pub(super) fn finished(&mut self, session: SessionId, is_success: bool) {
        if let Some(session) = self.0.get_mut(&session) {
            session.under_way = session.under_way.saturating_sub(1);
            session.is_due |= !is_success;
        }
    }

    /// These sessions live, and no others.
    pub(super) fn retain(&mut self, standing: &HashSet<SessionId>) {
        self.0.retain(|session, _| standing.contains(session));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: SessionId = SessionId(1);

    /// Number of readings that begin in this number of seconds, with a takeover every second.
    fn readings(confirmations: &mut Confirmations, begin: Instant, seconds: u32) -> usize {
        let moments = (0..seconds * 20).map(|count| (count, begin + Duration::from_millis(50) * count));
        let begun = moments.map(|(count, now)| {
            if count % 20 == 0 {
                confirmations.soon(SESSION, now);
            }
            let begun = confirmations.next(now).len();
            confirmations.begun(SESSION, begun, now);
            (0..begun).for_each(|_| confirmations.finished(SESSION, true));
            begun
        });
        begun.sum()
    }

    #[test]
    fn a_takeover_is_looked_at_at_once_and_many_are_looked_at_together() {
        let (mut confirmations, begin) = (Confirmations::default(), Instant::now());
        assert_eq!(readings(&mut confirmations, begin, 1), 1);
        let count = readings(&mut confirmations, begin + Duration::from_secs(1), 300);
        assert!((10..=16).contains(&count), "{count}");
        let later = begin + Duration::from_secs(400);
        assert_eq!(readings(&mut confirmations, later, 1), 1, "after a quiet it is as at first");
        assert_eq!(readings(&mut confirmations, later + Duration::from_secs(1), 3), 2);
    }

    #[test]
    fn what_could_not_be_read_is_read_again_and_one_reading_is_under_way_at_a_time() {
        let (mut confirmations, now) = (Confirmations::default(), Instant::now());
        confirmations.soon(SESSION, now);
        assert_eq!(confirmations.next(now), [SESSION]);
        confirmations.begun(SESSION, 2, now);
        confirmations.finished(SESSION, false);
        let later = now + LONGEST_CONFIRMATION_PAUSE;
        assert!(confirmations.next(later).is_empty(), "one read of it is still under way");
        confirmations.finished(SESSION, true);
        assert_eq!(confirmations.next(later), [SESSION]);
        confirmations.soon(SESSION, later);
        confirmations.retain(&HashSet::new());
        assert!(confirmations.next(later + LONGEST_CONFIRMATION_PAUSE).is_empty(), "it is no more");
    }
}
