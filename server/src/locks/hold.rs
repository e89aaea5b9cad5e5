//! From the lease to the end: what has to be true before a lock is told as held, and as long as it is.

use std::time::Duration;

use tokio::time::Instant;

use super::attempt::Attempt;
use super::queue::{may_take, must_give_up};
use super::slot::{Slot, Vouched};
use super::terms::Grant;
use super::{Interrupt, READ_CHUNK, Stop, release, seat};
use crate::clock;
use crate::contact::{self, Asking, Contact};
use crate::types::{NodePath, Zxid};
use crate::zk::{self, EventKind, Fired, Link, OneShot, Session};

/// A connection that is back sooner raises no doubt.
const BLINK: Duration = Duration::from_millis(300);

/// What speaks for a lease, at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signs {
    /// When the last write was sent that ZooKeeper has carried out.
    pub(super) evidence: Instant,
    /// How old it may grow.
    pub(super) overdue: Duration,
    /// Until when it makes sure that the session stands.
    pub(super) certain_until: Instant,
    /// Since when nobody watches whether the lease stands.
    pub(super) unwatched: Option<Instant>,
}

/// What follows from [`Signs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Certainty {
    /// The lease stands; ask again then.
    Sure(Instant),
    /// It stands at least until then.
    Doubt(Instant),
    /// It may have been given to another.
    Over,
}

pub(super) fn judge(signs: Signs, now: Instant) -> Certainty {
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

/// What a look at a lease shows.
#[derive(Debug)]
pub(super) struct Sight {
    /// Fires when the lease goes; `None`: it does not stand.
    watch: Option<OneShot>,
    /// Number of leases of the lock.
    leases: usize,
    /// The transaction that last wrote the lock node.
    lock: Option<Zxid>,
}

/// Looks at a lease. Its requests are sent when it is first polled.
pub(super) async fn look(session: &Session, path: &NodePath, lease: &NodePath) -> Result<Sight, zk::Error> {
    let (watched, lock) = futures_util::future::join(session.watch_exists(lease), session.exists(path)).await;
    let (stat, watch) = watched?;
    let lock = lock?;
    let leases = lock.map_or(0, |lock| usize::try_from(lock.num_children).unwrap_or_default());
    Ok(Sight { watch: stat.map(|_| watch), leases, lock: lock.map(|lock| Zxid(lock.mzxid)) })
}

/// Before a lock is told as held: the lease stands and is watched, there are not too many, and the session is alive.
/// `seen`: the first look, if there was one.
pub(super) async fn confirm(attempt: &mut Attempt, grant: Grant, mut seen: Option<Sight>) -> Result<OneShot, Stop> {
    loop {
        match try_confirm(attempt, grant, seen.take()).await {
            Ok(watch) => return Ok(watch),
            Err(Interrupt::Stop(stop)) => return Err(stop),
            Err(Interrupt::Zk(error)) => attempt.recover(error).await?,
        }
    }
}

async fn try_confirm(attempt: &Attempt, grant: Grant, seen: Option<Sight>) -> Result<OneShot, Interrupt> {
    let session = attempt.session();
    let (terms, _) = attempt.parts();
    let Sight { watch, leases, lock } = match seen {
        Some(sight) => sight,
        None => look(&session, &terms.path, &attempt.seat.lease_path()).await?,
    };
    // Hardly anybody but one who was told the id while it waited can have found it before its holder was told.
    let watch = watch.ok_or(Stop::Released)?;
    // The number was checked before, and may be another by now.
    if lock.is_none() || lock != attempt.checked {
        attempt.shared.numbers.take(&terms.path);
        return Err(Stop::Again.into());
    }
    // Below the limit there was room for one; more than that can only be a kazoo of 2.1 or older, which takes a lease
    // without being the first of the queue.
    if leases > 1 && !may_take(terms.limit, leases - 1) {
        let granted = grants(&session, &terms.path).await?;
        if must_give_up(terms.limit, &granted, grant.token.0) {
            tracing::warn!(path = %terms.path, "more leases than the lock allows: giving up the latest");
            return Err(Stop::Again.into());
        }
    }
    attempt.certain().await?;
    Ok(watch)
}

/// When the leases were granted.
async fn grants(session: &Session, path: &NodePath) -> Result<Vec<i64>, zk::Error> {
    let names = session.children(path).await?.map(|(names, _)| names).unwrap_or_default();
    let mut grants = Vec::with_capacity(names.len());
    for chunk in names.chunks(READ_CHUNK) {
        let paths: Vec<_> = chunk.iter().map(|name| path.join(name)).collect();
        let reads = session.get_many(paths.iter().map(NodePath::as_str)).await?;
        grants.extend(reads.into_iter().flatten().flatten().map(|read| read.stat.czxid));
    }
    Ok(grants)
}

/// Tells the lock as held, and watches over it until it ends, and says how.
pub(super) async fn hold(attempt: &Attempt, grant: Grant, watch: OneShot) -> Stop {
    let (_, slot) = attempt.parts();
    let (owner, session, lease) = (attempt.seat.owner(), attempt.session(), attempt.seat.lease_path());
    let (mut link, mut evidence) = (session.link(), owner.evidence());
    let (mut orders, mut asked) = (slot.orders(), Asked::default());
    let mut vouch = |until: Instant| {
        // Another stream may have come for it since.
        let contact = asked.contact(slot, slot.stream(), Contact::ask_after);
        let of_connection = contact.map_or(Duration::MAX, Contact::horizon);
        let heard_within = contact.map_or(Duration::MAX, Contact::ask_after);
        let horizon = owner.horizon().saturating_sub(contact::GRACE).min(of_connection);
        slot.vouch(Vouched { until, heard_within, horizon });
    };
    vouch(*evidence.borrow() + owner.overdue());
    if !slot.held(grant.token) {
        let _ = slot.ordered().await;
        return Stop::Ordered;
    }
    let path = attempt.parts().0.path.clone();
    let mut watched = Watched { path, grant, watch: Some(watch), unwatched: None, written: false, missed: false };
    loop {
        if *link.borrow_and_update() == Link::Expired {
            return Stop::SessionLost;
        }
        let last = *evidence.borrow_and_update();
        let signs = Signs {
            evidence: last,
            overdue: owner.overdue(),
            certain_until: owner.certain_until(last),
            unwatched: watched.unwatched,
        };
        let (ask_again, doubt) = match judge(signs, clock::now()) {
            Certainty::Sure(until) => {
                vouch(last + owner.overdue());
                slot.held(grant.token);
                (until, false)
            }
            Certainty::Doubt(until) => {
                slot.suspended(until);
                (until, true)
            }
            Certainty::Over => return Stop::SessionLost,
        };
        tokio::select! {
            biased;
            _ = slot.ordered() => return Stop::Ordered,
            // Another stream has come.
            _ = orders.changed() => {}
            () = clock::sleep_until(ask_again) => {}
            stop = watched.next(&session, &lease) => if let Some(stop) = stop { return stop },
            _ = link.changed() => {}
            // Without a heartbeat the session is over.
            changed = evidence.changed(), if doubt => if changed.is_err() { return Stop::SessionLost },
        }
    }
}

/// The connection of the stream that counts, which is asked for signs of life.
#[derive(Debug, Default)]
pub(super) struct Asked {
    stream: u64,
    contact: Option<(Contact, Asking)>,
}

impl Asked {
    /// The connection of this stream, which is asked after such a silence from now on.
    pub(super) fn contact(
        &mut self,
        slot: &Slot,
        stream: u64,
        after: impl Fn(&Contact) -> Duration,
    ) -> Option<&Contact> {
        if self.stream != stream {
            let ask = |contact: Contact| (contact.clone(), contact.ask_every(after(&contact)));
            (self.stream, self.contact) = (stream, slot.contact().map(ask));
        }
        self.contact.as_ref().map(|(contact, _)| contact)
    }

    /// After which silence it is asked, if there is one.
    pub(super) fn interval(&self) -> Option<Duration> {
        self.contact.as_ref().map(|(_, asking)| asking.interval())
    }
}

/// The watch on a lease.
struct Watched {
    path: NodePath,
    grant: Grant,
    watch: Option<OneShot>,
    /// Since when there is none.
    unwatched: Option<Instant>,
    /// The lease's data was written: somebody is releasing it through Rollcall.
    written: bool,
    /// There was no connection for a while: such a write may have been missed.
    missed: bool,
}

impl Watched {
    /// Waits until the watch fires, or sets it again. Gives the end of the lease; `None`: it stands, ask again.
    ///
    /// # Cancellation
    /// Safe: a read that is not waited for leaves nothing but a watch.
    async fn next(&mut self, session: &Session, lease: &NodePath) -> Option<Stop> {
        if let Some(watch) = &mut self.watch {
            let fired = watch.await.unwrap_or(Fired::ConnectionLost);
            self.watch = None;
            self.unwatched = Some(clock::now());
            self.written |= fired == Fired::Event(EventKind::DataChanged);
            self.missed |= fired == Fired::ConnectionLost;
            return None;
        }
        if !session.connected().await {
            return Some(Stop::SessionLost);
        }
        match session.watch_exists(lease).await {
            Ok((Some(stat), watch)) => {
                self.written |= stat.version > 0;
                self.watch = Some(watch);
                self.unwatched = None;
                None
            }
            Ok((None, _)) => self.end(session).await,
            Err(zk::Error::SessionExpired) => Some(Stop::SessionLost),
            Err(_) => {
                seat::pause().await;
                None
            }
        }
    }

    /// How a lease ended that does not stand any more.
    async fn end(&self, session: &Session) -> Option<Stop> {
        if self.written {
            return Some(Stop::Released);
        }
        if !self.missed {
            return Some(Stop::Removed);
        }
        match release::may_be_released(session, &self.path, self.grant.token).await {
            Ok(true) => Some(Stop::Released),
            Ok(false) => Some(Stop::Removed),
            Err(_) => {
                seat::pause().await;
                None
            }
        }
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
