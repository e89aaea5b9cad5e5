//! Release of a lock by its id, also of a lock that another replica holds or waits for.

use std::time::Duration;

use tokio::time::Instant;

use super::long_lists::go_through;
use super::outcome::{Outcome, StepError};
use super::readings::Readings;
use super::recipe::lease_record::record_path;
use super::recipe::lock_id::{LockId, Mark};
use super::timing::{PATIENCE, pause};
use crate::error::Error;
use crate::refusal;
use crate::types::{FencingToken, NodePath};
use crate::zk::layout::lock_queue;
use crate::zk::{self, CommitError, EphemeralSession, ErrorCode, Pool, Session};

/// Time for which an id without a node may belong to a client that gets another place, since its session has ended.
/// With a smaller value a release in that time fails; a larger one delays the answer to a made-up id. A replica that is
/// cut off from ZooKeeper takes longer; until then the id counts as unknown.
const BETWEEN_PLACES: Duration = Duration::from_secs(1);

/// Releases locks by their id.
#[derive(Debug)]
pub(super) struct Releaser {
    pool: Pool,
    /// Releases of one lock that come at once share the lists of names.
    names: Readings<Names>,
}

/// The result of one look.
enum Look {
    /// This call has deleted the node.
    Released,
    /// The lock ended in another way just now.
    Ended,
    /// No node has the id's mark.
    Nothing,
    /// The node has changed meanwhile.
    Again,
}

impl Releaser {
    pub(super) fn new(pool: Pool) -> Self {
        Self { pool, names: Readings::default() }
    }

    /// Deletes the contender or the lease of an id, of whichever replica. `false`: it ended in another way meanwhile.
    ///
    /// The same transaction writes the queue's node, with the data that it has, and writes a lease before it deletes
    /// it. So the owner can tell a release from a deletion by another program, also when it was cut off: see
    /// [`may_be_released`].
    pub(super) async fn release(&self, id: &LockId) -> Result<bool, Error> {
        let deadline = Instant::now() + PATIENCE;
        let (mut sent, mut found_nothing) = (false, false);
        while Instant::now() < deadline {
            let look = match self.pool.any() {
                Ok(owner) => {
                    let looked = tokio::time::timeout_at(deadline, self.look(&owner, id, &mut sent)).await;
                    looked.map_err(|_| Error::BackendUnavailable)?
                }
                Err(error) => Err(error.into()),
            };
            match look {
                Ok(Look::Released) => return Ok(true),
                Ok(Look::Ended) => return Ok(false),
                // An earlier try, whose answer was lost, may have deleted it.
                Ok(Look::Nothing) if sent => return Ok(true),
                Ok(Look::Nothing) if found_nothing => return Err(Error::UnknownLock),
                Ok(Look::Nothing) => {
                    found_nothing = true;
                    tokio::time::sleep(BETWEEN_PLACES).await;
                }
                Ok(Look::Again) => {}
                Err(StepError::End(Outcome::Failed(error))) => return Err(error),
                Err(StepError::Zk(zk::Error::Refused(code))) => return Err(refusal::refused(id.path(), code)),
                Err(_) => pause().await,
            }
        }
        Err(Error::BackendUnavailable)
    }

    async fn look(&self, owner: &EphemeralSession, id: &LockId, sent: &mut bool) -> Result<Look, StepError> {
        let (path, mark) = (id.path(), id.mark());
        let (session, lock) = (owner.session().clone(), path.clone());
        let names = self.names.read(path, move || async move { Names::read(&session, &lock).await }).await?;
        let Names([contenders, leases]) = &*names;
        let found = [(lock_queue(path), contenders), (path.clone(), leases)].into_iter();
        let found = found.filter_map(|(parent, names)| Some((parent, Names::find(names, &mark)?))).next();
        drop(names);
        match found {
            Some((parent, name)) => delete(owner, &parent, &name, id, sent).await,
            None => Ok(Look::Nothing),
        }
    }
}

/// Whether a lease that was granted then, and does not exist any more, may have been released through another replica.
/// For a holder that has not watched the end: another release of the same lock since the grant looks the same.
pub(super) async fn may_be_released(session: &Session, path: &NodePath, made: FencingToken) -> Result<bool, zk::Error> {
    let queue = session.exists(&lock_queue(path)).await?;
    Ok(queue.is_some_and(|queue| queue.mzxid > made.0))
}

/// The names of a lock's contenders and of its leases, each list in order.
#[derive(Debug)]
pub(super) struct Names([Vec<String>; 2]);

impl Names {
    async fn read(session: &Session, path: &NodePath) -> Result<Self, zk::Error> {
        // Another replica may have made the nodes an instant ago, and this one's server may be behind.
        session.sync(path).await?;
        // The queue first: a contender becomes a lease in one transaction, so that one of the lists has it.
        let contenders = session.children(&lock_queue(path)).await?.map(|(names, _)| names).unwrap_or_default();
        let leases = session.children(path).await?.map(|(names, _)| names).unwrap_or_default();
        let sort = |mut names: [Vec<String>; 2]| {
            names.iter_mut().for_each(|names| names.sort_unstable());
            Self(names)
        };
        Ok(go_through(contenders.len() + leases.len(), move || sort([contenders, leases])).await)
    }

    /// The name with this mark in a sorted list.
    fn find(names: &[String], mark: &Mark) -> Option<String> {
        let first = names.partition_point(|name| mark.is_after(name));
        names.get(first).filter(|name| mark.names(name)).cloned()
    }
}

async fn delete(
    owner: &EphemeralSession,
    parent: &NodePath,
    name: &str,
    id: &LockId,
    sent: &mut bool,
) -> Result<Look, StepError> {
    let (node, record, queue) = (parent.join(name), record_path(name), lock_queue(id.path()));
    let is_lease = parent == id.path();
    let mut reads = Vec::new();
    for read in owner.session().get_many([&record, &node, &queue].map(NodePath::as_str)).await? {
        reads.push(read.map_err(|code| StepError::from(refusal::refused(id.path(), code)))?);
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
    // Whatever its version: other releases may write the queue's node at once, and nothing else does.
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
