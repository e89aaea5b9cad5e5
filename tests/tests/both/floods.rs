//! Clients that send as much as they can, and their effect on others.

use std::time::Duration;

use rollcall_proto::v1;
use rollcall_proto::v1::register_response::Response;
use rollcall_tests::client::{Client, Registration, set, text, unset};
use rollcall_tests::wait::{SOON, check, eventually, soon};
use tokio::task::JoinSet;

use super::ARM;

/// Streams on one connection that send `unset` as fast as they are read, and read all answers.
async fn flood(client: &Client) -> JoinSet<()> {
    let mut floods = JoinSet::new();
    for number in 0..4 {
        let mut stream = Registration::open(client).await;
        floods.spawn(async move {
            let path = format!("/flood/{number}");
            let sender = stream.sender();
            let send = async {
                let request = || v1::RegisterRequest { request: Some(unset(&path)) };
                while sender.send(request()).await.is_ok() {}
            };
            let read = async { while stream.next().await.is_ok_and(|answer| answer.is_some()) {} };
            tokio::join!(send, read);
        });
    }
    floods
}

#[tokio::test]
async fn a_ttl_ends_beside_streams_that_send_as_fast_as_they_can() {
    let s = ARM.setting("floods").await;
    let noisy = s.server.client().await;
    // A long ttl, since the flood takes this program's time as well.
    let mut alive = Registration::open_with_ttl(&s.client, SOON).await;
    alive.set("/alive", text("x")).await;
    let floods = flood(&noisy).await;
    let mut dead = Registration::open_with_ttl(&s.client, Duration::from_secs(1)).await;
    dead.set("/dead", text("x")).await;
    drop(dead);
    eventually("the ttl of the one that has died is over", SOON, async || {
        alive.keep_alive().await;
        check(!s.zk.exists("/dead").await, || "it stands".to_owned())
    })
    .await;
    assert!(s.zk.exists("/alive").await, "who is heard in time keeps its registration");
    drop(floods);
}

#[tokio::test]
async fn who_registers_while_thousands_are_taken_down_does_not_wait_for_them() {
    const MANY: usize = 12_000;
    let s = ARM.setting("floods").await;
    let others = s.server.client().await;
    let mut stream = Registration::open(&others).await;
    let sender = stream.sender();
    let send = async {
        for index in 0..MANY {
            let request = Some(set(&format!("/mass/{index}"), text("x")));
            sender.send(v1::RegisterRequest { request }).await.expect("the stream stands");
        }
    };
    let read = async {
        for _ in 0..MANY {
            stream.registered().await;
        }
    };
    tokio::join!(send, read);
    let mut fresh = Registration::open(&s.client).await;
    drop((sender, stream));
    eventually("they are taken down", SOON, async || {
        let left = s.zk.children("/mass").await.map_or(0, |children| children.len());
        check(left < MANY, || format!("{left}"))
    })
    .await;
    fresh.set("/fresh", text("x")).await;
    let left = s.zk.children("/mass").await.map_or(0, |children| children.len());
    assert!(left > 0, "it came last");
    eventually("all are gone", 2 * SOON, async || {
        let left = s.zk.children("/mass").await.map_or(0, |children| children.len());
        check(left == 0, || format!("{left} are left"))
    })
    .await;
    assert!(s.zk.exists("/fresh").await);
}

#[tokio::test]
async fn the_longest_paths_fill_a_connections_budget_and_nobody_elses() {
    let s = ARM.setting("floods").await;
    let greedy = s.server.client().await;
    let mut stream = Registration::open(&greedy).await;
    let path = |index: usize| format!("/long/{index:0>4000}");
    let mut registered = 0;
    let refused = loop {
        stream.send(set(&path(registered), text("x"))).await;
        match stream.answer().await {
            Response::Registered(_) => registered += 1,
            Response::Rejected(refused) => break refused,
            other => panic!("{other:?}"),
        }
        assert!(registered < 3000, "there is no limit");
    };
    assert_eq!(refused.reason, "TOO_MANY_PATH_BYTES");
    // The stream goes on, and so does another of the same connection, within the budget.
    stream.send(set("/short", text("x"))).await;
    stream.registered().await;
    let mut same = Registration::open(&greedy).await;
    same.send(set(&path(5000), text("x"))).await;
    assert_eq!(same.rejected().await.reason, "TOO_MANY_PATH_BYTES");
    let mut other = Registration::open(&s.client).await;
    soon("another client registers", other.set(&path(6000), text("x"))).await;
    // The room of a registration that is given up can be used again.
    stream.send(unset(&path(0))).await;
    assert_eq!(stream.unregistered().await, path(0));
    same.set(&path(5000), text("x")).await;
}
