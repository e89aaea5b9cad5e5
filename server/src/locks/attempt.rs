//! From the request to the lease: kazoo's Semaphore, step by step.
//!
//! Each step looks at what stands and does the next thing, so that after any trouble one simply goes on with the next
//! step. Requests are awaited to their end; what a stop cuts short is only ever waiting.
//!
//! A lock with which nobody has to do is taken in one transaction: see [`Attempt::take_vacant`].

use std::sync::Arc;

use tokio::time::Instant;

use super::board::Board;
use super::group::{Entered, Entrant};
use super::heir::{Bequest, Heir};
use super::hold::Sight;
use super::line::{Room, Turn};
use super::memory::{Company, Vacancy};
use super::queue::{self, Digits};
use super::record::record_path;
use super::seat::{self, Seat, Trace};
use super::slot::Slot;
use super::terms::{Grant, PATIENCE, Terms, Wait, out_of_time, until};
use super::{Interrupt, Shared, Stop, hold, node};
use crate::budget::Resource;
use crate::clock;
use crate::error::Error;
use crate::refusal;
use crate::types::{FencingToken, NodePath, Zxid};
use crate::zk::{self, CommitError, ErrorCode, NoRoom, OneShot, Request, Response, Session};

/// What is known of one place in the queue. A new place, in another session for one, starts a new one of these.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) shared: Arc<Shared>,
    pub(super) terms: Terms,
    pub(super) slot: Arc<Slot>,
    pub(super) seat: Seat,
    approach: Approach,
    /// Of who waits; whoever takes the lock at once needs none.
    pub(super) board: Option<Board>,
    /// The transaction that wrote the lock node's number when it was checked.
    pub(super) checked: Option<Zxid>,
    /// The transaction that had last written the queue's node when the contender was last seen to stand.
    pub(super) queue_written: Option<Zxid>,
    /// One that was ahead, and whose end was seen.
    pub(super) gone: Option<String>,
    /// The contender is the first, and stays it as long as it stands; one whose digits come [late](Digits::Late), until it
    /// looks again.
    pub(super) first: bool,
    /// Of the first: leases that are released here may pass to it.
    pub(super) heir: Option<Heir>,
    /// Of who took the lock at once: how it is when it is given back, unless somebody comes.
    vacancy: Option<Vacancy>,
    begun: Instant,
}

/// How to go about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Approach {
    /// Perhaps nobody holds the lock or waits for it.
    AtOnce,
    InLine,
}

/// A lease that was made, and what the first look at it has shown, if it was answered.
type Granted = (Grant, Option<Sight>);

/// What came of a transaction that was to make a lease.
enum Made {
    Lease(Granted),
    /// The operation with this index was refused.
    Refused(usize, ErrorCode),
}

/// Finds a place in a session for an attempt.
pub(super) async fn start(shared: &Arc<Shared>, terms: &Terms, slot: &Arc<Slot>) -> Result<Attempt, Stop> {
    let patience = match terms.wait {
        Wait::Forever if slot.was_queued() => None,
        Wait::Forever => Instant::now().checked_add(PATIENCE),
        Wait::Until(deadline) => Some(deadline),
        Wait::Try => Some(Instant::now()),
    };
    let room = loop {
        match shared.room(&terms.path) {
            Ok(room) => break room,
            // Those who had a place before wait for another.
            Err(NoRoom::Full) if !slot.was_queued() => {
                return Err(Stop::Failed(Resource::PathBytes.exceeded(shared.pool.capacity())));
            }
            Err(_) => {}
        }
        tokio::select! {
            biased;
            _ = slot.ordered() => return Err(Stop::Ordered),
            () = until(patience) => return Err(out_of_time(terms, slot)),
            () = shared.room_may_be_free() => {}
        }
    };
    let seat = Seat::new(room, &shared.pool, &terms.path, &terms.mark, terms.ttl);
    Ok(Attempt {
        shared: shared.clone(),
        terms: terms.clone(),
        slot: slot.clone(),
        seat,
        approach: Approach::AtOnce,
        board: None,
        checked: None,
        queue_written: None,
        gone: None,
        first: false,
        heir: None,
        vacancy: None,
        begun: Instant::now(),
    })
}

impl Attempt {
    /// Queues, takes the lease, and makes sure that it may be told. With it, a watch on it.
    pub(super) async fn take(&mut self) -> Result<(Grant, OneShot), Stop> {
        let (grant, seen) = self.grant().await?;
        (self.heir, self.board) = (None, None);
        let watch = hold::confirm(self, grant, seen).await?;
        Ok((grant, watch))
    }

    async fn grant(&mut self) -> Result<Granted, Stop> {
        loop {
            let trouble = match self.step().await {
                Ok(Some(granted)) => return Ok(granted),
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
        match error {
            zk::Error::SessionExpired => return Err(Stop::Again),
            zk::Error::NotSent | zk::Error::OutcomeUnknown => {}
            zk::Error::Refused(code) => return Err(Stop::Failed(refusal::refused(&self.terms.path, code))),
            zk::Error::TooLarge(_) | zk::Error::AnswerTooLarge(_) => {
                let cause = error.to_string();
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
            _ = self.slot.ordered() => Err(Stop::Ordered),
            value = event => Ok(value),
            () = until(deadline) => Err(out_of_time(&self.terms, &self.slot)),
        }
    }

    pub(super) fn session(&self) -> Session {
        self.seat.owner().session().clone()
    }

    async fn step(&mut self) -> Result<Option<Granted>, Interrupt> {
        // Of very many that are cancelled at once most have not begun.
        if !self.slot.is_wanted() {
            return Err(Stop::Ordered.into());
        }
        if let Some(grant) = self.find_lease().await? {
            return Ok(Some((grant, None)));
        }
        self.seat.find_contender().await?;
        if self.approach == Approach::AtOnce {
            self.approach = Approach::InLine;
            if !self.shared.is_waited_for(&self.terms.path)
                && let Some(granted) = self.take_at_once().await?
            {
                return Ok(Some(granted));
            }
        }
        self.enter().await?;
        let Some(contender) = self.seat.contender_path() else { return Ok(None) };
        let digits = Digits::of(contender.name());
        if digits == Digits::RunOut {
            return self.wait_for_new_digits().await.map(|()| None);
        }
        if !self.first || digits != Digits::Sure {
            match self.turn(contender.name(), digits).await? {
                Turn::First => self.first = true,
                Turn::Behind(ahead) => {
                    (self.first, self.heir) = (false, None);
                    self.announce();
                    self.wait_behind(&ahead).await?;
                    return Ok(None);
                }
                Turn::Gone => {
                    self.look_for(&contender).await?;
                    seat::pause().await;
                    return Ok(None);
                }
            }
        }
        self.expect_a_bequest();
        let room = match self.heir.as_mut().and_then(Heir::take_bequest) {
            Some(bequest) => Room::Left(bequest),
            None => self.wait_for_room().await?,
        };
        match room {
            Room::Unclear => Ok(None),
            Room::Free => self.take_lease(&contender, None).await,
            Room::Left(bequest) => {
                // One bequest, one heir.
                self.heir = None;
                self.take_lease(&contender, Some(bequest)).await
            }
        }
    }

    /// From now on a lease that is released here may pass to us.
    pub(super) fn expect_a_bequest(&mut self) {
        if self.heir.is_none() {
            self.heir = self.shared.heirs.appoint(&self.terms.path);
        }
    }

    /// The board of this session, started if there is none.
    pub(super) fn board(&mut self) -> &mut Board {
        let (shared, seat, path) = (&self.shared, &self.seat, &self.terms.path);
        self.board.get_or_insert_with(|| shared.board(seat.owner(), path))
    }

    /// Takes a lock with which nobody has to do. `None`: it has to be waited for.
    async fn take_at_once(&mut self) -> Result<Option<Granted>, Interrupt> {
        let left = self.shared.vacancies.take(&self.terms.path);
        if let Some(vacancy) = left.filter(|left| left.company == Company::None)
            && let Some(written) = self.number()
        {
            self.checked = Some(written);
            if let Some(granted) = self.take_vacant(vacancy).await? {
                return Ok(Some(granted));
            }
        }
        match self.find_vacant(left).await? {
            Some(vacancy) => self.take_vacant(vacancy).await,
            None => Ok(None),
        }
    }

    /// The transaction that wrote the lock node's number, if that was ours when it was last looked at. Whether that has
    /// changed is seen before the lock is told as held, if not before.
    fn number(&self) -> Option<Zxid> {
        let number = self.shared.numbers.get(&self.terms.path)?;
        (number.limit == self.terms.limit).then_some(number.written)
    }

    /// Looks whether nobody has to do with the lock. `left`: how it was when it was last given back here.
    async fn find_vacant(&mut self, left: Option<Vacancy>) -> Result<Option<Vacancy>, Interrupt> {
        let (session, path, queue) = (self.session(), self.terms.path.clone(), self.seat.queue().clone());
        // Polled in this order, sent in this order: the queue is never read later than the leases.
        let looks = futures_util::future::join(session.children(&queue), session.children(&path));
        let (checked, (contenders, leases)) = futures_util::future::join(self.check_node(), looks).await;
        let checked = checked?;
        let (Some((contenders, stat)), Some((leases, lock))) = (contenders?, leases?) else { return Ok(None) };
        if contenders.is_empty() && queue::is_worn_out(&stat) {
            self.renew_queue().await?;
            return Ok(None);
        }
        if !contenders.is_empty() || !leases.is_empty() || Zxid(lock.mzxid) != checked {
            return Ok(None);
        }
        let Some(next) = queue::next_digits(&stat) else { return Ok(None) };
        let company = if left.is_some_and(|left| left.next == next) { Company::None } else { Company::Perhaps };
        Ok(Some(Vacancy { next, company }))
    }

    /// Takes the lock in one transaction: [create(contender), delete(contender), create(lease)]. `None`: somebody has come.
    ///
    /// The contender's digits, of which the delete has to know beforehand, count the contenders that there ever were. So
    /// it succeeds only if none has come since there was none: the contender is the first, and no lease can have been
    /// taken since by another, for which a contender is needed.
    async fn take_vacant(&mut self, vacancy: Vacancy) -> Result<Option<Granted>, Interrupt> {
        let contender = self.seat.contender_with(vacancy.next);
        let mut ops = vec![self.seat.enter(self.terms.name.clone())];
        ops.extend(self.seat.grant(&contender, self.terms.name.clone()));
        match self.make_lease(ops, false).await? {
            Made::Lease(granted) => {
                self.vacancy = vacancy.after();
                Ok(Some(granted))
            }
            Made::Refused(_, ErrorCode::NoNode) => Ok(None),
            Made::Refused(_, code) => Err(refusal::refused(&self.terms.path, code).into()),
        }
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
        self.tell_place();
        self.seat.lease = Trace::Stands(self.seat.lease_name().to_owned());
        self.seat.contender = Trace::None;
        Ok(Some(Grant { token: FencingToken(stat.czxid) }))
    }

    /// Checks the lock node and takes a place in the queue, both at once.
    async fn enter(&mut self) -> Result<(), Interrupt> {
        let (session, path) = (self.session(), self.terms.path.clone());
        self.checked = self.checked.or_else(|| self.number());
        if self.seat.contender != Trace::None {
            if self.checked.is_none() {
                self.check_node().await?;
            }
            return Ok(());
        }
        let create = self.seat.enter(self.terms.name.clone());
        if self.checked.is_some() && self.enter_with_a_change(&create).await? {
            return Ok(());
        }
        let entering = self.seat.owner().clone();
        let entering = entering.commit(vec![create]);
        let (checked, created) = match self.checked {
            Some(written) => (Ok(written), entering.await),
            None => futures_util::future::join(self.check_node(), entering).await,
        };
        // First what stands now, then what is wrong.
        let entered = match created {
            Ok(committed) => self.has_entered(committed.parts.into_iter().next()),
            Err(CommitError::Part { code: ErrorCode::NoNode, .. }) => Ok(()),
            Err(CommitError::Part { code, .. }) => Err(refusal::refused(&path, code).into()),
            Err(CommitError::FenceMoved) => Err(zk::Error::NotSent.into()),
            Err(CommitError::Zk(error)) => {
                if error.is_unknown() {
                    self.seat.contender = Trace::Maybe;
                }
                Err(error.into())
            }
        };
        checked?;
        if self.seat.contender == Trace::None && entered.is_ok() {
            node::ensure_queue(&session, &path).await?;
        }
        entered
    }

    /// Takes a place in the queue together with the lock's next change of hands, if that is near. `false`: it was not.
    async fn enter_with_a_change(&mut self, create: &Request) -> Result<bool, Interrupt> {
        let deadline = match self.terms.wait {
            Wait::Forever => None,
            Wait::Until(deadline) => Some(deadline),
            // Not kept waiting.
            Wait::Try => return Ok(false),
        };
        let session = self.seat.owner().id();
        let response = match self.shared.groups.enter(&self.terms.path, session, create, deadline).await {
            Entered::Done(response) => Some(response),
            Entered::Unknown => None,
            Entered::No => return Ok(false),
        };
        self.has_entered(response).map(|()| true)
    }

    /// Reads the answer to the creation of the contender.
    fn has_entered(&mut self, response: Option<Response>) -> Result<(), Interrupt> {
        let Some(Response::Created { path, .. }) = response else {
            self.seat.contender = Trace::Maybe;
            return Err(zk::Error::OutcomeUnknown.into());
        };
        self.seat.contender = Trace::Stands(NodePath::trusted(path).name().to_owned());
        Ok(())
    }

    /// Takes the lease, in the place of one that is left to us if there is one. `None`: look again.
    async fn take_lease(
        &mut self,
        contender: &NodePath,
        bequest: Option<Bequest>,
    ) -> Result<Option<Granted>, Interrupt> {
        let mut ops: Vec<_> = bequest.iter().map(|bequest| zk::delete(bequest.lease.as_str(), -1)).collect();
        let left = ops.len();
        ops.extend(self.seat.grant(contender, self.terms.name.clone()));
        self.tell_place();
        let all = ops.len();
        match self.make_lease(ops, bequest.is_some()).await? {
            Made::Lease(granted) => {
                if let Some(bequest) = bequest {
                    bequest.accept();
                }
                Ok(Some(granted))
            }
            // One that would have entered with it: now by itself, and so do we.
            Made::Refused(index, _) if index >= all => Ok(None),
            // Somebody else has deleted it.
            Made::Refused(index, ErrorCode::NoNode) if index < left => Ok(None),
            Made::Refused(index, ErrorCode::NoNode) if index == left => self.look_for(contender).await.map(|()| None),
            Made::Refused(index, ErrorCode::NoNode) if index == left + 1 => {
                self.checked = None;
                Ok(None)
            }
            // Somebody has deleted the node below which records are.
            Made::Refused(_, ErrorCode::NoNode) => {
                let record = record_path(self.seat.lease_name());
                self.session().ensure_parents(&record).await.map_err(|error| node::refused(error, &self.terms.path))?;
                Ok(None)
            }
            Made::Refused(_, code) => Err(refusal::refused(&self.terms.path, code).into()),
        }
    }

    /// Sends a transaction that makes the lease, and looks at that. `changes_hands`: others may enter with it.
    async fn make_lease(&mut self, mut ops: Vec<Request>, changes_hands: bool) -> Result<Made, Interrupt> {
        self.certain().await?;
        let (session, lease, path) = (self.session(), self.seat.lease_path(), self.terms.path.clone());
        let own = ops.len();
        let entrants = if changes_hands { self.shared.groups.take(&path, session.id()) } else { Vec::new() };
        ops.extend(entrants.iter().map(Entrant::request));
        // Sent already, before the look.
        let made = self.seat.owner().commit_now(&ops);
        let (made, seen) = futures_util::future::join(made, hold::look(&session, &path, &lease)).await;
        match made {
            Ok(committed) => {
                for (entrant, response) in entrants.into_iter().zip(committed.parts.into_iter().skip(own)) {
                    entrant.tell(Entered::Done(response));
                }
                if changes_hands {
                    self.shared.groups.changed(&path, session.id());
                }
                if let (Some(board), Trace::Stands(contender)) = (&self.board, &self.seat.contender) {
                    board.granted(contender);
                }
                self.seat.contender = Trace::None;
                self.seat.lease = Trace::Stands(self.seat.lease_name().to_owned());
                let grant = Grant { token: FencingToken(committed.zxid.0) };
                Ok(Made::Lease((grant, seen.ok())))
            }
            Err(error) => {
                let is_unknown = matches!(error, CommitError::Zk(error) if error.is_unknown());
                if is_unknown {
                    self.seat.lease = Trace::Maybe;
                } else {
                    entrants.into_iter().for_each(|entrant| entrant.tell(Entered::No));
                }
                match error {
                    CommitError::Part { index, code } => Ok(Made::Refused(index, code)),
                    CommitError::FenceMoved => Err(zk::Error::NotSent.into()),
                    CommitError::Zk(error) => Err(error.into()),
                }
            }
        }
    }

    /// Waits until the session has just answered a write.
    pub(super) async fn certain(&self) -> Result<(), Interrupt> {
        let owner = self.seat.owner();
        let mut evidence = owner.evidence();
        loop {
            let last = *evidence.borrow_and_update();
            if clock::now() < owner.certain_until(last) {
                return Ok(());
            }
            if self.unless_stopped(evidence.changed()).await?.is_err() {
                return Err(Stop::Again.into());
            }
        }
    }

    /// Hands over what may be left in ZooKeeper, and how the lock is when that is gone.
    pub(super) fn leave(self) -> (Seat, Option<Vacancy>) {
        (self.seat, self.vacancy)
    }

    /// What holding needs to know too.
    pub(super) fn parts(&self) -> (&Terms, &Slot) {
        (&self.terms, &self.slot)
    }
}
