use std::net::SocketAddr;

use rollcall_embedded::Embedded;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::budget::{Limits, Resource};
use crate::types::Stat;
use crate::views::node::{NodeRead, Reads, ViewNode};
use crate::views::state::State;
use crate::views::{ConnectionKey, Reached, Step, Watcher};
use crate::zk::{Config, CreateMode, Request, create, set_data};

/// Views of a ZooKeeper that can't be reached.
fn views(settings: Settings, tasks: &mut JoinSet<()>) -> Views {
    let config = Config::of(SocketAddr::from(([127, 0, 0, 1], 1)));
    Views::start(Zk::start(config, tasks), settings, None, &Budget::new(Limits::NONE, Limits::NONE), tasks)
}

/// Views of an embedded ZooKeeper, and its address.
async fn embedded(
    settings: Settings,
    budget: &Budget,
    config: rollcall_embedded::Config,
    tasks: &mut JoinSet<()>,
) -> (Views, SocketAddr) {
    let embedded = Embedded::bind(SocketAddr::from(([127, 0, 0, 1], 0)), config).await.unwrap();
    let address = embedded.local_addr();
    tasks.spawn(async move { embedded.run(std::future::pending()).await });
    let views = Views::start(Zk::start(Config::of(address), tasks), settings, None, budget, tasks);
    assert!(views.0.zk.hub.session(&path("")).connected().await);
    (views, address)
}

/// Carries out a write.
async fn write(views: &Views, request: Request) {
    let session = views.0.zk.hub.session(&path(""));
    session.submit(request).await.unwrap();
}

/// Creates a node with children of this many bytes each.
async fn make(views: &Views, name: &str, children: usize, bytes: usize) {
    let make = |path: String, bytes| create(&path, vec![b'x'; bytes].into(), CreateMode::Persistent);
    write(views, make(format!("/{name}"), 0)).await;
    for child in 0..children {
        write(views, make(format!("/{name}/{child:050}"), bytes)).await;
    }
}

/// Number of requests that the embedded server has received.
async fn received(address: SocketAddr) -> usize {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"srvr").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text.lines().find_map(|line| line.strip_prefix("Received: ")).unwrap().parse().unwrap()
}

fn path(name: &str) -> NodePath {
    NodePath::trusted(format!("/{name}"))
}

/// Opens a view and loads it.
fn open(views: &Views, name: &str, bytes: usize) -> Reader {
    open_as(views, name, bytes, &Account::unlimited())
}

fn open_as(views: &Views, name: &str, bytes: usize, account: &Account) -> Reader {
    let reader = views.open(&path(name), false, account).unwrap();
    let mut state = State::empty(path(name), false);
    state.take_in(NodeRead::Present(Arc::new(ViewNode::new(&vec![0; bytes], Stat::default()))), Reads::new());
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
    let of = |view_bytes| Limits { view_bytes, ..Limits::NONE };
    let budget = Budget::new(of(100_000), of(200_000));
    let config = Config::of(SocketAddr::from(([127, 0, 0, 1], 1)));
    let settings = Settings { max_bytes: (100_000, 200_000), ..Settings::default() };
    let views = Views::start(Zk::start(config, &mut tasks), settings, None, &budget, &mut tasks);
    let [used, idlest, idle] = [("a", 90_000), ("b", 90_000), ("c", 40_000)]
        .map(|(name, bytes)| open_as(&views, name, bytes, &budget.account()));
    drop(idlest);
    drop(idle);
    wait_for(&views, 2).await;
    let held = budget.used(Resource::ViewBytes);
    assert!((90_000..150_000).contains(&held), "{held}");
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
    let mut watcher = Watcher::open(reader, None, Zxid(0), false, ConnectionKey::default());
    let step = watcher.next().await.unwrap().step;
    let suspended = crate::views::BackendState::Suspended;
    assert!(matches!(step, crate::views::Step::Backend { state, as_of: None } if state == suspended));
    assert_eq!(watcher.current().0, 0);
    assert!(watcher.is_stale());
}

#[tokio::test]
async fn the_tasks_of_views_that_are_dropped_are_gone_soon_however_many() {
    const MANY: usize = 3000;
    let mut tasks = JoinSet::new();
    let views = views(Settings { idle: Duration::from_millis(10), ..Settings::default() }, &mut tasks);
    let readers: Vec<_> = (0..MANY).map(|number| open(&views, &number.to_string(), 1)).collect();
    let left = || views.0.tasks.lock().unwrap().len();
    assert_eq!(left(), MANY);
    drop(readers);
    let gone = async {
        while left() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
}

#[tokio::test]
async fn a_path_that_is_too_large_is_not_read_again_for_what_happens_to_it() {
    const TIMES: usize = 50;
    let mut tasks = JoinSet::new();
    let settings = Settings { max_bytes: (100_000, usize::MAX), ..Settings::default() };
    let budget = Budget::new(Limits::NONE, Limits::NONE);
    let (views, address) = embedded(settings, &budget, rollcall_embedded::Config::default(), &mut tasks).await;
    make(&views, "big", 200, 1000).await;
    make(&views, "other", 0, 0).await;
    let (big, other) = (
        views.open(&path("big"), false, &budget.account()).unwrap(),
        views.open(&path("other"), false, &budget.account()).unwrap(),
    );
    assert_eq!(big.cached().await.unwrap_err(), Error::path_too_large(100_000));
    other.latest().await.unwrap();
    let before = received(address).await;
    for _ in 0..TIMES {
        write(&views, set_data(&format!("/big/{:050}", 0), b"y".as_slice().into(), -1)).await;
        // By then the change is known, and a watch would have caused a read.
        other.latest().await.unwrap();
    }
    // Each round has a write, a sync and a read.
    let asked = received(address).await - before;
    assert!(asked < 3 * TIMES + TIMES / 4, "{asked} requests");
    assert_eq!(big.latest().await.unwrap_err(), Error::path_too_large(100_000));
}

#[tokio::test]
async fn a_list_that_no_answer_can_hold_is_refused() {
    let mut tasks = JoinSet::new();
    let config = rollcall_embedded::Config { max_unread: 64 * 1024, ..rollcall_embedded::Config::default() };
    let budget = Budget::new(Limits::NONE, Limits::NONE);
    let (views, _) = embedded(Settings::default(), &budget, config, &mut tasks).await;
    make(&views, "wide", 2000, 0).await;
    for (name, recursive) in [("wide", false), ("", true)] {
        let reader = views.open(&path(name), recursive, &budget.account()).unwrap();
        assert_eq!(reader.latest().await.unwrap_err().reason(), "TOO_MANY_VIEW_BYTES");
    }
}

#[tokio::test]
async fn what_one_connection_reads_is_its_own_and_a_full_replica_ends_no_view_in_use() {
    let mut tasks = JoinSet::new();
    let of = |view_bytes| Limits { view_bytes, ..Limits::NONE };
    let budget = Budget::new(of(300_000), of(500_000));
    let settings = Settings { max_bytes: (300_000, 500_000), ..Settings::default() };
    let (views, _) = embedded(settings, &budget, rollcall_embedded::Config::default(), &mut tasks).await;
    for name in ["one", "two", "three"] {
        make(&views, name, 20, 10_000).await;
    }
    make(&views, "citizen", 4, 10_000).await;
    let [greedy, citizen, third] = [(); 3].map(|()| budget.account());
    let open = |name: &str, account: &Account| views.open(&path(name), false, account).unwrap();
    let known = open("citizen", &citizen);
    known.latest().await.unwrap();
    let first = open("one", &greedy);
    first.latest().await.unwrap();
    let second = open("two", &greedy);
    assert_eq!(second.latest().await.unwrap_err().reason(), "TOO_MANY_VIEW_BYTES");
    // Another connection has room for the same.
    let same = open("two", &third);
    same.latest().await.unwrap();
    second.latest().await.unwrap();
    let full = open("three", &budget.account());
    assert_eq!(full.latest().await.unwrap_err().reason(), "TOO_MANY_VIEW_BYTES");
    for child in 0..4 {
        write(&views, set_data(&format!("/citizen/{child:050}"), vec![b'y'; 40_000].into(), -1)).await;
    }
    let reading = known.latest().await.unwrap();
    assert!(reading.state.children.iter().all(|(_, entry)| entry.data.len() == 40_000));
    assert!(budget.used(Resource::ViewBytes) > 500_000);
}

/// A deadline that no test ever reaches.
fn far() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(600)
}

#[tokio::test]
async fn nobody_waits_for_a_suspended_view_which_knows_what_it_had_reached() {
    let mut tasks = JoinSet::new();
    let budget = Budget::new(Limits::NONE, Limits::NONE);
    let (views, _) = embedded(Settings::default(), &budget, rollcall_embedded::Config::default(), &mut tasks).await;
    let reader = views.open(&path("absent"), false, &Account::unlimited()).unwrap();
    reader.cached().await.unwrap();
    make(&views, "elsewhere", 0, 0).await;
    let latest = views.0.zk.last_zxid();
    assert_eq!(reader.reach(latest, far()).await, Reached::Yes);
    reader.view().suspend_now(crate::views::view::BackendState::Suspended, None);
    assert!(reader.has_reached(latest));
    let reached = tokio::time::timeout(Duration::from_secs(60), reader.reach(Zxid(latest.0 + 1), far())).await;
    assert_eq!(reached, Ok(Reached::NotInTime));
}

#[tokio::test]
async fn a_watch_that_comes_from_what_zookeeper_has_lost_begins_with_a_reset() {
    let mut tasks = JoinSet::new();
    let budget = Budget::new(Limits::NONE, Limits::NONE);
    let (views, _) = embedded(Settings::default(), &budget, rollcall_embedded::Config::default(), &mut tasks).await;
    make(&views, "a", 1, 1).await;
    let revision = views.open(&path("a"), false, &Account::unlimited()).unwrap().cached().await.unwrap().state.revision;
    for since in [None, Some(revision)] {
        for (at_least, is_lost) in [(views.0.zk.last_zxid(), false), (Zxid(i64::MAX), true)] {
            let reader = views.open(&path("a"), false, &Account::unlimited()).unwrap();
            let mut watcher = Watcher::open(reader, since, at_least, false, ConnectionKey::default());
            let told = watcher.next().await.unwrap();
            assert_eq!(matches!(told.step, Step::Snapshot { is_reset: true, .. }), is_lost, "{told:?}");
            assert_eq!(watcher.take_end().is_some_and(|end| end >= Zxid(revision.0)), is_lost);
            assert_eq!(watcher.take_end(), None);
        }
    }
}
