//! A backend that has lost all its data, and is back at its address. Watchers receive the present state. Registrations
//! are made again; locks are lost, and their holders are told.
//!
//! ZooKeeper's transaction ids begin anew then: revisions fall, and a watch says so. Those of the embedded server
//! continue from the clock, so that nothing falls: there the loss is a change like any other.

use rollcall_proto::v1::{PutRequest, WatchRequest};
use rollcall_tests::arm::{Arm, Own};
use rollcall_tests::client::{Client, Registration, data, get, put, refused, text};
use rollcall_tests::follow::{Locking, Watching};
use rollcall_tests::server::Server;
use rollcall_tests::zookeeper::Options;
use rollcall_tests::zookeeper_witness::Witness;
use serde_json::json;
use tokio::task::JoinSet;
use tonic::Code;

use super::ARM;

async fn setting() -> (Own, Server, Client) {
    let own = ARM.own(Options::default()).await;
    let server = Server::start_with(&own.address().to_string(), &["--session-timeout", "3s"]).await;
    let client = server.client().await;
    // Raises the transaction id far above any that the backend reaches in its next life, so that none of the known ids
    // occurs again.
    let mut writes = JoinSet::new();
    for number in 0..300 {
        let client = client.clone();
        writes.spawn(async move { put(&client, &format!("/past/{number}"), text("x")).await.unwrap() });
    }
    writes.join_all().await;
    (own, server, client)
}

#[tokio::test]
async fn who_watches_is_told_what_is_there_now() {
    let (mut own, server, client) = setting().await;
    for path in ["/config/one", "/config/two"] {
        put(&client, path, text("x")).await.unwrap();
    }
    let mut stream = Registration::open(&client).await;
    stream.set("/services/one", data(json!({"port": 1}))).await;
    let mut config = Watching::start(&client, "/config").await;
    let mut services = Watching::start(&client, "/services").await;
    let known = config.known.clone();
    let request = WatchRequest { path: "/config".into(), since_revision: config.revision, ..Default::default() };

    own.lose_everything().await;
    assert!(stream.registered().await.restored);
    config.until("that all is gone", |known| !known.exists).await;
    stream.set("/services/two", text("x")).await;
    services.until("what is registered", |known| known.names() == ["one", "two"]).await;
    let falls = ARM != Arm::Embedded;
    assert_eq!((config.was_reset, services.was_reset), (falls, falls));

    // A watcher that resumes with a revision from before the loss gets the present state as well, at this replica and
    // at one that does not know the past.
    let create = PutRequest { path: "/config/three".into(), value: Some(text("three")), ..Default::default() };
    client.clone().put(create).await.unwrap();
    let other = Server::start(&own.address().to_string()).await;
    for client in [&client, &other.client().await] {
        let mut back = Watching::come_back(client, request.clone(), known.clone()).await;
        back.until("what is there now", |known| known.names() == ["three"]).await;
        assert_eq!(back.was_reset, falls);
    }
    config.until("what came later", |known| known.names() == ["three"]).await;
    drop(server);
}

#[tokio::test]
async fn what_is_held_is_registered_again_and_locks_are_lost() {
    let (mut own, _server, client) = setting().await;
    let mut stream = Registration::open(&client).await;
    let first = stream.set("/services/one", data(json!({"port": 1}))).await;
    let before = Witness::connect(&own.address().to_string()).await.get("/services/one").await.unwrap();
    let (mut holder, held) = Locking::take(&client, "/lock", "holder").await;

    own.lose_everything().await;
    let again = stream.registered().await;
    assert!(again.restored && again.generation != first.generation, "{again:?}");
    let zk = Witness::connect(&own.address().to_string()).await;
    let after = zk.get("/services/one").await.unwrap();
    assert_eq!((after.data, after.stat.czxid), (before.data, again.generation), "with the same bytes");
    refused(holder.end().await, Code::Aborted, "LOCK_LOST");
    let (_next, granted) = Locking::take(&client, "/lock", "next").await;
    assert_ne!(granted.lock_id, held.lock_id);
    drop(stream);
    zk.wait_gone("/services/one").await;
    assert!(get(&client, "/services").await.children.is_empty());
}
