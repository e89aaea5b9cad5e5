//! How far a session's events have been received, in ZooKeeper's history.
//!
//! A server sends a session the events of a transaction before any answer that is later than the transaction. So once
//! an answer of this transaction or a later one was received, all events up to it are in the mailboxes.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::types::Zxid;

/// A connection, and the latest transaction that an answer on it was behind. Read and written without a lock: one task
/// writes it for every answer, and every Get may read it.
#[derive(Debug, Default)]
pub(super) struct Horizon {
    /// The number of the present connection; zero if there is none.
    connection: AtomicU64,
    zxid: AtomicI64,
}

impl Horizon {
    /// A connection begins, on which nothing was received yet.
    pub(super) fn begin(&self, connection: u64) {
        self.end();
        self.zxid.store(0, Ordering::SeqCst);
        self.connection.store(connection, Ordering::SeqCst);
    }

    /// The connection has ended.
    pub(super) fn end(&self) {
        self.connection.store(0, Ordering::SeqCst);
    }

    /// An answer was received that is behind this transaction. Everything before it has been handed to the mailboxes.
    pub(super) fn reach(&self, zxid: Zxid) {
        self.zxid.fetch_max(zxid.0, Ordering::SeqCst);
    }

    /// The present connection, and the latest transaction whose events were received on it.
    pub(super) fn get(&self) -> Option<(u64, Zxid)> {
        let connection = self.connection.load(Ordering::SeqCst);
        let zxid = Zxid(self.zxid.load(Ordering::SeqCst));
        // The next connection starts from zero, and perhaps at an earlier transaction.
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
