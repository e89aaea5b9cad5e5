//! A watch over any number of streams.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use rollcall_proto::v1;
use tokio::time::timeout;
use tonic::Streaming;

use super::assemble::{Assembler, Said};
use super::update::Update;
use crate::choice::FOREVER;
use crate::client::Client;
use crate::error::{Error, Failure};
use crate::node::duration_to_proto;
use crate::replicas::Replica;

/// How long a stream may be quiet before the replica says something.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// After what time without a word a replica is given up.
const SILENCE: Duration = Duration::from_secs(25);
/// How long a replica may take to open a stream.
const OPENING: Duration = Duration::from_secs(4);

pub(super) struct Following {
    client: Client,
    request: v1::WatchRequest,
    assembler: Assembler,
    /// The stream that stands, and whether it has said anything yet.
    stream: Option<(Replica, Streaming<v1::WatchResponse>)>,
    /// Updates that have not been given yet.
    ready: VecDeque<Update>,
    has_ended: bool,
    /// The replicas that have opened no stream since one has said something last.
    silent: BTreeSet<usize>,
    /// The replica that the last stream was left for.
    drains: Option<usize>,
}

impl Following {
    pub(super) fn new(client: Client, mut request: v1::WatchRequest) -> Self {
        request.heartbeat = Some(duration_to_proto(HEARTBEAT));
        let assembler = Assembler::since(request.since_revision);
        Self {
            client,
            request,
            assembler,
            stream: None,
            ready: VecDeque::new(),
            has_ended: false,
            silent: BTreeSet::new(),
            drains: None,
        }
    }

    /// The next update; an error is the last item.
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
        let Some((replica, stream)) = &mut self.stream else { return self.open().await };
        let failure = match timeout(SILENCE, stream.message()).await {
            Ok(Ok(Some(message))) => {
                self.client.replicas().succeeded(replica);
                self.silent.clear();
                self.client.replicas().seen().note_watch(&message);
                match self.assembler.take(message) {
                    Said::Updates(updates) => self.ready.extend(updates),
                    Said::Draining => {
                        self.client.replicas().drains(replica);
                        self.drains = Some(replica.index());
                        self.leave();
                    }
                }
                return Ok(());
            }
            Ok(Ok(None)) => Failure::ended(),
            Ok(Err(status)) => Failure::of(status),
            Err(_) => Failure::silent(),
        };
        let replica = replica.clone();
        self.leave();
        self.failed(&replica, failure)
    }

    async fn open(&mut self) -> Result<(), Error> {
        let mut replica = self.client.replicas().pick_but(self.drains.take(), FOREVER).await;
        let (since_revision, min_revision) = (self.assembler.revision(), self.client.replicas().seen().latest());
        let request = v1::WatchRequest { since_revision, min_revision, ..self.request.clone() };
        let failure = match timeout(OPENING, replica.stub.watch(request)).await {
            Ok(Ok(answer)) => {
                self.stream = Some((replica, answer.into_inner()));
                return Ok(());
            }
            Ok(Err(status)) => Failure::of(status),
            Err(_) => Failure::silent(),
        };
        self.silent.insert(replica.index());
        // Another one may still serve.
        if self.silent.len() == self.client.replicas().count() {
            self.ready.extend(self.assembler.unreachable());
        }
        self.failed(&replica, failure)
    }

    fn leave(&mut self) {
        self.stream = None;
        self.assembler.broken();
    }

    /// Whether it is worth going on.
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
