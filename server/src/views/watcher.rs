//! Watches a view.

use std::time::Duration;

use tokio::time::Instant;

use super::cursor::{Cursor, CursorStep, Step};
use super::notifier::{ChangeListener, ConnectionKey};
use super::reach::Reached;
use super::reader::{PATIENCE_PARTS, Reader};
use super::view::BackendState;
use crate::error::Error;
use crate::types::{Revision, Zxid};

/// Time for which a server that has answered a sync may be behind what another server has shown.
const FALLEN_BACK_AFTER: Duration = Duration::from_secs(1);
/// Time after which a server that is behind is asked again.
const BEHIND_WATCH_PAUSE: Duration = Duration::from_millis(20);

/// A message to a watcher, and whether it can be trusted.
#[derive(Debug)]
pub(crate) struct WatcherUpdate {
    /// The message.
    pub(crate) step: Step,
    /// Whether it may be out of date because ZooKeeper can't be reached.
    pub(crate) is_stale: bool,
}

/// A watcher: a cursor and nothing else. So a slow watcher costs nothing, and gets net changes or a snapshot.
#[derive(Debug)]
pub(crate) struct Watcher {
    reader: Reader,
    news: ChangeListener,
    cursor: Cursor,
    /// Time of the next check whether ZooKeeper can be reached, while the watcher lacks something that only ZooKeeper
    /// knows. Kept here, since a heartbeat may end each call of `next` before that time.
    patience_ends: Instant,
    /// Whether the watcher has checked again whether the path can be shown: a refusal may be old.
    is_checked: bool,
    /// The transaction that the first state has to be as new as, and the deadline for it.
    awaited: Option<(Zxid, Instant)>,
    /// The end of ZooKeeper's history, if it is before that transaction; until it is taken.
    end: Option<Zxid>,
    /// The moment since which the server is known to be behind the client.
    is_behind_since: Option<Instant>,
}

/// The result of one look at the view.
struct WatcherLook {
    next: CursorStep,
    is_stale: bool,
    has_state: bool,
}

impl Watcher {
    /// Watches a reader's view from now on or, with the revision of an earlier state, from that state on. With `full`, each
    /// change is sent as the whole state. Watchers over the same connection have the same `connection_key`. The first
    /// state is as new as the transaction `at_least`, if that is reached in time.
    pub(crate) fn open(
        reader: Reader,
        since: Option<Revision>,
        at_least: Zxid,
        full: bool,
        connection_key: ConnectionKey,
    ) -> Self {
        let news = reader.view().news(connection_key);
        let patience_ends = reader.patience_ends();
        let awaited = (at_least.0 > 0).then_some((at_least, patience_ends));
        let cursor = Cursor::new(since, full);
        Self { reader, news, cursor, patience_ends, is_checked: false, awaited, end: None, is_behind_since: None }
    }

    /// The next message. The first is a snapshot; or, with a revision to continue from, the net changes since, or
    /// [`Step::Current`], or a snapshot if the changes are no longer known. Then come the changes. Revisions never
    /// fall, and each new state has a larger one, except for a snapshot with `is_reset`.
    ///
    /// # Errors
    /// [`Error::NoAuth`] when ZooKeeper hides the path, [`Error::LimitExceeded`] when it has become too large. While
    /// ZooKeeper is away this waits.
    ///
    /// # Cancellation
    /// Safe: a message that was not returned is returned by the next call.
    pub(crate) async fn next(&mut self) -> Result<WatcherUpdate, Error> {
        if !self.is_checked && self.reader.view().known().refusal.is_some() {
            self.reader.cached().await?;
        }
        self.is_checked = true;
        loop {
            self.news.catch_up();
            self.await_first().await;
            let WatcherLook { next, is_stale, has_state } = self.look()?;
            let step = match next {
                CursorStep::Tell(step) => return Ok(WatcherUpdate { step, is_stale }),
                CursorStep::Wait => self.wait(has_state).await,
                CursorStep::CatchUp(revision) => self.catch_up(revision).await?,
            };
            if let Some(step) = step {
                return Ok(WatcherUpdate { step, is_stale: self.is_stale() });
            }
        }
    }

    /// Waits for the transaction that the client knows of, once the view has a state or a refusal: a first load is
    /// behind a sync, but perhaps behind one from before that transaction.
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

    /// The end of ZooKeeper's history, if it is before the transaction that the first state was to be as new as.
    /// Returned once.
    pub(crate) fn take_end(&mut self) -> Option<Zxid> {
        self.end.take()
    }

    /// Looks under one lock, taken once: after a change, all watchers look.
    fn look(&mut self) -> Result<WatcherLook, Error> {
        let mut known = self.reader.view().known();
        if let Some(refusal) = &known.refusal {
            return Err(refusal.error.clone());
        }
        let next = self.cursor.advance(&mut known);
        let is_stale = self.is_stale_beside(known.backend);
        Ok(WatcherLook { next, is_stale, has_state: known.state.is_some() })
    }

    /// For a heartbeat: the revision of the last state that was sent, or a later one that dates the same content. If
    /// nothing was sent yet: the revision that the watch continues from, or zero.
    pub(crate) fn current(&mut self) -> Revision {
        self.cursor.revision(&mut self.reader.view().known())
    }

    /// Whether the state that was sent may be out of date because ZooKeeper can't be reached.
    pub(crate) fn is_stale(&self) -> bool {
        self.is_stale_beside(self.reader.view().known().backend)
    }

    fn is_stale_beside(&self, backend: BackendState) -> bool {
        [self.cursor.backend(), backend].iter().any(|state| *state != BackendState::Connected)
    }

    /// Waits for news; returns a message if there can't be any.
    async fn wait(&mut self, has_state: bool) -> Option<Step> {
        if has_state || self.cursor.backend() != BackendState::Connected {
            self.news.changed().await;
            return None;
        }
        let is_news = tokio::time::timeout_at(self.patience_ends, self.news.changed()).await.is_ok();
        if is_news { None } else { self.look_around() }
    }

    /// The message that ZooKeeper can't be reached; returned once.
    fn look_around(&mut self) -> Option<Step> {
        self.patience_ends = Instant::now() + self.reader.settings().patience / PATIENCE_PARTS;
        let is_new = self.cursor.backend() == BackendState::Connected && !self.reader.is_reachable();
        is_new.then(|| self.cursor.suspend())
    }

    /// The client has a later revision than the view. Either this replica is behind, or ZooKeeper fell back, or nothing
    /// here has changed since. A sync decides; but the leader itself can answer one before it shows what its followers
    /// show already, so only a server that stays behind proves that ZooKeeper fell back.
    async fn catch_up(&mut self, since: Revision) -> Result<Option<Step>, Error> {
        match tokio::time::timeout_at(self.patience_ends, self.reader.latest()).await {
            Ok(Ok(_)) => {}
            // The client gets nothing older than what it has: it waits until ZooKeeper is back, and the message says
            // that ZooKeeper is away.
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
            tokio::time::sleep(BEHIND_WATCH_PAUSE).await;
            return Ok(None);
        }
        match self.cursor.settle(&mut self.reader.view().known()) {
            CursorStep::Tell(step) => Ok(Some(step)),
            CursorStep::Wait | CursorStep::CatchUp(_) => Ok(None),
        }
    }
}
