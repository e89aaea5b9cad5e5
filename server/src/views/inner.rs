//! The state that all views share, and the use of one view.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::maker::Maker;
use super::pins::Pins;
use super::slots::Slots;
use super::store::Store;
use super::stored::Stored;
use super::times::LEAST_WAIT;
use super::view::View;
use crate::budget::{Account, Budget, Limits, Resource};
use crate::turns::Turns;
use crate::types::NodePath;
use crate::zk::Zk;

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

/// The state that the handle, the uses and the tasks of views share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) zk: Zk,
    pub(super) settings: Settings,
    /// Turns to load a view for the first time, for each session that watches: a session that hangs delays no other.
    pub(super) loads: Vec<Turns<()>>,
    /// The limits on memory: for views, among others.
    pub(super) budget: Budget,
    /// The account that pays for idle views.
    pub(super) idle: Account,
    pub(super) maker: Maker,
    pub(super) store: Option<Store>,
    pub(super) started: Instant,
    pub(super) slots: Mutex<Slots>,
    /// One task for each view.
    pub(super) tasks: Mutex<JoinSet<()>>,
    pub(super) has_failed: AtomicBool,
    pub(super) pins: Mutex<Pins>,
}

/// A use of a view, which keeps the view alive.
#[derive(Debug)]
pub(super) struct ViewUse {
    pub(super) view: Arc<View>,
    pub(super) account: Account,
    pub(super) inner: Arc<Inner>,
}

impl Inner {
    pub(super) fn pins(&self) -> MutexGuard<'_, Pins> {
        self.pins.lock()
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock()
    }

    pub(super) fn views(&self) -> Vec<Arc<View>> {
        self.slots().views()
    }

    /// The turns to load a view of this path for the first time.
    pub(super) fn loads(&self, path: &NodePath) -> &Turns<()> {
        &self.loads[self.zk.hub.index(path)]
    }

    /// Starts the task of a view, and collects up to two tasks that have ended, so that ended tasks never pile up.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        self.join_ended(&mut tasks, 2);
        tasks.spawn(task);
    }

    /// Collects some of the tasks that have ended; returns whether no more are left.
    pub(super) fn join_some(&self) -> bool {
        let mut tasks = self.tasks.lock();
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
    pub(super) fn note_dropped(&self, view: &Arc<View>) {
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
    pub(super) fn drop_old(&self) -> bool {
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
    pub(super) async fn restore(&self, view: &View) {
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
            tracing::info!(path = %view.scope.path, "zookeeper can't be reached: serving a view from disk");
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
