//! The cost of a queue for ZooKeeper, by ZooKeeper's own counters.

use std::net::SocketAddr;

use rollcall_tests::client::{Client, describe, refused, release};
use rollcall_tests::follow::Locking;
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually};
use rollcall_tests::zookeeper::{Options, ZooKeeper, four_letter_word};
use tokio::task::JoinSet;
use tonic::Code;

const WAITERS: usize = 120;
/// Maximum number of watches of the two replicas that do not depend on the number of waiters.
const SOME: usize = 40;

async fn count(address: SocketAddr, name: &str) -> usize {
    let said = four_letter_word(address, "mntr").await.unwrap();
    let figure = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('\t'));
    figure.unwrap_or_else(|| panic!("no {name} in {said}")).trim().parse().unwrap()
}

#[tokio::test]
async fn who_waits_has_one_watch_and_a_release_wakes_one_of_them() {
    let zookeeper = ZooKeeper::standalone(Options::default()).await;
    let address = zookeeper.address(0);
    let servers = [Server::start(&zookeeper.hosts()).await, Server::start(&zookeeper.hosts()).await];
    let clients = [servers[0].client().await, servers[1].client().await];
    let (mut holder, mut held) = Locking::take(&clients[0], "/cost", "holder").await;
    let before = count(address, "zk_watch_count").await;
    let mut waiters = Vec::new();
    for number in 0..WAITERS {
        waiters.push(Locking::queue(&clients[number % 2], "/cost", &number.to_string()).await.0);
    }
    eventually("each waiter watches the one ahead, and nothing more", SOON, async || {
        let more = count(address, "zk_watch_count").await.saturating_sub(before);
        check((WAITERS - 1..=WAITERS + SOME).contains(&more), || format!("{more} more watches"))
    })
    .await;

    let fired = async || count(address, "zk_sum_node_deleted_watch_count").await;
    let before = fired().await;
    const RELEASES: usize = 20;
    for mut next in waiters.drain(..RELEASES) {
        assert!(release(&clients[0], &held.lock_id).await.unwrap());
        held = next.held().await.unwrap();
        holder = next;
    }
    // A watch fires on the ended lease, which its holder watches, and on the contender that becomes the next holder.
    let fired = fired().await - before;
    assert!((RELEASES..=4 * RELEASES).contains(&fired), "{fired} watches fired for {RELEASES} releases");
    drop(holder);
}

/// The requests that ZooKeeper has received so far, and the number of transactions among them.
async fn requests_and_writes(address: SocketAddr) -> (usize, usize) {
    let said = four_letter_word(address, "srvr").await.unwrap();
    let zxid =
        said.lines().find_map(|line| line.strip_prefix("Zxid: 0x")).unwrap_or_else(|| panic!("no zxid in {said}"));
    (count(address, "zk_packets_received").await, usize::from_str_radix(zxid.trim(), 16).unwrap())
}

async fn take_and_release(client: &Client, path: &str, name: &str) {
    let (mut stream, held) = Locking::take(client, path, name).await;
    assert!(release(client, &held.lock_id).await.unwrap());
    stream.end().await.unwrap();
}

/// Maximum number of other requests meanwhile: heartbeats, readings once a second, the test's own questions.
const BESIDES: usize = 60;

#[tokio::test]
async fn a_lock_that_is_taken_here_again_and_again_costs_two_writes_and_two_reads() {
    const TIMES: usize = 100;
    let zookeeper = ZooKeeper::standalone(Options::default()).await;
    let (address, server) = (zookeeper.address(0), Server::start(&zookeeper.hosts()).await);
    let client = server.client().await;
    for _ in 0..3 {
        take_and_release(&client, "/again", "me").await;
    }
    let before = requests_and_writes(address).await;
    for _ in 0..TIMES {
        take_and_release(&client, "/again", "me").await;
    }
    let after = requests_and_writes(address).await;
    let (requests, writes) = (after.0 - before.0, after.1 - before.1);
    assert!((4 * TIMES..=4 * TIMES + BESIDES).contains(&requests), "{requests} requests for {TIMES} locks");
    assert!((2 * TIMES..=2 * TIMES + BESIDES).contains(&writes), "{writes} transactions for {TIMES} locks");
}

#[tokio::test]
async fn a_lock_that_changes_hands_on_one_replica_costs_two_writes_and_few_reads() {
    const CLIENTS: usize = 8;
    const TIMES: usize = 25;
    let zookeeper = ZooKeeper::standalone(Options::default()).await;
    let (address, server) = (zookeeper.address(0), Server::start(&zookeeper.hosts()).await);
    let before = requests_and_writes(address).await;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let client = server.client().await;
        clients.push(tokio::spawn(async move {
            for _ in 0..TIMES {
                take_and_release(&client, "/hands", &number.to_string()).await;
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    let after = requests_and_writes(address).await;
    let (requests, writes) = (after.0 - before.0, after.1 - before.1);
    let times = CLIENTS * TIMES;
    assert!((2 * times - CLIENTS..=9 * times).contains(&requests), "{requests} requests for {times} locks");
    assert!(writes <= 2 * times + times / 2, "{writes} transactions for {times} locks");
    println!("{requests} requests, {writes} transactions for {times} locks");
}

#[tokio::test]
async fn what_many_ask_of_one_lock_at_once_is_read_a_few_times() {
    const CALLS: usize = 500;
    let zookeeper = ZooKeeper::standalone(Options::default()).await;
    let (address, server) = (zookeeper.address(0), Server::start(&zookeeper.hosts()).await);
    let client = server.client().await;
    let (mut over, held) = Locking::take(&client, "/asked", "over").await;
    assert!(release(&client, &held.lock_id).await.unwrap());
    over.end().await.unwrap();
    let (_holder, _) = Locking::take(&client, "/asked", "holder").await;
    let mut waiters = Vec::new();
    for number in 0..WAITERS {
        waiters.push(Locking::queue(&client, "/asked", &number.to_string()).await.0);
    }
    let (before, _) = requests_and_writes(address).await;
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        let (describing, releasing, lock_id) = (client.clone(), client.clone(), held.lock_id.clone());
        calls.spawn(async move { assert_eq!(describe(&describing, "/asked").await.waiters.len(), WAITERS) });
        calls.spawn(async move {
            refused(release(&releasing, &lock_id).await, Code::NotFound, "LOCK_LOST");
        });
    }
    while let Some(called) = calls.join_next().await {
        called.unwrap();
    }
    let requests = requests_and_writes(address).await.0 - before;
    println!("{requests} requests for {} calls", 2 * CALLS);
    assert!(requests < CALLS, "{requests} requests for {} calls", 2 * CALLS);
}
