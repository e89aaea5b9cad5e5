//! Watching a view.

use std::time::Duration;

use tokio::time::Instant;

use super::bell::{Listener, Neighbourhood};
use super::cursor::{Cursor, Next, Step};
use super::reach::Reached;
use super::reader::{LOOKS, Reader};
use super::view::BackendState;
use crate::error::Error;
use crate::types::{Revision, Zxid};

/// How long a server that has answered a sync may be behind what another has shown.
const FALLEN_BACK_AFTER: Duration = Duration::from_secs(1);
/// How long to wait before a server that is behind is asked again.
const LAG: Duration = Duration::from_millis(20);

/// What a watcher is told, and how far it can be trusted.
#[derive(Debug)]
pub(crate) struct Told {
    /// What it is told.
    pub(crate) step: Step,
    /// Whether that may be out of date, since ZooKeeper can't be reached.
    pub(crate) is_stale: bool,
}

/// One who watches: a cursor and nothing else, so that a slow one costs nothing, and gets net changes or a snapshot.
#[derive(Debug)]
pub(crate) struct Watcher {
    reader: Reader,
    news: Listener,
    cursor: Cursor,
    /// When it is looked again whether ZooKeeper can be reached, while something is missing that only ZooKeeper knows.
    /// Kept here, since a heartbeat may end each call of `next` sooner than that.
    patience_ends: Instant,
    /// That it was looked again whether the path can be shown: that it can't may have been long ago.
    is_checked: bool,
    /// The transaction that the first state has to be as new as, and until when that is waited for.
    awaited: Option<(Zxid, Instant)>,
    /// Where ZooKeeper's history ends, if that is before it; until it is asked for.
    end: Option<Zxid>,
    /// Since when the server has been known to be behind the client.
    is_behind_since: Option<Instant>,
}

/// What there is, at one moment.
struct Look {
    next: Next,
    is_stale: bool,
    has_state: bool,
}

impl Watcher {
    pub(super) fn new(
        reader: Reader,
        since: Option<Revision>,
        at_least: Zxid,
        full: bool,
        neighbourhood: Neighbourhood,
    ) -> Self {
        let news = reader.view().news(neighbourhood);
        let patience_ends = reader.patience_ends();
        let awaited = (at_least.0 > 0).then_some((at_least, patience_ends));
        let cursor = Cursor::new(since, full);
        Self { reader, news, cursor, patience_ends, is_checked: false, awaited, end: None, is_behind_since: None }
    }

    /// The next thing to tell. First a snapshot; or, with a revision to go on from, the net changes since, or
    /// [`Step::Current`], or a snapshot when they are no longer known. Then what changes. A revision never falls and
    /// each new state's is larger, but for a snapshot that says `is_reset`.
    ///
    /// # Errors
    /// [`Error::NoAuth`] when ZooKeeper hides the path, [`Error::LimitExceeded`] when it has become too large. While
    /// ZooKeeper is away this waits.
    ///
    /// # Cancellation
    /// Safe: what was not returned is told by the next call.
    pub(crate) async fn next(&mut self) -> Result<Told, Error> {
        if !self.is_checked && self.reader.view().known().refusal.is_some() {
            self.reader.cached().await?;
        }
        self.is_checked = true;
        loop {
            self.news.catch_up();
            self.await_first().await;
            let Look { next, is_stale, has_state } = self.look()?;
            let step = match next {
                Next::Tell(step) => return Ok(Told { step, is_stale }),
                Next::Wait => self.wait(has_state).await,
                Next::CatchUp(revision) => self.catch_up(revision).await?,
            };
            if let Some(step) = step {
                return Ok(Told { step, is_stale: self.is_stale() });
            }
        }
    }

    /// What the client knows of is waited for once something is known: a first load is behind a sync, but perhaps one from
    /// before.
    async fn await_first(&mut self) {
        if let Some((at_least, until)) = self.awaited
            && !self.reader.view().is_unknown()
        {
            if let Reached::Never(end) = self.reader.reach(at_least, until).await {
                self.end = Some(end);
                self.cursor.lose();
            }
            self.awaited = None;
        }
    }

    /// Where ZooKeeper's history ends, told once, if that is before what the first state was to be as new as.
    pub(crate) fn take_end(&mut self) -> Option<Zxid> {
        self.end.take()
    }

    /// All at once: what is known is one lock, and a change has all who watch look at it.
    fn look(&mut self) -> Result<Look, Error> {
        let mut known = self.reader.view().known();
        if let Some(refusal) = &known.refusal {
            return Err(refusal.error.clone());
        }
        let next = self.cursor.advance(&mut known);
        let is_stale = self.is_stale_beside(known.backend);
        Ok(Look { next, is_stale, has_state: known.state.is_some() })
    }

    /// For a heartbeat: the revision of the state that was told, or a later one if it is still the state. While nothing
    /// has been told: the one that the watch goes on from, or zero.
    pub(crate) fn current(&mut self) -> Revision {
        self.cursor.revision(&mut self.reader.view().known())
    }

    /// Whether what was told may be out of date, since ZooKeeper can't be reached.
    pub(crate) fn is_stale(&self) -> bool {
        self.is_stale_beside(self.reader.view().known().backend)
    }

    fn is_stale_beside(&self, backend: BackendState) -> bool {
        [self.cursor.backend(), backend].iter().any(|state| *state != BackendState::Connected)
    }

    /// Waits for news; gives a step when there can't be any.
    async fn wait(&mut self, has_state: bool) -> Option<Step> {
        if has_state || self.cursor.backend() != BackendState::Connected {
            self.news.changed().await;
            return None;
        }
        let is_news = tokio::time::timeout_at(self.patience_ends, self.news.changed()).await.is_ok();
        if is_news { None } else { self.look_around() }
    }

    /// Tells, once, when ZooKeeper can't be reached.
    fn look_around(&mut self) -> Option<Step> {
        self.patience_ends = Instant::now() + self.reader.settings().patience / LOOKS;
        let is_new = self.cursor.backend() == BackendState::Connected && !self.reader.is_reachable();
        is_new.then(|| self.cursor.suspend())
    }

    /// The client has a later revision than the view: either this replica is behind, or ZooKeeper fell back, or nothing
    /// here has changed since. A sync tells; but the leader itself can answer one before it shows what its followers
    /// show already, so only a server that stays behind says that ZooKeeper fell back.
    async fn catch_up(&mut self, since: Revision) -> Result<Option<Step>, Error> {
        match tokio::time::timeout_at(self.patience_ends, self.reader.latest()).await {
            Ok(Ok(_)) => {}
            // Nothing older than what the client has is told: it waits until ZooKeeper is back, and is told that.
            Ok(Err(Error::BackendUnavailable)) | Err(_) => {
                let step = self.look_around();
                // The next sync has the whole time again.
                self.patience_ends = Instant::now() + self.reader.settings().patience;
                return Ok(step);
            }
            Ok(Err(error)) => return Err(error),
        }
        let is_behind_since = *self.is_behind_since.get_or_insert_with(Instant::now);
        if self.reader.view().known().zxid.0 < since.0 && is_behind_since.elapsed() < FALLEN_BACK_AFTER {
            tokio::time::sleep(LAG).await;
            return Ok(None);
        }
        match self.cursor.settle(&mut self.reader.view().known()) {
            Next::Tell(step) => Ok(Some(step)),
            Next::Wait | Next::CatchUp(_) => Ok(None),
        }
    }
}
