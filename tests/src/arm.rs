//! The set-up of most tests, on any backend: a chroot, a server on it, a client of that server, and a ZooKeeper session
//! inside.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::sync::OnceCell;

use crate::client::{Client, put, reason, text};
use crate::embedded::Embedded;
use crate::proxy::Proxy;
use crate::server::Server;
use crate::wait::{SOON, check, eventually};
use crate::zookeeper::{Line, Options, Sandbox, ZooKeeper};
use crate::zookeeper_witness::Witness;

/// Maximum number of servers of one arm. Each is started when it is needed, and is never stopped.
const SERVERS: usize = 8;
/// Number of chroots in use on one server before the next server is taken. All tests connect from one address, and
/// ZooKeeper takes 60 connections from it: a test has three replicas of six sessions at most, and some sessions of its
/// own.
const TESTS: usize = 2;

/// The servers of one arm that all tests of this program share.
#[derive(Debug)]
struct Shared {
    servers: [OnceCell<Own>; SERVERS],
    /// Number of chroots in use on each server.
    tests: Mutex<[usize; SERVERS]>,
}

/// A place on a shared server, given back on drop.
#[derive(Debug)]
pub struct Place {
    shared: &'static Shared,
    server: usize,
}

impl Shared {
    const fn new() -> Shared {
        Shared { servers: [const { OnceCell::const_new() }; SERVERS], tests: Mutex::new([0; SERVERS]) }
    }

    fn place(&'static self) -> Place {
        let mut tests = self.tests.lock().expect("nobody panics with it");
        let server = (0..SERVERS).min_by_key(|server| tests[*server] / TESTS).expect("there are some");
        tests[server] += 1;
        Place { shared: self, server }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Ok(mut tests) = self.shared.tests.lock() {
            tests[self.server] -= 1;
        }
    }
}

/// The backend that a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// Real ZooKeeper, standalone.
    ZooKeeper,
    /// The oldest ZooKeeper that is supported, standalone.
    Oldest,
    /// The embedded server, in this process.
    Embedded,
}

impl Arm {
    /// A new chroot in a backend that the tests of this program share.
    pub async fn sandbox(self, name: &str) -> Sandbox {
        static ZOOKEEPER: Shared = Shared::new();
        static OLDEST: Shared = Shared::new();
        static EMBEDDED: Shared = Shared::new();
        let shared = match self {
            Arm::ZooKeeper => &ZOOKEEPER,
            Arm::Oldest => &OLDEST,
            Arm::Embedded => &EMBEDDED,
        };
        let place = shared.place();
        let own = shared.servers[place.server].get_or_init(|| self.own(Options::default())).await;
        Sandbox { place: Some(Arc::new(place)), ..Sandbox::on(&own.address().to_string(), name).await }
    }

    /// A backend for one test alone, with special options, or to be stopped.
    pub async fn own(self, options: Options) -> Own {
        match self {
            Arm::ZooKeeper => Own::ZooKeeper(ZooKeeper::standalone(options).await),
            Arm::Oldest => Own::ZooKeeper(ZooKeeper::standalone(Options { line: Line::Oldest, ..options }).await),
            Arm::Embedded => Own::Embedded(Embedded::start(options).await),
        }
    }

    /// A backend for one test alone, with durable nodes (parents first), below which `children_created` children were
    /// created before.
    pub async fn own_with_old_nodes(self, paths: &[&str], children_created: i32) -> Own {
        let line = if self == Arm::Oldest { Line::Oldest } else { Line::Newest };
        let options = Options { line, ..Options::default() };
        if self == Arm::Embedded {
            let embedded = Embedded::start(options).await;
            embedded.make_old(paths, children_created).await;
            return Own::Embedded(embedded);
        }
        let mut zookeeper = ZooKeeper::prepared(options);
        zookeeper.make_old(0, paths, children_created);
        zookeeper.start(0);
        zookeeper.ready().await;
        Own::ZooKeeper(zookeeper)
    }

    /// Starts a server on a new chroot.
    pub async fn setting(self, name: &str) -> Setting {
        self.setting_with(name, &[]).await
    }

    /// Starts a server with options on a new chroot.
    pub async fn setting_with(self, name: &str, options: &[&str]) -> Setting {
        let sandbox = self.sandbox(name).await;
        let server = Server::start_with(&sandbox.hosts, options).await;
        let client = server.client().await;
        let zk = sandbox.zk().await;
        Setting { sandbox, server, client, zk }
    }

    /// Starts a server with options on a new chroot, behind a proxy.
    pub async fn behind_a_proxy(self, name: &str, options: &[&str]) -> Cut {
        let sandbox = self.sandbox(name).await;
        let proxy = Proxy::start(sandbox.servers.parse().expect("one address")).await;
        let server = Server::start_with(&format!("{}{}", proxy.address(), sandbox.chroot), options).await;
        let client = server.client().await;
        let zk = sandbox.zk().await;
        Cut { sandbox, proxy, server, client, zk }
    }
}

/// A backend that one test has for itself. Dropping stops it.
#[derive(Debug)]
pub enum Own {
    /// Real ZooKeeper, standalone.
    ZooKeeper(ZooKeeper),
    /// The embedded server, in this process.
    Embedded(Embedded),
}

impl Own {
    /// The address for clients.
    pub fn address(&self) -> SocketAddr {
        match self {
            Own::ZooKeeper(zookeeper) => zookeeper.address(0),
            Own::Embedded(embedded) => embedded.address(),
        }
    }

    /// Stops the backend, deletes all its data, and starts it again on the same address.
    pub async fn lose_everything(&mut self) {
        match self {
            Own::ZooKeeper(zookeeper) => {
                zookeeper.forget(0);
                zookeeper.start(0);
                zookeeper.ready().await;
            }
            Own::Embedded(embedded) => embedded.restart().await,
        }
    }
}

/// A server on a chroot of its own. Dropping kills the server.
#[derive(Debug)]
pub struct Setting {
    /// The chroot.
    pub sandbox: Sandbox,
    /// The server.
    pub server: Server,
    /// A client on its own connection.
    pub client: Client,
    /// A ZooKeeper session inside the chroot.
    pub zk: Witness,
}

impl Setting {
    /// Another server beside the first, on the same chroot.
    pub async fn another_server(&self) -> Server {
        Server::start(&self.sandbox.hosts).await
    }
}

/// A server that reaches its backend through a proxy. Dropping kills the server.
#[derive(Debug)]
pub struct Cut {
    /// The chroot, not behind the proxy.
    pub sandbox: Sandbox,
    /// The proxy between the server and its backend.
    pub proxy: Proxy,
    /// The server.
    pub server: Server,
    /// A client on its own connection.
    pub client: Client,
    /// A ZooKeeper session inside the chroot, not through the proxy.
    pub zk: Witness,
}

impl Cut {
    /// Cuts the server off from its backend, until the proxy accepts again. Returns when the server has noticed. Before
    /// that, a write of the server to a dead connection has an unknown outcome.
    pub async fn cut_off(&self) {
        self.proxy.refuse().await;
        self.proxy.cut();
        eventually("the server knows that it is cut off", SOON, async || {
            let status = put(&self.client, "/never", text("x")).await.expect_err("nothing passes");
            check(reason(&status) == "BACKEND_UNAVAILABLE", || format!("{status:?}"))
        })
        .await;
    }
}
