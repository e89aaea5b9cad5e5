//! Evictions: registrations that an operator has removed, and whose paths can't be registered for a time.
//!
//! An eviction is a durable record, created in the transaction that deletes the node. Every replica watches the
//! records, and keeps a table of them (`watching`), by which it refuses a path and removes registrations of its own. A
//! replica that lags may register a path once more; it removes that registration when it learns of the eviction.

mod known;
mod record;
mod watching;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

pub(crate) use self::known::Table;
use self::known::{KnownEviction, MAX_EVICTIONS, Shared};
use self::record::EvictionRecord;
pub(crate) use self::record::record_path;
use crate::error::Error;
use crate::refusal;
use crate::types::{NodePath, SessionId, Zxid};
use crate::zk::layout::{fence, is_in_lock_queue, lock_queue};
use crate::zk::{self, CommitError, CreateMode, EphemeralSession, ErrorCode, Guard, Read, Unit, Zk};

/// Maximum number of calls that evict or lift an eviction at a time.
const EVICTIONS_AT_ONCE: usize = 8;
/// Time for which a claim waits for the records on a replica that has just started.
const FIRST_READING: Duration = Duration::from_secs(1);
/// Maximum number of tries of an eviction while the node changes.
const EVICTION_TRIES: u64 = 64;

/// A handle on all evictions. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Evictions(Arc<Shared>);

/// Whether a path may be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EvictionVerdict {
    Free,
    /// It is evicted, and stays so for this time.
    Evicted(Duration),
    /// The records have not been read yet.
    Unknown,
}

impl Evictions {
    /// Starts the task that watches the records, which never ends, as one of `tasks`.
    pub(crate) fn start(zk: Zk, tasks: &mut JoinSet<()>) -> Self {
        let shared = Arc::new(Shared {
            zk,
            known: Mutex::default(),
            table: watch::Sender::new(None),
            calls: Semaphore::new(EVICTIONS_AT_ONCE),
        });
        tasks.spawn(watching::run(shared.clone()));
        Self(shared)
    }

    /// No evictions, and no task that looks for any.
    #[cfg(test)]
    pub(crate) fn none(zk: Zk) -> Self {
        let (known, calls) = (Mutex::default(), Semaphore::new(EVICTIONS_AT_ONCE));
        Self(Arc::new(Shared { zk, known, table: watch::Sender::new(Some(Table::default())), calls }))
    }

    /// Returns whether a path may be registered.
    pub(crate) fn verdict(&self, path: &NodePath) -> EvictionVerdict {
        let table = self.0.table.borrow();
        let Some(table) = &*table else { return EvictionVerdict::Unknown };
        let left = table.get(path).map(|until| until.saturating_duration_since(Instant::now()));
        left.filter(|left| !left.is_zero()).map_or(EvictionVerdict::Free, EvictionVerdict::Evicted)
    }

    /// Notes a path's record that was read before the watch has reported it.
    pub(crate) fn learn(&self, path: &NodePath, read: &Read) {
        let name = record::name(path);
        let Some(record) = EvictionRecord::parse(&name, &read.data) else { return };
        // The record is only a moment old. If it was known before, its end is known, too.
        let (until, written) = (Instant::now() + record.duration, Zxid(read.stat.mzxid));
        self.0.change(|known| {
            if known.get(&name).is_none_or(|known| known.written < written) {
                known.insert(name, KnownEviction { path: path.clone(), until, written });
            }
        });
    }

    /// Waits until the records have been read once, if ZooKeeper answers.
    pub(crate) async fn read_once(&self) {
        let mut table = self.0.table.subscribe();
        if table.borrow().is_none() && self.0.zk.pool.any().is_ok() {
            // The handle keeps the sender.
            let _ = timeout(FIRST_READING, table.wait_for(Option::is_some)).await;
        }
    }

    /// The evictions in force, and every change of them. `None` until they have been read once.
    pub(crate) fn table(&self) -> watch::Receiver<Option<Table>> {
        self.0.table.subscribe()
    }

    /// Removes a registration, if there is one, and keeps its path from being registered for a time. Returns whether
    /// there was one.
    ///
    /// # Errors
    /// `NotEphemeral`, `HasRegistrations` for a lock's node; `LimitExceeded`; `NoAuth`; `BackendUnavailable` when
    /// nothing was done, `OutcomeUnknown` when that is not known.
    pub(crate) async fn evict(&self, path: &NodePath, duration: Duration) -> Result<bool, Error> {
        if is_in_lock_queue(path) {
            return Err(Error::HasRegistrations { path: path.clone() });
        }
        // The semaphore is never closed.
        let _place = self.0.calls.acquire().await.ok();
        for attempt in 0..EVICTION_TRIES {
            if attempt > 1 {
                tokio::time::sleep(Duration::from_millis(rand::random_range(0..=attempt))).await;
            }
            if let Some(removed) = self.try_evict(path, duration).await? {
                tracing::info!(%path, ?duration, removed, "evicted");
                return Ok(removed);
            }
        }
        Err(Error::Internal { path: path.clone(), cause: "other clients keep changing it: try again".to_owned() })
    }

    /// Lets a path be registered again.
    ///
    /// # Errors
    /// Those of [`Evictions::evict`].
    pub(crate) async fn lift(&self, path: &NodePath) -> Result<(), Error> {
        let _place = self.0.calls.acquire().await.ok();
        let owner = self.0.zk.pool.any().map_err(|error| failed(path, error))?;
        match owner.commit(vec![zk::delete(record_path(path).as_str(), -1)]).await {
            Ok(_) | Err(CommitError::Part { code: ErrorCode::NoNode, .. }) => {}
            Err(CommitError::Part { code, .. }) => return Err(refusal::refused(path, code)),
            Err(CommitError::FenceMoved) => return Err(Error::BackendUnavailable),
            Err(CommitError::Zk(error)) => return Err(failed(path, error)),
        }
        tracing::info!(%path, "eviction lifted");
        self.0.change(|known| drop(known.remove(&record::name(path))));
        Ok(())
    }

    /// One try; `None`: the node has to be read again.
    async fn try_evict(&self, path: &NodePath, duration: Duration) -> Result<Option<bool>, Error> {
        let failed = |error| failed(path, error);
        let reader = self.0.zk.pool.any().map_err(failed)?;
        reader.session().sync(path).await.map_err(failed)?;
        let held_by =
            reader.session().get(path).await.map_err(failed)?.map(|read| SessionId(read.stat.ephemeral_owner));
        // This replica's knowledge of a session's own fence is valid only together with reads of that session.
        let ours = held_by.and_then(|session| self.0.zk.pool.owner(session)).filter(|owner| owner.session().is_up());
        let is_ours = ours.is_some();
        let owner = ours.unwrap_or(reader);
        let fence_epoch = owner.writer().fence_epoch();
        let look = EvictionNodes::at(path, held_by, &owner).await.map_err(failed)?;
        if look.node.as_ref().map(|node| SessionId(node.stat.ephemeral_owner)) != held_by {
            owner.session().sync(path).await.map_err(failed)?;
            return Ok(None);
        }
        if look.node.as_ref().is_some_and(|node| !node.stat.is_ephemeral()) {
            return Err(Error::NotEphemeral { path: path.clone() });
        }
        if look.node.is_some() && look.is_among_leases {
            return Err(Error::HasRegistrations { path: path.clone() });
        }
        if look.record.is_none() && self.0.count() >= MAX_EVICTIONS {
            let (reason, limit) = ("TOO_MANY_EVICTIONS", u64::try_from(MAX_EVICTIONS).unwrap_or(u64::MAX));
            return Err(Error::LimitExceeded { reason, what: "the number of evictions in force", limit });
        }
        let guard = match (&look.node, look.fence_version, is_ours) {
            (Some(_), _, true) => Guard::Own(fence_epoch),
            (Some(_), Some(version), false) => Guard::Foreign { path: fence(held_by.unwrap_or_default()), version },
            // Nothing is deleted, or the node belongs to a foreign program, which has no fence.
            _ => Guard::None,
        };
        self.commit(&owner, guard, &look, &EvictionRecord { path: path.clone(), duration }).await
    }

    async fn commit(
        &self,
        owner: &EphemeralSession,
        guard: Guard,
        look: &EvictionNodes,
        record: &EvictionRecord,
    ) -> Result<Option<bool>, Error> {
        let path = &record.path;
        let (name, at) = (record::name(path), record_path(path));
        let mut ops: Vec<_> = look.node.iter().map(|node| zk::delete(path.as_str(), node.stat.version)).collect();
        ops.push(match &look.record {
            Some(standing) => zk::set_data(at.as_str(), record.data(), standing.stat.version),
            None => zk::create(at.as_str(), record.data(), CreateMode::Persistent),
        });
        match owner.writer().commit(Unit { guard, ops }).await {
            Ok(committed) => {
                let until = Instant::now() + record.duration;
                let known = KnownEviction { path: path.clone(), until, written: committed.zxid };
                self.0.change(|all| drop(all.insert(name, known)));
                Ok(Some(look.node.is_some()))
            }
            Err(CommitError::FenceMoved) => Ok(None),
            Err(CommitError::Part { code, .. }) => match code {
                ErrorCode::BadVersion | ErrorCode::NodeExists => Ok(None),
                ErrorCode::NoNode => {
                    owner.session().ensure_parents(&at).await.map_err(|error| failed(path, error))?;
                    Ok(None)
                }
                code => Err(refusal::refused(path, code)),
            },
            Err(CommitError::Zk(error)) => Err(failed(path, error)),
        }
    }
}

/// The nodes that matter to an eviction, read in one state.
struct EvictionNodes {
    node: Option<Read>,
    record: Option<Read>,
    /// The version of the fence of the session that holds the node; `None` if it has none.
    fence_version: Option<i32>,
    /// Whether the node would be among the leases of a lock.
    is_among_leases: bool,
}

impl EvictionNodes {
    async fn at(path: &NodePath, held_by: Option<SessionId>, owner: &EphemeralSession) -> Result<Self, zk::Error> {
        let record = record_path(path);
        let queue = path.parent().filter(|parent| parent.as_str() != "/").map(|parent| lock_queue(&parent));
        let fence = held_by.map(fence);
        let queue = queue.as_ref().map_or(record.as_str(), NodePath::as_str);
        let paths = [path.as_str(), record.as_str(), fence.as_deref().unwrap_or(record.as_str()), queue];
        let reads = owner.session().get_many(paths).await?;
        let Ok([node, record_read, fence_read, queue_read]) = <[_; 4]>::try_from(reads) else {
            return Err(zk::Error::OutcomeUnknown);
        };
        Ok(Self {
            node: node.map_err(zk::Error::Refused)?,
            record: record_read.map_err(zk::Error::Refused)?,
            fence_version: fence_read.ok().flatten().filter(|_| fence.is_some()).map(|read| read.stat.version),
            is_among_leases: queue != record.as_str() && !matches!(queue_read, Ok(None)),
        })
    }
}

fn failed(path: &NodePath, error: zk::Error) -> Error {
    match error {
        zk::Error::OutcomeUnknown | zk::Error::SessionExpired => Error::OutcomeUnknown { path: path.clone() },
        zk::Error::Refused(code) => refusal::refused(path, code),
        zk::Error::TooLarge(bytes) => refusal::too_large(path, bytes),
        zk::Error::NotSent | zk::Error::AnswerTooLarge(_) => Error::BackendUnavailable,
    }
}
