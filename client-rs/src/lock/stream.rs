//! One AcquireLock call.

use std::time::Duration;

use rollcall_proto::v1;
use rollcall_proto::v1::acquire_lock_response::Event;
use tokio::time::{Instant, timeout};
use tonic::Streaming;

use crate::client::Client;
use crate::error::{Failure, LostReason};
use crate::node::{duration_from_proto, duration_to_proto};
use crate::replicas::Replica;

/// Time that a replica may take to open a stream.
const OPENING: Duration = Duration::from_secs(4);
/// Longest silence of a quiet stream before the replica sends something. While the lock is held, the replica sends at
/// least every third of the lock's horizon.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Time without a word after which a stream is given up, and a lock without a ttl is lost, where the replica has given
/// no horizon: a replica of an older version, or one that has not granted the lock yet.
const SILENCE: Duration = Duration::from_secs(10);

/// Shortest silence after which a stream is given up, though its lock may be lost earlier.
const LEAST_SILENCE: Duration = Duration::from_secs(1);

/// The terms of a request for a lock.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) client: Client,
    request: v1::AcquireLockRequest,
}

impl Terms {
    pub(super) fn new(
        client: Client,
        path: String,
        simultaneous: u32,
        ttl: Option<Duration>,
        name: Option<String>,
    ) -> Self {
        let request = v1::AcquireLockRequest {
            path,
            simultaneous,
            wait: None,
            ttl: ttl.map(duration_to_proto),
            name: name.unwrap_or_else(|| client.shared().name.clone()),
            lock_id: String::new(),
            heartbeat: Some(duration_to_proto(HEARTBEAT)),
        };
        Self { client, request }
    }

    pub(super) fn path(&self) -> &str {
        &self.request.path
    }

    /// Queues for the lock anew, or resumes the place or lock that has an id.
    pub(super) async fn open(
        &self,
        replica: Replica,
        lock_id: Option<&str>,
        wait: Option<Duration>,
    ) -> Result<Stream, (Replica, Failure)> {
        let request = v1::AcquireLockRequest {
            wait: wait.map(duration_to_proto),
            lock_id: lock_id.unwrap_or_default().to_owned(),
            ..self.request.clone()
        };
        let sent_at = Instant::now();
        match timeout(OPENING, replica.stub.clone().acquire_lock(request)).await {
            Ok(Ok(answer)) => Ok(Stream { replica, responses: answer.into_inner(), sent_at, silence: SILENCE }),
            Ok(Err(status)) => Err((replica, Failure::of(status))),
            Err(_) => Err((replica, Failure::silent())),
        }
    }
}

/// An open AcquireLock stream. Dropping it ends the call.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) replica: Replica,
    responses: Streaming<v1::AcquireLockResponse>,
    /// When the request was sent.
    pub(super) sent_at: Instant,
    /// Time without a word after which the stream is given up.
    silence: Duration,
}

impl Stream {
    /// The next event; `None`: the lock was given back by its id.
    ///
    /// # Cancellation
    /// Safe: no event is lost.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            match timeout(self.silence, self.responses.message()).await {
                Ok(Ok(Some(message))) => {
                    if let Some(Event::Held(held)) = &message.event {
                        self.silence = silence(held);
                    }
                    if let Some(event) = message.event {
                        return Ok(Some(event));
                    }
                }
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(status)) => return Err(Failure::of(status)),
                Err(_) => return Err(Failure::silent()),
            }
        }
    }
}

/// Time that the stream may be silent after a `held`. In doubt, the horizon is the rest of the lock's certainty, and
/// `held` may follow all the same.
fn silence(held: &v1::Held) -> Duration {
    horizon(held).clamp(LEAST_SILENCE, SILENCE)
}

/// Time without a word from the replica after which the lock is lost.
pub(super) fn horizon(held: &v1::Held) -> Duration {
    held.horizon.map_or(SILENCE, duration_from_proto)
}

pub(super) fn lost_reason(lost: v1::LockLost) -> LostReason {
    match lost.reason() {
        v1::LostReason::TakenOver => LostReason::TakenOver,
        v1::LostReason::Expired => LostReason::Expired,
        v1::LostReason::Removed => LostReason::Removed,
        v1::LostReason::Evicted => LostReason::Evicted,
        v1::LostReason::SessionLost | v1::LostReason::Unspecified => LostReason::SessionLost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_not_given_up_because_its_lock_is_certain_for_no_longer() {
        let silence = |horizon| silence(&v1::Held { horizon, ..v1::Held::default() });
        assert_eq!(silence(Some(duration_to_proto(Duration::ZERO))), LEAST_SILENCE);
        assert_eq!(silence(Some(duration_to_proto(3 * LEAST_SILENCE))), 3 * LEAST_SILENCE);
        assert_eq!(silence(Some(duration_to_proto(100 * LEAST_SILENCE))), SILENCE);
        assert_eq!(silence(None), SILENCE);
    }
}
