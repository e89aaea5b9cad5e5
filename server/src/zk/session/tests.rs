use std::net::SocketAddr;

use rollcall_embedded::Embedded;
use rollcall_wire::CreateMode;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::super::Resolver;
use super::super::calls::{create, delete};
use super::*;
use crate::types::NodePath;

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

async fn embedded(tasks: &mut JoinSet<()>) -> SocketAddr {
    let embedded = Embedded::bind(ANY_PORT, rollcall_embedded::Config::default()).await.unwrap();
    let address = embedded.local_addr();
    tasks.spawn(async move { embedded.run(std::future::pending()).await });
    address
}

/// A server that accepts connections and sends nothing; or, with `closes`, closes each connection after reading
/// something.
async fn mute(closes: bool, tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind(ANY_PORT).await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if closes {
                stream.read_u8().await.unwrap();
            } else {
                open.push(stream);
            }
        }
    });
    address
}

/// A session with the servers behind one name, and its life as a task.
fn start(servers: &[SocketAddr], tasks: &mut JoinSet<()>) -> Session {
    let servers = servers.to_vec();
    let resolver = Resolver::new(move |_| {
        let servers = servers.clone();
        Box::pin(async move { Ok(servers) })
    });
    let config = Config { hosts: vec!["zookeeper:2181".to_owned()], resolver, ..Config::of(ANY_PORT) };
    let (session, life) = Session::start(Arc::new(config), Arc::default());
    tasks.spawn(life);
    session
}

#[tokio::test]
async fn a_name_with_several_addresses_is_served_by_any_that_answers() {
    let mut tasks = JoinSet::new();
    let gone = TcpListener::bind(ANY_PORT).await.unwrap().local_addr().unwrap();
    let servers = [gone, mute(false, &mut tasks).await, mute(true, &mut tasks).await, embedded(&mut tasks).await];
    // Whichever address happens to come first.
    let sessions: Vec<_> = (0..16).map(|_| start(&servers, &mut tasks)).collect();
    for session in &sessions {
        let connected = tokio::time::timeout(LONG, session.connected()).await;
        assert_eq!(connected, Ok(true));
    }
}

#[tokio::test]
async fn sessions_spread_over_the_addresses_of_a_name() {
    const SESSIONS: usize = 32;
    let mut tasks = JoinSet::new();
    let servers = [embedded(&mut tasks).await, embedded(&mut tasks).await];
    for number in 0..SESSIONS {
        let session = start(&servers, &mut tasks);
        assert!(session.connected().await);
        session.create(&format!("/{number}"), Bytes::new(), CreateMode::Persistent).await.unwrap();
    }
    for server in servers {
        let session = start(&[server], &mut tasks);
        assert!(session.connected().await);
        let (_, root) = session.children(&NodePath::trusted("/")).await.unwrap().unwrap();
        let here = usize::try_from(root.num_children).unwrap();
        assert!((2..SESSIONS).contains(&here), "{here} of {SESSIONS} are on {server}");
    }
}

#[tokio::test]
async fn a_session_without_a_connection_ends_with_its_last_handle() {
    let mut tasks = JoinSet::new();
    let gone = TcpListener::bind(ANY_PORT).await.unwrap().local_addr().unwrap();
    let session = start(&[gone], &mut tasks);
    assert!(tasks.try_join_next().is_none());
    drop(session);
    tokio::time::timeout(LONG, tasks.join_next()).await.expect("it ends").unwrap().unwrap();
}

#[tokio::test]
async fn a_write_that_is_carried_out_is_evidence_and_no_read_or_refusal_is() {
    let mut tasks = JoinSet::new();
    let server = embedded(&mut tasks).await;
    let session = start(&[server], &mut tasks);
    let evidence = session.evidence();
    assert!(session.connected().await);
    let make = |path: &str| create(path, Bytes::new(), CreateMode::Persistent);
    let moves = |before: Instant| *evidence.borrow() > before;
    for write in [make("/a"), Request::Multi(vec![make("/b"), make("/c")]), delete("/c", -1)] {
        let before = *evidence.borrow();
        session.submit(write).await.unwrap();
        assert!(moves(before));
    }
    let before = *evidence.borrow();
    session.submit(Request::Exists { path: "/a".to_owned(), watch: false }).await.unwrap();
    session.submit(Request::Sync { path: "/a".to_owned() }).await.unwrap();
    session.submit(make("/a")).await.unwrap_err();
    session.submit(Request::Multi(vec![make("/d"), make("/a")])).await.unwrap();
    assert!(!moves(before));
}
