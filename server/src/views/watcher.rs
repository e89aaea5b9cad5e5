//! Watching a view.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use super::reader::Reader;
use super::ring::{Delta, Since};
use super::state::State;
use super::view::{BackendState, Known};
use crate::error::Error;
use crate::types::Revision;

/// What a watcher is told.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// The full state; what was known before is to be forgotten.
    Snapshot {
        /// The state.
        state: Arc<State>,
        /// That ZooKeeper went back in time: revisions from before mean nothing now.
        is_reset: bool,
    },
    /// The net changes since the last state.
    Delta(Arc<Delta>),
    /// Nothing has changed since the revision that the watch began with.
    Current {
        /// What dates the state.
        revision: Revision,
    },
    /// How the replica stands with ZooKeeper from now on.
    Backend {
        /// How.
        state: BackendState,
        /// When the state was last known to be right; `None` while connected, and when nothing is known.
        as_of: Option<SystemTime>,
    },
}

/// One who watches: a cursor and nothing else, so that a slow one costs nothing, and gets net changes or a snapshot.
#[derive(Debug)]
pub(crate) struct Watcher {
    reader: Reader,
    news: watch::Receiver<()>,
    full: bool,
    position: Position,
    /// The revision of the last state that was told.
    told: Revision,
    backend: BackendState,
}

/// How far a watcher is.
#[derive(Debug, Clone, Copy)]
enum Position {
    /// It has been told nothing.
    Start(Option<Revision>),
    /// It has this content.
    At { era: u64, revision: Revision },
}

/// What to do next.
enum Next {
    Tell(Step),
    Wait,
    /// The client was told more than is known here.
    CatchUp(Revision),
}

impl Watcher {
    pub(super) fn new(reader: Reader, since: Option<Revision>, full: bool) -> Self {
        let news = reader.view().news();
        let position = Position::Start(since);
        Self { reader, news, full, position, told: since.unwrap_or_default(), backend: BackendState::Connected }
    }

    /// The next thing to tell. First a snapshot; or, with a revision to go on from, the net changes since, or
    /// [`Step::Current`], or a snapshot when they are no longer known. Then what changes. A revision never falls and
    /// each new state's is larger, but for a snapshot that says `is_reset`.
    ///
    /// # Errors
    /// [`Error::NoAuth`] when ZooKeeper hides the path. While ZooKeeper is away this waits.
    ///
    /// # Cancellation
    /// Safe: what was not returned is told by the next call.
    pub(crate) async fn next(&mut self) -> Result<Step, Error> {
        loop {
            self.news.borrow_and_update();
            let next = {
                let view = self.reader.view().clone();
                let known = view.known();
                self.advance(&known)?
            };
            match next {
                Next::Tell(step) => return Ok(step),
                Next::Wait => {
                    if let Some(step) = self.wait().await {
                        return Ok(step);
                    }
                }
                Next::CatchUp(revision) => {
                    if let Some(step) = self.catch_up(revision).await? {
                        return Ok(step);
                    }
                }
            }
        }
    }

    /// For a heartbeat: the revision of the state that was told, or a later one if it is still the state. Zero when none
    /// was told.
    pub(crate) fn current(&mut self) -> Revision {
        let view = self.reader.view().clone();
        let known = view.known();
        if let (Position::At { era, revision }, Some(state)) = (self.position, &known.state)
            && era == known.era
            && matches!(known.ring.since(revision), Since::Nothing)
        {
            self.place(&known, state.revision);
            self.told = self.told.max(state.revision);
        }
        match self.position {
            Position::At { .. } => self.told,
            Position::Start(_) => Revision(0),
        }
    }

    /// Whether what was told may be out of date, since ZooKeeper can't be reached.
    pub(crate) fn is_stale(&self) -> bool {
        self.backend != BackendState::Connected || self.reader.view().known().backend != BackendState::Connected
    }

    fn advance(&mut self, known: &Known) -> Result<Next, Error> {
        if known.is_forbidden {
            return Err(Error::NoAuth { path: self.reader.view().scope.path.clone() });
        }
        let Some(state) = &known.state else { return Ok(Next::Wait) };
        let step = match self.position {
            Position::Start(None) => Some(self.snapshot(known, state, false)),
            Position::Start(Some(since)) => match known.ring.since(since) {
                Since::Nothing => {
                    self.place(known, state.revision);
                    self.told = state.revision;
                    Some(Step::Current { revision: state.revision })
                }
                Since::Changes(delta) => Some(self.delta(known, state, delta)),
                Since::Forgotten if since > state.revision => return Ok(Next::CatchUp(since)),
                Since::Forgotten => Some(self.snapshot(known, state, false)),
            },
            Position::At { era, .. } if era != known.era => Some(self.snapshot(known, state, true)),
            Position::At { revision, .. } if revision == state.revision => None,
            Position::At { revision, .. } => match known.ring.since(revision) {
                Since::Nothing => {
                    self.place(known, state.revision);
                    None
                }
                Since::Changes(delta) => Some(self.delta(known, state, delta)),
                Since::Forgotten => Some(self.snapshot(known, state, false)),
            },
        };
        // What changed while ZooKeeper was away comes first: «connected» says that the state is up to date.
        let step = step.or_else(|| {
            let changed = self.backend != known.backend;
            changed.then(|| {
                self.backend = known.backend;
                Step::Backend { state: known.backend, as_of: known.as_of }
            })
        });
        Ok(step.map_or(Next::Wait, Next::Tell))
    }

    fn place(&mut self, known: &Known, revision: Revision) {
        self.position = Position::At { era: known.era, revision };
    }

    fn snapshot(&mut self, known: &Known, state: &Arc<State>, is_reset: bool) -> Step {
        self.place(known, state.revision);
        self.told = state.revision;
        Step::Snapshot { state: state.clone(), is_reset }
    }

    fn delta(&mut self, known: &Known, state: &Arc<State>, delta: Arc<Delta>) -> Step {
        if self.full {
            return self.snapshot(known, state, false);
        }
        self.place(known, delta.revision);
        self.told = delta.revision;
        Step::Delta(delta)
    }

    /// Waits for news; gives a step when there can't be any.
    async fn wait(&mut self) -> Option<Step> {
        if self.reader.view().known().state.is_some() || self.backend != BackendState::Connected {
            // The view can't go while it has a reader, so the channel stays open.
            let _ = self.news.changed().await;
            return None;
        }
        let patience = self.reader.settings().patience;
        let is_news = tokio::time::timeout(patience, self.news.changed()).await.is_ok();
        (!is_news && !self.reader.is_reachable()).then(|| self.suspend())
    }

    fn suspend(&mut self) -> Step {
        self.backend = BackendState::Suspended;
        Step::Backend { state: BackendState::Suspended, as_of: None }
    }

    /// The client has a later revision than the view: either this replica is behind, or ZooKeeper fell back, or nothing
    /// here has changed since. A sync tells.
    async fn catch_up(&mut self, since: Revision) -> Result<Option<Step>, Error> {
        match self.reader.latest().await {
            Ok(_) => {}
            // Nothing older than what the client has is told. It waits, like one who begins while nothing is known.
            Err(Error::BackendUnavailable) if self.backend == BackendState::Connected => {
                return Ok(Some(self.suspend()));
            }
            Err(Error::BackendUnavailable) => return Ok(None),
            Err(error) => return Err(error),
        }
        let view = self.reader.view().clone();
        let known = view.known();
        let Some(state) = &known.state else { return Ok(None) };
        if state.revision >= since {
            return Ok(None);
        }
        if known.zxid.0 < since.0 {
            return Ok(Some(self.snapshot(&known, state, true)));
        }
        self.place(&known, state.revision);
        Ok(Some(Step::Current { revision: since }))
    }
}
