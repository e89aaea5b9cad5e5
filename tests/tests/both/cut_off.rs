//! A replica cut off from its backend, answers lost on the way, replicas killed. Everything that exists remains, and
//! all is well afterwards.

use std::time::Duration;

use rollcall_proto::v1::WatchRequest;
use rollcall_proto::v1::register_response::Response;
use rollcall_tests::arm::Cut;
use rollcall_tests::client::{
    Registration, cached, data, get, latest, put, put_eventually, refused, retry_delay, set, text,
};
use rollcall_tests::follow::{Locking, Watching};
use rollcall_tests::proxy::Traffic;
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually, soon};
use serde_json::json;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use super::ARM;

#[tokio::test]
async fn cut_connections_cost_nothing_that_stands() {
    let s = ARM.behind_a_proxy("faults", &[]).await;
    let mut stream = Registration::open(&s.client).await;
    let first = stream.set("/cut/one", data(json!({"a": 1}))).await;
    let (mut holder, held) = Locking::take(&s.client, "/cut-lock", "holder").await;
    let (mut waiter, _) = Locking::queue(&s.client, "/cut-lock", "waiter").await;
    let mut watching = Watching::start(&s.client, "/cut").await;
    for round in 0..8 {
        s.proxy.cut();
        s.zk.create(&format!("/cut/theirs {round}"), b"x").await;
        stream.set(&format!("/cut/ours {round}"), text("x")).await;
        s.zk.set(&format!("/cut/theirs {round}"), b"y").await;
    }
    watching
        .until("all of it", |known| {
            known.children.len() == 17
                && known.child("theirs 7") == json!({"text": "y"})
                && known.children.contains_key("ours 7")
        })
        .await;
    let node = s.zk.get("/cut/one").await.unwrap();
    assert_eq!((node.stat.czxid, node.stat.version), (first.generation, 0), "neither made again nor written again");
    let lease = s.zk.children("/cut-lock").await.unwrap().remove(0);
    assert_eq!(s.zk.get(&format!("/cut-lock/{lease}")).await.unwrap().stat.czxid, held.fencing_token);
    rollcall_tests::client::release(&s.client, &held.lock_id).await.unwrap();
    // The holder may have received `suspended` and `held` in between.
    holder.end().await.unwrap();
    assert!(waiter.held().await.unwrap().fencing_token > held.fencing_token);
}

/// ZooKeeper's own client sends more than 128 KB of watched paths in several requests, which its server mixes up.
#[tokio::test]
async fn many_long_paths_are_watched_again_after_a_cut() {
    let s = ARM.behind_a_proxy("long", &[]).await;
    let folder = format!("/{}", vec!["x".repeat(240); 4].join("/"));
    let paths: Vec<_> = (0..320).map(|number| format!("{folder}/{number}")).collect();
    assert!(paths.iter().map(String::len).sum::<usize>() > 2 * 128 * 1024, "on each of two sessions");
    let mut watching = Vec::new();
    for path in &paths {
        s.zk.create(path, b"").await;
        watching.push(Watching::start(&s.client, path).await);
    }
    for round in 1..=2 {
        s.proxy.cut();
        s.zk.create_many(paths.iter().map(|path| format!("{path}/{round}")), b"x").await;
        for watching in &mut watching {
            watching.until("the child that came", |known| known.children.len() == round).await;
        }
    }
}

#[tokio::test]
async fn while_zookeeper_is_away_what_is_known_is_still_told() {
    let s = ARM.behind_a_proxy("faults", &[]).await;
    let mut stream = Registration::open(&s.client).await;
    let first = stream.set("/known/one", text("1")).await;
    let mut watching = Watching::start(&s.client, "/known").await;
    assert!(!cached(&s.client, "/known").await.unwrap().stale);
    s.cut_off().await;

    let answer = eventually("the answer says that it is stale", SOON, async || {
        let answer = cached(&s.client, "/known").await.map_err(|status| format!("{status:?}"))?;
        if answer.stale { Ok(answer) } else { Err("it is fresh".to_owned()) }
    })
    .await;
    assert!(answer.as_of.is_some() && answer.node.unwrap().children.contains_key("one"));
    let status = refused(cached(&s.client, "/unknown").await, Code::Unavailable, "BACKEND_UNAVAILABLE");
    assert!(retry_delay(&status) > Duration::ZERO);
    refused(s.client.clone().get(latest("/known")).await, Code::Unavailable, "BACKEND_UNAVAILABLE");
    refused(put(&s.client, "/config", text("x")).await, Code::Unavailable, "BACKEND_UNAVAILABLE");
    assert_eq!(s.server.health("").await.unwrap(), ServingStatus::Serving);
    stream.send(set("/known/two", text("2"))).await;
    let Ok(Some(Response::Pending(_))) = stream.next().await else { panic!("pending comes first") };
    s.zk.create("/known/three", b"3").await;

    s.proxy.accept().await;
    stream.registered().await;
    watching.until("what came meanwhile", |known| known.names() == ["one", "three", "two"]).await;
    assert_eq!(s.zk.get("/known/one").await.unwrap().stat.czxid, first.generation);
    eventually("the answer is fresh again", SOON, async || {
        let answer = cached(&s.client, "/known").await.map_err(|status| format!("{status:?}"))?;
        check(!answer.stale, || "it is stale".to_owned())
    })
    .await;
    assert!(!get(&s.client, "/unknown").await.exists);
}

#[tokio::test]
async fn values_that_wait_for_zookeeper_take_the_memory_of_their_bytes() {
    const COUNT: usize = 10;
    let s = ARM.behind_a_proxy("values", &[]).await;
    let mut stream = Registration::open(&s.client).await;
    stream.set("/values/first", text("x")).await;
    s.cut_off().await;
    // 240 KB as JSON; as a tree in memory seventy times as much.
    let value = data(json!({ "list": vec![json!({ "a": 1 }); 30_000] }));
    let before = s.server.resident_bytes();
    for number in 0..COUNT {
        stream.send(set(&format!("/values/{number}"), value.clone())).await;
        let Ok(Some(Response::Pending(_))) = stream.next().await else { panic!("pending comes first") };
    }
    let grown = s.server.resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes for values of {} bytes", COUNT * 240_000);
    s.proxy.accept().await;
    for _ in 0..COUNT {
        stream.registered().await;
    }
    let written = s.zk.get("/values/0").await.unwrap();
    assert_eq!(written.json()["list"][29_999], json!({ "a": 1 }));
}

#[tokio::test]
async fn a_watch_that_begins_while_zookeeper_is_away_gets_there() {
    let s = ARM.behind_a_proxy("faults", &[]).await;
    s.zk.create("/late", b"x").await;
    s.cut_off().await;
    refused(s.client.clone().get(latest("/late")).await, Code::Unavailable, "BACKEND_UNAVAILABLE");
    let request = WatchRequest { path: "/late".into(), ..Default::default() };
    let begun = async {
        let mut stream = s.client.clone().watch(request.clone()).await?.into_inner();
        stream.message().await
    };
    // It may wait, or answer at once that ZooKeeper is away.
    if let Ok(answer) = tokio::time::timeout(Duration::from_millis(500), begun).await {
        refused(answer, Code::Unavailable, "BACKEND_UNAVAILABLE");
    }
    s.proxy.accept().await;
    eventually("a Watch begins", SOON, async || {
        let answer = s.client.clone().watch(request.clone()).await;
        let message = match answer {
            Ok(stream) => stream.into_inner().message().await,
            Err(status) => Err(status),
        };
        message.map(|_| ()).map_err(|status| format!("{status:?}"))
    })
    .await;
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_has_an_unknown_outcome() {
    let s = ARM.behind_a_proxy("faults", &[]).await;
    put(&s.client, "/unknown", text("0")).await.unwrap();
    s.proxy.stall_answers_after(b"the value of the write");
    let client = s.client.clone();
    let call = tokio::spawn(async move { put(&client, "/unknown", text("the value of the write")).await });
    s.zk.wait_for("/unknown", "written", |node| node.data == b"the value of the write").await;
    s.proxy.cut();
    s.proxy.set_traffic(Traffic::Pass);
    let answer = soon("an answer to Put", call).await.unwrap();
    refused(answer, Code::Unknown, "OUTCOME_UNKNOWN");
    put_eventually(&s.client, "/unknown", "2").await;
}

#[tokio::test]
async fn registrations_and_locks_find_out_what_became_of_a_lost_answer() {
    let s = ARM.behind_a_proxy("faults", &[]).await;
    let mut stream = Registration::open(&s.client).await;
    stream.set("/lost/first", text("x")).await;
    drop(Locking::take(&s.client, "/lost-lock", "first").await);
    eventually("the first has given the lock back", SOON, async || {
        let leases = s.zk.children("/lost-lock").await.unwrap();
        check(leases.is_empty(), || format!("{leases:?}"))
    })
    .await;
    // A free lock is taken in one transaction, which contains the name of the client.
    s.proxy.stall_answers_after(b"second");
    let client = s.client.clone();
    let lock = tokio::spawn(async move { Locking::take(&client, "/lost-lock", "second").await });
    s.proxy.stalled().await;
    eventually("the lock is taken", SOON, async || {
        let leases = s.zk.children("/lost-lock").await.unwrap();
        check(leases.len() == 1, || format!("{leases:?}"))
    })
    .await;
    stream.send(set("/lost/second", text("x"))).await;
    s.zk.wait_for("/lost/second", "created", |_| true).await;
    let made = s.zk.get("/lost/second").await.unwrap();
    s.proxy.cut();
    s.proxy.set_traffic(Traffic::Pass);
    let answer = stream.registered().await;
    assert_eq!(answer.generation, made.stat.czxid, "found, not made again");
    let (_stream, held) = soon("the lock", lock).await.unwrap();
    let leases = s.zk.children("/lost-lock").await.unwrap();
    assert_eq!(leases.len(), 1, "one lease: {leases:?}");
    let lease = s.zk.get(&format!("/lost-lock/{}", leases[0])).await.unwrap();
    assert_eq!((lease.text(), lease.stat.czxid), ("second", held.fencing_token));
    assert_eq!(s.zk.children("/lost-lock-__lock__").await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn an_expired_zookeeper_session_is_replaced_and_everything_registered_again() {
    let s = ARM.behind_a_proxy("faults", &["--session-timeout", "3s"]).await;
    let mut stream = Registration::open(&s.client).await;
    let first = stream.set("/expired/one", data(json!({"a": 1}))).await;
    let before = s.zk.get("/expired/one").await.unwrap();
    s.cut_off().await;
    s.zk.wait_gone("/expired/one").await;
    s.proxy.accept().await;
    let back = stream.registered().await;
    assert!(back.restored && back.generation > first.generation, "{back:?}");
    let after = s.zk.get("/expired/one").await.unwrap();
    assert_eq!((after.data, after.stat.czxid), (before.data, back.generation), "with the same bytes");
    drop(stream);
    s.zk.wait_gone("/expired/one").await;
}

#[tokio::test]
async fn what_a_killed_replica_held_goes_with_its_zookeeper_session() {
    let s = ARM.behind_a_proxy("faults", &["--session-timeout", "3s"]).await;
    let other = Server::start(&s.sandbox.hosts).await;
    let mut watching = Watching::start(&other.client().await, "/killed").await;
    let mut stream = Registration::open(&s.client).await;
    stream.set("/killed/one", text("x")).await;
    let (_holder, _) = Locking::take(&s.client, "/killed-lock", "killed").await;
    let other_client = other.client().await;
    let (mut waiter, queued) = Locking::queue(&other_client, "/killed-lock", "waiter").await;
    assert_eq!(queued.holders, ["killed"]);
    watching.until("the registration", |known| known.names() == ["one"]).await;
    let Cut { mut server, .. } = s;
    server.process().kill();
    watching.until("it gone", |known| known.names().is_empty()).await;
    waiter.held().await.unwrap();
}
