//! Keeping a lock: renewals, doubt, and the end.

use std::time::Duration;

use rollcall_proto::v1;
use rollcall_proto::v1::acquire_lock_response::Event;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::stream::{Stream, Terms, horizon, lost_reason};
use crate::error::{Failure, LostReason, Reason};
use crate::node::duration_from_proto;
use crate::replicas::Replica;

/// The state of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockState {
    /// It is held.
    Held {
        /// The lock is certainly held until then; renewals move it on.
        until: std::time::Instant,
    },
    /// It is still held, but may soon be lost: ZooKeeper does not answer, or the replica is about to stop.
    Suspended {
        /// The lock is certainly held until then.
        until: std::time::Instant,
    },
    /// It is not held any more.
    Lost {
        /// Why.
        reason: LostReason,
    },
    /// It was released by this guard.
    Released,
}

impl LockState {
    fn is_over(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Released)
    }
}

/// A lock that was granted.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    pub(super) lock_id: String,
    pub(super) token: i64,
    /// When the last request that a replica has answered with this grant was sent.
    pub(super) sent_at: Instant,
    /// For a lock without a ttl: time without a word from the replica after which the lock is lost.
    pub(super) horizon: Duration,
}

impl Grant {
    pub(super) fn of(held: v1::Held, sent_at: Instant) -> Self {
        Self { horizon: horizon(&held), lock_id: held.lock_id, token: held.fencing_token, sent_at }
    }
}

/// Resumes a lock at a replica, and waits for at most a part of the ttl until the replica says that it is held.
pub(super) async fn renew(
    terms: &Terms,
    ttl: Duration,
    grant: &Grant,
    replica: &Replica,
) -> Result<(Stream, Grant), Failure> {
    let renewed = async {
        let opened = terms.open(replica.clone(), Some(&grant.lock_id), None).await;
        let mut stream = opened.map_err(|(_, failure)| failure)?;
        loop {
            match stream.next().await? {
                Some(Event::Held(held)) => {
                    let grant = Grant::of(held, stream.sent_at);
                    return Ok((stream, grant));
                }
                Some(_) => {}
                None => return Err(Failure::ended()),
            }
        }
    };
    let bound = (ttl / 6).max(Duration::from_millis(300));
    timeout(bound, renewed).await.unwrap_or_else(|_| Err(Failure::silent()))
}

/// Keeps a lock with a ttl: renews it every third of the ttl, at any replica that answers, until it is lost.
pub(super) async fn lasting(
    terms: Terms,
    ttl: Duration,
    stream: Stream,
    mut grant: Grant,
    state: watch::Sender<LockState>,
) {
    let replicas = terms.client.replicas();
    let mut replica = stream.replica.clone();
    let mut stream = Some(stream);
    // The replica that is about to stop.
    let mut drains = None;
    let mut renew_at = grant.sent_at + ttl / 3;
    // Whether a renewal was begun since the stream was opened. It may have superseded the stream.
    let mut renewing = false;
    loop {
        let until = grant.sent_at + ttl;
        let event = tokio::select! {
            biased;
            () = sleep_until(until) => return end(&state, LostReason::Expired),
            () = sleep_until(renew_at) => None,
            event = next_of(&mut stream) => Some(event),
        };
        match event {
            Some(Ok(Some(event))) => match event {
                Event::Held(_) => show(&state, LockState::Held { until: until.into() }),
                Event::Suspended(suspended) => {
                    let remaining = suspended.remaining.map(duration_from_proto).unwrap_or_default();
                    show(&state, LockState::Suspended { until: until.min(Instant::now() + remaining).into() });
                }
                Event::Lost(lost) => return end(&state, lost_reason(lost)),
                Event::Draining(_) => {
                    replicas.drains(&replica);
                    (drains, renew_at) = (Some(replica.index()), Instant::now());
                }
                Event::Queued(_) | Event::Heartbeat(_) => {}
            },
            Some(Ok(None)) => return end(&state, LostReason::Released),
            Some(Err(failure)) => {
                stream = None;
                renew_at = Instant::now();
                match verdict(failure, renewing) {
                    Ok(failure) => replicas.failed(&replica, &failure),
                    Err(reason) => return end(&state, reason),
                }
            }
            None => {
                let picked = timeout_at(until, replicas.pick_but(drains, ttl / 6)).await;
                let Ok(next) = picked else { return end(&state, LostReason::Expired) };
                renewing = true;
                let renewed = timeout_at(until, renew(&terms, ttl, &grant, &next)).await;
                match renewed.unwrap_or_else(|_| Err(Failure::silent())) {
                    Ok((new, renewed)) => {
                        replicas.succeeded(&next);
                        (stream, grant, replica, drains, renewing) = (Some(new), renewed, next, None, false);
                        renew_at = grant.sent_at + ttl / 3;
                        show(&state, LockState::Held { until: (grant.sent_at + ttl).into() });
                    }
                    Err(failure) => match verdict(failure, true) {
                        Ok(failure) => {
                            replicas.failed(&next, &failure);
                            renew_at = Instant::now();
                        }
                        Err(reason) => return end(&state, reason),
                    },
                }
            }
        }
    }
}

async fn next_of(stream: &mut Option<Stream>) -> Result<Option<Event>, Failure> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

/// Whether a failure ends the lock or is worth another attempt. `renewing`: a renewal of our own may have superseded
/// the stream.
fn verdict(failure: Failure, renewing: bool) -> Result<Failure, LostReason> {
    match failure {
        Failure::Refused(refusal) => match refusal.reason() {
            Reason::LockLost => Err(LostReason::SessionLost),
            Reason::Superseded if !renewing => Err(LostReason::Superseded),
            // A single replica may refuse, or refuse only for a moment, so the ttl decides.
            _ => Ok(Failure::Refused(refusal)),
        },
        failure => Ok(failure),
    }
}

/// The time for which a lock without a ttl is certain.
struct Certain {
    horizon: Duration,
    /// When the replica last said that the lock is held, or that nothing has changed.
    heard_at: Instant,
    /// While the replica is in doubt: the time until which the lock is certain.
    doubt: Option<Instant>,
    /// When the replica, which is about to stop, will release it.
    ends: Option<Instant>,
}

impl Certain {
    fn until(&self) -> Instant {
        let until = self.doubt.unwrap_or(self.heard_at + self.horizon);
        self.ends.map_or(until, |ends| ends.min(until))
    }

    fn state(&self) -> LockState {
        let until = self.until().into();
        let is_sure = self.doubt.is_none() && self.ends.is_none();
        if is_sure { LockState::Held { until } } else { LockState::Suspended { until } }
    }
}

/// Keeps a lock without a ttl, which lives as long as the stream. `heard_at`: when the replica said that the lock is
/// held.
pub(super) async fn bound_to_stream(
    terms: Terms,
    mut stream: Stream,
    grant: Grant,
    heard_at: Instant,
    state: watch::Sender<LockState>,
) {
    let replicas = terms.client.replicas();
    let mut certain = Certain { horizon: grant.horizon, heard_at, doubt: None, ends: None };
    loop {
        let event = tokio::select! {
            biased;
            () = sleep_until(certain.until()) => return end(&state, LostReason::Expired),
            event = stream.next() => event,
        };
        let now = Instant::now();
        match event {
            Ok(Some(Event::Held(held))) => {
                (certain.horizon, certain.heard_at, certain.doubt) = (horizon(&held), now, None);
            }
            Ok(Some(Event::Heartbeat(_))) => certain.heard_at = now,
            Ok(Some(Event::Suspended(suspended))) => {
                certain.doubt = Some(now + suspended.remaining.map(duration_from_proto).unwrap_or_default());
            }
            Ok(Some(Event::Draining(draining))) => {
                replicas.drains(&stream.replica);
                certain.ends = Some(now + draining.remaining.map(duration_from_proto).unwrap_or_default());
            }
            Ok(Some(Event::Lost(lost))) => return end(&state, lost_reason(lost)),
            Ok(Some(Event::Queued(_))) => {}
            Ok(None) => return end(&state, LostReason::Released),
            Err(Failure::Refused(refusal)) => {
                return end(
                    &state,
                    match refusal.reason() {
                        Reason::LockLost => LostReason::SessionLost,
                        Reason::Superseded => LostReason::Superseded,
                        _ => refusal.into_lost(),
                    },
                );
            }
            Err(failure) => {
                replicas.failed(&stream.replica, &failure);
                return end(&state, LostReason::Disconnected);
            }
        }
        show(&state, certain.state());
    }
}

/// Publishes a state, unless the lock is over already.
pub(super) fn show(state: &watch::Sender<LockState>, new: LockState) {
    state.send_if_modified(|state| {
        if state.is_over() || *state == new {
            return false;
        }
        *state = new;
        true
    });
}

fn end(state: &watch::Sender<LockState>, reason: LostReason) {
    show(state, LockState::Lost { reason });
}
