//! The certainty that a lease exists, by the evidence of its session. Pure.
//!
//! A session certainly exists for its time-out after a write was sent that ZooKeeper has carried out. As long as such a
//! write is recent, the client has `held`. When it grows too old, the client gets `suspended`. Before ZooKeeper can have
//! given the lock to another client, the client gets `lost`.

use std::time::Duration;

use tokio::time::Instant;

/// A connection that is restored within this time raises no doubt. A larger value tells clients of a lost connection
/// later.
const BLINK: Duration = Duration::from_millis(300);

/// The evidence for a lease, at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signs {
    /// The time at which the last write was sent that ZooKeeper has carried out.
    pub(crate) evidence: Instant,
    /// Age at which that write is too old.
    pub(crate) overdue: Duration,
    /// Time until which the lease certainly exists by that write.
    pub(crate) certain_until: Instant,
    /// The time since which no watch is set on the lease; `None`: it is watched.
    pub(crate) unwatched: Option<Instant>,
}

/// The conclusion from [`Signs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Certainty {
    /// The lease exists; judge again at this time.
    Sure(Instant),
    /// The lease exists at least until this time.
    Doubt(Instant),
    /// Another client may have the lock.
    Over,
}

/// Judges the evidence for a lease.
pub(crate) fn judge(signs: Signs, now: Instant) -> Certainty {
    let Signs { evidence, overdue, certain_until, unwatched } = signs;
    let doubt_from = unwatched.map_or(evidence + overdue, |since| (since + BLINK).min(evidence + overdue));
    if now >= certain_until {
        Certainty::Over
    } else if now >= doubt_from {
        Certainty::Doubt(certain_until)
    } else {
        Certainty::Sure(doubt_from.min(certain_until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(now: Instant) -> Signs {
        let certain_until = now + Duration::from_secs(13);
        Signs { evidence: now, overdue: Duration::from_secs(5), certain_until, unwatched: None }
    }

    #[test]
    fn a_lease_is_sure_until_its_evidence_is_overdue_and_over_when_it_may_be_anothers() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(judge(signs(now), now), Certainty::Sure(at(5)));
        assert_eq!(judge(signs(now), at(5)), Certainty::Doubt(at(13)));
        assert_eq!(judge(signs(now), at(12)), Certainty::Doubt(at(13)));
        assert_eq!(judge(signs(now), at(13)), Certainty::Over);
    }

    #[test]
    fn a_lost_connection_raises_doubt_unless_it_is_back_at_once() {
        let now = Instant::now();
        let signs = Signs { unwatched: Some(now), ..signs(now) };
        assert_eq!(judge(signs, now), Certainty::Sure(now + BLINK));
        assert_eq!(judge(signs, now + BLINK), Certainty::Doubt(signs.certain_until));
    }

    #[test]
    fn evidence_that_is_never_sure_is_over_at_once() {
        let now = Instant::now();
        assert_eq!(judge(Signs { certain_until: now, ..signs(now) }, now), Certainty::Over);
    }
}
