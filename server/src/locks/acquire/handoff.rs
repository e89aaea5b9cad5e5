//! The handoff: a lease that is released passes to the next contender in one transaction, if both are on this replica.
//!
//! The transaction is [delete the old lease, delete the contender, create its lease]. The lock is not free in between,
//! which spares the new holder a write and two reads. A handoff may be offered before the recipient is certain to be
//! the first: it takes the offer when it is, or drops it. Then the lease is deleted as without a handoff.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::types::NodePath;

/// Time that a recipient has to replace the lease. A larger value keeps the lock taken while the recipient's session
/// hangs, though the releaser's session may well be able to delete the lease.
const HANDOFF_PATIENCE: Duration = Duration::from_millis(300);

/// The recipient for each lock, if this replica has one. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Handoffs(Arc<Mutex<HashMap<NodePath, oneshot::Sender<HandoffOffer>>>>);

/// A lease that the recipient may replace by its own.
#[derive(Debug)]
pub(crate) struct HandoffOffer {
    /// The lease that the granting transaction has to delete.
    pub(crate) lease: NodePath,
    taken: oneshot::Sender<()>,
}

/// The registration of the first contender of a queue, while it waits for a lease.
#[derive(Debug)]
pub(crate) struct HandoffRecipient {
    handoffs: Handoffs,
    path: NodePath,
    offer: oneshot::Receiver<HandoffOffer>,
}

impl Handoffs {
    /// Registers the first contender for the lock at `path`, or the one that most likely is. `None`: another contender
    /// is registered still.
    pub(crate) fn register(&self, path: &NodePath) -> Option<HandoffRecipient> {
        let mut recipients = self.0.lock();
        if recipients.get(path).is_some_and(|other| !other.is_closed()) {
            return None;
        }
        let (sender, offer) = oneshot::channel();
        recipients.insert(path.clone(), sender);
        Some(HandoffRecipient { handoffs: self.clone(), path: path.clone(), offer })
    }

    /// Has the recipient, if there is one, replace a lease by its own. `false`: the lease may still exist.
    pub(crate) async fn offer(&self, path: &NodePath, lease: NodePath) -> bool {
        let Some(recipient) = self.0.lock().remove(path) else { return false };
        let (taken, answer) = oneshot::channel();
        recipient.send(HandoffOffer { lease, taken }).is_ok()
            && matches!(tokio::time::timeout(HANDOFF_PATIENCE, answer).await, Ok(Ok(())))
    }
}

impl HandoffOffer {
    /// The transaction that made the recipient's lease has deleted this one.
    pub(crate) fn accept(self) {
        // A releaser that does not wait any more deletes a node that is gone.
        let _ = self.taken.send(());
    }
}

impl HandoffRecipient {
    /// The offer, if it has come already; once.
    pub(crate) fn try_take(&mut self) -> Option<HandoffOffer> {
        self.offer.try_recv().ok()
    }

    /// Waits for the offer; once.
    ///
    /// # Cancellation
    /// Safe.
    pub(crate) async fn take(&mut self) -> HandoffOffer {
        match (&mut self.offer).await {
            Ok(offer) => offer,
            // The one offer was taken before.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for HandoffRecipient {
    fn drop(&mut self) {
        self.offer.close();
        let mut recipients = self.handoffs.0.lock();
        if recipients.get(&self.path).is_some_and(oneshot::Sender::is_closed) {
            recipients.remove(&self.path);
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
    async fn a_lease_passes_to_the_recipient_once() {
        let ((path, lease), handoffs) = (paths(), Handoffs::default());
        let mut recipient = handoffs.register(&path).unwrap();
        assert!(handoffs.register(&path).is_none());
        let taking = async {
            let offer = recipient.take().await;
            assert_eq!(offer.lease, lease);
            offer.accept();
        };
        assert!(tokio::join!(handoffs.offer(&path, lease.clone()), taking).0);
        assert!(!handoffs.offer(&path, lease).await, "nobody waits for another");
    }

    #[tokio::test]
    async fn a_recipient_that_has_left_or_fails_takes_no_lease() {
        let ((path, lease), handoffs) = (paths(), Handoffs::default());
        let mut recipient = handoffs.register(&path).unwrap();
        let failing = async { drop(recipient.take().await) };
        assert!(!tokio::join!(handoffs.offer(&path, lease.clone()), failing).0);
        let second = handoffs.register(&path).unwrap();
        drop(recipient);
        assert!(handoffs.0.lock().contains_key(&path), "the second is the recipient");
        drop(second);
        assert!(handoffs.0.lock().is_empty());
        let late = handoffs.register(&path).unwrap();
        let passed = tokio::join!(handoffs.offer(&path, lease), async { drop(late) });
        assert!(!passed.0);
    }
}
