//! The create of the contender: in a transaction of its own, or in that of the next handoff.

use super::enqueue_batcher::{BatchResult, EnqueueBatcher};
use crate::locks::outcome::StepError;
use crate::locks::recipe::own_nodes::{NodeState, OwnNodes};
use crate::locks::request::{Terms, Wait};
use crate::refusal;
use crate::types::NodePath;
use crate::zk::{self, CommitError, Committed, ErrorCode, Request, Response};

/// Creates the contender in the transaction of the next handoff. `false`: no handoff is near, or none came in time.
pub(super) async fn with_handoff(
    nodes: &mut OwnNodes,
    batcher: &EnqueueBatcher,
    terms: &Terms,
    create: &Request,
) -> Result<bool, StepError> {
    let deadline = match terms.wait {
        Wait::Forever | Wait::Try => None,
        Wait::Until(deadline) => Some(deadline),
    };
    let response = match batcher.enqueue(&terms.path, nodes.owner().id(), create, deadline).await {
        BatchResult::Done(response) => Some(response),
        BatchResult::Unknown => None,
        BatchResult::No => return Ok(false),
    };
    has_enqueued(nodes, response).map(|()| true)
}

/// Reads the answer to the transaction that was to create the contender. `Ok`, and no contender: the queue does not
/// exist.
pub(super) fn read_answer(
    nodes: &mut OwnNodes,
    path: &NodePath,
    created: Result<Committed, CommitError>,
) -> Result<(), StepError> {
    match created {
        Ok(committed) => has_enqueued(nodes, committed.parts.into_iter().next()),
        Err(CommitError::Part { code: ErrorCode::NoNode, .. }) => Ok(()),
        Err(CommitError::Part { code, .. }) => Err(refusal::refused(path, code).into()),
        Err(CommitError::FenceMoved) => Err(zk::Error::NotSent.into()),
        Err(CommitError::Zk(error)) => {
            if error.is_unknown() {
                nodes.contender = NodeState::Unknown;
            }
            Err(error.into())
        }
    }
}

/// Reads the answer to the create of the contender.
fn has_enqueued(nodes: &mut OwnNodes, response: Option<Response>) -> Result<(), StepError> {
    let Some(Response::Created { path, .. }) = response else {
        nodes.contender = NodeState::Unknown;
        return Err(zk::Error::OutcomeUnknown.into());
    };
    nodes.contender = NodeState::Exists(NodePath::trusted(path).name().to_owned());
    Ok(())
}
