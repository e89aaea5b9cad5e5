//! Recursive watches, on sessions of their own, each shared by all subscribers of one subtree.
//!
//! Persistent watches end with their connection, and events from the time without one are lost. So after every connect
//! the hub sets the watches again, and then makes every subscriber read everything again.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use rollcall_wire::{Request, WatchMode};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::session::{Answer, Link, Session};
use super::times::{FIRST_SYNC_PAUSE, FULL_QUEUE_PAUSE, LONGEST_SYNC_PAUSE};
use super::watches::{Mailbox, Watches};
use super::{Config, Error};
use crate::types::{NodePath, Zxid};

/// A handle to the sessions that watch.
#[derive(Debug, Clone)]
pub(crate) struct Hub {
    slots: Arc<[WatchSlot]>,
}

/// Identifies one of the sessions that watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct WatchSessionId(pub(crate) usize);

/// A place for a session that watches. When the session has expired, the next one takes over its place and its watches.
#[derive(Debug, Clone)]
struct WatchSlot {
    watches: Arc<Watches>,
    session: watch::Receiver<Session>,
    syncs: Arc<Mutex<Syncs>>,
}

/// The syncs of one session, which follow each other.
#[derive(Debug, Default)]
struct Syncs {
    /// The sync that is under way, or the last one.
    current: Option<Sync>,
    /// The latest transaction that any caller of the current sync asks for.
    wanted: Zxid,
    pause: Duration,
}

type Sync = Shared<BoxFuture<'static, Synced>>;

/// A sync that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Synced {
    /// When it was sent.
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    /// The number of the connection that it was sent and answered on; `None` if it was not answered.
    pub(crate) connection: Option<u64>,
}

/// A subtree whose events go to a [`Mailbox`] until this is dropped.
#[derive(Debug)]
pub(crate) struct Subscription {
    path: NodePath,
    id: u64,
    slot: WatchSlot,
}

impl Hub {
    /// Starts `count` sessions as tasks of `tasks`.
    pub(super) fn start(config: &Arc<Config>, count: usize, tasks: &mut JoinSet<()>) -> Self {
        let slots = (0..count.max(1)).map(|_| {
            let watches = Arc::new(Watches::default());
            let (session, life) = Session::start(config.clone(), watches.clone());
            let (current, receiver) = watch::channel(session);
            tasks.spawn(keep_session(config.clone(), watches.clone(), current, life));
            WatchSlot { watches, session: receiver, syncs: Arc::default() }
        });
        Self { slots: slots.collect() }
    }

    /// Sends the events of `path` and everything below it to `mailbox`, beginning with a resync once the watch is set.
    pub(crate) fn subscribe(&self, path: &NodePath, mailbox: &Arc<Mailbox>) -> Subscription {
        let slot = self.slot(path).clone();
        let id = slot.watches.subscribe(path, mailbox);
        Subscription { path: path.clone(), id, slot }
    }

    /// The session that watches `path`. Reads for a view use it, since another session may be behind its events.
    pub(crate) fn session(&self, path: &NodePath) -> Session {
        self.session_of(self.watch_session_of(path))
    }

    /// The present sessions that watch.
    pub(super) fn each_session(&self) -> impl Iterator<Item = Session> {
        self.slots.iter().map(|slot| slot.session.borrow().clone())
    }

    /// Number of sessions that watch.
    pub(crate) fn sessions(&self) -> usize {
        self.slots.len()
    }

    /// The index of the session that watches `path`.
    pub(crate) fn index(&self, path: &NodePath) -> usize {
        self.watch_session_of(path).0
    }

    /// The last transaction that any watching session knows of.
    pub(super) fn last_zxid(&self) -> Zxid {
        self.slots.iter().map(|slot| slot.session.borrow().last_zxid()).max().unwrap_or_default()
    }

    /// The connection of the session that watches `path`, and the transaction up to which all its events are in the
    /// mailboxes.
    pub(crate) fn horizon(&self, path: &NodePath) -> Option<(u64, Zxid)> {
        self.slot(path).watches.horizon()
    }

    /// Waits for a sync of the server that watches `path`, which moves [`Hub::horizon`]. A session has at most one sync
    /// under way, however many callers wait. A sync that was under way before this call began may have been too early,
    /// and is waited for all the same. After a sync that did not reach the transaction that was asked for, all callers
    /// pause.
    ///
    /// # Cancellation
    /// Safe: other callers go on waiting.
    pub(crate) async fn sync(&self, path: &NodePath, wanted: Zxid) -> Synced {
        self.slot(path).sync(wanted).await
    }

    /// Whether every watching session is connected.
    pub(super) fn is_up(&self) -> bool {
        self.slots.iter().all(|slot| slot.session.borrow().is_up())
    }

    /// The session that watches `path`.
    pub(crate) fn watch_session_of(&self, path: &NodePath) -> WatchSessionId {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(path);
        let count = u64::try_from(self.slots.len()).unwrap_or(1);
        WatchSessionId(usize::try_from(hash % count).unwrap_or_default())
    }

    /// The session that is in this place now.
    pub(crate) fn session_of(&self, watch_session: WatchSessionId) -> Session {
        self.slots[watch_session.0].session.borrow().clone()
    }

    fn slot(&self, path: &NodePath) -> &WatchSlot {
        &self.slots[self.watch_session_of(path).0]
    }
}

impl WatchSlot {
    fn sync(&self, wanted: Zxid) -> Sync {
        let mut syncs = self.syncs.lock();
        let over = match &syncs.current {
            Some(current) => match current.peek() {
                None => {
                    let current = current.clone();
                    syncs.wanted = syncs.wanted.max(wanted);
                    return current;
                }
                over => over.copied(),
            },
            None => None,
        };
        let is_enough = |over: Synced| {
            let known = self.watches.horizon().map_or(Zxid(0), |(_, zxid)| zxid);
            over.connection.is_some() && known >= syncs.wanted
        };
        let pause = if over.is_none_or(is_enough) {
            Duration::ZERO
        } else {
            (2 * syncs.pause).clamp(FIRST_SYNC_PAUSE, LONGEST_SYNC_PAUSE)
        };
        let not_before = over.map(|over| over.ended + pause);
        let (session, watches) = (self.session.clone(), self.watches.clone());
        let sync = async move {
            if let Some(at) = not_before.filter(|at| Instant::now() < *at) {
                tokio::time::sleep_until(at).await;
            }
            let (began, connection) = (Instant::now(), watches.horizon().map(|(connection, _)| connection));
            let answer = session.borrow().submit(Request::Sync { path: "/".to_owned() });
            let is_answered = answer.await.is_ok();
            let is_same = watches.horizon().map(|(connection, _)| connection) == connection;
            Synced { began, ended: Instant::now(), connection: connection.filter(|_| is_answered && is_same) }
        };
        let sync = sync.boxed().shared();
        (syncs.wanted, syncs.pause) = (wanted, pause);
        syncs.current.insert(sync).clone()
    }
}

impl Subscription {
    /// The session for reads; see [`Hub::session`].
    pub(crate) fn session(&self) -> Session {
        self.slot.session.borrow().clone()
    }

    /// The session, and the number of its connection that holds the watch. A read on this very connection
    /// ([`Session::submit_on`]) can't change without an event. `None` until the watch is set (again); then the mailbox
    /// gets a resync.
    pub(crate) fn connection(&self) -> Option<(Session, u64)> {
        let connection = self.slot.watches.established_on(&self.path)?;
        Some((self.session(), connection))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.slot.watches.unsubscribe(&self.path, self.id);
    }
}

/// Maximum number of watches that are set at once, and that are removed at once.
const WATCHES_AT_ONCE: usize = 1024;

/// Keeps a session and its watches; when the session has expired, starts the next. The session is a task of its own, so
/// that answers and events are read however much there is to do for watches.
async fn keep_session(
    config: Arc<Config>,
    watches: Arc<Watches>,
    current: watch::Sender<Session>,
    life: impl Future<Output = ()> + Send + 'static,
) {
    let mut lives = JoinSet::new();
    lives.spawn(life);
    loop {
        let session = current.borrow().clone();
        let ended = tokio::select! {
            ended = lives.join_next() => ended,
            // This ends when the session's task is about to end, or has panicked.
            () = keep_watches(&session, &watches) => lives.join_next().await,
        };
        if let Some(Err(error)) = ended
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
        let (session, life) = Session::start(config.clone(), watches.clone());
        lives.spawn(life);
        current.send_replace(session);
    }
}

/// Sets and removes watches until the session has ended.
async fn keep_watches(session: &Session, watches: &Watches) {
    let mut link = session.link();
    loop {
        let state = *link.borrow_and_update();
        if state == Link::Expired {
            return;
        }
        if let Link::Up(connection) = state {
            apply_differences(session, watches, connection).await;
        }
        tokio::select! {
            changed = link.changed() => if changed.is_err() { return },
            () = watches.changed() => {}
        }
    }
}

/// Sets some missing watches and removes some unwanted ones. The rest is found in the next round, so that a watch that
/// is missing by then does not wait for all of it.
async fn apply_differences(session: &Session, watches: &Watches, connection: u64) {
    let (missing, surplus) = watches.differences(WATCHES_AT_ONCE);
    let add = |path| Request::AddWatch { path, mode: WatchMode::PersistentRecursive };
    let mut is_full = false;
    for (path, answer) in pipeline(session, connection, &missing, add) {
        match answer.await {
            Ok(_) => watches.established(path, connection),
            Err(error) => {
                // If the connection has changed, the watch is missing anyway.
                watches.still_missing(path);
                match error {
                    Error::Refused(code) => tracing::error!(%path, %code, "zookeeper refuses a watch"),
                    // Other requests have filled the queue.
                    Error::NotSent => is_full = true,
                    _ => {}
                }
            }
        }
    }
    for (path, answer) in pipeline(session, connection, &surplus, |path| Request::RemoveWatches { path }) {
        // A watch that stays costs events, and ends with the connection.
        if let Err(error) = answer.await {
            tracing::debug!(%path, %error, "a watch was not removed");
        }
    }
    if is_full && *session.link().borrow() == Link::Up(connection) {
        // One pause for all watches that the queue refused.
        tokio::time::sleep(FULL_QUEUE_PAUSE).await;
        watches.look_again();
    }
}

/// Sends a request for each path at once.
fn pipeline<'a, F: Fn(String) -> Request>(
    session: &Session,
    connection: u64,
    paths: &'a [NodePath],
    request: F,
) -> Vec<(&'a NodePath, impl Future<Output = Result<Answer, Error>> + use<F>)> {
    paths
        .iter()
        .map(|path| (path, session.submit_on(connection, request(path.as_str().to_owned()), None, None)))
        .collect()
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_for_what_does_not_come_share_syncs_that_pause_ever_longer() {
        let watches = Arc::new(Watches::default());
        let session = Session::full(watches.connection_made(), watches.clone());
        let (_current, session) = watch::channel(session);
        let slot = WatchSlot { watches: watches.clone(), session, syncs: Arc::default() };
        let mut began = Vec::new();
        for _ in 0..8 {
            let calls: Vec<_> = (1..=1000).map(|zxid| slot.sync(Zxid(zxid))).collect();
            let each = futures_util::future::join_all(calls).await;
            assert!(each.iter().all(|synced| synced.began == each[0].began && synced.connection.is_none()));
            began.push(each[0].began);
        }
        let pauses: Vec<_> = began.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
        assert_eq!(pauses, [2, 4, 8, 16, 32, 50, 50]);
        assert_eq!(slot.syncs.lock().wanted, Zxid(1000));
    }

    /// With a paused clock: nothing here touches a socket.
    #[tokio::test(start_paused = true)]
    async fn a_full_queue_is_left_alone_once_for_all_watches_that_it_refuses() {
        let watches = Arc::new(Watches::default());
        let mailbox = Arc::default();
        for index in 0..WATCHES_AT_ONCE {
            watches.subscribe(&NodePath::trusted(format!("/{index}")), &mailbox);
        }
        let connection = watches.connection_made();
        let session = Session::full(connection, watches.clone());
        let begun = Instant::now();
        apply_differences(&session, &watches, connection).await;
        assert_eq!(begun.elapsed(), FULL_QUEUE_PAUSE);
        assert_eq!(watches.differences(WATCHES_AT_ONCE).0.len(), WATCHES_AT_ONCE, "they are still to be set");
    }

    #[tokio::test]
    async fn a_panic_of_the_sessions_task_is_one_of_the_task_that_keeps_it() {
        let watches = Arc::new(Watches::default());
        // Its link ends with the task, so that `keep_watches` ends at the same moment.
        let session = Session::full(watches.connection_made(), watches.clone());
        let config = Arc::new(Config::of(std::net::SocketAddr::from(([127, 0, 0, 1], 1))));
        let mut tasks = JoinSet::new();
        for _ in 0..32 {
            let current = watch::channel(session.clone()).0;
            tasks.spawn(keep_session(config.clone(), watches.clone(), current, async { panic!("a defect") }));
        }
        for _ in 0..32 {
            let ended = tokio::time::timeout(std::time::Duration::from_secs(60), tasks.join_next());
            assert!(ended.await.expect("each ends").unwrap().unwrap_err().is_panic());
        }
    }
}
