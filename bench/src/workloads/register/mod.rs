//! Registrations per second.

mod hold;
mod resume;
mod stream;

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use rollcall_tests::bare::Bare;
use rollcall_tests::client::{Client, data, set};
use serde_json::{Value as Json, json};
use tokio::sync::Mutex;
use tonic::transport::Channel;
use zookeeper_client::{Acls, CreateMode};

use super::Workload;
use crate::drive::pipelined;
use crate::report::{Case, ETCD, ROLLCALL, Round, System, Unit, ZOOKEEPER};
use crate::systems::{Etcd, Setup, etcd};
pub(super) use hold::Hold;
pub(super) use resume::Resume;
use stream::{Stream, close_all, open_all};

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
    Leases,
    WideLeases,
}

/// The workload, prepared.
#[derive(Debug)]
pub(crate) struct Register {
    clients: Vec<Client>,
    bare: Bare,
    channels: Vec<Channel>,
    _etcd: Etcd,
    /// Counts the batches, so that no name comes twice.
    batches: u32,
}

impl Workload for Register {
    const NAME: &str = "register";
    const NOTE: &str = "ephemeral nodes in batches that are taken down, unmeasured, before the next. `one stream` keeps 128 sets in \
         flight; `1,000 streams` opens as many over 10 connections that stand, one set each, and counts until the last \
         is answered. zookeeper: 128 creates in flight on one session, or 1,000. etcd: a lease is granted, then a key is \
         put with it, one gRPC call each; beside one stream 128 such pairs are in flight over one connection, beside \
         1,000 streams 1,000 over 10 connections. The client gives all the same bytes; Rollcall adds a key to them.";

    async fn prepare(setup: &Setup) -> anyhow::Result<Register> {
        let bare = setup.bare().await;
        bare.create(PATH, b"").await;
        let etcd = Etcd::start().await?;
        Ok(Register {
            clients: try_join_all((0..CONNECTIONS).map(|_| setup.client())).await?,
            bare,
            channels: try_join_all((0..CONNECTIONS).map(|_| etcd.channel())).await?,
            _etcd: etcd,
            batches: 0,
        })
    }

    async fn round(&mut self, _setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
        let case = |name: &str| Case { workload: Register::NAME, name: name.to_owned(), unit: Unit::PerSecond };
        let (one, many) = (case("one stream"), case("1,000 streams of one"));
        let ways = [Way::OneStream, Way::Creates, Way::Leases, Way::ManyStreams, Way::WideCreates, Way::WideLeases];
        for way in round.turn(ways) {
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
                Way::Leases => round.add(&one, ETCD, rate),
                Way::WideLeases => round.add(&many, ETCD, rate),
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
            Way::Leases => (STREAMS, leases(&self.channels[..1], WINDOW, name).await?),
            Way::WideLeases => (STREAMS, leases(&self.channels, STREAMS, name).await?),
        })
    }
}

/// What a service says of itself; in ZooKeeper 67 bytes.
fn value() -> Json {
    json!({"host": "server17.example", "port": 8080, "weight": 100, "zone": "north"})
}

async fn one_stream(client: &Client, name: impl Fn(usize) -> String) -> anyhow::Result<Duration> {
    let value = data(value());
    let request = |number| set(&name(number), value.clone());
    let begin = Instant::now();
    let mut stream = Stream::open(&mut client.clone(), (0..WINDOW).map(request)).await?;
    for number in WINDOW..BATCH {
        stream.registered().await?;
        stream.send(request(number)).await?;
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
    let streams = open_all(clients, (0..STREAMS).map(|number| [set(&name(number), value.clone())])).await?;
    let taken = begin.elapsed();
    close_all(streams.into_iter().map(|(stream, _)| stream)).await?;
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

async fn leases(channels: &[Channel], window: usize, name: impl Fn(usize) -> String) -> anyhow::Result<Duration> {
    let (value, leases) = (value().to_string(), Mutex::new(Vec::with_capacity(STREAMS)));
    let channel = |number: usize| &channels[number % channels.len()];
    let taken = pipelined(STREAMS, window, async |number| {
        let lease = etcd::register(channel(number), name(number), value.clone()).await?;
        leases.lock().await.push(lease);
        Ok(())
    })
    .await?;
    let leases = leases.into_inner();
    pipelined(leases.len(), window, async |number| etcd::revoke(channel(number), leases[number]).await).await?;
    Ok(taken)
}
