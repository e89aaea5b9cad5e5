//! Durable nodes: dynamic configuration. Registrations and locks are never touched.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::error::Error;
use crate::refusal;
use crate::types::{NodePath, Stat};
use crate::zk::layout::{is_in_lock_queue, is_lock_queue, lock_queue};
use crate::zk::{self, CommitError, CreateMode, ErrorCode, Owner, Request, Session, Zk};

/// How often a write without an expected version looks again, when other replicas or programs write at the same time.
const TRIES: u64 = 32;
/// Of how many groups of paths one write is made at a time each.
const TURNS: usize = 1024;
/// How many nodes one transaction deletes at most; with long paths and a long chroot fewer.
const DELETE_BATCH: usize = 128;
/// How many nodes are read at once: with the largest data the answer stays below what a connection takes.
const READ_BATCH: usize = 48;

/// What a Put expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Nothing: the node is created or written.
    Anything,
    /// That the node does not exist.
    Absent,
    /// That the node has this version.
    Version(i32),
}

/// A handle that writes durable nodes. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Durable {
    zk: Zk,
    turns: Arc<Turns>,
}

/// Writes of one path wait for each other here, first come first served: each looks before it writes, and many at once
/// would only fail each other.
#[derive(Debug)]
struct Turns {
    hasher: RandomState,
    groups: Vec<Semaphore>,
}

impl Turns {
    async fn of(&self, path: &NodePath) -> Result<SemaphorePermit<'_>, Error> {
        let hash = usize::try_from(self.hasher.hash_one(path) % TURNS as u64).unwrap_or_default();
        // They are never closed.
        self.groups[hash].acquire().await.map_err(|_| Error::BackendUnavailable)
    }
}

impl Durable {
    pub(crate) fn new(zk: Zk) -> Self {
        let groups = (0..TURNS).map(|_| Semaphore::new(1)).collect();
        Self { zk, turns: Arc::new(Turns { hasher: RandomState::new(), groups }) }
    }

    /// Writes a node, its parents included, and gives its stat.
    ///
    /// # Errors
    /// `NodeExists`, `NoNode`, `VersionMismatch` by `expect`; `HasRegistrations` for an ephemeral or a lock's node; `NoAuth`;
    /// `BackendUnavailable` when nothing was written, `OutcomeUnknown` when that is not known.
    pub(crate) async fn put(&self, path: &NodePath, data: Bytes, expect: Expect) -> Result<Stat, Error> {
        let _turn = self.turns.of(path).await?;
        let owner = self.zk.pool.any().map_err(|error| read_failed(path, error))?;
        let session = owner.session();
        let mut is_synced = false;
        for attempt in 0..TRIES {
            if attempt > 1 {
                // Out of step with those who write or delete the same, one is done sooner.
                tokio::time::sleep(Duration::from_millis(rand::random_range(0..=attempt))).await;
            }
            let standing = self.look(session, path).await;
            let tried = match standing.and_then(|standing| refusal(path, standing, expect).map(|()| standing)) {
                Ok(None) => create(&owner, path, data.clone()).await?,
                Ok(Some(stat)) => write(session, path, data.clone(), stat.version).await?,
                // What this session's server says may be old news; a refusal must not rest on it.
                Err(error) if is_synced => return Err(error),
                Err(_) => None,
            };
            if let Some(stat) = tried {
                return Ok(stat);
            }
            session.sync(path).await.map_err(|error| read_failed(path, error))?;
            is_synced = true;
        }
        Err(Error::Internal { path: path.clone(), cause: "others write it all the time".to_owned() })
    }

    /// Deletes a node, with all below it if asked.
    ///
    /// # Errors
    /// `NoNode`, `VersionMismatch`, `NotEmpty`; `HasRegistrations`, and nothing is deleted, when an ephemeral or a lock's
    /// node is met, below it too; `NoAuth`; `BackendUnavailable` when nothing was deleted, `OutcomeUnknown` when that is not
    /// known. A subtree of more than [`DELETE_BATCH`] nodes goes in several transactions, the deepest nodes first.
    pub(crate) async fn delete(&self, path: &NodePath, version: Option<i32>, recursive: bool) -> Result<(), Error> {
        let _turn = self.turns.of(path).await?;
        let owner = self.zk.pool.any().map_err(|error| read_failed(path, error))?;
        let session = owner.session();
        // Others may have written on another server since: `NO_NODE` and the version must not be an old answer.
        session.sync(path).await.map_err(|error| read_failed(path, error))?;
        for _ in 0..TRIES {
            let Some(stat) = self.look(session, path).await? else {
                return Err(Error::NoNode { path: path.clone() });
            };
            if let Some(expected) = version.filter(|expected| *expected != stat.version) {
                return Err(Error::VersionMismatch { path: path.clone(), expected, actual: stat.version });
            }
            if stat.num_children > 0 && !recursive {
                return Err(Error::NotEmpty { path: path.clone() });
            }
            let subtree = if stat.num_children > 0 { read_subtree(session, path).await? } else { Vec::new() };
            let mut deletes: Vec<Request> = Vec::new();
            for (node, stat) in subtree.iter().rev() {
                deletes.push(zk::delete(node.as_str(), stat.version));
            }
            deletes.push(zk::delete(path.as_str(), stat.version));
            if delete_all(session, path, deletes).await? {
                return Ok(());
            }
        }
        Err(Error::Internal { path: path.clone(), cause: "others write below it all the time".to_owned() })
    }

    /// The node's stat; `None` when it does not exist.
    async fn look(&self, session: &Session, path: &NodePath) -> Result<Option<Stat>, Error> {
        let in_the_way = || Error::HasRegistrations { path: path.clone() };
        if is_in_lock_queue(path) {
            return Err(in_the_way());
        }
        let parent = path.parent().filter(|parent| !parent.is_root());
        // A lock is known by the queue beside it.
        let queues = [Some(path), parent.as_ref()].into_iter().flatten();
        let paths: Vec<_> = std::iter::once(path.clone()).chain(queues.map(lock_queue)).collect();
        let reads = session.get_many(paths.iter().map(NodePath::as_str)).await;
        let reads = reads.map_err(|error| read_failed(path, error))?;
        let mut reads = reads.into_iter();
        let node = match reads.next() {
            Some(Ok(node)) => node,
            Some(Err(ErrorCode::NoAuth)) => return Err(Error::NoAuth { path: path.clone() }),
            _ => return Err(Error::BackendUnavailable),
        };
        if reads.any(|queue| matches!(queue, Ok(Some(_)) | Err(ErrorCode::NoAuth))) {
            return Err(in_the_way());
        }
        match node {
            Some(node) if node.stat.is_ephemeral() => Err(in_the_way()),
            node => Ok(node.map(|node| node.stat)),
        }
    }
}

/// Whether what stands is what a Put expects.
fn refusal(path: &NodePath, standing: Option<Stat>, expect: Expect) -> Result<(), Error> {
    let path = path.clone();
    match (standing, expect) {
        (None, Expect::Version(_)) => Err(Error::NoNode { path }),
        (Some(_), Expect::Absent) => Err(Error::NodeExists { path }),
        (Some(stat), Expect::Version(expected)) if stat.version != expected => {
            Err(Error::VersionMismatch { path, expected, actual: stat.version })
        }
        _ => Ok(()),
    }
}

/// `None`: it exists by now, or others delete its parents at the same time.
async fn create(owner: &Owner, path: &NodePath, data: Bytes) -> Result<Option<Stat>, Error> {
    match owner.session().create(path.as_str(), data.clone(), CreateMode::Persistent).await {
        Ok((_, _, stat)) => Ok(Some(stat)),
        Err(zk::Error::Refused(ErrorCode::NodeExists)) => Ok(None),
        Err(zk::Error::Refused(ErrorCode::NoNode)) => create_with_parents(owner, path, data).await,
        Err(error) => Err(translate(path, error)),
    }
}

/// As [`create`], with what is missing above it, in one transaction: so nobody can delete a parent in between.
async fn create_with_parents(owner: &Owner, path: &NodePath, data: Bytes) -> Result<Option<Stat>, Error> {
    let parents = owner.session().creates_of_parents(path).await;
    let mut ops = parents.map_err(|error| read_failed(path, error))?;
    let data_length = i32::try_from(data.len()).unwrap_or(i32::MAX);
    ops.push(zk::create(path.as_str(), data, CreateMode::Persistent));
    match owner.commit(ops).await {
        Ok(committed) => {
            let zxid = committed.zxid.0;
            Ok(Some(match committed.parts.last() {
                Some(zk::Response::Created { stat, .. }) if stat.czxid == zxid => *stat,
                // Somebody has replaced it already.
                _ => Stat { czxid: zxid, mzxid: zxid, pzxid: zxid, data_length, ..Stat::default() },
            }))
        }
        Err(CommitError::FenceMoved | CommitError::Part { code: ErrorCode::NodeExists | ErrorCode::NoNode, .. }) => {
            Ok(None)
        }
        Err(CommitError::Part { code, .. }) => Err(translate(path, zk::Error::Refused(code))),
        Err(CommitError::Zk(error)) => Err(translate(path, error)),
    }
}

/// `None`: it has another version by now, or is gone.
async fn write(session: &Session, path: &NodePath, data: Bytes, version: i32) -> Result<Option<Stat>, Error> {
    match session.submit(zk::set_data(path.as_str(), data, version)).await {
        Ok(answer) => match answer.response {
            zk::Response::Stat(stat) => Ok(Some(stat)),
            _ => Err(Error::OutcomeUnknown { path: path.clone() }),
        },
        Err(zk::Error::Refused(ErrorCode::BadVersion | ErrorCode::NoNode)) => Ok(None),
        Err(error) => Err(translate(path, error)),
    }
}

/// Everything below a node, parents before children.
async fn read_subtree(session: &Session, root: &NodePath) -> Result<Vec<(NodePath, Stat)>, Error> {
    let mut found = Vec::new();
    let mut inner = VecDeque::from([root.clone()]);
    while let Some(parent) = inner.pop_front() {
        let children = session.children(&parent).await.map_err(|error| read_failed(&parent, error))?;
        let Some((names, _)) = children else { continue };
        let paths: Vec<_> = names.iter().map(|name| parent.join(name)).collect();
        if let Some(queue) = paths.iter().find(|path| path.is_reserved() || is_lock_queue(path)) {
            return Err(Error::HasRegistrations { path: queue.clone() });
        }
        for batch in paths.chunks(READ_BATCH) {
            let reads = session.get_many(batch.iter().map(NodePath::as_str)).await;
            for (path, read) in batch.iter().zip(reads.map_err(|error| read_failed(root, error))?) {
                match read {
                    Ok(Some(read)) if read.stat.is_ephemeral() => {
                        return Err(Error::HasRegistrations { path: path.clone() });
                    }
                    Ok(Some(read)) => {
                        if read.stat.num_children > 0 {
                            inner.push_back(path.clone());
                        }
                        found.push((path.clone(), read.stat));
                    }
                    Ok(None) => {}
                    Err(code) => return Err(translate(path, zk::Error::Refused(code))),
                }
            }
        }
    }
    Ok(found)
}

/// Deletes in order, transaction by transaction; `false` when something changed meanwhile and has to be read again.
async fn delete_all(session: &Session, path: &NodePath, deletes: Vec<Request>) -> Result<bool, Error> {
    for batch in session.batches(deletes, DELETE_BATCH) {
        let answer = session.submit(Request::Multi(batch)).await.map_err(|error| translate(path, error))?;
        let zk::Response::Parts(parts) = answer.response else {
            return Err(Error::OutcomeUnknown { path: path.clone() });
        };
        let failed =
            parts.into_iter().find_map(|part| part.err().filter(|code| *code != ErrorCode::RuntimeInconsistency));
        match failed {
            None => {}
            Some(ErrorCode::NoNode | ErrorCode::BadVersion | ErrorCode::NotEmpty) => return Ok(false),
            Some(code) => return Err(translate(path, zk::Error::Refused(code))),
        }
    }
    Ok(true)
}

/// What a failed request means, where none of what was asked can have been carried out yet.
pub(crate) fn read_failed(path: &NodePath, error: zk::Error) -> Error {
    if error.is_unknown() { Error::BackendUnavailable } else { translate(path, error) }
}

/// What a failed request means to whoever asked for it.
fn translate(path: &NodePath, error: zk::Error) -> Error {
    match error {
        zk::Error::Refused(code) => refusal::refused(path, code),
        zk::Error::NotSent => Error::BackendUnavailable,
        zk::Error::OutcomeUnknown | zk::Error::SessionExpired => Error::OutcomeUnknown { path: path.clone() },
        zk::Error::TooLarge(bytes) => refusal::too_large(path, bytes),
        zk::Error::AnswerTooLarge(_) => Error::Internal { path: path.clone(), cause: error.to_string() },
    }
}
