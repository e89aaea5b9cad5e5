//! A lease that ends with its stream: told as held while it certainly exists, and watched until it ends.

use std::time::Duration;

use tokio::time::Instant;

use super::asked_contact::AskedContact;
use super::certainty::{Certainty, Signs, judge};
use crate::clock;
use crate::contact::{self, Contact};
use crate::locks::outcome::Outcome;
use crate::locks::release::may_be_released;
use crate::locks::stream::state::{AcquisitionState, Vouched};
use crate::locks::timing::pause;
use crate::types::{FencingToken, NodePath};
use crate::zk::{self, EphemeralSession, EventKind, Fired, Link, OneShot, Session};

/// A lease that was granted.
#[derive(Debug)]
pub(crate) struct StreamLease {
    /// The lock.
    pub(crate) path: NodePath,
    /// The lease's node.
    pub(crate) node: NodePath,
    pub(crate) token: FencingToken,
    /// The session that owns the lease.
    pub(crate) owner: EphemeralSession,
}

/// Tells the client that it holds the lock, watches the lease until it ends, and returns how. `watch`: a watch on the
/// lease.
pub(crate) async fn hold(state: &AcquisitionState, lease: &StreamLease, watch: OneShot) -> Outcome {
    let owner = &lease.owner;
    let session = owner.session();
    let (mut link, mut evidence) = (session.link(), owner.evidence());
    let (mut commands, mut asked) = (state.commands(), AskedContact::default());
    let mut vouch = |until: Instant| {
        // The connection of the latest stream, which may have changed since.
        let contact = asked.contact(state, state.stream(), Contact::ask_after);
        let of_connection = contact.map_or(Duration::MAX, Contact::horizon);
        let heard_within = contact.map_or(Duration::MAX, Contact::ask_after);
        let horizon = owner.horizon().saturating_sub(contact::GRACE).min(of_connection);
        state.vouch(Vouched { until, heard_within, horizon });
    };
    vouch(*evidence.borrow() + owner.overdue());
    if !state.held(lease.token) {
        let _ = state.stopped().await;
        return Outcome::Stopped;
    }
    let mut watched = LeaseWatch { watch: Some(watch), unwatched: None, written: false, missed: false };
    loop {
        if *link.borrow_and_update() == Link::Expired {
            return Outcome::SessionLost;
        }
        let last = *evidence.borrow_and_update();
        let signs = Signs {
            evidence: last,
            overdue: owner.overdue(),
            certain_until: owner.certain_until(last),
            unwatched: watched.unwatched,
        };
        let (judge_again, doubt) = match judge(signs, clock::now()) {
            Certainty::Sure(until) => {
                vouch(last + owner.overdue());
                state.held(lease.token);
                (until, false)
            }
            Certainty::Doubt(until) => {
                state.suspended(until);
                (until, true)
            }
            Certainty::Over => return Outcome::SessionLost,
        };
        tokio::select! {
            biased;
            _ = state.stopped() => return Outcome::Stopped,
            // Another stream has come.
            _ = commands.changed() => {}
            () = clock::sleep_until(judge_again) => {}
            ended = watched.next(session, lease) => if let Some(outcome) = ended { return outcome },
            _ = link.changed() => {}
            // Without a heartbeat the session is over.
            changed = evidence.changed(), if doubt => if changed.is_err() { return Outcome::SessionLost },
        }
    }
}

/// The watch on a lease.
struct LeaseWatch {
    watch: Option<OneShot>,
    /// The time since which there is no watch.
    unwatched: Option<Instant>,
    /// The lease's data was written: a replica is releasing it.
    written: bool,
    /// There was no connection for a while, and such a write may have been missed.
    missed: bool,
}

impl LeaseWatch {
    /// Waits until the watch fires, or sets it again. Returns how the lease ended; `None`: judge again.
    ///
    /// # Cancellation
    /// Safe: a read that is not awaited leaves nothing but a watch.
    async fn next(&mut self, session: &Session, lease: &StreamLease) -> Option<Outcome> {
        if let Some(watch) = &mut self.watch {
            let fired = watch.await.unwrap_or(Fired::ConnectionLost);
            self.watch = None;
            self.unwatched = Some(clock::now());
            self.written |= fired == Fired::Event(EventKind::DataChanged);
            self.missed |= fired == Fired::ConnectionLost;
            return None;
        }
        if !session.connected().await {
            return Some(Outcome::SessionLost);
        }
        match session.watch_exists(&lease.node).await {
            Ok((Some(stat), watch)) => {
                self.written |= stat.version > 0;
                self.watch = Some(watch);
                self.unwatched = None;
                None
            }
            Ok((None, _)) => self.end(session, lease).await,
            Err(zk::Error::SessionExpired) => Some(Outcome::SessionLost),
            Err(_) => {
                pause().await;
                None
            }
        }
    }

    /// The end of a lease that does not exist any more.
    async fn end(&self, session: &Session, lease: &StreamLease) -> Option<Outcome> {
        if self.written {
            return Some(Outcome::Released);
        }
        if !self.missed {
            return Some(Outcome::Removed);
        }
        match may_be_released(session, &lease.path, lease.token).await {
            Ok(true) => Some(Outcome::Released),
            Ok(false) => Some(Outcome::Removed),
            Err(_) => {
                pause().await;
                None
            }
        }
    }
}
