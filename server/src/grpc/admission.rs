//! How many streams there may be, on one connection and in all. What is over is refused at once, and never waits.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::{AbortHandle, JoinSet};

use crate::error::Error;

/// The bounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamLimits {
    /// Streams of one connection.
    pub(crate) per_connection: usize,
    /// Streams of this replica.
    pub(crate) total: usize,
}

/// Counts the streams that stand, and keeps the tasks that read them. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    limits: StreamLimits,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    by_connection: HashMap<Option<SocketAddr>, usize>,
    total: usize,
    readers: JoinSet<()>,
}

/// The place of one stream, given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    connection: Option<SocketAddr>,
    inner: Arc<Mutex<Inner>>,
}

/// The task that reads one stream's requests, ended on drop.
#[derive(Debug)]
pub(super) struct Reader(AbortHandle);

impl Admission {
    pub(crate) fn new(limits: StreamLimits) -> Self {
        Self { limits, inner: Arc::default() }
    }

    /// A place for a stream of this connection.
    pub(super) fn admit(&self, connection: Option<SocketAddr>) -> Result<Place, Error> {
        let mut inner = lock(&self.inner);
        let over = |limit: usize, what| Error::LimitExceeded {
            reason: "TOO_MANY_STREAMS",
            what,
            limit: u64::try_from(limit).unwrap_or(u64::MAX),
        };
        if inner.total >= self.limits.total {
            return Err(over(self.limits.total, "the number of streams of this replica"));
        }
        let on_connection = inner.by_connection.entry(connection).or_default();
        if *on_connection >= self.limits.per_connection {
            return Err(over(self.limits.per_connection, "the number of streams of this connection"));
        }
        *on_connection += 1;
        inner.total += 1;
        Ok(Place { connection, inner: self.inner.clone() })
    }

    /// How many streams stand.
    pub(crate) fn streams(&self) -> usize {
        lock(&self.inner).total
    }

    /// Starts the task that reads a stream's requests.
    pub(super) fn read(&self, task: impl Future<Output = ()> + Send + 'static) -> Reader {
        let mut inner = lock(&self.inner);
        while inner.readers.try_join_next().is_some() {}
        Reader(inner.readers.spawn(task))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = lock(&self.inner);
        inner.total -= 1;
        if let Some(count) = inner.by_connection.get_mut(&self.connection) {
            *count -= 1;
            if *count == 0 {
                inner.by_connection.remove(&self.connection);
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn lock(mutex: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
