//! The latest transaction that this replica has acknowledged to a connection: what is read over it is never older.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tonic::Request;

use super::gather::Peer;
use crate::locks::LockEvent;
use crate::sessions::Notice;
use crate::types::{Stat, Zxid};
use crate::views::Views;

/// One for each connection; every clone is the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Acknowledged(Arc<AtomicI64>);

impl Acknowledged {
    /// Of the connection that a request came over.
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        // Every connection that is accepted has one; see `Gathering`.
        request.extensions().get::<Peer>().map(|peer| peer.acknowledged.clone()).unwrap_or_default()
    }

    /// To be called before the acknowledgement is sent.
    pub(super) fn note(&self, zxid: Zxid) {
        self.0.fetch_max(zxid.0, Ordering::Relaxed);
    }

    /// What made a node what it is.
    pub(super) fn note_stat(&self, stat: &Stat) {
        self.note(Zxid(stat.czxid.max(stat.mzxid).max(stat.pzxid)));
    }

    /// What a Register stream tells. Of what is gone, or in the way, nothing says since when: it was by the last transaction
    /// that this process knows of.
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

    /// What a lock's stream tells.
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

    /// ZooKeeper's history ends before what was acknowledged: it has lost that, as when a backup was restored. What was
    /// acknowledged meanwhile stays.
    pub(super) fn forget(&self, lost: Zxid, end: Zxid) {
        if lost > end {
            // When it has changed, there is something newer.
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
