//! The nodes that a flood needs in ZooKeeper.

use super::{Flood, Load};
use crate::zookeeper_witness::Witness;

/// A path whose children fill a message of 2 MiB.
pub(super) const WIDE: &str = "/flood-wide";
/// A path with one nested value of 180 KB.
pub(super) const NESTED: &str = "/flood-nested";
/// A tree of many nodes.
pub(super) const TREE: &str = "/flood-tree";
/// Number of children of [`WIDE`].
const CHILDREN: usize = 10_000;
/// Number of nodes created in one transaction.
const AT_ONCE: usize = 1_000;
/// Number of children of a node of [`TREE`].
const BRANCH: usize = 1_000;

/// Creates the nodes.
pub async fn prepare(flood: Flood, load: Load, zk: &Witness) {
    match flood {
        Flood::Pages | Flood::ClosedWindow | Flood::WatchChurn | Flood::StoppedWatcher => {
            zk.create(WIDE, b"").await;
            let value = format!(r#"{{"host":"{}"}}"#, "x".repeat(100));
            children(zk, WIDE, CHILDREN, value.as_bytes()).await;
        }
        Flood::NestedPages => {
            let lists = "[[[]]],".repeat(25_000);
            zk.create(NESTED, format!(r#"{{"lists":[{}0]}}"#, lists).as_bytes()).await;
        }
        Flood::LargeView => {
            zk.create(TREE, b"").await;
            let branches = load.count(50, 1_000);
            children(zk, TREE, branches, b"").await;
            for branch in 0..branches {
                children(zk, &format!("{TREE}/{branch}"), BRANCH, b"{}").await;
            }
        }
        _ => {}
    }
}

async fn children(zk: &Witness, parent: &str, count: usize, value: &[u8]) {
    for first in (0..count).step_by(AT_ONCE) {
        let paths = (first..count.min(first + AT_ONCE)).map(|number| format!("{parent}/{number}"));
        zk.create_many(paths, value).await;
    }
}
