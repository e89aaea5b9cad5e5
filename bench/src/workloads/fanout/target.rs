//! The watched system: a server that has just started.

use prost::Message as _;
use rollcall_proto::v1::{PutRequest, WatchRequest};
use rollcall_tests::client::{Client, data, latest, put_eventually};
use serde_json::{Value as Json, json};
use tonic::transport::Channel;

use super::Way;
use crate::systems::etcd;
use crate::systems::{Etcd, Rollcall, Setup};

const CHILDREN: usize = 10;
/// The prefix of etcd's keys.
const THEIRS: &str = "/fanout/";

/// A server with a path that can be watched, and a client that writes.
pub(super) struct Target {
    system: System,
    pids: Vec<u32>,
    /// The path that is watched in Rollcall.
    path: &'static str,
    /// Number of writes so far.
    writes: usize,
}

enum System {
    Rollcall(Rollcall, Client),
    Etcd(Etcd, Channel),
}

impl Target {
    /// Starts the server, creates the path, and makes sure that the server knows it. All Rollcall servers share one
    /// ZooKeeper.
    pub(super) async fn start(setup: &Setup, way: Way, path: &'static str) -> anyhow::Result<Target> {
        let mut target = match way {
            Way::Rollcall => {
                let server = setup.another().await?;
                let client = server.client().await?;
                // The server can read before it can write, since it writes in other sessions: the Put is tried until it
                // succeeds.
                put_eventually(&client, path, "").await;
                let [_, zookeeper] = setup.pids();
                let pids = vec![server.pid(), zookeeper];
                Target { pids, path, system: System::Rollcall(server, client), writes: 0 }
            }
            Way::Etcd | Way::EtcdStreams => {
                let etcd = Etcd::start().await?;
                let channel = etcd.channel().await?;
                Target { pids: vec![etcd.pid()], path, system: System::Etcd(etcd, channel), writes: 0 }
            }
        };
        for _ in 0..CHILDREN {
            target.write().await?;
        }
        if let System::Rollcall(_, client) = &target.system {
            client.clone().get(latest(path)).await?;
        }
        Ok(target)
    }

    /// Sets the next of the children. No two writes are the same.
    pub(super) async fn write(&mut self) -> anyhow::Result<()> {
        self.writes += 1;
        let (child, value) = (format!("server{}:8080", self.writes % CHILDREN), value(self.writes));
        match &self.system {
            System::Rollcall(_, client) => {
                let path = format!("{}/{child}", self.path);
                client.clone().put(PutRequest { path, value: Some(data(value)), ..Default::default() }).await?;
                Ok(())
            }
            System::Etcd(_, channel) => etcd::put(channel, format!("{}{child}", THEIRS), value.to_string(), 0).await,
        }
    }

    /// The address for watchers.
    pub(super) fn address(&self) -> std::net::SocketAddr {
        match &self.system {
            System::Rollcall(server, _) => server.address(),
            System::Etcd(etcd, _) => etcd.address(),
        }
    }

    /// The watch method, and its request.
    pub(super) fn watch(&self) -> (&'static str, Vec<u8>) {
        match self.system {
            System::Rollcall(..) => {
                let request = WatchRequest { path: self.path.to_owned(), ..Default::default() };
                ("/rollcall.v1.Registry/Watch", request.encode_to_vec())
            }
            System::Etcd(..) => ("/etcdserverpb.Watch/Watch", etcd::watch_request(THEIRS).encode_to_vec()),
        }
    }

    /// The process that serves the watchers.
    pub(super) fn server(&self) -> u32 {
        self.pids[0]
    }

    /// The processes that the system consists of.
    pub(super) fn pids(&self) -> &[u32] {
        &self.pids
    }
}

fn value(write: usize) -> Json {
    json!({"host": "server17.example", "port": 8080, "weight": write, "zone": "north"})
}
