//! The connections of a client: one link a replica, made when it is first used, given up when it fails.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rollcall_proto::v1::registry_client::RegistryClient;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::service::interceptor::InterceptedService;

use crate::choice::{Choice, Chosen, FOREVER, Verdict};
use crate::contact::Contact;
use crate::endpoints::{Address, Credentials};
use crate::error::{Error, Failure};
use crate::link::Link;
use crate::seen::Seen;

/// The generated client, with the token.
pub(crate) type Stub = RegistryClient<InterceptedService<Link, Credentials>>;

/// All replicas of a client. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Replicas(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    addresses: Vec<Address>,
    credentials: Credentials,
    state: Mutex<State>,
    contact: watch::Sender<Contact>,
    seen: Seen,
}

#[derive(Debug)]
struct State {
    choice: Choice,
    links: Vec<Option<Link>>,
}

/// A replica to talk to, and the connection to it.
#[derive(Debug, Clone)]
pub(crate) struct Replica {
    chosen: Chosen,
    pub(crate) stub: Stub,
}

impl Replica {
    pub(crate) fn index(&self) -> usize {
        self.chosen.index
    }
}

impl Replicas {
    pub(crate) fn new(addresses: Vec<Address>, credentials: Credentials) -> Self {
        let links = addresses.iter().map(|_| None).collect();
        let choice = Choice::new(addresses.len(), rand::random());
        let state = Mutex::new(State { choice, links });
        Self(Arc::new(Inner {
            addresses,
            credentials,
            state,
            contact: watch::Sender::default(),
            seen: Seen::default(),
        }))
    }

    /// How they answer, as it changes.
    pub(crate) fn contact(&self) -> watch::Receiver<Contact> {
        self.0.contact.subscribe()
    }

    /// What any of them has told.
    pub(crate) fn seen(&self) -> &Seen {
        &self.0.seen
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.addresses.len()
    }

    /// The addresses, for a message.
    pub(crate) fn names(&self) -> String {
        self.0.addresses.iter().map(|address| address.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// The one that answers, or the next to try; waits while all have failed lately.
    ///
    /// # Cancellation
    /// Safe.
    pub(crate) async fn pick(&self) -> Replica {
        self.pick_but(None, FOREVER).await
    }

    /// The same; `but` only while no other may be tried, and each replica that failed again after `longest`.
    pub(crate) async fn pick_but(&self, but: Option<usize>, longest: Duration) -> Replica {
        loop {
            let verdict = self.state().choice.choose(Instant::now(), but, longest);
            match verdict {
                Verdict::Use(chosen) => return self.connect(chosen),
                Verdict::Wait(until) => sleep_until(until).await,
            }
        }
    }

    fn connect(&self, chosen: Chosen) -> Replica {
        let address = &self.0.addresses[chosen.index];
        self.0.contact.send_if_modified(|contact| contact.asked(&address.name));
        let link = self.state().links[chosen.index].get_or_insert_with(|| Link::new(address.endpoint.clone())).clone();
        Replica { chosen, stub: RegistryClient::with_interceptor(link, self.0.credentials.clone()) }
    }

    /// The error of a call whose time is over: what a replica said of itself, or that none has answered.
    pub(crate) fn given_up(&self, last: Option<Failure>) -> Error {
        match last {
            Some(Failure::NotNow(refusal) | Failure::Refused(refusal)) => Error::Refused(refusal),
            last => Error::Unreachable { replicas: self.names(), source: last.map(Failure::into_status) },
        }
    }

    /// It has answered.
    pub(crate) fn succeeded(&self, replica: &Replica) {
        self.state().choice.succeeded(replica.chosen);
        self.0.contact.send_if_modified(Contact::answered);
    }

    /// It has not, or it can't serve now.
    pub(crate) fn failed(&self, replica: &Replica, failure: &Failure) {
        let name = &self.0.addresses[replica.chosen.index].name;
        self.0.contact.send_if_modified(|contact| contact.failed(name, failure));
        let mut state = self.state();
        let is_news = state.choice.failed(replica.chosen, failure.retry_after(), Instant::now());
        // A connection that hangs, or that the replica wants to end, is no use to new calls; streams that stand keep it.
        if is_news {
            state.links[replica.chosen.index] = None;
            tracing::debug!(replica = name, ?failure, "replica failed");
        }
    }

    /// It is about to stop: whatever comes next goes elsewhere, or, behind a balancer, over a new connection.
    pub(crate) fn drains(&self, replica: &Replica) {
        let mut state = self.state();
        if state.choice.failed(replica.chosen, Some(DRAINING), Instant::now()) {
            state.links[replica.chosen.index] = None;
            tracing::info!(replica = self.0.addresses[replica.chosen.index].name, "replica drains");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a replica that drains is left alone.
const DRAINING: Duration = Duration::from_millis(500);
