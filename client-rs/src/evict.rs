//! Evict: removes a registration and keeps its path from being registered.

use std::future::IntoFuture;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use rollcall_proto::v1;

use crate::client::{Attempt, Call, Client};
use crate::error::Error;
use crate::node::{duration_to_proto, time_from_proto};

/// A builder of an eviction: from [`Client::evict`].
#[derive(Debug, Clone)]
#[must_use = "nothing is evicted before it is awaited"]
pub struct Evict {
    client: Client,
    request: v1::EvictRequest,
}

/// An eviction that was made, or lifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Eviction {
    /// Whether the call removed a registration.
    pub removed: bool,
    /// When the eviction ends, by the replica's clock; `None`: it was lifted.
    pub until: Option<SystemTime>,
}

impl Client {
    /// Removes a registration, and keeps its path from being registered again for 10 minutes, or for the time given to
    /// [`lasting`](Evict::lasting). The holder gets [`LostReason::Evicted`](crate::LostReason::Evicted). Until the time
    /// is over, registering the path is refused with [`Reason::Evicted`](crate::Reason::Evicted). Await it.
    ///
    /// - Ordering: ZooKeeper has acknowledged the eviction before the answer.
    /// - Connection loss: an eviction that was certainly not carried out is tried at another replica. One that may have
    ///   been carried out ends with [`Error::OutcomeUnknown`]; it can be made again.
    /// - Cancellation: dropping the future leaves the outcome unknown.
    pub fn evict(&self, path: impl Into<String>) -> Evict {
        Evict { client: self.clone(), request: v1::EvictRequest { path: path.into(), duration: None } }
    }
}

impl Evict {
    /// Time for which the path can't be registered: up to 24 hours.
    pub fn lasting(mut self, time: Duration) -> Self {
        // A duration of zero would lift the eviction.
        self.request.duration = Some(duration_to_proto(time.max(Duration::from_nanos(1))));
        self
    }

    /// Lifts an eviction that is in force, instead of making one.
    pub fn lift(mut self) -> Self {
        self.request.duration = Some(duration_to_proto(Duration::ZERO));
        self
    }

    async fn send(self) -> Result<Eviction, Error> {
        let Self { client, request } = self;
        let evict = |attempt: Attempt| {
            let request = request.clone();
            async move { attempt.bounded(attempt.stub().evict(request)).await }
        };
        let answer = client.call(Call::write(&request.path), evict).await?;
        Ok(Eviction { removed: answer.removed, until: answer.until_time.and_then(time_from_proto) })
    }
}

impl IntoFuture for Evict {
    type Output = Result<Eviction, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// # Errors
    /// [`Error::Refused`] with the reasons `NotEphemeral`, `HasRegistrations` (a lock's node), `Protocol` (the time is
    /// too long) and those of every call. [`Error::OutcomeUnknown`]. [`Error::Unreachable`]: nothing was evicted.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}
