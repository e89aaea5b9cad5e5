//! The streams that a drain waits for, and the tasks that read their requests. The limits of a connection are checked
//! before, at the [`Gate`](super::Gate).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::AbortHandle;
use tonic::Request;

use super::acknowledged::Acknowledged;
use super::write_coalescer::Peer;
use crate::budget::Account;
use crate::contact::Contact;

/// Counts the open streams and the calls that wait. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Admission(Arc<[AtomicUsize; KINDS]>);

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

/// The latest transaction that was acknowledged to the connection that a request came over.
pub(super) fn acknowledged<T>(request: &Request<T>) -> Acknowledged {
    request.extensions().get::<Peer>().map(|peer| peer.acknowledged.clone()).unwrap_or_default()
}

/// The signs of life of the connection that a request came over.
pub(super) fn contact<T>(request: &Request<T>) -> Option<Contact> {
    request.extensions().get::<Peer>().map(|peer| peer.contact.clone())
}

impl Admission {
    /// Counts a stream.
    pub(super) fn admit(&self, kind: CallKind) -> CallPlace {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
        CallPlace(self.0.clone(), kind)
    }

    /// Number of open streams and of calls that wait.
    pub(crate) fn streams(&self) -> usize {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Number of calls of one kind.
    pub(super) fn of_kind(&self, kind: CallKind) -> usize {
        self.0[kind as usize].load(Ordering::Relaxed)
    }
}

impl RequestReader {
    /// Starts the task.
    pub(super) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        // No set holds the tasks: it would hold the memory of each that has ended until somebody looks.
        Self(tokio::spawn(task).abort_handle())
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
