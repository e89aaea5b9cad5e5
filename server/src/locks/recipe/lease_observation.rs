//! A look at a lease and its lock node.

use crate::locks::long_lists::READ_CHUNK;
use crate::types::{NodePath, Zxid};
use crate::zk::{self, OneShot, Session};

/// A look at a lease and its lock node.
#[derive(Debug)]
pub(crate) struct LeaseObservation {
    /// Fires when the lease is deleted or written; `None`: it does not exist.
    pub(crate) watch: Option<OneShot>,
    pub(crate) lock: ObservedLock,
}

/// The lock node in such a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ObservedLock {
    /// Number of leases.
    pub(crate) leases: usize,
    /// The transaction that last wrote the lock node; `None`: it does not exist.
    pub(crate) written: Option<Zxid>,
}

/// Reads a lease and its lock node, and watches the lease. The requests are sent when the future is first polled.
pub(crate) async fn observe(
    session: &Session,
    path: &NodePath,
    lease: &NodePath,
) -> Result<LeaseObservation, zk::Error> {
    let (watched, lock) = futures_util::future::join(session.watch_exists(lease), session.exists(path)).await;
    let (stat, watch) = watched?;
    let lock = lock?;
    let leases = lock.map_or(0, |lock| usize::try_from(lock.num_children).unwrap_or_default());
    let lock = ObservedLock { leases, written: lock.map(|lock| Zxid(lock.mzxid)) };
    Ok(LeaseObservation { watch: stat.map(|_| watch), lock })
}

/// The transactions that made the leases of a lock.
pub(crate) async fn grants(session: &Session, path: &NodePath) -> Result<Vec<i64>, zk::Error> {
    let names = session.children(path).await?.map(|(names, _)| names).unwrap_or_default();
    let mut grants = Vec::with_capacity(names.len());
    for chunk in names.chunks(READ_CHUNK) {
        let paths: Vec<_> = chunk.iter().map(|name| path.join(name)).collect();
        let reads = session.get_many(paths.iter().map(NodePath::as_str)).await?;
        grants.extend(reads.into_iter().flatten().flatten().map(|read| read.stat.czxid));
    }
    Ok(grants)
}
