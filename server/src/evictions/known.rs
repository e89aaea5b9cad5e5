//! The evictions that are known, and the table of those in force.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::types::{NodePath, Zxid};
use crate::zk::{self, Zk};

/// Maximum number of evictions in force. Each replica keeps all of them, and reads all of them when one changes.
pub(super) const MAX_EVICTIONS: usize = 1000;

/// The evictions in force, by path, each with its end.
pub(crate) type Table = Arc<HashMap<NodePath, Instant>>;

/// The state that the handles and the task share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) zk: Zk,
    /// The known records, by name.
    pub(super) known: Mutex<HashMap<String, KnownEviction>>,
    /// `None` until the records have been read once.
    pub(super) table: watch::Sender<Option<Table>>,
    pub(super) calls: Semaphore,
}

/// A record that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownEviction {
    pub(super) path: NodePath,
    /// When the eviction ends.
    pub(super) until: Instant,
    /// The transaction that wrote the record last.
    pub(super) written: Zxid,
}

impl Shared {
    /// Changes the known records, and the table with them.
    pub(super) fn change(&self, change: impl FnOnce(&mut HashMap<String, KnownEviction>)) {
        let mut known = self.known.lock();
        change(&mut known);
        // Under the lock, so that the last table is that of the last known records.
        if self.table.borrow().is_some() {
            self.show(&known);
        }
    }

    /// Publishes the evictions in force.
    pub(super) fn show(&self, known: &HashMap<String, KnownEviction>) {
        let now = Instant::now();
        let in_force = known.values().filter(|known| known.until > now);
        let table: HashMap<_, _> = in_force.map(|known| (known.path.clone(), known.until)).collect();
        self.table.send_replace(Some(Arc::new(table)));
    }

    pub(super) fn count(&self) -> usize {
        self.known.lock().len()
    }
}

/// An empty write, whose answer has ZooKeeper's time.
pub(super) fn tick() -> zk::Request {
    zk::set_data(zk::layout::EVICTED, Bytes::new(), -1)
}
