//! Status: a replica's report about itself, with and without a working ZooKeeper.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use rollcall_proto::v1;
use rollcall_tests::client::{Client, Registration, data, describe, get, put, span, text};
use rollcall_tests::follow::{Locking, Watching, lock};
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually, soon};
use rollcall_tests::zookeeper::free_address;
use serde_json::json;

use super::ARM;

async fn status(client: &Client) -> v1::StatusResponse {
    let answer = soon("an answer to Status", client.clone().status(v1::StatusRequest {})).await;
    answer.expect("Status succeeds whatever becomes of zookeeper").into_inner()
}

fn time(time: Option<prost_types::Timestamp>) -> SystemTime {
    SystemTime::try_from(time.expect("it says when")).expect("a time")
}

/// The names of the running replicas, as this one lists them.
fn names(status: &v1::StatusResponse) -> BTreeSet<&str> {
    status.replicas.iter().map(|replica| replica.replica.as_str()).collect()
}

#[tokio::test]
async fn a_replica_tells_what_it_holds_and_which_others_there_are() {
    let begun = SystemTime::now();
    let s = ARM.setting_with("status", &["--name", "first"]).await;
    let other = Server::start_with(&s.sandbox.hosts, &["--name", "other one"]).await;
    let mut registration = Registration::open(&s.client).await;
    let registered = registration.set("/services/a", data(json!({}))).await;
    let _watching = Watching::start(&s.client, "/services").await;
    let (_holding, _) = Locking::take(&s.client, "/lock", "me").await;

    let told = status(&s.client).await;
    assert_eq!((told.replica.as_str(), told.version.as_str()), ("first", env!("CARGO_PKG_VERSION")));
    assert_eq!((told.state(), told.state_cause.as_str(), told.remaining), (v1::ReplicaState::Serving, "", None));
    assert!((begun..=SystemTime::now()).contains(&time(told.start_time)), "{told:?}");
    let backend = told.backend.clone().unwrap();
    assert_eq!((backend.kind(), backend.state()), (v1::BackendKind::Zookeeper, v1::BackendState::Connected));
    assert_eq!((backend.servers.as_slice(), backend.last_error.as_str()), ([s.sandbox.servers.clone()].as_slice(), ""));
    assert!(time(backend.since_time) >= begun);

    let holding = told.sessions.iter().filter(|session| !session.watching);
    let held_by = registered.stat.unwrap().ephemeral_owner;
    let paths = holding.clone().find(|session| session.id == held_by).unwrap().path_bytes.unwrap();
    assert!(paths.used > 0 && paths.limit == 512 * 1024, "{paths:?}");
    assert!(told.sessions.iter().all(|session| session.connected && session.server == s.sandbox.servers), "{told:?}");
    assert_eq!(told.sessions.iter().filter(|session| session.watching).count(), 2);

    let counts = told.counts.unwrap();
    let streams = (counts.register_streams, counts.watch_streams, counts.lock_streams, counts.waiting_gets);
    assert_eq!(streams, (1, 1, 1, 0));
    assert_eq!((counts.registrations, counts.locks, counts.views), (1, 1, 1));
    assert!(counts.connections >= 1 && counts.calls >= 4, "{counts:?}");
    let memory = told.memory.unwrap();
    assert!(memory.used > 0 && memory.used < memory.limit, "{memory:?}");

    eventually("both list both", 2 * SOON, async || {
        for client in [s.client.clone(), other.client().await] {
            let told = status(&client).await;
            check(names(&told) == BTreeSet::from(["first", "other one"]), || format!("{told:?}"))?;
            let of_first = told.replicas.iter().find(|replica| replica.replica == "first").unwrap();
            assert!(of_first.sessions.contains(&held_by), "{told:?}");
            assert!(time(told.replicas_time) >= begun);
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_lock_tells_which_replica_keeps_whom() {
    let s = ARM.setting_with("status", &["--name", "first"]).await;
    let other = Server::start_with(&s.sandbox.hosts, &["--name", "other"]).await;
    let other_client = other.client().await;
    let (_holding, _) = Locking::take(&s.client, "/stream", "a").await;
    let (_waiting, _) = Locking::queue(&other_client, "/stream", "b").await;
    let with_ttl = v1::AcquireLockRequest { ttl: Some(span(Duration::from_secs(600))), ..lock("/ttl", "c") };
    Locking::start(&other_client, with_ttl).await.unwrap().held().await.unwrap();
    eventually("each is named", 2 * SOON, async || {
        let (stream, ttl) = (describe(&s.client, "/stream").await, describe(&s.client, "/ttl").await);
        let replicas = [&stream.holders[0], &stream.waiters[0], &ttl.holders[0]].map(|party| party.replica.as_str());
        check(replicas == ["first", "other", "other"], || format!("{replicas:?}"))
    })
    .await;
}

#[tokio::test]
async fn it_is_answered_while_zookeeper_is_away() {
    let s = ARM.behind_a_proxy("status", &["--name", "cut off"]).await;
    let before = status(&s.client).await;
    let up_since = time(before.backend.clone().unwrap().since_time);
    eventually("the replica lists itself", 2 * SOON, async || {
        let told = status(&s.client).await;
        check(names(&told) == BTreeSet::from(["cut off"]), || format!("{told:?}"))
    })
    .await;
    s.cut_off().await;
    let away = eventually("the backend is away", SOON, async || {
        let told = status(&s.client).await;
        let backend = told.backend.clone().unwrap();
        let is_away = backend.state() == v1::BackendState::Suspended && !backend.last_error.is_empty();
        check(is_away && backend.servers.is_empty(), || format!("{backend:?}")).map(|()| told)
    })
    .await;
    let backend = away.backend.clone().unwrap();
    assert!(time(backend.since_time) > up_since, "{backend:?}");
    assert!(backend.last_error.contains(&s.proxy.address().to_string()), "{backend:?}");
    assert_eq!(away.state(), v1::ReplicaState::Serving, "known paths are still answered");
    assert_eq!(names(&away), BTreeSet::from(["cut off"]), "the last list");
    s.proxy.accept().await;
    eventually("it is back", 2 * SOON, async || {
        let backend = status(&s.client).await.backend.unwrap();
        let is_back = backend.state() == v1::BackendState::Connected && backend.last_error.is_empty();
        check(is_back, || format!("{backend:?}"))
    })
    .await;
    assert!(!get(&s.client, "/nothing").await.exists);
}

#[tokio::test]
async fn a_get_counts_as_waiting_only_while_it_waits() {
    let s = ARM.behind_a_proxy("status", &[]).await;
    let waiting = async || status(&s.client).await.counts.unwrap().waiting_gets;
    let get = |consistency: v1::Consistency| {
        let (mut client, path) = (s.client.clone(), "/waited/for".to_owned());
        let wait = Some(span(Duration::from_secs(60)));
        let request = v1::GetRequest { path, wait, consistency: consistency.into(), ..Default::default() };
        tokio::spawn(async move { client.get(request).await })
    };
    let answer = get(v1::Consistency::Cached);
    eventually("it waits for a child", SOON, async || {
        let count = waiting().await;
        check(count == 1, || count.to_string())
    })
    .await;
    put(&s.client, "/waited/for/it", text("x")).await.unwrap();
    soon("the answer", answer).await.unwrap().unwrap();
    assert_eq!(waiting().await, 0);

    // A read that ZooKeeper does not answer takes a while, and waits for no child.
    s.cut_off().await;
    let answer = get(v1::Consistency::Latest);
    let mut looks = 0;
    while !answer.is_finished() {
        assert_eq!(waiting().await, 0);
        looks += 1;
    }
    assert!(looks > 1 && answer.await.unwrap().is_err());
}

#[tokio::test]
async fn it_is_answered_before_zookeeper_was_ever_reached() {
    let nobody = free_address();
    let server = Server::launch(&nobody.to_string(), &[]).await;
    let client = server.client().await;
    let told = eventually("it has tried", SOON, async || {
        let told = status(&client).await;
        check(!told.backend.clone().unwrap().last_error.is_empty(), || format!("{told:?}")).map(|()| told)
    })
    .await;
    assert_eq!(told.state(), v1::ReplicaState::NotServing);
    assert!(told.state_cause.contains("zookeeper"), "{told:?}");
    let port = server.grpc().port().to_string();
    assert!(told.replica.ends_with(&format!(":{port}")), "by default the host and the port: {}", told.replica);
    assert!(told.backend.unwrap().last_error.contains(&nobody.to_string()));
    assert_eq!((told.replicas.len(), told.replicas_time), (0, None));
}
