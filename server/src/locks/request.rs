//! The request of a client: as it arrived, and its terms once they are checked.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::outcome::Outcome;
use super::recipe::contenders::MAX_NAME;
use super::recipe::lock_id::Mark;
use super::recipe::lock_node;
use crate::contact::Contact;
use crate::error::Error;
use crate::types::{NodePath, PathError};

/// Which lock to take, and on what terms.
#[derive(Debug, Clone)]
pub(crate) struct AcquireRequest {
    /// The lock.
    pub(crate) path: NodePath,
    /// Maximum number of holders; 0 counts as 1.
    pub(crate) simultaneous: u32,
    /// Time to wait. Zero: only try. `None`: wait for ever.
    pub(crate) wait: Option<Duration>,
    /// Time for which the lock outlives its stream.
    pub(crate) ttl: Option<Duration>,
    /// The holder's name, for others to see.
    pub(crate) name: Option<String>,
    /// The id of a lock to come back to.
    pub(crate) lock_id: Option<String>,
    /// The connection of the call.
    pub(crate) contact: Option<Contact>,
}

/// The time to wait for a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    Forever,
    Until(Instant),
    /// Do not wait: take the lock if it is free.
    Try,
}

/// The checked terms of a request for a new lock.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) path: NodePath,
    /// Maximum number of holders.
    pub(super) limit: u32,
    pub(super) wait: Wait,
    pub(super) ttl: Option<Duration>,
    pub(super) name: Bytes,
    /// The mark in the names of this lock's nodes.
    pub(super) mark: Mark,
}

impl Wait {
    fn of(wait: Option<Duration>) -> Self {
        match wait {
            Some(wait) if wait.is_zero() => Self::Try,
            // A time that no clock reaches is for ever.
            Some(wait) => Instant::now().checked_add(wait).map_or(Self::Forever, Self::Until),
            None => Self::Forever,
        }
    }
}

impl AcquireRequest {
    /// Checks a request for a new lock.
    ///
    /// # Errors
    /// [`Error::InvalidPath`] for the root, [`Error::NotALock`] for a path among the nodes of another lock, and
    /// [`Error::Protocol`] for a name that is too long.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.path.is_root() {
            return Err(Error::InvalidPath { path: self.path.as_str().to_owned(), error: PathError::Root });
        }
        lock_node::check_name(&self.path)?;
        if self.name.as_ref().is_some_and(|name| name.len() > MAX_NAME) {
            return Err(Error::Protocol { field: "name", cause: format!("is over the limit of {MAX_NAME} bytes") });
        }
        Ok(())
    }

    /// The terms of a checked request. The wait begins now.
    pub(super) fn into_terms(self, mark: Mark) -> Terms {
        let name = self.name.filter(|name| !name.is_empty()).unwrap_or_else(|| "rollcall".to_owned());
        let (limit, wait) = (self.simultaneous.max(1), Wait::of(self.wait));
        Terms { path: self.path, limit, wait, ttl: self.ttl, name: name.into(), mark }
    }
}

impl Terms {
    /// The outcome when the wait is over while ZooKeeper does not answer. `was_queued`: the client knows its place.
    pub(super) fn out_of_time(&self, was_queued: bool) -> Outcome {
        match self.wait {
            Wait::Until(_) if was_queued => Outcome::Busy,
            _ => Outcome::Failed(Error::BackendUnavailable),
        }
    }
}
