//! Locks: kazoo's Semaphore, so that programs that use kazoo and clients of Rollcall share them.
//!
//! ```text
//! /foo                                           the number of those who may hold the lock; durable
//! /foo/<32 hex>                                  a lease: its data is the holder's name
//! /foo-__lock__/<32 hex>__lock__0000000001       a contender: ephemeral, sequential; its data is its name
//! /.rollcall/leases/<32 hex>                     of a lease with a ttl, which is durable: its ttl and its keeper
//! /.rollcall/locks/<2 hex>/<30 hex>              of a lock that was made through Rollcall: when it was last used
//! ```
//!
//! The first contender, and nobody else, takes a lease while there are fewer than the number; the others each watch the
//! one ahead. Promises:
//! - First come, first served, across replicas and processes that use kazoo.
//! - A lock is told as held only while its ZooKeeper session certainly stands, by the evidence of writes that it
//!   answered. In doubt the client is told; and told that it is lost before ZooKeeper can have given it to another.
//! - Who stops waiting or holding leaves nothing behind. Only ZooKeeper's session time-out removes the nodes of a
//!   replica that died.
//! - A lock with a ttl outlives its stream by that, and never ends earlier. Its client can come back for it on any
//!   replica. When its replica dies, others end it: later by ZooKeeper's session time-out, and by as long as it takes
//!   until a replica runs.
//! - A place in the queue is told when it is taken, when it becomes the first, and otherwise merged and about a second
//!   late; later still when the queue is very long. So late a waiter learns, too, that its place was released through
//!   another replica or deleted by a stranger.
//!
//! What may be lost: a place in the queue, when the ZooKeeper session that carried it ends; a new one is taken at the
//! end. And the meaning of `simultaneous`, when a kazoo of 2.1 or older takes part: it takes leases without being the
//! first, and nothing on our side can prevent that. We give up a lease of our own that was granted beyond the number,
//! before it is told.

mod attempt;
mod board;
mod describe;
mod group;
mod heir;
mod hold;
mod id;
mod idle;
mod lasting;
mod life;
mod line;
mod memory;
mod node;
mod queue;
mod readings;
mod reaper;
mod record;
mod release;
mod seat;
mod slot;
mod stream;
mod terms;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::board::{Board, WeakBoard};
pub(crate) use self::describe::{Description, Party};
use self::group::Groups;
use self::heir::Heirs;
use self::id::{LockId, Mark};
use self::life::Life;
use self::memory::{Memory, Number, Vacancy};
use self::readings::Readings;
use self::release::Names;
use self::slot::{Order, Slot};
pub(crate) use self::stream::{Acquisition, LOOK_AGAIN, LockEvent, LostReason};
use self::terms::{PATIENCE, Terms, Wait};
use crate::budget::{Account, Budget, Resource, Share};
use crate::compute;
use crate::contact::{Contact, StallDetector};
use crate::error::Error;
use crate::mutex::lock;
use crate::shared_bytes::SharedBytes;
use crate::types::{NodePath, PathError, SessionId};
use crate::zk::{self, EphemeralSession, NoRoom, PathReservation, Pool, Roster, Zk};

/// How many nodes are read at once that others may have filled: an answer is read whole, up to 64 MiB, and a node holds
/// up to 1 MiB.
const READ_CHUNK: usize = 48;
/// How long a name may be, in bytes; of longer ones, which others have written, as much is read.
const MAX_NAME: usize = 1024;
/// Maximum number of descriptions of more than [`LONG`] parties that are read at a time: each takes some 30 MB meanwhile.
const LARGE_DESCRIPTIONS: usize = 4;
/// Longer lists of names are gone through on threads of their own: that of a hundred thousand takes some 100 ms.
const LONG: usize = 2_000;

/// Which lock to take, and on what terms.
#[derive(Debug, Clone)]
pub(crate) struct AcquireRequest {
    /// The lock.
    pub(crate) path: NodePath,
    /// How many may hold it at once; 0 counts as 1.
    pub(crate) simultaneous: u32,
    /// How long to wait; zero: try; `None`: for ever.
    pub(crate) wait: Option<Duration>,
    /// How long the lock outlives its stream.
    pub(crate) ttl: Option<Duration>,
    /// The holder's name, for others to see.
    pub(crate) name: Option<String>,
    /// To come back to a lock.
    pub(crate) lock_id: Option<String>,
    /// The connection that it is asked over.
    pub(crate) contact: Option<Contact>,
}

/// The handle on all locks of this replica. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Locks(Arc<Shared>);

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Debug)]
struct Shared {
    pool: Pool,
    /// Whether this process was stopped.
    stall_detector: Arc<StallDetector>,
    /// Time without use after which the nodes of a lock are removed; zero: never.
    idle: Duration,
    roster: Roster,
    /// To the task that runs the others. Has room for all that [`Shared::places`] admits, so that it is never full.
    jobs: mpsc::Sender<Job>,
    limit: usize,
    /// As many as [`Shared::limit`]; a task of a lock has one. That they are all free says that there is none.
    places: Arc<Semaphore>,
    /// No other lock is taken while this or the next is held, but a slot's.
    boards: Mutex<HashMap<(NodePath, SessionId), WeakBoard>>,
    /// The locks that have a task, to be found by their id.
    running: Mutex<HashMap<Mark, Arc<Slot>>>,
    heirs: Heirs,
    groups: Groups,
    vacancies: Memory<Vacancy>,
    numbers: Memory<Number>,
    descriptions: Readings<SharedBytes>,
    /// For the descriptions of locks that many hold and wait for.
    large_descriptions: Semaphore,
    /// Of all connections, for what they share.
    common: Account,
    /// For those who release what is not kept here.
    names: Readings<Names>,
    /// A lease with a ttl may have lost its task.
    orphaned: Notify,
    /// The replica is about to stop: locks whose stream has ended are left to other replicas.
    stopping: watch::Sender<bool>,
}

/// What a lock's task takes of the limits, until its end.
#[derive(Debug)]
struct TaskPlace {
    _lock: Share,
    _path: Share,
    _task: OwnedSemaphorePermit,
}

/// Why an attempt does not go on.
#[derive(Debug)]
enum Stop {
    /// The place is gone, through no fault of its own: take another.
    Again,
    /// The stream, or a release on this replica, says so.
    Ordered,
    /// Released through another replica.
    Released,
    /// Deleted by a stranger.
    Removed,
    /// The session may be over.
    SessionLost,
    /// The time to wait is over.
    Busy,
    /// Its stream did not come back within its ttl.
    Expired,
    /// Its stream stands, and its client was silent for its ttl.
    Silent,
    /// Another replica has picked it up.
    Superseded,
    /// Left as it is, to be picked up.
    Left,
    /// Nothing can come of it.
    Failed(Error),
}

/// What can come between a step and its end.
#[derive(Debug)]
enum Interrupt {
    Zk(zk::Error),
    Stop(Stop),
}

impl From<zk::Error> for Interrupt {
    fn from(error: zk::Error) -> Self {
        Self::Zk(error)
    }
}

impl From<Stop> for Interrupt {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl From<Error> for Interrupt {
    fn from(error: Error) -> Self {
        Self::Stop(Stop::Failed(error))
    }
}

impl From<Interrupt> for Error {
    fn from(interrupt: Interrupt) -> Self {
        match interrupt {
            Interrupt::Stop(Stop::Failed(error)) => error,
            Interrupt::Stop(_) | Interrupt::Zk(_) => Self::BackendUnavailable,
        }
    }
}

impl Locks {
    /// Starts the task that runs all others, that which ends locks without a keeper, and, unless `idle` is zero, that which
    /// removes the nodes of locks that nobody has used for so long; none of them ever ends. `limit`: the most locks that all
    /// accounts together allow to be held and waited for at once.
    pub(crate) fn start(
        zk: &Zk,
        stall_detector: Arc<StallDetector>,
        limit: usize,
        idle: Duration,
        budget: &Budget,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS / 2);
        // Each lock has a task, and at most one board at a time that nobody else uses, while an older one may be ending.
        let (jobs, arriving) = mpsc::channel(limit.saturating_mul(3).min(Semaphore::MAX_PERMITS));
        let shared = Arc::new(Shared {
            pool: zk.pool.clone(),
            roster: zk.roster.clone(),
            stall_detector,
            idle,
            jobs,
            limit,
            places: Arc::new(Semaphore::new(limit)),
            boards: Mutex::default(),
            running: Mutex::default(),
            heirs: Heirs::default(),
            groups: Groups::default(),
            vacancies: Memory::default(),
            numbers: Memory::default(),
            descriptions: Readings::default(),
            large_descriptions: Semaphore::new(LARGE_DESCRIPTIONS),
            common: budget.common_account(),
            names: Readings::default(),
            orphaned: Notify::new(),
            stopping: watch::Sender::new(false),
        });
        tasks.spawn(run(arriving));
        tasks.spawn(reaper::run(shared.clone()));
        if !idle.is_zero() {
            tasks.spawn(idle::run(shared.clone()));
        }
        Self(shared)
    }

    /// Queues for a lock and holds it, or comes back to one by its id. Everything that can go wrong is told by the
    /// [`Acquisition`], whose drop gives the lock back, or starts its ttl.
    ///
    /// A lock counts for `account` until nothing is left of it, also when its stream has ended long before. One too many is
    /// told as [`Error::LimitExceeded`]; to come back to a lock that this replica has takes nothing more.
    pub(crate) fn acquire(&self, request: AcquireRequest, account: &Account) -> Acquisition {
        let path = request.path.clone();
        let acquired = match request.lock_id.as_deref().filter(|text| !text.is_empty()) {
            Some(text) => self.come_back(text, &request, account),
            None => self.queue_up(request, account),
        };
        acquired.unwrap_or_else(|error| Acquisition::failed(LockId::fresh(&path), error))
    }

    fn queue_up(&self, request: AcquireRequest, account: &Account) -> Result<Acquisition, Error> {
        let AcquireRequest { path, simultaneous, wait, ttl, name, lock_id: _, contact } = request;
        if path.is_root() {
            return Err(Error::InvalidPath { path: path.as_str().to_owned(), error: PathError::Root });
        }
        node::check_name(&path)?;
        let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| "rollcall".to_owned());
        if name.len() > MAX_NAME {
            return Err(Error::Protocol { field: "name", cause: format!("is over the limit of {MAX_NAME} bytes") });
        }
        let slot = Slot::new(LockId::fresh(&path), ttl);
        let (mark, wait) = (slot.id().mark(), Wait::of(wait));
        let terms = Terms { path, limit: simultaneous.max(1), wait, ttl, name: name.into(), mark };
        self.run(slot, account, None, contact, |life| Box::pin(life.queue_up(terms)))
    }

    /// Comes back to a lock: here, if this replica has it, or from whichever replica keeps it.
    fn come_back(&self, text: &str, request: &AcquireRequest, account: &Account) -> Result<Acquisition, Error> {
        let id = LockId::parse(text).ok_or(Error::UnknownLock)?;
        if *id.path() != request.path {
            return Err(Error::Protocol { field: "lock_id", cause: format!("was not given for {}", request.path) });
        }
        // The wait is for a lock that others hold; whether this one stands is a question to ZooKeeper, which takes its time.
        let wait = request.wait.unwrap_or_default().max(PATIENCE);
        let deadline = Instant::now().checked_add(wait);
        let contact = request.contact.clone();
        self.run(Slot::to_pick_up(id), account, deadline, contact, |life| Box::pin(life.pick_up(deadline)))
    }

    /// Starts the task of a lock, unless it has one already, and gives a stream. `deadline`: until when a lock that is
    /// kept here has to be found to stand.
    fn run(
        &self,
        slot: Arc<Slot>,
        account: &Account,
        deadline: Option<Instant>,
        contact: Option<Contact>,
        start: impl FnOnce(Life) -> Job,
    ) -> Result<Acquisition, Error> {
        let mark = slot.id().mark();
        let mut running = lock(&self.0.running);
        if let Some(other) = running.get(&mark).filter(|other| other.id() == slot.id()) {
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
            _path: account.take(Resource::PathBytes, seat::path_bytes(slot.id().path()))?,
            // The accounts allow no more than there are; so the replica is going down.
            _task: self.0.places.clone().try_acquire_owned().map_err(|_| Error::Draining)?,
        };
        running.insert(mark.clone(), slot.clone());
        drop(running);
        let acquisition = Acquisition::attach(slot.clone(), None, contact).ok_or(Error::UnknownLock)?;
        self.0.spawn(start(Life { shared: self.0.clone(), slot, mark, _place: place }));
        Ok(acquisition)
    }

    /// Gives back a lock or a place in the queue, whichever replica it belongs to. `false`: it ended in another way
    /// meanwhile. After an error that leaves it unclear, call again: [`Error::UnknownLock`] says that it is over.
    pub(crate) async fn release(&self, lock_id: &str) -> Result<bool, Error> {
        let id = LockId::parse(lock_id).ok_or(Error::UnknownLock)?;
        let slot = lock(&self.0.running).get(&id.mark()).filter(|slot| *slot.id() == id && !slot.is_over()).cloned();
        // One that is over here may go on elsewhere.
        let Some(slot) = slot else { return release::release(&self.0, &id).await };
        let ours = slot.give(Order::Release);
        match tokio::time::timeout(PATIENCE, slot.ended()).await {
            // It has gone to another replica.
            Ok(Err(Error::Superseded { .. })) => release::release(&self.0, &id).await,
            Ok(Err(Error::BackendUnavailable)) => Err(Error::BackendUnavailable),
            Ok(Err(_)) => Ok(false),
            Ok(Ok(())) => Ok(ours),
            // It goes on being released.
            Err(_) => Err(Error::BackendUnavailable),
        }
    }

    /// Waits until no stream's lock is held or waited for any more; what is asked for from now on is refused. For the
    /// end of a drain, after the streams have been dropped. Locks with a ttl stand, for other replicas to pick up or
    /// to end.
    pub(crate) async fn drained(&self) {
        self.0.stopping.send_replace(true);
        let all = u32::try_from(self.0.limit).unwrap_or(u32::MAX);
        if let Ok(places) = self.0.places.acquire_many(all).await {
            places.forget();
        }
    }
}

impl Shared {
    fn spawn(&self, job: Job) {
        if self.jobs.try_send(job).is_err() {
            tracing::error!("the lock task is gone or its queue is full");
        }
    }

    /// Whether somebody here waits for a lock, as far as is known.
    fn is_waited_for(&self, path: &NodePath) -> bool {
        self.session_of_those_who_wait(path).is_some()
    }

    fn session_of_those_who_wait(&self, path: &NodePath) -> Option<SessionId> {
        let owners = self.pool.owners();
        let boards = lock(&self.boards);
        let waited_for = |id| boards.get(&(path.clone(), id)).is_some_and(|board| board.upgrade().is_some());
        owners.borrow().iter().map(EphemeralSession::id).find(|id| waited_for(*id))
    }

    /// A session for one who wants a lock: that of the others who wait for it here, so that they share what they read.
    fn room(&self, path: &NodePath) -> Result<PathReservation, NoRoom> {
        let bytes = seat::path_bytes(path);
        let among_others = self.session_of_those_who_wait(path).and_then(|id| self.pool.reserve_in(id, bytes));
        among_others.map_or_else(|| self.pool.reserve(bytes), Ok)
    }

    /// The board for a lock on an owner's session, started if there is none.
    fn board(self: &Arc<Self>, owner: &EphemeralSession, path: &NodePath) -> Board {
        let key = (path.clone(), owner.id());
        let mut boards = lock(&self.boards);
        if let Some(board) = boards.get(&key).and_then(WeakBoard::upgrade) {
            return board;
        }
        let (board, work) = Board::start(owner.session().clone(), path.clone());
        boards.insert(key, board.downgrade());
        drop(boards);
        let key = (path.clone(), owner.id());
        let shared = self.clone();
        self.spawn(Box::pin(async move {
            work.await;
            let mut boards = lock(&shared.boards);
            if boards.get(&key).is_some_and(|board| board.upgrade().is_none()) {
                boards.remove(&key);
            }
        }));
        board
    }

    /// Waits until asking the pool for room again may help.
    async fn room_may_be_free(&self) {
        let (mut owners, mut room_news) = (self.pool.owners(), self.pool.room_news());
        let now = owners.borrow_and_update().clone();
        let any_connected = async {
            let waiting: Vec<_> = now.iter().map(|owner| Box::pin(owner.session().connected())).collect();
            if waiting.is_empty() {
                std::future::pending::<()>().await;
            }
            let was_up = now.iter().any(|owner| owner.session().is_up());
            if was_up || !futures_util::future::select_all(waiting).await.0 {
                // One has just come up, or all that are connected are full and another is being opened; or one has
                // just expired, and is about to leave the list.
                seat::pause().await;
            }
        };
        tokio::select! {
            _ = owners.changed() => {}
            _ = room_news.changed() => {}
            () = any_connected => {}
        }
    }
}

/// Runs the tasks of all locks.
async fn run(mut arriving: mpsc::Receiver<Job>) {
    let mut jobs = JoinSet::new();
    loop {
        tokio::select! {
            job = arriving.recv() => match job {
                Some(job) => drop(jobs.spawn(job)),
                None => return,
            },
            Some(done) = jobs.join_next() => if let Err(error) = done {
                tracing::error!(%error, "the task of a lock failed");
            },
        }
    }
}

/// Goes through a list of so many names, on another thread if that takes long.
async fn go_through<T: Send + 'static>(names: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if names <= LONG { work() } else { compute::FOR_CLIENTS.run(work).await }
}

#[cfg(test)]
mod tests {
    use rollcall_embedded::Embedded;

    use super::*;
    use crate::budget::{Budget, Limits};

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
