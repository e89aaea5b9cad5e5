//! Between the task that queues and holds, and the stream that tells its client: one state, never a queue.
//!
//! The task goes on whether or not the client reads, or else a client that does not read would keep everybody behind it
//! waiting. What it has missed is merged: the latest place in the queue, then the lock, then the end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::id::LockId;
use crate::error::Error;
use crate::types::FencingToken;

/// What a lock's stream tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LockEvent {
    /// The place in the queue; always before `Held`, and again when it has changed, merged and about a second late.
    Queued {
        /// What to release the lock by.
        lock_id: String,
        /// Counted from 1.
        position: u32,
        /// The names of those who hold the lock, the earliest grant first; of very many, the first hundred.
        holders: Vec<String>,
    },
    /// The lock is held, or still held after a `Suspended`.
    Held {
        /// The same as in `Queued`.
        lock_id: String,
        /// The transaction of the grant.
        fencing_token: FencingToken,
        /// How long the lock outlives its stream.
        ttl: Option<Duration>,
    },
    /// The lock is held, but there is no fresh evidence of it.
    Suspended {
        /// For how long it is certain still.
        remaining: Duration,
    },
    /// The lock is no longer held; an error follows.
    Lost {
        /// Why.
        reason: LostReason,
    },
}

/// Why a lock is no longer held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LostReason {
    /// The ZooKeeper session that carried it is over, or may be.
    SessionLost,
    /// Somebody deleted it in ZooKeeper.
    Removed,
}

/// What the task has to do, other than to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Nobody listens any more.
    Dropped,
    /// It was released by its id.
    Release,
}

/// How things stand, as the task knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
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
    /// Set once.
    order: watch::Sender<Option<Order>>,
}

#[derive(Debug)]
struct State {
    place: Option<Place>,
    place_unread: bool,
    phase: Phase,
    told: Told,
    lost: Option<LostReason>,
    end: Option<Result<(), Error>>,
}

impl Slot {
    pub(super) fn new(id: LockId) -> Arc<Self> {
        let state = State {
            place: None,
            place_unread: false,
            phase: Phase::Waiting,
            told: Told::Nothing,
            lost: None,
            end: None,
        };
        Arc::new(Self { id, state: Mutex::new(state), news: watch::channel(()).0, order: watch::channel(None).0 })
    }

    pub(super) fn id(&self) -> &LockId {
        &self.id
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.change(|state| {
            let wanted = state.end.is_none() && self.order.borrow().is_none();
            if wanted {
                state.phase = Phase::Held(token);
            }
            wanted
        })
    }

    /// Tells that the lock is held for certain only until then.
    pub(super) fn suspended(&self, until: Instant) {
        self.change(|state| {
            if let Phase::Held(token) | Phase::Doubt(token, _) = state.phase {
                state.phase = Phase::Doubt(token, until);
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
            self.give(Order::Dropped);
        }
    }

    /// Gives an order; the first one counts. Whether this was it.
    pub(super) fn give(&self, order: Order) -> bool {
        self.order.send_if_modified(|current| current.is_none() && current.replace(order).is_none())
    }

    /// Whether an end was told.
    pub(super) fn is_over(&self) -> bool {
        self.state().phase == Phase::Over
    }

    /// Waits for an order.
    pub(super) async fn ordered(&self) -> Order {
        let mut orders = self.order.subscribe();
        match orders.wait_for(Option::is_some).await.map(|order| *order) {
            Ok(Some(order)) => order,
            // Can't be: the sender is ours.
            _ => std::future::pending().await,
        }
    }

    /// Waits until the task has ended.
    pub(super) async fn ended(&self) {
        let mut news = self.news.subscribe();
        while self.state().phase != Phase::Over {
            if news.changed().await.is_err() {
                return;
            }
        }
    }

    /// What to tell next. `None`: nothing now. `Some(None)`: nothing any more.
    fn take(&self, now: Instant) -> Option<Option<Result<LockEvent, Error>>> {
        let mut state = self.state();
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
            (Phase::Held(token), Told::Nothing | Told::Suspended) | (Phase::Doubt(token, _), Told::Nothing) => {
                state.told = Told::Held;
                let lock_id = self.id.text();
                return Some(Some(Ok(LockEvent::Held { lock_id, fencing_token: token, ttl: None })));
            }
            (Phase::Doubt(_, until), Told::Held) => {
                state.told = Told::Suspended;
                return Some(Some(Ok(LockEvent::Suspended { remaining: until.saturating_duration_since(now) })));
            }
            (Phase::Held(_), Told::Held) | (Phase::Doubt(..), Told::Suspended) | (Phase::Waiting | Phase::Over, _) => {}
        }
        if let Some(reason) = state.lost.take() {
            return Some(Some(Ok(LockEvent::Lost { reason })));
        }
        match state.end.clone()? {
            Ok(()) => Some(None),
            Err(error) => {
                state.end = Some(Ok(()));
                Some(Some(Err(error)))
            }
        }
    }
}

/// A lock's stream. Its drop is the end of the call: the place in the queue, or the lock, is given back in the
/// background.
#[derive(Debug)]
pub(crate) struct Acquisition {
    slot: Arc<Slot>,
    news: watch::Receiver<()>,
}

impl Acquisition {
    pub(super) fn new(slot: Arc<Slot>) -> Self {
        Self { news: slot.news.subscribe(), slot }
    }

    /// The next thing to tell. An error is the last item; `None` is the end, and without an error before it says that
    /// the lock was released elsewhere.
    ///
    /// # Cancellation
    /// Safe: nothing is taken before the future is ready. What it gives counts as told.
    pub(crate) async fn next(&mut self) -> Option<Result<LockEvent, Error>> {
        loop {
            self.news.mark_unchanged();
            if let Some(item) = self.slot.take(Instant::now()) {
                return item;
            }
            if self.news.changed().await.is_err() {
                return None;
            }
        }
    }
}

impl Drop for Acquisition {
    fn drop(&mut self) {
        self.slot.give(Order::Dropped);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::types::NodePath;

    fn stream() -> (Arc<Slot>, Acquisition) {
        let slot = Slot::new(LockId::fresh(&NodePath::trusted("/a")));
        let acquisition = Acquisition::new(slot.clone());
        (slot, acquisition)
    }

    fn lost() -> Error {
        Error::LockLost { path: NodePath::trusted("/a"), cause: "test" }
    }

    fn all(acquisition: &mut Acquisition) -> Vec<&'static str> {
        let mut seen = Vec::new();
        while let Some(item) = acquisition.next().now_or_never() {
            seen.push(match item {
                Some(Ok(LockEvent::Queued { .. })) => "queued",
                Some(Ok(LockEvent::Held { .. })) => "held",
                Some(Ok(LockEvent::Suspended { .. })) => "suspended",
                Some(Ok(LockEvent::Lost { .. })) => "lost",
                Some(Err(_)) => "error",
                None => "end",
            });
            if item.is_none() {
                break;
            }
        }
        seen
    }

    #[tokio::test]
    async fn queued_comes_before_held_and_only_the_latest_place_is_told() {
        let (slot, mut acquisition) = stream();
        slot.queued(2, Arc::default());
        slot.queued(1, Arc::default());
        assert!(slot.held(FencingToken(7)));
        let Some(Ok(LockEvent::Queued { position, .. })) = acquisition.next().await else { panic!("no place") };
        assert_eq!(position, 1);
        assert_eq!(all(&mut acquisition), ["held"]);
        slot.queued(1, Arc::default());
        assert!(all(&mut acquisition).is_empty());
    }

    #[tokio::test]
    async fn a_doubt_that_passed_unread_is_not_told_and_held_always_precedes_one() {
        let (slot, mut acquisition) = stream();
        assert!(slot.held(FencingToken(7)));
        slot.suspended(Instant::now() + Duration::from_secs(1));
        assert_eq!(all(&mut acquisition), ["held", "suspended"]);
        assert!(slot.held(FencingToken(7)));
        slot.suspended(Instant::now());
        assert!(slot.held(FencingToken(7)));
        assert_eq!(all(&mut acquisition), ["held"]);
        slot.suspended(Instant::now());
        assert!(slot.held(FencingToken(7)));
        assert!(all(&mut acquisition).is_empty());
    }

    #[tokio::test]
    async fn a_lock_that_was_lost_unread_is_never_told_as_held() {
        let (slot, mut acquisition) = stream();
        assert!(slot.held(FencingToken(7)));
        slot.lost(LostReason::SessionLost, lost());
        slot.end(Ok(()));
        assert_eq!(all(&mut acquisition), ["lost", "error", "end"]);
        assert_eq!(all(&mut acquisition), ["end"]);
    }

    #[tokio::test]
    async fn a_grant_after_the_end_of_the_call_is_not_wanted() {
        let (slot, acquisition) = stream();
        drop(acquisition);
        assert!(!slot.held(FencingToken(7)));
        assert_eq!(slot.ordered().await, Order::Dropped);
        slot.give(Order::Release);
        assert_eq!(slot.ordered().await, Order::Dropped);
    }

    #[tokio::test]
    async fn waiting_that_is_over_ends_only_what_still_waits() {
        let (slot, mut acquisition) = stream();
        assert!(slot.held(FencingToken(7)));
        slot.end_waiting(lost());
        assert_eq!(all(&mut acquisition), ["held"]);
        let (slot, mut acquisition) = stream();
        slot.end_waiting(lost());
        assert!(!slot.held(FencingToken(7)));
        assert_eq!(all(&mut acquisition), ["error", "end"]);
        assert_eq!(slot.ordered().await, Order::Dropped);
    }
}
