//! The memory that 100,000 nodes, and then 10,000 watches, cost.

use std::time::Duration;

use rollcall_tests::zookeeper::free_address;
use rollcall_tests::zookeeper_witness::Witness;
use tokio::time::sleep;
use zookeeper_client::{Acls, AddWatchMode, CreateMode};

use super::{DATA, case};
use crate::drive::pipelined;
use crate::report::{ROLLCALL, Round, Unit};
use crate::systems::{Rollcall, Setup};
use crate::usage;

const NODES: usize = 100_000;
const PARENTS: usize = 100;
const WATCHES: usize = 10_000;
const SESSIONS: usize = 10;
const WINDOW: usize = 256;
/// Time from the last answer to the measurement of memory.
const SETTLED: Duration = Duration::from_millis(500);

pub(super) async fn measure(setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
    let address = free_address();
    let server = Rollcall::start(setup.program(), &["--embedded", "--embedded-listen", &address.to_string()]).await?;
    let hosts = address.to_string();
    let zk = Witness::connect(&hosts).await;
    let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
    let client = zk.client();
    for parent in 0..PARENTS {
        client.create(&format!("/service-{parent}"), b"", &open).await?;
    }
    sleep(SETTLED).await;
    let empty = usage::memory(server.pid())?.resident;

    pipelined(NODES, WINDOW, async |number| {
        client.create(&path(number), DATA, &open).await?;
        Ok(())
    })
    .await?;
    sleep(SETTLED).await;
    let full = usage::memory(server.pid())?.resident;

    let mut watching = Vec::new();
    for _ in 0..SESSIONS {
        watching.push(Witness::connect(&hosts).await);
    }
    let mut watchers = Vec::new();
    for number in 0..WATCHES {
        let client = watching[number % SESSIONS].client();
        // Each request is sent when it is made, and answered in order.
        watchers.push(client.watch(&path(number), AddWatchMode::Persistent).await?);
    }
    sleep(SETTLED).await;
    let watched = usage::memory(server.pid())?.resident;

    let mut add = |name: &str, unit, bytes: f64| round.add(&case(name, unit), ROLLCALL, bytes);
    add("resident, 100,000 nodes", Unit::Megabytes, full as f64 / 1e6);
    add("a node", Unit::Kilobytes, (full - empty) as f64 / 1e3 / NODES as f64);
    add("resident, and 10,000 watches", Unit::Megabytes, watched as f64 / 1e6);
    add("a watch", Unit::Kilobytes, watched.saturating_sub(full) as f64 / 1e3 / WATCHES as f64);
    Ok(())
}

fn path(number: usize) -> String {
    format!("/service-{}/server{number}.example:8080", number % PARENTS)
}
