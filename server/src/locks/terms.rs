//! What was asked for, and what came of it.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Stop;
use super::id::Mark;
use super::slot::Slot;
use crate::error::Error;
use crate::types::{FencingToken, NodePath};

/// How long ZooKeeper is waited for at all by who would wait for the lock for ever and has no place yet, and by who only
/// tries and has lost the connection under way.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// How long to wait for the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    Forever,
    Until(Instant),
    /// Not at all.
    Try,
}

/// What was asked for.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) path: NodePath,
    pub(super) limit: u32,
    pub(super) wait: Wait,
    pub(super) ttl: Option<Duration>,
    pub(super) name: Bytes,
    pub(super) mark: Mark,
}

/// A lease that was made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grant {
    pub(super) token: FencingToken,
}

impl Wait {
    /// How long to wait: `None` for ever, zero not at all.
    pub(super) fn of(wait: Option<Duration>) -> Self {
        match wait {
            Some(wait) if wait.is_zero() => Self::Try,
            // Later than any clock goes is for ever.
            Some(wait) => Instant::now().checked_add(wait).map_or(Self::Forever, Self::Until),
            None => Self::Forever,
        }
    }
}

/// What it means that the time is over while ZooKeeper is waited for.
pub(super) fn out_of_time(terms: &Terms, slot: &Slot) -> Stop {
    match terms.wait {
        Wait::Until(_) if slot.was_queued() => Stop::Busy,
        _ => Stop::Failed(Error::BackendUnavailable),
    }
}

/// Sleeps until then; without a time, for ever.
pub(super) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
