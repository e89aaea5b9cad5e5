//! What most tests begin with, on whichever backend: a chroot, a server on it, a client of that server, and a look
//! inside.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use rollcall_embedded::{Config, Embedded};
use tokio::runtime;
use tokio::sync::OnceCell;

use crate::bare::Bare;
use crate::client::{Client, latest, put, reason, text};
use crate::proxy::Proxy;
use crate::server::Server;
use crate::wait::{SOON, check, eventually};
use crate::zookeeper::{Options, Sandbox, ZooKeeper};

/// The backend that a test runs on. Each is started once a program, and nobody stops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// Real ZooKeeper, standalone.
    ZooKeeper,
    /// The embedded server, in this process.
    Embedded,
}

impl Arm {
    /// A chroot of its own in the backend that all tests of this program share.
    pub async fn sandbox(self, name: &str) -> Sandbox {
        static ZOOKEEPER: OnceCell<ZooKeeper> = OnceCell::const_new();
        static EMBEDDED: OnceLock<SocketAddr> = OnceLock::new();
        let servers = match self {
            Arm::ZooKeeper => ZOOKEEPER.get_or_init(|| ZooKeeper::standalone(Options::default())).await.hosts(),
            Arm::Embedded => EMBEDDED.get_or_init(|| embedded(Options::default())).to_string(),
        };
        Sandbox::on(&servers, name).await
    }

    /// Starts a server on a chroot of its own.
    pub async fn setting(self, name: &str) -> Setting {
        self.setting_with(name, &[]).await
    }

    /// Starts a server with more options.
    pub async fn setting_with(self, name: &str, options: &[&str]) -> Setting {
        let sandbox = self.sandbox(name).await;
        let server = Server::start_with(&sandbox.hosts, options).await;
        let client = server.client().await;
        let bare = sandbox.bare().await;
        Setting { sandbox, server, client, bare }
    }

    /// Starts a server with options on a chroot of its own, behind a proxy.
    pub async fn behind_a_proxy(self, name: &str, options: &[&str]) -> Cut {
        let sandbox = self.sandbox(name).await;
        let proxy = Proxy::start(sandbox.servers.parse().expect("one address")).await;
        let server = Server::start_with(&format!("{}{}", proxy.address(), sandbox.chroot), options).await;
        let client = server.client().await;
        let bare = sandbox.bare().await;
        Cut { sandbox, proxy, server, client, bare }
    }
}

/// An embedded server, told what [`ZooKeeper`] is told in its configuration file. It has a thread of its own, since the
/// runtime of a test ends with the test; it ends with the program.
///
/// # Panics
/// When it can't be started.
pub fn embedded(options: Options) -> SocketAddr {
    let config = Config {
        tick: options.tick,
        min_session_timeout: Some(Duration::from_millis(100)),
        max_session_timeout: Some(Duration::from_secs(600)),
        ttl_nodes: false,
        ..Config::default()
    };
    let (tell, told) = std::sync::mpsc::channel();
    let serve = async move {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let embedded = Embedded::bind(any, config).await.expect("a free loopback port");
        tell.send(embedded.local_addr()).expect("the address is waited for");
        embedded.run(std::future::pending()).await;
    };
    std::thread::Builder::new()
        .name("embedded".to_owned())
        .spawn(|| runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(serve))
        .expect("a thread");
    told.recv().expect("the embedded server starts")
}

/// A server on a chroot of its own. Dropping kills the server.
#[derive(Debug)]
pub struct Setting {
    /// The chroot.
    pub sandbox: Sandbox,
    /// The server.
    pub server: Server,
    /// A client on a connection of its own.
    pub client: Client,
    /// A ZooKeeper session inside the chroot.
    pub bare: Bare,
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
    /// The chroot, without a proxy before it.
    pub sandbox: Sandbox,
    /// Between the server and its backend.
    pub proxy: Proxy,
    /// The server.
    pub server: Server,
    /// A client on a connection of its own.
    pub client: Client,
    /// A ZooKeeper session inside the chroot, past the proxy.
    pub bare: Bare,
}

impl Cut {
    /// Cuts the server off from its backend, until the proxy accepts again; over when the server has noticed. Before
    /// that, what it writes to a dead connection has an unknown outcome.
    pub async fn cut_off(&self) {
        self.proxy.refuse().await;
        self.proxy.cut();
        eventually("the server knows that it is cut off", SOON, async || {
            let put = put(&self.client, "/never", text("x")).await.map(|_| ());
            let get = self.client.clone().get(latest("/never")).await.map(|_| ());
            for answer in [put, get] {
                let status = answer.expect_err("nothing passes");
                check(reason(&status) == "BACKEND_UNAVAILABLE", || format!("{status:?}"))?;
            }
            Ok(())
        })
        .await;
    }
}
