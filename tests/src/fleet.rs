//! The set-up of the heavy fault tests: three ZooKeeper servers, several replicas on ports that they keep, and
//! onlookers. Only one such test runs at a time, however many the harness starts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use rollcall_proto::v1::ChangeKind;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::client::{Registration, text};
use crate::crowd::PLACE;
use crate::journal::{Absence, Journal};
use crate::observe::{Kazoo, Seen, Watcher};
use crate::process::Signal;
use crate::proxy::Proxy;
use crate::server::Server;
use crate::wait::SOON;
use crate::zookeeper::{Options, Sandbox, ZooKeeper, free_address};
use crate::zookeeper_witness::Witness;

/// The prefix of the names that show whether onlookers are up to date.
pub const MARKER: &str = "zz marker ";

static TURN: Semaphore = Semaphore::const_new(1);

/// How the replicas reach ZooKeeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Directly.
    Direct,
    /// Through proxies: each replica has one for each ZooKeeper server.
    Proxied,
}

/// An ensemble and its replicas. Dropping kills all of them.
#[derive(Debug)]
pub struct Fleet {
    /// The replicas by number, including those that do not run.
    pub replicas: Vec<Replica>,
    /// The proxies between the replicas and ZooKeeper: for each replica one a server; none with [`Route::Direct`].
    pub proxies: Vec<Proxy>,
    /// The ensemble.
    pub zookeeper: ZooKeeper,
    /// The chroot of the replicas, not behind the proxies.
    pub sandbox: Sandbox,
    /// A ZooKeeper session inside the chroot, not through the proxies.
    pub zk: Witness,
    options: Vec<String>,
    _turn: SemaphorePermit<'static>,
}

/// A replica, running or not.
#[derive(Debug)]
pub struct Replica {
    address: SocketAddr,
    server: Option<Server>,
    /// The ZooKeeper sessions of each earlier server at this address.
    past: Vec<BTreeSet<i64>>,
}

impl Replica {
    /// The gRPC address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The running server.
    pub fn server(&mut self) -> &mut Server {
        self.server.as_mut().expect("the replica runs")
    }

    /// The ZooKeeper sessions of each server that has run here so far, those of the present one last.
    pub fn sessions(&self) -> Vec<BTreeSet<i64>> {
        self.past.iter().cloned().chain(self.server.as_ref().map(Server::sessions)).collect()
    }

    /// The number of earlier servers at this address.
    pub fn predecessors(&self) -> usize {
        self.past.len()
    }

    fn take_down(&mut self) {
        self.past.extend(self.server.as_ref().map(Server::sessions));
        self.server = None;
    }
}

impl Fleet {
    /// Starts three ZooKeeper servers, and `replicas` replicas with these options.
    pub async fn start(replicas: usize, route: Route, options: &[&str]) -> Fleet {
        let turn = TURN.acquire().await.expect("nobody closes it");
        let zookeeper = ZooKeeper::ensemble(Options::default()).await;
        let sandbox = zookeeper.sandbox("fleet").await;
        let mut proxies = Vec::new();
        if route == Route::Proxied {
            for _ in 0..replicas {
                for node in 0..zookeeper.size() {
                    proxies.push(Proxy::start(zookeeper.address(node)).await);
                }
            }
        }
        let zk = sandbox.zk().await;
        zk.create(PLACE, b"").await;
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut fleet = Fleet { replicas: Vec::new(), proxies, zookeeper, sandbox, zk, options, _turn: turn };
        for index in 0..replicas {
            fleet.replicas.push(Replica { address: free_address(), server: None, past: Vec::new() });
            fleet.start_replica(index).await;
        }
        fleet
    }

    /// The addresses for clients.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.replicas.iter().map(Replica::address).collect()
    }

    /// Starts a replica at its address, and waits until it serves.
    pub async fn start_replica(&mut self, index: usize) {
        let options: Vec<_> = self.options.iter().map(String::as_str).collect();
        let addresses: Vec<_> = self.ways_of(index).iter().map(|proxy| proxy.address().to_string()).collect();
        let hosts = match addresses.as_slice() {
            [] => self.sandbox.hosts.clone(),
            addresses => format!("{}{}", addresses.join(","), self.sandbox.chroot),
        };
        let replica = &mut self.replicas[index];
        replica.take_down();
        replica.server = Some(Server::start_at(replica.address, &hosts, &options).await);
    }

    /// The proxies between a replica and ZooKeeper, one a server; none with [`Route::Direct`].
    pub fn ways_of(&self, replica: usize) -> &[Proxy] {
        self.proxies.chunks(self.zookeeper.size()).nth(replica).unwrap_or_default()
    }

    /// The proxies between the replicas and one ZooKeeper server.
    pub fn ways_to(&self, server: usize) -> impl Iterator<Item = &Proxy> {
        self.proxies.iter().skip(server).step_by(self.zookeeper.size())
    }

    /// Registers a new name through a replica, which only succeeds when ZooKeeper works.
    pub async fn register_anew(&mut self, replica: usize, name: &str) {
        let mut stream = Registration::open(&self.replicas[replica].server().client().await).await;
        stream.set(&format!("/anew/{name}-{replica}"), text("x")).await;
    }

    /// Kills a replica, like a crash.
    pub fn kill_replica(&mut self, index: usize) {
        self.replicas[index].take_down();
    }

    /// Ends a replica as a roll-out does, waits until it is gone, and starts it again.
    ///
    /// # Panics
    /// When it does not end well.
    pub async fn restart_replica(&mut self, index: usize) {
        let process = self.replicas[index].server().process();
        process.signal(Signal::TERM);
        let status = process.wait(3 * SOON).await;
        assert!(status.success(), "replica {index} ended with {status}");
        self.start_replica(index).await;
    }

    /// ZooKeeper's transaction logs of the chroot so far.
    pub fn journal(&self) -> Journal {
        self.zookeeper.journal(&self.sandbox.chroot)
    }

    /// Cuts all replicas off from ZooKeeper, which runs on.
    pub async fn cut_off(&self) {
        for proxy in &self.proxies {
            proxy.refuse().await;
            proxy.cut();
        }
    }

    /// Lets the replicas reach ZooKeeper again.
    pub async fn let_in(&self) {
        for proxy in &self.proxies {
            proxy.accept().await;
        }
    }
}

/// The observers of one path.
#[derive(Debug)]
pub struct Onlookers {
    path: String,
    since: SystemTime,
    /// A Rollcall watcher.
    pub rollcall: Watcher,
    /// A kazoo watcher.
    pub kazoo: Kazoo,
}

/// The observations of ZooKeeper's log and of the watchers.
#[derive(Debug)]
pub struct Sights {
    /// The absences of names, from ZooKeeper's log.
    pub absences: Vec<Absence>,
    /// The changes that the Rollcall watcher saw.
    pub rollcall: Vec<Seen>,
    /// The changes that kazoo saw.
    pub kazoo: Vec<Seen>,
}

impl Onlookers {
    /// Starts to observe an existing path of a fleet.
    pub async fn begin(fleet: &Fleet, path: &str) -> Onlookers {
        Onlookers::begin_through(fleet, &fleet.addresses(), path).await
    }

    /// Like [`Onlookers::begin`], with a Rollcall watcher that connects to these replicas alone.
    pub async fn begin_through(fleet: &Fleet, replicas: &[SocketAddr], path: &str) -> Onlookers {
        let rollcall = Watcher::start(replicas, path).await;
        let kazoo = Kazoo::start(&fleet.sandbox.hosts, path).await;
        Onlookers { path: path.to_owned(), since: SystemTime::now(), rollcall, kazoo }
    }

    /// The observations since the start. To be sure that all earlier changes were seen, it creates one last name, and
    /// leaves it out.
    pub async fn sights(&self, fleet: &Fleet) -> Sights {
        let marker = format!("{MARKER}{}", rand::random::<u32>());
        let path = format!("{}/{marker}", self.path);
        Witness::connect(&fleet.sandbox.hosts).await.create(&path, b"").await;
        self.rollcall.knows(&marker).await;
        self.kazoo.knows(&marker).await;
        let below = format!("{}/", self.path);
        let absences = fleet.journal().absences(|path| path.starts_with(&below));
        let is_other = |seen: &Seen| !seen.name.starts_with(MARKER);
        Sights {
            absences: absences.into_iter().filter(|absence| absence.from >= self.since).collect(),
            rollcall: self.rollcall.seen().into_iter().filter(is_other).collect(),
            kazoo: self.kazoo.seen().into_iter().filter(is_other).collect(),
        }
    }

    /// Waits until both watchers know exactly these names.
    pub async fn know_exactly(&self, names: &BTreeSet<String>) {
        self.rollcall.knows_exactly(names).await;
        self.kazoo.knows_exactly(names).await;
    }
}

impl Sights {
    /// The observations about paths that begin with `prefix`.
    pub fn of(&self, prefix: &str) -> Sights {
        let start = name_of(prefix);
        let seen = |seen: &[Seen]| seen.iter().filter(|seen| seen.name.starts_with(&start)).cloned().collect();
        let absences = self.absences.iter().filter(|absence| absence.path.starts_with(prefix)).cloned().collect();
        Sights { absences, rollcall: seen(&self.rollcall), kazoo: seen(&self.kazoo) }
    }

    /// Checks that there are no observations.
    ///
    /// # Panics
    /// When there are some; the message has the first of each kind.
    #[track_caller]
    pub fn are_empty(&self) {
        let Sights { absences, rollcall, kazoo } = self;
        assert!(
            absences.is_empty() && rollcall.is_empty() && kazoo.is_empty(),
            "{} absences, such as {:?}; Rollcall saw {} changes, such as {:?}; kazoo saw {}, such as {:?}",
            absences.len(),
            absences.first(),
            rollcall.len(),
            rollcall.first(),
            kazoo.len(),
            kazoo.first(),
        );
    }
}

/// Checks that exactly `names` names went once, and came back once.
///
/// # Panics
/// When they did not.
#[track_caller]
pub fn once_each(seen: &[Seen], names: usize) {
    let mut changes: BTreeMap<&str, Vec<ChangeKind>> = BTreeMap::new();
    for seen in seen {
        changes.entry(&seen.name).or_default().push(seen.kind);
    }
    let other = changes.iter().find(|(_, kinds)| **kinds != [ChangeKind::Removed, ChangeKind::Added]);
    assert_eq!(other, None, "each name went and came back");
    assert_eq!(changes.len(), names);
}

/// The last part of a path.
pub fn name_of(path: &str) -> String {
    let name = Path::new(path).file_name().expect("a path of a test has a name");
    name.to_string_lossy().into_owned()
}
