//! When the sessions with ZooKeeper are opened: at once, or with the first call.
//!
//! The embedded backend waits for the first call. Until then it is an empty ZooKeeper for programs that use it as such:
//! Rollcall's sessions, nodes and writes show in listings, counts and transaction ids.

use std::sync::Arc;

use tokio::sync::watch;

/// Whether sessions may be opened, and whether the first calls still wait for them. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Activation(Arc<watch::Sender<ActivationPhase>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ActivationPhase {
    /// No session is opened.
    Dormant,
    /// The sessions are being opened, and calls wait for them.
    Opening,
    /// No call waits any more. Final.
    Over,
}

impl Activation {
    /// Sessions are opened at once.
    pub(crate) fn at_once() -> Self {
        Self(Arc::new(watch::Sender::new(ActivationPhase::Over)))
    }

    /// Sessions are opened when [`Zk::activate`](super::Zk::activate) is called.
    pub(crate) fn on_demand() -> Self {
        Self(Arc::new(watch::Sender::new(ActivationPhase::Dormant)))
    }

    /// Has the sessions opened, and waits until that is over.
    pub(super) async fn activate(&self) {
        self.advance(ActivationPhase::Opening);
        self.reached(ActivationPhase::Over).await;
    }

    /// Waits until sessions may be opened.
    pub(super) async fn requested(&self) {
        self.reached(ActivationPhase::Opening).await;
    }

    /// The sessions are open, or calls are not to wait for them any longer.
    pub(super) fn end(&self) {
        self.advance(ActivationPhase::Over);
    }

    /// Whether calls need not wait for the sessions to be opened.
    pub(super) fn is_over(&self) -> bool {
        *self.0.borrow() == ActivationPhase::Over
    }

    fn advance(&self, to: ActivationPhase) {
        self.0.send_if_modified(|phase| {
            let is_later = to > *phase;
            *phase = to.max(*phase);
            is_later
        });
    }

    async fn reached(&self, phase: ActivationPhase) {
        // The sender is in the handle.
        let _ = self.0.subscribe().wait_for(|now| *now >= phase).await;
    }
}
