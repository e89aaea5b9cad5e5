//! All registrations of a client with the same ttl: one stream, over any number of replicas.

use std::collections::HashMap;
use std::future::pending;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rollcall_proto::v1;
use rollcall_proto::v1::register_response::Response;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tonic::{Code, Status};

use super::standing::RegistrationState;
use super::state::{Key, Leaving, State, Terms, Waiter};
use super::stream::{Event, Stream};
use crate::background::Background;
use crate::choice::FOREVER;
use crate::error::{Error, Failure, Reason};
use crate::replicas::Replicas;
use crate::scout::Unease;
use crate::value::Compact;

/// Time after which a replica that had no room is asked again.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// The sessions of a client, one for each ttl in use.
#[derive(Debug)]
pub(crate) struct Sessions {
    peer: Peer,
    sessions: Mutex<HashMap<Option<Duration>, Arc<Session>>>,
}

/// The replicas that sessions talk to, and the client's name there.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) replicas: Replicas,
    pub(super) name: Arc<str>,
    /// Counts the registrations that are taken down in the background.
    background: Background,
}

impl Sessions {
    pub(crate) fn new(replicas: Replicas, name: String, background: Background) -> Self {
        Self { peer: Peer { replicas, name: name.into(), background }, sessions: Mutex::default() }
    }

    pub(super) fn of(&self, ttl: Option<Duration>) -> Arc<Session> {
        let mut sessions = self.sessions.lock();
        sessions.entry(ttl).or_insert_with(|| Session::new(self.peer.clone(), ttl)).clone()
    }
}

/// The handle on a session. Its task runs while there is a registration.
#[derive(Debug)]
pub(super) struct Session {
    inner: Mutex<Inner>,
    /// Wakes the task when there are new requests.
    wake: Notify,
    peer: Peer,
    ttl: Option<Duration>,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    is_running: bool,
    /// Why no replica is connected, for a message.
    trouble: Option<Arc<Status>>,
}

impl Session {
    fn new(peer: Peer, ttl: Option<Duration>) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), wake: Notify::new(), peer, ttl })
    }

    pub(super) fn add(
        self: &Arc<Self>,
        path: Arc<str>,
        terms: Terms,
        waiter: Option<Waiter>,
    ) -> Result<(Key, watch::Receiver<RegistrationState>), Error> {
        let mut inner = self.lock();
        let added = inner.state.add(path, terms, waiter)?;
        if !std::mem::replace(&mut inner.is_running, true) {
            tokio::spawn(run(self.clone()));
        }
        drop(inner);
        self.wake.notify_one();
        Ok(added)
    }

    pub(super) fn update(&self, key: &Key, value: Compact, waiter: Waiter) -> Result<(), Error> {
        let updated = self.lock().state.update(key, value, waiter);
        self.wake.notify_one();
        updated
    }

    /// Takes a registration down, and answers the waiter when it is gone.
    pub(super) fn remove(&self, key: &Key, waiter: Waiter) {
        self.lock().state.remove(key, Leaving::Awaited(waiter));
        self.wake.notify_one();
    }

    /// Takes a registration down in the background.
    pub(super) fn remove_later(&self, key: &Key) {
        self.lock().state.remove(key, Leaving::Later(self.peer.background.begin()));
        self.wake.notify_one();
    }

    /// Why there is no answer, for a message.
    pub(super) fn trouble(&self) -> Arc<Status> {
        let waits = || Arc::new(Status::unavailable("the replica waits for zookeeper"));
        self.lock().trouble.clone().unwrap_or_else(waits)
    }

    fn state(&self) -> StateGuard<'_> {
        StateGuard(self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// The time until which the registrations of a stream certainly stay without the stream.
    fn sure_until(&self, stream: &Stream) -> Option<Instant> {
        self.ttl.map(|ttl| stream.certain_at + ttl)
    }

    /// Whether there is nothing left to do; the task then ends.
    fn is_over(&self) -> bool {
        let mut inner = self.lock();
        inner.is_running = !inner.state.is_empty();
        !inner.is_running
    }
}

struct StateGuard<'a>(MutexGuard<'a, Inner>);

impl std::ops::Deref for StateGuard<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0.state
    }
}

impl std::ops::DerefMut for StateGuard<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.0.state
    }
}

/// Keeps a stream going for as long as there is a registration.
async fn run(session: Arc<Session>) {
    // The time until which the registrations certainly stay.
    let mut sure_until = None;
    while !session.is_over() {
        let Some(stream) = connect(&session, None, sure_until).await else { continue };
        session.state().begin();
        sure_until = Holding::new(&session, stream, sure_until).run().await;
        if sure_until.is_none() {
            session.state().doubt();
        }
    }
}

/// Opens a stream at a replica other than `but`, if there is another. `None`: the attempt failed.
async fn connect(session: &Session, but: Option<usize>, sure_until: Option<Instant>) -> Option<Stream> {
    let Peer { replicas, name, .. } = &session.peer;
    let longest = session.ttl.map_or(FOREVER, |ttl| ttl / 6);
    let opening = async { Stream::open(replicas.pick_but(but, longest).await, name, session.ttl).await };
    let opened = {
        let mut opening = pin!(opening);
        let mut doubt_at = sure_until;
        loop {
            tokio::select! {
                opened = &mut opening => break opened,
                () = until(doubt_at) => {
                    session.state().doubt();
                    doubt_at = None;
                }
            }
        }
    };
    match opened {
        Ok(stream) => {
            replicas.succeeded(&stream.replica);
            session.lock().trouble = None;
            Some(stream)
        }
        Err((replica, failure)) => {
            replicas.failed(&replica, &failure);
            if let Failure::Refused(refusal) = &failure
                && *refusal.reason() != Reason::ReadOnly
                && !Error::Refused(refusal.clone()).is_retryable()
            {
                session.state().refuse(refusal);
            }
            session.lock().trouble = Some(failure.into_status());
            None
        }
    }
}

/// The next stream, while it is being opened.
struct Opening<'a> {
    opened: Pin<Box<dyn Future<Output = Option<Stream>> + Send + 'a>>,
    /// The present stream is about to end, so another one is needed.
    is_needed: bool,
}

impl<'a> Opening<'a> {
    /// Opens one at a replica other than the present one, if there is another.
    fn needed(session: &'a Session, stream: &Stream) -> Self {
        let opened = Box::pin(connect(session, Some(stream.replica.index()), None));
        Self { opened, is_needed: true }
    }

    /// Opens one at another replica, if one has ZooKeeper.
    fn if_better(session: &'a Session, stream: &Stream) -> Self {
        let than = stream.replica.index();
        let opened = Box::pin(async move {
            match session.peer.replicas.found_better(than).await {
                true => connect(session, Some(than), None).await,
                false => None,
            }
        });
        Self { opened, is_needed: false }
    }

    async fn ended(opening: &mut Option<Self>) -> Option<Stream> {
        match opening {
            Some(opening) => opening.opened.as_mut().await,
            None => pending().await,
        }
    }
}

/// The previous stream, kept until the present one has taken everything over from it.
struct Left {
    stream: Stream,
    /// Whether every registration is held on it.
    has_all: bool,
    /// Whether its replica would go on: the stream was left for a replica that has ZooKeeper.
    is_open: bool,
}

impl Left {
    /// Keeps the stream alive until its end. Of its events only the draining of its replica still counts.
    async fn ended(left: &mut Option<Self>) {
        let Some(left) = left else { return pending().await };
        while let Ok(event) = left.stream.next(false).await {
            left.is_open &= !matches!(event, Event::Draining);
        }
    }

    /// Whether it is better to go back. The replica that has ZooKeeper has no room, so the request would end, or wait
    /// there for room, when it could as well wait for ZooKeeper on the previous stream.
    fn is_missed(left: Option<&Self>, response: &Response) -> bool {
        // A quota is set in ZooKeeper, and is the same at every replica.
        let is_full = |rejected: &v1::Rejected| {
            rejected.code == i32::from(Code::ResourceExhausted) && rejected.reason != Reason::Quota.as_str()
        };
        left.is_some_and(|left| left.is_open) && matches!(response, Response::Rejected(rejected) if is_full(rejected))
    }
}

/// The registrations of a session on a stream.
struct Holding<'a> {
    session: &'a Session,
    stream: Stream,
    /// The previous stream.
    left: Option<Left>,
    /// Whether every registration is held on the present stream.
    has_all: bool,
    opening: Option<Opening<'a>>,
    unease: Unease,
    /// The time until which the registrations certainly stay; until the stream has taken everything over, that is the time as
    /// it was before.
    sure_until: Option<Instant>,
}

impl<'a> Holding<'a> {
    fn new(session: &'a Session, stream: Stream, sure_until: Option<Instant>) -> Self {
        let unease = Unease::new(session.peer.replicas.spread());
        Self { session, stream, left: None, has_all: false, opening: None, unease, sure_until }
    }

    /// Keeps the registrations on a stream. Moves them to the next stream when the replica is about to stop, or when it has
    /// lost ZooKeeper and another replica has it. Ends when that fails or when no registration is left. Returns the time
    /// until which the registrations certainly stay.
    async fn run(mut self) -> Option<Instant> {
        let session = self.session;
        let mut try_again_at = Instant::now() + TRY_AGAIN;
        loop {
            self.stream.send_all(|| session.state().next_request());
            if session.state().is_empty() {
                return None;
            }
            self.look();
            let has_requests = session.state().has_requests();
            tokio::select! {
                event = self.stream.next(has_requests) => match event {
                    Ok(event) => self.take(event),
                    Err(failure) => if !self.is_saved(failure) {
                        return if self.has_all { session.sure_until(&self.stream) } else { self.sure_until };
                    },
                },
                opened = Opening::ended(&mut self.opening) => self.opened(opened),
                () = until(self.unease.look_at()), if self.opening.is_none() => {
                    self.unease.looks(Instant::now());
                    self.opening = Some(Opening::if_better(session, &self.stream));
                }
                () = Left::ended(&mut self.left) => {
                    if let Some(ended) = self.left.take().filter(|left| left.has_all) {
                        self.sure_until = session.sure_until(&ended.stream);
                    }
                }
                // Registrations that the stream has not taken over by then are in doubt, unless the previous stream keeps
                // them.
                () = until(self.sure_until), if !(self.has_all || self.left.as_ref().is_some_and(|left| left.has_all)) => {
                    session.state().doubt_the_rest();
                    self.sure_until = None;
                }
                () = session.wake.notified() => {}
                () = sleep_until(try_again_at) => {
                    session.state().try_again();
                    try_again_at = Instant::now() + TRY_AGAIN;
                }
            }
        }
    }

    /// Looks at how far the present stream has taken over, and whether its replica has ZooKeeper.
    fn look(&mut self) {
        let session = self.session;
        if session.state().is_settled() {
            // Registrations for which there was no room are still held on the previous stream.
            self.left = self.left.take().filter(|_| session.state().lacks_room());
            self.has_all = true;
            self.unease.set(false, Instant::now());
        } else if session.state().is_without_zookeeper() {
            self.unease.set(true, Instant::now());
        }
    }

    fn take(&mut self, event: Event) {
        let replicas = &self.session.peer.replicas;
        match event {
            Event::Said(response) if Left::is_missed(self.left.as_ref(), &response) => {
                if let Some(back) = self.left.take() {
                    // The registrations that the full replica has taken over stay there for as long.
                    self.left = Some(self.go_back(back));
                    self.unease.returned();
                }
            }
            Event::Said(response) => {
                replicas.seen().note_registration(&response);
                self.session.state().take(response);
            }
            Event::Draining => {
                replicas.drains(&self.stream.replica);
                self.opening = Some(Opening::needed(self.session, &self.stream));
            }
            Event::Ready => {}
        }
    }

    /// The present stream has failed. Goes back to the previous one if that is open. Registrations that have not been taken
    /// over yet are held there, and would go with it.
    fn is_saved(&mut self, failure: Failure) -> bool {
        self.session.peer.replicas.failed(&self.stream.replica, &failure);
        self.session.lock().trouble = Some(failure.into_status());
        let Some(back) = self.left.take().filter(|left| left.is_open) else { return false };
        drop(self.go_back(back));
        self.unease.moved();
        true
    }

    /// The next stream is open, or could not be opened.
    fn opened(&mut self, opened: Option<Stream>) {
        let is_needed = self.opening.take().is_some_and(|opening| opening.is_needed);
        if let Some(new) = opened {
            if self.has_all {
                self.sure_until = self.session.sure_until(&self.stream);
            }
            let stream = std::mem::replace(&mut self.stream, new);
            self.left = Some(Left { stream, has_all: self.has_all, is_open: !is_needed });
            self.has_all = false;
            self.unease.moved();
            self.session.state().begin();
        } else if is_needed {
            self.opening = Some(Opening::needed(self.session, &self.stream));
        }
    }

    /// Makes the previous stream the present one again, and returns the other.
    fn go_back(&mut self, back: Left) -> Left {
        self.sure_until = self.session.sure_until(&back.stream).filter(|_| back.has_all).or(self.sure_until);
        let stream = std::mem::replace(&mut self.stream, back.stream);
        (self.has_all, self.opening) = (false, None);
        self.session.state().begin();
        Left { stream, has_all: back.has_all, is_open: false }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}
