//! Locks: kazoo's Semaphore, so that programs that use kazoo and clients of Rollcall share them.
//!
//! ```text
//! /foo                                           the number of those who may hold the lock; durable
//! /foo/<32 hex>                                  a lease: its data is the holder's name
//! /foo-__lock__/<32 hex>__lock__0000000001       a contender: ephemeral, sequential; its data is its name
//! ```
//!
//! The first contender, and nobody else, takes a lease while there are fewer than the number; the others each watch the
//! one ahead. Promises:
//! - First come, first served, across replicas and processes that use kazoo.
//! - A lock is told as held only while its ZooKeeper session certainly stands, by the evidence of writes that it
//!   answered. In doubt the client is told; and told that it is lost before ZooKeeper can have given it to another.
//! - Who stops waiting or holding leaves nothing behind. Only ZooKeeper's session time-out removes the nodes of a
//!   replica that died.
//! - A place in the queue is told when it is taken, when it becomes the first, and otherwise merged and about a second
//!   late; later still when the queue is very long.
//!
//! What may be lost: a place in the queue, when the ZooKeeper session that carried it ends; a new one is taken at the
//! end. And the meaning of `simultaneous`, when a kazoo of 2.1 or older takes part: it takes leases without being the
//! first, and nothing on our side can prevent that. We give up a lease of our own that was granted beyond the number,
//! before it is told.

mod attempt;
mod board;
mod describe;
mod hold;
mod id;
mod node;
mod queue;
mod release;
mod seat;
mod stream;

use std::collections::HashMap;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::attempt::{Attempt, Grant, PATIENCE, Terms, Wait};
use self::board::{Board, WeakBoard};
pub(crate) use self::describe::{Description, Party};
use self::id::{LockId, Mark};
pub(crate) use self::stream::{Acquisition, LockEvent, LostReason};
use self::stream::{Order, Slot};
use crate::error::Error;
use crate::types::{NodePath, PathError, SessionId};
use crate::zk::{self, OneShot, Owner, Pool};

/// How many locks a replica may hold and wait for at once, unless it is told otherwise.
pub(crate) const DEFAULT_LIMIT: usize = 100_000;
/// How long a name may be, in bytes.
const MAX_NAME: usize = 1024;
/// How long an end is held back so that no node is left when it is told.
const TIDY: Duration = Duration::from_secs(1);

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
}

/// The handle on all locks of this replica. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Locks(Arc<Shared>);

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Debug)]
struct Shared {
    pool: Pool,
    /// To the task that runs the others. Has room for all that [`Shared::places`] admits, so that it is never full.
    jobs: mpsc::Sender<Job>,
    limit: usize,
    places: Arc<Semaphore>,
    boards: Mutex<HashMap<(NodePath, SessionId), WeakBoard>>,
    running: Mutex<HashMap<Mark, Arc<Slot>>>,
}

/// Why an attempt does not go on.
#[derive(Debug)]
enum Stop {
    /// The place is gone, through no fault of its own: take another.
    Again,
    /// The stream, or a release on this replica, says so.
    Ordered(Order),
    /// Released through another replica.
    Released,
    /// Deleted by a stranger.
    Removed,
    /// The session may be over.
    SessionLost,
    /// The time to wait is over.
    Busy,
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
    /// Starts the task that runs all others as one of `tasks`; it ends with the last handle. At most `limit` locks are
    /// held and waited for at once.
    pub(crate) fn start(pool: Pool, limit: usize, tasks: &mut JoinSet<()>) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS / 2);
        // Each lock has a task, and at most one board at a time that nobody else uses, while an older one may be ending.
        let (jobs, arriving) = mpsc::channel(limit.saturating_mul(3).min(Semaphore::MAX_PERMITS));
        tasks.spawn(run(arriving));
        Self(Arc::new(Shared {
            pool,
            jobs,
            limit,
            places: Arc::new(Semaphore::new(limit)),
            boards: Mutex::default(),
            running: Mutex::default(),
        }))
    }

    /// Queues for a lock and holds it. Everything that can go wrong is told by the [`Acquisition`], whose drop gives
    /// the lock back.
    pub(crate) fn acquire(&self, request: AcquireRequest) -> Acquisition {
        let id = LockId::fresh(&request.path);
        let slot = Slot::new(id);
        let acquisition = Acquisition::new(slot.clone());
        if let Err(error) = self.try_acquire(request, &slot) {
            slot.end(Err(error));
        }
        acquisition
    }

    fn try_acquire(&self, request: AcquireRequest, slot: &Arc<Slot>) -> Result<(), Error> {
        let AcquireRequest { path, simultaneous, wait, ttl, name, lock_id } = request;
        if path.is_root() {
            return Err(Error::InvalidPath { path: path.as_str().to_owned(), error: PathError::Root });
        }
        if ttl.is_some_and(|ttl| !ttl.is_zero()) {
            return Err(Error::Protocol { field: "ttl", cause: "locks with a ttl are not supported yet".to_owned() });
        }
        if lock_id.is_some_and(|id| !id.is_empty()) {
            return Err(Error::Protocol {
                field: "lock_id",
                cause: "locks with a ttl are not supported yet".to_owned(),
            });
        }
        let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| "rollcall".to_owned());
        if name.len() > MAX_NAME {
            return Err(Error::Protocol { field: "name", cause: format!("is over the limit of {MAX_NAME} bytes") });
        }
        let permit = self.0.places.clone().try_acquire_owned().map_err(|_| Error::LimitExceeded {
            reason: "TOO_MANY_LOCKS",
            what: "the number of locks that this replica holds and waits for",
            limit: u64::try_from(self.0.limit).unwrap_or(u64::MAX),
        })?;
        let wait = match wait {
            Some(wait) if wait.is_zero() => Wait::Try,
            // Later than any clock goes is for ever.
            Some(wait) => Instant::now().checked_add(wait).map_or(Wait::Forever, Wait::Until),
            None => Wait::Forever,
        };
        let mark = slot.id().mark();
        let terms = Terms { path, limit: simultaneous.max(1), wait, name: name.into(), mark: mark.clone() };
        lock(&self.0.running).insert(mark.clone(), slot.clone());
        let life = Life { shared: self.0.clone(), slot: slot.clone(), mark, _permit: permit };
        self.0.spawn(Box::pin(life.live(terms)));
        Ok(())
    }

    /// Gives back a lock or a place in the queue, whichever replica it belongs to. `false`: it ended in another way
    /// meanwhile. After an error that leaves it unclear, call again: [`Error::UnknownLock`] says that it is over.
    pub(crate) async fn release(&self, lock_id: &str) -> Result<bool, Error> {
        let id = LockId::parse(lock_id).ok_or(Error::UnknownLock)?;
        let slot = lock(&self.0.running).get(&id.mark()).filter(|slot| *slot.id() == id).cloned();
        let Some(slot) = slot else { return release::release(&self.0.pool, &id).await };
        if slot.is_over() {
            return Err(Error::UnknownLock);
        }
        let ours = slot.give(Order::Release);
        match tokio::time::timeout(PATIENCE, slot.ended()).await {
            Ok(()) => Ok(ours),
            // It goes on being released.
            Err(_) => Err(Error::BackendUnavailable),
        }
    }

    /// Who holds a lock and who waits for it.
    pub(crate) async fn describe(&self, path: &NodePath) -> Result<Description, Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let described = match self.0.pool.any() {
                Ok(owner) => describe::describe(owner.session(), path).await,
                Err(error) => Err(error.into()),
            };
            match described {
                Err(Interrupt::Zk(zk::Error::Refused(code))) => return Err(node::refusal(code, path)),
                Err(Interrupt::Zk(_)) if Instant::now() < deadline => seat::pause().await,
                described => return Ok(described?),
            }
        }
    }

    /// Waits until nothing is held or waited for any more; what is asked for from now on is refused. For the end of a
    /// drain, after the streams have been dropped.
    pub(crate) async fn drained(&self) {
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

    /// The board for a lock on an owner's session, started if there is none.
    fn board(self: &Arc<Self>, owner: &Owner, path: &NodePath) -> Board {
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
        let mut owners = self.pool.owners();
        let now = owners.borrow_and_update().clone();
        let any_connected = async {
            let waiting: Vec<_> = now.iter().map(|owner| Box::pin(owner.session().connected())).collect();
            if waiting.is_empty() || now.iter().any(|owner| owner.session().is_up()) {
                // All that are connected are full: another is being opened.
                tokio::time::sleep(TIDY).await;
            } else if !futures_util::future::select_all(waiting).await.0 {
                // One has just expired, and is about to leave the list.
                seat::pause().await;
            }
        };
        tokio::select! {
            _ = owners.changed() => {}
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

/// One lock's task: from the request until nothing of it is left.
struct Life {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    mark: Mark,
    _permit: OwnedSemaphorePermit,
}

impl Life {
    async fn live(self, terms: Terms) {
        let deadline = match terms.wait {
            Wait::Forever => None,
            // A connection that hangs under way must not hold back the end.
            Wait::Try => Some(Instant::now() + PATIENCE + TIDY),
            Wait::Until(deadline) => deadline.checked_add(TIDY),
        };
        let mut attempts = pin!(self.attempts(&terms));
        tokio::select! {
            () = &mut attempts => return,
            () = attempt::until(deadline) => {}
        }
        self.slot.end_waiting(if self.slot.was_queued() {
            Error::LockBusy { path: terms.path.clone(), holders: self.slot.holders() }
        } else {
            Error::BackendUnavailable
        });
        attempts.await;
    }

    async fn attempts(&self, terms: &Terms) {
        loop {
            let mut attempt = match attempt::start(&self.shared, terms, &self.slot).await {
                Ok(attempt) => attempt,
                Err(Stop::Again) => continue,
                Err(stop) => return self.tell(terms, stop, self.slot.holders()),
            };
            let stop = match take(&mut attempt).await {
                Ok((grant, watch)) => hold::hold(&attempt, grant, watch).await,
                Err(stop) => stop,
            };
            let holders = if matches!(stop, Stop::Busy) { attempt.in_the_way().await } else { Vec::new() };
            let mut seat = attempt.leave();
            match stop {
                Stop::Again => {
                    seat.clear().await;
                    continue;
                }
                // What is lost must be told at once.
                Stop::Removed | Stop::SessionLost => {
                    self.tell(terms, stop, holders);
                    return seat.clear().await;
                }
                Stop::Ordered(_) | Stop::Released | Stop::Busy | Stop::Failed(_) => {}
            }
            let mut clearing = pin!(seat.clear());
            let cleared = tokio::time::timeout(TIDY, &mut clearing).await.is_ok();
            self.tell(terms, stop, holders);
            if !cleared {
                clearing.await;
            }
            return;
        }
    }

    fn tell(&self, terms: &Terms, stop: Stop, holders: Vec<String>) {
        let path = terms.path.clone();
        match stop {
            Stop::Again | Stop::Ordered(_) | Stop::Released => self.slot.end(Ok(())),
            Stop::Busy => self.slot.end(Err(Error::LockBusy { path, holders })),
            Stop::Failed(error) => self.slot.end(Err(error)),
            Stop::Removed => {
                let cause = "its node in zookeeper was deleted by another";
                self.slot.lost(LostReason::Removed, Error::LockLost { path, cause });
            }
            Stop::SessionLost => {
                let cause = "the zookeeper session that carried it is over, or may be";
                self.slot.lost(LostReason::SessionLost, Error::LockLost { path, cause });
            }
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        lock(&self.shared.running).remove(&self.mark);
        // Only a task that failed has not told an end.
        let path = self.slot.id().path().clone();
        self.slot.end(Err(Error::Internal { path, cause: "the task of this lock failed".to_owned() }));
    }
}

/// Queues, takes the lease, and makes sure that it may be told.
async fn take(attempt: &mut Attempt) -> Result<(Grant, OneShot), Stop> {
    let grant = attempt.grant().await?;
    let watch = hold::confirm(attempt, grant).await?;
    Ok((grant, watch))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
