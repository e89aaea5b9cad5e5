//! What a queue costs ZooKeeper, as ZooKeeper counts it.

use std::net::SocketAddr;

use rollcall_tests::follow::Locking;
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually};
use rollcall_tests::zookeeper::{Options, ZooKeeper, four_letter_word};

const WAITERS: usize = 120;
/// Watches of the two replicas that have nothing to do with how many wait.
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
        assert!(rollcall_tests::client::release(&clients[0], &held.lock_id).await.unwrap());
        held = next.held().await.unwrap();
        holder = next;
    }
    // The lease that ends, which its holder watches, and the contender that becomes the next.
    let fired = fired().await - before;
    assert!((RELEASES..=4 * RELEASES).contains(&fired), "{fired} watches fired for {RELEASES} releases");
    drop(holder);
}
