//! A lease that outlives its stream, from its grant, or from when it was picked up, to its end.
//!
//! It is durable, so no session's end takes it. What ends it is its keeper's clock, a release, or, when the keeper's
//! fence is gone, the clock of another replica ([`super::reaper`]), which counts the whole ttl from then on. So it is
//! certain for as long as the keeper's session is, and for the ttl after that.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::hold::{Asked, Certainty, Signs, judge};
use super::record::{self, Record, Removal, as_zk, record_path};
use super::seat;
use super::slot::{Order, Slot, Vouched};
use super::{Interrupt, Shared, Stop, lock, release};
use crate::clock;
use crate::contact::{self, Contact};
use crate::error::Error;
use crate::refusal;
use crate::types::{FencingToken, NodePath, SessionId};
use crate::zk::{self, CommitError, EphemeralSession, ErrorCode, EventKind, Fired, Link, OneShot, Session};

/// A lease with a ttl that this replica keeps.
#[derive(Debug)]
pub(super) struct Lasting {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    name: String,
    record: Record,
    /// The record's version, as we wrote it.
    version: i32,
    token: FencingToken,
    /// Its fence is the one that the record names.
    owner: EphemeralSession,
    /// The sessions of ours that the record was ever meant to name.
    claims: Vec<SessionId>,
}

/// What a look at a lease's nodes shows.
enum Seen {
    /// It is ours, and watched.
    Ours([OneShot; 2]),
    /// Another replica keeps it now.
    Taken,
    /// Its record is gone.
    Gone(Missing),
    /// Its record stands, the lease does not.
    Deleted,
}

/// How a record may have gone, for who has not watched it.
#[derive(PartialEq, Eq)]
enum Missing {
    /// Released through another replica.
    PerhapsReleased,
    /// Deleted by a stranger.
    Deleted,
}

/// What woke the keeper.
enum KeeperWoken {
    /// The record was written, or something is gone.
    Fired(Fired),
    Seen(Seen),
    /// Ask again how things stand.
    Again,
}

/// The client of a lock with a ttl, as long as its replica keeps that.
struct KeptClient {
    /// Since when the lock is kept here: the client has its ttl from then at least.
    since: Instant,
    asked: Asked,
}

impl KeptClient {
    fn new() -> Self {
        Self { since: clock::now(), asked: Asked::default() }
    }

    /// When the client will have been silent for the ttl, if it is not heard before. `None`: its stream stands, and nobody
    /// knows its connection.
    fn silent_at(&mut self, lock: &Lasting, order: Order, stream: u64, now: Instant) -> Option<Instant> {
        let ttl = lock.record.ttl;
        let heard = if let Order::Keep(heard) = order {
            self.asked = Asked::default();
            heard
        } else {
            self.asked.contact(&lock.slot, stream, |contact| ask_after(ttl, contact))?.last_heard(now)
        };
        Some(lock.shared.stall_detector.silent_at(heard.max(self.since), ttl))
    }

    /// What can be answered for while the evidence of the session is not overdue: whichever replica comes to keep the lock
    /// counts the whole ttl, and this one counts it from when the client was last heard.
    fn vouched(&self, ttl: Duration, until: Instant) -> Vouched {
        let heard_within = self.asked.interval().unwrap_or_default();
        // The ttl ends that much later, which is for the message's way, as what is subtracted is for a late sign of life.
        let horizon = ttl.saturating_sub(heard_within + contact::grace(heard_within));
        Vouched { until, heard_within, horizon }
    }
}

/// After which silence the client of a lock with this ttl is asked for a sign of life.
fn ask_after(ttl: Duration, contact: &Contact) -> Duration {
    (ttl / 3).min(contact.keepalive())
}

impl Lasting {
    /// A lease that was just granted, in the session of `owner`.
    pub(super) fn granted(
        shared: &Arc<Shared>,
        slot: &Arc<Slot>,
        name: &str,
        record: Record,
        token: FencingToken,
        owner: &EphemeralSession,
    ) -> Self {
        Self {
            shared: shared.clone(),
            slot: slot.clone(),
            name: name.to_owned(),
            record,
            version: 0,
            token,
            owner: owner.clone(),
            claims: vec![owner.id()],
        }
    }

    /// Takes over the lease of the slot's id from whichever replica keeps it.
    ///
    /// # Errors
    /// [`Error::UnknownLock`] when there is none with a ttl.
    pub(super) async fn pick_up(
        shared: &Arc<Shared>,
        slot: &Arc<Slot>,
        owner: &EphemeralSession,
    ) -> Result<Self, Interrupt> {
        let (session, path, mark) = (owner.session(), slot.id().path(), slot.id().mark());
        session.sync(path).await?;
        loop {
            let names = session.children(path).await?.map(|(names, _)| names).unwrap_or_default();
            let Some(name) = names.into_iter().find(|name| mark.names(name)) else {
                return Err(Error::UnknownLock.into());
            };
            let (lease, record) = (path.join(&name), record_path(&name));
            let reads = session.get_many([lease.as_str(), record.as_str()]).await?;
            // A lease without a record ends with its own stream, and can't be moved.
            let [Ok(Some(lease)), Ok(Some(read))] = reads.as_slice() else { return Err(Error::UnknownLock.into()) };
            let Some(found) = Record::parse(&read.data) else { return Err(Error::UnknownLock.into()) };
            let record = Record { owner: owner.id(), ..found };
            if slot.is_over() {
                return Err(Stop::Left.into());
            }
            match owner.commit(vec![record.write(&name, read.stat.version)]).await {
                Ok(_) => {
                    slot.picked_up(record.ttl);
                    slot.queued(1, [String::from_utf8_lossy(&lease.data).into_owned()].into());
                    return Ok(Self {
                        shared: shared.clone(),
                        slot: slot.clone(),
                        name,
                        record,
                        version: read.stat.version.wrapping_add(1),
                        token: FencingToken(lease.stat.czxid),
                        owner: owner.clone(),
                        claims: vec![owner.id()],
                    });
                }
                Err(CommitError::Part { code: ErrorCode::BadVersion | ErrorCode::NoNode, .. }) => {}
                Err(CommitError::Part { code, .. }) => return Err(refusal::refused(path, code).into()),
                Err(error) => return Err(as_zk(error).into()),
            }
        }
    }

    fn lease_path(&self) -> NodePath {
        self.record.path.join(&self.name)
    }

    /// Tells the lock as held and keeps it, until it ends; says how.
    pub(super) async fn keep(&mut self) -> Stop {
        let mut orders = self.slot.orders();
        let mut stopping = self.shared.stopping.subscribe();
        let mut unwatched = Some(clock::now());
        let mut watches: Option<[OneShot; 2]> = None;
        // Whether the record's end would be told from a release: by a write that is seen before it.
        let (mut watched, mut written) = (false, false);
        // There was no connection for a while: that write may have been missed.
        let mut missed = false;
        // The stream for which the lease was last found to be ours.
        let mut verified = self.slot.stream();
        let mut company = KeptClient::new();
        loop {
            let stream = self.slot.stream();
            if stream != verified {
                watches = None;
            }
            let order = *orders.borrow_and_update();
            match order {
                Order::Drop | Order::Release => return self.end_by(Stop::Ordered).await,
                // Another replica will count the ttl once our fence is gone.
                Order::Keep(_) if *stopping.borrow_and_update() => return Stop::Left,
                Order::Keep(_) | Order::Go => {}
            }
            let now = clock::now();
            let silent_at = company.silent_at(self, order, stream, now);
            if silent_at.is_some_and(|at| now >= at) {
                return self.end_by(if order == Order::Go { Stop::Silent } else { Stop::Expired }).await;
            }
            let signs = self.signs(unwatched);
            let ask_again = match judge(signs, now) {
                Certainty::Sure(until) => {
                    self.slot.vouch(company.vouched(self.record.ttl, signs.evidence + signs.overdue));
                    self.slot.still_held(verified, self.token);
                    until
                }
                Certainty::Doubt(until) => {
                    self.slot.still_suspended(verified, until);
                    until.min(now + self.owner.heartbeat_interval() / 4)
                }
                Certainty::Over => return Stop::SessionLost,
            };
            let woken = tokio::select! {
                biased;
                _ = orders.changed() => KeeperWoken::Again,
                _ = stopping.changed() => KeeperWoken::Again,
                () = clock::sleep_until(silent_at.map_or(ask_again, |at| at.min(ask_again))) => KeeperWoken::Again,
                woken = self.news(&mut watches) => woken,
            };
            match woken {
                KeeperWoken::Again => {}
                KeeperWoken::Fired(fired) => {
                    written |= fired == Fired::Event(EventKind::DataChanged);
                    missed |= fired == Fired::ConnectionLost;
                    watches = None;
                    unwatched = Some(clock::now());
                }
                KeeperWoken::Seen(Seen::Ours(set)) => {
                    watches = Some(set);
                    watched = true;
                    unwatched = None;
                    verified = stream;
                }
                // The latest to come back counts: a stream that came here since was not meant by who took it.
                KeeperWoken::Seen(Seen::Taken) if stream != verified => return Stop::Again,
                KeeperWoken::Seen(Seen::Taken) => return Stop::Superseded,
                // Before it was watched, a release is all that is likely.
                KeeperWoken::Seen(Seen::Gone(_)) if written || !watched => return Stop::Released,
                KeeperWoken::Seen(Seen::Gone(Missing::PerhapsReleased)) if missed => return Stop::Released,
                KeeperWoken::Seen(Seen::Gone(_) | Seen::Deleted) => return Stop::Removed,
            }
        }
    }

    fn signs(&self, unwatched: Option<Instant>) -> Signs {
        let evidence = *self.owner.evidence().borrow();
        Signs {
            evidence,
            overdue: self.owner.overdue(),
            certain_until: self.owner.certain_until(evidence) + self.record.ttl,
            unwatched,
        }
    }

    /// Waits for a watch to fire; without watches looks, in a session of ours that stands.
    ///
    /// # Cancellation
    /// Safe: a write whose answer was not awaited is found by the next look.
    async fn news(&mut self, watches: &mut Option<[OneShot; 2]>) -> KeeperWoken {
        if let Some([record, lease]) = watches {
            let fired = tokio::select! {
                biased;
                fired = record => fired,
                fired = lease => fired,
            };
            return KeeperWoken::Fired(fired.unwrap_or(Fired::ConnectionLost));
        }
        let owner = if *self.owner.session().link().borrow() == Link::Expired {
            let Ok(owner) = self.shared.pool.any() else {
                self.shared.room_may_be_free().await;
                return KeeperWoken::Again;
            };
            owner
        } else {
            self.owner.clone()
        };
        if !owner.session().connected().await {
            return KeeperWoken::Again;
        }
        match self.look(owner.session()).await {
            // The record names a session of ours that is over.
            Ok(Seen::Ours(_)) if owner.id() != self.owner.id() => {
                if self.claim(owner).await.is_err() {
                    seat::pause().await;
                }
                KeeperWoken::Again
            }
            Ok(seen) => KeeperWoken::Seen(seen),
            Err(_) => {
                seat::pause().await;
                KeeperWoken::Again
            }
        }
    }

    /// Has the record name another session of ours.
    async fn claim(&mut self, owner: EphemeralSession) -> Result<(), zk::Error> {
        let record = Record { owner: owner.id(), ..self.record.clone() };
        self.claims.push(owner.id());
        owner.commit(vec![record.write(&self.name, self.version)]).await.map_err(as_zk)?;
        self.version = self.version.wrapping_add(1);
        self.record = record;
        self.owner = owner;
        Ok(())
    }

    /// Looks at both nodes, and watches them.
    async fn look(&mut self, session: &Session) -> Result<Seen, zk::Error> {
        let (record, lease) = (record_path(&self.name), self.lease_path());
        session.sync(&record).await?;
        let watched = futures_util::future::join(session.watch_exists(&record), session.watch_exists(&lease)).await;
        let (record_watch, (lease_stat, lease_watch)) = (watched.0?.1, watched.1?);
        let Some(read) = session.get(&record).await? else {
            let released = release::may_be_released(session, &self.record.path, self.token).await?;
            return Ok(Seen::Gone(if released { Missing::PerhapsReleased } else { Missing::Deleted }));
        };
        let Some(found) = Record::parse(&read.data) else { return Ok(Seen::Taken) };
        if read.stat.version != self.version {
            // A write of our own whose answer was lost, or somebody else's.
            if !self.claims.contains(&found.owner) {
                return Ok(Seen::Taken);
            }
            self.version = read.stat.version;
            if let Some(owner) = self.shared.pool.owner(found.owner) {
                self.owner = owner;
            }
            self.record = found;
        }
        Ok(if lease_stat.is_some() { Seen::Ours([record_watch, lease_watch]) } else { Seen::Deleted })
    }

    /// Removes the lease, over any number of lost connections; somebody who took it meanwhile keeps it.
    pub(super) async fn end(&self) -> Removal {
        let mut version = self.version;
        loop {
            let removed = match self.shared.pool.any() {
                Ok(owner) => self.try_end(&owner, &mut version).await,
                Err(error) => Err(error),
            };
            match removed {
                Ok(Some(removal)) => return removal,
                Ok(None) => {}
                Err(zk::Error::Refused(code)) => {
                    tracing::error!(path = %self.record.path, %code, "zookeeper refuses to delete a lease");
                    return Removal::Gone;
                }
                Err(_) => seat::pause().await,
            }
        }
    }

    /// `None`: try again, with the version of a claim of ours whose answer was not seen.
    async fn try_end(&self, owner: &EphemeralSession, version: &mut i32) -> Result<Option<Removal>, zk::Error> {
        let removal = record::remove(owner, &self.record.path, &self.name, *version).await?;
        if removal == Removal::Gone {
            return Ok(Some(removal));
        }
        let Some(read) = owner.session().get(&record_path(&self.name)).await? else { return Ok(None) };
        let claimed = Record::parse(&read.data).is_some_and(|found| self.claims.contains(&found.owner));
        // After the reading: a later task of this replica, which may name the same session, comes before its write.
        if !claimed || !self.has_the_task() {
            return Ok(Some(Removal::Taken));
        }
        *version = read.stat.version;
        Ok(None)
    }

    /// Whether no later task of this replica has to do with the lock: one can come once an end was told.
    fn has_the_task(&self) -> bool {
        lock(&self.shared.running).get(&self.slot.id().mark()).is_some_and(|slot| Arc::ptr_eq(slot, &self.slot))
    }

    async fn end_by(&self, stop: Stop) -> Stop {
        match self.end().await {
            Removal::Gone => stop,
            Removal::Taken => Stop::Superseded,
        }
    }
}
