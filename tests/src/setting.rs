//! What most tests begin with: a chroot, a server on it, a client of that server, and a look inside ZooKeeper.

use crate::bare::Bare;
use crate::client::Client;
use crate::proxy::Proxy;
use crate::server::Server;
use crate::zookeeper::{Sandbox, sandbox};

/// A server on a chroot of its own in the shared ZooKeeper. Dropping kills the server.
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

/// Starts a server on a chroot of its own.
pub async fn setting(name: &str) -> Setting {
    setting_with(name, &[]).await
}

/// Starts a server with more options.
pub async fn setting_with(name: &str, options: &[&str]) -> Setting {
    let sandbox = sandbox(name).await;
    let server = Server::start_with(&sandbox.hosts, options).await;
    let client = server.client().await;
    let bare = sandbox.bare().await;
    Setting { sandbox, server, client, bare }
}

impl Setting {
    /// Another server beside the first, on the same chroot.
    pub async fn another_server(&self) -> Server {
        Server::start(&self.sandbox.hosts).await
    }
}

/// A server that reaches ZooKeeper through a proxy. Dropping kills the server.
#[derive(Debug)]
pub struct Cut {
    /// The chroot, without a proxy before it.
    pub sandbox: Sandbox,
    /// Between the server and ZooKeeper.
    pub proxy: Proxy,
    /// The server.
    pub server: Server,
    /// A client on a connection of its own.
    pub client: Client,
    /// A ZooKeeper session inside the chroot, past the proxy.
    pub bare: Bare,
}

/// Starts a server with options on a chroot of its own, behind a proxy.
pub async fn behind_a_proxy(name: &str, options: &[&str]) -> Cut {
    let sandbox = sandbox(name).await;
    let proxy = Proxy::start(sandbox.servers.parse().expect("one address")).await;
    let server = Server::start_with(&format!("{}{}", proxy.address(), sandbox.chroot), options).await;
    let client = server.client().await;
    let bare = sandbox.bare().await;
    Cut { sandbox, proxy, server, client, bare }
}

impl Cut {
    /// Cuts the server off from ZooKeeper, until the proxy accepts again.
    pub async fn cut_off(&self) {
        self.proxy.refuse().await;
        self.proxy.cut();
    }
}
