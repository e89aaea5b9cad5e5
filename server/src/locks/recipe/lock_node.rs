//! The lock node, a durable node whose data is the maximum number of holders; and the queue, its sibling.
//!
//! A lock that is made through Rollcall gets a record as well, by which replicas find it when no client uses it any
//! more.

use bytes::Bytes;

use super::commit::as_zk;
use super::contenders::{is_worn_out, looks_like_a_lease};
use super::limit::Limit;
use crate::error::Error;
use crate::lock_nodes::{LockRecord, lock_record};
use crate::locks::outcome::StepError;
use crate::refusal;
use crate::types::{NodePath, Stat, Zxid};
use crate::zk::layout::{is_in_lock_queue, lock_queue};
use crate::zk::{self, CommitError, CreateMode, EphemeralSession, ErrorCode, Read, Session};

/// Maximum number of looks at a node that keeps changing. A smaller value fails where many clients make one lock at
/// once.
const CHECK_TRIES: usize = 16;

/// The result of the comparison of a lock node with the limit of a request.
#[derive(Debug, PartialEq, Eq)]
enum LimitCheck {
    /// The node has this limit, written by this transaction.
    Same(Zxid),
    /// The node has another limit.
    Differs(u32),
    /// The node has no number yet, and this version.
    FillIn(i32),
    /// The node is no lock.
    NotALock(&'static str),
}

/// Compares a lock node with the limit of a request. Pure.
///
/// A node without data is kazoo's, which creates the node first, writes its number then, and may die in between.
fn check_limit(read: &Read, limit: u32) -> LimitCheck {
    match Limit::of(&read.data) {
        _ if !is_durable(&read.stat) => LimitCheck::NotALock("it is an ephemeral node"),
        Limit::Number(actual) if actual == limit => LimitCheck::Same(Zxid(read.stat.mzxid)),
        Limit::Number(actual) => LimitCheck::Differs(actual),
        Limit::Foreign => LimitCheck::NotALock("its data is no number"),
        Limit::Empty => LimitCheck::FillIn(read.stat.version),
    }
}

/// Makes sure that the lock node exists and has this limit, and returns the transaction that wrote it.
///
/// A node without a number is filled in, unless it has children that can't be leases: then it belongs to something
/// else. `records`: a lock that is created here gets a record, by which it is found when no client uses it any more.
pub(crate) async fn check(
    owner: &EphemeralSession,
    path: &NodePath,
    limit: u32,
    records: bool,
) -> Result<Zxid, StepError> {
    let session = owner.session();
    for _ in 0..CHECK_TRIES {
        let Some(read) = session.get(path).await.map_err(|error| refused(error, path))? else {
            match create(owner, path, limit, records).await? {
                Some(zxid) => return Ok(zxid),
                None => continue,
            }
        };
        match check_limit(&read, limit) {
            LimitCheck::Same(written) => return Ok(written),
            LimitCheck::Differs(actual) => {
                return Err(Error::LockLimitDiffers { path: path.clone(), asked: limit, actual }.into());
            }
            LimitCheck::NotALock(cause) => return Err(not_a_lock(path, cause)),
            LimitCheck::FillIn(version) => {
                if let Some(zxid) = fill_in(session, path, limit, version).await? {
                    return Ok(zxid);
                }
            }
        }
    }
    Err(Error::Internal { path: path.clone(), cause: "the lock node keeps changing".to_owned() }.into())
}

/// Writes the number into a node without one. `None`: the node has changed meanwhile; look again.
async fn fill_in(session: &Session, path: &NodePath, limit: u32, version: i32) -> Result<Option<Zxid>, StepError> {
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

/// Refuses a path whose node would count as a contender of another lock, or would be in the way of its contenders.
///
/// # Errors
/// [`Error::NotALock`].
pub(crate) fn check_name(path: &NodePath) -> Result<(), Error> {
    let cause = "its name is that of a lock's queue, or it lies below one";
    if is_in_lock_queue(path) { Err(Error::NotALock { path: path.clone(), cause }) } else { Ok(()) }
}

/// Refuses to create a node below another lock's node: it would be no lease of that lock, and that lock would be none
/// any more. Missing parents would be created as well, so the nearest existing ancestor counts.
async fn check_parents(session: &Session, path: &NodePath) -> Result<(), StepError> {
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

/// Creates the lock node. `None`: another client has created it meanwhile; look again.
async fn create(
    owner: &EphemeralSession,
    path: &NodePath,
    limit: u32,
    records: bool,
) -> Result<Option<Zxid>, StepError> {
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
                    // The record of an earlier lock at this path. Writing it keeps it from being deleted as that
                    // lock's.
                    ErrorCode::NodeExists => ops.push(record.write(-1)),
                    ErrorCode::NoNode => {
                        let place = lock_record(path);
                        match session.ensure_parents(&place).await {
                            Ok(()) => return Ok(None),
                            // An operator has prepared the nodes, and no more may be created.
                            Err(zk::Error::Refused(_)) => {}
                            Err(error) => return Err(refused(error, path)),
                        }
                    }
                    // A lock without a record works; only it is never removed as idle.
                    _ => {}
                }
            }
            Err(error) => return Err(refused(as_zk(error), path)),
        }
    }
}

/// Makes sure that the queue exists, the node below which contenders wait.
pub(crate) async fn ensure_queue(session: &Session, path: &NodePath) -> Result<(), StepError> {
    let queue = lock_queue(path);
    for _ in 0..CHECK_TRIES {
        match session.create(queue.as_str(), Bytes::new(), CreateMode::Persistent).await {
            Ok(_) | Err(zk::Error::Refused(ErrorCode::NodeExists)) => return Ok(()),
            Err(zk::Error::Refused(ErrorCode::NoNode)) => {
                session.ensure_parents(&queue).await.map_err(|error| refused(error, path))?;
            }
            Err(error) => {
                // Where nothing may be created, another program may have created it meanwhile.
                let stands = error == zk::Error::Refused(ErrorCode::NoAuth) && session.exists(&queue).await?.is_some();
                return if stands { Ok(()) } else { Err(refused(error, path)) };
            }
        }
    }
    Err(Error::Internal { path: path.clone(), cause: "its parents keep vanishing".to_owned() }.into())
}

/// The result of the replacement of a queue's node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// The queue counts from zero again.
    Done,
    /// The queue has contenders, or has changed.
    Busy,
    /// The queue has an ACL that does not allow everything to everybody. A new node could get another ACL.
    Protected,
}

/// Replaces an empty queue by one that counts contenders from zero, in one transaction: no program ever finds the queue
/// missing.
pub(crate) async fn renew_queue(owner: &EphemeralSession, path: &NodePath) -> Result<Renewal, zk::Error> {
    match try_renew_queue(owner, path).await {
        Err(zk::Error::Refused(code)) => {
            tracing::warn!(%path, %code, "zookeeper refuses to replace a lock's queue");
            Ok(Renewal::Protected)
        }
        renewal => renewal,
    }
}

async fn try_renew_queue(owner: &EphemeralSession, path: &NodePath) -> Result<Renewal, zk::Error> {
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

/// Whether a node outlives sessions. Container and TTL nodes do; they have marks instead of an owner.
pub(crate) fn is_durable(stat: &Stat) -> bool {
    const TTL_MARK: u8 = 0xff;
    let [first, ..] = stat.ephemeral_owner.to_be_bytes();
    stat.ephemeral_owner == 0 || stat.ephemeral_owner == i64::MIN || first == TTL_MARK
}

/// The meaning of a refusal for a lock.
pub(crate) fn refused(error: zk::Error, path: &NodePath) -> StepError {
    match error {
        zk::Error::Refused(code) => refusal::refused(path, code).into(),
        error => error.into(),
    }
}

pub(crate) fn not_a_lock(path: &NodePath, cause: &'static str) -> StepError {
    Error::NotALock { path: path.clone(), cause }.into()
}

fn number(limit: u32) -> Bytes {
    limit.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_differs_and_a_node_that_is_no_lock_are_told_apart_from_one_to_fill_in() {
        let read = |data: &'static str, ephemeral_owner| Read {
            data: data.into(),
            stat: Stat { mzxid: 7, version: 3, ephemeral_owner, ..Stat::default() },
        };
        assert_eq!(check_limit(&read("2", 0), 2), LimitCheck::Same(Zxid(7)));
        assert_eq!(check_limit(&read("2", 0), 1), LimitCheck::Differs(2));
        assert_eq!(check_limit(&read("", 0), 1), LimitCheck::FillIn(3));
        assert!(matches!(check_limit(&read("{}", 0), 1), LimitCheck::NotALock(_)));
        assert!(matches!(check_limit(&read("1", 9), 1), LimitCheck::NotALock(_)), "an ephemeral node");
    }
}
