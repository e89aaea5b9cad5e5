//! `rollcall-server --embedded`: its start-up time, its memory when empty and when full, and the speed of its backend
//! beside a ZooKeeper that does not fsync either.

mod capacity;
mod operations;
mod start;

use super::Workload;
use crate::report::{Case, Round, Unit};
use crate::systems::Setup;
use operations::Operations;

/// The workload, prepared.
#[derive(Debug)]
pub(crate) struct Embedded {
    operations: Operations,
}

impl Workload for Embedded {
    const NAME: &str = "embedded";
    const NOTE: &str = "`rollcall-server --embedded`, all of it, is what is started and whose memory is counted (VmRSS and RssAnon of \
         its process). From exec to the first answer: the process is spawned, and a client calls until its first Get \
         has an answer; four starts a round. Operations: its backend is driven in ZooKeeper's protocol, past gRPC, and \
         so is a ZooKeeper with forceSync=no: both by zookeeper-client on one session, with so many requests in flight. \
         Creates and gets have 67 bytes of data. Events: so many nodes, each set and set again as soon as the event of \
         its persistent watch has arrived at another session; counted are events. Nodes and watches: 100,000 nodes \
         with 67 bytes below 100 parents, then 10,000 of zookeeper-client's persistent watches on as many nodes, over \
         10 sessions.";

    async fn prepare(setup: &Setup) -> anyhow::Result<Embedded> {
        Ok(Embedded { operations: Operations::prepare(setup).await? })
    }

    async fn round(&mut self, setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
        start::measure(setup, round).await?;
        self.operations.measure(round).await?;
        capacity::measure(setup, round).await
    }
}

fn case(name: impl Into<String>, unit: Unit) -> Case {
    Case { workload: Embedded::NAME, name: name.into(), unit }
}

/// The data of a node that is created or read.
const DATA: &[u8] = br#"{"host":"server17.example","port":8080,"weight":100,"zone":"north"}"#;
