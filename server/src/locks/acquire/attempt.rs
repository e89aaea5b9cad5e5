//! One attempt to take a lock: carries out the steps that [`plan`](super::plan) decides on.
//!
//! An attempt has one place in one session. When the session ends, a new attempt begins, with another place. Requests
//! are awaited to their end, and only waits are cut short, so that an attempt always knows which of its nodes may
//! exist.

use std::sync::Arc;

use tokio::time::Instant;

use super::enqueue;
use super::enqueue_batcher::EnqueueBatcher;
use super::fast_path::{self, Vacancy};
use super::grant::{self, Confirmed, GrantResult, Granted};
use super::handoff::{HandoffOffer, HandoffRecipient, Handoffs};
use super::hints::{Hints, Rivals, VacancyHint};
use super::plan::{
    GrantRefusal, Knowledge, LeaseCount, LockNodeCheck, LockStep, QueuePlace, RecentReading, grant_refusal,
    lock_node_after_read, next_step, place_in, place_later,
};
use super::position;
use super::wait::{self, NodeWatch, Waited};
use crate::clock;
use crate::error::Error;
use crate::locks::outcome::{Outcome, StepError};
use crate::locks::recipe::contenders::contender_name;
use crate::locks::recipe::lease_observation::LeaseObservation;
use crate::locks::recipe::lease_record::record_path;
use crate::locks::recipe::lock_node;
use crate::locks::recipe::own_nodes::{NodeState, OwnNodes};
use crate::locks::recipe::queue_reader::{QueueReader, QueueSnapshot};
use crate::locks::recipe::queue_readers::QueueReaders;
use crate::locks::request::{Terms, Wait};
use crate::locks::stream::state::AcquisitionState;
use crate::locks::timing::pause;
use crate::refusal;
use crate::types::{FencingToken, NodePath, Zxid};
use crate::zk::{self, ErrorCode, EventKind, OneShot, Pool, Session};

/// The parts of the replica that all attempts share.
#[derive(Debug)]
pub(crate) struct AcquireContext {
    pub(crate) pool: Pool,
    pub(crate) readers: QueueReaders,
    pub(crate) handoffs: Handoffs,
    pub(crate) batcher: EnqueueBatcher,
    pub(crate) hints: Hints,
    /// Whether a lock that is made gets a record, by which it is found when no client uses it any more.
    pub(crate) records: bool,
}

/// One attempt and its knowledge.
#[derive(Debug)]
pub(crate) struct Attempt {
    context: Arc<AcquireContext>,
    terms: Terms,
    state: Arc<AcquisitionState>,
    nodes: OwnNodes,
    begun: Instant,
    /// Whether the short cut was not tried yet.
    is_new: bool,
    lock_node: LockNodeCheck,
    has_strays: bool,
    place: QueuePlace,
    leases: LeaseCount,
    /// `None` until the attempt looks at the queue.
    reader: Option<QueueReader>,
    /// The transaction that had last written the queue's node when the contender was last seen to exist.
    queue_written: Option<Zxid>,
    /// A contender that was ahead, and whose end was seen.
    gone: Option<String>,
    /// On the contender next ahead, or on the leases.
    watch: Option<NodeWatch>,
    /// Set for the first contender, and for one that is most likely the first: it may be offered a lease.
    recipient: Option<HandoffRecipient>,
    offer: Option<HandoffOffer>,
    /// Set if the attempt took the short cut: the vacancy that it leaves behind, unless another contender comes.
    vacancy: Option<VacancyHint>,
}

impl Attempt {
    /// Reserves a path in a session for an attempt.
    pub(crate) async fn start(
        context: &Arc<AcquireContext>,
        terms: &Terms,
        state: &Arc<AcquisitionState>,
    ) -> Result<Self, Outcome> {
        let reservation = wait::for_reservation(&context.pool, &context.readers, terms, state).await?;
        Ok(Self {
            context: context.clone(),
            terms: terms.clone(),
            state: state.clone(),
            nodes: OwnNodes::new(reservation, &context.pool, &terms.path, &terms.mark, terms.ttl),
            begun: Instant::now(),
            is_new: true,
            lock_node: LockNodeCheck::Unread,
            has_strays: false,
            place: QueuePlace::Unknown,
            leases: LeaseCount::Unknown,
            reader: None,
            queue_written: None,
            gone: None,
            watch: None,
            recipient: None,
            offer: None,
            vacancy: None,
        })
    }

    /// Takes the lease, and makes sure that the client may be told. Returns a watch on the lease as well.
    pub(crate) async fn take(&mut self) -> Result<(FencingToken, OneShot), Outcome> {
        let Granted { token, mut seen } = self.grant().await?;
        (self.watch, self.recipient, self.offer, self.reader) = (None, None, None, None);
        loop {
            match self.try_confirm(token, seen.take()).await {
                Ok(watch) => return Ok((token, watch)),
                Err(StepError::End(outcome)) => return Err(outcome),
                Err(StepError::Zk(error)) => self.recover(error).await?,
            }
        }
    }

    async fn grant(&mut self) -> Result<Granted, Outcome> {
        loop {
            let step = self.next_step();
            match self.carry_out(step).await {
                Ok(Some(granted)) => return Ok(granted),
                Ok(None) => {}
                Err(StepError::End(outcome)) => return Err(outcome),
                Err(StepError::Zk(error)) => {
                    self.look_again();
                    self.recover(error).await?;
                }
            }
        }
    }

    fn next_step(&mut self) -> LockStep {
        self.is_new = self.is_new && !self.context.readers.is_waited_for(&self.terms.path);
        if !self.is_new && self.lock_node == LockNodeCheck::Unread {
            self.lock_node = self.hinted_limit().map_or(LockNodeCheck::Unread, LockNodeCheck::Fits);
        }
        let is_checked = matches!(self.lock_node, LockNodeCheck::Fits(_)) && self.nodes.lease == NodeState::Absent;
        if self.place == QueuePlace::First && is_checked && self.offer.is_none() {
            self.expect_handoff();
            let offer = self.recipient.as_mut().and_then(HandoffRecipient::try_take);
            self.accept(offer);
        }
        let recent = position::last_reading(self.reader.as_ref(), &self.nodes.contender)
            .map(|(reading, ahead)| RecentReading { ahead, lock: reading.lock, leases: reading.leases });
        let known = Knowledge {
            is_wanted: self.state.is_wanted(),
            wait: self.terms.wait,
            limit: self.terms.limit,
            contender: &self.nodes.contender,
            lease: &self.nodes.lease,
            may_be_vacant: self.is_new,
            lock_node: self.lock_node,
            has_strays: self.has_strays,
            place: &self.place,
            recent,
            leases: self.leases,
            is_offered: self.offer.is_some(),
        };
        next_step(&known, Instant::now())
    }

    /// Carries out a step and updates the knowledge. Returns the lease once it is made.
    async fn carry_out(&mut self, step: LockStep) -> Result<Option<Granted>, StepError> {
        match step {
            LockStep::End(outcome) => return Err(outcome.into()),
            LockStep::RefuseStrays => {
                return Err(lock_node::not_a_lock(&self.terms.path, "it has durable children that are no leases"));
            }
            LockStep::FindLease => return Ok(grant::find_lease(&mut self.nodes).await?),
            LockStep::FindContender => self.nodes.find_contender().await?,
            LockStep::TakeIfVacant => {
                self.is_new = false;
                return self.take_if_vacant().await;
            }
            LockStep::Enqueue { check_limit, may_join_handoff } => self.enqueue(check_limit, may_join_handoff).await?,
            LockStep::CheckLimit => self.check_limit().await?,
            LockStep::AwaitNewDigits => {
                let reader = self.reader().clone();
                wait::for_new_digits(&mut self.nodes, &reader, &self.terms, &self.state).await?;
            }
            LockStep::UseRecentReading => {
                let recent = self.reader().recent();
                self.find_place(&recent, true);
            }
            LockStep::ReadQueue => {
                let reading = self.read_queue().await?;
                self.find_place(&reading, false);
            }
            LockStep::ReadAhead(names) => self.read_ahead(&names).await?,
            LockStep::FindDeleter => {
                self.find_deleter().await?;
                self.look_again();
                pause().await;
            }
            LockStep::WatchAhead(name) => self.watch_ahead(name).await?,
            LockStep::AwaitAhead(name) => self.await_ahead(name).await?,
            LockStep::AwaitHandoff => self.await_handoff().await?,
            LockStep::WatchLeases => self.watch_leases().await?,
            LockStep::AwaitLease => self.await_lease().await?,
            LockStep::TakeLease => return self.take_lease().await,
        }
        Ok(None)
    }

    /// Forgets the facts that may have changed.
    fn look_again(&mut self) {
        self.place = place_later(&self.place, &self.nodes.contender);
        self.leases = LeaseCount::Unknown;
        (self.watch, self.offer) = (None, None);
    }

    /// Waits until it makes sense to go on after an error.
    async fn recover(&self, error: zk::Error) -> Result<(), Outcome> {
        match error {
            zk::Error::SessionExpired => return Err(Outcome::Retry),
            zk::Error::NotSent | zk::Error::OutcomeUnknown => {}
            zk::Error::Refused(code) => return Err(Outcome::Failed(refusal::refused(&self.terms.path, code))),
            zk::Error::TooLarge(_) | zk::Error::AnswerTooLarge(_) => {
                let cause = error.to_string();
                return Err(Outcome::Failed(Error::Internal { path: self.terms.path.clone(), cause }));
            }
        }
        let session = self.session();
        let again = async {
            // The session is connected all the same: too many requests were in flight.
            if session.is_up() {
                pause().await;
            }
            session.connected().await
        };
        if self.unless_stopped(again).await? { Ok(()) } else { Err(Outcome::Retry) }
    }

    async fn unless_stopped<T>(&self, event: impl Future<Output = T>) -> Result<T, Outcome> {
        wait::unless_stopped(&self.terms, &self.state, self.begun, event).await
    }

    fn session(&self) -> Session {
        self.nodes.owner().session().clone()
    }

    /// The reader of this session, started if there is none.
    fn reader(&mut self) -> &mut QueueReader {
        let (readers, owner, path) = (&self.context.readers, self.nodes.owner(), &self.terms.path);
        self.reader.get_or_insert_with(|| readers.reader(owner, path))
    }

    fn hinted_limit(&self) -> Option<Zxid> {
        self.context.hints.limit_written(&self.terms.path, self.terms.limit)
    }

    /// From now on a lease that is released on this replica may be offered to this attempt.
    fn expect_handoff(&mut self) {
        if self.recipient.is_none() {
            self.recipient = self.context.handoffs.register(&self.terms.path);
        }
    }

    /// Takes an offer. A recipient gets one.
    fn accept(&mut self, offer: Option<HandoffOffer>) {
        if offer.is_some() {
            (self.offer, self.recipient) = (offer, None);
        }
    }

    /// Reads the lock node's number, and creates the node if it is missing.
    async fn check_limit(&mut self) -> Result<(), StepError> {
        let (path, limit) = (&self.terms.path, self.terms.limit);
        let written = lock_node::check(self.nodes.owner(), path, limit, self.context.records).await?;
        self.context.hints.set_limit(path, limit, written);
        self.lock_node = LockNodeCheck::Fits(written);
        Ok(())
    }

    async fn take_if_vacant(&mut self) -> Result<Option<Granted>, StepError> {
        let left = self.context.hints.take_vacancy(&self.terms.path);
        if let Some(vacancy) = left.filter(|left| left.rivals == Rivals::None)
            && let Some(written) = self.hinted_limit()
        {
            self.lock_node = LockNodeCheck::Fits(written);
            if let Some(granted) = self.take_vacant(vacancy).await? {
                return Ok(Some(granted));
            }
        }
        let (session, path, queue) = (self.session(), self.terms.path.clone(), self.nodes.queue().clone());
        let looking = fast_path::look(&session, &queue, &path);
        let (checked, look) = futures_util::future::join(self.check_limit(), looking).await;
        checked?;
        let Some(look) = look? else { return Ok(None) };
        let is_checked = self.lock_node == LockNodeCheck::Fits(Zxid(look.lock.mzxid));
        match fast_path::vacancy(&look, is_checked, left) {
            Vacancy::Vacant(vacancy) => self.take_vacant(vacancy).await,
            Vacancy::WornOut => {
                lock_node::renew_queue(self.nodes.owner(), &path).await?;
                Ok(None)
            }
            Vacancy::InUse => Ok(None),
        }
    }

    /// `None`: another contender has come.
    async fn take_vacant(&mut self, vacancy: VacancyHint) -> Result<Option<Granted>, StepError> {
        self.certain().await?;
        let ops = fast_path::transaction(&self.nodes, vacancy, &self.terms.name);
        match grant::commit(&mut self.nodes, &self.terms.path, ops, None, None).await? {
            GrantResult::Lease(granted) => {
                self.vacancy = vacancy.after();
                Ok(Some(granted))
            }
            GrantResult::Refused(_, ErrorCode::NoNode) => Ok(None),
            GrantResult::Refused(_, code) => Err(refusal::refused(&self.terms.path, code).into()),
        }
    }

    async fn enqueue(&mut self, check_limit: bool, may_join_handoff: bool) -> Result<(), StepError> {
        let create = self.nodes.enqueue(self.terms.name.clone());
        let batcher = &self.context.batcher;
        if may_join_handoff && enqueue::with_handoff(&mut self.nodes, batcher, &self.terms, &create).await? {
            return Ok(());
        }
        let owner = self.nodes.owner().clone();
        let creating = owner.commit(vec![create]);
        let (checked, created) = if check_limit {
            futures_util::future::join(self.check_limit(), creating).await
        } else {
            (Ok(()), creating.await)
        };
        // The contender is recorded first, and errors are returned then.
        let enqueued = enqueue::read_answer(&mut self.nodes, &self.terms.path, created);
        checked?;
        if self.nodes.contender == NodeState::Absent && enqueued.is_ok() {
            lock_node::ensure_queue(owner.session(), &self.terms.path).await?;
        }
        enqueued
    }

    async fn read_queue(&mut self) -> Result<Arc<QueueSnapshot>, zk::Error> {
        let contender = self.nodes.contender.clone();
        let is_try = self.terms.wait == Wait::Try;
        let reader = self.reader();
        // A client that only tries gets the present holders.
        let joined = match &contender {
            NodeState::Exists(name) if !is_try => reader.join(name),
            _ => None,
        };
        match joined {
            Some(joined) => Ok(joined),
            None => reader.look().await,
        }
    }

    /// Finds the contender's place in a reading.
    fn find_place(&mut self, reading: &QueueSnapshot, is_older: bool) {
        let NodeState::Exists(contender) = &self.nodes.contender else { return };
        self.place = place_in(&reading.queue, contender, self.gone.as_deref(), is_older);
        if !matches!(self.place, QueuePlace::Missing | QueuePlace::Unknown) {
            self.queue_written = reading.queue_written;
            self.has_strays = reading.strays;
            self.lock_node = lock_node_after_read(self.lock_node, reading.lock);
        }
    }

    async fn read_ahead(&mut self, names: &[String]) -> Result<(), StepError> {
        let paths: Vec<_> = names.iter().map(|name| self.nodes.queue().join(name)).collect();
        let reads = self.session().get_many(paths.iter().map(NodePath::as_str)).await?;
        let next = reads.iter().rposition(|read| !matches!(read, Ok(None)));
        self.place = next
            .map_or(QueuePlace::First, |index| QueuePlace::Behind { name: names[index].clone(), is_watched: false });
        Ok(())
    }

    /// The contender was not found: unless it exists after all, ends the attempt with how it was deleted.
    ///
    /// A release through Rollcall writes the queue's node in the transaction that deletes the contender; another
    /// program does not.
    async fn find_deleter(&mut self) -> Result<(), StepError> {
        let Some(contender) = self.nodes.contender_path() else { return Ok(()) };
        let session = self.session();
        // The contenders of a session that is over were deleted by no program. ZooKeeper's leader knows of the end, and
        // does not answer this.
        session.sync(self.nodes.queue()).await?;
        let (stat, queue) =
            futures_util::future::join(session.exists(&contender), session.exists(self.nodes.queue())).await;
        if stat?.is_some() {
            return Ok(());
        }
        self.nodes.contender = NodeState::Absent;
        let written = queue?.map(|stat| Zxid(stat.mzxid));
        let released = self.queue_written.is_some() && written != self.queue_written;
        Err(if released { Outcome::Released } else { Outcome::Removed }.into())
    }

    async fn watch_ahead(&mut self, name: String) -> Result<(), StepError> {
        self.recipient = None;
        self.announce();
        let (session, ahead) = (self.session(), self.nodes.queue().join(&name));
        let (stat, watch) = session.watch_exists(&ahead).await?;
        if stat.is_none() {
            (self.place, self.gone) = (QueuePlace::Unknown, Some(name));
            return Ok(());
        }
        self.watch = Some(NodeWatch::new(watch, session, ahead));
        self.place = QueuePlace::Behind { name, is_watched: true };
        Ok(())
    }

    async fn await_ahead(&mut self, name: String) -> Result<(), StepError> {
        match self.await_watch().await? {
            None => return Ok(()),
            Some(Waited::Fired(EventKind::Deleted)) => self.gone = Some(name),
            Some(_) => {}
        }
        self.look_again();
        // This contender is most likely the first now. Until that is known the lock may be released already.
        self.expect_handoff();
        Ok(())
    }

    async fn await_lease(&mut self) -> Result<(), StepError> {
        match self.await_watch().await? {
            None => {}
            Some(Waited::Offered(offer)) => self.accept(Some(offer)),
            Some(_) => self.look_again(),
        }
        Ok(())
    }

    /// Waits for the watch, or for an offer. `None`: there was news for the client, and the wait is not over.
    async fn await_watch(&mut self) -> Result<Option<Waited>, StepError> {
        self.reader();
        let (Some(watch), Some(reader)) = (&mut self.watch, &mut self.reader) else {
            self.look_again();
            return Ok(None);
        };
        let recipient = self.recipient.as_mut();
        match wait::for_event(&self.state, self.terms.wait, watch, recipient, reader).await? {
            Waited::Shown(shown) => {
                let NodeState::Exists(contender) = &self.nodes.contender else { return Ok(None) };
                if shown.queue.ahead_of(contender).is_some() {
                    self.queue_written = shown.queue_written;
                    self.announce();
                } else {
                    self.find_deleter().await?;
                }
                Ok(None)
            }
            waited => Ok(Some(waited)),
        }
    }

    /// Waits for a handoff that is likely to come soon, where the lock changes hands fast: that needs no watch.
    async fn await_handoff(&mut self) -> Result<(), StepError> {
        self.announce();
        self.leases = LeaseCount::NotHandedOff;
        let likely_until = self.context.batcher.next_until(&self.terms.path, self.nodes.owner().id());
        if let (Some(until), Some(recipient)) = (likely_until, &mut self.recipient) {
            let offer = wait::for_handoff(&self.state, self.terms.wait, recipient, until).await?;
            self.accept(offer);
        }
        Ok(())
    }

    async fn watch_leases(&mut self) -> Result<(), StepError> {
        self.announce();
        let (session, path) = (self.session(), self.terms.path.clone());
        let (children, watch) = session.watch_children(&path).await?;
        let Some((names, stat)) = children else {
            self.lock_node = LockNodeCheck::Changed;
            self.look_again();
            return Ok(());
        };
        self.lock_node = lock_node_after_read(self.lock_node, Some(Zxid(stat.mzxid)));
        self.leases = LeaseCount::Watched(names.len());
        self.watch = Some(NodeWatch::new(watch, session, path));
        Ok(())
    }

    /// Takes the lease, and replaces the one that was offered.
    async fn take_lease(&mut self) -> Result<Option<Granted>, StepError> {
        let Some(contender) = self.nodes.contender_path() else { return Ok(None) };
        let offer = self.offer.take();
        self.watch = None;
        self.tell_place();
        self.certain().await?;
        let mut ops: Vec<_> = offer.iter().map(|offer| zk::delete(offer.lease.as_str(), -1)).collect();
        ops.extend(self.nodes.grant(&contender, self.terms.name.clone()));
        let own = ops.len();
        let batcher = offer.as_ref().map(|_| &self.context.batcher);
        let made = grant::commit(&mut self.nodes, &self.terms.path, ops, batcher, self.reader.as_ref()).await?;
        let (index, code) = match made {
            GrantResult::Lease(granted) => {
                if let Some(offer) = offer {
                    offer.accept();
                }
                return Ok(Some(granted));
            }
            GrantResult::Refused(index, code) => (index, code),
        };
        self.look_again();
        match grant_refusal(index, code, offer.is_some(), own) {
            GrantRefusal::TryAgain => {}
            GrantRefusal::NoContender => self.find_deleter().await?,
            GrantRefusal::NoLockNode => self.lock_node = LockNodeCheck::Changed,
            GrantRefusal::NoRecords => {
                let record = record_path(self.nodes.lease_name());
                let made = self.session().ensure_parents(&record).await;
                made.map_err(|error| lock_node::refused(error, &self.terms.path))?;
            }
            GrantRefusal::Other(code) => return Err(refusal::refused(&self.terms.path, code).into()),
        }
        Ok(None)
    }

    async fn try_confirm(&self, token: FencingToken, seen: Option<LeaseObservation>) -> Result<OneShot, StepError> {
        let lease = self.nodes.lease_path();
        let confirmed = grant::confirm(&self.session(), &self.terms, &lease, token, self.lock_node, seen).await?;
        let watch = match confirmed {
            Confirmed::Hold(watch) => watch,
            Confirmed::End(outcome) => return Err(outcome.into()),
            Confirmed::LimitChanged => {
                self.context.hints.forget_limit(&self.terms.path);
                return Err(Outcome::Retry.into());
            }
        };
        self.certain().await?;
        Ok(watch)
    }

    /// Waits until the session certainly exists, by the evidence of a write that ZooKeeper has just answered.
    async fn certain(&self) -> Result<(), StepError> {
        let owner = self.nodes.owner();
        let mut evidence = owner.evidence();
        loop {
            let last = *evidence.borrow_and_update();
            if clock::now() < owner.certain_until(last) {
                return Ok(());
            }
            if self.unless_stopped(evidence.changed()).await?.is_err() {
                return Err(Outcome::Retry.into());
            }
        }
    }

    /// Sends the client its position by the last reading. A client that only tries gets one position, just before the
    /// lock.
    fn announce(&self) {
        if self.terms.wait != Wait::Try {
            self.tell_place();
        }
    }

    fn tell_place(&self) {
        position::tell(&self.state, self.reader.as_ref(), &self.nodes.contender, &self.place);
    }

    /// The names of the clients that keep the lock from this one: the holders, or else the first of the queue, which is
    /// about to take the lock.
    pub(crate) async fn in_the_way(&self) -> Vec<String> {
        let Some(reading) = self.reader.as_ref().map(QueueReader::recent) else { return self.state.holders() };
        let holders = reading.holders.to_vec();
        let Some(first) = reading.queue.names().next().filter(|_| holders.is_empty()) else { return holders };
        let first = self.nodes.queue().join(first);
        match self.session().get(&first).await {
            Ok(Some(read)) => vec![contender_name(&read.data)],
            _ => holders,
        }
    }

    pub(crate) fn nodes(&self) -> &OwnNodes {
        &self.nodes
    }

    /// Hands over the nodes that may exist, and the vacancy that is left when they are gone.
    pub(crate) fn leave(self) -> (OwnNodes, Option<VacancyHint>) {
        (self.nodes, self.vacancy)
    }
}
