//! ZooKeeper servers that are behind the state that a client knows: a follower that lags, and a backup that was
//! restored.

use std::pin::pin;
use std::time::Duration;

use rollcall_proto::v1::{GetRequest, WatchRequest};
use rollcall_tests::client::{Client, latest, put, put_eventually, reason, shown, text};
use rollcall_tests::follow::{Known, Watching};
use rollcall_tests::proxy::Traffic;
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually};
use rollcall_tests::zookeeper::{Options, ZooKeeper};
use rollcall_tests::zookeeper_witness::Witness;
use serde_json::{Value as Json, json};
use tokio::time::timeout;

const PATH: &str = "/behind/config";
/// Time for which a follower lags: shorter than the time-outs of ZooKeeper and of Rollcall's readers.
const LAG: Duration = Duration::from_millis(700);

/// A LATEST read of the path, repeated while ZooKeeper is away.
async fn read_latest(client: &Client) -> Json {
    eventually("LATEST is answered", 3 * SOON, async || match client.clone().get(latest(PATH)).await {
        Ok(answer) => Ok(shown(answer.into_inner().node.and_then(|node| node.value).as_ref())),
        Err(status) if reason(&status) == "BACKEND_UNAVAILABLE" => Err("zookeeper is away".to_owned()),
        Err(status) => panic!("{status:?}"),
    })
    .await
}

async fn come_back(client: &Client, revision: i64, known: Known) -> Watching {
    let request = WatchRequest { path: PATH.into(), since_revision: revision, ..Default::default() };
    Watching::come_back(client, request, known).await
}

#[tokio::test]
async fn a_replica_on_a_follower_that_lags_says_nothing_older_than_what_was_known() {
    let zookeeper = ZooKeeper::linked_ensemble(Options::default()).await;
    let leader = zookeeper.leader().await;
    let lagging = (leader + 1) % 3;
    let first = Server::start(&zookeeper.address(leader).to_string()).await;
    let second = Server::start(&zookeeper.address(lagging).to_string()).await;
    let (ahead, behind) = (first.client().await, second.client().await);
    let zk = Witness::connect(&zookeeper.address(lagging).to_string()).await;
    put(&ahead, PATH, text("0")).await.unwrap();
    let mut told = Watching::start(&ahead, PATH).await;
    assert_eq!(read_latest(&behind).await, json!({"text": "0"}));
    for round in 1..=3 {
        let (old, new) = ((round - 1).to_string(), json!({"text": round.to_string()}));
        zookeeper.link(lagging, leader).set_traffic(Traffic::Stall);
        put(&ahead, PATH, text(&round.to_string())).await.unwrap();
        told.until("the new value", |known| known.value == new).await;
        assert_eq!(zk.get(PATH).await.unwrap().text(), old, "the follower lags");
        let mut back = come_back(&behind, told.revision, told.known.clone()).await;
        let catch_up = async {
            // A wrong message would come at once. None may come but that ZooKeeper is silent.
            drop(timeout(LAG, back.step()).await);
            assert_eq!((&back.known, back.revision), (&told.known, told.revision));
            zookeeper.link(lagging, leader).set_traffic(Traffic::Pass);
        };
        let (read, ()) = tokio::join!(read_latest(&behind), catch_up);
        assert_eq!(read, new);
        zk.create(&format!("{PATH}/{round}"), b"x").await;
        back.until("what came later", |known| known.children.len() == round).await;
        assert_eq!((back.known.value.clone(), back.was_reset), (new, false));
    }
}

#[tokio::test]
async fn a_read_on_a_follower_that_lags_waits_for_what_its_caller_has_seen() {
    let zookeeper = ZooKeeper::linked_ensemble(Options::default()).await;
    let leader = zookeeper.leader().await;
    let lagging = (leader + 1) % 3;
    let first = Server::start(&zookeeper.address(leader).to_string()).await;
    let second = Server::start(&zookeeper.address(lagging).to_string()).await;
    let (ahead, behind) = (first.client().await, second.client().await);
    put(&ahead, PATH, text("0")).await.unwrap();
    assert_eq!(read_latest(&behind).await, json!({"text": "0"}));
    for round in 1..=3 {
        zookeeper.link(lagging, leader).set_traffic(Traffic::Stall);
        let written = put(&ahead, PATH, text(&round.to_string())).await.unwrap();
        let request = GetRequest { path: PATH.into(), min_revision: written.mzxid, ..Default::default() };
        let mut client = behind.clone();
        let mut reading = pin!(client.get(request));
        assert!(timeout(LAG, &mut reading).await.is_err(), "it is answered before the follower can know");
        zookeeper.link(lagging, leader).set_traffic(Traffic::Pass);
        let answer = reading.await.unwrap().into_inner();
        let value = shown(answer.node.and_then(|node| node.value).as_ref());
        assert_eq!((value, answer.stale), (json!({"text": round.to_string()}), false));
    }
}

/// Writes to another path until ZooKeeper has passed this revision.
async fn write_past(client: &Client, revision: i64) {
    while put(client, "/behind/other", text("x")).await.unwrap().mzxid <= revision {}
}

/// A watcher that resumes gets the present state, and is told that ZooKeeper fell back.
async fn is_reset(client: &Client, told: &Watching) {
    let mut back = come_back(client, told.revision, told.known.clone()).await;
    back.until("the value of the backup", |known| known.value == json!({"text": "old"})).await;
    assert!(back.was_reset);
}

#[tokio::test]
async fn who_returns_to_a_restored_zookeeper_is_told_however_far_it_has_come_since() {
    let mut zookeeper = ZooKeeper::standalone(Options::default()).await;
    let server = Server::start_with(&zookeeper.hosts(), &["--session-timeout", "3s"]).await;
    let client = server.client().await;
    put(&client, PATH, text("old")).await.unwrap();
    zookeeper.back_up();
    zookeeper.start_all();
    zookeeper.ready().await;
    for number in 0..100 {
        put_eventually(&client, &format!("/behind/before/{number}"), "x").await;
    }
    put(&client, PATH, text("new")).await.unwrap();
    let told = Watching::start(&client, PATH).await;
    assert_eq!(told.known.value, json!({"text": "new"}));
    zookeeper.restore();
    zookeeper.start_all();
    zookeeper.ready().await;
    eventually("the backup is seen", 3 * SOON, async || {
        let value = read_latest(&client).await;
        check(value == json!({"text": "old"}), || value.to_string())
    })
    .await;
    put_eventually(&client, "/behind/other", "x").await;
    write_past(&client, told.revision).await;
    assert_eq!(read_latest(&client).await, json!({"text": "old"}));
    is_reset(&client, &told).await;
}

#[tokio::test]
async fn a_replica_that_knows_of_no_past_tells_who_returns_to_a_restored_ensemble() {
    let mut zookeeper = ZooKeeper::ensemble(Options::default()).await;
    let server = Server::start(&zookeeper.hosts()).await;
    let client = server.client().await;
    put(&client, PATH, text("old")).await.unwrap();
    zookeeper.back_up();
    zookeeper.start_all();
    zookeeper.ready().await;
    put_eventually(&client, PATH, "new").await;
    let told = Watching::start(&client, PATH).await;
    assert_eq!(told.known.value, json!({"text": "new"}));
    drop(server);
    // Like restored servers: their next leader continues from the transactions in the backup, twice.
    zookeeper.restore();
    for _ in 0..2 {
        zookeeper.kill_all();
        zookeeper.start_all();
        zookeeper.ready().await;
    }
    let server = Server::start(&zookeeper.hosts()).await;
    is_reset(&server.client().await, &told).await;
}
