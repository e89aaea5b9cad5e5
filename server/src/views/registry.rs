//! Which views there are: opened on first need, shared, dropped when idle.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::maker::Maker;
use super::pins::Pins;
use super::purse::Purse;
use super::reader::Reader;
use super::ring;
use super::scope::Scope;
use super::slots::Slots;
use super::store::{self, Store};
use super::stored::Stored;
use super::task::Task;
use super::view::View;
use crate::budget::{Account, Budget, Limits, Resource};
use crate::error::Error;
use crate::mutex::lock;
use crate::turns::Turns;
use crate::types::{NodePath, Zxid};
use crate::zk::Zk;

/// Number of multi reads with which views are loaded at once over one session. ZooKeeper answers them faster than they can be
/// asked.
const LOADS: usize = 32;
/// How often it is looked for views that have been idle for long enough, or take too much memory.
const LOOK: Duration = Duration::from_secs(1);
/// Shortest time after which it is looked again whether ZooKeeper is away.
const LEAST_WAIT: Duration = Duration::from_millis(50);
/// Maximum number of ended tasks that are taken away under one lock.
const JOINED_AT_ONCE: usize = 1024;
/// Maximum number of views that are dropped under one lock.
const DROPPED_AT_ONCE: usize = 64;

/// The settings of the views.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Maximum number of views that nobody uses. With one more, the one that has been idle longest goes.
    pub(crate) max_idle: usize,
    /// How many bytes one view may occupy, roughly, and how many all may: a load that needs more is refused.
    pub(crate) max_bytes: (usize, usize),
    /// How long a view that nobody uses is kept.
    pub(crate) idle: Duration,
    /// How long a reader waits for a ZooKeeper that can't be reached.
    pub(crate) patience: Duration,
    /// How long ZooKeeper has to be away before what was kept on disk is shown; less than `patience`.
    pub(crate) away: Duration,
    /// How many changes a view remembers.
    pub(crate) ring_moments: usize,
    /// How many bytes of changes a view remembers, roughly.
    pub(crate) ring_bytes: usize,
    /// How many states are kept for pages, and how many bytes they may occupy in all.
    pub(crate) pins: (usize, usize),
    /// How long a state is kept for its next page.
    pub(crate) pin_life: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_idle: 10_000,
            max_bytes: (Limits::CONNECTION.view_bytes, Limits::REPLICA.view_bytes),
            idle: Duration::from_secs(60),
            patience: Duration::from_secs(2),
            away: Duration::from_secs(1),
            ring_moments: 1024,
            ring_bytes: 1024 * 1024,
            pins: (64, Limits::CONNECTION.view_bytes),
            pin_life: Duration::from_secs(60),
        }
    }
}

/// The handle on all views. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Views(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) zk: Zk,
    pub(super) settings: Settings,
    /// Whose turn it is to load a view for the first time, for each session that watches: one that hangs holds up no other.
    loads: Vec<Turns<()>>,
    /// The memory for views, among others.
    budget: Budget,
    /// Who pays for idle views.
    idle: Account,
    maker: Maker,
    store: Option<Store>,
    started: Instant,
    slots: Mutex<Slots>,
    /// A task a view.
    tasks: Mutex<JoinSet<()>>,
    has_failed: AtomicBool,
    pins: Mutex<Pins>,
}

/// A use of a view, which stays for as long.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) view: Arc<View>,
    account: Account,
    inner: Arc<Inner>,
}

impl Views {
    /// Starts the views as tasks of `tasks`, which never end. What is known is kept in `store`, if there is one.
    pub(crate) fn start(
        zk: Zk,
        settings: Settings,
        store: Option<Store>,
        budget: &Budget,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let inner = Arc::new(Inner {
            loads: (0..zk.hub.sessions()).map(|_| Turns::new(LOADS)).collect(),
            zk,
            budget: budget.clone(),
            idle: budget.common_account(),
            maker: Maker::new(budget),
            store,
            started: Instant::now(),
            slots: Mutex::new(Slots::new(settings.max_idle)),
            tasks: Mutex::default(),
            has_failed: AtomicBool::new(false),
            pins: Mutex::new(Pins::new(settings.pins, settings.pin_life)),
            settings,
        });
        tasks.spawn(tidy(inner.clone()));
        if let Some(store) = inner.store.clone() {
            tasks.spawn(keep(inner.clone(), store));
        }
        Self(inner)
    }

    /// Keeps on disk what is known now, if that is to be kept at all.
    pub(crate) async fn save(&self) {
        if let Some(store) = &self.0.store {
            store.save_all(self.0.views()).await;
        }
    }

    /// A reader of a path and its children or, if `recursive`, of its subtree, for a connection. The view begins to load,
    /// if it is not there already, and goes on for as long as there is a reader that waits for it.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when this connection, or the replica, uses too many paths that nobody else uses.
    pub(crate) fn open(&self, path: &NodePath, recursive: bool, account: &Account) -> Result<Reader, Error> {
        let scope = Scope { path: path.clone(), recursive };
        let Settings { ring_moments, ring_bytes, .. } = self.0.settings;
        let limits = ring::Limits { moments: ring_moments, bytes: ring_bytes };
        let make = || {
            let purse = Purse::new(account, self.0.idle.clone(), self.0.settings.max_bytes.0);
            let view = Arc::new(View::new(scope.clone(), limits, purse));
            self.0.spawn(live(self.0.clone(), view.clone()));
            view
        };
        let view = self.0.slots().open(&scope, account, make)?;
        Ok(Reader::new(Lease { view, account: account.clone(), inner: self.0.clone() }))
    }

    /// The last transaction that this process knows of.
    pub(crate) fn last_zxid(&self) -> Zxid {
        self.0.zk.last_zxid()
    }

    /// How many views there are.
    pub(crate) fn count(&self) -> usize {
        self.0.slots().len()
    }

    pub(super) fn maker(&self) -> &Maker {
        &self.0.maker
    }
}

impl Inner {
    pub(super) fn pins(&self) -> MutexGuard<'_, Pins> {
        lock(&self.pins)
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        lock(&self.slots)
    }

    fn views(&self) -> Vec<Arc<View>> {
        self.slots().views()
    }

    /// Whose turn it is to load a view of this path for the first time.
    pub(super) fn loads(&self, path: &NodePath) -> &Turns<()> {
        &self.loads[self.zk.hub.index(path)]
    }

    /// Starts the task of a view. Those that have ended go: two for each that begins, so that there are never many.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        self.join_ended(&mut tasks, 2);
        tasks.spawn(task);
    }

    /// Takes away some of the tasks that have ended; gives whether there are no more.
    fn join_some(&self) -> bool {
        let mut tasks = lock(&self.tasks);
        self.join_ended(&mut tasks, JOINED_AT_ONCE) < JOINED_AT_ONCE
    }

    fn join_ended(&self, tasks: &mut JoinSet<()>, most: usize) -> usize {
        let mut joined = 0;
        for ended in std::iter::from_fn(|| tasks.try_join_next()).take(most) {
            joined += 1;
            if let Err(error) = ended {
                tracing::error!(%error, "a view's task failed");
                self.has_failed.store(true, Ordering::Relaxed);
            }
        }
        joined
    }

    /// A view is dropped: while the table is locked, so that whoever opens it again finds what was kept of it.
    fn note_dropped(&self, view: &Arc<View>) {
        view.stop();
        view.give_back();
        if let Some(store) = &self.store {
            store.note_dropped(view);
        }
    }

    /// Drops idle views while all together occupy more than three quarters of what they may: what is left is for those in
    /// use. Some at a time; gives whether there was none to drop.
    pub(super) fn make_room(&self) -> bool {
        let most = self.settings.max_bytes.1 / 4 * 3;
        let is_enough = || self.budget.used(Resource::ViewBytes) <= most;
        is_enough() || self.drop_idle(|slots| if is_enough() { None } else { slots.drop_idlest(None) })
    }

    /// Drops views that have been idle for long enough, some at a time; gives whether there was none.
    fn drop_old(&self) -> bool {
        let before = Instant::now().checked_sub(self.settings.idle);
        self.drop_idle(|slots| slots.drop_idlest(Some(before?)))
    }

    fn drop_idle(&self, next: impl Fn(&mut Slots) -> Option<Arc<View>>) -> bool {
        for _ in 0..DROPPED_AT_ONCE {
            let mut slots = self.slots();
            let Some(view) = next(&mut slots) else { return true };
            self.note_dropped(&view);
        }
        false
    }

    /// Shows what was kept of a view from before, once ZooKeeper has been away for a while. Never ends.
    async fn restore(&self, view: &View) {
        let begun = Instant::now();
        while let Some(store) = self.store.as_ref().filter(|store| store.has(&view.scope) && view.is_unknown()) {
            let away = self.away_for(&view.scope.path, begun);
            if let Some(left) = self.settings.away.checked_sub(away).filter(|left| !left.is_zero()) {
                tokio::time::sleep(left.max(LEAST_WAIT)).await;
                continue;
            }
            let Some(Stored { state, as_of }) = store.load(&view.scope).await else { break };
            if !view.restore(state, as_of).await {
                break;
            }
            tracing::info!(path = %view.scope.path, "zookeeper is away: what was kept on disk is shown");
        }
        std::future::pending::<()>().await;
    }

    /// How long ZooKeeper has said nothing, though there was something to say: a view that began to load.
    fn away_for(&self, path: &NodePath, begun: Instant) -> Duration {
        let session = self.zk.hub.session(path);
        if session.is_up() {
            session.silence().min(begun.elapsed())
        } else {
            session.last_heard().unwrap_or(self.started).elapsed()
        }
    }
}

impl Lease {
    pub(super) fn views(&self) -> &Inner {
        &self.inner
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut slots = self.inner.slots();
        if let Some(dropped) = slots.close(&self.view.scope, &self.account, Instant::now()) {
            self.inner.note_dropped(&dropped);
        }
    }
}

/// The task of a view, until it is dropped.
async fn live(inner: Arc<Inner>, view: Arc<View>) {
    tokio::select! {
        // A view that is dropped before its task first runs asks ZooKeeper for nothing.
        biased;
        () = view.stopped() => {}
        () = inner.restore(&view) => {}
        () = Task::run(view.clone(), inner.clone()) => {}
    }
}

/// Writes what is known to disk. Never ends.
async fn keep(inner: Arc<Inner>, store: Store) {
    let mut interval = tokio::time::interval(store::LOOK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        store.save(inner.views()).await;
    }
}

/// Drops what is idle. A panic in the task of a view ends this.
async fn tidy(inner: Arc<Inner>) {
    let mut interval = tokio::time::interval(LOOK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        while !(inner.drop_old() && inner.make_room()) {
            tokio::task::yield_now().await;
        }
        while !inner.join_some() {
            tokio::task::yield_now().await;
        }
        if inner.has_failed.load(Ordering::Relaxed) {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
