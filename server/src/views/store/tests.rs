use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tempfile::TempDir;

use super::*;
use crate::types::{NodePath, Stat, Zxid};
use crate::views::node::{NodeRead, Reads, ViewNode};
use crate::views::ring::Limits;

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
    let entry = |data: &str, stat| Arc::new(ViewNode::new(data.as_bytes(), stat));
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
    // The servers of an ensemble change.
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
    // A copy under the name of another view, an unfinished file, and files that are not ours at all.
    fs::copy(&whole, directory.path().join(format!("{}.view", "0".repeat(64)))).unwrap();
    let unfinished = directory.path().join(format!("{}.view.new", "1".repeat(64)));
    let notes = directory.path().join("notes.view");
    fs::write(&unfinished, b"half").unwrap();
    fs::write(&notes, b"mine").unwrap();
    let store = open(&directory);
    assert!(store.has(&scope("/whole")) && !store.has(&scope("/broken")));
    assert!(!unfinished.exists() && notes.exists());
    // It is written again, and whole after that.
    store.save(vec![view("/broken", 6, &["y"])]).await;
    drop(store);
    assert_eq!(names(&open(&directory), "/broken").await.unwrap(), ["y"]);
}

#[test]
fn what_a_view_leaves_while_an_older_state_is_written_stays_to_be_written() {
    let last = |revision| Last::Shown(Stored { state: Arc::new(state("/a", revision, &[])), as_of: SystemTime::now() });
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
    // This process has shown the empty list and shows nothing older any more. The next process may.
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
    // A directory in place of the file.
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
            index.note_written(&scope(path), KeptFile::new(&state(path, 1, &[]), bytes, written, Instant::now()));
        removed.iter().map(|scope| scope.path.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert!(write("/a", MAX_BYTES / 2, 1).is_empty());
    assert!(write("/b", MAX_BYTES / 2, 2).is_empty());
    assert!(write("/a", MAX_BYTES / 2, 3).is_empty());
    assert_eq!(write("/c", MAX_BYTES / 4, 4), ["/b"]);
    assert!(write("/d", MAX_BYTES / 4, 5).is_empty());
    assert_eq!(write("/e", MAX_BYTES, 6), ["/a", "/c", "/d"]);
}

#[tokio::test]
async fn a_store_that_is_full_writes_no_more_views_and_touches_none_twice() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let views: Vec<_> = ["/a", "/b"].map(|path| view(path, 5, &["x"])).into();
    store.save(views.clone()).await;
    let touched = |store: &Store| {
        let index = store.0.index();
        views.iter().map(|view| index.kept[&view.scope].touched).collect::<Vec<_>>()
    };
    // A minute later their times are updated, once.
    let later = Instant::now() + TOUCH;
    store.save_as_of(views.clone(), later).await;
    let at = touched(&store);
    let mut room = 0;
    for view in &views {
        assert!(store.0.due(view, at[1] + TOUCH / 2, &mut room).is_none());
    }
    // The maximum number of views, all in use.
    let fill = KeptFile::new(&state("/", 1, &[]), 0, SystemTime::now(), Instant::now());
    let others = (0..MAX_FILES - 2).map(|number| scope(&format!("/other/{number}")));
    store.0.index().kept.extend(others.map(|scope| (scope, fill.clone())));
    let new = view("/new", 6, &["x"]);
    store.save(vec![new.clone()]).await;
    assert!(!store.has(&new.scope));
    store.note_dropped(&new);
    assert!(!store.has(&new.scope) && store.0.index().left.is_empty());
    // One file belongs to no view any more.
    let long_ago = Instant::now().checked_sub(3 * TOUCH).unwrap();
    let unused = scope("/other/0");
    let kept = KeptFile { touched: long_ago, written: SystemTime::UNIX_EPOCH, ..fill };
    store.0.index().kept.insert(unused.clone(), kept);
    store.save(vec![new.clone(), view("/newer", 6, &["x"])]).await;
    assert!(store.has(&new.scope) && !store.has(&unused) && !store.has(&scope("/newer")));
    assert_eq!(store.0.index().kept.len(), MAX_FILES);
}

#[tokio::test]
async fn a_view_that_can_not_be_written_at_all_takes_no_place_and_rests() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let view = view("/a", 5, &["x"]);
    store.save(vec![view.clone()]).await;
    let file = view_files(&directory).remove(0);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    *store.0.index() = Index::default();
    store.save(vec![view.clone()]).await;
    assert!(store.0.index().kept.is_empty());
    let mut room = store.0.index().begin_round(Instant::now());
    assert!(store.0.due(&view, Instant::now(), &mut room).is_none(), "it rests");
    let later = Instant::now() + REST_AFTER_FAILURE;
    let mut room = store.0.index().begin_round(later);
    assert!(store.0.due(&view, later, &mut room).is_some());
}
