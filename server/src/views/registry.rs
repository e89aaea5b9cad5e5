//! Which views there are: opened on first need, shared, dropped when idle.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::pins::Pins;
use super::reader::Reader;
use super::ring::Limits;
use super::scope::Scope;
use super::store::{self, Store};
use super::stored::Stored;
use super::task::Task;
use super::view::View;
use crate::error::Error;
use crate::types::NodePath;
use crate::zk::Zk;

/// How many views may wait for their task to start; one more is refused.
const BIRTHS: usize = 4096;
/// How often it is looked how much memory the views take.
const WEIGH: Duration = Duration::from_secs(1);

/// The settings of the views.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// How many views there may be. When there are, the one that has been idle longest makes room; if all are in use, a
    /// further one is refused.
    pub(crate) max_views: usize,
    /// How many bytes the views may occupy, roughly. When it is more, those go that have been idle longest; what is in use
    /// stays.
    pub(crate) max_bytes: usize,
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
    /// How many states are kept for pages.
    pub(crate) pins: usize,
    /// How long a state is kept for its next page.
    pub(crate) pin_life: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_views: 10_000,
            max_bytes: 1024 * 1024 * 1024,
            idle: Duration::from_secs(60),
            patience: Duration::from_secs(2),
            away: Duration::from_secs(1),
            ring_moments: 1024,
            ring_bytes: 1024 * 1024,
            pins: 64,
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
    store: Option<Store>,
    started: Instant,
    registry: Mutex<HashMap<Scope, Slot>>,
    births: mpsc::Sender<Arc<View>>,
    pins: Mutex<Pins>,
}

/// A view and its users. Both change under the registry's lock alone, so that no view goes that somebody is given.
#[derive(Debug)]
struct Slot {
    view: Arc<View>,
    users: usize,
    idle_since: Instant,
}

/// A use of a view, which stays for as long.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) view: Arc<View>,
    inner: Arc<Inner>,
}

impl Views {
    /// Starts the views as tasks of `tasks`, which never end. What is known is kept in `store`, if there is one.
    pub(crate) fn start(zk: Zk, settings: Settings, store: Option<Store>, tasks: &mut JoinSet<()>) -> Self {
        let (births, born) = mpsc::channel(BIRTHS);
        let pins = Mutex::new(Pins::new(settings.pins, settings.pin_life));
        let (started, registry) = (Instant::now(), Mutex::default());
        let inner = Arc::new(Inner { zk, settings, store, started, registry, births, pins });
        tasks.spawn(supervise(inner.clone(), born));
        tasks.spawn(weigh(inner.clone()));
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

    /// A reader of a path and its children or, if `recursive`, of its subtree. The view starts to load at once, if it is
    /// not there already.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when there are too many views in use.
    pub(crate) fn open(&self, path: &NodePath, recursive: bool) -> Result<Reader, Error> {
        let scope = Scope { path: path.clone(), recursive };
        let settings = &self.0.settings;
        let too_many = || Error::LimitExceeded {
            reason: "TOO_MANY_VIEWS",
            what: "the number of paths that are read and watched",
            limit: u64::try_from(settings.max_views).unwrap_or(u64::MAX),
        };
        let mut registry = self.0.registry();
        if let Some(slot) = registry.get_mut(&scope) {
            slot.users += 1;
            return Ok(self.reader(slot.view.clone()));
        }
        if registry.len() >= settings.max_views && !self.0.drop_idlest(&mut registry) {
            return Err(too_many());
        }
        let limits = Limits { moments: settings.ring_moments, bytes: settings.ring_bytes };
        let view = Arc::new(View::new(scope.clone(), limits));
        self.0.births.try_send(view.clone()).map_err(|_| too_many())?;
        registry.insert(scope, Slot { view: view.clone(), users: 1, idle_since: Instant::now() });
        drop(registry);
        Ok(self.reader(view))
    }

    /// How many views there are.
    pub(crate) fn count(&self) -> usize {
        self.0.registry().len()
    }

    fn reader(&self, view: Arc<View>) -> Reader {
        Reader::new(Lease { view, inner: self.0.clone() })
    }
}

impl Inner {
    pub(super) fn pins(&self) -> MutexGuard<'_, Pins> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn registry(&self) -> MutexGuard<'_, HashMap<Scope, Slot>> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn views(&self) -> Vec<Arc<View>> {
        self.registry().values().map(|slot| slot.view.clone()).collect()
    }

    /// Drops the view that has been idle longest; `false` when all are in use.
    fn drop_idlest(&self, registry: &mut HashMap<Scope, Slot>) -> bool {
        let idle = registry.iter().filter(|(_, slot)| slot.users == 0);
        let Some(scope) = idle.min_by_key(|(_, slot)| slot.idle_since).map(|(scope, _)| scope.clone()) else {
            return false;
        };
        if let Some(view) = self.drop_view(registry, &scope) {
            view.stop();
        }
        true
    }

    /// Drops idle views while all together occupy too much.
    fn drop_surplus(&self) {
        let mut registry = self.registry();
        let bytes: usize = registry.values().map(|slot| slot.view.bytes()).sum();
        let mut surplus = bytes.saturating_sub(self.settings.max_bytes);
        if surplus == 0 {
            return;
        }
        let idle = registry.iter().filter(|(_, slot)| slot.users == 0);
        let mut idle: Vec<_> = idle.map(|(scope, slot)| (slot.idle_since, scope.clone())).collect();
        idle.sort_unstable_by_key(|(since, _)| *since);
        for (_, scope) in idle {
            if surplus == 0 {
                return;
            }
            if let Some(view) = self.drop_view(&mut registry, &scope) {
                surplus = surplus.saturating_sub(view.bytes());
                view.stop();
            }
        }
    }

    fn drop_view(&self, registry: &mut HashMap<Scope, Slot>, scope: &Scope) -> Option<Arc<View>> {
        let view = registry.remove(scope)?.view;
        if let Some(store) = &self.store {
            store.note_dropped(&view);
        }
        Some(view)
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
            if view.restore(state, as_of) {
                tracing::info!(path = %view.scope.path, "zookeeper is away: what was kept on disk is shown");
            }
        }
        std::future::pending::<()>().await;
    }

    /// Since when ZooKeeper has said nothing, though there was something to say: a view that began to load.
    fn away_since(&self, path: &NodePath, begun: Instant) -> Instant {
        let session = self.zk.hub.session(path);
        let heard = session.last_heard();
        if session.is_up() { heard.map_or(begun, |heard| heard.max(begun)) } else { heard.unwrap_or(self.started) }
    }

    /// Resolves when the view has been idle for long enough, and is dropped.
    async fn retire(&self, scope: &Scope) {
        let mut look_at = Instant::now() + self.settings.idle;
        loop {
            tokio::time::sleep_until(look_at).await;
            let mut registry = self.registry();
            let Some(slot) = registry.get(scope) else { return };
            let idle_until = slot.idle_since + self.settings.idle;
            if slot.users == 0 && idle_until <= Instant::now() {
                self.drop_view(&mut registry, scope);
                return;
            }
            look_at = if slot.users == 0 { idle_until } else { Instant::now() + self.settings.idle };
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
        if let Some(slot) = self.inner.registry().get_mut(&self.view.scope) {
            slot.users -= 1;
            slot.idle_since = Instant::now();
        }
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

/// Bounds the memory that the views take. Never ends.
async fn weigh(inner: Arc<Inner>) {
    let mut interval = tokio::time::interval(WEIGH);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        inner.drop_surplus();
    }
}

/// Runs the views' tasks. A panic in one of them ends this.
async fn supervise(inner: Arc<Inner>, mut born: mpsc::Receiver<Arc<View>>) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            Some(view) = born.recv() => {
                let inner = inner.clone();
                tasks.spawn(async move {
                    let task = Task::new(view.clone(), inner.zk.clone());
                    let retire = async {
                        tokio::select! {
                            () = inner.retire(&view.scope) => {}
                            () = inner.restore(&view) => {}
                        }
                    };
                    task.run(retire).await;
                });
            }
            Some(result) = tasks.join_next() => {
                if let Err(error) = result {
                    tracing::error!(%error, "a view's task failed");
                    return;
                }
            }
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
        Views::start(Zk::start(config, tasks), settings, None, tasks)
    }

    fn path(name: &str) -> NodePath {
        NodePath::trusted(format!("/{name}"))
    }

    #[tokio::test]
    async fn too_many_views_in_use_are_refused_and_idle_ones_make_room() {
        let mut tasks = JoinSet::new();
        let views = views(Settings { max_views: 2, ..Settings::default() }, &mut tasks);
        let first = views.open(&path("a"), false).unwrap();
        let second = views.open(&path("a"), true).unwrap();
        let again = views.open(&path("a"), true).unwrap();
        assert_eq!(views.open(&path("b"), false).unwrap_err().reason(), "TOO_MANY_VIEWS");
        drop(second);
        assert!(views.open(&path("b"), false).is_err());
        drop(again);
        let other = views.open(&path("b"), false).unwrap();
        assert_eq!(views.count(), 2);
        drop((first, other));
    }

    #[tokio::test]
    async fn views_that_take_too_much_go_when_they_are_idle() {
        let mut tasks = JoinSet::new();
        let views = views(Settings { max_bytes: 2000, ..Settings::default() }, &mut tasks);
        let open = |name| {
            let reader = views.open(&path(name), false).unwrap();
            let mut state = State::empty(path(name), false);
            let node = NodeRead::Present(Arc::new(Entry::new(&[0; 500], Stat::default())));
            state.apply(node, Reads::new(), Zxid(1));
            reader.view().show_whole(state, Zxid(1), 0);
            reader
        };
        let (used, idlest, idle) = (open("used"), open("idlest"), open("idle"));
        drop(idlest);
        drop(idle);
        views.0.drop_surplus();
        let names: std::collections::HashSet<_> = views.0.registry().keys().map(|scope| scope.path.clone()).collect();
        assert_eq!(names, [path("used"), path("idle")].into());
        views.0.drop_surplus();
        assert_eq!(views.count(), 2, "it is enough");
        drop(used);
    }

    #[tokio::test]
    async fn an_idle_view_is_dropped_and_one_in_use_is_not() {
        let mut tasks = JoinSet::new();
        let views = views(Settings { idle: Duration::from_millis(10), ..Settings::default() }, &mut tasks);
        let kept = views.open(&path("a"), false).unwrap();
        drop(views.open(&path("b"), false).unwrap());
        let dropped = async {
            while views.count() > 1 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), dropped).await.unwrap();
        drop(kept);
    }

    #[tokio::test]
    async fn a_path_never_seen_is_unavailable_while_zookeeper_is_away() {
        let mut tasks = JoinSet::new();
        let views = views(Settings { patience: Duration::from_millis(10), ..Settings::default() }, &mut tasks);
        let reader = views.open(&path("a"), false).unwrap();
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
