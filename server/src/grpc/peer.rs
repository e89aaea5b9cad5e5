//! What the calls of one connection share.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tonic::Request;

use super::acknowledged::Acknowledged;
use super::pace::Unread;
use crate::budget::Account;
use crate::contact::Contact;

/// Maximum number of reflection streams of a connection: grpcurl has one at a time, a user interface a few.
pub(super) const CONNECTION_REFLECTIONS: usize = 4;

/// State that the calls of a connection share. Every request carries it as an extension.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(super) account: Account,
    pub(super) contact: Contact,
    pub(super) acknowledged: Acknowledged,
    pub(super) unread: Arc<Unread>,
    /// Places for the connection's reflection streams.
    pub(super) reflections: Arc<Semaphore>,
}

impl Peer {
    pub(super) fn new(account: Account, contact: Contact) -> Self {
        Self {
            account,
            contact,
            acknowledged: Acknowledged::default(),
            unread: Arc::default(),
            reflections: Arc::new(Semaphore::new(CONNECTION_REFLECTIONS)),
        }
    }
}

impl Acknowledged {
    /// That of the connection which carried the request.
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        // Every connection that is accepted has one; see `WriteCoalescer`.
        request.extensions().get::<Peer>().map(|peer| peer.acknowledged.clone()).unwrap_or_default()
    }
}
