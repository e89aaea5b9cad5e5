//! Registrations per second.

mod hold;
mod resume;
mod stream;

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
use crate::usage::{Meter, Taken};
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

const ONE: &str = "one stream";
const MANY: &str = "1,000 streams of one";

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
    etcd: Etcd,
    /// Counts the batches, so that no name comes twice.
    batches: u32,
}

impl Workload for Register {
    const NAME: &str = "register";
    const NOTE: &str = "ephemeral nodes in batches that are taken down, unmeasured, before the next. `one stream` keeps 128 sets in \
         flight; `1,000 streams` opens as many over 10 connections that stand, one set each, and counts until the last \
         is answered. zookeeper: 128 creates in flight on one session, or 1,000. etcd: a lease is granted, then a key is \
         put with it, one gRPC call each; beside one stream 128 such pairs are in flight over one connection, beside \
         1,000 streams 1,000 over 10 connections. The client gives all the same bytes; Rollcall adds a key to them. \
         Processor: what a registration costs the system, which with Rollcall is the server and ZooKeeper.";

    async fn prepare(setup: &Setup) -> anyhow::Result<Register> {
        let bare = setup.bare().await;
        bare.create(PATH, b"").await;
        let etcd = Etcd::start().await?;
        Ok(Register {
            clients: try_join_all((0..CONNECTIONS).map(|_| setup.client())).await?,
            bare,
            channels: try_join_all((0..CONNECTIONS).map(|_| etcd.channel())).await?,
            etcd,
            batches: 0,
        })
    }

    async fn round(&mut self, setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
        let [server, zookeeper] = setup.pids();
        let ways = [Way::OneStream, Way::Creates, Way::Leases, Way::ManyStreams, Way::WideCreates, Way::WideLeases];
        for way in round.turn(ways) {
            let (cases, system, pids) = match way {
                Way::OneStream => (&[ONE] as &[_], ROLLCALL, vec![server, zookeeper]),
                Way::ManyStreams => (&[MANY] as &[_], ROLLCALL, vec![server, zookeeper]),
                Way::Creates => (&[ONE, MANY] as &[_], ZOOKEEPER, vec![zookeeper]),
                Way::WideCreates => (&[MANY] as &[_], WIDE, vec![zookeeper]),
                Way::Leases => (&[ONE] as &[_], ETCD, vec![self.etcd.pid()]),
                Way::WideLeases => (&[MANY] as &[_], ETCD, vec![self.etcd.pid()]),
            };
            let mut all = Taken::default();
            while all.time < round.time {
                self.batches += 1;
                all += self.batch(way, &pids).await?;
            }
            for streams in cases {
                let case = |what: &str, unit| Case { workload: Register::NAME, name: format!("{streams}{what}"), unit };
                round.add(&case("", Unit::PerSecond), system, all.rate());
                round.add(&case(", processor", Unit::Microseconds), system, all.processor_each());
            }
        }
        Ok(())
    }
}

impl Register {
    /// Registers many, which is what is measured, and takes them down again.
    async fn batch(&self, way: Way, pids: &[u32]) -> anyhow::Result<Taken> {
        let name = |number: usize| format!("{PATH}/b{}-{number}:8080", self.batches);
        match way {
            Way::OneStream => one_stream(&self.clients[0], name, pids).await,
            Way::ManyStreams => many_streams(&self.clients, name, pids).await,
            Way::Creates => creates(&self.bare, WINDOW, name, pids).await,
            Way::WideCreates => creates(&self.bare, STREAMS, name, pids).await,
            Way::Leases => leases(&self.channels[..1], WINDOW, name, pids).await,
            Way::WideLeases => leases(&self.channels, STREAMS, name, pids).await,
        }
    }
}

/// What a service says of itself; in ZooKeeper 67 bytes.
fn value() -> Json {
    json!({"host": "server17.example", "port": 8080, "weight": 100, "zone": "north"})
}

async fn one_stream(client: &Client, name: impl Fn(usize) -> String, pids: &[u32]) -> anyhow::Result<Taken> {
    let value = data(value());
    let request = |number| set(&name(number), value.clone());
    let meter = Meter::start(pids)?;
    let mut stream = Stream::open(&mut client.clone(), (0..WINDOW).map(request)).await?;
    for number in WINDOW..BATCH {
        stream.registered().await?;
        stream.send(request(number)).await?;
    }
    for _ in 0..WINDOW {
        stream.registered().await?;
    }
    let taken = meter.stop(BATCH)?;
    stream.close(BATCH).await?;
    Ok(taken)
}

async fn many_streams(clients: &[Client], name: impl Fn(usize) -> String, pids: &[u32]) -> anyhow::Result<Taken> {
    let value = data(value());
    let meter = Meter::start(pids)?;
    let streams = open_all(clients, (0..STREAMS).map(|number| [set(&name(number), value.clone())])).await?;
    let taken = meter.stop(STREAMS)?;
    close_all(streams.into_iter().map(|(stream, _)| stream)).await?;
    Ok(taken)
}

async fn creates(bare: &Bare, window: usize, name: impl Fn(usize) -> String, pids: &[u32]) -> anyhow::Result<Taken> {
    let (client, value) = (bare.client(), value().to_string());
    let ephemeral = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
    let meter = Meter::start(pids)?;
    pipelined(BATCH, window, async |number| {
        client.create(&name(number), value.as_bytes(), &ephemeral).await?;
        anyhow::Ok(())
    })
    .await?;
    let taken = meter.stop(BATCH)?;
    pipelined(BATCH, window, async |number| Ok(client.delete(&name(number), None).await?)).await?;
    Ok(taken)
}

async fn leases(
    channels: &[Channel],
    window: usize,
    name: impl Fn(usize) -> String,
    pids: &[u32],
) -> anyhow::Result<Taken> {
    let (value, leases) = (value().to_string(), Mutex::new(Vec::with_capacity(STREAMS)));
    let channel = |number: usize| &channels[number % channels.len()];
    let meter = Meter::start(pids)?;
    pipelined(STREAMS, window, async |number| {
        let lease = etcd::register(channel(number), name(number), value.clone()).await?;
        leases.lock().await.push(lease);
        Ok(())
    })
    .await?;
    let taken = meter.stop(STREAMS)?;
    let leases = leases.into_inner();
    pipelined(leases.len(), window, async |number| etcd::revoke(channel(number), leases[number]).await).await?;
    Ok(taken)
}
