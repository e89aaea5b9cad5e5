//! How far into ZooKeeper's history a session's events have been received.
//!
//! A server sends a session the events of a transaction before any answer that is later than it. So once an answer of this
//! transaction or a later one has been received, the events up to it are in the mailboxes.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::types::Zxid;

/// A connection, and the latest transaction that an answer on it was behind. Read and written without a lock: one task
/// writes, for every answer, and every Get may read.
#[derive(Debug, Default)]
pub(super) struct Horizon {
    /// The number of the connection that stands; zero: none does.
    connection: AtomicU64,
    zxid: AtomicI64,
}

impl Horizon {
    /// A connection stands, on which nothing was received yet.
    pub(super) fn begin(&self, connection: u64) {
        self.end();
        self.zxid.store(0, Ordering::SeqCst);
        self.connection.store(connection, Ordering::SeqCst);
    }

    /// No connection stands.
    pub(super) fn end(&self) {
        self.connection.store(0, Ordering::SeqCst);
    }

    /// An answer was received that is behind this transaction. What came before it has been handed to its mailboxes.
    pub(super) fn reach(&self, zxid: Zxid) {
        self.zxid.fetch_max(zxid.0, Ordering::SeqCst);
    }

    /// The connection that stands, and the latest transaction whose events have been received on it.
    pub(super) fn get(&self) -> Option<(u64, Zxid)> {
        let connection = self.connection.load(Ordering::SeqCst);
        let zxid = Zxid(self.zxid.load(Ordering::SeqCst));
        // The next connection begins anew, perhaps at an earlier transaction.
        (connection > 0 && self.connection.load(Ordering::SeqCst) == connection).then_some((connection, zxid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_begins_anew() {
        let horizon = Horizon::default();
        assert_eq!(horizon.get(), None);
        horizon.begin(1);
        for zxid in [7, 5] {
            horizon.reach(Zxid(zxid));
        }
        assert_eq!(horizon.get(), Some((1, Zxid(7))));
        horizon.end();
        assert_eq!(horizon.get(), None);
        horizon.begin(2);
        assert_eq!(horizon.get(), Some((2, Zxid(0))));
    }
}
