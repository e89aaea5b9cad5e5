//! Locks acquired and released, per second.

mod queue;
mod taker;

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use rollcall_tests::client::Client;
use rollcall_tests::zookeeper_witness::Witness;
use tonic::transport::Channel;

use super::Workload;
use crate::drive::throughput;
use crate::report::{Case, ETCD, KAZOO, ROLLCALL, Round, System, Unit, ZOOKEEPER};
use crate::systems::{Etcd, Kazoo, Setup, etcd};
pub(super) use queue::Queue;
use taker::Taker;

/// Number of contending clients.
const CLIENTS: usize = 16;
/// etcd with one lasting lease for each client, which outlives all the locks that are taken with it.
const ETCD_LEASE_KEPT: System = System("etcd, lease kept");
const SYSTEMS: [System; 5] = [ROLLCALL, KAZOO, ZOOKEEPER, ETCD, ETCD_LEASE_KEPT];

/// Which client takes which lock.
#[derive(Clone, Copy)]
enum Scene {
    Alone,
    OneLock,
    OneLockEach,
}

impl Scene {
    const ALL: [Scene; 3] = [Scene::Alone, Scene::OneLock, Scene::OneLockEach];

    fn case(self) -> Case {
        let name = match self {
            Scene::Alone => "one client in sequence",
            Scene::OneLock => "16 on one lock",
            Scene::OneLockEach => "16 on 16 locks",
        };
        Case { workload: Lock::NAME, name: name.to_owned(), unit: Unit::PerSecond }
    }

    fn clients(self) -> usize {
        match self {
            Scene::Alone => 1,
            Scene::OneLock | Scene::OneLockEach => CLIENTS,
        }
    }

    /// The path of the lock that a client of a system takes.
    fn path(self, system: &str, client: usize) -> String {
        match self {
            Scene::Alone => format!("/lock/{system}/alone"),
            Scene::OneLock => format!("/lock/{system}/one"),
            Scene::OneLockEach => format!("/lock/{system}/each{client}"),
        }
    }
}

/// The workload, prepared: the same number of clients for each system, each with a connection of its own.
#[derive(Debug)]
pub(crate) struct Lock {
    rollcall: Vec<Client>,
    kazoo: Vec<Kazoo>,
    zk: Vec<Witness>,
    /// Each client with a lease.
    etcd: Vec<(Channel, i64)>,
    _member: Etcd,
}

impl Workload for Lock {
    const NAME: &str = "lock";
    const NOTE: &str = "acquire and release, both acknowledged, again and again; each client has a connection of its own. rollcall: \
         AcquireLock until held, ReleaseLock. kazoo: its Semaphore, which is the same recipe, each client in a Python \
         process of its own. zookeeper: zookeeper-client's mutex with the names of kazoo's Lock, which has no lease \
         beside the contender. etcd: a lease is granted for each lock, as a lock needs one that ends with its holder, Lock of \
         its lock service, and the lease is revoked, which gives the lock back; with the lease kept: Lock and Unlock, with \
         one lease a client that was granted beforehand.";

    async fn prepare(setup: &Setup) -> anyhow::Result<Lock> {
        let zk = join_all((0..CLIENTS).map(|_| setup.zk())).await;
        let mutexes = Scene::ALL.map(|scene| (0..scene.clients()).map(move |client| scene.path("zookeeper", client)));
        for path in mutexes.into_iter().flatten().collect::<BTreeSet<_>>() {
            zk[0].create(&path, b"").await;
        }
        let member = Etcd::start().await?;
        let session = async || {
            let channel = member.channel().await?;
            let lease = etcd::grant(&channel).await?;
            anyhow::Ok((channel, lease))
        };
        Ok(Lock {
            rollcall: try_join_all((0..CLIENTS).map(|_| setup.client())).await?,
            kazoo: Kazoo::semaphores(CLIENTS, &setup.hosts()).await?,
            zk,
            etcd: try_join_all((0..CLIENTS).map(|_| session())).await?,
            _member: member,
        })
    }

    async fn round(&mut self, _setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
        for scene in Scene::ALL {
            for system in round.turn(SYSTEMS) {
                let rate = match system {
                    KAZOO => self.kazoos_rate(scene, round.time).await?,
                    _ => {
                        let takers = (0..scene.clients()).map(|client| self.taker(system, scene, client));
                        throughput(round.time, takers.map(|taker| move || taker.clone().once())).await?
                    }
                };
                round.add(&scene.case(), system, rate);
            }
        }
        Ok(())
    }
}

impl Lock {
    async fn kazoos_rate(&mut self, scene: Scene, time: Duration) -> anyhow::Result<f64> {
        let clients = &mut self.kazoo[..scene.clients()];
        for (client, kazoo) in clients.iter_mut().enumerate() {
            kazoo.begin(&scene.path("kazoo", client), time)?;
        }
        let mut total = 0.0;
        for kazoo in clients {
            total += kazoo.rate(time).await?;
        }
        Ok(total)
    }

    fn taker(&self, system: System, scene: Scene, client: usize) -> Taker {
        let path = scene.path(if system == ETCD_LEASE_KEPT { "kept" } else { system.0 }, client);
        match system {
            ZOOKEEPER => Taker::mutex(self.zk[client].client(), &path),
            ETCD => Taker::Etcd { channel: self.etcd[client].0.clone(), lease: None, name: path },
            ETCD_LEASE_KEPT => {
                let (channel, lease) = self.etcd[client].clone();
                Taker::Etcd { channel, lease: Some(lease), name: path }
            }
            _ => Taker::Rollcall { client: self.rollcall[client].clone(), path },
        }
    }
}
