//! The streams that a drain waits for, and the tasks that read their requests. The limits of a connection are checked
//! before, at the [`Gate`](super::Gate).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::task::{AbortHandle, JoinSet};
use tonic::Request;

use super::peer::Peer;
use crate::budget::Account;
use crate::contact::Contact;
use crate::mutex::lock;

/// Counts the open streams and the calls that wait, and keeps the tasks that read their requests. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Admission {
    streams: Arc<[AtomicUsize; KINDS]>,
    readers: Arc<Mutex<JoinSet<()>>>,
}

/// The kinds of calls that a drain waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallKind {
    /// A Register stream.
    Register,
    /// A Watch stream.
    Watch,
    /// An AcquireLock stream.
    AcquireLock,
    /// A Get that waits for a child, or for a transaction that its caller knows of.
    Get,
}

/// Number of [`CallKind`]s.
const KINDS: usize = 4;

/// The place of one stream, given back on drop.
#[derive(Debug)]
pub(crate) struct CallPlace(Arc<[AtomicUsize; KINDS]>, CallKind);

/// The task that reads one stream's requests, ended on drop.
#[derive(Debug)]
pub(super) struct RequestReader(AbortHandle);

/// The account of the connection that a request came over.
pub(super) fn account<T>(request: &Request<T>) -> Account {
    // Every connection that is accepted has one; see `WriteCoalescer`.
    request.extensions().get::<Peer>().map_or_else(Account::unlimited, |peer| peer.account.clone())
}

/// The signs of life of the connection that a request came over.
pub(super) fn contact<T>(request: &Request<T>) -> Option<Contact> {
    request.extensions().get::<Peer>().map(|peer| peer.contact.clone())
}

impl Admission {
    /// Counts a stream.
    pub(super) fn admit(&self, kind: CallKind) -> CallPlace {
        self.streams[kind as usize].fetch_add(1, Ordering::Relaxed);
        CallPlace(self.streams.clone(), kind)
    }

    /// Number of open streams and of calls that wait.
    pub(crate) fn streams(&self) -> usize {
        self.streams.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Number of calls of one kind.
    pub(super) fn of_kind(&self, kind: CallKind) -> usize {
        self.streams[kind as usize].load(Ordering::Relaxed)
    }

    /// Starts the task that reads a stream's requests. Each start removes up to two tasks that have ended, so that
    /// there are never many, and no call pays for all of them.
    pub(super) fn read(&self, task: impl Future<Output = ()> + Send + 'static) -> RequestReader {
        let mut readers = lock(&self.readers);
        for _ in std::iter::from_fn(|| readers.try_join_next()).take(2) {}
        RequestReader(readers.spawn(task))
    }
}

impl Drop for CallPlace {
    fn drop(&mut self) {
        self.0[self.1 as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for RequestReader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[tokio::test]
    async fn no_call_pays_for_all_readers_that_have_ended_and_there_are_never_many() {
        let admission = Admission::default();
        let known = || admission.readers.lock().unwrap().len();
        let first: Vec<_> = (0..1000).map(|_| admission.read(std::future::pending())).collect();
        drop(first);
        tokio::task::yield_now().await;
        drop(admission.read(ready(())));
        assert_eq!(known(), 999);
        for _ in 0..10_000 {
            drop(admission.read(ready(())));
            tokio::task::yield_now().await;
        }
        assert!(known() < 10, "{}", known());
    }
}
