//! Registrations per second.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rollcall_proto::v1::register_request::Request;
use rollcall_proto::v1::register_response::Response;
use rollcall_proto::v1::{CloseSession, RegisterRequest, RegisterResponse, Value};
use rollcall_tests::bare::Bare;
use rollcall_tests::client::{Client, data, set};
use serde_json::{Value as Json, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use zookeeper_client::{Acls, CreateMode};

use super::Workload;
use crate::drive::pipelined;
use crate::report::{Case, ROLLCALL, Round, System, Unit, ZOOKEEPER};
use crate::systems::Setup;

const PATH: &str = "/register";
/// How many stand at once: in one ZooKeeper session at most about 150 KB of paths. ZooKeeper's log does not survive the
/// end of a session with 2 MB (ZOOKEEPER-4306).
const BATCH: usize = 5_000;
const WINDOW: usize = 128;
const STREAMS: usize = 1_000;
const CONNECTIONS: usize = 10;

/// ZooKeeper with as many creates in flight as there are streams.
const WIDE: System = System("zookeeper, 1,000 at once");

/// How the registrations are made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    OneStream,
    ManyStreams,
    Creates,
    WideCreates,
}

/// The workload, prepared.
#[derive(Debug)]
pub(crate) struct Register {
    clients: Vec<Client>,
    bare: Bare,
    /// Counts the batches, so that no name comes twice.
    batches: u32,
}

impl Workload for Register {
    const NAME: &str = "register";
    const NOTE: &str = "ephemeral nodes in batches that are taken down, unmeasured, before the next. `one stream` keeps 128 sets in \
         flight; `1,000 streams` opens as many over 10 connections that stand, one set each, and counts until the \
         last is answered. Rollcall adds a key to each value; ZooKeeper is given the same bytes as the client gives \
         Rollcall.";

    async fn prepare(setup: &Setup) -> anyhow::Result<Register> {
        let bare = setup.bare().await;
        bare.create(PATH, b"").await;
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(setup.client().await?);
        }
        Ok(Register { clients, bare, batches: 0 })
    }

    async fn round(&mut self, _setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
        let case = |name: &str| Case { workload: Register::NAME, name: name.to_owned(), unit: Unit::PerSecond };
        let (one, many) = (case("one stream"), case("1,000 streams of one"));
        for way in round.turn([Way::OneStream, Way::ManyStreams, Way::Creates, Way::WideCreates]) {
            let (mut measured, mut count) = (Duration::ZERO, 0);
            while measured < round.time {
                self.batches += 1;
                let (registrations, taken) = self.batch(way).await?;
                measured += taken;
                count += registrations;
            }
            let rate = count as f64 / measured.as_secs_f64();
            match way {
                Way::OneStream => round.add(&one, ROLLCALL, rate),
                Way::ManyStreams => round.add(&many, ROLLCALL, rate),
                Way::WideCreates => round.add(&many, WIDE, rate),
                Way::Creates => {
                    round.add(&one, ZOOKEEPER, rate);
                    round.add(&many, ZOOKEEPER, rate);
                }
            }
        }
        Ok(())
    }
}

impl Register {
    /// Registers many, and takes them down again: how many there were, and how long the first half took.
    async fn batch(&self, way: Way) -> anyhow::Result<(usize, Duration)> {
        let name = |number: usize| format!("{PATH}/b{}-{number}:8080", self.batches);
        Ok(match way {
            Way::OneStream => (BATCH, one_stream(&self.clients[0], name).await?),
            Way::ManyStreams => (STREAMS, many_streams(&self.clients, name).await?),
            Way::Creates => (BATCH, creates(&self.bare, WINDOW, name).await?),
            Way::WideCreates => (BATCH, creates(&self.bare, STREAMS, name).await?),
        })
    }
}

/// One Register stream that stands.
struct Stream {
    requests: mpsc::Sender<RegisterRequest>,
    responses: Streaming<RegisterResponse>,
}

impl Stream {
    /// Opens a stream, with the first requests in flight.
    async fn open(client: &mut Client, first: impl Iterator<Item = RegisterRequest>) -> anyhow::Result<Stream> {
        let (requests, receiver) = mpsc::channel(WINDOW);
        for request in first {
            requests.try_send(request).context("more than the window")?;
        }
        let responses = client.register(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Stream { requests, responses })
    }

    /// Waits until one more is registered.
    async fn registered(&mut self) -> anyhow::Result<()> {
        loop {
            match self.responses.message().await?.context("the stream ended")?.response {
                Some(Response::Registered(_)) => return Ok(()),
                Some(Response::Opened(_) | Response::Pending(_) | Response::KeptAlive(_)) => {}
                other => bail!("not registered: {other:?}"),
            }
        }
    }

    /// Takes everything down, and waits until it is.
    async fn close(mut self, registrations: usize) -> anyhow::Result<()> {
        let close = RegisterRequest { request: Some(Request::Close(CloseSession {})) };
        self.requests.send(close).await.context("the stream ended before it was closed")?;
        let mut gone = 0;
        while let Some(message) = self.responses.message().await? {
            gone += usize::from(matches!(message.response, Some(Response::Unregistered(_))));
        }
        ensure!(gone == registrations, "{gone} of {registrations} were taken down");
        Ok(())
    }
}

/// What a service says of itself; in ZooKeeper 67 bytes.
fn value() -> Json {
    json!({"host": "server17.example", "port": 8080, "weight": 100, "zone": "north"})
}

fn registration(path: &str, value: &Value) -> RegisterRequest {
    RegisterRequest { request: Some(set(path, value.clone())) }
}

async fn one_stream(client: &Client, name: impl Fn(usize) -> String) -> anyhow::Result<Duration> {
    let value = data(value());
    let request = |number| registration(&name(number), &value);
    let begin = Instant::now();
    let mut stream = Stream::open(&mut client.clone(), (0..WINDOW).map(request)).await?;
    for number in WINDOW..BATCH {
        stream.registered().await?;
        stream.requests.send(request(number)).await.context("the stream ended")?;
    }
    for _ in 0..WINDOW {
        stream.registered().await?;
    }
    let taken = begin.elapsed();
    stream.close(BATCH).await?;
    Ok(taken)
}

async fn many_streams(clients: &[Client], name: impl Fn(usize) -> String) -> anyhow::Result<Duration> {
    let value = data(value());
    let begin = Instant::now();
    let mut opening = JoinSet::new();
    for (number, client) in (0..STREAMS).zip(clients.iter().cycle()) {
        let (mut client, request) = (client.clone(), registration(&name(number), &value));
        opening.spawn(async move {
            let mut stream = Stream::open(&mut client, std::iter::once(request)).await?;
            stream.registered().await?;
            anyhow::Ok(stream)
        });
    }
    let mut streams = Vec::with_capacity(STREAMS);
    while let Some(opened) = opening.join_next().await {
        streams.push(opened.context("a client panicked")??);
    }
    let taken = begin.elapsed();
    let mut closing: JoinSet<_> = streams.into_iter().map(|stream| stream.close(1)).collect();
    while let Some(closed) = closing.join_next().await {
        closed.context("a client panicked")??;
    }
    Ok(taken)
}

async fn creates(bare: &Bare, window: usize, name: impl Fn(usize) -> String) -> anyhow::Result<Duration> {
    let (client, value) = (bare.client(), value().to_string());
    let ephemeral = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
    let taken = pipelined(BATCH, window, async |number| {
        client.create(&name(number), value.as_bytes(), &ephemeral).await?;
        anyhow::Ok(())
    })
    .await?;
    pipelined(BATCH, window, async |number| Ok(client.delete(&name(number), None).await?)).await?;
    Ok(taken)
}
