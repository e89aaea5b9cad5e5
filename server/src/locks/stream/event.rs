//! The messages of a lock's stream to its client.

use std::time::Duration;

use crate::types::FencingToken;

/// A message of a lock's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LockEvent {
    /// The place in the queue: always before `Held`, and again after a change. Changes are merged and about a second
    /// late.
    Queued {
        /// The secret by which the client can release the lock.
        lock_id: String,
        /// Counted from 1.
        position: u32,
        /// The names of the holders, the earliest grant first; the first hundred at most.
        holders: Vec<String>,
    },
    /// The lock is held, or still held after a `Suspended`.
    Held {
        /// The same as in `Queued`.
        lock_id: String,
        /// The transaction of the grant.
        fencing_token: FencingToken,
        /// Time for which the lock outlives its stream.
        ttl: Option<Duration>,
        /// Time for which the client may hear nothing from this replica before another client may hold the lock.
        horizon: Option<Duration>,
        /// Whether a `Suspended` follows at once.
        in_doubt: bool,
    },
    /// The lock is held, but there is no fresh evidence of it.
    Suspended {
        /// Time for which the client certainly holds it.
        remaining: Duration,
    },
    /// The lock is no longer held; an error follows.
    Lost {
        /// Why.
        reason: LostReason,
    },
}

/// Why a lock is no longer held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LostReason {
    /// The ZooKeeper session that carried it is over, or may be.
    SessionLost,
    /// Another program has deleted its node in ZooKeeper.
    Removed,
    /// Its client was silent for its ttl.
    Expired,
}
