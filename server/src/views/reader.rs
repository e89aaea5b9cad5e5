//! Reads a view.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::notifier::ConnectionKey;
use super::state::State;
use super::view::{BackendState, Known, Refusal, View};
use super::{Settings, ViewUse};
use crate::error::Error;
use crate::types::Revision;
use crate::zk::Hub;

/// Maximum time that a reader waits for a ZooKeeper that answers but does not finish.
const PATIENCE_WITH_THE_SLOW: Duration = Duration::from_secs(30);
/// Divisor of the patience. Once its patience is over, a reader checks after each such part of it whether ZooKeeper
/// still sends anything.
pub(super) const PATIENCE_PARTS: u32 = 8;

/// A state, and whether it can be trusted.
#[derive(Debug, Clone)]
pub(crate) struct StateReading {
    pub(crate) state: Arc<State>,
    /// Whether the state may be out of date because ZooKeeper can't be reached.
    pub(crate) is_stale: bool,
    /// When the state was last known to be right, if it is stale.
    pub(crate) as_of: Option<SystemTime>,
}

/// A handle that keeps a view alive. Cheap to make, cheap to drop.
#[derive(Debug)]
pub(crate) struct Reader {
    view_use: ViewUse,
}

impl Reader {
    pub(super) fn new(view_use: ViewUse) -> Self {
        Self { view_use }
    }

    /// The present state, as soon as there is one: never older than a state that the view has shown before.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`] when nothing is known and ZooKeeper can't be reached, [`Error::NoAuth`] when it
    /// hides the path; every call tries that again. [`Error::LimitExceeded`] when the path is too large; that is tried
    /// again once in a while.
    ///
    /// # Cancellation
    /// Safe.
    pub(crate) async fn cached(&self) -> Result<StateReading, Error> {
        let (is_known, is_refused) = {
            let known = self.view().known();
            (known.state.is_some(), known.refusal.is_some())
        };
        match (is_known, is_refused) {
            (_, true) => self.latest().await,
            (true, false) => self.reading(&self.view().known()),
            (false, false) => {
                let done =
                    |known: &Known| (known.state.is_some() || known.refusal.is_some()).then(|| self.reading(known));
                self.wait_until(done).await?
            }
        }
    }

    /// The state after a sync, with every write that was acknowledged before this call. The view moves on to it. Calls
    /// that come while a sync is under way share the next one.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`] when ZooKeeper can't be reached, [`Error::NoAuth`] when it hides the path,
    /// [`Error::LimitExceeded`] when the path is too large.
    ///
    /// # Cancellation
    /// Safe; the sync is carried out all the same.
    pub(crate) async fn latest(&self) -> Result<StateReading, Error> {
        if let Some(Refusal { error, until }) = self.view().known().refusal.clone()
            && until.is_some_and(|until| Instant::now() < until)
        {
            return Err(error);
        }
        let barrier = self.view().ask();
        self.wait_until(|known| known.is_done(barrier).then(|| self.reading(known))).await?
    }

    /// Waits until there is a child, or the deadline has passed; then returns the present state.
    ///
    /// # Errors
    /// Those of [`Reader::cached`].
    ///
    /// # Cancellation
    /// Safe.
    pub(crate) async fn with_children(&self, deadline: Instant) -> Result<StateReading, Error> {
        let mut news = self.view().news(ConnectionKey::default());
        loop {
            news.catch_up();
            let reading = self.cached().await?;
            if !reading.state.children.is_empty() {
                return Ok(reading);
            }
            drop(reading);
            match tokio::time::timeout_at(deadline, news.changed()).await {
                Ok(()) => {}
                Err(_) => return self.cached().await,
            }
        }
    }

    /// Keeps a state for a while, for the pages that follow.
    pub(crate) fn pin(&self, state: &Arc<State>) {
        self.view_use.views().pins().put(state, Instant::now());
    }

    /// The state of this revision, for a page of it.
    ///
    /// # Errors
    /// [`Error::PageExpired`] when the state is neither pinned nor the present one; otherwise those of
    /// [`Reader::cached`].
    pub(crate) async fn pinned(&self, revision: Revision) -> Result<StateReading, Error> {
        let pin = self.view_use.views().pins().get(&self.view().scope, revision, Instant::now());
        if let Some(state) = pin {
            return Ok(StateReading { state, ..self.cached().await? });
        }
        let reading = self.cached().await?;
        if reading.state.revision == revision {
            return Ok(reading);
        }
        Err(Error::PageExpired { path: self.view().scope.path.clone() })
    }

    pub(super) fn view(&self) -> &Arc<View> {
        &self.view_use.view
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.view_use.views().settings
    }

    /// The present state; an error if it may not be shown, or there is none.
    fn reading(&self, known: &Known) -> Result<StateReading, Error> {
        if let Some(refusal) = &known.refusal {
            return Err(refusal.error.clone());
        }
        let state = known.state.clone().ok_or(Error::BackendUnavailable)?;
        Ok(StateReading { state, is_stale: known.backend != BackendState::Connected, as_of: known.as_of })
    }

    /// Waits for the task, for as long as ZooKeeper sends anything at all.
    async fn wait_until<T>(&self, done: impl Fn(&Known) -> Option<T>) -> Result<T, Error> {
        let begun = Instant::now();
        let mut progress = self.view().progress();
        let mut look_at = begun + self.settings().patience;
        loop {
            progress.catch_up();
            if let Some(result) = done(&self.view().known()) {
                return Ok(result);
            }
            if tokio::time::timeout_at(look_at, progress.changed()).await.is_ok() {
                continue;
            }
            if !self.is_reachable() || begun.elapsed() > PATIENCE_WITH_THE_SLOW {
                return Err(Error::BackendUnavailable);
            }
            look_at = Instant::now() + self.settings().patience / PATIENCE_PARTS;
        }
    }

    pub(super) fn hub(&self) -> &Hub {
        &self.view_use.views().zk.hub
    }

    /// The moment at which a reader that begins to wait now loses patience.
    pub(crate) fn patience_ends(&self) -> Instant {
        Instant::now() + self.settings().patience
    }

    /// The last time that ZooKeeper sent anything on the session that watches.
    pub(crate) fn last_heard(&self) -> Option<SystemTime> {
        let heard = self.hub().session(&self.view().scope.path).last_heard()?;
        Some(SystemTime::now() - heard.elapsed())
    }

    /// Whether ZooKeeper has been away for less time than a reader waits.
    pub(super) fn is_worth_waiting(&self) -> bool {
        let session = self.hub().session(&self.view().scope.path);
        let silence =
            if session.is_up() { Some(session.silence()) } else { session.last_heard().map(|at| at.elapsed()) };
        silence.is_some_and(|silence| silence < self.settings().patience)
    }

    /// Whether ZooKeeper is connected and answers when it is asked. A view that waits for its turn to load has asked
    /// nothing; then the requests of others show it.
    pub(super) fn is_reachable(&self) -> bool {
        let session = self.hub().session(&self.view().scope.path);
        session.is_up() && session.silence() < self.settings().patience
    }
}
