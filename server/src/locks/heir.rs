//! A lease that is released where the next in line waits too passes to it in one transaction: the lock is not free in
//! between, which spares everybody a write and two reads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;

use super::lock;
use crate::types::NodePath;

/// How long an heir's session may take: another one may well be able to delete the lease meanwhile.
const SESSION_PATIENCE: Duration = Duration::from_millis(300);

/// The first of each queue, where it waits here.
#[derive(Debug, Clone, Default)]
pub(super) struct Heirs(Arc<Mutex<HashMap<NodePath, oneshot::Sender<Bequest>>>>);

/// A lease that may be replaced by the heir's own.
#[derive(Debug)]
pub(super) struct Bequest {
    /// What the transaction that grants the lock has to delete.
    pub(super) lease: NodePath,
    taken: oneshot::Sender<()>,
}

/// The first of a queue, as long as it waits for a lease. A bequest may be left to it before it is sure to be the first:
/// it makes use of it then, or drops it.
#[derive(Debug)]
pub(super) struct Heir {
    heirs: Heirs,
    path: NodePath,
    bequest: oneshot::Receiver<Bequest>,
}

impl Heirs {
    /// For who is the first of the queue for the lock at `path`, or most likely is. `None`: another still counts as that.
    pub(super) fn appoint(&self, path: &NodePath) -> Option<Heir> {
        let mut heirs = lock(&self.0);
        if heirs.get(path).is_some_and(|other| !other.is_closed()) {
            return None;
        }
        let (sender, bequest) = oneshot::channel();
        heirs.insert(path.clone(), sender);
        Some(Heir { heirs: self.clone(), path: path.clone(), bequest })
    }

    /// Has the first of the queue, if it waits here, replace a lease by its own. `false`: the lease may still stand.
    pub(super) async fn pass_on(&self, path: &NodePath, lease: NodePath) -> bool {
        let Some(heir) = lock(&self.0).remove(path) else { return false };
        let (taken, answer) = oneshot::channel();
        heir.send(Bequest { lease, taken }).is_ok()
            && matches!(tokio::time::timeout(SESSION_PATIENCE, answer).await, Ok(Ok(())))
    }
}

impl Bequest {
    /// The lease is gone, by the transaction that made the heir's.
    pub(super) fn accept(self) {
        // Whoever does not wait any more deletes what is gone.
        let _ = self.taken.send(());
    }
}

impl Heir {
    /// A lease to replace, if one was left already; once.
    pub(super) fn take_bequest(&mut self) -> Option<Bequest> {
        self.bequest.try_recv().ok()
    }

    /// Waits for a lease to replace; once.
    ///
    /// # Cancellation
    /// Safe.
    pub(super) async fn bequest(&mut self) -> Bequest {
        match (&mut self.bequest).await {
            Ok(bequest) => bequest,
            // It was left one before.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        self.bequest.close();
        let mut heirs = lock(&self.heirs.0);
        if heirs.get(&self.path).is_some_and(oneshot::Sender::is_closed) {
            heirs.remove(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> (NodePath, NodePath) {
        (NodePath::trusted("/a"), NodePath::trusted("/a/lease"))
    }

    #[tokio::test]
    async fn a_lease_passes_to_the_heir_once() {
        let ((path, lease), heirs) = (paths(), Heirs::default());
        let mut heir = heirs.appoint(&path).unwrap();
        assert!(heirs.appoint(&path).is_none());
        let taking = async {
            let bequest = heir.bequest().await;
            assert_eq!(bequest.lease, lease);
            bequest.accept();
        };
        assert!(tokio::join!(heirs.pass_on(&path, lease.clone()), taking).0);
        assert!(!heirs.pass_on(&path, lease).await, "nobody waits for another");
    }

    #[tokio::test]
    async fn who_has_left_or_fails_inherits_nothing() {
        let ((path, lease), heirs) = (paths(), Heirs::default());
        let mut heir = heirs.appoint(&path).unwrap();
        let failing = async { drop(heir.bequest().await) };
        assert!(!tokio::join!(heirs.pass_on(&path, lease.clone()), failing).0);
        let second = heirs.appoint(&path).unwrap();
        drop(heir);
        assert!(lock(&heirs.0).contains_key(&path), "the second is the heir");
        drop(second);
        assert!(lock(&heirs.0).is_empty());
        let late = heirs.appoint(&path).unwrap();
        let passed = tokio::join!(heirs.pass_on(&path, lease), async { drop(late) });
        assert!(!passed.0);
    }
}
