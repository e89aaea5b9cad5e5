//! The measured systems: Rollcall and its peers, as child processes on free loopback ports.

pub(crate) mod etcd;
mod facts;
mod kazoo;
mod rollcall;
mod zookeeper;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rollcall_tests::client::Client;
use rollcall_tests::hostile::Flood;
use rollcall_tests::zookeeper_witness::Witness;

pub(crate) use etcd::Etcd;
pub(crate) use kazoo::Kazoo;
pub(crate) use rollcall::Rollcall;
pub(crate) use zookeeper::{Fsync, ZooKeeper};

/// Time in which a system has to start.
const START: Duration = Duration::from_secs(30);

/// A scratch directory. Dropping removes it.
type Directory = Box<dyn fmt::Debug + Send + Sync>;

/// The systems that most workloads share. Dropping ends them.
#[derive(Debug)]
pub(crate) struct Setup {
    program: PathBuf,
    // Fields are dropped in order: the server has to end before the systems that it depends on.
    rollcall: Rollcall,
    zookeeper: ZooKeeper,
    facts: Vec<(&'static str, String)>,
    floods: Floods,
}

/// The options of the workload `citizen`.
#[derive(Clone, Debug)]
pub(crate) struct Floods {
    /// The floods to run.
    pub(crate) kinds: Vec<Flood>,
    /// The nice value of the floods; 19 is the lowest priority.
    pub(crate) nice: u8,
}

impl Setup {
    /// Starts ZooKeeper and the server, and waits until both answer.
    pub(crate) async fn start(server: Option<PathBuf>, floods: Floods) -> anyhow::Result<Setup> {
        let program = rollcall::program(server)?;
        let mut facts = facts::of_the_machine()?;
        let zookeeper = ZooKeeper::start(Fsync::On).await?;
        facts.extend(facts::of_the_systems(&program, &zookeeper).await?);
        let hosts = chroot(&zookeeper);
        Witness::connect(&zookeeper.address().to_string()).await.create("/bench", b"").await;
        let rollcall = Rollcall::serving(&program, &hosts).await?;
        Ok(Setup { program, rollcall, zookeeper, facts, floods })
    }

    /// Facts about the machine and the systems.
    pub(crate) fn facts(&self) -> Vec<(&'static str, String)> {
        self.facts.clone()
    }

    /// The options of the workload `citizen`.
    pub(crate) fn floods(&self) -> &Floods {
        &self.floods
    }

    /// The program `rollcall-server`.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// The shared ZooKeeper.
    pub(crate) fn zookeeper(&self) -> &ZooKeeper {
        &self.zookeeper
    }

    /// The processes that Rollcall consists of: the server and the ZooKeeper.
    pub(crate) fn pids(&self) -> [u32; 2] {
        [self.rollcall.pid(), self.zookeeper.pid()]
    }

    /// Starts another server in front of the same ZooKeeper.
    pub(crate) async fn another(&self) -> anyhow::Result<Rollcall> {
        Rollcall::serving(&self.program, &chroot(&self.zookeeper)).await
    }

    /// The connection string for kazoo.
    pub(crate) fn hosts(&self) -> String {
        chroot(&self.zookeeper)
    }

    /// Opens a new ZooKeeper session.
    pub(crate) async fn zk(&self) -> Witness {
        Witness::connect(&chroot(&self.zookeeper)).await
    }

    /// Starts a program on the same ZooKeeper that reads with kazoo.
    pub(crate) fn kazoo(&self) -> anyhow::Result<Kazoo> {
        Kazoo::reader(&chroot(&self.zookeeper))
    }

    /// The server's gRPC address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.rollcall.address()
    }

    /// A client of the server on a new connection.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        self.rollcall.client().await
    }
}

/// ZooKeeper's address with the chroot that all systems share.
fn chroot(zookeeper: &ZooKeeper) -> String {
    format!("{}/bench", zookeeper.address())
}
