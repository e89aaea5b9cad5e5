//! Limits of ZooKeeper: the record of a session's end, which it must be able to read again, and the connections from
//! one address. Both have ZooKeeper's defaults.

use std::time::Duration;

use rollcall_proto::v1::DeleteRequest;
use rollcall_proto::v1::register_response::Response;
use rollcall_tests::client::{Registration, get, put, refused, set, text};
use rollcall_tests::follow::{Locking, lock};
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually};
use rollcall_tests::zookeeper::{Options, ZooKeeper, four_letter_word};
use rollcall_tests::zookeeper_witness::Witness;
use tonic::Code;

/// Registers many names, and returns the reason of the first refusal, if any.
async fn register_all(stream: &mut Registration, names: impl IntoIterator<Item = String>) -> Option<String> {
    const AT_ONCE: usize = 64;
    let mut waiting = 0;
    let mut refusal = None;
    for name in names {
        stream.send(set(&name, text("x"))).await;
        waiting += 1;
        while waiting >= AT_ONCE && refusal.is_none() {
            refusal = next_answer(stream, &mut waiting).await;
        }
        if refusal.is_some() {
            break;
        }
    }
    while waiting > 0 {
        let next = next_answer(stream, &mut waiting).await;
        refusal = refusal.or(next);
    }
    refusal
}

async fn next_answer(stream: &mut Registration, waiting: &mut usize) -> Option<String> {
    let answer = stream.answer().await;
    let refusal = match answer {
        Response::Registered(_) => None,
        Response::Rejected(rejected) => {
            assert_eq!(Code::from(rejected.code), Code::ResourceExhausted, "{rejected:?}");
            Some(rejected.reason)
        }
        other => panic!("neither registered nor rejected: {other:?}"),
    };
    *waiting -= 1;
    refusal
}

/// The number of connections of a ZooKeeper server, without the one that asks.
async fn connections(zookeeper: &ZooKeeper) -> usize {
    eventually("ZooKeeper says how many connections it has", 3 * SOON, async || {
        let answer = four_letter_word(zookeeper.address(0), "mntr").await?;
        let number = answer.lines().find_map(|line| line.strip_prefix("zk_num_alive_connections")?.trim().parse().ok());
        number.ok_or(answer)
    })
    .await
}

/// ZooKeeper writes all paths of an ended session into one record, and can't read a record of more than 2 MiB.
#[tokio::test]
async fn a_log_with_the_ends_of_full_sessions_below_a_long_chroot_is_read_again() {
    const NAMES: usize = 3_000;
    let mut zookeeper = ZooKeeper::standalone(Options::default()).await;
    // For all names, the chroot alone takes 2.7 MB.
    let chroot = format!("/{}", "c".repeat(900));
    let hosts = format!("{}{chroot}", zookeeper.hosts());
    // Without the chroot, one session would have room for all names.
    let options = ["--session-timeout", "2s", "--sessions", "1"];
    let server = Server::start_with(&hosts, &options).await;
    let client = server.client().await;
    let mut stream = Registration::open(&client).await;
    let refusal = register_all(&mut stream, (0..NAMES).map(|number| format!("/r/{number:04}"))).await;
    assert_eq!(refusal, None);
    let zk = Witness::connect(&hosts).await;
    assert_eq!(zk.children("/r").await.unwrap().len(), NAMES);
    drop(server);
    eventually("all that the dead replica held is gone", 2 * SOON, async || {
        let left = zk.children("/r").await.unwrap().len();
        check(left == 0, || format!("{left} are left"))
    })
    .await;
    drop(zk);
    zookeeper.kill(0);
    zookeeper.start(0);
    zookeeper.ready().await;
    let server = Server::start_with(&hosts, &options).await;
    let client = server.client().await;
    Registration::open(&client).await.set("/r/again", text("x")).await;
}

/// ZooKeeper accepts requests of up to 1 MiB.
#[tokio::test]
async fn a_subtree_of_long_paths_below_a_long_chroot_is_deleted() {
    const NODES: usize = 140;
    let zookeeper = ZooKeeper::standalone(Options::default()).await;
    let hosts = format!("{}/{}", zookeeper.hosts(), "c".repeat(4_090));
    let server = Server::start(&hosts).await;
    let client = server.client().await;
    for number in 0..NODES {
        put(&client, &format!("/d/{number}-{}", "x".repeat(4_080)), text("x")).await.unwrap();
    }
    let request = DeleteRequest { path: "/d".to_owned(), recursive: true, ..Default::default() };
    client.clone().delete(request).await.unwrap();
    assert!(!get(&client, "/d").await.exists);
}

/// As many long paths as a replica has room for, and more.
fn long_paths(whose: &str) -> impl Iterator<Item = String> {
    let long = "x".repeat(4_000);
    (0..10_000).map(move |number| format!("/{whose}-{number}-{long}"))
}

#[tokio::test]
async fn one_stream_that_fills_all_that_it_may_stops_nobody_on_stock_zookeeper() {
    /// Forty hold ephemerals, two watch.
    const MOST: usize = 42;
    let zookeeper = ZooKeeper::standalone(Options::default()).await;
    let server = Server::start(&zookeeper.hosts()).await;
    let (greedy, other) = (server.client().await, server.client().await);
    let mut stream = Registration::open(&greedy).await;
    let refusal = register_all(&mut stream, long_paths("greedy")).await;
    assert_eq!(refusal.as_deref(), Some("TOO_MANY_PATH_BYTES"));
    // Far fewer than the maximum.
    let used = connections(&zookeeper).await;
    assert!(used <= MOST / 2, "{used} connections");
    let mut citizen = Registration::open(&other).await;
    for number in 0..100 {
        citizen.set(&format!("/citizen/{number}"), text("x")).await;
    }
    Locking::take(&other, "/citizen-lock", "me").await;
    // The registrations are still held.
    stream.keep_alive().await;
}

#[tokio::test]
async fn a_replica_that_is_full_says_so_and_takes_no_more_of_zookeepers_connections() {
    /// Six hold ephemerals, two watch; one is the test's.
    const MOST: usize = 9;
    let zookeeper = ZooKeeper::standalone(Options::default()).await;
    let server = Server::start_with(&zookeeper.hosts(), &["--sessions", "2", "--max-sessions", "6"]).await;
    let mut streams = Vec::new();
    // Each connection has a share; together they want more than the replica has.
    for whose in ["a", "b", "c", "d", "e"] {
        let client = server.client().await;
        let mut stream = Registration::open(&client).await;
        let refusal = register_all(&mut stream, long_paths(whose)).await;
        assert_eq!(refusal.as_deref(), Some("TOO_MANY_PATH_BYTES"), "{whose}");
        streams.push(stream);
    }
    let client = server.client().await;
    let taken = Locking::start(&client, lock(&format!("/{}", "l".repeat(4_000)), "me")).await;
    let answer = match taken {
        Ok(mut locking) => locking.held().await,
        Err(status) => Err(status),
    };
    refused(answer, Code::ResourceExhausted, "TOO_MANY_PATH_BYTES");
    let used = connections(&zookeeper).await;
    assert!(used <= MOST, "{used} connections");
    // When connections end, there is room again.
    drop(streams.pop());
    drop(streams.pop());
    let mut late = Registration::open(&client).await;
    eventually("there is room again", SOON, async || {
        let refusal = register_all(&mut late, ["/late".to_owned()]).await;
        check(refusal.is_none(), || format!("{refusal:?}"))
    })
    .await;
    tokio::time::timeout(Duration::from_secs(60), Locking::take(&client, "/late-lock", "me")).await.unwrap();
}

#[tokio::test]
async fn what_is_over_a_quota_of_zookeepers_is_told_as_that() {
    let zookeeper = ZooKeeper::standalone(Options { quotas: true, ..Options::default() }).await;
    let zk = Witness::connect(&zookeeper.hosts()).await;
    zk.create("/q", b"").await;
    let limits = b"count=-1,bytes=-1=;byteHardLimit=-1;countHardLimit=2";
    zk.create("/zookeeper/quota/q/zookeeper_limits", limits).await;
    zk.create("/zookeeper/quota/q/zookeeper_stats", b"count=0,bytes=0").await;
    let server = Server::start(&zookeeper.hosts()).await;
    let client = server.client().await;
    put(&client, "/q/one", text("x")).await.unwrap();
    refused(put(&client, "/q/two", text("x")).await, Code::ResourceExhausted, "QUOTA");
    let mut stream = Registration::open(&client).await;
    stream.send(set("/q/two", text("x"))).await;
    let rejected = stream.rejected().await;
    assert_eq!((Code::from(rejected.code), rejected.reason.as_str()), (Code::ResourceExhausted, "QUOTA"));
    let refusal = Locking::start(&client, lock("/q/lock", "me")).await.unwrap().held().await;
    refused(refusal, Code::ResourceExhausted, "QUOTA");
}
