//! One Register call.

use std::time::Duration;

use rollcall_proto::v1;
use rollcall_proto::v1::register_request::Request;
use rollcall_proto::v1::register_response::Response;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::client::Client;
use crate::error::Failure;
use crate::node::{duration_from_proto, duration_to_proto};
use crate::replicas::Replica;

/// How long a replica may take to open a stream.
const OPENING: Duration = Duration::from_secs(4);
/// How long a replica may be silent at least before it is given up. One without keep-alives sends a heartbeat every 20
/// seconds, and its connection is pinged.
const SILENCE: Duration = Duration::from_secs(1);
const SILENCE_WITHOUT_TTL: Duration = Duration::from_secs(50);
/// How many requests may wait to be sent.
const REQUESTS: usize = 256;

/// A Register stream that stands. Its drop ends the call.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) replica: Replica,
    requests: mpsc::Sender<v1::RegisterRequest>,
    responses: Streaming<v1::RegisterResponse>,
    keep_alive: Option<Duration>,
    silence: Duration,
    sent_at: Instant,
    pub(super) heard_at: Instant,
}

/// What a stream comes to next.
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
        client: &Client,
        mut replica: Replica,
        ttl: Option<Duration>,
    ) -> Result<Self, (Replica, Failure)> {
        match timeout(OPENING, Self::try_open(client, &mut replica, ttl)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(failure)) => Err((replica, failure)),
            Err(_) => Err((replica, Failure::silent())),
        }
    }

    async fn try_open(client: &Client, replica: &mut Replica, ttl: Option<Duration>) -> Result<Self, Failure> {
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let open = v1::OpenSession {
            ttl: ttl.map(duration_to_proto),
            client_name: client.shared().name.clone(),
            pid: std::process::id(),
        };
        let sent_at = Instant::now();
        // There is room: nothing was sent before.
        let _ = requests.try_send(v1::RegisterRequest { request: Some(Request::Open(open)) });
        let answer = replica.stub.register(ReceiverStream::new(receiver)).await.map_err(Failure::of)?;
        let mut responses = answer.into_inner();
        let first = responses.message().await.map_err(Failure::of)?.ok_or_else(Failure::ended)?;
        let Some(Response::Opened(opened)) = first.response else {
            return Err(Failure::Broken(tonic::Status::internal("the replica did not say opened first")));
        };
        let keep_alive = opened.keep_alive_interval.map(duration_from_proto).filter(|interval| !interval.is_zero());
        let silence = keep_alive.map_or(SILENCE_WITHOUT_TTL, |interval| (interval * 2).max(SILENCE));
        let (replica, heard_at) = (replica.clone(), Instant::now());
        Ok(Self { replica, requests, responses, keep_alive, silence, sent_at, heard_at })
    }

    /// Waits for an answer; with `ready` also for room for requests. Says that the client is alive when it is time to.
    ///
    /// # Cancellation
    /// Safe: no answer is lost.
    pub(super) async fn next(&mut self, ready: bool) -> Result<Event, Failure> {
        loop {
            let silent_at = self.heard_at + self.silence;
            let keep_alive_at = self.keep_alive.map(|interval| self.sent_at + interval);
            let Self { requests, responses, .. } = &mut *self;
            let message = tokio::select! {
                message = responses.message() => Some(message),
                permit = requests.reserve(), if ready => {
                    return permit.map(|_| Event::Ready).map_err(|_| Failure::ended());
                }
                () = tokio::time::sleep_until(keep_alive_at.unwrap_or(silent_at).min(silent_at)) => None,
            };
            let now = Instant::now();
            let Some(message) = message else {
                if now >= silent_at {
                    return Err(Failure::silent());
                }
                self.send(v1::RegisterRequest { request: Some(Request::KeepAlive(v1::KeepAlive {})) });
                // For a while nothing is due, whether or not there was room: what fills it is a sign of life too.
                self.sent_at = now;
                continue;
            };
            let message = message.map_err(Failure::of)?.ok_or_else(Failure::ended)?;
            self.heard_at = now;
            match message.response {
                Some(Response::Draining(_)) => return Ok(Event::Draining),
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
            self.send(request);
        }
    }

    fn send(&mut self, request: v1::RegisterRequest) {
        if self.requests.try_send(request).is_ok() {
            self.sent_at = Instant::now();
        }
    }
}
