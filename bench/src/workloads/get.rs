//! Reads of a path with 100 children and their values.

use std::iter::repeat_n;

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use rollcall_proto::v1::{Consistency, GetRequest};
use rollcall_tests::client::Client;
use zookeeper_client::{Client as ZooKeeper, MultiReadResult};

use super::Workload;
use crate::drive::throughput;
use crate::report::{Case, ROLLCALL, Round, System, Unit, ZOOKEEPER};
use crate::systems::Setup;

const PATH: &str = "/get";
const CHILDREN: usize = 100;
const AT_ONCE: [usize; 3] = [1, 16, 128];

/// ZooKeeper, all values with one multi.
const MULTI: System = System("zookeeper, one multi");

/// How the children are read.
enum Way {
    Get,
    Reads,
    Multi,
}

/// The workload, prepared.
#[derive(Debug)]
pub(crate) struct Get {
    rollcall: Client,
    zookeeper: ZooKeeper,
}

impl Workload for Get {
    const NAME: &str = "get";
    const NOTE: &str = "a path with 100 children and their values. Rollcall: one Get, CACHED, over one connection; the answer is \
         decoded into messages. zookeeper: the list, then 100 reads, pipelined; one multi: the list, then one multi \
         of 100 reads. These return bytes, and no one parses them.";

    async fn prepare(setup: &Setup) -> anyhow::Result<Get> {
        let bare = setup.bare().await;
        for child in 0..CHILDREN {
            let value = format!(r#"{{"host":"server{child}.example","port":8080,"zone":"north","weight":100}}"#);
            bare.create(&format!("{PATH}/server{child}:8080"), value.as_bytes()).await;
        }
        Ok(Get { rollcall: setup.client().await?, zookeeper: bare.client().clone() })
    }

    async fn round(&mut self, _setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
        for at_once in AT_ONCE {
            let case = Case { workload: Get::NAME, name: format!("{at_once} at once"), unit: Unit::PerSecond };
            for way in round.turn([Way::Get, Way::Reads, Way::Multi]) {
                let (rollcall, zookeeper) = (self.rollcall.clone(), self.zookeeper.clone());
                let (system, rate) = match way {
                    Way::Get => {
                        let read = move || get(rollcall.clone());
                        (ROLLCALL, throughput(round.time, repeat_n(read, at_once)).await?)
                    }
                    Way::Reads => {
                        let read = move || list_and_reads(zookeeper.clone());
                        (ZOOKEEPER, throughput(round.time, repeat_n(read, at_once)).await?)
                    }
                    Way::Multi => {
                        let read = move || list_and_multi(zookeeper.clone());
                        (MULTI, throughput(round.time, repeat_n(read, at_once)).await?)
                    }
                };
                round.add(&case, system, rate);
            }
        }
        Ok(())
    }
}

async fn get(mut client: Client) -> anyhow::Result<()> {
    let request = GetRequest { path: PATH.to_owned(), consistency: Consistency::Cached.into(), ..Default::default() };
    let node = client.get(request).await?.into_inner().node.context("no node")?;
    complete(node.children.values().filter(|child| child.value.is_some()).count())
}

async fn list_and_reads(client: ZooKeeper) -> anyhow::Result<()> {
    let names = client.list_children(PATH).await?;
    // Each request is sent when it is made, not when it is awaited.
    let reads = names.iter().map(|name| client.get_data(&format!("{PATH}/{name}")));
    let values = try_join_all(reads).await?;
    complete(values.iter().filter(|(data, _)| !data.is_empty()).count())
}

async fn list_and_multi(client: ZooKeeper) -> anyhow::Result<()> {
    let names = client.list_children(PATH).await?;
    let mut reads = client.new_multi_reader();
    for name in &names {
        reads.add_get_data(&format!("{PATH}/{name}"))?;
    }
    let values = reads.commit().await?;
    let is_value = |read: &&MultiReadResult| matches!(read, MultiReadResult::Data { data, .. } if !data.is_empty());
    complete(values.iter().filter(is_value).count())
}

fn complete(values: usize) -> anyhow::Result<()> {
    ensure!(values == CHILDREN, "an answer has {values} values instead of {CHILDREN}");
    Ok(())
}
