//! A lease with a ttl, which outlives its stream: from its grant, or from when this replica picked it up, to its end.
//!
//! The lease is durable, so the end of a session does not remove it. Its keeper's clock ends it, or a release, or, when
//! the keeper's fence is gone, the clock of another replica ([`super::reaper`]), which counts the whole ttl from then
//! on. So the lease is certain for as long as the keeper's session is, and for the ttl after that.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::asked_contact::AskedContact;
use super::certainty::{Certainty, Signs, judge};
use crate::clock;
use crate::contact::{self, Contact, StallDetector};
use crate::error::Error;
use crate::locks::outcome::{Outcome, StepError};
use crate::locks::recipe::commit::as_zk;
use crate::locks::recipe::lease_record::{self, Record, Removal, record_path};
use crate::locks::release::may_be_released;
use crate::locks::running::RunningLocks;
use crate::locks::stream::state::{AcquisitionState, Command, Vouched};
use crate::locks::timing::{pause, pool_change};
use crate::refusal;
use crate::types::{FencingToken, NodePath, SessionId};
use crate::zk::{self, CommitError, EphemeralSession, ErrorCode, EventKind, Fired, Link, OneShot, Pool, Session};

/// The parts of the replica that the keeper of a lease needs. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    pub(crate) pool: Pool,
    pub(crate) running: Arc<RunningLocks>,
    pub(crate) stall_detector: Arc<StallDetector>,
    /// Whether the replica is about to stop: locks whose stream has ended are then left to other replicas.
    pub(crate) stopping: Arc<watch::Sender<bool>>,
}

/// A lease with a ttl that this replica keeps.
#[derive(Debug)]
pub(crate) struct TtlLease {
    keeper: Keeper,
    state: Arc<AcquisitionState>,
    name: String,
    record: Record,
    /// The record's version, as this replica wrote it.
    version: i32,
    token: FencingToken,
    /// The session whose fence the record names.
    owner: EphemeralSession,
    /// The sessions of this replica that the record was ever meant to name.
    claims: Vec<SessionId>,
}

/// The conclusion from a read of a lease and its record.
enum Seen {
    /// This replica keeps the lease, and watches both nodes.
    Ours([OneShot; 2]),
    /// Another replica keeps it now.
    Taken,
    /// The record is gone.
    Gone(Missing),
    /// The record exists, the lease does not.
    Deleted,
}

/// The possible end of a record that was not watched.
#[derive(PartialEq, Eq)]
enum Missing {
    /// Released through another replica.
    PerhapsReleased,
    /// Deleted by another program.
    Deleted,
}

/// The event that woke the keeper.
enum KeeperWoken {
    /// The record was written, or one of the nodes was deleted.
    Fired(Fired),
    Seen(Seen),
    /// Judge again.
    Again,
}

/// The client of a lock with a ttl, while this replica keeps the lock.
struct KeptClient {
    /// The time since which this replica keeps the lock: the client has its ttl from then on at least.
    since: Instant,
    asked: AskedContact,
}

impl KeptClient {
    fn new() -> Self {
        Self { since: clock::now(), asked: AskedContact::default() }
    }

    /// The time at which the client will have been silent for the ttl, if it is not heard before. `None`: its stream is
    /// open, and its connection is not known.
    fn silent_at(&mut self, lock: &TtlLease, command: Command, stream: u64, now: Instant) -> Option<Instant> {
        let ttl = lock.record.ttl;
        let heard = if let Command::Keep(heard) = command {
            self.asked = AskedContact::default();
            heard
        } else {
            self.asked.contact(&lock.state, stream, |contact| ask_after(ttl, contact))?.last_heard(now)
        };
        Some(lock.keeper.stall_detector.silent_at(heard.max(self.since), ttl))
    }

    /// The promises that this replica can keep while the evidence of the session is not overdue. A replica that picks
    /// the lock up counts the whole ttl, and this one counts it from when the client was last heard.
    fn vouched(&self, ttl: Duration, until: Instant) -> Vouched {
        let heard_within = self.asked.interval().unwrap_or_default();
        // The ttl ends a grace later (`silent_at`), for the way of the message to the client. The grace that is
        // subtracted here is for a sign of life that is late.
        let horizon = ttl.saturating_sub(heard_within + contact::grace(heard_within));
        Vouched { until, heard_within, horizon }
    }
}

/// The silence after which the client of a lock with this ttl is asked for a sign of life.
fn ask_after(ttl: Duration, contact: &Contact) -> Duration {
    (ttl / 3).min(contact.keepalive())
}

impl TtlLease {
    /// A lease that was just granted, in the session of `owner`.
    pub(crate) fn granted(
        keeper: &Keeper,
        state: &Arc<AcquisitionState>,
        name: &str,
        record: Record,
        token: FencingToken,
        owner: &EphemeralSession,
    ) -> Self {
        Self {
            keeper: keeper.clone(),
            state: state.clone(),
            name: name.to_owned(),
            record,
            version: 0,
            token,
            owner: owner.clone(),
            claims: vec![owner.id()],
        }
    }

    /// Takes over the lease of the client's lock id from the replica that keeps it.
    ///
    /// # Errors
    /// [`Error::UnknownLock`] if there is no lease with this id and a ttl.
    pub(crate) async fn pick_up(
        keeper: &Keeper,
        state: &Arc<AcquisitionState>,
        owner: &EphemeralSession,
    ) -> Result<Self, StepError> {
        let (session, path, mark) = (owner.session(), state.id().path(), state.id().mark());
        session.sync(path).await?;
        loop {
            let names = session.children(path).await?.map(|(names, _)| names).unwrap_or_default();
            let Some(name) = names.into_iter().find(|name| mark.names(name)) else {
                return Err(Error::UnknownLock.into());
            };
            let (lease, record) = (path.join(&name), record_path(&name));
            let reads = session.get_many([lease.as_str(), record.as_str()]).await?;
            // A lease without a record ends with its own stream, and can't move.
            let [Ok(Some(lease)), Ok(Some(read))] = reads.as_slice() else { return Err(Error::UnknownLock.into()) };
            let Some(found) = Record::parse(&read.data) else { return Err(Error::UnknownLock.into()) };
            let record = Record { owner: owner.id(), ..found };
            if state.is_over() {
                return Err(Outcome::Left.into());
            }
            match owner.commit(vec![record.write(&name, read.stat.version)]).await {
                Ok(_) => {
                    state.picked_up(record.ttl);
                    state.queued(1, [String::from_utf8_lossy(&lease.data).into_owned()].into());
                    return Ok(Self {
                        keeper: keeper.clone(),
                        state: state.clone(),
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

    /// Tells the client that it holds the lock, keeps the lease until it ends, and returns how.
    pub(crate) async fn keep(&mut self) -> Outcome {
        let mut commands = self.state.commands();
        let mut stopping = self.keeper.stopping.subscribe();
        let mut unwatched = Some(clock::now());
        let mut watches: Option<[OneShot; 2]> = None;
        // A release writes the record before it deletes it: a watch tells it from a deletion by another program.
        let (mut watched, mut written) = (false, false);
        // There was no connection for a while, and that write may have been missed.
        let mut missed = false;
        // The latest stream when the lease was last found to be this replica's.
        let mut verified = self.state.stream();
        let mut client = KeptClient::new();
        loop {
            let stream = self.state.stream();
            if stream != verified {
                watches = None;
            }
            let command = *commands.borrow_and_update();
            match command {
                Command::Drop | Command::Release => return self.end_by(Outcome::Stopped, stream).await,
                // Another replica will count the ttl once this one's fence is gone.
                Command::Keep(_) if *stopping.borrow_and_update() => return Outcome::Left,
                Command::Keep(_) | Command::Go => {}
            }
            let now = clock::now();
            let silent_at = client.silent_at(self, command, stream, now);
            if silent_at.is_some_and(|at| now >= at) {
                let silent = if command == Command::Go { Outcome::Silent } else { Outcome::Expired };
                return self.end_by(silent, stream).await;
            }
            let signs = self.signs(unwatched);
            let ask_again = match judge(signs, now) {
                Certainty::Sure(until) => {
                    self.state.vouch(client.vouched(self.record.ttl, signs.evidence + signs.overdue));
                    self.state.still_held(verified, self.token);
                    until
                }
                Certainty::Doubt(until) => {
                    self.state.still_suspended(verified, until);
                    until.min(now + self.owner.heartbeat_interval() / 4)
                }
                Certainty::Over => return Outcome::SessionLost,
            };
            let woken = tokio::select! {
                biased;
                _ = commands.changed() => KeeperWoken::Again,
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
                KeeperWoken::Seen(Seen::Taken) => return self.superseded(verified),
                // Before the record was watched, a release is the likely cause.
                KeeperWoken::Seen(Seen::Gone(_)) if written || !watched => return Outcome::Released,
                KeeperWoken::Seen(Seen::Gone(Missing::PerhapsReleased)) if missed => return Outcome::Released,
                KeeperWoken::Seen(Seen::Gone(_) | Seen::Deleted) => return Outcome::Removed,
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

    /// Waits for a watch to fire; without watches reads the nodes, in a session of this replica that lives.
    ///
    /// # Cancellation
    /// Safe: the next read finds a write whose answer was not awaited.
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
            let Ok(owner) = self.keeper.pool.any() else {
                pool_change(&self.keeper.pool).await;
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
            // The record names a session of this replica that is over.
            Ok(Seen::Ours(_)) if owner.id() != self.owner.id() => {
                if self.claim(owner).await.is_err() {
                    pause().await;
                }
                KeeperWoken::Again
            }
            Ok(seen) => KeeperWoken::Seen(seen),
            Err(_) => {
                pause().await;
                KeeperWoken::Again
            }
        }
    }

    /// Writes another session of this replica into the record.
    async fn claim(&mut self, owner: EphemeralSession) -> Result<(), zk::Error> {
        let record = Record { owner: owner.id(), ..self.record.clone() };
        self.claims.push(owner.id());
        owner.commit(vec![record.write(&self.name, self.version)]).await.map_err(as_zk)?;
        self.version = self.version.wrapping_add(1);
        self.record = record;
        self.owner = owner;
        Ok(())
    }

    /// Reads both nodes, and watches them.
    async fn look(&mut self, session: &Session) -> Result<Seen, zk::Error> {
        let (record, lease) = (record_path(&self.name), self.lease_path());
        session.sync(&record).await?;
        let watched = futures_util::future::join(session.watch_exists(&record), session.watch_exists(&lease)).await;
        let (record_watch, (lease_stat, lease_watch)) = (watched.0?.1, watched.1?);
        let Some(read) = session.get(&record).await? else {
            let released = may_be_released(session, &self.record.path, self.token).await?;
            return Ok(Seen::Gone(if released { Missing::PerhapsReleased } else { Missing::Deleted }));
        };
        let Some(found) = Record::parse(&read.data) else { return Ok(Seen::Taken) };
        if read.stat.version != self.version {
            // A write of this replica whose answer was lost, or of another replica.
            if !self.claims.contains(&found.owner) {
                return Ok(Seen::Taken);
            }
            self.version = read.stat.version;
            if let Some(owner) = self.keeper.pool.owner(found.owner) {
                self.owner = owner;
            }
            self.record = found;
        }
        Ok(if lease_stat.is_some() { Seen::Ours([record_watch, lease_watch]) } else { Seen::Deleted })
    }

    /// Removes the lease, over any number of lost connections. A replica that took it meanwhile keeps it.
    pub(crate) async fn end(&self) -> Removal {
        let mut version = self.version;
        loop {
            let removed = match self.keeper.pool.any() {
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
                Err(_) => pause().await,
            }
        }
    }

    /// `None`: try again, with the version of a claim of this replica whose answer was lost.
    async fn try_end(&self, owner: &EphemeralSession, version: &mut i32) -> Result<Option<Removal>, zk::Error> {
        let removal = lease_record::remove(owner, &self.record.path, &self.name, *version).await?;
        if removal == Removal::Gone {
            return Ok(Some(removal));
        }
        let Some(read) = owner.session().get(&record_path(&self.name)).await? else { return Ok(None) };
        let claimed = Record::parse(&read.data).is_some_and(|found| self.claims.contains(&found.owner));
        // Asked after the read: a later task of this replica, which may name the same session, is known before it
        // writes.
        if !claimed || !self.keeper.running.is_latest(&self.state) {
            return Ok(Some(Removal::Taken));
        }
        *version = read.stat.version;
        Ok(None)
    }

    async fn end_by(&self, outcome: Outcome, stream: u64) -> Outcome {
        match self.end().await {
            Removal::Gone => outcome,
            Removal::Taken => self.superseded(stream),
        }
    }

    /// Another replica has taken the lease from this stream. A stream that has come here since, and is open, is the
    /// latest, and takes it back. One that has gone again does not: its client may be where the lease is.
    fn superseded(&self, stream: u64) -> Outcome {
        let path = self.record.path.clone();
        let ended = self.state.end_stream(stream, Err(Error::Superseded { path }));
        if ended { Outcome::Superseded } else { Outcome::Retry }
    }
}
