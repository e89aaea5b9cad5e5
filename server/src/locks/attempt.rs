//! From the request to the lease: kazoo's Semaphore, step by step.
//!
//! Each step looks at what stands and does the next thing, so that after any trouble one simply goes on with the next
//! step. Requests are awaited to their end; what a stop cuts short is only ever waiting.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::board::{Board, Snapshot};
use super::id::Mark;
use super::node;
use super::queue::{self, Contender, NEAR};
use super::seat::{self, Seat, Trace};
use super::stream::Slot;
use super::{Interrupt, Shared, Stop};
use crate::error::Error;
use crate::types::{FencingToken, NodePath, Zxid};
use crate::zk::{self, CommitError, CreateMode, ErrorCode, EventKind, Fired, OneShot, Response, Session};

/// How long ZooKeeper is waited for at all by who would wait for the lock for ever and has no place yet, and by who only
/// tries and has lost the connection under way.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// How long to wait for the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    Forever,
    Until(Instant),
    /// Not at all.
    Try,
}

/// What was asked for.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) path: NodePath,
    pub(super) limit: u32,
    pub(super) wait: Wait,
    pub(super) name: Bytes,
    pub(super) mark: Mark,
}

/// A lease that was made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grant {
    pub(super) token: FencingToken,
    /// When the write was sent that made it: evidence of the session, as a heartbeat's is.
    pub(super) sent_at: Option<Instant>,
}

/// Where the contender stands.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    First,
    Behind(String),
    /// It is not in the queue.
    Gone,
}

/// What is known of one place in the queue. A new place, in another session for one, starts a new one of these.
#[derive(Debug)]
pub(super) struct Attempt {
    terms: Terms,
    slot: Arc<Slot>,
    pub(super) seat: Seat,
    board: Board,
    shown: watch::Receiver<Arc<Snapshot>>,
    /// The transaction that wrote the lock node's number when it was checked.
    checked: Option<Zxid>,
    /// A reading in which the contender stood.
    reading: Option<Arc<Snapshot>>,
    /// Fires when the contender is deleted.
    place: Option<OneShot>,
    /// The contender is the first, and stays it as long as it stands.
    first: bool,
    begun: Instant,
}

/// Finds a place in a session for an attempt.
pub(super) async fn start(shared: &Arc<Shared>, terms: &Terms, slot: &Arc<Slot>) -> Result<Attempt, Stop> {
    let bytes = seat::path_bytes(&terms.path);
    let patience = match terms.wait {
        Wait::Forever if slot.was_queued() => None,
        Wait::Forever => Instant::now().checked_add(PATIENCE),
        Wait::Until(deadline) => Some(deadline),
        Wait::Try => Some(Instant::now()),
    };
    let room = loop {
        if let Some(room) = shared.pool.room(bytes) {
            break room;
        }
        tokio::select! {
            biased;
            order = slot.ordered() => return Err(Stop::Ordered(order)),
            () = until(patience) => return Err(out_of_time(terms, slot)),
            () = shared.room_may_be_free() => {}
        }
    };
    let seat = Seat::new(room, &terms.path, &terms.mark);
    let board = shared.board(seat.owner(), &terms.path);
    let shown = board.shown();
    Ok(Attempt {
        terms: terms.clone(),
        slot: slot.clone(),
        seat,
        board,
        shown,
        checked: None,
        reading: None,
        place: None,
        first: false,
        begun: Instant::now(),
    })
}

impl Attempt {
    /// Queues, and takes the lease.
    pub(super) async fn grant(&mut self) -> Result<Grant, Stop> {
        loop {
            let trouble = match self.step().await {
                Ok(Some(grant)) => return Ok(grant),
                Ok(None) => continue,
                Err(trouble) => trouble,
            };
            match trouble {
                Interrupt::Stop(stop) => return Err(stop),
                Interrupt::Zk(error) => self.recover(error).await?,
            }
        }
    }

    /// Waits until it makes sense to go on.
    pub(super) async fn recover(&mut self, error: zk::Error) -> Result<(), Stop> {
        // What watches there were may be gone, and what was read is old.
        self.place = None;
        self.reading = None;
        match error {
            zk::Error::SessionExpired => return Err(Stop::Again),
            zk::Error::Refused(ErrorCode::Throttled) | zk::Error::NotSent | zk::Error::OutcomeUnknown => {}
            zk::Error::Refused(code) => return Err(Stop::Failed(node::refusal(code, &self.terms.path))),
            zk::Error::TooLarge(bytes) => {
                let cause = format!("a request of {bytes} bytes is over zookeeper's limit");
                return Err(Stop::Failed(Error::Internal { path: self.terms.path.clone(), cause }));
            }
        }
        let session = self.session();
        let again = async {
            // Connected all the same: too much was under way.
            if session.is_up() {
                seat::pause().await;
            }
            session.connected().await
        };
        match self.unless_stopped(again).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Stop::Again),
            Err(stop) => Err(stop),
        }
    }

    /// Waits for ZooKeeper, unless the attempt has to stop first.
    async fn unless_stopped<T>(&self, event: impl Future<Output = T>) -> Result<T, Stop> {
        let deadline = match self.terms.wait {
            Wait::Until(deadline) => Some(deadline),
            Wait::Forever if self.slot.was_queued() => None,
            Wait::Forever | Wait::Try => Some(self.begun + PATIENCE),
        };
        tokio::select! {
            biased;
            order = self.slot.ordered() => Err(Stop::Ordered(order)),
            value = event => Ok(value),
            () = until(deadline) => Err(out_of_time(&self.terms, &self.slot)),
        }
    }

    pub(super) fn session(&self) -> Session {
        self.seat.owner().session().clone()
    }

    async fn step(&mut self) -> Result<Option<Grant>, Interrupt> {
        if let Some(grant) = self.find_lease().await? {
            return Ok(Some(grant));
        }
        self.seat.find_contender().await?;
        self.enter().await?;
        let Some(contender) = self.seat.contender_path() else { return Ok(None) };
        let fresh = self.arrive(&contender).await?;
        if !self.first {
            match self.turn(contender.name(), fresh).await? {
                Turn::First => self.first = true,
                Turn::Behind(ahead) => {
                    self.announce();
                    self.wait_behind(&ahead).await?;
                    return Ok(None);
                }
                Turn::Gone => return self.place_gone().await.map(|()| None),
            }
            self.announce();
        }
        if self.wait_for_room().await? { self.take(&contender).await } else { Ok(None) }
    }

    /// Whether the multi that was not answered made the lease.
    async fn find_lease(&mut self) -> Result<Option<Grant>, Interrupt> {
        if self.seat.lease != Trace::Maybe {
            return Ok(None);
        }
        let (session, lease) = (self.session(), self.seat.lease_path());
        session.sync(&lease).await?;
        let Some(stat) = session.exists(&lease).await? else {
            self.seat.lease = Trace::None;
            // The contender may stand or not: it is deleted by the same multi alone, or by somebody else.
            return Ok(None);
        };
        self.seat.lease = Trace::Stands(self.seat.lease_name().to_owned());
        self.seat.contender = Trace::None;
        Ok(Some(Grant { token: FencingToken(stat.czxid), sent_at: None }))
    }

    /// Checks the lock node and takes a place in the queue, both at once.
    async fn enter(&mut self) -> Result<(), Interrupt> {
        let (session, path, limit) = (self.session(), self.terms.path.clone(), self.terms.limit);
        let checked = async {
            match self.checked {
                Some(zxid) => Ok(zxid),
                None => node::check(&session, &path, limit).await,
            }
        };
        if self.seat.contender != Trace::None {
            self.checked = Some(checked.await?);
            return Ok(());
        }
        let prefix = self.seat.contender_prefix();
        let create = zk::create(prefix.as_str(), self.terms.name.clone(), CreateMode::EphemeralSequential);
        let (checked, created) = futures_util::future::join(checked, self.seat.owner().commit(vec![create])).await;
        // First what stands now, then what is wrong.
        let entered = match created {
            Ok(committed) => match committed.parts.into_iter().next() {
                Some(Response::Created { path, .. }) => {
                    self.seat.contender = Trace::Stands(NodePath::trusted(path).name().to_owned());
                    Ok(())
                }
                _ => {
                    self.seat.contender = Trace::Maybe;
                    Err(zk::Error::OutcomeUnknown.into())
                }
            },
            Err(CommitError::Part { code: ErrorCode::NoNode, .. }) => Ok(()),
            Err(CommitError::Part { code, .. }) => Err(node::refusal(code, &path).into()),
            Err(CommitError::FenceMoved) => Err(zk::Error::NotSent.into()),
            Err(CommitError::Zk(error)) => {
                if error.is_unknown() {
                    self.seat.contender = Trace::Maybe;
                }
                Err(error.into())
            }
        };
        self.checked = Some(checked?);
        if self.seat.contender == Trace::None && entered.is_ok() {
            node::ensure_queue(&session, &path).await?;
        }
        entered
    }

    /// Has us told when the contender is deleted by others, and gets a reading, unless there are both. Whether the
    /// reading began after this call.
    async fn arrive(&mut self, contender: &NodePath) -> Result<bool, Interrupt> {
        if self.place.is_some() && self.reading.is_some() {
            return Ok(false);
        }
        let session = self.session();
        let (placed, reading) = futures_util::future::join(session.watch_exists(contender), self.board.look()).await;
        let (stat, watch) = placed?;
        if stat.is_none() {
            self.seat.contender = Trace::None;
            return Err(Stop::Removed.into());
        }
        self.place = Some(watch);
        let reading = reading?;
        self.check_reading(&reading).await?;
        self.reading = Some(reading);
        Ok(true)
    }

    /// The contender was found gone; the watch on it says by whom.
    async fn place_gone(&mut self) -> Result<(), Interrupt> {
        match self.place.take().map(|mut watch| watch.try_recv()) {
            Some(Ok(fired)) => self.place_fired(fired).await,
            // The next step looks again.
            _ => Ok(()),
        }
    }

    /// What the watch on the contender means when it has fired.
    async fn place_fired(&mut self, fired: Fired) -> Result<(), Interrupt> {
        self.place = None;
        let Some(contender) = self.seat.contender_path() else { return Ok(()) };
        match fired {
            Fired::ConnectionLost => Err(zk::Error::NotSent.into()),
            Fired::Event(kind) => {
                // Whoever releases through Rollcall writes it before deleting it.
                let (stat, watch) = self.session().watch_exists(&contender).await?;
                if stat.is_some() {
                    self.place = Some(watch);
                    return Ok(());
                }
                self.seat.contender = Trace::None;
                Err(if kind == EventKind::DataChanged { Stop::Released } else { Stop::Removed }.into())
            }
        }
    }

    /// Who is the next ahead. Nobody ever comes in ahead of one who waits, so those that an older reading of the same
    /// session has ahead are all that can be.
    async fn turn(&mut self, contender: &str, fresh: bool) -> Result<Turn, Interrupt> {
        if !fresh {
            let recent = self.board.recent();
            let known = if recent.queue.ahead_of(contender).is_some() { Some(recent) } else { self.reading.clone() };
            if let Some(known) = known
                && let Some(ahead) = known.queue.ahead_of(contender)
                && ahead.len() <= NEAR
            {
                self.check_reading(&known).await?;
                self.reading = Some(known.clone());
                return self.look_ahead(ahead).await;
            }
            let reading = self.board.look().await?;
            self.check_reading(&reading).await?;
            self.reading = Some(reading);
        }
        let ahead = self.reading.as_ref().and_then(|reading| reading.queue.ahead_of(contender));
        Ok(match ahead {
            None => Turn::Gone,
            Some([]) => Turn::First,
            Some([.., ahead]) => Turn::Behind(ahead.name.clone()),
        })
    }

    async fn look_ahead(&self, ahead: &[Contender]) -> Result<Turn, Interrupt> {
        if ahead.is_empty() {
            return Ok(Turn::First);
        }
        let paths: Vec<_> = ahead.iter().map(|contender| self.seat.queue().join(&contender.name)).collect();
        let reads = self.session().get_many(paths.iter().map(NodePath::as_str)).await?;
        let next = reads.iter().rposition(|read| !matches!(read, Ok(None)));
        Ok(next.map_or(Turn::First, |index| Turn::Behind(ahead[index].name.clone())))
    }

    /// What a reading says of the lock node.
    async fn check_reading(&mut self, reading: &Snapshot) -> Result<(), Interrupt> {
        if reading.strays {
            return Err(node::not_a_lock(&self.terms.path, "it has durable children that are no leases"));
        }
        self.check_number(reading.lock).await
    }

    async fn check_number(&mut self, written: Option<Zxid>) -> Result<(), Interrupt> {
        if written.is_none() || written != self.checked {
            self.checked = Some(node::check(&self.session(), &self.terms.path, self.terms.limit).await?);
        }
        Ok(())
    }

    /// Tells the client its place, as the last reading has it. Who only tries is told one place: that before the lock.
    fn announce(&self) {
        if self.terms.wait != Wait::Try {
            self.tell_place();
        }
    }

    fn tell_place(&self) {
        let (Some(contender), Some(reading)) = (self.seat.contender_path(), &self.reading) else { return };
        if let Some(ahead) = reading.queue.ahead_of(contender.name()) {
            let ahead = if self.first { 0 } else { ahead.len() };
            let position = u32::try_from(ahead.saturating_add(1)).unwrap_or(u32::MAX);
            self.slot.queued(position, reading.holders.clone());
        }
    }

    /// Waits until the one that is next ahead is gone.
    async fn wait_behind(&mut self, ahead: &str) -> Result<(), Interrupt> {
        let ahead = self.seat.queue().join(ahead);
        let (stat, watch) = self.session().watch_exists(&ahead).await?;
        if stat.is_none() {
            return Ok(());
        }
        let waited = self.wait(watch).await;
        if waited.is_err() {
            self.session().watches().forget_closed(ahead.as_str());
        }
        waited
    }

    /// Waits, as the first of the queue, until a lease is free. `false`: look again.
    async fn wait_for_room(&mut self) -> Result<bool, Interrupt> {
        let path = self.terms.path.clone();
        if let Some(reading) = &self.reading
            && reading.lock.is_some()
            && reading.lock == self.checked
            && reading.queue.names().next() == self.seat.contender_path().as_ref().map(NodePath::name)
            && queue::may_take(self.terms.limit, reading.leases)
        {
            // While we were the first there was room, and only the first takes any.
            return Ok(true);
        }
        let (children, watch) = self.session().watch_children(&path).await?;
        let Some((names, stat)) = children else {
            self.checked = None;
            self.check_number(None).await?;
            return Ok(false);
        };
        self.check_number(Some(Zxid(stat.mzxid))).await?;
        if queue::may_take(self.terms.limit, names.len()) {
            drop(watch);
            self.session().watches().forget_closed(path.as_str());
            return Ok(true);
        }
        let waited = self.wait(watch).await;
        self.session().watches().forget_closed(path.as_str());
        waited.map(|()| false)
    }

    /// Waits for a watch, and tells the client what changes meanwhile.
    async fn wait(&mut self, mut watch: OneShot) -> Result<(), Interrupt> {
        enum Woken {
            Watch(Fired),
            Place(Fired),
            Shown,
        }
        loop {
            let woken = {
                let Some(place) = &mut self.place else { return Ok(()) };
                let shown = &mut self.shown;
                let event = async {
                    tokio::select! {
                        fired = &mut watch => Woken::Watch(fired.unwrap_or(Fired::ConnectionLost)),
                        fired = place => Woken::Place(fired.unwrap_or(Fired::ConnectionLost)),
                        Ok(()) = shown.changed() => Woken::Shown,
                    }
                };
                let stopped = stopping(&self.slot, self.terms.wait);
                tokio::select! {
                    biased;
                    stop = stopped => return Err(stop.into()),
                    woken = event => woken,
                }
            };
            match woken {
                Woken::Watch(Fired::Event(_)) => return Ok(()),
                Woken::Watch(Fired::ConnectionLost) => return Err(zk::Error::NotSent.into()),
                Woken::Place(fired) => self.place_fired(fired).await?,
                Woken::Shown => {
                    let shown = self.shown.borrow_and_update().clone();
                    let here = |contender: NodePath| shown.queue.ahead_of(contender.name()).is_some();
                    if self.seat.contender_path().is_some_and(here) {
                        self.reading = Some(shown);
                        self.announce();
                    }
                }
            }
        }
    }

    /// Takes the lease. `None`: look again.
    async fn take(&mut self, contender: &NodePath) -> Result<Option<Grant>, Interrupt> {
        self.certain(None).await?;
        self.tell_place();
        let lease = self.seat.lease_path();
        let ops = vec![
            zk::delete(contender.as_str(), -1),
            zk::create(lease.as_str(), self.terms.name.clone(), CreateMode::Ephemeral),
        ];
        match self.seat.owner().commit(ops).await {
            Ok(committed) => {
                self.seat.contender = Trace::None;
                self.seat.lease = Trace::Stands(self.seat.lease_name().to_owned());
                self.place = None;
                self.session().watches().forget_closed(contender.as_str());
                Ok(Some(Grant { token: FencingToken(committed.zxid.0), sent_at: Some(committed.sent_at) }))
            }
            Err(CommitError::Part { index: 0, code: ErrorCode::NoNode }) => self.place_gone().await.map(|()| None),
            Err(CommitError::Part { index: 1, code: ErrorCode::NoNode }) => {
                self.checked = None;
                Ok(None)
            }
            Err(CommitError::Part { code, .. }) => Err(node::refusal(code, &self.terms.path).into()),
            Err(CommitError::FenceMoved) => Err(zk::Error::NotSent.into()),
            Err(CommitError::Zk(error)) => {
                if error.is_unknown() {
                    self.seat.lease = Trace::Maybe;
                }
                Err(error.into())
            }
        }
    }

    /// Waits until the session has just answered a write: this one, or a heartbeat.
    pub(super) async fn certain(&self, sent_at: Option<Instant>) -> Result<(), Interrupt> {
        let owner = self.seat.owner();
        let mut evidence = owner.evidence();
        loop {
            let last = *evidence.borrow_and_update();
            let last = sent_at.map_or(last, |sent_at| sent_at.max(last));
            if Instant::now() < owner.certain_until(last) {
                return Ok(());
            }
            if self.unless_stopped(evidence.changed()).await?.is_err() {
                return Err(Stop::Again.into());
            }
        }
    }

    /// Gives up the watches, and hands over what may be left in ZooKeeper.
    pub(super) fn leave(self) -> Seat {
        let Self { seat, place, .. } = self;
        let contender = seat.contender_path().filter(|_| place.is_some());
        drop(place);
        if let Some(contender) = contender {
            seat.owner().session().watches().forget_closed(contender.as_str());
        }
        seat
    }

    /// What holding needs to know too.
    pub(super) fn parts(&self) -> (&Terms, &Slot) {
        (&self.terms, &self.slot)
    }

    /// Who keeps the lock from us: the holders last told, or else the first of the queue, who is about to take it.
    pub(super) async fn in_the_way(&self) -> Vec<String> {
        let Some(reading) = &self.reading else { return self.slot.holders() };
        let holders = reading.holders.to_vec();
        let Some(first) = reading.queue.names().next().filter(|_| holders.is_empty()) else { return holders };
        let first = self.seat.queue().join(first);
        match self.session().get(&first).await {
            Ok(Some(read)) => vec![contender_name(&read.data)],
            _ => holders,
        }
    }
}

/// What it means that the time is over while ZooKeeper is waited for.
fn out_of_time(terms: &Terms, slot: &Slot) -> Stop {
    match terms.wait {
        Wait::Until(_) if slot.was_queued() => Stop::Busy,
        _ => Stop::Failed(Error::BackendUnavailable),
    }
}

/// The name in a contender's data. Kazoo's Semaphore writes its own as Python shows bytes: `b'name'`.
pub(super) fn contender_name(data: &[u8]) -> String {
    let text = String::from_utf8_lossy(data);
    let inner = text.strip_prefix("b'").and_then(|rest| rest.strip_suffix('\''));
    inner.unwrap_or(&text).to_owned()
}

async fn stopping(slot: &Slot, wait: Wait) -> Stop {
    let deadline = match wait {
        Wait::Forever => None,
        Wait::Until(deadline) => Some(deadline),
        Wait::Try => return Stop::Busy,
    };
    tokio::select! {
        biased;
        order = slot.ordered() => Stop::Ordered(order),
        () = until(deadline) => Stop::Busy,
    }
}

/// Sleeps until then; without a time, for ever.
pub(super) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
