//! Runs work that takes long where it delays nobody: no step on a thread of the runtime may take longer than 10 ms,
//! however large a tree is.
//!
//! A state is built, compared, moved on and freed here, and shown by exchanging one pointer under the view's lock. The
//! example `large_view` measures the longest step.

use tokio::runtime::Handle;

use crate::compute::FOR_CLIENTS;

/// Maximum number of nodes that are worked on in one step on a thread of the runtime; with more, a debug build comes
/// near 10 ms.
pub(super) const NODES_PER_STEP: usize = 1000;

/// Does work of this many steps: at once if they are few, on a blocking thread otherwise.
pub(super) async fn apart<T: Send + 'static>(steps: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if steps <= NODES_PER_STEP {
        return work();
    }
    FOR_CLIENTS.run(work).await
}

/// Frees a value of this many parts: at once if they are few, on a blocking thread otherwise.
pub(super) fn discard<T: Send + 'static>(parts: usize, what: T) {
    match Handle::try_current() {
        Ok(runtime) if parts > NODES_PER_STEP => drop(runtime.spawn_blocking(move || drop(what))),
        _ => drop(what),
    }
}

/// A list that is freed on a blocking thread if it is long.
#[derive(Debug)]
pub(super) struct Bulk<T: Send + 'static>(pub(super) Vec<T>);

impl<T: Send> Default for Bulk<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Send> Drop for Bulk<T> {
    fn drop(&mut self) {
        if self.0.len() > NODES_PER_STEP {
            discard(self.0.len(), std::mem::take(&mut self.0));
        }
    }
}
