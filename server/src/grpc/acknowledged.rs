//! The latest transaction that this replica has acknowledged to a connection. Reads over the connection are never
//! older.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::locks::LockEvent;
use crate::sessions::Notice;
use crate::types::{Stat, Zxid};
use crate::views::Views;

/// One for each connection; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Acknowledged(Arc<AtomicI64>);

impl Acknowledged {
    /// Must be called before the acknowledgement is sent.
    pub(super) fn note(&self, zxid: Zxid) {
        self.0.fetch_max(zxid.0, Ordering::Relaxed);
    }

    /// Notes the latest transaction that changed a node.
    pub(super) fn note_stat(&self, stat: &Stat) {
        self.note(Zxid(stat.czxid.max(stat.mzxid).max(stat.pzxid)));
    }

    /// Notes a message of a Register stream. No message says which transaction removed a node, or created one that is
    /// in the way: the latest transaction that this process knows of is noted instead.
    pub(super) fn note_notice(&self, notice: &Notice, views: &Views) {
        match notice {
            Notice::Registered { generation, stat, .. } => {
                self.note(Zxid(generation.0));
                self.note_stat(stat);
            }
            Notice::Overwritten { stat, .. } => self.note_stat(stat),
            Notice::Unregistered { .. } | Notice::Lost { .. } | Notice::Rejected { .. } => self.note(views.last_zxid()),
            Notice::Opened { .. } | Notice::Pending { .. } | Notice::KeptAlive => {}
        }
    }

    /// Notes a message of a lock's stream.
    pub(super) fn note_lock_event(&self, event: &LockEvent, views: &Views) {
        match event {
            LockEvent::Held { fencing_token, .. } => self.note(Zxid(fencing_token.0)),
            LockEvent::Lost { .. } => self.note(views.last_zxid()),
            LockEvent::Queued { .. } | LockEvent::Suspended { .. } => {}
        }
    }

    pub(super) fn latest(&self) -> Zxid {
        Zxid(self.0.load(Ordering::Relaxed))
    }

    /// Forgets `lost` if ZooKeeper's history ends before it: ZooKeeper has lost that transaction, as when a backup was
    /// restored. A transaction that was acknowledged meanwhile stays.
    pub(super) fn forget(&self, lost: Zxid, end: Zxid) {
        if lost > end {
            // If the value has changed, it is a newer transaction.
            let _ = self.0.compare_exchange(lost.0, end.0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_zookeeper_has_lost_is_forgotten_and_nothing_else() {
        let acknowledged = Acknowledged::default();
        for zxid in [5, 9, 7] {
            acknowledged.note(Zxid(zxid));
        }
        assert_eq!(acknowledged.latest(), Zxid(9));
        acknowledged.forget(Zxid(9), Zxid(20));
        assert_eq!(acknowledged.latest(), Zxid(9));
        acknowledged.forget(Zxid(8), Zxid(3));
        assert_eq!(acknowledged.latest(), Zxid(9), "it was acknowledged meanwhile");
        acknowledged.forget(Zxid(9), Zxid(3));
        assert_eq!(acknowledged.latest(), Zxid(3));
    }
}
