//! One Register call.

use std::collections::VecDeque;
use std::time::Duration;

use rollcall_proto::v1;
use rollcall_proto::v1::register_request::Request;
use rollcall_proto::v1::register_response::Response;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::error::Failure;
use crate::node::{duration_from_proto, duration_to_proto};
use crate::replicas::Replica;

/// Time that a replica may take to open a stream.
const OPENING: Duration = Duration::from_secs(4);
/// Interval of keep-alives of a client without a ttl. No replica counts them, but each is answered, so that the client
/// notices a replica that was stopped.
const WITHOUT_TTL: Duration = Duration::from_secs(5);
/// Number of keep-alives in the time after which a silent replica is given up.
const IN_HORIZON: u32 = 3;
/// Shortest silence after which a replica is given up, for registrations that outlive it.
const SILENCE: Duration = Duration::from_secs(1);
/// Shortest interval of keep-alives, whatever the replica asks for. A third of the shortest ttl is longer.
const SHORTEST: Duration = Duration::from_millis(100);
/// Maximum number of unanswered keep-alives. A replica that reaches it is given up even if it still talks.
const UNANSWERED: usize = 64;
/// Maximum number of requests that wait to be sent.
const REQUESTS: usize = 256;

/// An open Register stream. Dropping it ends the call.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) replica: Replica,
    requests: mpsc::Sender<v1::RegisterRequest>,
    responses: Streaming<v1::RegisterResponse>,
    keep_alive: Duration,
    silence: Duration,
    /// When the last keep-alive was sent, or there was no room for it.
    kept_at: Instant,
    /// When the keep-alives were sent that are not answered yet.
    asked_at: VecDeque<Instant>,
    heard_at: Instant,
    /// The replica has heard from this client after this moment.
    pub(super) certain_at: Instant,
}

/// The next event of a stream.
#[derive(Debug)]
pub(super) enum Event {
    Said(Response),
    Draining,
    /// There is room for requests, or a time has come.
    Ready,
}

impl Stream {
    /// Opens a stream and awaits `opened`.
    pub(super) async fn open(
        mut replica: Replica,
        name: &str,
        ttl: Option<Duration>,
    ) -> Result<Self, (Replica, Failure)> {
        match timeout(OPENING, Self::try_open(&mut replica, name, ttl)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(failure)) => Err((replica, failure)),
            Err(_) => Err((replica, Failure::silent())),
        }
    }

    async fn try_open(replica: &mut Replica, name: &str, ttl: Option<Duration>) -> Result<Self, Failure> {
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let open =
            v1::OpenSession { ttl: ttl.map(duration_to_proto), client_name: name.to_owned(), pid: std::process::id() };
        let sent_at = Instant::now();
        // There is room, since nothing was sent before.
        let _ = requests.try_send(v1::RegisterRequest { request: Some(Request::Open(open)) });
        let answer = replica.stub.register(ReceiverStream::new(receiver)).await.map_err(Failure::of)?;
        let mut responses = answer.into_inner();
        let first = responses.message().await.map_err(Failure::of)?.ok_or_else(Failure::ended)?;
        let Some(Response::Opened(opened)) = first.response else {
            return Err(Failure::Broken(tonic::Status::internal("the replica did not say opened first")));
        };
        let keep_alive = opened.keep_alive_interval.map(duration_from_proto).filter(|interval| !interval.is_zero());
        let keep_alive = keep_alive.unwrap_or(WITHOUT_TTL).max(SHORTEST);
        let least = if ttl.is_some() { SILENCE } else { IN_HORIZON * SHORTEST };
        let (keep_alive, silence) = match opened.horizon.map(duration_from_proto) {
            Some(horizon) => (keep_alive.min((horizon / IN_HORIZON).max(SHORTEST)), horizon.max(least)),
            // A replica of an older version gives no horizon.
            None => (keep_alive, (keep_alive * 2).max(SILENCE)),
        };
        Ok(Self {
            replica: replica.clone(),
            requests,
            responses,
            keep_alive,
            silence,
            kept_at: sent_at,
            asked_at: VecDeque::new(),
            heard_at: Instant::now(),
            certain_at: sent_at,
        })
    }

    /// Waits for an answer; with `ready`, also for room for requests. Sends keep-alives when they are due.
    ///
    /// # Cancellation
    /// Safe: no answer is lost.
    pub(super) async fn next(&mut self, ready: bool) -> Result<Event, Failure> {
        loop {
            let silent_at = self.heard_at + self.silence;
            let keep_alive_at = self.kept_at + self.keep_alive;
            let Self { requests, responses, .. } = &mut *self;
            let message = tokio::select! {
                message = responses.message() => Some(message),
                permit = requests.reserve(), if ready => {
                    return permit.map(|_| Event::Ready).map_err(|_| Failure::ended());
                }
                () = tokio::time::sleep_until(keep_alive_at.min(silent_at)) => None,
            };
            let now = Instant::now();
            let Some(message) = message else {
                if now >= silent_at || self.asked_at.len() >= UNANSWERED {
                    return Err(Failure::silent());
                }
                let keep_alive = Request::KeepAlive(v1::KeepAlive {});
                if self.requests.try_send(v1::RegisterRequest { request: Some(keep_alive) }).is_ok() {
                    self.asked_at.push_back(now);
                }
                // No keep-alive is due for a while, whether or not there was room: the requests that fill the queue are
                // signs of life too.
                self.kept_at = now;
                continue;
            };
            let message = message.map_err(Failure::of)?.ok_or_else(Failure::ended)?;
            self.heard_at = now;
            match message.response {
                Some(Response::Draining(_)) => return Ok(Event::Draining),
                Some(Response::KeptAlive(_)) => self.certain_at = self.asked_at.pop_front().unwrap_or(self.certain_at),
                Some(response) => return Ok(Event::Said(response)),
                None => {}
            }
        }
    }

    /// Sends as many requests as there is room for.
    pub(super) fn send_all(&mut self, mut next: impl FnMut() -> Option<v1::RegisterRequest>) {
        while self.requests.capacity() > 0
            && let Some(request) = next()
        {
            // There is room. A stream that has ended reports that when it is read.
            let _ = self.requests.try_send(request);
        }
    }
}
