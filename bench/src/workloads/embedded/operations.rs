//! Creates, gets and watch events per second.

use std::iter::repeat_n;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use rollcall_tests::zookeeper::free_address;
use rollcall_tests::zookeeper_witness::Witness;
use tokio::sync::Mutex;
use zookeeper_client::{Acls, AddWatchMode, Client, CreateMode, EventType, PersistentWatcher};

use super::{DATA, case};
use crate::drive::{pipelined, throughput};
use crate::report::{ROLLCALL, Round, System, Unit, ZOOKEEPER};
use crate::systems::{Fsync, Rollcall, Setup, ZooKeeper};

const AT_ONCE: [usize; 3] = [1, 16, 128];

/// The backends, with a client for each.
#[derive(Debug)]
pub(super) struct Operations {
    embedded: Driven,
    zookeeper: Driven,
    _processes: (Rollcall, ZooKeeper),
}

/// One backend with its clients.
#[derive(Debug)]
struct Driven {
    system: System,
    zk: Witness,
    /// The session that the watchers belong to.
    _watching: Witness,
    /// A watcher for each node that is set.
    watchers: Vec<Arc<Mutex<PersistentWatcher>>>,
}

impl Operations {
    pub(super) async fn prepare(setup: &Setup) -> anyhow::Result<Operations> {
        let address = free_address();
        let server =
            Rollcall::start(setup.program(), &["--embedded", "--embedded-listen", &address.to_string()]).await?;
        let zookeeper = ZooKeeper::start(Fsync::Off).await?;
        Ok(Operations {
            embedded: Driven::prepare(ROLLCALL, address).await?,
            zookeeper: Driven::prepare(ZOOKEEPER, zookeeper.address()).await?,
            _processes: (server, zookeeper),
        })
    }

    pub(super) async fn measure(&self, round: &mut Round<'_>) -> anyhow::Result<()> {
        for at_once in AT_ONCE {
            for driven in round.turn([&self.embedded, &self.zookeeper]) {
                let creates = driven.creates(at_once, round.time).await?;
                round.add(&case(format!("creates, {at_once} at once"), Unit::PerSecond), driven.system, creates);
                let gets = driven.gets(at_once, round.time).await?;
                round.add(&case(format!("gets, {at_once} at once"), Unit::PerSecond), driven.system, gets);
                let events = driven.events(at_once, round.time).await?;
                round.add(&case(format!("events, {at_once} at once"), Unit::PerSecond), driven.system, events);
            }
        }
        Ok(())
    }
}

impl Driven {
    async fn prepare(system: System, address: SocketAddr) -> anyhow::Result<Driven> {
        let hosts = address.to_string();
        let (zk, watching) = (Witness::connect(&hosts).await, Witness::connect(&hosts).await);
        zk.create("/get", DATA).await;
        zk.create("/create", b"").await;
        let mut watchers = Vec::new();
        for number in 0..AT_ONCE[AT_ONCE.len() - 1] {
            zk.create(&watched(number), b"").await;
            let watcher = watching.client().watch(&watched(number), AddWatchMode::Persistent).await?;
            watchers.push(Arc::new(Mutex::new(watcher)));
        }
        Ok(Driven { system, zk, _watching: watching, watchers })
    }

    async fn creates(&self, at_once: usize, time: Duration) -> anyhow::Result<f64> {
        let client = self.zk.client();
        let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
        // The nodes are deleted after each batch, unmeasured: many children would make a difference.
        let batch = 500 + 40 * at_once;
        let path = |number: usize| format!("/create/node-{number}");
        let (mut measured, mut count) = (Duration::ZERO, 0);
        while measured < time {
            measured += pipelined(batch, at_once, async |number| {
                client.create(&path(number), DATA, &open).await?;
                Ok(())
            })
            .await?;
            count += batch;
            pipelined(batch, batch, async |number| Ok(client.delete(&path(number), None).await?)).await?;
        }
        Ok(count as f64 / measured.as_secs_f64())
    }

    async fn gets(&self, at_once: usize, time: Duration) -> anyhow::Result<f64> {
        let client = self.zk.client().clone();
        let get = move || get(client.clone());
        throughput(time, repeat_n(get, at_once)).await
    }

    async fn events(&self, at_once: usize, time: Duration) -> anyhow::Result<f64> {
        let callers = self.watchers.iter().take(at_once).enumerate().map(|(number, watcher)| {
            let (client, watcher) = (self.zk.client().clone(), watcher.clone());
            move || set_and_see(client.clone(), watcher.clone(), number)
        });
        throughput(time, callers).await
    }
}

fn watched(number: usize) -> String {
    format!("/watch/node-{number}")
}

async fn get(client: Client) -> anyhow::Result<()> {
    let (data, _) = client.get_data("/get").await?;
    ensure!(data == DATA, "the node holds something else");
    Ok(())
}

async fn set_and_see(client: Client, watcher: Arc<Mutex<PersistentWatcher>>, number: usize) -> anyhow::Result<()> {
    let mut watcher = watcher.lock().await;
    client.set_data(&watched(number), DATA, None).await?;
    let event = watcher.changed().await;
    ensure!(event.event_type == EventType::NodeDataChanged, "not a change: {event:?}");
    Ok(())
}
