//! The connections of a client: one link for each replica, made on first use and dropped when it fails.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::{Mutex, MutexGuard};
use rand::seq::SliceRandom as _;
use rollcall_proto::v1;
use rollcall_proto::v1::registry_client::RegistryClient;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::service::interceptor::InterceptedService;

use crate::choice::{Choice, Chosen, FOREVER, Verdict};
use crate::contact::Contact;
use crate::endpoints::{Address, Credentials};
use crate::error::{Error, Failure, Reason};
use crate::link::Link;
use crate::scout::Memory;
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
    /// Spreads clients that lose ZooKeeper at the same moment.
    spread: f64,
}

#[derive(Debug)]
struct State {
    choice: Choice,
    links: Vec<Option<Link>>,
    /// The round of questions under way, and the replica that is to be replaced.
    round: Option<(usize, Round)>,
    /// The results of the rounds, for each replica that was to be replaced.
    rounds: Vec<Memory>,
    /// For each replica: the time until which it counts as about to stop.
    drains_until: Vec<Option<Instant>>,
}

impl State {
    fn drains(&self, index: usize) -> bool {
        self.drains_until[index].is_some_and(|until| Instant::now() < until)
    }
}

/// Resolves to whether a replica that has ZooKeeper was found.
type Round = Shared<BoxFuture<'static, bool>>;

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
        let rounds = vec![Memory::default(); addresses.len()];
        let drains_until = vec![None; addresses.len()];
        let state = Mutex::new(State { choice, links, round: None, rounds, drains_until });
        Self(Arc::new(Inner {
            addresses,
            credentials,
            state,
            contact: watch::Sender::default(),
            seen: Seen::default(),
            spread: rand::random(),
        }))
    }

    /// How the replicas answer, as it changes.
    pub(crate) fn contact(&self) -> watch::Receiver<Contact> {
        self.0.contact.subscribe()
    }

    /// The latest transaction that any replica has shown.
    pub(crate) fn seen(&self) -> &Seen {
        &self.0.seen
    }

    /// From 0 to 1: how much later than other clients this one looks for another replica.
    pub(crate) fn spread(&self) -> f64 {
        self.0.spread
    }

    /// Number of replicas.
    pub(crate) fn count(&self) -> usize {
        self.0.addresses.len()
    }

    /// The addresses, for a message.
    pub(crate) fn names(&self) -> String {
        self.0.addresses.iter().map(|address| address.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// The replica that answers, or the next to try; waits while all have failed lately.
    ///
    /// # Cancellation
    /// Safe.
    pub(crate) async fn pick(&self) -> Replica {
        self.pick_but(None, FOREVER).await
    }

    /// Like [`pick`](Self::pick). `but` is picked only while no other may be tried, and a replica that failed may be
    /// tried again after `longest`.
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
        Replica { chosen, stub: self.stub(chosen.index) }
    }

    fn stub(&self, index: usize) -> Stub {
        let endpoint = || Link::new(self.0.addresses[index].endpoint.clone());
        let link = self.state().links[index].get_or_insert_with(endpoint).clone();
        RegistryClient::with_interceptor(link, self.0.credentials.clone())
    }

    /// Asks the others whether they have ZooKeeper, which the replica at `than` has lost. If one has, the next calls
    /// and streams go there. All callers that want to leave the same replica share one round of questions, and its
    /// answer for a while.
    ///
    /// # Cancellation
    /// Safe.
    pub(crate) async fn found_better(&self, than: usize) -> bool {
        if self.count() == 1 {
            return false;
        }
        let round = {
            let mut state = self.state();
            if let Some(found) = state.rounds[than].get(Instant::now()) {
                return found && state.choice.current() != than;
            }
            match &state.round {
                Some((of, round)) if *of == than && round.peek().is_none() => round.clone(),
                _ => {
                    let round = self.clone().ask_others(than).boxed().shared();
                    state.round = Some((than, round.clone()));
                    // The round ends soon, and it must end even if this caller leaves: others wait for its answer too.
                    tokio::spawn(round.clone());
                    round
                }
            }
        };
        round.await
    }

    async fn ask_others(self, than: usize) -> bool {
        let mut others: Vec<_> = {
            let state = self.state();
            // A replica that is about to stop still answers.
            (0..self.count()).filter(|index| *index != than && !state.drains(*index)).collect()
        };
        others.shuffle(&mut rand::rng());
        let mut asked: FuturesUnordered<_> = others.into_iter().map(|index| self.with_zookeeper(index)).collect();
        let first = async {
            loop {
                match asked.next().await {
                    Some(None) => {}
                    Some(found) => return found,
                    None => return None,
                }
            }
        };
        let found = timeout(QUESTION, first).await.unwrap_or_default();
        let mut state = self.state();
        let found = found.filter(|index| !state.drains(*index));
        state.rounds[than].put(found.is_some(), Instant::now());
        if let Some(index) = found {
            state.choice.prefer(index);
            let [lost, has] = [than, index].map(|index| &self.0.addresses[index].name);
            tracing::info!(replica = lost, other = has, "replica has lost zookeeper, and another has it");
        }
        found.is_some()
    }

    /// Returns the index of a replica, if the replica can make a round trip to ZooKeeper.
    async fn with_zookeeper(&self, index: usize) -> Option<usize> {
        // The path is ZooKeeper's own node, or nothing below a chroot: small, and the same for all clients of a
        // replica.
        let request = v1::GetRequest {
            path: "/zookeeper".to_owned(),
            page_size: 1,
            consistency: v1::Consistency::Latest.into(),
            ..Default::default()
        };
        let answer = self.stub(index).get(request).await.map_err(Failure::of);
        let serves = match answer {
            Ok(_) => true,
            // The path may not be read. That is an answer of ZooKeeper's, or of a replica that has no need to ask it.
            Err(Failure::Refused(refusal)) => matches!(refusal.reason(), Reason::NoAuth | Reason::Rule),
            Err(_) => false,
        };
        serves.then_some(index)
    }

    /// The error of a call whose time is over: the last refusal of a replica, or that no replica has answered.
    pub(crate) fn given_up(&self, last: Option<Failure>) -> Error {
        match last {
            Some(Failure::NotNow(refusal) | Failure::Refused(refusal)) => Error::Refused(refusal),
            last => Error::Unreachable { replicas: self.names(), source: last.map(Failure::into_status) },
        }
    }

    /// The replica has answered.
    pub(crate) fn succeeded(&self, replica: &Replica) {
        self.state().choice.succeeded(replica.chosen);
        self.0.contact.send_if_modified(Contact::answered);
    }

    /// The replica has not answered, or it can't serve now.
    pub(crate) fn failed(&self, replica: &Replica, failure: &Failure) {
        let name = &self.0.addresses[replica.chosen.index].name;
        self.0.contact.send_if_modified(|contact| contact.failed(name, failure));
        let mut state = self.state();
        let is_news = state.choice.failed(replica.chosen, failure.retry_after(), Instant::now());
        // A connection that hangs, or that the replica wants to end, is no use to new calls. Open streams keep it.
        if is_news {
            state.links[replica.chosen.index] = None;
            tracing::debug!(replica = name, ?failure, "replica failed");
        }
    }

    /// The replica is about to stop. The next calls and streams go elsewhere or, behind a balancer, over a new
    /// connection.
    pub(crate) fn drains(&self, replica: &Replica) {
        let mut state = self.state();
        state.drains_until[replica.chosen.index] = Some(Instant::now() + STOPPING);
        if state.choice.failed(replica.chosen, Some(DRAINING), Instant::now()) {
            state.links[replica.chosen.index] = None;
            tracing::info!(replica = self.0.addresses[replica.chosen.index].name, "replica drains");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }
}

/// Time that the others have to say that they have ZooKeeper. A replica that has lost it answers later than that.
const QUESTION: Duration = Duration::from_secs(1);
/// Time for which a draining replica is left alone.
const DRAINING: Duration = Duration::from_millis(500);
/// Time for which a draining replica counts as no better than one without ZooKeeper. It is longer than most drains
/// take.
const STOPPING: Duration = Duration::from_secs(15);
