//! Reads of a path with its children and their values.

mod drivers;

use anyhow::ensure;
use prost::Message as _;
use rollcall_proto::v1::{Consistency, GetRequest};
use rollcall_tests::client::shown;
use serde_json::json;
use zookeeper_client::Client as ZooKeeper;

use super::{Workload, grouped};
use crate::report::{Case, ETCD, KAZOO, ROLLCALL, Round, System, Unit, ZOOKEEPER};
use crate::systems::{Etcd, Kazoo, Setup, etcd};
use drivers::{Unary, bare};

/// The number of children and of reads in flight.
const CASES: [(usize, usize); 5] = [(1, 1), (100, 1), (100, 16), (100, 128), (1_000, 1)];
const SIZES: [usize; 3] = [1, 100, 1_000];

/// ZooKeeper, reading all values with one multi.
const MULTI: System = System("zookeeper, one multi");

/// How the children are read.
#[derive(Clone, Copy)]
enum Way {
    Get,
    Range,
    Reads,
    Multi,
    Kazoo,
}

/// The workload, prepared.
#[derive(Debug)]
pub(crate) struct Get {
    zookeeper: ZooKeeper,
    etcd: Etcd,
    kazoo: Kazoo,
}

impl Workload for Get {
    const NAME: &str = "get";
    const NOTE: &str = "a path with its children and their values. Rollcall: one Get, CACHED. etcd: one Range of a prefix, \
         serializable, so that it asks nobody either. Both over one connection, by a client that speaks HTTP/2 by hand. \
         zookeeper: the list, then all reads, pipelined; one multi: the list, then one multi of all reads. kazoo: the \
         list, then each child, as its programs do, one after the other. All answers are bytes that no one parses: the \
         first of each is looked at.";

    async fn prepare(setup: &Setup) -> anyhow::Result<Get> {
        let (writer, etcd) = (setup.zk().await, Etcd::start().await?);
        let channel = etcd.channel().await?;
        for children in SIZES {
            for child in 0..children {
                let value = value(child).to_string();
                let path = format!("{}/server{child}:8080", path(children));
                writer.create(&path, value.as_bytes()).await;
                etcd::put(&channel, path, value, 0).await?;
            }
            let node = setup.client().await?.get(request(children)).await?.into_inner().node.unwrap_or_default();
            let last = node.children.get(&format!("server{}:8080", children - 1));
            let last = last.map(|child| shown(child.value.as_ref()));
            ensure!(last == Some(value(children - 1)), "Rollcall knows {last:?} as the last of {children}");
            ensure!(node.children.len() == children, "Rollcall knows {} of {children}", node.children.len());
            let found = etcd::range(&channel, &format!("{}/", path(children))).await?;
            let last = found.iter().rfind(|value| **value == value_bytes(children - 1));
            ensure!(last.is_some() && found.len() == children, "etcd knows {} of {children}", found.len());
        }
        Ok(Get { zookeeper: setup.zk().await.client().clone(), etcd, kazoo: setup.kazoo()? })
    }

    async fn round(&mut self, setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
        for (children, at_once) in CASES {
            let noun = if children == 1 { "child" } else { "children" };
            let name = format!("{} {noun}, {at_once} at once", grouped(children));
            let case = Case { workload: Get::NAME, name, unit: Unit::PerSecond };
            for way in round.turn([Way::Get, Way::Range, Way::Reads, Way::Multi, Way::Kazoo]) {
                let (system, rate) = match way {
                    Way::Get => {
                        let request = request(children).encode_to_vec();
                        let unary = Unary { address: setup.address(), method: "/rollcall.v1.Registry/Get", request };
                        (ROLLCALL, unary.rate(at_once, round.time).await?)
                    }
                    Way::Range => {
                        let request = etcd::range_request(&format!("{}/", path(children))).encode_to_vec();
                        let unary = Unary { address: self.etcd.address(), method: "/etcdserverpb.KV/Range", request };
                        (ETCD, unary.rate(at_once, round.time).await?)
                    }
                    Way::Reads => (ZOOKEEPER, bare::reads(&self.zookeeper, children, at_once, round.time).await?),
                    Way::Multi => (MULTI, bare::multis(&self.zookeeper, children, at_once, round.time).await?),
                    // kazoo has only one request in flight.
                    Way::Kazoo if at_once > 1 => continue,
                    Way::Kazoo => (KAZOO, self.kazoo.reads(&path(children), children, round.time).await?),
                };
                round.add(&case, system, rate);
            }
        }
        Ok(())
    }
}

/// The parent of so many children.
fn path(children: usize) -> String {
    format!("/get/{children}")
}

fn request(children: usize) -> GetRequest {
    GetRequest { path: path(children), consistency: Consistency::Cached.into(), ..Default::default() }
}

fn value(child: usize) -> serde_json::Value {
    json!({"host": format!("server{child}.example"), "port": 8080, "weight": 100, "zone": "north"})
}

fn value_bytes(child: usize) -> Vec<u8> {
    value(child).to_string().into_bytes()
}
