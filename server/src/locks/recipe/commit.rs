//! Commits of which a failure needs no closer look.

use crate::types::NodePath;
use crate::zk::{self, CommitError, EphemeralSession, ErrorCode};

/// The error of a commit, whichever of its operations was refused.
pub(crate) fn as_zk(error: CommitError) -> zk::Error {
    match error {
        CommitError::Part { code, .. } => zk::Error::Refused(code),
        CommitError::FenceMoved => zk::Error::NotSent,
        CommitError::Zk(error) => error,
    }
}

/// Deletes a node, whatever its version; succeeds if there is none.
pub(crate) async fn delete(owner: &EphemeralSession, path: &NodePath) -> Result<(), zk::Error> {
    match owner.commit(vec![zk::delete(path.as_str(), -1)]).await {
        Ok(_) | Err(CommitError::Part { code: ErrorCode::NoNode, .. }) => Ok(()),
        Err(error) => Err(as_zk(error)),
    }
}
