//! Which views there are: opened on first need, shared, dropped when idle.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::maker::Maker;
use super::pins::Pins;
use super::reader::Reader;
use super::ring;
use super::scope::Scope;
use super::slots::Slots;
use super::store::{self, Store};
use super::stored::Stored;
use super::task::Task;
use super::turns::Turns;
use super::view::View;
use crate::budget::{Account, Budget, Limits, Resource};
use crate::error::Error;
use crate::mutex::lock;
use crate::types::NodePath;
use crate::zk::Zk;

/// Number of multi reads with which views are loaded at once. ZooKeeper answers them faster than they can be asked.
const LOADS: usize = 64;
/// How often it is looked for views that have been idle for long enough, or take too much memory.
const LOOK: Duration = Duration::from_secs(1);
/// Maximum number of views that are dropped under one lock.
const DROPPED_AT_ONCE: usize = 64;

/// The settings of the views.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Maximum number of views that nobody uses. With one more, the one that has been idle longest goes.
    pub(crate) max_idle: usize,
    /// How many bytes one view, and all views, may occupy, roughly. A read that needs more is refused.
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
    /// Whose turn it is to load a view for the first time.
    pub(super) loads: Turns,
    /// The memory for views, where each is an account.
    memory: Budget,
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
        let (one, all) = settings.max_bytes;
        let of_bytes = |view_bytes| Limits { view_bytes, ..Limits::NONE };
        let inner = Arc::new(Inner {
            zk,
            loads: Turns::new(LOADS),
            memory: Budget::new(of_bytes(one), of_bytes(all)),
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
            let share = self.0.memory.account().take(Resource::ViewBytes, 0)?;
            let view = Arc::new(View::new(scope.clone(), limits, share));
            self.0.spawn(live(self.0.clone(), view.clone(), account.id()));
            Ok(view)
        };
        let view = self.0.slots().open(&scope, account, make)?;
        Ok(Reader::new(Lease { view, account: account.clone(), inner: self.0.clone() }))
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

    /// Starts the task of a view. Those that have ended go: two for each that begins, so that there are never many.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        for ended in std::iter::from_fn(|| tasks.try_join_next()).take(2) {
            if let Err(error) = ended {
                tracing::error!(%error, "a view's task failed");
                self.has_failed.store(true, Ordering::Relaxed);
            }
        }
        tasks.spawn(task);
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
        self.drop_idle(
            |slots| {
                if self.memory.used(Resource::ViewBytes) > most { slots.drop_idlest(None) } else { None }
            },
        )
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
            let since = self.away_since(&view.scope.path, begun);
            if since.elapsed() < self.settings.away {
                tokio::time::sleep_until(since + self.settings.away).await;
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

    /// Since when ZooKeeper has said nothing, though there was something to say: a view that began to load.
    fn away_since(&self, path: &NodePath, begun: Instant) -> Instant {
        let session = self.zk.hub.session(path);
        let heard = session.last_heard();
        if session.is_up() { heard.map_or(begun, |heard| heard.max(begun)) } else { heard.unwrap_or(self.started) }
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
async fn live(inner: Arc<Inner>, view: Arc<View>, connection: u64) {
    tokio::select! {
        () = view.stopped() => {}
        () = inner.restore(&view) => {}
        () = Task::run(view.clone(), inner.clone(), connection) => {}
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
        inner.spawn(std::future::ready(()));
        if inner.has_failed.load(Ordering::Relaxed) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Stat, Zxid};
    use crate::views::Neighbourhood;
    use crate::views::state::{Entry, NodeRead, Reads, State};
    use crate::zk::Config;

    /// Views of a ZooKeeper that can't be reached.
    fn views(settings: Settings, tasks: &mut JoinSet<()>) -> Views {
        let config = Config::of(std::net::SocketAddr::from(([127, 0, 0, 1], 1)));
        Views::start(Zk::start(config, tasks), settings, None, &Budget::new(Limits::NONE, Limits::NONE), tasks)
    }

    fn path(name: &str) -> NodePath {
        NodePath::trusted(format!("/{name}"))
    }

    /// Opens a view, and has it loaded.
    fn open(views: &Views, name: &str, bytes: usize) -> Reader {
        let reader = views.open(&path(name), false, &Account::unlimited()).unwrap();
        let mut state = State::empty(path(name), false);
        state.take_in(NodeRead::Present(Arc::new(Entry::new(&vec![0; bytes], Stat::default()))), Reads::new());
        reader.view().show_whole_now(state, Zxid(1), 0);
        reader
    }

    async fn wait_for(views: &Views, count: usize) {
        let dropped = async {
            while views.count() != count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), dropped).await.unwrap();
    }

    #[tokio::test]
    async fn views_that_take_too_much_go_when_they_are_idle() {
        let mut tasks = JoinSet::new();
        let views = views(Settings { max_bytes: (100_000, 200_000), ..Settings::default() }, &mut tasks);
        let (used, idlest, idle) = (open(&views, "a", 90_000), open(&views, "b", 90_000), open(&views, "c", 40_000));
        drop(idlest);
        drop(idle);
        wait_for(&views, 2).await;
        assert!(views.0.memory.used(Resource::ViewBytes) > 90_000);
        assert!(views.0.make_room(), "it is enough");
        assert_eq!(views.count(), 2);
        drop(used);
    }

    #[tokio::test]
    async fn an_idle_view_is_dropped_and_one_in_use_is_not() {
        let mut tasks = JoinSet::new();
        let views = views(Settings { idle: Duration::from_millis(10), ..Settings::default() }, &mut tasks);
        let kept = open(&views, "a", 1);
        drop(open(&views, "b", 1));
        wait_for(&views, 1).await;
        drop(kept);
        wait_for(&views, 0).await;
    }

    #[tokio::test]
    async fn views_that_nobody_waits_for_leave_nothing_behind() {
        let mut tasks = JoinSet::new();
        let views = views(Settings::default(), &mut tasks);
        for round in 0..10_000 {
            let reader = views.open(&path(&round.to_string()), false, &Account::unlimited()).unwrap();
            drop(reader);
            tokio::task::yield_now().await;
        }
        assert_eq!(views.count(), 0);
        let left = views.0.tasks.lock().unwrap().len();
        assert!(left < 100, "{left}");
    }

    #[tokio::test]
    async fn a_path_never_seen_is_unavailable_while_zookeeper_is_away() {
        let mut tasks = JoinSet::new();
        let views = views(Settings { patience: Duration::from_millis(10), ..Settings::default() }, &mut tasks);
        let reader = views.open(&path("a"), false, &Account::unlimited()).unwrap();
        assert_eq!(reader.cached().await.unwrap_err(), Error::BackendUnavailable);
        assert_eq!(reader.latest().await.unwrap_err(), Error::BackendUnavailable);
        let mut watcher = reader.watch(None, false, Neighbourhood::default());
        let step = watcher.next().await.unwrap().step;
        let suspended = super::super::BackendState::Suspended;
        assert!(matches!(step, super::super::Step::Backend { state, as_of: None } if state == suspended));
        assert_eq!(watcher.current().0, 0);
        assert!(watcher.is_stale());
    }
}
