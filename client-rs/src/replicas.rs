//! The connections of a client: one link a replica, made when it is first used, given up when it fails.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rollcall_proto::v1::registry_client::RegistryClient;
use tokio::time::{Instant, sleep_until};
use tonic::service::interceptor::InterceptedService;

use crate::choice::{Choice, Chosen, FOREVER, Verdict};
use crate::endpoints::{Address, Credentials};
use crate::error::Failure;
use crate::link::Link;

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
        Self(Arc::new(Inner { addresses, credentials, state: Mutex::new(State { choice, links }) }))
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
        let link = self.state().links[chosen.index].get_or_insert_with(|| Link::new(address.endpoint.clone())).clone();
        Replica { chosen, stub: RegistryClient::with_interceptor(link, self.0.credentials.clone()) }
    }

    /// It has answered.
    pub(crate) fn succeeded(&self, replica: &Replica) {
        self.state().choice.succeeded(replica.chosen);
    }

    /// It has not, or it can't serve now.
    pub(crate) fn failed(&self, replica: &Replica, failure: &Failure) {
        let mut state = self.state();
        let is_news = state.choice.failed(replica.chosen, failure.retry_after(), Instant::now());
        // A connection that hangs, or that the replica wants to end, is no use to new calls; streams that stand keep it.
        if is_news {
            state.links[replica.chosen.index] = None;
            tracing::debug!(replica = self.0.addresses[replica.chosen.index].name, ?failure, "replica failed");
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
