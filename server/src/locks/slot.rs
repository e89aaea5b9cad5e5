//! Between the task that queues and holds, and the stream that tells its client: one state, never a queue.
//!
//! The task goes on whether or not the client reads, or else a client that does not read would keep everybody behind it
//! waiting. What it has missed is merged: the latest place in the queue, then the lock, then the end.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::id::LockId;
use super::stream::{LockEvent, LostReason};
use crate::clock;
use crate::contact::Contact;
use crate::error::Error;
use crate::mutex::lock;
use crate::types::FencingToken;

/// What the task has to do. The last two are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Go on: a stream stands.
    Go,
    /// Keep a lock with a ttl, which was told as held: its stream ended, and may come back. The client was last heard then.
    Keep(Instant),
    /// Give it up: nobody listens any more.
    Drop,
    /// Give it up: it was released by its id.
    Release,
}

impl Order {
    fn is_final(self) -> bool {
        matches!(self, Self::Drop | Self::Release)
    }
}

/// How things stand, as the task knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    /// A stream came back to a lock with a ttl; whether that is still kept here has to be looked up first.
    Unverified(FencingToken),
    Held(FencingToken),
    Doubt(FencingToken, Instant),
    Over,
}

/// What the client was last told of [`Phase`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Held,
    Suspended,
}

/// What a replica that may be stopped at any moment can answer for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vouched {
    /// That the lock is held may be told until then.
    pub(super) until: Instant,
    /// It may be told for as long as the client was heard within this time.
    pub(super) heard_within: Duration,
    /// How long what was told can be relied on.
    pub(super) horizon: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    position: u32,
    holders: Arc<[String]>,
}

/// The state that the task and the stream share.
#[derive(Debug)]
pub(super) struct Slot {
    id: LockId,
    state: Mutex<State>,
    /// Moves with every change of `state`.
    news: watch::Sender<()>,
    /// Written under `state`'s lock.
    order: watch::Sender<Order>,
}

#[derive(Debug)]
struct State {
    /// The number of the stream that counts; an older one is superseded.
    stream: u64,
    /// How long the lock outlives its stream.
    ttl: Option<Duration>,
    /// Whether any stream was told that the lock is held.
    granted: bool,
    place: Option<Place>,
    place_unread: bool,
    phase: Phase,
    told: Told,
    /// The connection of the stream that counts.
    contact: Option<Contact>,
    vouched: Option<Vouched>,
    lost: Option<LostReason>,
    /// How the task ended, and whether the stream was told.
    end: Option<Result<(), Error>>,
    end_told: bool,
}

impl State {
    /// Whether it may be told now that the lock is held.
    fn may_tell(&self, now: Instant) -> bool {
        self.vouched.is_none_or(|vouched| {
            let is_heard = |contact: &Contact| contact.is_heard(vouched.heard_within, now);
            now <= vouched.until && self.contact.as_ref().is_none_or(is_heard)
        })
    }

    /// How long what is told now can be relied on.
    fn horizon(&self, now: Instant) -> Option<Duration> {
        let horizon = self.vouched?.horizon;
        Some(match self.phase {
            Phase::Doubt(_, until) => horizon.min(until.saturating_duration_since(now)),
            _ => horizon,
        })
    }

    fn doubt(&mut self, until: Instant) {
        if let Phase::Unverified(token) | Phase::Held(token) | Phase::Doubt(token, _) = self.phase {
            self.phase = Phase::Doubt(token, until);
        }
    }
}

impl Slot {
    /// The state of a lock that has no stream yet; [`Acquisition::attach`] makes the first.
    pub(super) fn new(id: LockId, ttl: Option<Duration>) -> Arc<Self> {
        let state = State {
            stream: 0,
            ttl,
            granted: false,
            place: None,
            place_unread: false,
            phase: Phase::Waiting,
            told: Told::Nothing,
            contact: None,
            vouched: None,
            lost: None,
            end: None,
            end_told: false,
        };
        Arc::new(Self { id, state: Mutex::new(state), news: watch::channel(()).0, order: watch::channel(Order::Go).0 })
    }

    pub(super) fn id(&self) -> &LockId {
        &self.id
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let value = change(&mut self.state());
        self.news.send_replace(());
        value
    }

    /// Tells the place in the queue, unless it is known.
    pub(super) fn queued(&self, position: u32, holders: Arc<[String]>) {
        let place = Some(Place { position, holders });
        if self.state().place != place {
            self.change(|state| {
                state.place = place;
                state.place_unread = true;
            });
        }
    }

    /// Whether a place was told, or is about to be.
    pub(super) fn was_queued(&self) -> bool {
        self.state().place.is_some()
    }

    /// The holders that were last told.
    pub(super) fn holders(&self) -> Vec<String> {
        self.state().place.as_ref().map(|place| place.holders.to_vec()).unwrap_or_default()
    }

    /// Tells that the lock is held. `false`: it is not wanted any more, and has to be given back.
    pub(super) fn held(&self, token: FencingToken) -> bool {
        self.change(|state| self.hold(state, token))
    }

    /// The same of a lease that was found to stand while this stream was the one that counts. One that has come since is
    /// told nothing before the lease was looked at again.
    pub(super) fn still_held(&self, stream: u64, token: FencingToken) {
        self.change(|state| {
            if state.stream == stream {
                self.hold(state, token);
            }
        });
    }

    fn hold(&self, state: &mut State, token: FencingToken) -> bool {
        let wanted = state.end.is_none() && !self.order.borrow().is_final();
        if wanted {
            state.phase = Phase::Held(token);
        }
        if wanted && state.place.is_none() {
            // Whoever holds the lock was the first of the queue.
            state.place = Some(Place { position: 1, holders: Arc::default() });
            state.place_unread = true;
        }
        wanted
    }

    /// Tells that the lock is held for certain only until then.
    pub(super) fn suspended(&self, until: Instant) {
        self.change(|state| state.doubt(until));
    }

    /// The same of a lease that was found to stand while this stream was the one that counts.
    pub(super) fn still_suspended(&self, stream: u64, until: Instant) {
        self.change(|state| {
            if state.stream == stream {
                state.doubt(until);
            }
        });
    }

    /// Tells that the lock is lost, and ends the stream.
    pub(super) fn lost(&self, reason: LostReason, error: Error) {
        self.change(|state| {
            state.phase = Phase::Over;
            if state.end.is_none() {
                state.lost = Some(reason);
                state.end = Some(Err(error));
            }
        });
    }

    /// Ends the stream; the first end counts.
    pub(super) fn end(&self, end: Result<(), Error>) {
        self.change(|state| {
            state.phase = Phase::Over;
            state.end.get_or_insert(end);
        });
    }

    /// Ends a stream that still waits, and orders its task to give up; does nothing once the lock is held.
    pub(super) fn end_waiting(&self, error: Error) {
        let waits = self.change(|state| {
            let waits = state.phase == Phase::Waiting;
            if waits {
                state.end.get_or_insert(Err(error));
            }
            waits
        });
        if waits {
            self.give(Order::Drop);
        }
    }

    /// Gives a final order; the first one counts. Whether this was it.
    pub(super) fn give(&self, order: Order) -> bool {
        let _state = self.state();
        self.set_order(order)
    }

    /// With the state's lock held.
    fn set_order(&self, order: Order) -> bool {
        self.order.send_if_modified(|current| {
            let open = !current.is_final();
            if open {
                *current = order;
            }
            open
        })
    }

    /// The state of a lock that is to be picked up: it was told as held before, elsewhere.
    pub(super) fn to_pick_up(id: LockId) -> Arc<Self> {
        let slot = Self::new(id, Some(Duration::ZERO));
        slot.state().granted = true;
        slot
    }

    /// Its ttl, which was not known before.
    pub(super) fn picked_up(&self, ttl: Duration) {
        self.state().ttl = Some(ttl);
    }

    /// A new stream, over this connection, which takes over from the one before; `None` when the lock is over.
    pub(super) fn attach(&self, contact: Option<Contact>) -> Option<u64> {
        self.change(|state| {
            if state.phase == Phase::Over || state.end.is_some() || self.order.borrow().is_final() {
                return None;
            }
            if let (Phase::Held(token) | Phase::Doubt(token, _), Some(_)) = (state.phase, state.ttl) {
                state.phase = Phase::Unverified(token);
            }
            state.stream += 1;
            state.contact = contact;
            self.order.send_replace(Order::Go);
            state.told = Told::Nothing;
            state.place_unread = state.place.is_some();
            Some(state.stream)
        })
    }

    /// A stream has ended.
    pub(super) fn detach(&self, stream: u64) {
        let state = self.state();
        if state.stream == stream {
            let keep = state.granted && state.ttl.is_some();
            let now = clock::now();
            let heard = state.contact.as_ref().map_or(now, |contact| contact.last_heard(now));
            self.set_order(if keep { Order::Keep(heard) } else { Order::Drop });
        }
    }

    /// The connection of the stream that counts.
    pub(super) fn contact(&self) -> Option<Contact> {
        self.state().contact.clone()
    }

    /// From now on this is what can be answered for.
    pub(super) fn vouch(&self, vouched: Vouched) {
        self.state().vouched = Some(vouched);
    }

    /// Whether nothing may be said on the stream now because it would be taken for a sign that the lock is held.
    pub(super) fn is_held_back(&self, stream: u64, now: Instant) -> bool {
        let state = self.state();
        state.stream == stream && matches!(state.phase, Phase::Held(_)) && !state.may_tell(now)
    }

    /// Changes when there may be something new to tell.
    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// What to do, to read or to wait on.
    pub(super) fn orders(&self) -> watch::Receiver<Order> {
        self.order.subscribe()
    }

    /// Whether an end was told.
    pub(super) fn is_over(&self) -> bool {
        self.state().phase == Phase::Over
    }

    /// Whether the task ended in a way, or failed, that may leave a lease with a ttl behind.
    pub(super) fn may_leave_a_lease(&self) -> bool {
        matches!(self.state().end, None | Some(Err(Error::BackendUnavailable)))
    }

    /// Whether this stream still counts, and has not been told how its lock stands because that was not found out.
    pub(super) fn is_unverified(&self, stream: u64) -> bool {
        let state = self.state();
        state.stream == stream && matches!(state.phase, Phase::Unverified(_))
    }

    /// Whether anybody wants the lock, or its place, still.
    pub(super) fn is_wanted(&self) -> bool {
        !self.order.borrow().is_final()
    }

    /// Waits for a final order.
    pub(super) async fn ordered(&self) -> Order {
        let mut orders = self.order.subscribe();
        let order = orders.wait_for(|order| order.is_final()).await.map(|order| *order);
        // The sender is ours: there is no error.
        order.unwrap_or(Order::Drop)
    }

    /// The number of the stream that counts.
    pub(super) fn stream(&self) -> u64 {
        self.state().stream
    }

    /// Waits until the task has ended, and says how.
    pub(super) async fn ended(&self) -> Result<(), Error> {
        let mut news = self.news.subscribe();
        loop {
            let (phase, end) = {
                let state = self.state();
                (state.phase, state.end.clone())
            };
            if phase == Phase::Over {
                return end.unwrap_or(Ok(()));
            }
            if news.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    /// What to tell next. `None`: nothing now. `Some(None)`: nothing any more.
    pub(super) fn take(&self, stream: u64, now: Instant) -> Option<Option<Result<LockEvent, Error>>> {
        let mut state = self.state();
        if state.stream != stream {
            return Some(Some(Err(Error::Superseded { path: self.id.path().clone() })));
        }
        if state.place_unread
            && let Some(place) = state.place.clone()
        {
            state.place_unread = false;
            let lock_id = self.id.text();
            return Some(Some(Ok(LockEvent::Queued {
                lock_id,
                position: place.position,
                holders: place.holders.to_vec(),
            })));
        }
        match (state.phase, state.told) {
            // It is judged anew, or its client asked.
            (Phase::Held(_), _) if !state.may_tell(now) => {}
            (Phase::Held(token), Told::Nothing | Told::Suspended) | (Phase::Doubt(token, _), Told::Nothing) => {
                state.told = Told::Held;
                state.granted = true;
                let (ttl, horizon) = (state.ttl, state.horizon(now));
                let (lock_id, in_doubt) = (self.id.text(), matches!(state.phase, Phase::Doubt(..)));
                return Some(Some(Ok(LockEvent::Held { lock_id, fencing_token: token, ttl, horizon, in_doubt })));
            }
            (Phase::Doubt(_, until), Told::Held) => {
                state.told = Told::Suspended;
                return Some(Some(Ok(LockEvent::Suspended { remaining: until.saturating_duration_since(now) })));
            }
            (Phase::Held(_), Told::Held)
            | (Phase::Doubt(..), Told::Suspended)
            | (Phase::Waiting | Phase::Unverified(_) | Phase::Over, _) => {}
        }
        if let Some(reason) = state.lost.take() {
            return Some(Some(Ok(LockEvent::Lost { reason })));
        }
        match state.end.clone()? {
            Err(error) if !state.end_told => {
                state.end_told = true;
                Some(Some(Err(error)))
            }
            _ => Some(None),
        }
    }
}
