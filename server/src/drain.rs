//! The phases of a replica's shutdown: it serves, it drains, it is over.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

/// A phase of the shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DrainPhase {
    /// Every request is answered.
    Serving,
    /// New streams are refused. Open streams are told to move until the deadline.
    Draining {
        /// When the remaining streams are ended.
        deadline: Instant,
    },
    /// Every stream ends.
    Over,
}

/// The handle. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Drain(Arc<watch::Sender<DrainPhase>>);

impl Default for Drain {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(DrainPhase::Serving)))
    }
}

impl Drain {
    /// Goes to the next phase.
    pub(crate) fn go_to(&self, phase: DrainPhase) {
        self.0.send_replace(phase);
    }

    /// Whether new streams are accepted.
    pub(crate) fn is_serving(&self) -> bool {
        *self.0.borrow() == DrainPhase::Serving
    }

    /// Resolves when new streams are no longer accepted.
    pub(crate) async fn begun(&self) {
        // The channel lives as long as this handle.
        let _ = self.phases().wait_for(|phase| *phase != DrainPhase::Serving).await;
    }

    /// Reports every phase.
    pub(crate) fn phases(&self) -> watch::Receiver<DrainPhase> {
        self.0.subscribe()
    }
}
