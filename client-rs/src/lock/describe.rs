//! DescribeLock.

use std::time::{Duration, SystemTime};

use rollcall_proto::v1;

use crate::client::{Attempt, Call, Client};
use crate::error::Error;
use crate::node::{duration_from_proto, time_from_proto};

/// Who holds a lock and who waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LockDescription {
    /// The path of the lock.
    pub path: String,
    /// How many may hold it at once; 0 when nobody has ever taken it.
    pub simultaneous: u32,
    /// Those who hold it, the earliest grant first.
    pub holders: Vec<LockParty>,
    /// Those who wait, in the order in which they will be served; the first of them, where there are very many.
    pub waiters: Vec<LockParty>,
}

/// One who holds a lock or waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockParty {
    /// The name that it gave.
    pub name: String,
    /// The token of its grant; `None` for one who waits.
    pub fencing_token: Option<i64>,
    /// Since when it has held the lock or waited, by ZooKeeper's clock.
    pub since: Option<SystemTime>,
    /// It came past Rollcall, for one through kazoo.
    pub foreign: bool,
    /// Its ttl; `None`: none, or not known.
    pub ttl: Option<Duration>,
    /// The name of the replica that keeps its lease or its place; `None` where it is not known.
    pub replica: Option<String>,
}

impl Client {
    /// Tells who holds a lock and who waits for it, as of now: by the time you read it others may. A path that nobody has
    /// ever locked is described as empty.
    ///
    /// # Errors
    /// [`Error::Refused`], reason [`NotALock`](crate::Reason::NotALock), and those of every call; [`Error::Unreachable`].
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
