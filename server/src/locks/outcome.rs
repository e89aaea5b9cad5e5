//! The ends of an attempt or a lock, and the errors of a step.

use crate::error::Error;
use crate::zk;

/// The end of an attempt to take a lock, or of the lock.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    /// The place in the queue, or the lease, is gone and the client does not have to know: start again.
    Retry,
    /// The stream has ended, or this replica was told to release the lock.
    Stopped,
    /// Another replica has released the lock.
    Released,
    /// Another program has deleted the node.
    Removed,
    /// The ZooKeeper session is over, or may be.
    SessionLost,
    /// The wait is over, and other clients hold the lock.
    Busy,
    /// The stream ended, and no other came back within the ttl.
    Expired,
    /// The stream is open, and its client was silent for the ttl.
    Silent,
    /// Another replica keeps the lock now.
    Superseded,
    /// The lease is left in ZooKeeper, for another replica to keep or to end.
    Left,
    /// An error that no new attempt changes.
    Failed(Error),
}

/// The reason why a step did not succeed.
#[derive(Debug)]
pub(super) enum StepError {
    /// ZooKeeper did not answer, or refused.
    Zk(zk::Error),
    /// The attempt ends.
    End(Outcome),
}

impl From<zk::Error> for StepError {
    fn from(error: zk::Error) -> Self {
        Self::Zk(error)
    }
}

impl From<Outcome> for StepError {
    fn from(outcome: Outcome) -> Self {
        Self::End(outcome)
    }
}

impl From<Error> for StepError {
    fn from(error: Error) -> Self {
        Self::End(Outcome::Failed(error))
    }
}

impl From<StepError> for Error {
    fn from(error: StepError) -> Self {
        match error {
            StepError::End(Outcome::Failed(error)) => error,
            StepError::End(_) | StepError::Zk(_) => Self::BackendUnavailable,
        }
    }
}
