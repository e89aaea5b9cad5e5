//! What is measured: Rollcall and its peers, as child processes on free loopback ports.

pub(crate) mod etcd;
mod facts;
mod kazoo;
mod rollcall;
mod zookeeper;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rollcall_tests::bare::Bare;
use rollcall_tests::client::Client;
use rollcall_tests::hostile::Flood;

pub(crate) use etcd::Etcd;
pub(crate) use kazoo::Kazoo;
pub(crate) use rollcall::Rollcall;
pub(crate) use zookeeper::{Fsync, ZooKeeper};

/// How long a system may take to start.
const START: Duration = Duration::from_secs(30);

/// A scratch directory, which goes when this is dropped.
type Directory = Box<dyn fmt::Debug + Send + Sync>;

/// What most workloads share. Dropping ends it.
#[derive(Debug)]
pub(crate) struct Setup {
    program: PathBuf,
    // The server first: it is to end before what it stands on.
    rollcall: Rollcall,
    zookeeper: ZooKeeper,
    facts: Vec<(&'static str, String)>,
    floods: Floods,
}

/// What the workload `citizen` measures.
#[derive(Clone, Debug)]
pub(crate) struct Floods {
    /// Which floods.
    pub(crate) kinds: Vec<Flood>,
    /// At which priority they run; 19 is the lowest.
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
        Bare::connect(&zookeeper.address().to_string()).await.create("/bench", b"").await;
        let rollcall = Rollcall::serving(&program, &hosts).await?;
        Ok(Setup { program, rollcall, zookeeper, facts, floods })
    }

    /// What was measured on what.
    pub(crate) fn facts(&self) -> Vec<(&'static str, String)> {
        self.facts.clone()
    }

    /// The floods that are measured.
    pub(crate) fn floods(&self) -> &Floods {
        &self.floods
    }

    /// The program `rollcall-server`.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// The ZooKeeper.
    pub(crate) fn zookeeper(&self) -> &ZooKeeper {
        &self.zookeeper
    }

    /// The processes that Rollcall needs: the server and the ZooKeeper.
    pub(crate) fn pids(&self) -> [u32; 2] {
        [self.rollcall.pid(), self.zookeeper.pid()]
    }

    /// One more server in front of the same ZooKeeper.
    pub(crate) async fn another(&self) -> anyhow::Result<Rollcall> {
        Rollcall::serving(&self.program, &chroot(&self.zookeeper)).await
    }

    /// Where kazoo connects.
    pub(crate) fn hosts(&self) -> String {
        chroot(&self.zookeeper)
    }

    /// A ZooKeeper session of its own.
    pub(crate) async fn bare(&self) -> Bare {
        Bare::connect(&chroot(&self.zookeeper)).await
    }

    /// A program on the same ZooKeeper that reads with kazoo.
    pub(crate) fn kazoo(&self) -> anyhow::Result<Kazoo> {
        Kazoo::reader(&chroot(&self.zookeeper))
    }

    /// Where the server speaks gRPC.
    pub(crate) fn address(&self) -> SocketAddr {
        self.rollcall.address()
    }

    /// A client of the server on a connection of its own.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        self.rollcall.client().await
    }
}

/// ZooKeeper's address with the chroot that everything shares.
fn chroot(zookeeper: &ZooKeeper) -> String {
    format!("{}/bench", zookeeper.address())
}
