use std::net::SocketAddr;

use rollcall_embedded::Embedded;
use rollcall_wire::{CreateMode, ErrorCode, OpCode, Request};
use tokio::time::Instant;

use super::super::calls::{create, delete, set_data};
use super::super::config::PATH_LENGTH;
use super::super::layout;
use super::super::proxy::Proxy;
use super::*;
use crate::zk::times::FIRST_SURPLUS_PAUSE;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// A pool on a server of its own that takes this many connections.
async fn pool(max_connections: usize, change: impl FnOnce(&mut Config)) -> (Pool, JoinSet<()>) {
    let mut tasks = JoinSet::new();
    let settings = rollcall_embedded::Config { max_connections, ..rollcall_embedded::Config::default() };
    let embedded = Embedded::bind(SocketAddr::from(([127, 0, 0, 1], 0)), settings).await.unwrap();
    let mut config = Config::of(embedded.local_addr());
    change(&mut config);
    tasks.spawn(async move { embedded.run(std::future::pending()).await });
    let pool = Pool::start(&Arc::new(config), &mut tasks);
    (pool, tasks)
}

/// Reserves room, once there is some. Waits while another session is being opened, or none is connected.
async fn wait_for_room(pool: &Pool, path_bytes: usize) -> Result<PathReservation, NoRoom> {
    loop {
        let mut news = pool.room_news();
        match pool.reserve(path_bytes) {
            Err(NoRoom::NotConnected | NoRoom::Opening) => {
                // The news reports room; that no room will come is found out by asking.
                drop(tokio::time::timeout(Duration::from_millis(500), news.changed()).await);
            }
            other => return other,
        }
    }
}

/// Takes all the room there is.
async fn fill(pool: &Pool, path_bytes: usize) -> Vec<PathReservation> {
    let mut reservations = Vec::new();
    let filling = async {
        while let Ok(reservation) = wait_for_room(pool, path_bytes).await {
            reservations.push(reservation);
        }
    };
    tokio::time::timeout(LONG, filling).await.expect("a pool is full some day");
    reservations
}

async fn wait_for_sessions(pool: &Pool, count: usize) {
    let mut owners = pool.owners();
    let there = owners.wait_for(|owners| owners.len() == count);
    tokio::time::timeout(LONG, there).await.expect("so many sessions soon").unwrap();
}

#[tokio::test]
async fn paths_count_as_zookeeper_writes_them_when_their_session_ends() {
    let chroot = format!("/{}", "c".repeat(300));
    let (pool, _tasks) = pool(10, |config| config.chroot.clone_from(&chroot)).await;
    let reservations = fill(&pool, 6).await;
    let fence = layout::fence(reservations[0].owner().id());
    let each = |path_bytes: usize| chroot.len() + path_bytes + PATH_LENGTH;
    let record = each(fence.len()) + reservations.len() * each(6);
    assert!((SESSION_PATH_BYTES - each(6)..=SESSION_PATH_BYTES).contains(&record), "{record} bytes");
}

#[tokio::test]
async fn the_pool_grows_to_its_cap_says_when_it_is_full_and_shrinks_again() {
    let idle = Duration::from_millis(200);
    let change = |config: &mut Config| (config.max_sessions, config.surplus_idle) = (4, idle);
    let (pool, _tasks) = pool(10, change).await;
    let mut reservations = fill(&pool, 4000).await;
    assert_eq!(pool.reserve(4000).unwrap_err(), NoRoom::Full);
    assert_eq!((pool.owners().borrow().len(), reservations.len()), (4, 4 * (SESSION_PATH_BYTES / 4004)));
    assert!(pool.reserve(100).is_ok(), "there is room for a short one still");
    // Room that is freed is news for callers that wait.
    pool.reserve(4000).unwrap_err();
    let news = pool.room_news();
    assert!(!news.has_changed().unwrap());
    let last = reservations.pop().unwrap();
    let kept = last.owner().id();
    drop(last);
    assert!(news.has_changed().unwrap());
    reservations.retain(|reservation| reservation.owner().id() == kept);
    // A session that holds something stays, and so does the one that always exists.
    wait_for_sessions(&pool, 2).await;
    let new = pool.reserve(4000).unwrap();
    assert!(!new.owner().is_surplus(), "what comes anew does not go into the surplus");
    assert!(reservations.iter().all(|reservation| reservation.owner().session().is_up()));
    reservations.clear();
    wait_for_sessions(&pool, 1).await;
    assert_eq!(fill(&pool, 4000).await.len() + 1, 4 * (SESSION_PATH_BYTES / 4004), "it grows again");
}

#[tokio::test]
async fn a_surplus_session_that_ends_leaves_the_pool_and_another_takes_its_place() {
    let (pool, _tasks) = pool(10, |config| config.max_sessions = 2).await;
    let reservations = fill(&pool, 4000).await;
    let surplus = reservations.iter().map(PathReservation::owner).find(|owner| owner.is_surplus()).unwrap().clone();
    drop(surplus.session().submit(Request::CloseSession).await);
    let mut owners = pool.owners();
    let gone = owners.wait_for(|owners| !owners.iter().any(|owner| owner.id() == surplus.id()));
    drop(tokio::time::timeout(LONG, gone).await.expect("it leaves"));
    drop(surplus);
    let more = fill(&pool, 4000).await;
    assert_eq!((pool.owners().borrow().len(), more.len()), (2, SESSION_PATH_BYTES / 4004));
}

#[tokio::test]
async fn nothing_is_placed_in_a_session_that_is_given_up() {
    let (pool, _tasks) = pool(10, |_| {}).await;
    let reservation = wait_for_room(&pool, 10).await.unwrap();
    let owner = reservation.owner().clone();
    assert!(!owner.give_up_if_empty());
    drop(reservation);
    assert!(owner.give_up_if_empty());
    assert!(pool.reserve_in(owner.id(), 10).is_none());
    assert!(pool.reserve(10).is_err() && pool.reserve_for_taken(10, owner.id()).is_err());
    // A caller finds its node in the session all the same.
    drop(owner.reserve_for_its_own(10));
    assert!(pool.reserve(10).is_err());
}

#[tokio::test]
async fn what_could_not_be_deleted_keeps_its_room() {
    let (pool, _tasks) = pool(10, |_| {}).await;
    let mut reservation = wait_for_room(&pool, 10).await.unwrap();
    let owner = reservation.owner().clone();
    reservation.forfeit();
    drop(reservation);
    assert!(!owner.is_empty());
}

#[tokio::test]
async fn a_zookeeper_that_takes_no_more_sessions_is_asked_again_after_a_pause() {
    let (pool, _tasks) = pool(1, |config| config.max_sessions = 4).await;
    let reservations = fill(&pool, 4000).await;
    assert_eq!(reservations.len(), SESSION_PATH_BYTES / 4004);
    // The time to open a session has passed, and no other attempt follows at once.
    assert_eq!(pool.reserve(4000).unwrap_err(), NoRoom::Full);
    assert!(pool.0.growth().not_before > Instant::now());
    assert_eq!(pool.0.growth().pause, 2 * FIRST_SURPLUS_PAUSE);
    assert_eq!(pool.0.growth().slots, 1);
    assert!(reservations[0].owner().session().is_up());
}

#[tokio::test]
async fn a_batch_of_long_paths_below_a_long_chroot_is_no_larger_than_zookeeper_takes() {
    const UNITS: usize = 512;
    let segment = |length| format!("/{}", "s".repeat(length));
    let chroot = segment(4000);
    let (pool, _tasks) = pool(10, |config| config.chroot = chroot).await;
    let owner = wait_for_room(&pool, 10).await.unwrap().owner().clone();
    let unit = |number| {
        let path = format!("{}-{number}", segment(1800));
        let create = create(&path, bytes::Bytes::new(), CreateMode::Persistent);
        owner.commit(vec![create, delete(&path, -1)])
    };
    for outcome in futures_util::future::join_all((0..UNITS).map(unit)).await {
        outcome.unwrap();
    }
}

#[tokio::test]
async fn nothing_new_is_placed_where_an_answer_is_overdue() {
    let mut tasks = JoinSet::new();
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let embedded = Embedded::bind(any_port, rollcall_embedded::Config::default()).await.unwrap();
    let proxy = Proxy::start(embedded.local_addr(), &mut tasks).await;
    tasks.spawn(async move { embedded.run(std::future::pending()).await });
    let config = Config { sessions: 2, max_sessions: 2, ..Config::of(proxy.address()) };
    let pool = Pool::start(&Arc::new(config), &mut tasks);
    wait_for_sessions(&pool, 2).await;
    let hung = pool.owners().borrow()[0].clone();
    proxy.faults().silent.insert(hung.id());
    let asked = hung.commit_now(&[set_data(&layout::fence(hung.id()), bytes::Bytes::new(), -1)]);
    tasks.spawn(async move { drop(asked.await) });
    let is_hung = async {
        while hung.session().silence() < SESSION_SILENCE {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, is_hung).await.expect("it does not answer");
    let reservations: Vec<_> = (0..100).map(|_| pool.reserve(10).unwrap()).collect();
    assert!(reservations.iter().all(|reservation| reservation.owner().id() != hung.id()));
    assert!((0..100).all(|_| pool.any().unwrap().id() != hung.id()));
}

#[tokio::test]
async fn a_session_that_a_reply_calls_over_is_kept_if_the_next_handshake_finds_it() {
    for code in [ErrorCode::SessionExpired, ErrorCode::SessionMoved] {
        let mut tasks = JoinSet::new();
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let embedded = Embedded::bind(any_port, rollcall_embedded::Config::default()).await.unwrap();
        let proxy = Proxy::start(embedded.local_addr(), &mut tasks).await;
        tasks.spawn(async move { embedded.run(std::future::pending()).await });
        let config = Config { session_timeout: Duration::from_secs(4), ..Config::of(proxy.address()) };
        let pool = Pool::start(&Arc::new(config), &mut tasks);
        wait_for_sessions(&pool, 1).await;
        let owner = pool.owners().borrow()[0].clone();
        let mut link = owner.session().link();
        link.borrow_and_update();
        // The heartbeat fails.
        proxy.faults().refused.insert(OpCode::SetData, code.to_wire());
        tokio::time::timeout(LONG, link.changed()).await.expect("the connection is left").unwrap();
        proxy.faults().refused.clear();
        let (before, mut evidence) = (Instant::now(), owner.evidence());
        let goes_on = evidence.wait_for(|evidence| *evidence > before);
        tokio::time::timeout(LONG, goes_on).await.expect("the heartbeat goes on").unwrap();
        assert_eq!(pool.owners().borrow()[0].id(), owner.id());
    }
}
