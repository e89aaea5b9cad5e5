//! A watch over any number of streams.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use rollcall_proto::v1;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Status, Streaming};

use super::assemble::{Assembler, Said};
use super::update::Update;
use crate::choice::FOREVER;
use crate::client::Client;
use crate::error::{Error, Failure};
use crate::node::duration_to_proto;
use crate::replicas::Replica;
use crate::scout::Unease;

/// Interval of heartbeats that the client asks for on a quiet stream.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Time without a word after which a replica is given up.
const SILENCE: Duration = Duration::from_secs(25);
/// Time that a replica may take to open a stream.
const OPENING: Duration = Duration::from_secs(4);

pub(super) struct Following {
    client: Client,
    request: v1::WatchRequest,
    assembler: Assembler,
    stream: Option<Stream>,
    /// Updates that were not returned yet.
    ready: VecDeque<Update>,
    has_ended: bool,
    /// The replicas that have opened no stream since any replica last sent a message.
    silent: BTreeSet<usize>,
    /// The replica that the client is leaving.
    drains: Option<usize>,
    /// Whether to look for another replica, because the present one has lost ZooKeeper.
    unease: Unease,
}

/// The open stream.
struct Stream {
    replica: Replica,
    responses: Streaming<v1::WatchResponse>,
    heard_at: Instant,
}

/// The next event of a stream.
enum Next {
    Message(Result<Option<v1::WatchResponse>, Status>),
    Silence,
    LookElsewhere,
}

impl Stream {
    /// # Cancellation
    /// Safe: no message is lost.
    async fn next(&mut self, look_at: Option<Instant>) -> Next {
        let look = async {
            match look_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            message = self.responses.message() => {
                self.heard_at = Instant::now();
                Next::Message(message)
            }
            () = look => Next::LookElsewhere,
            () = sleep_until(self.heard_at + SILENCE) => Next::Silence,
        }
    }
}

impl Following {
    pub(super) fn new(client: Client, mut request: v1::WatchRequest) -> Self {
        request.heartbeat = Some(duration_to_proto(HEARTBEAT));
        let assembler = Assembler::since(request.since_revision);
        let unease = Unease::new(client.replicas().spread());
        Self {
            client,
            request,
            assembler,
            stream: None,
            ready: VecDeque::new(),
            has_ended: false,
            silent: BTreeSet::new(),
            drains: None,
            unease,
        }
    }

    /// The next update. An error is the last item.
    pub(super) async fn next(&mut self) -> Option<Result<Update, Error>> {
        loop {
            if let Some(update) = self.ready.pop_front() {
                return Some(Ok(update));
            }
            if self.has_ended {
                return None;
            }
            if let Err(error) = self.step().await {
                self.has_ended = true;
                return Some(Err(error));
            }
        }
    }

    /// Opens a stream, or reads one message.
    async fn step(&mut self) -> Result<(), Error> {
        let Some(stream) = &mut self.stream else { return self.open().await };
        let failure = match stream.next(self.unease.look_at()).await {
            Next::Message(Ok(Some(message))) => {
                self.client.replicas().succeeded(&stream.replica);
                self.silent.clear();
                self.client.replicas().seen().note_watch(&message);
                self.take(message);
                return Ok(());
            }
            Next::LookElsewhere => {
                let index = stream.replica.index();
                self.unease.looks(Instant::now());
                if self.client.replicas().found_better(index).await {
                    self.drains = Some(index);
                    self.leave();
                }
                return Ok(());
            }
            Next::Message(Ok(None)) => Failure::ended(),
            Next::Message(Err(status)) => Failure::of(status),
            Next::Silence => Failure::silent(),
        };
        let replica = stream.replica.clone();
        self.leave();
        self.failed(&replica, failure)
    }

    fn take(&mut self, message: v1::WatchResponse) {
        self.unease.set(message.stale, Instant::now());
        match self.assembler.take(message) {
            Said::Updates(updates) => self.ready.extend(updates),
            Said::Draining => {
                if let Some(stream) = &self.stream {
                    self.client.replicas().drains(&stream.replica);
                    self.drains = Some(stream.replica.index());
                }
                self.leave();
            }
        }
    }

    async fn open(&mut self) -> Result<(), Error> {
        let mut replica = self.client.replicas().pick_but(self.drains.take(), FOREVER).await;
        let (since_revision, min_revision) = (self.assembler.revision(), self.client.replicas().seen().latest());
        let request = v1::WatchRequest { since_revision, min_revision, ..self.request.clone() };
        let failure = match timeout(OPENING, replica.stub.watch(request)).await {
            Ok(Ok(answer)) => {
                self.stream = Some(Stream { replica, responses: answer.into_inner(), heard_at: Instant::now() });
                return Ok(());
            }
            Ok(Err(status)) => Failure::of(status),
            Err(_) => Failure::silent(),
        };
        self.silent.insert(replica.index());
        // Another replica may still serve.
        if self.silent.len() == self.client.replicas().count() {
            self.ready.extend(self.assembler.unreachable());
        }
        self.failed(&replica, failure)
    }

    fn leave(&mut self) {
        self.stream = None;
        self.assembler.broken();
        self.unease.moved();
    }

    /// Records a failure. An error means that it is not worth going on.
    fn failed(&self, replica: &Replica, failure: Failure) -> Result<(), Error> {
        match failure {
            Failure::Refused(refusal) if !Error::Refused(refusal.clone()).is_retryable() => {
                self.client.replicas().succeeded(replica);
                Err(Error::Refused(refusal))
            }
            failure => {
                self.client.replicas().failed(replica, &failure);
                Ok(())
            }
        }
    }
}
