//! Bounds for lists and nodes that others may have filled.

use crate::compute;

/// Maximum number of nodes in one read. ZooKeeper's answer is read as a whole, up to 64 MiB, and a node holds up to 1
/// MiB: a larger value makes answers that cannot be read.
pub(super) const READ_CHUNK: usize = 48;
/// Longer lists of names are processed on a thread of their own: a hundred thousand names take some 100 ms.
pub(super) const LONG: usize = 2_000;

/// Processes a list of `names` names, on another thread if that takes long.
pub(super) async fn go_through<T: Send + 'static>(names: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if names <= LONG { work() } else { compute::FOR_CLIENTS.run(work).await }
}
