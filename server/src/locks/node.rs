//! The lock node: a durable node with the number of those who may hold the lock at once.

use bytes::Bytes;

use super::Interrupt;
use super::queue::{Limit, is_worn_out, looks_like_a_lease};
use super::record::as_zk;
use crate::error::Error;
use crate::lock_nodes::{LockRecord, lock_record};
use crate::refusal;
use crate::types::{NodePath, Stat, Zxid};
use crate::zk::layout::{is_in_lock_queue, lock_queue};
use crate::zk::{self, CommitError, CreateMode, EphemeralSession, ErrorCode, Session};

/// How often a node that changes under one's hands is looked at again.
const CHECK_TRIES: usize = 16;

/// Makes sure that the lock node stands and has this number, and gives the transaction that wrote it.
///
/// A node without data is kazoo's, which creates first and writes then, and may die in between: it is filled in, unless
/// it has children that can't be leases; then it belongs to something else. `records`: a lock that is made here gets a
/// record, by which it is found when nobody uses it any more.
pub(super) async fn check(
    owner: &EphemeralSession,
    path: &NodePath,
    limit: u32,
    records: bool,
) -> Result<Zxid, Interrupt> {
    let session = owner.session();
    for _ in 0..CHECK_TRIES {
        match session.get(path).await.map_err(|error| refused(error, path))? {
            Some(read) => match Limit::of(&read.data) {
                _ if !is_durable(&read.stat) => return Err(not_a_lock(path, "it is an ephemeral node")),
                Limit::Number(actual) if actual == limit => return Ok(Zxid(read.stat.mzxid)),
                Limit::Number(actual) => {
                    return Err(Error::LockLimitDiffers { path: path.clone(), asked: limit, actual }.into());
                }
                Limit::Foreign => return Err(not_a_lock(path, "its data is no number")),
                Limit::Empty => {
                    if let Some(zxid) = fill_in(session, path, limit, read.stat.version).await? {
                        return Ok(zxid);
                    }
                }
            },
            None => {
                if let Some(zxid) = create(owner, path, limit, records).await? {
                    return Ok(zxid);
                }
            }
        }
    }
    Err(Error::Internal { path: path.clone(), cause: "the lock node keeps changing".to_owned() }.into())
}

/// `None`: the node changed meanwhile; look again.
async fn fill_in(session: &Session, path: &NodePath, limit: u32, version: i32) -> Result<Option<Zxid>, Interrupt> {
    let Some((names, _)) = session.children(path).await? else { return Ok(None) };
    if !names.iter().all(|name| looks_like_a_lease(name)) {
        return Err(not_a_lock(path, "it has children that are no leases"));
    }
    match session.submit(zk::set_data(path.as_str(), number(limit), version)).await {
        Ok(answer) => Ok(Some(answer.zxid)),
        Err(zk::Error::Refused(ErrorCode::BadVersion | ErrorCode::NoNode)) => Ok(None),
        Err(error) => Err(refused(error, path)),
    }
}

/// Refuses a path whose node would be taken for a lock's contender, or be in their way.
///
/// # Errors
/// [`Error::NotALock`].
pub(super) fn check_name(path: &NodePath) -> Result<(), Error> {
    let cause = "its name is that of a lock's queue, or it lies below one";
    if is_in_lock_queue(path) { Err(Error::NotALock { path: path.clone(), cause }) } else { Ok(()) }
}

/// Refuses to make a node below another lock's: it would be no lease of that, and make it none for good. The parents that
/// are missing would be made with it, so the first one counts that stands.
async fn check_parents(session: &Session, path: &NodePath) -> Result<(), Interrupt> {
    session.sync(path).await?;
    let mut next = path.parent();
    while let Some(parent) = next.filter(|parent| !parent.is_root()) {
        let reads = session.get_many([parent.as_str(), lock_queue(&parent).as_str()]).await?;
        let [node, queue] = reads.as_slice() else { return Err(zk::Error::OutcomeUnknown.into()) };
        if !matches!(queue, Ok(None)) {
            return Err(not_a_lock(path, "it lies below another lock"));
        }
        next = if matches!(node, Ok(None)) { parent.parent() } else { None };
    }
    Ok(())
}

/// `None`: somebody else created it; look again.
async fn create(
    owner: &EphemeralSession,
    path: &NodePath,
    limit: u32,
    records: bool,
) -> Result<Option<Zxid>, Interrupt> {
    let session = owner.session();
    check_parents(session, path).await?;
    let lock = zk::create(path.as_str(), number(limit), CreateMode::Persistent);
    let record = LockRecord { path: path.clone(), used: Zxid(0) };
    let mut ops = vec![lock];
    ops.extend(records.then(|| record.create()));
    loop {
        match owner.commit(ops.clone()).await {
            Ok(committed) => return Ok(Some(committed.zxid)),
            Err(CommitError::Part { index: 0, code: ErrorCode::NodeExists }) => return Ok(None),
            Err(CommitError::Part { index: 0, code: ErrorCode::NoNode }) => {
                session.ensure_parents(path).await.map_err(|error| refused(error, path))?;
                return Ok(None);
            }
            Err(CommitError::Part { index: 1, code }) => {
                ops.truncate(1);
                match code {
                    // Of the lock that was here before. It is written, so that it is not deleted now as that one's.
                    ErrorCode::NodeExists => ops.push(record.write(-1)),
                    ErrorCode::NoNode => {
                        let place = lock_record(path);
                        match session.ensure_parents(&place).await {
                            Ok(()) => return Ok(None),
                            // An operator has prepared what stands, and no more may be made.
                            Err(zk::Error::Refused(_)) => {}
                            Err(error) => return Err(refused(error, path)),
                        }
                    }
                    // A lock without a record is only never found when it is idle.
                    _ => {}
                }
            }
            Err(error) => return Err(refused(as_zk(error), path)),
        }
    }
}

/// Makes sure that the node stands below which contenders wait.
pub(super) async fn ensure_queue(session: &Session, path: &NodePath) -> Result<(), Interrupt> {
    let queue = lock_queue(path);
    for _ in 0..CHECK_TRIES {
        match session.create(queue.as_str(), Bytes::new(), CreateMode::Persistent).await {
            Ok(_) | Err(zk::Error::Refused(ErrorCode::NodeExists)) => return Ok(()),
            Err(zk::Error::Refused(ErrorCode::NoNode)) => {
                session.ensure_parents(&queue).await.map_err(|error| refused(error, path))?;
            }
            Err(error) => {
                // Where nothing may be created another may have made it in the meantime.
                let stands = error == zk::Error::Refused(ErrorCode::NoAuth) && session.exists(&queue).await?.is_some();
                return if stands { Ok(()) } else { Err(refused(error, path)) };
            }
        }
    }
    Err(Error::Internal { path: path.clone(), cause: "its parents keep vanishing".to_owned() }.into())
}

/// What came of the replacement of a queue's node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Renewal {
    /// It counts from zero again.
    Done,
    /// It is not as it was, or somebody is in it.
    Busy,
    /// Not everybody may do everything with it; and who may do what can't always be read.
    Protected,
}

/// Replaces the node whose children are the contenders by one that counts them from zero, if there are none. That is one
/// transaction: nobody ever finds the node missing.
pub(super) async fn renew_queue(owner: &EphemeralSession, path: &NodePath) -> Result<Renewal, zk::Error> {
    let (session, queue) = (owner.session(), lock_queue(path));
    let (open, read) = futures_util::future::join(session.is_open(&queue), session.get(&queue)).await;
    let (Some(open), Some(read)) = (open?, read?) else { return Ok(Renewal::Busy) };
    if read.stat.num_children > 0 || !is_worn_out(&read.stat) {
        return Ok(Renewal::Busy);
    }
    if !open {
        return Ok(Renewal::Protected);
    }
    let renewal = vec![
        zk::delete(queue.as_str(), read.stat.version),
        zk::create(queue.as_str(), read.data, CreateMode::Persistent),
    ];
    match owner.commit(renewal).await {
        Ok(_) => {
            tracing::info!(%path, "the sequence numbers of a lock's queue begin anew");
            Ok(Renewal::Done)
        }
        Err(CommitError::Part { code: ErrorCode::NotEmpty | ErrorCode::BadVersion | ErrorCode::NoNode, .. }) => {
            Ok(Renewal::Busy)
        }
        Err(error) => Err(as_zk(error)),
    }
}

/// Whether a node outlives sessions. Containers and TTL nodes do, and have marks instead of an owner.
pub(super) fn is_durable(stat: &Stat) -> bool {
    const TTL_MARK: u8 = 0xff;
    let [first, ..] = stat.ephemeral_owner.to_be_bytes();
    stat.ephemeral_owner == 0 || stat.ephemeral_owner == i64::MIN || first == TTL_MARK
}

/// What a refusal means for a lock.
pub(super) fn refused(error: zk::Error, path: &NodePath) -> Interrupt {
    match error {
        zk::Error::Refused(code) => refusal::refused(path, code).into(),
        error => error.into(),
    }
}

pub(super) fn not_a_lock(path: &NodePath, cause: &'static str) -> Interrupt {
    Error::NotALock { path: path.clone(), cause }.into()
}

fn number(limit: u32) -> Bytes {
    limit.to_string().into()
}
