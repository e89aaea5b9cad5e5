//! For each path of a session: the registration that is wanted, the request that was sent, and the answer. Pure.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use rollcall_proto::v1;
use rollcall_proto::v1::register_request::Request;
use rollcall_proto::v1::register_response::Response;
use tokio::sync::{oneshot, watch};
use tonic::Code;

use super::standing::RegistrationState;
use crate::background::UnderWay;
use crate::error::{Error, LostReason, Reason, Refusal};
use crate::value::{Compact, Value};

/// A caller that waits for an answer.
pub(super) type Waiter = oneshot::Sender<Result<(), Error>>;

/// A registration. A path may have several, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) path: Arc<str>,
    id: u64,
}

/// The terms of a registration.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) value: Compact,
    pub(super) exclusive: bool,
}

#[derive(Debug, Default)]
pub(super) struct State {
    entries: HashMap<Arc<str>, Entry>,
    /// The paths for which a request may be due, each once.
    queue: VecDeque<Arc<str>>,
    /// The paths for which a replica had no room. They are sent again later.
    later: Vec<Arc<str>>,
    next_id: u64,
    /// Number of paths with a request that is not answered yet.
    unanswered: usize,
    /// Those of them that wait for ZooKeeper, according to the present stream.
    without_zookeeper: HashSet<Arc<str>>,
}

/// Maximum number of its own late requests that a registration survives. It is larger than the usual number of
/// replicas.
const MOST_LATE: u32 = 8;
/// The version in a request that an earlier registration of the path has sent.
const EARLIER: u32 = u32::MAX;

#[derive(Debug)]
struct Entry {
    id: u64,
    terms: Terms,
    /// The value that was last accepted, while another one is wanted.
    accepted: Option<Compact>,
    wish: Wish,
    /// Version of the wanted value. It rises with each change.
    version: u32,
    /// The request that is not answered yet, on the present stream.
    said: Option<Said>,
    /// The version that was answered, on the present stream.
    answered: Option<u32>,
    /// The generation that was last received.
    generation: Option<i64>,
    /// Whether a replica may know of the registration.
    was_said: bool,
    is_queued: bool,
    /// Number of earlier streams with a request that was not answered. Each of these requests may still be carried out,
    /// once; another replica then takes the path over, for us.
    may_follow: u32,
    states: watch::Sender<RegistrationState>,
    waiters: Vec<Waiter>,
    /// Dropped with the entry, when the registration is gone.
    leaving: Option<UnderWay>,
}

/// How to report that a registration is gone.
#[derive(Debug)]
pub(super) enum Leaving {
    Awaited(Waiter),
    Later(UnderWay),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Hold,
    Leave,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Set(u32),
    Unset,
}

impl State {
    /// Adds a registration. An existing registration of the same path ends: it has been taken over.
    ///
    /// # Errors
    /// The error that a replica would answer, when the request is `exclusive` and this program holds the path.
    pub(super) fn add(
        &mut self,
        path: Arc<str>,
        terms: Terms,
        waiter: Option<Waiter>,
    ) -> Result<(Key, watch::Receiver<RegistrationState>), Error> {
        if terms.exclusive && self.entries.get(&path).is_some_and(|entry| entry.wish == Wish::Hold) {
            let message = format!("{path} is registered by this program");
            let taken = Refusal::in_stream(Code::AlreadyExists.into(), Reason::NameTaken.as_str(), message);
            return Err(Error::Refused(taken));
        }
        let (states, receiver) = watch::channel(RegistrationState::WAITING);
        let id = self.next_id;
        self.next_id += 1;
        let mut entry = Entry {
            id,
            terms,
            accepted: None,
            wish: Wish::Hold,
            version: 0,
            said: None,
            answered: None,
            generation: None,
            was_said: false,
            is_queued: false,
            may_follow: 0,
            states,
            waiters: waiter.into_iter().collect(),
            leaving: None,
        };
        if let Some(before) = self.entries.remove(&path) {
            // A request that is under way is still answered, and answers come in order.
            (entry.said, entry.is_queued) = (before.said.map(|_| Said::Set(EARLIER)), before.is_queued);
            entry.was_said = before.was_said;
            before.tell(match before.wish {
                Wish::Hold => RegistrationState::Lost { reason: LostReason::TakenOver },
                Wish::Leave => RegistrationState::Closed,
            });
        }
        self.entries.insert(path.clone(), entry);
        self.enqueue(&path);
        Ok((Key { path, id }, receiver))
    }

    /// Changes the wanted data.
    pub(super) fn update(&mut self, key: &Key, value: Compact, waiter: Waiter) -> Result<(), Error> {
        let Some(entry) = self.entry(key).filter(|entry| entry.wish == Wish::Hold) else {
            return Err(Error::Lost { path: key.path.to_string(), reason: LostReason::TakenOver });
        };
        let before = std::mem::replace(&mut entry.terms.value, value);
        entry.accepted.get_or_insert(before);
        entry.version += 1;
        entry.answered = None;
        entry.waiters.push(waiter);
        self.enqueue(&key.path);
        Ok(())
    }

    /// Asks for the end of a registration. A dropped waiter means that it is gone already.
    pub(super) fn remove(&mut self, key: &Key, leaving: Leaving) {
        let Some(entry) = self.entry(key) else {
            if let Leaving::Awaited(waiter) = leaving {
                let _ = waiter.send(Ok(()));
            }
            return;
        };
        // A caller that waits for an update waits in vain.
        if entry.wish == Wish::Hold {
            entry.waiters.clear();
        }
        entry.wish = Wish::Leave;
        match leaving {
            Leaving::Awaited(waiter) => entry.waiters.push(waiter),
            Leaving::Later(under_way) => entry.leaving = Some(under_way),
        }
        if !entry.was_said {
            entry.tell(RegistrationState::Closed);
            entry.answer(&Ok(()));
            self.entries.remove(&key.path);
            return;
        }
        self.enqueue(&key.path);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a request may be due.
    pub(super) fn has_requests(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether everything that is wanted has been answered on the present stream.
    pub(super) fn is_settled(&self) -> bool {
        self.queue.is_empty() && self.unanswered == 0
    }

    /// Whether the replica of the present stream had no room for a registration, which another stream alone may hold
    /// then.
    pub(super) fn lacks_room(&self) -> bool {
        !self.later.is_empty()
    }

    /// Whether the replica of the present stream keeps a request waiting because it has no ZooKeeper.
    pub(super) fn is_without_zookeeper(&self) -> bool {
        !self.without_zookeeper.is_empty()
    }

    /// Begins a new stream: everything is sent again on it.
    pub(super) fn begin(&mut self) {
        self.later.clear();
        self.queue.clear();
        self.without_zookeeper.clear();
        self.unanswered = 0;
        for (path, entry) in &mut self.entries {
            let is_open = matches!(entry.said, Some(Said::Set(_)));
            entry.may_follow = MOST_LATE.min(entry.may_follow + u32::from(is_open));
            (entry.said, entry.answered, entry.is_queued) = (None, None, true);
            self.queue.push_back(path.clone());
        }
    }

    /// The next request to send on the present stream.
    pub(super) fn next_request(&mut self) -> Option<v1::RegisterRequest> {
        while let Some(path) = self.queue.pop_front() {
            let Some(entry) = self.entries.get_mut(&path) else { continue };
            entry.is_queued = false;
            if entry.said.is_some() {
                continue;
            }
            // A registration that another replica may still hold is taken from it before it is taken down.
            let is_held_elsewhere = entry.answered.is_none() && entry.generation.is_some();
            let request = match entry.wish {
                Wish::Hold if entry.answered == Some(entry.version) => continue,
                Wish::Leave if !is_held_elsewhere => {
                    entry.said = Some(Said::Unset);
                    Request::Unset(v1::UnsetRegistration { path: path.to_string() })
                }
                Wish::Hold | Wish::Leave => {
                    entry.said = Some(Said::Set(entry.version));
                    Request::Set(v1::SetRegistration {
                        path: path.to_string(),
                        value: entry.terms.value.to_proto(),
                        generation: entry.generation,
                        exclusive: entry.terms.exclusive,
                    })
                }
            };
            entry.was_said = true;
            self.unanswered += 1;
            return Some(v1::RegisterRequest { request: Some(request) });
        }
        None
    }

    /// Sends the requests again for which a replica had no room.
    pub(super) fn try_again(&mut self) {
        for path in std::mem::take(&mut self.later) {
            self.enqueue(&path);
        }
    }

    /// Takes in a response of the present stream.
    pub(super) fn take(&mut self, response: Response) {
        let waits = (!self.without_zookeeper.is_empty()).then(|| path_of(&response).to_owned());
        match response {
            Response::Registered(registered) => self.registered(&registered),
            Response::Unregistered(unregistered) => self.unregistered(&unregistered.path),
            Response::Pending(pending) => self.pending(&pending),
            Response::Overwritten(overwritten) => self.overwritten(overwritten),
            Response::Lost(lost) => self.lost(&lost),
            Response::Rejected(rejected) => self.rejected(rejected),
            Response::Opened(_) | Response::KeptAlive(_) | Response::Draining(_) => {}
        }
        if let Some(path) = waits
            && self.entries.get(path.as_str()).is_none_or(|entry| entry.said.is_none())
        {
            self.without_zookeeper.remove(path.as_str());
        }
    }

    /// It is no longer certain that anything is registered.
    pub(super) fn doubt(&mut self) {
        self.doubt_those(|_| true);
    }

    /// The same for the registrations that were not answered on the present stream.
    pub(super) fn doubt_the_rest(&mut self) {
        self.doubt_those(|entry| entry.answered.is_none());
    }

    fn doubt_those(&self, concerns: impl Fn(&Entry) -> bool) {
        for entry in self.entries.values().filter(|entry| concerns(entry) && entry.states.borrow().is_registered()) {
            entry.tell(RegistrationState::WAITING);
        }
    }

    /// A replica refuses to open a stream. Registrations that were never made end with the refusal; the others are
    /// tried again.
    pub(super) fn refuse(&mut self, refusal: &Refusal) {
        let new = self.entries.iter().filter(|(_, entry)| entry.generation.is_none());
        for path in new.map(|(path, _)| path.clone()).collect::<Vec<_>>() {
            self.end(&path, &Error::Refused(refusal.clone()), refusal.clone().into_lost());
        }
    }

    fn entry(&mut self, key: &Key) -> Option<&mut Entry> {
        self.entries.get_mut(&key.path).filter(|entry| entry.id == key.id)
    }

    fn enqueue(&mut self, path: &Arc<str>) {
        if let Some(entry) = self.entries.get_mut(path)
            && !std::mem::replace(&mut entry.is_queued, true)
        {
            self.queue.push_back(path.clone());
        }
    }

    fn pending(&mut self, pending: &v1::Pending) {
        let Some((path, entry)) = self.entries.get_key_value(pending.path.as_str()) else { return };
        let reason = Reason::from(pending.reason.as_str());
        if reason == Reason::BackendUnavailable && entry.said.is_some() {
            self.without_zookeeper.insert(path.clone());
        }
        entry.tell(RegistrationState::Pending { reason: Some(reason) });
    }

    fn registered(&mut self, registered: &v1::Registered) {
        let Some(entry) = self.entries.get_mut(registered.path.as_str()) else { return };
        entry.generation = Some(registered.generation);
        let (mut is_earlier, mut is_wished) = (false, false);
        if !registered.restored
            && let Some(Said::Set(version)) = entry.said
        {
            (entry.said, entry.answered) = (None, Some(version));
            (is_earlier, is_wished) = (version == EARLIER, version == entry.version);
            self.unanswered -= 1;
        }
        if entry.wish == Wish::Hold && !is_earlier {
            entry.tell(RegistrationState::Registered { generation: registered.generation });
        }
        if is_wished {
            entry.accepted = None;
            if entry.wish == Wish::Hold {
                entry.answer(&Ok(()));
            }
        }
        if entry.wish == Wish::Leave || entry.answered != Some(entry.version) {
            self.enqueue(&registered.path.as_str().into());
        }
    }

    fn unregistered(&mut self, path: &str) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        let said = entry.said.take();
        self.unanswered -= usize::from(said.is_some());
        match (said, entry.wish) {
            (Some(Said::Unset), Wish::Leave) => {
                entry.tell(RegistrationState::Closed);
                entry.answer(&Ok(()));
                self.entries.remove(path);
            }
            // An earlier registration of the path is gone; the present one is still to be sent.
            _ => {
                entry.answered = None;
                self.enqueue(&path.into());
            }
        }
    }

    fn overwritten(&mut self, overwritten: v1::Overwritten) {
        let Some(entry) = self.entries.get(overwritten.path.as_str()) else { return };
        if let (Some(generation), Wish::Hold) = (entry.generation, entry.wish) {
            let value = Value::from_proto(overwritten.value).map(Arc::new);
            entry.tell(RegistrationState::Overwritten { generation, value });
        }
    }

    fn lost(&mut self, lost: &v1::Lost) {
        let path = lost.path.as_str();
        let Some(entry) = self.entries.get_mut(path) else { return };
        let is_older = entry.generation.is_some_and(|generation| lost.generation < generation);
        let reason = match lost.reason() {
            // No other client has it, so it is registered again.
            v1::LostReason::Expired => return self.say_again(path),
            // It concerns an earlier registration of this path, or one that has been made again since.
            _ if is_older => return,
            // The path may have been taken over by ourselves. A replica that is asked once more answers by the node
            // that exists there.
            v1::LostReason::TakenOver if entry.may_follow > 0 => {
                entry.may_follow -= 1;
                return self.say_again(path);
            }
            v1::LostReason::Removed => LostReason::Removed,
            v1::LostReason::Evicted => LostReason::Evicted,
            v1::LostReason::SessionLost => LostReason::SessionLost,
            v1::LostReason::TakenOver | v1::LostReason::Unspecified => LostReason::TakenOver,
        };
        let error = Error::Lost { path: path.to_owned(), reason: reason.clone() };
        self.end(&path.into(), &error, reason);
    }

    /// The answer of the present stream about a path no longer holds.
    fn say_again(&mut self, path: &str) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        self.unanswered -= usize::from(entry.said.take().is_some());
        entry.answered = None;
        entry.tell(RegistrationState::WAITING);
        self.enqueue(&path.into());
    }

    fn rejected(&mut self, rejected: v1::Rejected) {
        let path = rejected.path.as_str();
        let Some(entry) = self.entries.get_mut(path) else { return };
        let refusal = Refusal::in_stream(rejected.code, &rejected.reason, rejected.message);
        let Some(Said::Set(version)) = entry.said else { return };
        entry.said = None;
        self.unanswered -= 1;
        if version != entry.version {
            return self.enqueue(&path.into());
        }
        if entry.wish == Wish::Leave {
            // There is no node of ours; the answer to this request makes it certain.
            (entry.generation, entry.answered) = (None, None);
            return self.enqueue(&path.into());
        }
        if entry.generation.is_some()
            && let Some(accepted) = entry.accepted.take()
        {
            // The node keeps the data that was accepted earlier.
            (entry.terms.value, entry.answered) = (accepted, None);
            entry.answer(&Err(Error::Refused(refusal)));
            return self.enqueue(&path.into());
        }
        if entry.generation.is_some() && matches!(refusal.code(), Code::ResourceExhausted | Code::Unavailable) {
            entry.tell(RegistrationState::Pending { reason: Some(refusal.reason().clone()) });
            return self.later.push(path.into());
        }
        let error = Error::Refused(refusal.clone());
        self.end(&path.into(), &error, refusal.into_lost());
    }

    /// Ends a registration without a request of the program, unless the program has meanwhile asked for its end.
    fn end(&mut self, path: &Arc<str>, error: &Error, reason: LostReason) {
        let Some(mut entry) = self.entries.remove(path) else { return };
        self.unanswered -= usize::from(entry.said.is_some());
        let (answer, state) = match entry.wish {
            Wish::Hold => (Err(error.clone()), RegistrationState::Lost { reason }),
            Wish::Leave => (Ok(()), RegistrationState::Closed),
        };
        entry.tell(state);
        entry.answer(&answer);
    }
}

/// The path that a response is about; empty if it is about none.
fn path_of(response: &Response) -> &str {
    match response {
        Response::Registered(registered) => &registered.path,
        Response::Unregistered(unregistered) => &unregistered.path,
        Response::Pending(pending) => &pending.path,
        Response::Overwritten(overwritten) => &overwritten.path,
        Response::Lost(lost) => &lost.path,
        Response::Rejected(rejected) => &rejected.path,
        Response::Opened(_) | Response::KeptAlive(_) | Response::Draining(_) => "",
    }
}

impl Entry {
    fn tell(&self, state: RegistrationState) {
        self.states.send_if_modified(|before| {
            let is_news = *before != state;
            *before = state;
            is_news
        });
    }

    /// Answers the waiters. Called after the state is published, so that a waiter that has its answer finds the
    /// matching state.
    fn answer(&mut self, answer: &Result<(), Error>) {
        for waiter in self.waiters.drain(..) {
            // There may be no waiter any more.
            let _ = waiter.send(answer.clone());
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
