//! Locks: kazoo's Semaphore, so that programs with kazoo and clients of Rollcall share them.
//!
//! ```text
//! /foo                                           the lock node; its data is the maximum number of holders; durable
//! /foo/<32 hex>                                  a lease: its data is the holder's name
//! /foo-__lock__/<32 hex>__lock__0000000001       a contender: ephemeral, sequential; its data is its name
//! /.rollcall/leases/<32 hex>                     of a lease with a ttl, which is durable: its ttl and its keeper
//! /.rollcall/locks/<2 hex>/<30 hex>              of a lock that was made through Rollcall: when it was last used
//! ```
//!
//! The first contender, and no other, takes a lease while there are fewer than the maximum; each of the others watches
//! the contender next ahead. `acquire/plan.rs` has the rules. Promises:
//! - First come, first served, across replicas and processes that use kazoo.
//! - A client is told that it holds a lock only while the ZooKeeper session certainly exists, by the evidence of writes
//!   that ZooKeeper has answered. In doubt the client is told; and it is told that its lock is lost before ZooKeeper
//!   can have given the lock to another client.
//! - A client that stops waiting or holding leaves no node behind. Only ZooKeeper's session time-out removes the nodes
//!   of a replica that died.
//! - A lock with a ttl outlives its stream by that time, and never ends earlier. Its client can come back for it on any
//!   replica. When its replica dies, other replicas end the lock: later by ZooKeeper's session time-out, and by the
//!   time until a replica runs.
//! - A client is told its place in the queue when it takes it and when it becomes the first. Other changes are merged
//!   and told about a second late; later still when the queue is very long. So late a waiter learns, too, that its
//!   place was released through another replica or deleted by another program.
//!
//! What may be lost: a place in the queue, when the ZooKeeper session that carried it ends; the client gets a new place
//! at the end. And the meaning of `simultaneous`, when a kazoo of 2.1 or older takes part: it takes leases without
//! being the first, and nothing on our side can prevent that. A lease of ours that was granted beyond the maximum is
//! given back before the client is told.
//!
//! Files import in one direction: `recipe/` and `stream/` know nothing of the others, `acquire/` and `hold/` not of
//! each other, `task.rs` knows both, and this file puts everything together.

mod acquire;
mod describe;
mod hold;
mod long_lists;
mod outcome;
mod readings;
mod recipe;
mod release;
mod request;
mod running;
mod spawner;
mod stream;
mod task;
mod timing;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::acquire::attempt::AcquireContext;
use self::acquire::enqueue_batcher::EnqueueBatcher;
use self::acquire::handoff::Handoffs;
use self::acquire::hints::Hints;
use self::describe::Describer;
pub(crate) use self::describe::{Description, Party};
use self::hold::idle::{self, IdleLocks};
use self::hold::reaper::{self, Reaper};
use self::hold::ttl_lease::Keeper;
use self::recipe::lock_id::LockId;
use self::recipe::own_nodes::path_bytes;
use self::recipe::queue_readers::QueueReaders;
use self::release::Releaser;
pub(crate) use self::request::AcquireRequest;
use self::running::RunningLocks;
use self::spawner::{Job, Spawner};
pub(crate) use self::stream::acquisition::{Acquisition, LOOK_AGAIN};
pub(crate) use self::stream::event::{LockEvent, LostReason};
use self::stream::state::{AcquisitionState, Command};
use self::task::{LockTask, TaskContext, TaskPlace};
use self::timing::PATIENCE;
use crate::budget::{Account, Budget, Resource};
use crate::contact::{Contact, StallDetector};
use crate::error::Error;
use crate::types::NodePath;
use crate::zk::Zk;

/// The handle on all locks of this replica. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Locks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    tasks: Arc<TaskContext>,
    running: Arc<RunningLocks>,
    releaser: Arc<Releaser>,
    describer: Describer,
    /// It has room for all jobs that [`Shared::places`] admits, so that it is never full.
    spawner: Spawner,
    limit: usize,
    /// As many as [`Shared::limit`]; each task of a lock has one. All of them are free if there is no task.
    places: Arc<Semaphore>,
    stopping: Arc<watch::Sender<bool>>,
}

impl Locks {
    /// Starts the task that runs all others, the reaper, and, unless `idle` is zero, the removal of locks that no
    /// client has used for so long; none of them ever ends. `limit`: the most locks that all accounts together allow to
    /// be held and waited for at once.
    pub(crate) fn start(
        zk: &Zk,
        stall_detector: Arc<StallDetector>,
        limit: usize,
        idle: Duration,
        budget: &Budget,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS / 2);
        let pool = &zk.pool;
        // Each lock has a task, and at most one queue reader that no other uses, while an older one may be ending.
        let (spawner, jobs) = Spawner::new(limit.saturating_mul(3).min(Semaphore::MAX_PERMITS));
        let running = Arc::<RunningLocks>::default();
        let stopping = Arc::new(watch::Sender::new(false));
        let releaser = Arc::new(Releaser::new(pool.clone()));
        let context = TaskContext {
            acquire: Arc::new(AcquireContext {
                pool: pool.clone(),
                readers: QueueReaders::new(pool.clone(), spawner.clone()),
                handoffs: Handoffs::default(),
                batcher: EnqueueBatcher::default(),
                hints: Hints::default(),
                records: !idle.is_zero(),
            }),
            keeper: Keeper { pool: pool.clone(), running: running.clone(), stall_detector, stopping: stopping.clone() },
            releaser: releaser.clone(),
        };
        tasks.spawn(jobs);
        tasks.spawn(reaper::run(Reaper { pool: pool.clone(), running: running.clone() }));
        if !idle.is_zero() {
            tasks.spawn(idle::run(IdleLocks { pool: pool.clone(), idle }));
        }
        Self(Arc::new(Shared {
            tasks: Arc::new(context),
            running,
            releaser,
            describer: Describer::new(pool.clone(), zk.roster.clone(), budget.common_account()),
            spawner,
            limit,
            places: Arc::new(Semaphore::new(limit)),
            stopping,
        }))
    }

    /// Queues for a lock and holds it, or comes back to a lock by its id. The [`Acquisition`] tells everything that can
    /// go wrong; its drop gives the lock back, or starts its ttl.
    ///
    /// A lock counts for `account` until none of its nodes is left, also when its stream has ended long before. One
    /// lock too many ends with [`Error::LimitExceeded`]; to come back to a lock that this replica has takes nothing
    /// more.
    pub(crate) fn acquire(&self, request: AcquireRequest, account: &Account) -> Acquisition {
        let path = request.path.clone();
        let acquired = match request.lock_id.as_deref().filter(|text| !text.is_empty()) {
            Some(text) => self.come_back(text, &request, account),
            None => self.queue_up(request, account),
        };
        acquired.unwrap_or_else(|error| Acquisition::failed(LockId::fresh(&path), error))
    }

    fn queue_up(&self, request: AcquireRequest, account: &Account) -> Result<Acquisition, Error> {
        request.check()?;
        let (state, contact) =
            (AcquisitionState::new(LockId::fresh(&request.path), request.ttl), request.contact.clone());
        let terms = request.into_terms(state.id().mark());
        self.run(state, account, None, contact, |task| Box::pin(task.queue_up(terms)))
    }

    /// Comes back to a lock: on this replica, if it has the lock, or from the replica that keeps it.
    fn come_back(&self, text: &str, request: &AcquireRequest, account: &Account) -> Result<Acquisition, Error> {
        let id = LockId::parse(text).ok_or(Error::UnknownLock)?;
        if *id.path() != request.path {
            return Err(Error::Protocol {
                field: "lock_id",
                cause: format!("it belongs to another lock than {}", request.path),
            });
        }
        // The client's wait is for a lock that others hold. Here ZooKeeper is asked whether the lease exists, which
        // takes its time however short that wait is.
        let wait = request.wait.unwrap_or_default().max(PATIENCE);
        let deadline = Instant::now().checked_add(wait);
        let contact = request.contact.clone();
        self.run(AcquisitionState::to_pick_up(id), account, deadline, contact, |task| Box::pin(task.pick_up(deadline)))
    }

    /// Starts the task of a lock, unless it has one already, and returns a stream. `deadline`: time until which the
    /// lease of a lock that this replica has must be found.
    fn run(
        &self,
        state: Arc<AcquisitionState>,
        account: &Account,
        deadline: Option<Instant>,
        contact: Option<Contact>,
        start: impl FnOnce(LockTask) -> Job,
    ) -> Result<Acquisition, Error> {
        let mark = state.id().mark();
        let mut running = self.0.running.table();
        if let Some(other) = running.get(&mark).filter(|other| other.id() == state.id()) {
            match Acquisition::attach(other.clone(), deadline, contact.clone()) {
                Some(acquisition) => return Ok(acquisition),
                // It is being released.
                None if !other.is_over() => return Err(Error::UnknownLock),
                // It may go on elsewhere.
                None => {}
            }
        }
        let place = TaskPlace {
            _lock: account.take(Resource::Locks, 1)?,
            _path: account.take(Resource::PathBytes, path_bytes(state.id().path()))?,
            // The accounts allow no more than there are; so the replica is about to stop.
            _task: self.0.places.clone().try_acquire_owned().map_err(|_| Error::Draining)?,
        };
        running.insert(mark, state.clone());
        drop(running);
        let acquisition = Acquisition::attach(state.clone(), None, contact).ok_or(Error::UnknownLock)?;
        self.0.spawner.spawn(start(LockTask { context: self.0.tasks.clone(), state, _place: place }));
        Ok(acquisition)
    }

    /// Gives back a lock or a place in the queue, of whichever replica. `false`: it ended in another way meanwhile.
    /// After an error that leaves it unclear, call again: [`Error::UnknownLock`] says that it is over.
    pub(crate) async fn release(&self, lock_id: &str) -> Result<bool, Error> {
        let id = LockId::parse(lock_id).ok_or(Error::UnknownLock)?;
        // A lock that is over here may go on elsewhere.
        let Some(state) = self.0.running.find(&id) else { return self.0.releaser.release(&id).await };
        let ours = state.give(Command::Release);
        match tokio::time::timeout(PATIENCE, state.ended()).await {
            // Another replica has the lock now.
            Ok(Err(Error::Superseded { .. })) => self.0.releaser.release(&id).await,
            Ok(Err(Error::BackendUnavailable)) => Err(Error::BackendUnavailable),
            Ok(Err(_)) => Ok(false),
            Ok(Ok(())) => Ok(ours),
            // The release goes on.
            Err(_) => Err(Error::BackendUnavailable),
        }
    }

    /// Describes a lock, as `make` encodes it. Calls for one lock that come at once share the reading and the bytes; a
    /// connection pays once for bytes that several of its calls have.
    ///
    /// # Errors
    /// Beside those of ZooKeeper, [`Error::LimitExceeded`] when the connection, or the replica, has too many bytes that
    /// are not read.
    ///
    /// # Cancellation
    /// Safe: a reading that has begun is completed, for all other calls that wait for it.
    pub(crate) async fn describe(
        &self,
        path: &NodePath,
        account: &Account,
        make: fn(&Description) -> Bytes,
    ) -> Result<Bytes, Error> {
        self.0.describer.describe(path, account, make).await
    }

    /// Waits until no stream's lock is held or waited for any more; new requests are refused from now on. For the end
    /// of a drain, after the streams have been dropped. Locks with a ttl are left to other replicas, to keep or to end.
    pub(crate) async fn drained(&self) {
        self.0.stopping.send_replace(true);
        let all = u32::try_from(self.0.limit).unwrap_or(u32::MAX);
        if let Ok(places) = self.0.places.acquire_many(all).await {
            places.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use rollcall_embedded::Embedded;

    use super::*;
    use crate::budget::Limits;
    use crate::zk;

    async fn held(acquisition: &mut Acquisition) -> Result<String, Error> {
        loop {
            match acquisition.next().await {
                Some(Ok(LockEvent::Held { lock_id, .. })) => return Ok(lock_id),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => panic!("it ends before the lock is held"),
            }
        }
    }

    /// The sessions of a replica with an embedded server.
    async fn zookeeper(tasks: &mut JoinSet<()>) -> Zk {
        let embedded = Embedded::bind("127.0.0.1:0".parse().unwrap(), rollcall_embedded::Config::default());
        let embedded = embedded.await.unwrap();
        let config = zk::Config::of(embedded.local_addr());
        tasks.spawn(async move { embedded.run(std::future::pending()).await });
        Zk::start(config, tasks)
    }

    fn request(path: &'static str) -> AcquireRequest {
        let path = NodePath::trusted(path);
        AcquireRequest { path, simultaneous: 1, wait: None, ttl: None, name: None, lock_id: None, contact: None }
    }

    #[tokio::test]
    async fn acquisitions_that_are_cancelled_before_they_begin_write_nothing() {
        let mut tasks = JoinSet::new();
        let zk = zookeeper(&mut tasks).await;
        let budget = Budget::new(Limits::NONE, Limits::NONE);
        let (locks, account) =
            (Locks::start(&zk, Arc::default(), 10_000, Duration::ZERO, &budget, &mut tasks), budget.account());
        held(&mut locks.acquire(request("/first"), &account)).await.unwrap();
        for _ in 0..1000 {
            drop(locks.acquire(request("/cancelled"), &account));
        }
        while budget.used(Resource::Locks) > 0 {
            tokio::task::yield_now().await;
        }
        let session = zk.pool.any().unwrap().session().clone();
        for path in ["/cancelled", "/cancelled-__lock__"] {
            assert_eq!(session.exists(&NodePath::trusted(path)).await, Ok(None), "{path}");
        }
    }

    #[tokio::test]
    async fn a_description_counts_for_a_connection_for_as_long_as_it_has_not_been_sent() {
        const LARGE: usize = 10_000;
        let mut tasks = JoinSet::new();
        let zk = zookeeper(&mut tasks).await;
        let budget = Budget::new(Limits { bytes: LARGE, ..Limits::NONE }, Limits::NONE);
        let (locks, account) =
            (Locks::start(&zk, Arc::default(), 10, Duration::ZERO, &budget, &mut tasks), budget.account());
        held(&mut locks.acquire(request("/first"), &budget.account())).await.unwrap();
        let describe = |path| {
            let (locks, account) = (locks.clone(), account.clone());
            let make = |_: &Description| vec![b'x'; LARGE].into();
            async move { locks.describe(&NodePath::trusted(path), &account, make).await }
        };
        let unread = futures_util::future::join_all((0..100).map(|_| describe("/a"))).await;
        let bytes = unread.iter().map(|bytes| bytes.as_ref().unwrap().as_ptr());
        let made: std::collections::HashSet<_> = bytes.collect();
        assert_eq!((made.len(), account.used(Resource::Bytes)), (1, LARGE), "all share one reading");
        assert_eq!(describe("/b").await.unwrap_err().reason(), "TOO_MANY_BYTES");
        drop(unread);
        assert_eq!(describe("/b").await.unwrap().len(), LARGE);
        while budget.used(Resource::Bytes) > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_replica_that_is_full_of_locks_lets_their_clients_come_back() {
        let mut tasks = JoinSet::new();
        let zk = zookeeper(&mut tasks).await;
        let replica = Limits { locks: 2, ..Limits::NONE };
        let budget = Budget::new(Limits { locks: 1, ..Limits::NONE }, replica);
        let locks = Locks::start(&zk, Arc::default(), replica.locks, Duration::ZERO, &budget, &mut tasks);
        let account = budget.account();
        let take_for = |account: &Account, path: &'static str, lock_id| {
            let ttl = Some(Duration::from_secs(600));
            locks.acquire(AcquireRequest { ttl, lock_id, ..request(path) }, account)
        };
        let take = |path, lock_id| take_for(&account, path, lock_id);
        let mut first = take("/full", None);
        let id = held(&mut first).await.unwrap();
        drop(first);
        let refused = held(&mut take("/other", None)).await;
        assert!(matches!(refused, Err(Error::LimitExceeded { .. })), "{refused:?}");
        assert_eq!(held(&mut take("/full", Some(id.clone()))).await, Ok(id.clone()));
        // The client comes back over another connection, which has a lock as well.
        let other = budget.account();
        let mut second = take_for(&other, "/second", None);
        held(&mut second).await.unwrap();
        assert_eq!(held(&mut take_for(&other, "/full", Some(id.clone()))).await, Ok(id.clone()));
        let third = budget.account();
        let refused = held(&mut take_for(&third, "/third", None)).await.unwrap_err();
        assert!(refused.to_string().contains("this replica"), "{refused}");
        // The connection that took it has ended long since: it counts as long as it lives.
        drop(account);
        assert_eq!(budget.used(Resource::Locks), 2);
        assert!(budget.used(Resource::PathBytes) > "/full".len() + "/second".len());
        assert!(locks.release(&id).await.unwrap());
        while budget.used(Resource::Locks) > 1 {
            tokio::task::yield_now().await;
        }
        held(&mut take_for(&third, "/third", None)).await.unwrap();
    }
}
