//! Registrations per second.

mod drivers;
mod hold;
mod resume;
mod stream;

use futures_util::future::try_join_all;
use rollcall_tests::client::Client;
use rollcall_tests::zookeeper_witness::Witness;
use tonic::transport::Channel;

use super::Workload;
use crate::report::{Case, ETCD, ROLLCALL, Round, System, Unit, ZOOKEEPER};
use crate::systems::{Etcd, Setup};
use crate::usage::Taken;
use drivers::{creates, leases, many_streams, new_streams, one_stream, value};
pub(super) use hold::Hold;
pub(super) use resume::Resume;
use stream::Stream;

const PATH: &str = "/register";
/// Number of registrations at a time: at most about 150 KB of paths in one ZooKeeper session. ZooKeeper's log does not
/// survive the end of a session with 2 MB (ZOOKEEPER-4306).
const BATCH: usize = 5_000;
const WINDOW: usize = 128;
const STREAMS: usize = 1_000;
const CONNECTIONS: usize = 10;

const ONE: &str = "one stream";
const MANY: &str = "1,000 streams of one";
const NEW: &str = "1,000 new streams of one";

/// ZooKeeper with as many creates in flight as Rollcall has streams.
const WIDE: System = System("zookeeper, 1,000 at once");

/// How the registrations are made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    OneStream,
    /// On many open streams.
    ManyStreams,
    /// On streams that are opened for the batch.
    NewStreams,
    Creates,
    WideCreates,
    Leases,
    WideLeases,
}

impl Way {
    /// All ways, in an order in which no two with the same load follow each other.
    const ALL: [Way; 7] = [
        Way::OneStream,
        Way::Creates,
        Way::Leases,
        Way::ManyStreams,
        Way::WideCreates,
        Way::NewStreams,
        Way::WideLeases,
    ];
}

/// The workload, prepared.
#[derive(Debug)]
pub(crate) struct Register {
    clients: Vec<Client>,
    /// The open streams.
    streams: Vec<Stream>,
    zk: Witness,
    channels: Vec<Channel>,
    etcd: Etcd,
    /// Counts the batches, so that no name is used twice.
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
        let zk = setup.zk().await;
        zk.create(PATH, b"").await;
        let etcd = Etcd::start().await?;
        let clients = try_join_all((0..CONNECTIONS).map(|_| setup.client())).await?;
        Ok(Register {
            streams: drivers::standing(&clients).await?,
            clients,
            zk,
            channels: try_join_all((0..CONNECTIONS).map(|_| etcd.channel())).await?,
            etcd,
            batches: 0,
        })
    }

    async fn round(&mut self, setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
        let [server, zookeeper] = setup.pids();
        let (ours, zookeepers, etcds) = (vec![server, zookeeper], vec![zookeeper], vec![self.etcd.pid()]);
        for way in round.turn(Way::ALL) {
            let (cases, system, pids): (&[&str], _, _) = match way {
                Way::OneStream => (&[ONE], ROLLCALL, &ours),
                Way::ManyStreams => (&[MANY], ROLLCALL, &ours),
                Way::NewStreams => (&[NEW], ROLLCALL, &ours),
                Way::Creates => (&[ONE, MANY, NEW], ZOOKEEPER, &zookeepers),
                Way::WideCreates => (&[MANY, NEW], WIDE, &zookeepers),
                Way::Leases => (&[ONE], ETCD, &etcds),
                Way::WideLeases => (&[MANY, NEW], ETCD, &etcds),
            };
            let mut all = Taken::default();
            while all.time < round.time {
                self.batches += 1;
                all += self.batch(way, pids).await?;
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
    /// Registers a batch, which is measured, and takes it down again.
    async fn batch(&mut self, way: Way, pids: &[u32]) -> anyhow::Result<Taken> {
        let batch = self.batches;
        let name = |number: usize| format!("{PATH}/b{batch}-{number}:8080");
        match way {
            Way::OneStream => one_stream(&self.clients[0], name, pids).await,
            Way::ManyStreams => many_streams(&mut self.streams, name, pids).await,
            Way::NewStreams => new_streams(&self.clients, name, pids).await,
            Way::Creates => creates(&self.zk, WINDOW, name, pids).await,
            Way::WideCreates => creates(&self.zk, STREAMS, name, pids).await,
            Way::Leases => leases(&self.channels[..1], WINDOW, name, pids).await,
            Way::WideLeases => leases(&self.channels, STREAMS, name, pids).await,
        }
    }
}
