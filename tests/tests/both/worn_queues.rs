//! Locks whose queue has had almost as many contenders as ZooKeeper can count, 2147483647. After that, ZooKeeper gives
//! every contender the same number, or a negative one when several are created at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rollcall_proto::v1::AcquireLockRequest;
use rollcall_tests::arm::Own;
use rollcall_tests::client::{Client, refused, zero};
use rollcall_tests::contender::Lock;
use rollcall_tests::follow::{Locking, lock};
use rollcall_tests::kazoo::{Kazoo, VERSIONS};
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually};
use rollcall_tests::zookeeper_witness::Witness;
use tokio::task::JoinSet;
use tonic::Code;

use super::ARM;

const LOCK: &str = "/worn";
const QUEUE: &str = "/worn-__lock__";
/// A contender that is no client of ours, and never takes the lock.
const STRANGER: &str = "/worn-__lock__/stranger__lock__0000000000";

/// Two replicas, and a lock that nobody gets yet, since a stranger is the first in its queue. The next contender is
/// `before_the_last` numbers away from the last number.
struct Worn {
    hosts: String,
    servers: [Server; 2],
    zk: Witness,
    _own: Own,
}

impl Worn {
    async fn start(before_the_last: i32) -> Worn {
        let own = ARM.own_with_old_nodes(&[QUEUE], i32::MAX - before_the_last - 1).await;
        let hosts = own.address().to_string();
        let servers = [Server::start(&hosts).await, Server::start(&hosts).await];
        let zk = Witness::connect(&hosts).await;
        zk.create_ephemeral(STRANGER, b"").await;
        Worn { hosts, servers, zk, _own: own }
    }

    async fn clients(&self) -> [Client; 2] {
        [self.servers[0].client().await, self.servers[1].client().await]
    }

    /// The digits of the contenders, in text order.
    async fn digits(&self) -> Vec<String> {
        let names = self.zk.children(QUEUE).await.unwrap_or_default();
        let mut digits: Vec<_> = names.iter().map(|name| name.rsplit("__").next().unwrap().to_owned()).collect();
        digits.sort_unstable();
        digits
    }

    async fn has_waiting(&self, expected: &[&str]) {
        eventually("those wait, and nobody else", SOON, async || {
            let digits = self.digits().await;
            check(digits == expected, || format!("{digits:?}"))
        })
        .await;
    }

    /// Checks that the queue counts from zero again.
    async fn has_begun_anew(&self) {
        let [here, there] = self.clients().await;
        let (_holder, _) = Locking::take(&here, LOCK, "holder").await;
        let (_waiter, _) = Locking::queue(&there, LOCK, "waiter").await;
        let digits = self.digits().await;
        assert!(digits.iter().all(|digits| digits.starts_with("000000")), "{digits:?}");
    }
}

#[tokio::test]
async fn when_the_numbers_have_run_out_those_who_have_one_are_served_and_then_they_begin_anew() {
    let worn = Worn::start(2).await;
    let [here, there] = worn.clients().await;
    let (mut first, _) = Locking::queue(&here, LOCK, "first").await;
    let (mut second, _) = Locking::queue(&there, LOCK, "second").await;
    let mut late = Vec::new();
    for number in 0..6 {
        let client = if number % 2 == 0 { &here } else { &there };
        late.push(Locking::queue(client, LOCK, &format!("late {number}")).await.0);
    }
    let (gone, _) = Locking::queue(&here, LOCK, "gone").await;
    let request = AcquireLockRequest { wait: zero(), ..lock(LOCK, "try") };
    let mut only_tries = Locking::start(&there, request).await.unwrap();
    refused(only_tries.held().await, Code::Aborted, "LOCK_BUSY");
    worn.has_waiting(&["0000000000", "2147483645", "2147483646"]).await;
    drop(gone);
    worn.zk.delete(STRANGER).await;
    let held = first.held().await.unwrap();
    drop(first);
    let mut token = second.held().await.unwrap().fencing_token;
    assert!(token > held.fencing_token);
    drop(second);
    // The order of these is not defined.
    let mut waiting = JoinSet::new();
    for mut stream in late {
        waiting.spawn(async move { (stream.held().await.unwrap().fencing_token, stream) });
    }
    while let Some(served) = waiting.join_next().await {
        let (next, stream) = served.unwrap();
        assert!(next > token, "one after the other");
        token = next;
        drop(stream);
    }
    worn.has_begun_anew().await;
}

#[tokio::test]
async fn a_queue_in_which_nobody_is_begins_anew_long_before_its_numbers_run_out() {
    let worn = Worn::start(1_000_000).await;
    worn.zk.delete(STRANGER).await;
    worn.zk.set(QUEUE, b"kept").await;
    worn.has_begun_anew().await;
    assert_eq!(worn.zk.get(QUEUE).await.unwrap().text(), "kept");
}

#[tokio::test]
async fn a_queue_that_others_protect_is_left_alone_and_the_callers_are_told() {
    let worn = Worn::start(0).await;
    let nodes = ["stray", "x__rlock__0000000000"].map(|name| format!("{QUEUE}/{name}"));
    worn.zk.create_many(nodes, b"").await;
    worn.zk.delete(STRANGER).await;
    let [here, _] = worn.clients().await;
    let mut stream = Locking::start(&here, lock(LOCK, "me")).await.unwrap();
    let status = refused(stream.held().await, Code::FailedPrecondition, "NOT_A_LOCK");
    assert!(status.message().contains("have run out"), "{status:?}");
}

#[tokio::test]
async fn clients_and_kazoo_go_on_taking_the_lock_past_the_last_number() {
    const TURNS: usize = 6;
    for version in VERSIONS {
        let worn = Worn::start(2).await;
        let clients = worn.clients().await;
        // They get the last two numbers that are unique.
        let mut streams = Vec::new();
        for client in &clients {
            streams.push(Locking::queue(client, LOCK, "early").await.0);
        }
        let locks = [Lock { path: LOCK.to_owned(), limit: 1, guarded: Arc::default() }];
        let mut kazoo = Kazoo::start(&worn.hosts, version, "kazoo", 1, &locks);
        worn.has_waiting(&["0000000000", "2147483645", "2147483646", "2147483647"]).await;
        worn.zk.delete(STRANGER).await;
        let inside = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for (number, first) in (0..6).zip(streams.into_iter().map(Some).chain(std::iter::repeat_with(|| None))) {
            let (client, inside, zk) = (clients[number % 2].clone(), inside.clone(), worn.zk.clone());
            let mut first = first;
            tasks.spawn(async move {
                for _ in 0..TURNS {
                    let mut stream = match first.take() {
                        Some(stream) => stream,
                        None => Locking::start(&client, lock(LOCK, &number.to_string())).await.unwrap(),
                    };
                    stream.held().await.unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two of ours hold the lock");
                    let leases = zk.children(LOCK).await.unwrap();
                    assert_eq!(leases.len(), 1, "kazoo holds it as well: {leases:?}");
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(stream);
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        eventually("kazoo gets the lock too", SOON, async || check(kazoo.held() > 2, || kazoo.held().to_string()))
            .await;
        worn.has_begun_anew().await;
    }
}
