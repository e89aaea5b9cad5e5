//! Views over a restart: what is known of each path that is read or watched, kept in a directory, so that a replica that
//! starts while ZooKeeper is away can still tell the last that was known.
//!
//! Written by one task, off the runtime's threads: a view that has changed, at most once in a while. A state without
//! children never takes the place of one with some: an outage that empties a list is just what the last known list is
//! kept for. Within one process nothing is shown that is older than what was shown before.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::directory::{Directory, MAX_FILE_BYTES, OpenError, Owner};
use super::scope::Scope;
use super::state::State;
use super::stored::{self, Stored};
use super::view::View;
use crate::mutex::lock;
use crate::types::Revision;

/// How often it is looked for views that have changed.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// How long a view that was written is left alone, changed or not.
const REST: Duration = Duration::from_secs(5);
/// How long it is left alone when it could not be written.
const REST_AFTER_FAILURE: Duration = Duration::from_secs(30);
/// How often the time of a view is moved that stays as it is.
const TOUCH: Duration = Duration::from_secs(60);
/// How many views are kept, and how many bytes they may take; beyond that, those go that were written longest ago.
const MAX_FILES: usize = 10_000;
const MAX_BYTES: u64 = 1024 * 1024 * 1024;
/// How many dropped views may wait to be written, and how many bytes of them.
const MAX_LEFT: usize = 1024;
const MAX_LEFT_BYTES: usize = MAX_FILE_BYTES;

/// A directory of views. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Store(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    directory: Directory,
    index: Mutex<Index>,
    /// One writes at a time.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Index {
    kept: HashMap<Scope, Kept>,
    bytes: u64,
    /// The last of views that are dropped, and that is not on disk yet.
    left: HashMap<Scope, Last>,
    left_bytes: usize,
    is_failing: bool,
}

/// What is known of a file.
#[derive(Debug)]
struct Kept {
    revision: Revision,
    has_children: bool,
    bytes: u64,
    written: SystemTime,
    /// That this process has shown a later state, which was not kept.
    is_outdated: bool,
    /// Not before then is it written again.
    rests_until: Instant,
    touched: Instant,
}

/// What was last known of a view.
#[derive(Debug, Clone)]
enum Last {
    Shown(Stored),
    /// ZooKeeper's access control list hides the path: what was known of it before may not be shown any more.
    Hidden,
}

/// What to do with a file.
enum Job {
    Write(Stored),
    Touch(SystemTime),
    Remove,
}

impl Store {
    /// Takes a directory, and reads what it keeps. Blocks.
    ///
    /// # Errors
    /// When another process has it, when it belongs to another ZooKeeper or chroot, or when it can't be used. A broken
    /// file is no error: it is named in the log.
    pub(crate) fn open(path: &Path, owner: &Owner) -> Result<Self, OpenError> {
        let directory = Directory::open(path, owner)?;
        let mut index = Index::default();
        let now = Instant::now();
        let scanned = directory.scan(|found| {
            let state = &found.stored.state;
            let kept = Kept::new(state, found.bytes, found.modified, now);
            index.bytes += found.bytes;
            index.kept.insert(state.scope(), Kept { rests_until: now, ..kept });
        });
        scanned.map_err(|error| OpenError::Io { path: path.to_owned(), error })?;
        tracing::info!(directory = %path.display(), views = index.kept.len(), bytes = index.bytes, "views are kept");
        Ok(Self(Arc::new(Shared { directory, index: Mutex::new(index), writing: tokio::sync::Mutex::default() })))
    }

    /// Whether it keeps anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.index().kept.is_empty()
    }

    /// Whether there is something to show of a view.
    pub(super) fn has(&self, scope: &Scope) -> bool {
        let index = self.0.index();
        match index.left.get(scope) {
            Some(left) => matches!(left, Last::Shown(_)),
            None => index.kept.get(scope).is_some_and(|kept| !kept.is_outdated),
        }
    }

    /// What was last known of a view.
    pub(super) async fn load(&self, scope: &Scope) -> Option<Stored> {
        if !self.has(scope) {
            return None;
        }
        if let Some(Last::Shown(left)) = self.0.index().left.get(scope) {
            return Some(left.clone());
        }
        let (shared, scope) = (self.0.clone(), scope.clone());
        tokio::task::spawn_blocking(move || shared.directory.read(&scope)).await.ok()?
    }

    /// A view is dropped: what is not on disk yet is kept in mind.
    pub(super) fn note_dropped(&self, view: &View) {
        let Some(last) = last_known(view) else { return };
        let mut index = self.0.index();
        let is_full = index.left.len() >= MAX_LEFT || index.left_bytes + last.bytes() > MAX_LEFT_BYTES;
        let kept = index.kept.get_mut(&view.scope);
        match (&last, kept) {
            (Last::Hidden, None) => {}
            (Last::Shown(stored), Some(kept)) if kept.revision == stored.state.revision => {}
            (Last::Shown(stored), Some(kept)) if kept.would_be_emptied(&stored.state) => kept.is_outdated = true,
            (_, Some(kept)) if is_full => kept.is_outdated = true,
            (_, None) if is_full => {}
            _ => index.leave(&view.scope, last),
        }
    }

    /// Writes what has changed, unless it rests.
    pub(super) async fn save(&self, views: Vec<Arc<View>>) {
        self.save_as_of(views, Instant::now()).await;
    }

    /// Writes what has changed, at once.
    pub(super) async fn save_all(&self, views: Vec<Arc<View>>) {
        self.save_as_of(views, Instant::now() + REST_AFTER_FAILURE).await;
    }

    async fn save_as_of(&self, views: Vec<Arc<View>>, now: Instant) {
        let _turn = self.0.writing.lock().await;
        let shared = self.0.clone();
        let saved = tokio::task::spawn_blocking(move || {
            let left: Vec<_> = shared.index().left.iter().map(|(scope, last)| (scope.clone(), last.clone())).collect();
            for (scope, last) in left {
                let job = match &last {
                    Last::Shown(stored) => Job::Write(stored.clone()),
                    Last::Hidden => Job::Remove,
                };
                shared.carry_out(&scope, &job);
                shared.index().is_done(&scope, &last);
            }
            for view in views {
                if let Some(job) = shared.due(&view, now) {
                    shared.carry_out(&view.scope, &job);
                }
            }
        });
        if let Err(error) = saved.await {
            tracing::error!(%error, "writing views failed");
        }
    }
}

fn last_known(view: &View) -> Option<Last> {
    let known = view.known();
    if known.is_hidden() {
        return Some(Last::Hidden);
    }
    let state = known.state.clone()?;
    let as_of = known.as_of.unwrap_or_else(SystemTime::now);
    Some(Last::Shown(Stored { state, as_of }))
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }

    /// What there is to do for a view now.
    fn due(&self, view: &View, now: Instant) -> Option<Job> {
        let last = last_known(view)?;
        let index = self.index();
        match (last, index.kept.get(&view.scope)) {
            (Last::Hidden, kept) => kept.map(|_| Job::Remove),
            (Last::Shown(stored), None) => Some(Job::Write(stored)),
            (Last::Shown(_), Some(kept)) if now < kept.rests_until => None,
            (Last::Shown(stored), Some(kept)) if kept.revision == stored.state.revision => {
                let is_due = view.is_connected() && now.duration_since(kept.touched) >= TOUCH;
                is_due.then_some(Job::Touch(stored.as_of))
            }
            (Last::Shown(stored), Some(kept)) => (!kept.would_be_emptied(&stored.state)).then_some(Job::Write(stored)),
        }
    }

    fn carry_out(&self, scope: &Scope, job: &Job) {
        let result = match job {
            Job::Write(stored) => self.write(scope, stored),
            Job::Touch(as_of) => self.directory.touch(scope, *as_of),
            Job::Remove => {
                self.index().forget(scope);
                self.directory.remove(scope)
            }
        };
        let is_failing = result.is_err();
        let was_failing = std::mem::replace(&mut self.index().is_failing, is_failing);
        match result {
            Ok(()) if was_failing => tracing::info!("views are kept on disk again"),
            Ok(()) => {}
            Err(error) => {
                // Once, and not for every view in every round.
                if !was_failing {
                    tracing::error!(path = %scope.path, %error, "a view can't be kept on disk");
                }
                self.index().rest_after_failure(scope);
            }
        }
    }

    fn write(&self, scope: &Scope, stored: &Stored) -> io::Result<()> {
        let file = stored::encode(&stored.state, stored.as_of, MAX_FILE_BYTES).ok_or(io::ErrorKind::FileTooLarge)?;
        self.directory.write(scope, &file)?;
        let bytes = u64::try_from(file.len()).unwrap_or(u64::MAX);
        let old = self.index().note_written(scope, Kept::new(&stored.state, bytes, SystemTime::now(), Instant::now()));
        old.iter().try_for_each(|scope| self.directory.remove(scope))
    }
}

impl Index {
    /// Takes in what was written; gives the views that have made room for it.
    fn note_written(&mut self, scope: &Scope, kept: Kept) -> Vec<Scope> {
        self.bytes += kept.bytes;
        self.bytes -= self.kept.insert(scope.clone(), kept).map_or(0, |before| before.bytes);
        self.make_room(scope)
    }

    /// The last of a view is to be written.
    fn leave(&mut self, scope: &Scope, last: Last) {
        self.left_bytes += last.bytes();
        self.left_bytes -= self.left.insert(scope.clone(), last).map_or(0, |before| before.bytes());
    }

    /// What was left of a view is on disk, unless a later one was left meanwhile.
    fn is_done(&mut self, scope: &Scope, last: &Last) {
        let is_same = |other: &Last| match (last, other) {
            (Last::Shown(one), Last::Shown(other)) => Arc::ptr_eq(&one.state, &other.state),
            (Last::Hidden, Last::Hidden) => true,
            _ => false,
        };
        if self.left.get(scope).is_some_and(is_same) {
            self.left_bytes -= self.left.remove(scope).map_or(0, |last| last.bytes());
        }
    }

    /// What was shown meanwhile is not what is on disk.
    fn rest_after_failure(&mut self, scope: &Scope) {
        let now = Instant::now();
        let nothing = || Kept {
            revision: Revision(-1),
            has_children: false,
            bytes: 0,
            written: SystemTime::now(),
            is_outdated: true,
            rests_until: now,
            touched: now,
        };
        let kept = self.kept.entry(scope.clone()).or_insert_with(nothing);
        kept.is_outdated = true;
        kept.revision = Revision(-1);
        kept.rests_until = now + REST_AFTER_FAILURE;
    }

    fn make_room(&mut self, newest: &Scope) -> Vec<Scope> {
        let mut removed = Vec::new();
        while self.kept.len() > MAX_FILES || self.bytes > MAX_BYTES {
            let others = self.kept.iter().filter(|(scope, _)| *scope != newest);
            let Some(oldest) = others.min_by_key(|(_, kept)| kept.written).map(|(scope, _)| scope.clone()) else {
                break;
            };
            self.forget(&oldest);
            removed.push(oldest);
        }
        removed
    }

    fn forget(&mut self, scope: &Scope) {
        self.bytes -= self.kept.remove(scope).map_or(0, |kept| kept.bytes);
    }
}

impl Last {
    /// What it keeps in memory, roughly.
    fn bytes(&self) -> usize {
        match self {
            Self::Shown(stored) => stored.state.bytes(),
            Self::Hidden => 0,
        }
    }
}

impl Kept {
    fn new(state: &State, bytes: u64, written: SystemTime, now: Instant) -> Self {
        let has_children = !state.children.is_empty();
        let rests_until = now + REST;
        Self { revision: state.revision, has_children, bytes, written, is_outdated: false, rests_until, touched: now }
    }

    fn would_be_emptied(&self, by: &State) -> bool {
        self.has_children && by.children.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use tempfile::TempDir;

    use super::*;
    use crate::types::{NodePath, Stat, Zxid};
    use crate::views::ring::Limits;
    use crate::views::state::{Entry, NodeRead, Reads};

    fn owner(hosts: &[&str], chroot: &str) -> Owner {
        Owner { hosts: hosts.iter().map(|host| (*host).to_owned()).collect(), chroot: chroot.to_owned() }
    }

    fn open(directory: &TempDir) -> Store {
        Store::open(directory.path(), &owner(&["zk1:2181", "zk2:2181"], "/prod")).unwrap()
    }

    fn scope(path: &str) -> Scope {
        Scope { path: NodePath::trusted(path), recursive: false }
    }

    /// A state with these children, each of which holds its name.
    fn state(path: &str, revision: i64, children: &[&str]) -> State {
        let stat = Stat { num_children: i32::try_from(children.len()).unwrap(), ..Stat::default() };
        let entry = |data: &str, stat| Arc::new(Entry::new(data.as_bytes(), stat));
        let reads = children.iter().map(|name| ((*name).into(), Some(entry(name, Stat::default()))));
        let mut state = State::empty(NodePath::trusted(path), false);
        state.apply(NodeRead::Present(entry("", stat)), reads.collect::<Reads>(), Zxid(revision));
        state.revision = Revision(revision);
        state
    }

    fn show(view: &View, revision: i64, children: &[&str]) {
        view.show_whole_now(state(view.scope.path.as_str(), revision, children), Zxid(revision), 0);
    }

    fn view(path: &str, revision: i64, children: &[&str]) -> Arc<View> {
        let view = View::unbounded(scope(path), Limits { moments: 10, bytes: 10_000 });
        show(&view, revision, children);
        Arc::new(view)
    }

    async fn names(store: &Store, path: &str) -> Option<Vec<String>> {
        let stored = store.load(&scope(path)).await?;
        Some(stored.state.children.iter().map(|(name, _)| name.to_string()).collect())
    }

    fn view_files(directory: &TempDir) -> Vec<std::path::PathBuf> {
        let files = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "view")).collect()
    }

    #[tokio::test]
    async fn what_was_kept_is_there_after_a_restart() {
        let directory = TempDir::new().unwrap();
        let store = open(&directory);
        assert!(store.is_empty() && !store.has(&scope("/a")));
        store.save(vec![view("/a", 5, &["x", "y"]), view("/b", 6, &[])]).await;
        drop(store);
        let store = open(&directory);
        assert!(!store.is_empty());
        assert_eq!(names(&store, "/a").await.unwrap(), ["x", "y"]);
        assert_eq!(names(&store, "/b").await.unwrap(), Vec::<String>::new());
        assert_eq!(store.load(&scope("/a")).await.unwrap().state.revision, Revision(5));
        assert!(!store.has(&Scope { recursive: true, ..scope("/a") }));
        for file in view_files(&directory) {
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[tokio::test]
    async fn a_directory_is_one_replicas_and_one_trees() {
        let directory = TempDir::new().unwrap();
        let store = open(&directory);
        let again = Store::open(directory.path(), &owner(&["zk1:2181"], "/prod"));
        assert!(matches!(again, Err(OpenError::InUse(_))));
        store.save(vec![view("/a", 5, &["x"])]).await;
        drop(store);
        for other in [owner(&["zk1:2181"], "/test"), owner(&["elsewhere:2181"], "/prod")] {
            let error = Store::open(directory.path(), &other).unwrap_err();
            assert!(error.to_string().contains("zk1:2181,zk2:2181/prod"), "{error}");
        }
        // Servers of an ensemble come and go.
        for hosts in [["zk2:2181", "zk3:2181"], ["zk3:2181", "zk4:2181"]] {
            let store = Store::open(directory.path(), &owner(&hosts, "/prod")).unwrap();
            assert!(store.has(&scope("/a")));
        }
    }

    #[tokio::test]
    async fn views_of_nobody_knows_whom_are_removed() {
        let directory = TempDir::new().unwrap();
        open(&directory).save(vec![view("/a", 5, &["x"])]).await;
        fs::write(directory.path().join("belongs-to"), "\u{0}").unwrap();
        assert!(open(&directory).is_empty());
        assert!(view_files(&directory).is_empty());
    }

    #[tokio::test]
    async fn broken_and_foreign_files_are_passed_over() {
        let directory = TempDir::new().unwrap();
        let store = open(&directory);
        store.save(vec![view("/whole", 5, &["x"])]).await;
        let whole = view_files(&directory).remove(0);
        store.save(vec![view("/broken", 5, &["x"])]).await;
        let broken = view_files(&directory).into_iter().find(|file| *file != whole).unwrap();
        drop(store);
        let bytes = fs::read(&broken).unwrap();
        fs::write(&broken, &bytes[..bytes.len() - 1]).unwrap();
        // In another one's place, not finished, and not ours at all.
        fs::copy(&whole, directory.path().join(format!("{}.view", "0".repeat(64)))).unwrap();
        let unfinished = directory.path().join(format!("{}.view.new", "1".repeat(64)));
        let notes = directory.path().join("notes.view");
        fs::write(&unfinished, b"half").unwrap();
        fs::write(&notes, b"mine").unwrap();
        let store = open(&directory);
        assert!(store.has(&scope("/whole")) && !store.has(&scope("/broken")));
        assert!(!unfinished.exists() && notes.exists());
        // It is written again, and whole then.
        store.save(vec![view("/broken", 6, &["y"])]).await;
        drop(store);
        assert_eq!(names(&open(&directory), "/broken").await.unwrap(), ["y"]);
    }

    #[test]
    fn what_a_view_leaves_while_an_older_state_is_written_stays_to_be_written() {
        let last =
            |revision| Last::Shown(Stored { state: Arc::new(state("/a", revision, &[])), as_of: SystemTime::now() });
        let (older, newer, scope) = (last(5), last(6), scope("/a"));
        let mut index = Index::default();
        for later in [newer, Last::Hidden] {
            index.leave(&scope, later.clone());
            index.is_done(&scope, &older);
            assert!(index.left.contains_key(&scope));
            index.is_done(&scope, &later);
            assert!(index.left.is_empty());
        }
    }

    #[tokio::test]
    async fn an_empty_list_never_takes_the_place_of_a_known_one() {
        let directory = TempDir::new().unwrap();
        let store = open(&directory);
        let view = view("/a", 5, &["x"]);
        store.save_all(vec![view.clone()]).await;
        show(&view, 6, &[]);
        store.save_all(vec![view.clone()]).await;
        assert_eq!(names(&store, "/a").await.unwrap(), ["x"]);
        // This process has shown the empty list: it shows nothing older any more. The next one may.
        store.note_dropped(&view);
        assert!(!store.has(&scope("/a")));
        drop(store);
        let store = open(&directory);
        assert_eq!(names(&store, "/a").await.unwrap(), ["x"]);
        show(&view, 7, &["y"]);
        store.save_all(vec![view]).await;
        assert_eq!(names(&store, "/a").await.unwrap(), ["y"]);
    }

    #[tokio::test]
    async fn a_view_is_written_once_in_a_while_and_its_last_state_is_never_forgotten() {
        let directory = TempDir::new().unwrap();
        let store = open(&directory);
        let view = view("/a", 5, &["x"]);
        store.save(vec![view.clone()]).await;
        show(&view, 6, &["y"]);
        store.save(vec![view.clone()]).await;
        assert_eq!(names(&store, "/a").await.unwrap(), ["x"], "it rests");
        store.note_dropped(&view);
        assert_eq!(names(&store, "/a").await.unwrap(), ["y"], "from memory");
        store.save(Vec::new()).await;
        drop(store);
        assert_eq!(names(&open(&directory), "/a").await.unwrap(), ["y"], "from disk");
    }

    #[tokio::test]
    async fn what_zookeeper_hides_now_is_removed() {
        let directory = TempDir::new().unwrap();
        let store = open(&directory);
        let (stays, goes) = (view("/stays", 5, &["x"]), view("/goes", 5, &["x"]));
        store.save(vec![stays.clone(), goes.clone()]).await;
        stays.forbid().await;
        store.save(vec![stays]).await;
        goes.forbid().await;
        store.note_dropped(&goes);
        assert!(!store.has(&scope("/goes")));
        store.save(Vec::new()).await;
        drop(store);
        assert!(open(&directory).is_empty() && view_files(&directory).is_empty());
    }

    #[tokio::test]
    async fn a_view_that_can_not_be_written_is_not_shown_as_it_was_before() {
        let directory = TempDir::new().unwrap();
        let store = open(&directory);
        let view = view("/a", 5, &["x"]);
        store.save(vec![view.clone()]).await;
        // A directory in the place of the file.
        let blocker = view_files(&directory).remove(0);
        fs::remove_file(&blocker).unwrap();
        fs::create_dir(&blocker).unwrap();
        show(&view, 6, &["y"]);
        store.save_all(vec![view.clone()]).await;
        assert!(!store.has(&scope("/a")));
        fs::remove_dir(&blocker).unwrap();
        store.0.index().kept.get_mut(&scope("/a")).unwrap().rests_until = Instant::now();
        store.save(vec![view]).await;
        assert_eq!(names(&store, "/a").await.unwrap(), ["y"]);
    }

    #[test]
    fn the_oldest_views_make_room() {
        let mut index = Index::default();
        let mut write = |path: &str, bytes: u64, second: u64| {
            let written = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            let removed =
                index.note_written(&scope(path), Kept::new(&state(path, 1, &[]), bytes, written, Instant::now()));
            removed.iter().map(|scope| scope.path.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert!(write("/a", MAX_BYTES / 2, 1).is_empty());
        assert!(write("/b", MAX_BYTES / 2, 2).is_empty());
        assert!(write("/a", MAX_BYTES / 2, 3).is_empty());
        assert_eq!(write("/c", MAX_BYTES / 4, 4), ["/b"]);
        assert!(write("/d", MAX_BYTES / 4, 5).is_empty());
        assert_eq!(write("/e", MAX_BYTES, 6), ["/a", "/c", "/d"]);
    }
}
