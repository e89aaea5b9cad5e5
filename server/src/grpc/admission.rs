//! Which calls are taken: each is counted for its connection, and in all. What is over is refused at once, and never waits.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::{AbortHandle, JoinSet};
use tonic::Request;

use crate::budget::{Account, Budget, Resource, Share};
use crate::error::Error;

/// Counts the calls under way, and keeps the tasks that read their requests. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    budget: Budget,
    readers: Arc<Mutex<JoinSet<()>>>,
}

/// The place of one call, given back on drop.
pub(crate) type Place = Share;

/// The task that reads one stream's requests, ended on drop.
#[derive(Debug)]
pub(super) struct Reader(AbortHandle);

/// The account of the connection that a request came over.
pub(super) fn account<T>(request: &Request<T>) -> Account {
    // Every connection that is accepted has one; see `Gathering`.
    request.extensions().get::<Account>().cloned().unwrap_or_else(Account::unlimited)
}

impl Admission {
    pub(crate) fn new(budget: Budget) -> Self {
        Self { budget, readers: Arc::default() }
    }

    /// A place for a call of this connection.
    pub(super) fn admit(&self, account: &Account) -> Result<Place, Error> {
        account.take(Resource::Streams, 1)
    }

    /// Number of calls under way.
    pub(crate) fn streams(&self) -> usize {
        self.budget.used(Resource::Streams)
    }

    /// Starts the task that reads a stream's requests.
    pub(super) fn read(&self, task: impl Future<Output = ()> + Send + 'static) -> Reader {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        while readers.try_join_next().is_some() {}
        Reader(readers.spawn(task))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abort();
    }
}
