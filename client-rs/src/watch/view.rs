//! A view: the present state of a path, at any time.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rollcall_proto::v1;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::follow::Following;
use super::update::Update;
use crate::client::Client;
use crate::error::Error;
use crate::node::{Lookup, Node};

/// The present state of a watched path: from [`Watch::view`](super::Watch::view). Clones share one watch, which ends
/// with the last of them; each clone sees every change for itself.
#[derive(Debug, Clone)]
pub struct View {
    state: watch::Receiver<State>,
    /// Ends the task with the last clone.
    _task: Arc<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct State {
    lookup: Arc<Lookup>,
    /// Whether there was any state yet.
    known: bool,
    /// Why the state is no longer kept current.
    ended: Option<Error>,
}

impl View {
    pub(super) async fn start(client: Client, request: v1::WatchRequest) -> Result<Self, Error> {
        let (sender, state) = watch::channel(State::default());
        let mut task = JoinSet::new();
        let patience = client.shared().patience;
        let key = (request.path.clone(), request.recursive);
        task.spawn(keep(client.clone(), request, sender.clone()));
        let mut view = Self { state, _task: Arc::new(task) };
        let first = view.state.wait_for(|state| state.known || state.ended.is_some());
        let first = timeout(patience, first).await.map(|state| state.ok().and_then(|state| state.ended.clone()));
        match first {
            Ok(None) => {}
            Ok(Some(error)) => return Err(error),
            Err(_) => {
                let cached = client.cached(&key.0, key.1);
                let replicas = client.replicas().names();
                let cached = cached.ok_or(Error::Unreachable { replicas, source: None })?;
                sender.send_if_modified(|state| !state.known && state.show(cached));
            }
        }
        view.state.mark_unchanged();
        Ok(view)
    }

    /// The present state. It is a separate value, which later changes do not alter.
    #[must_use]
    pub fn current(&self) -> Arc<Lookup> {
        self.state.borrow().lookup.clone()
    }

    /// Waits until there is a state that this clone has not seen; several changes may come as one.
    /// [`current`](View::current) then shows it.
    ///
    /// # Errors
    /// The error that ended the watch, if it can't go on: for example, its path may not be read any more. The last
    /// known state is still shown.
    ///
    /// # Cancellation
    /// Safe: no change is missed.
    pub async fn changed(&mut self) -> Result<(), Error> {
        let ended = self.state.changed().await.is_err();
        match &self.state.borrow_and_update().ended {
            Some(error) => Err(error.clone()),
            None if ended => Err(Error::invalid("view", "its runtime has ended")),
            None => Ok(()),
        }
    }

    /// Waits until `accept` returns true for the state, and returns the state.
    ///
    /// # Errors
    /// Those of [`changed`](View::changed).
    ///
    /// # Cancellation
    /// Safe.
    pub async fn wait_for(&mut self, mut accept: impl FnMut(&Lookup) -> bool) -> Result<Arc<Lookup>, Error> {
        loop {
            let current = self.state.borrow_and_update().lookup.clone();
            if accept(&current) {
                return Ok(current);
            }
            self.changed().await?;
        }
    }
}

/// Time for which changes are collected before the cache file is written.
const GATHER: Duration = Duration::from_millis(500);

async fn keep(client: Client, request: v1::WatchRequest, state: watch::Sender<State>) {
    let recursive = request.recursive;
    let mut updates = Following::new(client.clone(), request);
    let mut save_at: Option<Instant> = None;
    loop {
        let saving = async {
            match save_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let update = tokio::select! {
            update = updates.next() => update,
            () = saving => {
                save_at = None;
                let lookup = state.borrow().lookup.clone();
                client.remember(recursive, lookup).await;
                continue;
            }
        };
        match update {
            Some(Ok(update)) => state.send_if_modified(|state| state.apply(update)),
            Some(Err(error)) => state.send_if_modified(|state| {
                state.ended = Some(error);
                true
            }),
            None => return,
        };
        if client.shared().cache.is_some() {
            save_at = save_at.or_else(|| Some(Instant::now() + GATHER));
        }
    }
}

impl State {
    fn show(&mut self, lookup: Lookup) -> bool {
        (self.lookup, self.known) = (Arc::new(lookup), true);
        true
    }

    /// Applies an update. Returns whether anything visible has changed.
    fn apply(&mut self, update: Update) -> bool {
        match update {
            Update::Snapshot { node, revision, .. } => {
                let Lookup { stale, as_of, .. } = *self.lookup;
                let (stale, as_of) = if self.known { (stale, as_of) } else { (false, None) };
                return self.show(Lookup { node, revision, stale, as_of });
            }
            Update::Changes { changes, revision } => {
                // The state is copied only when a reader still holds the one before.
                let lookup = Arc::make_mut(&mut self.lookup);
                changes.into_iter().for_each(|change| Node::apply(&mut lookup.node, change));
                lookup.revision = revision;
            }
            Update::Stale { as_of } if self.known => {
                let lookup = Arc::make_mut(&mut self.lookup);
                (lookup.stale, lookup.as_of) = (true, as_of.or_else(|| Some(SystemTime::now())));
            }
            Update::Current if self.known => {
                let lookup = Arc::make_mut(&mut self.lookup);
                (lookup.stale, lookup.as_of) = (false, None);
            }
            Update::Stale { .. } | Update::Current => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Change, Child};

    fn snapshot(revision: i64) -> Update {
        let node = Node { path: "/a".to_owned(), exists: true, ..Node::default() };
        Update::Snapshot { node, revision, reset: false }
    }

    #[test]
    fn updates_make_the_state_and_leave_what_somebody_holds_alone() {
        let mut state = State::default();
        assert!(!state.apply(Update::Stale { as_of: None }), "there is nothing to be stale");
        assert!(state.apply(snapshot(5)));
        let held = state.lookup.clone();
        let change = Change::Added { name: "x".to_owned(), child: Child::default() };
        assert!(state.apply(Update::Changes { changes: vec![change], revision: 6 }));
        assert_eq!((held.revision, held.node.children.len()), (5, 0));
        assert_eq!((state.lookup.revision, state.lookup.node.children.len()), (6, 1));
        assert!(state.apply(Update::Stale { as_of: None }));
        assert!(state.lookup.stale && state.lookup.as_of.is_some());
        assert!(state.apply(Update::Current));
        assert!(!state.lookup.stale && state.lookup.as_of.is_none());
    }
}
