//! One view: its task writes it, and all its readers share it.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::apart::apart;
use super::consistent_read::{Arrived, Cut};
use super::node::NodeRead;
use super::notifier::{ChangeListener, ConnectionKey, Notifier};
use super::purse::Purse;
use super::ring::{Delta, Limits, Ring};
use super::scope::Scope;
use super::state::{Difference, State};
use crate::budget::Account;
use crate::error::Error;
use crate::mutex::lock;
use crate::types::{Revision, Zxid};
use crate::zk::Mailbox;

/// The state of the replica's connection to ZooKeeper, as far as one view is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum BackendState {
    /// ZooKeeper can be reached, and the view is up to date.
    Connected,
    /// The connection is lost, and the view may be out of date.
    Suspended,
    /// The session has ended; the view goes on in a new one.
    Lost,
}

/// The shared part of a view.
#[derive(Debug)]
pub(super) struct View {
    pub(super) scope: Scope,
    /// Where the events of the path arrive.
    pub(super) mailbox: Arc<Mailbox>,
    known: Mutex<Known>,
    /// The memory that the view holds. Locked after the table of views; no other lock is taken while it is held.
    purse: Mutex<Purse>,
    /// Notified when watchers may have something to send.
    news: Arc<Notifier>,
    /// Notified when a load, a barrier or a refusal is done.
    progress: Arc<Notifier>,
    /// Tells the task that a barrier was asked for.
    asked: Notify,
    /// Tells the task that another connection uses the view.
    joined: Notify,
    /// Tells the task to end.
    stop: Notify,
}

/// The known part of a view.
#[derive(Debug)]
pub(super) struct Known {
    /// `None` until the view is loaded for the first time.
    pub(super) state: Option<Arc<State>>,
    pub(super) ring: Ring,
    /// Number of times that ZooKeeper fell back: revisions of different eras can't be compared.
    pub(super) era: u64,
    /// The last transaction that was known before ZooKeeper last fell back. A revision up to it may belong to either
    /// past.
    pub(super) fell_from: Option<Zxid>,
    /// Why nothing can be shown, as of the last attempt.
    pub(super) refusal: Option<Refusal>,
    pub(super) backend: BackendState,
    /// When the state was last known to be right; set while not connected.
    pub(super) as_of: Option<SystemTime>,
    /// Number of times that the session has ended.
    pub(super) losses: u64,
    /// The value of `as_of` when the session last ended; never cleared.
    pub(super) lost_as_of: Option<SystemTime>,
    /// ZooKeeper's last transaction when the state was read.
    pub(super) zxid: Zxid,
    /// The state is known to be as new as this transaction: it was read then, or nothing had changed since.
    reached: Zxid,
    /// The events that the state includes. No later event has changed it.
    arrived: Arrived,
    barriers: Barriers,
}

/// Why a path can't be shown.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    /// The error that a reader gets: [`Error::NoAuth`] when ZooKeeper's access control list hides the path, or
    /// [`Error::LimitExceeded`] when it is too large.
    pub(super) error: Error,
    /// Until then readers get the error without another attempt; `None`: each reader causes another attempt.
    pub(super) until: Option<Instant>,
}

impl Refusal {
    /// Whether the view itself is not too large, but its users, or the replica, have too little room.
    fn is_want_of_room(&self, too_large: &Error) -> bool {
        self.until.is_some() && self.error.reason() == too_large.reason() && self.error != *too_large
    }
}

/// The transaction, events and barrier that a state was read behind.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadPoint {
    /// ZooKeeper's last transaction.
    pub(super) zxid: Zxid,
    /// The events that it includes.
    pub(super) arrived: Arrived,
    /// The latest barrier.
    pub(super) barrier: u64,
}

/// The next state and what leads to it, made before the lock is taken.
struct NextState {
    state: Arc<State>,
    difference: Difference,
    prepared: Option<Arc<Delta>>,
}

impl NextState {
    fn new((state, difference): (State, Difference)) -> Self {
        let prepared = difference.edits.prepared(state.revision);
        Self { state: Arc::new(state), difference, prepared }
    }
}

/// Barriers are numbers. All callers that ask share the barrier that has not begun yet: however many ask, at most one
/// is under way and one waits.
#[derive(Debug, Default)]
struct Barriers {
    asked: u64,
    begun: u64,
    done: u64,
}

impl View {
    /// A view that is not loaded yet. `purse`: its memory, which grows and shrinks with it.
    pub(super) fn new(scope: Scope, limits: Limits, purse: Purse) -> Self {
        let known = Known {
            state: None,
            ring: Ring::new(limits),
            era: 0,
            fell_from: None,
            refusal: None,
            backend: BackendState::Connected,
            as_of: None,
            losses: 0,
            lost_as_of: None,
            zxid: Zxid(0),
            reached: Zxid(0),
            arrived: Arrived::default(),
            barriers: Barriers::default(),
        };
        Self {
            scope,
            mailbox: Arc::default(),
            known: Mutex::new(known),
            purse: Mutex::new(purse),
            news: Arc::default(),
            progress: Arc::default(),
            asked: Notify::new(),
            joined: Notify::new(),
            stop: Notify::new(),
        }
    }

    /// The known part, locked. Hold the lock only for as long as it takes to look, and never across an await.
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    pub(super) fn news(&self, connection_key: ConnectionKey) -> ChangeListener {
        self.news.listen(connection_key)
    }

    pub(super) fn progress(&self) -> ChangeListener {
        self.progress.listen(ConnectionKey::default())
    }

    /// Asks for a barrier: a state that is shown once the barrier is done was read after this call began.
    pub(super) fn ask(&self) -> u64 {
        let mut known = self.known();
        known.barriers.asked = known.barriers.begun + 1;
        let barrier = known.barriers.asked;
        drop(known);
        self.asked.notify_one();
        barrier
    }

    /// Waits until a barrier may have been asked for.
    pub(super) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Begins the barrier that was asked for and is not done. Callers that ask later get the next one.
    pub(super) fn begin_barrier(&self) -> Option<u64> {
        let barriers = &mut self.known().barriers;
        barriers.begun = barriers.asked;
        (barriers.asked > barriers.done).then_some(barriers.asked)
    }

    /// Whether the path is known not to exist.
    pub(super) fn is_absent(&self) -> bool {
        self.known().state.as_ref().is_none_or(|state| !state.exists())
    }

    /// Whether there is neither a state to show nor a refusal yet.
    pub(super) fn is_unknown(&self) -> bool {
        let known = self.known();
        known.state.is_none() && known.refusal.is_none()
    }

    /// Takes memory for a state of this many bytes that is read as a whole, in addition to the state that is shown.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when the view is too large; when no connection that uses it has room; or, for a view
    /// that is not loaded yet, when the replica has none.
    pub(super) fn hold_for_load(&self, bytes: usize) -> Result<(), Error> {
        let shown = self.known().state.as_ref().map(|state| state.bytes());
        match shown {
            Some(shown) => self.purse().grow(bytes, shown),
            None => self.purse().load(bytes),
        }
    }

    /// Takes memory for the next state, and for what the ring keeps beyond its bounds.
    fn hold(&self, bytes: usize, ring: usize) -> Result<(), Error> {
        self.purse().grow(bytes, ring)
    }

    /// Gives back the memory that is held beyond what the present state needs.
    fn settle_memory(&self) {
        let known = self.known();
        let (bytes, ring) = (known.state.as_ref().map_or(0, |state| state.bytes()), known.ring.excess(0));
        drop(known);
        // Shrinking is never refused.
        let _ = self.hold(bytes, ring);
    }

    /// Gives all memory back: the view is dropped, and its task ends soon.
    pub(super) fn give_back(&self) {
        // Shrinking is never refused.
        let _ = self.hold(0, 0);
    }

    /// A connection begins to use the view.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when no other connection uses it, and this one has no room for it.
    pub(super) fn join(&self, user: &Account) -> Result<(), Error> {
        self.purse().join(user)?;
        self.joined.notify_one();
        self.look_again();
        Ok(())
    }

    /// A connection stops using the view.
    pub(super) fn leave(&self, user: &Account) {
        self.purse().leave(user);
    }

    /// Waits until another connection may have begun to use the view.
    pub(super) async fn joined(&self) {
        self.joined.notified().await;
    }

    /// The numbers of the connections that use the view, at most `most` of them.
    pub(super) fn users(&self, most: usize) -> Vec<u64> {
        self.purse().users().take(most).collect()
    }

    /// If the view was refused for want of room, makes the next reader cause another attempt: a new user may have room.
    fn look_again(&self) {
        let too_large = self.purse().too_large();
        if let Some(refusal) = self.known().refusal.as_mut().filter(|refusal| refusal.is_want_of_room(&too_large)) {
            refusal.until = Some(Instant::now());
        }
    }

    fn purse(&self) -> MutexGuard<'_, Purse> {
        lock(&self.purse)
    }

    /// Whether the present state is up to date.
    pub(super) fn is_connected(&self) -> bool {
        self.known().backend == BackendState::Connected
    }

    /// Whether the present state was read later than at this transaction, if the transaction is known.
    pub(super) fn is_ahead_of(&self, zxid: Zxid) -> bool {
        zxid.0 > 0 && self.known().latest() > zxid
    }

    /// Whether a barrier was asked for and is not done.
    pub(super) fn owes_barrier(&self) -> bool {
        let barriers = &self.known().barriers;
        barriers.asked > barriers.done
    }

    /// Shows the next cut. Returns false if the cut can't be right: it is not shown then, and everything has to
    /// be read again.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when the view grows beyond what it may hold.
    pub(super) async fn show(&self, cut: Cut) -> Result<bool, Error> {
        let Cut { node, reads, zxid, arrived, barrier } = cut;
        let read_point = ReadPoint { zxid, arrived, barrier };
        let Some(before) = self.known().state.clone() else { return Ok(false) };
        let gone = if matches!(node, NodeRead::Absent(_)) { before.children.len() } else { 0 };
        let steps = reads.len() + gone;
        let make = move || {
            if !before.would_agree(&node, &reads) {
                return None;
            }
            if reads.is_empty() && before.is_as_read(&node) {
                return Some(None);
            }
            let mut next = State::clone(&before);
            let difference = next.apply(node, reads, zxid);
            Some(Some(NextState::new((next, difference))))
        };
        match apart(steps, make).await {
            None => return Ok(false),
            // Nothing is new, as after most barriers, so the parts that were made of the state are kept.
            Some(None) => {
                let is_news = self.known().settle(read_point);
                self.tell(is_news).await;
            }
            Some(Some(next)) => {
                let ring = self.known().ring.excess(next.difference.edits.cost());
                self.hold(next.state.bytes(), ring)?;
                let is_news = self.move_on(next, read_point);
                self.settle_memory();
                self.tell(is_news).await;
            }
        }
        Ok(true)
    }

    /// Shows a state that was read as a whole.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when it is larger than the view may hold.
    pub(super) async fn show_whole(&self, mut next: State, read_point: ReadPoint) -> Result<(), Error> {
        let zxid = read_point.zxid;
        self.hold_for_load(next.bytes())?;
        loop {
            let (before, latest) = {
                let known = self.known();
                (known.state.clone(), known.latest())
            };
            if let Some(before) = before.clone().filter(|_| zxid.0 <= 0 || zxid >= latest) {
                let nodes = before.children.len() + next.children.len();
                let next = apart(nodes, move || NextState::new(before.moved_to(next, zxid))).await;
                let is_news = self.move_on(next, read_point);
                self.settle_memory();
                self.tell(is_news).await;
                return Ok(());
            }
            match self.begin_anew(before.as_ref(), next, read_point) {
                None => {
                    self.settle_memory();
                    self.tell(true).await;
                    return Ok(());
                }
                // A state that was kept on disk has been shown meanwhile.
                Some(again) => next = again,
            }
        }
    }

    /// Shows a state that no changes lead to from `before`. Returns it unshown if `before` is not the present state any
    /// more.
    fn begin_anew(&self, before: Option<&Arc<State>>, next: State, read_point: ReadPoint) -> Option<State> {
        let mut known = self.known();
        let known = &mut *known;
        match (&known.state, before) {
            (None, None) => {}
            (Some(state), Some(before)) if Arc::ptr_eq(state, before) => {
                state.retire();
                let (before, after, latest) = (state.revision.0, next.revision.0, known.latest());
                tracing::warn!(path = %self.scope.path, before, after, "zookeeper went back in time");
                known.era += 1;
                known.fell_from = known.fell_from.max(Some(latest));
            }
            _ => return Some(next),
        }
        known.settle(read_point);
        known.ring.restart(next.revision);
        known.state = Some(Arc::new(next));
        None
    }

    /// Shows the state that follows the present one; returns whether that is news for watchers.
    fn move_on(&self, next: NextState, read_point: ReadPoint) -> bool {
        let NextState { state, difference, prepared } = next;
        let mut known = self.known();
        let mut is_news = known.settle(read_point);
        let revision = state.revision;
        let before = known.state.replace(state);
        if let Some(before) = &before {
            before.retire();
        }
        let is_later = before.as_ref().is_none_or(|before| revision > before.revision);
        if !difference.edits.is_empty() {
            known.ring.push(revision, difference.edits, prepared);
            is_news = true;
        } else if is_later && difference.is_pure {
            known.ring.extend(revision);
        } else if is_later {
            known.ring.push(revision, difference.edits, None);
        }
        is_news
    }

    /// Shows a state that was kept from before, while ZooKeeper is away. Returns false if something newer is known by
    /// now, or there is no room for it.
    pub(super) async fn restore(&self, state: Arc<State>, as_of: SystemTime) -> bool {
        if self.hold_for_load(state.bytes()).is_err() || !self.take_over(state, as_of) {
            return false;
        }
        self.tell(true).await;
        true
    }

    fn take_over(&self, state: Arc<State>, as_of: SystemTime) -> bool {
        let mut known = self.known();
        if known.state.is_some() || known.refusal.is_some() {
            return false;
        }
        known.ring.restart(state.revision);
        known.state = Some(state);
        known.backend = BackendState::Suspended;
        known.as_of = Some(as_of);
        true
    }

    /// ZooKeeper's access control list hides the path.
    pub(super) async fn forbid(&self) {
        self.refuse(Refusal { error: Error::NoAuth { path: self.scope.path.clone() }, until: None }).await;
    }

    /// The path can't be shown. A state that is too large is dropped as well.
    pub(super) async fn refuse(&self, refusal: Refusal) {
        let is_too_large = refusal.until.is_some();
        let dropped = {
            let mut known = self.known();
            if is_too_large {
                // The refusal also answers the readers that have asked meanwhile: there is no other attempt for a
                // while.
                known.barriers.begun = known.barriers.asked;
                known.ring.clear();
            }
            known.barriers.done = known.barriers.begun;
            known.refusal = Some(refusal);
            if is_too_large { known.state.take() } else { None }
        };
        if is_too_large {
            self.give_back();
        }
        if let Some(state) = dropped {
            state.retire();
        }
        self.tell(true).await;
    }

    /// The view's connection or session is gone. Ignored while there is no state: nothing could be out of date.
    pub(super) async fn suspend(&self, backend: BackendState, as_of: Option<SystemTime>) {
        let is_news = self.known().suspend(backend, as_of);
        if is_news {
            self.tell(true).await;
        }
    }

    /// Tells the task to end. No reader may hold the view any more.
    pub(super) fn stop(&self) {
        self.stop.notify_one();
    }

    pub(super) async fn stopped(&self) {
        self.stop.notified().await;
    }

    /// Notes that events up to this number do not change the state, if it includes all events before them.
    pub(super) async fn pass_over(&self, upto: u64) {
        let is_new = {
            let arrived = &mut self.known().arrived;
            std::mem::replace(&mut arrived.upto, upto) != upto
        };
        if is_new {
            self.progress.notify().await;
        }
    }

    async fn tell(&self, is_news: bool) {
        if is_news {
            self.news.notify().await;
        }
        self.progress.notify().await;
    }
}

impl Known {
    /// Notes that the connection or session is gone; returns whether that is news.
    fn suspend(&mut self, backend: BackendState, as_of: Option<SystemTime>) -> bool {
        if self.state.is_none() || self.backend == backend || self.backend == BackendState::Lost {
            return false;
        }
        if self.backend == BackendState::Connected {
            self.as_of = as_of;
        }
        self.backend = backend;
        if backend == BackendState::Lost {
            self.losses += 1;
            self.lost_as_of = self.as_of;
        }
        true
    }

    /// The latest transaction that is known of.
    fn latest(&self) -> Zxid {
        self.state.as_ref().map_or(self.zxid, |state| self.zxid.max(Zxid(state.revision.0)))
    }

    /// Whether ZooKeeper's access control list hides the path.
    pub(super) fn is_hidden(&self) -> bool {
        matches!(&self.refusal, Some(Refusal { error: Error::NoAuth { .. }, .. }))
    }

    /// Whether a revision that a client has seen may belong to a past that ZooKeeper has lost, as far as this replica
    /// knows.
    pub(super) fn may_have_lost(&self, revision: Revision) -> bool {
        self.fell_from.is_some_and(|from| revision.0 <= from.0)
    }

    /// Notes that the state is right; returns whether that is news.
    fn settle(&mut self, ReadPoint { zxid, arrived, barrier }: ReadPoint) -> bool {
        let is_news = self.refusal.is_some() || self.backend != BackendState::Connected;
        self.refusal = None;
        self.backend = BackendState::Connected;
        self.as_of = None;
        (self.zxid, self.reached) = (zxid, zxid);
        self.arrived = arrived;
        self.barriers.done = self.barriers.done.max(barrier);
        is_news
    }

    /// Whether the state includes these events, which are all that this connection has sent up to `zxid`. If so, the
    /// state is as new as `zxid`.
    pub(super) fn includes(&mut self, arrived: Arrived, zxid: Zxid) -> bool {
        let includes = self.arrived.includes(arrived);
        if includes {
            self.reached = self.reached.max(zxid);
        }
        includes
    }

    /// Whether the state is known to be as new as this transaction.
    pub(super) fn has_reached(&self, at_least: Zxid) -> bool {
        self.reached >= at_least
    }

    /// Whether this barrier is done.
    pub(super) fn is_done(&self, barrier: u64) -> bool {
        self.barriers.done >= barrier
    }
}

#[cfg(test)]
impl ReadPoint {
    /// A state that was read before any events.
    pub(super) fn at(zxid: Zxid, barrier: u64) -> Self {
        Self { zxid, arrived: Arrived::default(), barrier }
    }
}

#[cfg(test)]
impl View {
    /// A view without limits.
    pub(super) fn unbounded(scope: Scope, limits: Limits) -> Self {
        Self::new(scope, limits, Purse::new(&Account::unlimited(), Account::unlimited(), usize::MAX))
    }

    /// [`View::show`] for a small cut.
    pub(super) fn show_now(&self, cut: Cut) -> bool {
        use futures_util::FutureExt as _;
        self.show(cut).now_or_never().expect("it is done at once").unwrap()
    }

    /// [`View::suspend`] with few listeners.
    pub(super) fn suspend_now(&self, backend: BackendState, as_of: Option<SystemTime>) {
        use futures_util::FutureExt as _;
        self.suspend(backend, as_of).now_or_never().expect("it is done at once");
    }

    /// [`View::show_whole`] for a small state.
    pub(super) fn show_whole_now(&self, next: State, zxid: Zxid, barrier: u64) {
        use futures_util::FutureExt as _;
        self.show_whole(next, ReadPoint::at(zxid, barrier)).now_or_never().expect("it is done at once").unwrap();
    }
}
