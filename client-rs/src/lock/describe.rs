//! DescribeLock.

use std::time::{Duration, SystemTime};

use rollcall_proto::v1;

use crate::client::{Attempt, Call, Client};
use crate::error::Error;
use crate::node::{duration_from_proto, time_from_proto};

/// The holders and waiters of a lock.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LockDescription {
    /// The path of the lock.
    pub path: String,
    /// Maximum number of holders at once; 0 when the lock was never taken.
    pub simultaneous: u32,
    /// The holders, the earliest grant first.
    pub holders: Vec<LockParty>,
    /// The waiters, in the order in which they will be served; only the first of them when there are very many.
    pub waiters: Vec<LockParty>,
}

/// A holder of a lock, or a waiter for it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockParty {
    /// The name that it gave.
    pub name: String,
    /// The token of its grant; `None` for a waiter.
    pub fencing_token: Option<i64>,
    /// Time since which it has held the lock or waited, by ZooKeeper's clock.
    pub since: Option<SystemTime>,
    /// It did not come through Rollcall but, for example, through kazoo.
    pub foreign: bool,
    /// Its ttl; `None`: it has none, or the ttl is not known.
    pub ttl: Option<Duration>,
    /// The name of the replica that keeps its lease or its place; `None` when not known.
    pub replica: Option<String>,
}

impl Client {
    /// Describes the current holders and waiters of a lock. By the time you read the answer, others may hold it. A path
    /// that was never locked is described as empty.
    ///
    /// # Errors
    /// [`Error::Refused`], reason [`NotALock`](crate::Reason::NotALock), and the reasons of every call;
    /// [`Error::Unreachable`].
    ///
    /// # Cancellation
    /// Safe.
    ///
    /// # Connection loss
    /// Another replica is asked.
    pub async fn describe_lock(&self, path: impl Into<String>) -> Result<LockDescription, Error> {
        let request = v1::DescribeLockRequest { path: path.into() };
        let describe = |attempt: Attempt| {
            let request = request.clone();
            async move { attempt.bounded(attempt.stub().describe_lock(request)).await }
        };
        let answer = self.call(Call::read(&request.path), describe).await?;
        Ok(LockDescription {
            path: answer.path,
            simultaneous: answer.simultaneous,
            holders: answer.holders.into_iter().map(LockParty::from_proto).collect(),
            waiters: answer.waiters.into_iter().map(LockParty::from_proto).collect(),
        })
    }
}

impl LockParty {
    fn from_proto(party: v1::LockParty) -> Self {
        Self {
            name: party.name,
            fencing_token: (party.fencing_token != 0).then_some(party.fencing_token),
            since: party.since_time.and_then(time_from_proto),
            foreign: party.foreign,
            ttl: party.ttl.map(duration_from_proto),
            replica: (!party.replica.is_empty()).then_some(party.replica),
        }
    }
}
