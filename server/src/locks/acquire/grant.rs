//! The transaction that makes a lease, the look at the lease that is sent with it, and the conclusions from it. Whether to
//! grant is decided in [`plan`].

use super::enqueue_batcher::{BatchResult, BatchedEnqueue, EnqueueBatcher};
use super::plan::{self, Confirmation, LockNodeCheck};
use crate::locks::outcome::{Outcome, StepError};
use crate::locks::recipe::lease_observation::{LeaseObservation, grants, observe};
use crate::locks::recipe::limit::must_give_up;
use crate::locks::recipe::own_nodes::{NodeState, OwnNodes};
use crate::locks::recipe::queue_reader::QueueReader;
use crate::locks::request::Terms;
use crate::types::{FencingToken, NodePath};
use crate::zk::{self, CommitError, ErrorCode, OneShot, Request, Session};

/// A lease that was made.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) token: FencingToken,
    /// The first look at the lease, if it was answered.
    pub(super) seen: Option<LeaseObservation>,
}

/// The result of a transaction that was to make a lease.
#[derive(Debug)]
pub(super) enum GrantResult {
    Lease(Granted),
    /// The operation with this index was refused.
    Refused(usize, ErrorCode),
}

/// Commits the transaction `ops`, which makes the lease of `nodes`, and records the result in `nodes`. `handoff`: the
/// transaction is a handoff, in which contenders of the batcher are created as well.
pub(super) async fn commit(
    nodes: &mut OwnNodes,
    path: &NodePath,
    mut ops: Vec<Request>,
    handoff: Option<&EnqueueBatcher>,
    reader: Option<&QueueReader>,
) -> Result<GrantResult, StepError> {
    let (session, lease) = (nodes.owner().session().clone(), nodes.lease_path());
    let own = ops.len();
    let joining = handoff.map(|batcher| batcher.take(path, session.id())).unwrap_or_default();
    ops.extend(joining.iter().map(BatchedEnqueue::request));
    // The transaction is sent by this call, before the look.
    let made = nodes.owner().commit_now(&ops);
    let (made, seen) = futures_util::future::join(made, observe(&session, path, &lease)).await;
    let error = match made {
        Ok(committed) => {
            for (joined, response) in joining.into_iter().zip(committed.parts.into_iter().skip(own)) {
                joined.tell(BatchResult::Done(response));
            }
            if let Some(batcher) = handoff {
                batcher.changed(path, session.id());
            }
            if let (Some(reader), NodeState::Exists(contender)) = (reader, &nodes.contender) {
                reader.granted(contender);
            }
            nodes.contender = NodeState::Absent;
            nodes.lease = NodeState::Exists(nodes.lease_name().to_owned());
            let token = FencingToken(committed.zxid.0);
            return Ok(GrantResult::Lease(Granted { token, seen: seen.ok() }));
        }
        Err(error) => error,
    };
    if matches!(error, CommitError::Zk(error) if error.is_unknown()) {
        // Contenders that were to join it find that out as well, when their part of the batch is dropped.
        nodes.lease = NodeState::Unknown;
    } else {
        joining.into_iter().for_each(|joined| joined.tell(BatchResult::No));
    }
    match error {
        CommitError::Part { index, code } => Ok(GrantResult::Refused(index, code)),
        CommitError::FenceMoved => Err(zk::Error::NotSent.into()),
        CommitError::Zk(error) => Err(error.into()),
    }
}

/// Whether the client may be told that it holds the lock.
#[derive(Debug)]
pub(super) enum Confirmed {
    /// It may. With a watch on the lease.
    Hold(OneShot),
    /// The attempt ends.
    End(Outcome),
    /// The lock node was written since its number was read.
    LimitChanged,
}

/// Judges a lease that was granted. `seen`: a look since the grant, if there was one.
pub(super) async fn confirm(
    session: &Session,
    terms: &Terms,
    lease: &NodePath,
    token: FencingToken,
    lock_node: LockNodeCheck,
    seen: Option<LeaseObservation>,
) -> Result<Confirmed, zk::Error> {
    let LeaseObservation { watch, lock } = match seen {
        Some(observation) => observation,
        None => observe(session, &terms.path, lease).await?,
    };
    // The id was told while the client waited; hardly any other program can have found the lease so soon.
    let Some(watch) = watch else { return Ok(Confirmed::End(Outcome::Released)) };
    Ok(match plan::confirm(terms.limit, lock_node, lock) {
        Confirmation::Hold => Confirmed::Hold(watch),
        Confirmation::LimitChanged => Confirmed::LimitChanged,
        Confirmation::CompareGrants if must_give_up(terms.limit, &grants(session, &terms.path).await?, token.0) => {
            tracing::warn!(path = %terms.path, "more leases than the lock allows: giving up the latest");
            Confirmed::End(Outcome::Retry)
        }
        Confirmation::CompareGrants => Confirmed::Hold(watch),
    })
}

/// Finds out whether the transaction that was not answered has made the lease.
pub(super) async fn find_lease(nodes: &mut OwnNodes) -> Result<Option<Granted>, zk::Error> {
    let (session, lease) = (nodes.owner().session().clone(), nodes.lease_path());
    session.sync(&lease).await?;
    let Some(stat) = session.exists(&lease).await? else {
        // The contender may exist or not: the same transaction deletes it, and so may another program.
        nodes.lease = NodeState::Absent;
        return Ok(None);
    };
    nodes.lease = NodeState::Exists(nodes.lease_name().to_owned());
    nodes.contender = NodeState::Absent;
    Ok(Some(Granted { token: FencingToken(stat.czxid), seen: None }))
}
