//! When the sessions with ZooKeeper are opened: at once, or with the first call.
//!
//! The embedded backend waits for the first call. Until then it is an empty ZooKeeper for programs that use it as such:
//! Rollcall's sessions, nodes and writes show in listings, counts and transaction ids.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// Whether sessions may be opened. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Activation(Arc<State>);

#[derive(Debug)]
struct State {
    is_requested: watch::Sender<bool>,
    /// The calls that came first have waited for the sessions. Never set back.
    is_over: AtomicBool,
}

impl Activation {
    /// Sessions are opened at once.
    pub(crate) fn at_once() -> Self {
        Self::new(true)
    }

    /// Sessions are opened when [`Zk::activate`](super::Zk::activate) is called.
    pub(crate) fn on_demand() -> Self {
        Self::new(false)
    }

    fn new(at_once: bool) -> Self {
        Self(Arc::new(State { is_requested: watch::Sender::new(at_once), is_over: AtomicBool::new(at_once) }))
    }

    pub(super) fn request(&self) {
        self.0.is_requested.send_if_modified(|is_requested| !std::mem::replace(is_requested, true));
    }

    /// Waits until sessions may be opened.
    pub(super) async fn requested(&self) {
        // The sender is in the handle.
        let _ = self.0.is_requested.subscribe().wait_for(|is_requested| *is_requested).await;
    }

    pub(super) fn end(&self) {
        self.0.is_over.store(true, Ordering::Release);
    }

    /// Whether calls need not wait for the sessions to be opened.
    pub(super) fn is_over(&self) -> bool {
        self.0.is_over.load(Ordering::Acquire)
    }
}
