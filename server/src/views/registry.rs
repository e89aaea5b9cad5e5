//! All views: opened when first needed, shared, dropped when idle.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::maker::Maker;
use super::pins::Pins;
use super::purse::Purse;
use super::reader::Reader;
use super::ring;
use super::scope::Scope;
use super::shared::{Inner, Settings, ViewUse};
use super::slots::Slots;
use super::store::{self, Store};
use super::task::Task;
use super::view::View;
use crate::budget::{Account, Budget};
use crate::error::Error;
use crate::turns::Turns;
use crate::types::{NodePath, Zxid};
use crate::zk::Zk;

/// Maximum number of multi reads under way on one session that load views for the first time. ZooKeeper answers them
/// faster than they can be sent.
const LOADS: usize = 32;
/// Time between two searches for views that have been idle for long enough, or for too much memory in use.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// The handle to all views. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Views(Arc<Inner>);

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
