//! One view, as its task writes it and all its readers share it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::{Notify, watch};

use super::bell::{Bell, Listener, Neighbourhood};
use super::ring::{Limits, Ring};
use super::rounds::Moment;
use super::scope::Scope;
use super::state::{Difference, State};
use crate::types::{Revision, Zxid};

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
    /// The last transaction that was known before it last fell back. Revisions up to it may be of either past.
    pub(super) fell_from: Option<Zxid>,
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
            fell_from: None,
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

    /// What it occupies in memory, roughly.
    pub(super) fn bytes(&self) -> usize {
        let known = self.known();
        known.ring.bytes() + known.state.as_ref().map_or(0, |state| state.bytes())
    }

    /// Whether what is shown is up to date.
    pub(super) fn is_connected(&self) -> bool {
        self.known().backend == BackendState::Connected
    }

    /// Whether what is shown was read later than at this transaction; if it is known.
    pub(super) fn is_ahead_of(&self, zxid: Zxid) -> bool {
        zxid.0 > 0 && self.known().latest() > zxid
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
        if moment.reads.is_empty() && state.is_as_read(&moment.node) {
            // Nothing is new, as after most barriers: what was made of the state stays.
            let is_news = known.settle(moment.zxid, moment.barrier);
            self.tell(is_news);
            return true;
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
        let latest = known.latest();
        let mut is_news = known.settle(zxid, barrier);
        match &mut known.state {
            Some(state) if zxid.0 <= 0 || zxid >= latest => {
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
                    known.fell_from = known.fell_from.max(Some(latest));
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
    /// The latest transaction of which there is a trace.
    fn latest(&self) -> Zxid {
        self.state.as_ref().map_or(self.zxid, |state| self.zxid.max(Zxid(state.revision.0)))
    }

    /// Whether a revision that a client was told may be of a past that ZooKeeper has lost, by what was seen here.
    pub(super) fn may_have_lost(&self, revision: Revision) -> bool {
        self.fell_from.is_some_and(|from| revision.0 <= from.0)
    }

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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bytes::Bytes;

    use super::super::ready::{Form, Made};
    use super::super::state::{Entry, NodeRead, Reads};
    use super::*;
    use crate::types::{NodePath, Stat};

    fn node(zxid: i64, num_children: i32) -> NodeRead {
        let stat = Stat { czxid: 1, mzxid: 1, pzxid: zxid, num_children, ..Stat::default() };
        NodeRead::Present(Arc::new(Entry::new(b"", stat)))
    }

    fn moment(node: NodeRead, reads: Reads, zxid: i64, barrier: u64) -> Moment {
        Moment { node, reads, zxid: Zxid(zxid), barrier }
    }

    #[test]
    fn what_was_made_of_a_state_outlives_barriers_that_find_nothing_new() {
        let scope = Scope { path: NodePath::trusted("/p"), recursive: false };
        let view = View::new(scope.clone(), Limits { moments: 10, bytes: 10_000 });
        let mut state = State::empty(scope.path, false);
        state.take_in(node(1, 0), Reads::new());
        view.show_whole(state, Zxid(1), 0);
        let mut made = 0;
        let mut read = || {
            let state = view.known().state.clone().unwrap();
            state.part(Form::Page, None, || {
                made += 1;
                Made { bytes: Bytes::new(), next: None }
            });
            state
        };
        let first = read();
        for number in 1..10 {
            let barrier = view.ask();
            view.begin_barrier();
            assert!(view.show(moment(node(1, 0), Reads::new(), number, barrier)));
            assert!(view.known().is_done(barrier));
            assert!(Arc::ptr_eq(&first, &read()));
        }
        assert_eq!(view.known().zxid, Zxid(9));
        // It has a child that the view does not know of.
        assert!(!view.show(moment(node(10, 1), Reads::new(), 10, 0)));
        let child = Some(Arc::new(Entry::new(b"", Stat::default())));
        assert!(view.show(moment(node(10, 1), HashMap::from([("a".into(), child)]), 10, 0)));
        read();
        assert_eq!(made, 2);
    }

    #[test]
    fn an_absence_that_is_read_again_is_the_same_until_its_date_moves() {
        let scope = Scope { path: NodePath::trusted("/p"), recursive: false };
        let view = View::new(scope.clone(), Limits { moments: 10, bytes: 10_000 });
        view.show_whole(State::empty(scope.path, false), Zxid(3), 0);
        let mut known = Vec::new();
        for ancestor in [3, 3, 5] {
            assert!(view.show(moment(NodeRead::Absent(ancestor), Reads::new(), 6, 0)));
            known.push(view.known().state.clone().unwrap());
        }
        assert!(Arc::ptr_eq(&known[0], &known[1]));
        assert_eq!(known[2].revision, Revision(5));
    }
}
