//! Release by id, of what another replica holds or waits for.

use std::time::Duration;

use tokio::time::Instant;

use super::id::{LockId, Mark};
use super::record::record_path;
use super::terms::PATIENCE;
use super::{Interrupt, Shared, Stop, go_through, seat};
use crate::error::Error;
use crate::refusal;
use crate::types::{FencingToken, NodePath};
use crate::zk::layout::lock_queue;
use crate::zk::{self, CommitError, EphemeralSession, ErrorCode, Session};

/// For how long, about, one who waits has no place whose session is over, until it has another. Who is cut off from
/// ZooKeeper meanwhile has none for longer; then its id is as good as unknown.
const BETWEEN_PLACES: Duration = Duration::from_secs(1);

/// What came of one look.
enum Look {
    /// Deleted by us.
    Released,
    /// It ended in another way just now.
    Ended,
    /// Nothing has the id's mark.
    Nothing,
    /// What was found changed under our hands.
    Again,
}

/// Deletes the contender or the lease of an id, wherever it came from. `false`: it ended in another way meanwhile.
///
/// In the same transaction the queue's node is written, with what it holds, and a lease before it is deleted: so the
/// owner can tell this from the act of a stranger, also when it was away meanwhile. See [`may_be_released`].
pub(super) async fn release(shared: &Shared, id: &LockId) -> Result<bool, Error> {
    let deadline = Instant::now() + PATIENCE;
    let (mut sent, mut found_nothing) = (false, false);
    while Instant::now() < deadline {
        let look = match shared.pool.any() {
            Ok(owner) => {
                let looked = tokio::time::timeout_at(deadline, look(shared, &owner, id, &mut sent)).await;
                looked.map_err(|_| Error::BackendUnavailable)?
            }
            Err(error) => Err(error.into()),
        };
        match look {
            Ok(Look::Released) => return Ok(true),
            Ok(Look::Ended) => return Ok(false),
            // An earlier try, whose answer was lost, may have done it.
            Ok(Look::Nothing) if sent => return Ok(true),
            Ok(Look::Nothing) if found_nothing => return Err(Error::UnknownLock),
            Ok(Look::Nothing) => {
                found_nothing = true;
                tokio::time::sleep(BETWEEN_PLACES).await;
            }
            Ok(Look::Again) => {}
            Err(Interrupt::Stop(Stop::Failed(error))) => return Err(error),
            Err(Interrupt::Zk(zk::Error::Refused(code))) => return Err(refusal::refused(id.path(), code)),
            Err(_) => seat::pause().await,
        }
    }
    Err(Error::BackendUnavailable)
}

/// Whether a lease that was made then, and does not stand any more, may have been released through another replica; for
/// who has not watched its end. Another release, of the same lock and since then, looks the same.
pub(super) async fn may_be_released(session: &Session, path: &NodePath, made: FencingToken) -> Result<bool, zk::Error> {
    let queue = session.exists(&lock_queue(path)).await?;
    Ok(queue.is_some_and(|queue| queue.mzxid > made.0))
}

/// The names of a lock's contenders and of its leases, each list in order.
#[derive(Debug)]
pub(super) struct Names([Vec<String>; 2]);

impl Names {
    async fn read(session: &Session, path: &NodePath) -> Result<Self, zk::Error> {
        // The id may have been given by another replica an instant ago, and this one's server may be behind.
        session.sync(path).await?;
        // The queue first: a contender becomes a lease in one transaction, so that it can't be missed in both.
        let contenders = session.children(&lock_queue(path)).await?.map(|(names, _)| names).unwrap_or_default();
        let leases = session.children(path).await?.map(|(names, _)| names).unwrap_or_default();
        let sort = |mut names: [Vec<String>; 2]| {
            names.iter_mut().for_each(|names| names.sort_unstable());
            Self(names)
        };
        Ok(go_through(contenders.len() + leases.len(), move || sort([contenders, leases])).await)
    }

    /// The name with this mark among contenders or leases.
    fn find(names: &[String], mark: &Mark) -> Option<String> {
        let first = names.partition_point(|name| mark.is_after(name));
        names.get(first).filter(|name| mark.names(name)).cloned()
    }
}

async fn look(shared: &Shared, owner: &EphemeralSession, id: &LockId, sent: &mut bool) -> Result<Look, Interrupt> {
    let (path, mark) = (id.path(), id.mark());
    let (session, lock) = (owner.session().clone(), path.clone());
    let names = shared.names.read(path, move || async move { Names::read(&session, &lock).await }).await?;
    let Names([contenders, leases]) = &*names;
    let found = [(lock_queue(path), contenders), (path.clone(), leases)].into_iter();
    let found = found.filter_map(|(parent, names)| Some((parent, Names::find(names, &mark)?))).next();
    drop(names);
    match found {
        Some((parent, name)) => delete(owner, &parent, &name, id, sent).await,
        None => Ok(Look::Nothing),
    }
}

async fn delete(
    owner: &EphemeralSession,
    parent: &NodePath,
    name: &str,
    id: &LockId,
    sent: &mut bool,
) -> Result<Look, Interrupt> {
    let (node, record, queue) = (parent.join(name), record_path(name), lock_queue(id.path()));
    let is_lease = parent == id.path();
    let mut reads = Vec::new();
    for read in owner.session().get_many([&record, &node, &queue].map(NodePath::as_str)).await? {
        reads.push(read.map_err(|code| Interrupt::from(refusal::refused(id.path(), code)))?);
    }
    let Ok([record_read, Some(read), queue_read]) = <[_; 3]>::try_from(reads) else { return Ok(Look::Again) };
    let written_and_deleted = |path: &NodePath, read: zk::Read| {
        [zk::set_data(path.as_str(), read.data, read.stat.version), zk::delete(path.as_str(), -1)]
    };
    let mut ops: Vec<_> = record_read.into_iter().flat_map(|read| written_and_deleted(&record, read)).collect();
    if is_lease {
        ops.extend(written_and_deleted(&node, read));
    } else {
        ops.push(zk::delete(node.as_str(), -1));
    }
    // Of the queue's node many releases at once may be ahead, and nobody else ever writes it.
    ops.extend(queue_read.map(|read| zk::set_data(queue.as_str(), read.data, -1)));
    match owner.commit(ops).await {
        Ok(_) => Ok(Look::Released),
        Err(CommitError::Part { code: ErrorCode::NoNode, .. }) if is_lease => Ok(Look::Ended),
        Err(CommitError::Part { code: ErrorCode::NoNode | ErrorCode::BadVersion, .. }) => Ok(Look::Again),
        Err(CommitError::Part { code, .. }) => Err(refusal::refused(id.path(), code).into()),
        Err(CommitError::FenceMoved) => Ok(Look::Again),
        Err(CommitError::Zk(error)) => {
            *sent |= error.is_unknown();
            Err(error.into())
        }
    }
}
