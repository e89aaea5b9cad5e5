//! How far a replica is on its way down: it serves, it drains, it is over.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

/// A step of the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Everything is answered.
    Serving,
    /// No new streams; those that stand are told to move until the deadline.
    Draining {
        /// When the rest is ended.
        deadline: Instant,
    },
    /// Every stream ends.
    Over,
}

/// The handle. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Drain(Arc<watch::Sender<Phase>>);

impl Default for Drain {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Phase::Serving)))
    }
}

impl Drain {
    /// The next step.
    pub(crate) fn go_to(&self, phase: Phase) {
        self.0.send_replace(phase);
    }

    /// Whether new streams are taken.
    pub(crate) fn is_serving(&self) -> bool {
        *self.0.borrow() == Phase::Serving
    }

    /// Resolves when no new streams are taken any more.
    pub(crate) async fn begun(&self) {
        // The channel stands as long as this handle.
        let _ = self.phases().wait_for(|phase| *phase != Phase::Serving).await;
    }

    /// Tells of every step.
    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }
}
