//! What the heavy fault tests begin with: three ZooKeeper servers, several replicas on ports that they keep, and those who
//! look on. One such test runs at a time, however many the harness starts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use rollcall_proto::v1::ChangeKind;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::bare::Bare;
use crate::client::{Registration, text};
use crate::crowd::PLACE;
use crate::journal::{Absence, Journal};
use crate::observe::{Kazoo, Seen, Watcher};
use crate::process::Signal;
use crate::proxy::Proxy;
use crate::server::Server;
use crate::wait::SOON;
use crate::zookeeper::{Options, Sandbox, ZooKeeper, free_address};

/// What the names begin with by which onlookers are known to be up to date.
pub const MARKER: &str = "zz marker ";

static TURN: Semaphore = Semaphore::const_new(1);

/// Where the replicas find ZooKeeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Where it is.
    Direct,
    /// Behind proxies, for each replica one a ZooKeeper server.
    Proxied,
}

/// An ensemble and its replicas. Dropping kills all of it.
#[derive(Debug)]
pub struct Fleet {
    /// The replicas by number; a killed one is missing.
    pub replicas: Vec<Replica>,
    /// Between the replicas and ZooKeeper, for each replica one a server; none with [`Route::Direct`].
    pub proxies: Vec<Proxy>,
    /// The ensemble.
    pub zookeeper: ZooKeeper,
    /// The chroot of the replicas, past the proxies.
    pub sandbox: Sandbox,
    /// A ZooKeeper session inside the chroot, past the proxies.
    pub bare: Bare,
    options: Vec<String>,
    _turn: SemaphorePermit<'static>,
}

/// A replica, or where it was and will be again.
#[derive(Debug)]
pub struct Replica {
    address: SocketAddr,
    server: Option<Server>,
    /// The ZooKeeper sessions of each server that has run here and is gone.
    past: Vec<BTreeSet<i64>>,
}

impl Replica {
    /// Where it speaks gRPC.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The replica, which must run.
    pub fn server(&mut self) -> &mut Server {
        self.server.as_mut().expect("the replica runs")
    }

    /// The ZooKeeper sessions of each server that has run here so far, the present one's last.
    pub fn sessions(&self) -> Vec<BTreeSet<i64>> {
        self.past.iter().cloned().chain(self.server.as_ref().map(Server::sessions)).collect()
    }

    /// How many servers have run here before.
    pub fn predecessors(&self) -> usize {
        self.past.len()
    }

    fn take_down(&mut self) {
        self.past.extend(self.server.as_ref().map(Server::sessions));
        self.server = None;
    }
}

impl Fleet {
    /// Three ZooKeeper servers, and so many replicas with these options.
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
        let bare = sandbox.bare().await;
        bare.create(PLACE, b"").await;
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut fleet = Fleet { replicas: Vec::new(), proxies, zookeeper, sandbox, bare, options, _turn: turn };
        for index in 0..replicas {
            fleet.replicas.push(Replica { address: free_address(), server: None, past: Vec::new() });
            fleet.start_replica(index).await;
        }
        fleet
    }

    /// Where clients go.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.replicas.iter().map(Replica::address).collect()
    }

    /// Starts a replica where it was, and waits until it serves.
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

    /// Registers something new through a replica, which takes a ZooKeeper that works.
    pub async fn register_anew(&mut self, replica: usize, name: &str) {
        let mut stream = Registration::open(&self.replicas[replica].server().client().await).await;
        stream.set(&format!("/anew/{name}-{replica}"), text("x")).await;
    }

    /// Kills a replica, as a crash would.
    pub fn kill_replica(&mut self, index: usize) {
        self.replicas[index].take_down();
    }

    /// Ends a replica as a roll-out does, waits until it is gone, and starts it anew.
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

    /// What ZooKeeper has written down so far of the chroot.
    pub fn journal(&self) -> Journal {
        self.zookeeper.journal(&self.sandbox.chroot)
    }

    /// Cuts all replicas off from ZooKeeper, which goes on.
    pub async fn cut_off(&self) {
        for proxy in &self.proxies {
            proxy.refuse().await;
            proxy.cut();
        }
    }

    /// Lets the replicas have ZooKeeper back.
    pub async fn let_in(&self) {
        for proxy in &self.proxies {
            proxy.accept().await;
        }
    }
}

/// Those who look on at one path.
#[derive(Debug)]
pub struct Onlookers {
    path: String,
    since: SystemTime,
    /// A Rollcall watcher.
    pub rollcall: Watcher,
    /// A kazoo watcher.
    pub kazoo: Kazoo,
}

/// What was seen in ZooKeeper and by those who watch.
#[derive(Debug)]
pub struct Sights {
    /// When a name was missing, by ZooKeeper's own account.
    pub absences: Vec<Absence>,
    /// What the Rollcall watcher saw.
    pub rollcall: Vec<Seen>,
    /// What kazoo saw.
    pub kazoo: Vec<Seen>,
}

impl Onlookers {
    /// Begins to look at a path, which exists, of a fleet.
    pub async fn begin(fleet: &Fleet, path: &str) -> Onlookers {
        Onlookers::begin_through(fleet, &fleet.addresses(), path).await
    }

    /// The same; the Rollcall watcher goes to these replicas alone.
    pub async fn begin_through(fleet: &Fleet, replicas: &[SocketAddr], path: &str) -> Onlookers {
        let rollcall = Watcher::start(replicas, path).await;
        let kazoo = Kazoo::start(&fleet.sandbox.hosts, path).await;
        Onlookers { path: path.to_owned(), since: SystemTime::now(), rollcall, kazoo }
    }

    /// What they have seen since they began. A last name is registered to be sure that they have seen all that came before,
    /// and left out.
    pub async fn sights(&self, fleet: &Fleet) -> Sights {
        let marker = format!("{MARKER}{}", rand::random::<u32>());
        let path = format!("{}/{marker}", self.path);
        Bare::connect(&fleet.sandbox.hosts).await.create(&path, b"").await;
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

    /// Waits until both know exactly these names.
    pub async fn know_exactly(&self, names: &BTreeSet<String>) {
        self.rollcall.knows_exactly(names).await;
        self.kazoo.knows_exactly(names).await;
    }
}

impl Sights {
    /// What was seen of the names that begin with `prefix`, a path.
    pub fn of(&self, prefix: &str) -> Sights {
        let start = name_of(prefix);
        let seen = |seen: &[Seen]| seen.iter().filter(|seen| seen.name.starts_with(&start)).cloned().collect();
        let absences = self.absences.iter().filter(|absence| absence.path.starts_with(prefix)).cloned().collect();
        Sights { absences, rollcall: seen(&self.rollcall), kazoo: seen(&self.kazoo) }
    }

    /// Checks that nobody has seen anything.
    ///
    /// # Panics
    /// When somebody has; with the first few of what it was.
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

/// So many names went, once, and came back, once.
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

/// The name of a path's last part.
pub fn name_of(path: &str) -> String {
    let name = Path::new(path).file_name().expect("a path of a test has a name");
    name.to_string_lossy().into_owned()
}
