//! One view, as its task writes it and all its readers share it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::{Notify, watch};

use super::bell::{Bell, Listener, Neighbourhood};
use super::ring::{Limits, Ring};
use super::rounds::Moment;
use super::scope::Scope;
use super::state::{Difference, State};
use crate::types::Zxid;

/// How a replica stands with ZooKeeper, as far as one view is concerned.
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
    known: Mutex<Known>,
    /// Moves when watchers may have something to hear.
    news: Arc<Bell>,
    /// Moves when a load, a barrier or a refusal is done.
    progress: watch::Sender<()>,
    /// Tells the task that a barrier is asked for.
    asked: Notify,
    /// Tells the task to end.
    stop: Notify,
}

/// What is known.
#[derive(Debug)]
pub(super) struct Known {
    /// `None` until it was loaded for the first time.
    pub(super) state: Option<Arc<State>>,
    pub(super) ring: Ring,
    /// Counts how often ZooKeeper fell back: revisions of different eras have nothing to do with each other.
    pub(super) era: u64,
    /// That ZooKeeper's access control list hides the path, when it was last looked at.
    pub(super) is_forbidden: bool,
    pub(super) backend: BackendState,
    /// When the state was last known to be right; set while not connected.
    pub(super) as_of: Option<SystemTime>,
    /// How often the session has ended.
    pub(super) losses: u64,
    /// When the state was last known to be right before that; it stays.
    pub(super) lost_as_of: Option<SystemTime>,
    /// ZooKeeper's last transaction when the state was read.
    pub(super) zxid: Zxid,
    barriers: Barriers,
}

/// Barriers are numbers. Whoever asks shares the one that has not begun yet: there is at most one under way and one that
/// waits, however many ask.
#[derive(Debug, Default)]
struct Barriers {
    asked: u64,
    begun: u64,
    done: u64,
}

impl View {
    pub(super) fn new(scope: Scope, limits: Limits) -> Self {
        let known = Known {
            state: None,
            ring: Ring::new(limits),
            era: 0,
            is_forbidden: false,
            backend: BackendState::Connected,
            as_of: None,
            losses: 0,
            lost_as_of: None,
            zxid: Zxid(0),
            barriers: Barriers::default(),
        };
        Self {
            scope,
            known: Mutex::new(known),
            news: Arc::default(),
            progress: watch::Sender::default(),
            asked: Notify::new(),
            stop: Notify::new(),
        }
    }

    /// What is known now. Held for as long as it takes to look, and never across an await.
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn news(&self, neighbourhood: Neighbourhood) -> Listener {
        self.news.listen(neighbourhood)
    }

    pub(super) fn progress(&self) -> watch::Receiver<()> {
        self.progress.subscribe()
    }

    /// Asks for a barrier: what is shown once it is done was read after this call began.
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

    /// The barrier that is asked for and not done; it has begun now, and who asks later gets the next.
    pub(super) fn begin_barrier(&self) -> Option<u64> {
        let barriers = &mut self.known().barriers;
        barriers.begun = barriers.asked;
        (barriers.asked > barriers.done).then_some(barriers.asked)
    }

    /// Whether the path is known not to exist.
    pub(super) fn is_absent(&self) -> bool {
        self.known().state.as_ref().is_none_or(|state| !state.exists())
    }

    /// Whether nothing can be shown yet, nor refused.
    pub(super) fn is_unknown(&self) -> bool {
        let known = self.known();
        known.state.is_none() && !known.is_forbidden
    }

    /// Whether what is shown is up to date.
    pub(super) fn is_connected(&self) -> bool {
        self.known().backend == BackendState::Connected
    }

    /// Whether what is shown is later than this transaction; if it is known.
    pub(super) fn is_ahead_of(&self, zxid: Zxid) -> bool {
        zxid.0 > 0 && self.known().state.as_ref().is_some_and(|state| state.revision.0 > zxid.0)
    }

    /// Whether a barrier is asked for that is not done.
    pub(super) fn owes_barrier(&self) -> bool {
        let barriers = &self.known().barriers;
        barriers.asked > barriers.done
    }

    /// Shows the next moment, unless it can't be right: then it is left out, and everything has to be read again.
    pub(super) fn show(&self, moment: Moment) -> bool {
        let mut known = self.known();
        let known = &mut *known;
        let Some(state) = &mut known.state else { return false };
        if !state.would_agree(&moment.node, &moment.reads) {
            return false;
        }
        let before = state.revision;
        state.retire();
        let difference = Arc::make_mut(state).apply(moment.node, moment.reads, moment.zxid);
        let revision = state.revision;
        let mut is_news = known.settle(moment.zxid, moment.barrier);
        if !difference.edits.is_empty() {
            known.ring.push(revision, difference.edits);
            is_news = true;
        } else if revision > before {
            known.move_on(&difference);
        }
        self.tell(is_news);
        true
    }

    /// Shows a state that was read as a whole.
    pub(super) fn show_whole(&self, next: State, zxid: Zxid, barrier: u64) {
        let mut known = self.known();
        let known = &mut *known;
        let mut is_news = known.settle(zxid, barrier);
        match &mut known.state {
            Some(state) if zxid.0 <= 0 || zxid.0 >= state.revision.0 => {
                let before = state.revision;
                state.retire();
                let difference = Arc::make_mut(state).replace(next, zxid);
                let revision = state.revision;
                if revision > before {
                    is_news |= !difference.edits.is_empty();
                    known.ring.push(revision, difference.edits);
                }
            }
            state => {
                if let Some(state) = state {
                    state.retire();
                    let (before, after) = (state.revision.0, next.revision.0);
                    tracing::warn!(path = %self.scope.path, before, after, "zookeeper went back in time");
                    known.era += 1;
                }
                known.ring.restart(next.revision);
                *state = Some(Arc::new(next));
                is_news = true;
            }
        }
        self.tell(is_news);
    }

    /// Shows what was kept from before, while ZooKeeper is away; unless something newer is known by now.
    pub(super) fn restore(&self, state: Arc<State>, as_of: SystemTime) -> bool {
        let mut known = self.known();
        if known.state.is_some() || known.is_forbidden {
            return false;
        }
        known.ring.restart(state.revision);
        known.state = Some(state);
        known.backend = BackendState::Suspended;
        known.as_of = Some(as_of);
        drop(known);
        self.tell(true);
        true
    }

    /// ZooKeeper's access control list hides the path.
    pub(super) fn forbid(&self) {
        let mut known = self.known();
        known.barriers.done = known.barriers.begun;
        known.is_forbidden = true;
        drop(known);
        self.tell(true);
    }

    /// The view's connection or session is gone. Not told as long as nothing is known: there is nothing that could be
    /// out of date.
    pub(super) fn suspend(&self, backend: BackendState, as_of: Option<SystemTime>) {
        let mut known = self.known();
        if known.state.is_none() || known.backend == backend || known.backend == BackendState::Lost {
            return;
        }
        if known.backend == BackendState::Connected {
            known.as_of = as_of;
        }
        known.backend = backend;
        if backend == BackendState::Lost {
            known.losses += 1;
            known.lost_as_of = known.as_of;
        }
        drop(known);
        self.tell(true);
    }

    /// Has the task end; nobody may hold the view any more.
    pub(super) fn stop(&self) {
        self.stop.notify_one();
    }

    pub(super) async fn stopped(&self) {
        self.stop.notified().await;
    }

    fn tell(&self, is_news: bool) {
        if is_news {
            self.news.ring();
        }
        self.progress.send_replace(());
    }
}

impl Known {
    /// Notes that the state is right, and says whether that is news.
    fn settle(&mut self, zxid: Zxid, barrier: u64) -> bool {
        let is_news = self.is_forbidden || self.backend != BackendState::Connected;
        self.is_forbidden = false;
        self.backend = BackendState::Connected;
        self.as_of = None;
        self.zxid = zxid;
        self.barriers.done = self.barriers.done.max(barrier);
        is_news
    }

    fn move_on(&mut self, difference: &Difference) {
        let Some(state) = &self.state else { return };
        if difference.is_pure {
            self.ring.extend(state.revision);
        } else {
            self.ring.push(state.revision, Vec::new());
        }
    }

    /// Whether this barrier is done.
    pub(super) fn is_done(&self, barrier: u64) -> bool {
        self.barriers.done >= barrier
    }
}
