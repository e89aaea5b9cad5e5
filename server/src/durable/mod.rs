//! Durable nodes: dynamic configuration. Registrations and locks are never touched.

mod subtree;

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use self::subtree::{ChildNames, Subtree};
use crate::budget::Account;
use crate::error::Error;
use crate::lock_nodes::{LockNodes, lock_record};
use crate::refusal;
use crate::turns::Turns;
use crate::types::{NodePath, Stat};
use crate::zk::layout::{is_in_lock_queue, is_lock_queue, lock_queue};
use crate::zk::{self, CommitError, CreateMode, EphemeralSession, ErrorCode, Request, Response, Session, Zk};

/// Maximum number of tries of a write without an expected version, while other replicas or programs write at the same
/// time.
const WRITE_TRIES: u64 = 32;
/// Maximum number of nodes that one transaction deletes; fewer with long paths and a long chroot.
const DELETE_BATCH: usize = 128;
/// Number of nodes that are read together: a step of this size takes well below a millisecond.
const READ_BATCH: usize = 48;
/// Maximum number of nodes of a subtree that is deleted beside any number of other subtrees.
const SMALL_SUBTREE: usize = 1000;
/// Maximum number of larger subtrees that are read and deleted at a time, because each may fill its connection's
/// account.
const LARGE_DELETES: usize = 4;

/// The state that a Put expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Any: the node is created or written.
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
    /// Writes of one path wait for each other: each reads before it writes, and many at once would only make each other
    /// fail.
    writes: Turns<NodePath>,
    large_deletes: Turns<()>,
}

impl Durable {
    pub(crate) fn new(zk: Zk) -> Self {
        Self { zk, writes: Turns::new(1), large_deletes: Turns::new(LARGE_DELETES) }
    }

    /// Writes a node and its missing parents, and returns its stat.
    ///
    /// # Errors
    /// `NodeExists`, `NoNode`, `VersionMismatch`, according to `expect`; `HasRegistrations` for an ephemeral or a
    /// lock's node; `NoAuth`; `BackendUnavailable` when nothing was written, `OutcomeUnknown` when that is not known.
    pub(crate) async fn put(
        &self,
        path: &NodePath,
        data: Bytes,
        expect: Expect,
        account: &Account,
    ) -> Result<Stat, Error> {
        let _turn = self.writes.turn(path, account.id()).await;
        let owner = self.zk.pool.any().map_err(|error| read_failed(path, error))?;
        let session = owner.session();
        let mut is_synced = false;
        for attempt in 0..WRITE_TRIES {
            if attempt > 1 {
                // Out of step with other writers of the same node, this one is done sooner.
                tokio::time::sleep(Duration::from_millis(rand::random_range(0..=attempt))).await;
            }
            let standing = self.look(session, path).await;
            let tried = match standing.and_then(|standing| refusal(path, standing, expect).map(|()| standing)) {
                Ok(None) => create(&owner, path, data.clone()).await?,
                Ok(Some(stat)) => write(session, path, data.clone(), stat.version).await?,
                // This session's server may be behind; a refusal must not rest on an old state.
                Err(error) if is_synced => return Err(error),
                Err(_) => None,
            };
            if let Some(stat) = tried {
                return Ok(stat);
            }
            session.sync(path).await.map_err(|error| read_failed(path, error))?;
            is_synced = true;
        }
        Err(Error::Internal { path: path.clone(), cause: "other clients keep changing it: try again".to_owned() })
    }

    /// Deletes a node, with everything below it if asked; of a lock that nobody holds or waits for, both nodes.
    /// `account` pays for the memory that a subtree takes.
    ///
    /// # Errors
    /// `NoNode`, `VersionMismatch`, `NotEmpty`; `HasRegistrations`, and nothing is deleted, if the node or a node below
    /// it is an ephemeral or belongs to another lock; `NoAuth`; `LimitExceeded`; `BackendUnavailable` when nothing was
    /// deleted, `OutcomeUnknown` when that is not known. A subtree of more than [`DELETE_BATCH`] nodes is deleted in
    /// several transactions, the deepest nodes first. Once one of them was carried out, an error that stops the others
    /// is returned as `PartlyDeleted`.
    pub(crate) async fn delete(
        &self,
        path: &NodePath,
        version: Option<i32>,
        recursive: bool,
        account: &Account,
    ) -> Result<(), Error> {
        let _turn = self.writes.turn(path, account.id()).await;
        let owner = self.zk.pool.any().map_err(|error| read_failed(path, error))?;
        let session = owner.session();
        // Others may have written on another server since: `NO_NODE` and the version must not come from an old answer.
        session.sync(path).await.map_err(|error| read_failed(path, error))?;
        let mut has_deleted = false;
        for _ in 0..WRITE_TRIES {
            let tried = self.try_delete(session, path, version, recursive, account, &mut has_deleted).await;
            match tried {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return after_deletes(path, has_deleted, error),
            }
        }
        let cause = "other clients keep changing the nodes below it: try again".to_owned();
        after_deletes(path, has_deleted, Error::Internal { path: path.clone(), cause })
    }

    /// `false`: something was changed meanwhile, and has to be read again.
    async fn try_delete(
        &self,
        session: &Session,
        path: &NodePath,
        version: Option<i32>,
        recursive: bool,
        account: &Account,
        has_deleted: &mut bool,
    ) -> Result<bool, Error> {
        let stat = match self.look(session, path).await {
            Ok(Some(stat)) => stat,
            Ok(None) => return Err(Error::NoNode { path: path.clone() }),
            Err(Error::HasRegistrations { .. }) if !is_in_lock_queue(path) => {
                return delete_lock(session, path, version).await;
            }
            Err(error) => return Err(error),
        };
        if let Some(expected) = version.filter(|expected| *expected != stat.version) {
            return Err(Error::VersionMismatch { path: path.clone(), expected, actual: stat.version });
        }
        if stat.num_children > 0 && !recursive {
            return Err(Error::NotEmpty { path: path.clone() });
        }
        let mut subtree = Subtree::new(account);
        subtree.add(path, stat.version, stat.num_children > 0)?;
        self.read_below(session, &mut subtree, account).await?;
        delete_all(session, path, subtree, has_deleted).await
    }

    /// Reads everything below the nodes of a subtree.
    async fn read_below(&self, session: &Session, subtree: &mut Subtree, account: &Account) -> Result<(), Error> {
        while let Some(parent) = subtree.next_unlisted() {
            let children = session.children(&parent).await.map_err(|error| read_failed(&parent, error))?;
            let mut names = ChildNames::new(children.map(|(names, _)| names).unwrap_or_default(), account)?;
            loop {
                let batch: Vec<_> = names.take(READ_BATCH).iter().map(|name| parent.join(name)).collect();
                if batch.is_empty() {
                    break;
                }
                if subtree.turn.is_none() && subtree.len() > SMALL_SUBTREE {
                    subtree.turn = Some(self.large_deletes.turn(&(), account.id()).await);
                }
                look_at(session, batch, subtree).await?;
            }
        }
        Ok(())
    }

    /// The node's stat; `None` if it does not exist.
    async fn look(&self, session: &Session, path: &NodePath) -> Result<Option<Stat>, Error> {
        let in_the_way = || Error::HasRegistrations { path: path.clone() };
        if is_in_lock_queue(path) {
            return Err(in_the_way());
        }
        let parent = path.parent().filter(|parent| !parent.is_root());
        // A lock is recognized by the queue beside it.
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

/// Fails if the node is not in the state that a Put expects.
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

/// `None`: the node exists by now, or others delete its parents at the same time.
async fn create(owner: &EphemeralSession, path: &NodePath, data: Bytes) -> Result<Option<Stat>, Error> {
    match owner.session().create(path.as_str(), data.clone(), CreateMode::Persistent).await {
        Ok((_, _, stat)) => Ok(Some(stat)),
        Err(zk::Error::Refused(ErrorCode::NodeExists)) => Ok(None),
        Err(zk::Error::Refused(ErrorCode::NoNode)) => create_with_parents(owner, path, data).await,
        Err(error) => Err(translate(path, error)),
    }
}

/// Like [`create`], with the missing parents in the same transaction, so that nobody can delete a parent in between.
async fn create_with_parents(owner: &EphemeralSession, path: &NodePath, data: Bytes) -> Result<Option<Stat>, Error> {
    let parents = owner.session().creates_of_parents(path).await;
    let mut ops = parents.map_err(|error| read_failed(path, error))?;
    let data_length = i32::try_from(data.len()).unwrap_or(i32::MAX);
    ops.push(zk::create(path.as_str(), data, CreateMode::Persistent));
    match owner.commit(ops).await {
        Ok(committed) => {
            let zxid = committed.zxid.0;
            Ok(Some(match committed.parts.last() {
                Some(Response::Created { stat, .. }) if stat.czxid == zxid => *stat,
                // Another write has replaced it already.
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

/// `None`: the node has another version by now, or is gone.
async fn write(session: &Session, path: &NodePath, data: Bytes, version: i32) -> Result<Option<Stat>, Error> {
    match session.submit(zk::set_data(path.as_str(), data, version)).await {
        Ok(answer) => match answer.response {
            Response::Stat(stat) => Ok(Some(stat)),
            _ => Err(Error::OutcomeUnknown { path: path.clone() }),
        },
        Err(zk::Error::Refused(ErrorCode::BadVersion | ErrorCode::NoNode)) => Ok(None),
        Err(error) => Err(translate(path, error)),
    }
}

/// Adds to a subtree the nodes of these paths that exist.
async fn look_at(session: &Session, paths: Vec<NodePath>, subtree: &mut Subtree) -> Result<(), Error> {
    if let Some(queue) = paths.iter().find(|path| path.is_reserved() || is_lock_queue(path)) {
        return Err(Error::HasRegistrations { path: queue.clone() });
    }
    let looks = join_all(paths.iter().map(|path| session.exists(path))).await;
    for (path, look) in paths.iter().zip(looks) {
        match look.map_err(|error| read_failed(path, error))? {
            Some(stat) if stat.is_ephemeral() => return Err(Error::HasRegistrations { path: path.clone() }),
            Some(stat) => subtree.add(path, stat.version, stat.num_children > 0)?,
            None => {}
        }
    }
    Ok(())
}

/// Deletes the nodes of a lock that nobody holds or waits for, its record included; `false` if something was changed
/// meanwhile.
async fn delete_lock(session: &Session, path: &NodePath, version: Option<i32>) -> Result<bool, Error> {
    let nodes = LockNodes::read(session, path).await.map_err(|error| read_failed(path, error))?;
    let LockNodes::Lock { is_busy: false, versions, .. } = nodes else {
        return Err(Error::HasRegistrations { path: path.clone() });
    };
    if let Some(expected) = version.filter(|expected| *expected != versions.lock) {
        return Err(Error::VersionMismatch { path: path.clone(), expected, actual: versions.lock });
    }
    let place = lock_record(path);
    let record = session.exists(&place).await.map_err(|error| read_failed(path, error))?;
    let mut ops = versions.removal(path).to_vec();
    ops.extend(record.map(|record| Request::Delete { path: place.as_str().to_owned(), version: record.version }));
    let answer = session.submit(Request::Multi(ops)).await.map_err(|error| translate(path, error))?;
    match refusal_in(answer.response, path)? {
        None => Ok(true),
        Some(ErrorCode::NoNode | ErrorCode::BadVersion | ErrorCode::NotEmpty) => Ok(false),
        Some(code) => Err(translate(path, zk::Error::Refused(code))),
    }
}

/// The code with which a transaction was refused, if it was.
fn refusal_in(response: Response, path: &NodePath) -> Result<Option<ErrorCode>, Error> {
    let Response::Parts(parts) = response else { return Err(Error::OutcomeUnknown { path: path.clone() }) };
    Ok(parts.into_iter().find_map(|part| part.err().filter(|code| *code != ErrorCode::RuntimeInconsistency)))
}

/// Deletes a subtree, the last nodes first, transaction by transaction; `false` if something was changed meanwhile and
/// has to be read again.
async fn delete_all(
    session: &Session,
    path: &NodePath,
    mut subtree: Subtree,
    has_deleted: &mut bool,
) -> Result<bool, Error> {
    while subtree.len() > 0 {
        let nodes = std::iter::from_fn(|| subtree.pop()).take(DELETE_BATCH);
        let deletes = nodes.map(|(path, version)| Request::Delete { path, version }).collect();
        for batch in session.batches(deletes, DELETE_BATCH) {
            let answer = session.submit(Request::Multi(batch)).await.map_err(|error| translate(path, error))?;
            match refusal_in(answer.response, path)? {
                None => *has_deleted = true,
                Some(ErrorCode::NoNode | ErrorCode::BadVersion | ErrorCode::NotEmpty) => return Ok(false),
                Some(code) => return Err(translate(path, zk::Error::Refused(code))),
            }
        }
    }
    Ok(true)
}

/// The result of a Delete that can't go on, when some of it may have been carried out.
fn after_deletes(path: &NodePath, has_deleted: bool, error: Error) -> Result<(), Error> {
    match error {
        // Others have deleted the rest.
        Error::NoNode { .. } if has_deleted => Ok(()),
        Error::OutcomeUnknown { .. } => Err(error),
        error if has_deleted => Err(Error::PartlyDeleted { path: path.clone(), cause: Box::new(error) }),
        error => Err(error),
    }
}

/// The error of a failed request, if nothing of the call can have been carried out yet.
pub(crate) fn read_failed(path: &NodePath, error: zk::Error) -> Error {
    if error.is_unknown() { Error::BackendUnavailable } else { translate(path, error) }
}

/// The error of a failed request, for the caller.
fn translate(path: &NodePath, error: zk::Error) -> Error {
    match error {
        zk::Error::Refused(code) => refusal::refused(path, code),
        zk::Error::NotSent => Error::BackendUnavailable,
        zk::Error::OutcomeUnknown | zk::Error::SessionExpired => Error::OutcomeUnknown { path: path.clone() },
        zk::Error::TooLarge(bytes) => refusal::too_large(path, bytes),
        zk::Error::AnswerTooLarge(_) => Error::Internal { path: path.clone(), cause: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rollcall_embedded::Embedded;
    use tokio::task::JoinSet;

    use super::*;
    use crate::budget::{Budget, Limits, Resource};

    async fn start(tasks: &mut JoinSet<()>) -> Durable {
        let embedded = Embedded::bind("127.0.0.1:0".parse().unwrap(), rollcall_embedded::Config::default());
        let embedded = embedded.await.unwrap();
        let config = zk::Config::of(embedded.local_addr());
        tasks.spawn(async move { embedded.run(std::future::pending()).await });
        let durable = Durable::new(Zk::start(config, tasks));
        while durable.zk.pool.any().is_err() {
            tokio::task::yield_now().await;
        }
        durable
    }

    #[tokio::test]
    async fn a_connection_that_writes_one_path_all_the_time_holds_up_nobody_else_for_long() {
        const MANY: usize = 200;
        let mut tasks = JoinSet::new();
        let durable = start(&mut tasks).await;
        let budget = Budget::new(Limits::NONE, Limits::NONE);
        let (flood, other) = (budget.account(), budget.account());
        let path = NodePath::trusted("/popular");
        let put = |account| durable.put(&path, Bytes::new(), Expect::Anything, account);
        let done = AtomicUsize::new(0);
        let flood = futures_util::future::join_all((0..MANY).map(|_| async {
            put(&flood).await.unwrap();
            done.fetch_add(1, Ordering::Relaxed);
        }));
        let other = async {
            put(&other).await.unwrap();
            done.load(Ordering::Relaxed)
        };
        // The whole flood asks first.
        let (_, before) = futures_util::future::join(flood, other).await;
        assert!(before < MANY / 2, "{before} came before");
    }

    #[tokio::test]
    async fn a_delete_of_more_than_its_connection_may_hold_deletes_nothing() {
        let mut tasks = JoinSet::new();
        let durable = start(&mut tasks).await;
        let budget = Budget::new(Limits { bytes: 3 * 1024, ..Limits::NONE }, Limits::NONE);
        let (account, other) = (budget.account(), Account::unlimited());
        let put = |path: String| {
            let (durable, other) = (durable.clone(), other.clone());
            async move { durable.put(&NodePath::trusted(path), Bytes::new(), Expect::Anything, &other).await.unwrap() }
        };
        // Neither the names nor the nodes alone would be too much.
        for number in 0..40 {
            put(format!("/large/deep/{number}")).await;
        }
        put("/small/child".to_owned()).await;
        let (small, large) = (NodePath::trusted("/small"), NodePath::trusted("/large"));
        durable.delete(&small, None, true, &account).await.unwrap();
        let refused = durable.delete(&large, None, true, &account).await.unwrap_err();
        assert_eq!((refused.reason(), account.used(Resource::Bytes)), ("TOO_MANY_BYTES", 0));
        let owner = durable.zk.pool.any().unwrap();
        owner.session().sync(&large).await.unwrap();
        let (names, _) = owner.session().children(&large.join("deep")).await.unwrap().unwrap();
        assert_eq!(names.len(), 40);
        durable.delete(&large, None, true, &other).await.unwrap();
    }

    #[test]
    fn once_something_was_deleted_no_error_says_that_nothing_was() {
        let path = NodePath::trusted("/a");
        let error = |error: Error, has_deleted| after_deletes(&path, has_deleted, error).unwrap_err();
        let in_the_way = || Error::HasRegistrations { path: path.join("b") };
        for cause in [Error::BackendUnavailable, in_the_way()] {
            assert_eq!(error(cause.clone(), false), cause);
            assert_eq!(error(cause, true).reason(), "OUTCOME_UNKNOWN");
        }
        assert!(error(in_the_way(), true).to_string().contains("/a/b"));
        let gone = || Error::NoNode { path: path.clone() };
        assert_eq!(after_deletes(&path, true, gone()), Ok(()), "others have deleted the rest");
        assert_eq!(error(gone(), false), gone());
    }
}
