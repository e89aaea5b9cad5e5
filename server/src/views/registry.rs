//! All views: opened when first needed, shared, dropped when idle.

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

/// Maximum number of multi reads under way on one session that load views for the first time. ZooKeeper answers them
/// faster than they can be sent.
const LOADS: usize = 32;
/// Time between two searches for views that have been idle for long enough, or for too much memory in use.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum time between two checks whether ZooKeeper is away.
const LEAST_WAIT: Duration = Duration::from_millis(50);
/// Maximum number of ended tasks that are collected under one lock.
const JOINED_AT_ONCE: usize = 1024;
/// Maximum number of views that are dropped under one lock.
const DROPPED_AT_ONCE: usize = 64;

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Maximum number of views that nobody uses. One more, and the view that has been idle longest is dropped.
    pub(crate) max_idle: usize,
    /// Maximum number of bytes that one view may occupy, roughly, and that all views may. A load that needs more is
    /// refused.
    pub(crate) max_bytes: (usize, usize),
    /// Time for which a view that nobody uses is kept.
    pub(crate) idle: Duration,
    /// Time that a reader waits for a ZooKeeper that can't be reached.
    pub(crate) patience: Duration,
    /// Time that ZooKeeper has to be away before views kept on disk are shown; less than `patience`.
    pub(crate) away: Duration,
    /// Maximum number of changes that a view remembers.
    pub(crate) ring_moments: usize,
    /// Maximum number of bytes of changes that a view remembers, roughly.
    pub(crate) ring_bytes: usize,
    /// Maximum number of states that are kept for pages, and of bytes that they occupy together.
    pub(crate) pins: (usize, usize),
    /// Time for which a state is kept for its next page.
    pub(crate) pin_life: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_idle: 10_000,
            max_bytes: (Limits::CONNECTION.view_bytes, Limits::REPLICA.view_bytes),
            idle: Duration::from_secs(40),
            patience: Duration::from_secs(2),
            away: Duration::from_secs(1),
            ring_moments: 1024,
            ring_bytes: 1024 * 1024,
            pins: (64, Limits::CONNECTION.view_bytes),
            pin_life: Duration::from_secs(60),
        }
    }
}

/// The handle to all views. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Views(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) zk: Zk,
    pub(super) settings: Settings,
    /// Turns to load a view for the first time, for each session that watches: a session that hangs delays no other.
    loads: Vec<Turns<()>>,
    /// The limits on memory: for views, among others.
    budget: Budget,
    /// The account that pays for idle views.
    idle: Account,
    maker: Maker,
    store: Option<Store>,
    started: Instant,
    slots: Mutex<Slots>,
    /// One task for each view.
    tasks: Mutex<JoinSet<()>>,
    has_failed: AtomicBool,
    pins: Mutex<Pins>,
}

/// A use of a view, which keeps the view alive.
#[derive(Debug)]
pub(super) struct ViewUse {
    pub(super) view: Arc<View>,
    account: Account,
    inner: Arc<Inner>,
}

impl Views {
    /// Starts the views as tasks of `tasks`, which never end. The known states are kept in `store`, if there is one.
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

    /// Writes the known states to disk now, if there is a store.
    pub(crate) async fn save(&self) {
        if let Some(store) = &self.0.store {
            store.save_all(self.0.views()).await;
        }
    }

    /// A reader of a path and its children or, if `recursive`, of its subtree, for a connection. The view begins to
    /// load unless it exists already, and goes on loading for as long as a reader waits for it.
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
        Ok(Reader::new(ViewUse { view, account: account.clone(), inner: self.0.clone() }))
    }

    /// The last transaction that this process knows of.
    pub(crate) fn last_zxid(&self) -> Zxid {
        self.0.zk.last_zxid()
    }

    /// Number of views.
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

    /// The turns to load a view of this path for the first time.
    pub(super) fn loads(&self, path: &NodePath) -> &Turns<()> {
        &self.loads[self.zk.hub.index(path)]
    }

    /// Starts the task of a view, and collects up to two tasks that have ended, so that ended tasks never pile up.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        self.join_ended(&mut tasks, 2);
        tasks.spawn(task);
    }

    /// Collects some of the tasks that have ended; returns whether no more are left.
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

    /// A view is dropped. Called while the table is locked, so that the next reader that opens the view finds what was
    /// kept of it.
    fn note_dropped(&self, view: &Arc<View>) {
        view.stop();
        view.give_back();
        if let Some(store) = &self.store {
            store.note_dropped(view);
        }
    }

    /// Drops idle views while all views together occupy more than three quarters of their limit: the rest is for views
    /// in use. Drops some at a time; returns whether none is left to drop.
    pub(super) fn make_room(&self) -> bool {
        let most = self.settings.max_bytes.1 / 4 * 3;
        let is_enough = || self.budget.used(Resource::ViewBytes) <= most;
        is_enough() || self.drop_idle(|slots| if is_enough() { None } else { slots.drop_idlest(None) })
    }

    /// Drops views that have been idle for long enough, some at a time; returns whether none is left.
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

    /// Shows the state that was kept of a view, once ZooKeeper has been away for a while. Never ends.
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

    /// Time for which ZooKeeper has sent nothing, although a view that began to load has asked.
    fn away_for(&self, path: &NodePath, begun: Instant) -> Duration {
        let session = self.zk.hub.session(path);
        if session.is_up() {
            session.silence().min(begun.elapsed())
        } else {
            session.last_heard().unwrap_or(self.started).elapsed()
        }
    }
}

impl ViewUse {
    pub(super) fn views(&self) -> &Inner {
        &self.inner
    }
}

impl Drop for ViewUse {
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

/// Writes the known states to disk. Never ends.
async fn keep(inner: Arc<Inner>, store: Store) {
    let mut interval = tokio::time::interval(store::SAVE_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        store.save(inner.views()).await;
    }
}

/// Drops idle views. Ends if the task of a view has panicked.
async fn tidy(inner: Arc<Inner>) {
    let mut interval = tokio::time::interval(SWEEP_INTERVAL);
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
