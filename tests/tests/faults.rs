//! ZooKeeper not started yet, restarted, hung, without its leader. Everything that exists remains, and all is well
//! afterwards.

use std::time::Duration;

use rollcall_proto::v1::register_response::Response;
use rollcall_proto::v1::watch_response::Event;
use rollcall_proto::v1::{GetRequest, WatchRequest};
use rollcall_tests::arm::Arm;
use rollcall_tests::client::{
    Registration, cached, data, delete, get, latest, put, put_eventually, refused, retry_delay, set, shown, text,
};
use rollcall_tests::embedded::Embedded;
use rollcall_tests::follow::{Locking, Watching};
use rollcall_tests::notification_filter::NotificationFilter;
use rollcall_tests::server::{SERVICE, Server};
use rollcall_tests::wait::{SOON, eventually};
use rollcall_tests::zookeeper::{Options, ZooKeeper};
use rollcall_tests::zookeeper_witness::Witness;
use rollcall_wire::ErrorCode;
use serde_json::json;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

#[tokio::test]
async fn a_server_starts_without_zookeeper_and_all_is_well_when_it_comes() {
    let mut zookeeper = ZooKeeper::prepared(Options::default());
    let mut server = Server::launch(&zookeeper.hosts(), &[]).await;
    for service in ["", SERVICE] {
        assert_eq!(server.health(service).await.unwrap(), ServingStatus::NotServing, "{service:?}");
    }
    let mut client = server.client().await;
    for request in [latest("/services"), GetRequest { path: "/services".into(), ..Default::default() }] {
        let status = refused(client.get(request).await, Code::Unavailable, "BACKEND_UNAVAILABLE");
        assert!(retry_delay(&status) > Duration::ZERO);
    }
    for answer in [put(&client, "/config", text("x")).await.map(|_| ()), delete(&client, "/config").await] {
        let status = refused(answer, Code::Unavailable, "BACKEND_UNAVAILABLE");
        assert!(retry_delay(&status) > Duration::ZERO);
    }
    let mut stream = Registration::open_with(&client, [set("/services/early", text("x"))]).await.unwrap();
    let Ok(Some(Response::Pending(pending))) = stream.next().await else { panic!("pending comes first") };
    assert_eq!(pending.path, "/services/early");

    zookeeper.start(0);
    zookeeper.ready().await;
    server.wait_until_serving().await;
    assert_eq!(server.health("").await.unwrap(), ServingStatus::Serving);
    stream.registered().await;
    assert!(get(&client, "/services").await.children.contains_key("early"));
    put(&client, "/config", text("x")).await.unwrap();
}

#[tokio::test]
async fn a_restarted_zookeeper_finds_everything_as_it_was() {
    let mut zookeeper = ZooKeeper::standalone(Options::default()).await;
    let server = Server::start(&zookeeper.hosts()).await;
    let client = server.client().await;
    let mut stream = Registration::open(&client).await;
    let first = stream.set("/restart/one", text("x")).await;
    let mut watching = Watching::start(&client, "/restart").await;
    zookeeper.kill(0);
    zookeeper.start(0);
    zookeeper.ready().await;
    stream.set("/restart/two", text("x")).await;
    watching.until("the new one", |known| known.names() == ["one", "two"]).await;
    let node = get(&client, "/restart").await;
    assert_eq!(node.children["one"].stat.unwrap().czxid, first.generation);
}

#[tokio::test]
async fn a_zookeeper_that_hangs_for_a_while_costs_nothing() {
    let mut zookeeper = ZooKeeper::standalone(Options::default()).await;
    let server = Server::start(&zookeeper.hosts()).await;
    let client = server.client().await;
    let mut stream = Registration::open(&client).await;
    let first = stream.set("/hang/one", text("x")).await;
    zookeeper.pause(0);
    stream.send(set("/hang/two", text("x"))).await;
    // Reads of known paths are answered, whatever hangs.
    cached(&client, "/hang").await.ok();
    zookeeper.resume(0);
    stream.registered().await;
    let node = get(&client, "/hang").await;
    assert_eq!(node.children["one"].stat.unwrap().czxid, first.generation);
    assert!(node.children.contains_key("two"));
}

#[tokio::test]
async fn the_loss_of_the_leader_costs_nothing_that_stands() {
    let mut zookeeper = ZooKeeper::ensemble(Options::default()).await;
    let sandbox = zookeeper.sandbox("leader").await;
    let servers = [Server::start(&sandbox.hosts).await, Server::start(&sandbox.hosts).await];
    let clients = [servers[0].client().await, servers[1].client().await];
    let mut stream = Registration::open(&clients[0]).await;
    let first = stream.set("/leader/one", data(json!({"a": 1}))).await;
    let (_holder, held) = Locking::take(&clients[0], "/leader-lock", "holder").await;
    let (mut waiter, _) = Locking::queue(&clients[1], "/leader-lock", "waiter").await;
    let mut watching = Watching::start(&clients[1], "/leader").await;
    for round in 0..2 {
        let leader = zookeeper.leader().await;
        zookeeper.kill(leader);
        let name = format!("round {round}");
        stream.set(&format!("/leader/{name}"), text("x")).await;
        put_eventually(&clients[1], "/leader-config", &name).await;
        watching.until("what came after", |known| known.children.contains_key(&name)).await;
        zookeeper.start(leader);
        zookeeper.ready().await;
    }
    let node = get(&clients[1], "/leader").await;
    assert_eq!(node.children["one"].stat.unwrap().czxid, first.generation);
    assert_eq!(shown(get(&clients[0], "/leader-config").await.value.as_ref()), json!({"text": "round 1"}));
    eventually("the lock is given back", SOON, async || {
        rollcall_tests::client::release(&clients[1], &held.lock_id).await.map_err(|status| format!("{status:?}"))
    })
    .await;
    assert!(waiter.held().await.unwrap().fencing_token > held.fencing_token);
}

/// One read asks for more than the embedded server sends in one answer. (A ZooKeeper of a test lacks the memory for an
/// answer that Rollcall does not read.)
#[tokio::test]
async fn what_is_too_large_for_one_answer_is_read_in_several() {
    let own = Arm::Embedded.own(Options::default()).await;
    let address = own.address().to_string();
    let (server, zk) = (Server::start(&address).await, Witness::connect(&address).await);
    let client = server.client().await;
    let (data, long) = (vec![b'x'; 1_000_000], "y".repeat(240));
    for number in 0..60 {
        let path = format!("/large/{number}");
        zk.create(&path, &data).await;
        zk.create_many((0..600).map(|child| format!("{path}/{child}{long}")), b"").await;
    }
    let mut others = Vec::new();
    for number in 0..4 {
        others.push(Watching::start(&client, &format!("/other/{number}")).await);
    }
    let request = GetRequest { path: "/large".into(), recursive: true, page_size: 1, ..Default::default() };
    let page = eventually("the subtree is read", 3 * SOON, async || {
        client.clone().get(request.clone()).await.map_err(|status| format!("{status:?}"))
    })
    .await;
    assert_eq!(page.into_inner().node.unwrap().children.keys().collect::<Vec<_>>(), ["0"]);
    for (number, other) in others.iter_mut().enumerate() {
        zk.create(&format!("/other/{number}"), b"x").await;
        let next = other.step().await.event.unwrap();
        assert!(matches!(next, Event::Delta(_)), "no word of the backend: {next:?}");
    }
}

/// Like the error of a follower that lags, or of a proxy.
#[tokio::test]
async fn a_session_that_is_called_over_and_lives_costs_its_clients_a_retry_at_most() {
    let embedded = Embedded::start(Options::default()).await;
    let server = Server::start_with(&embedded.address().to_string(), &["--sessions", "1", "--max-sessions", "1"]).await;
    let client = server.client().await;
    let mut stream = Registration::open(&client).await;
    let first = stream.set("/called-over/first", text("x")).await;
    for (round, code) in [ErrorCode::SessionExpired, ErrorCode::SessionMoved].into_iter().enumerate() {
        let mut tries = 0;
        let (path, answer) = loop {
            embedded.faults().refuse_writes(1, code);
            // The put creates parents too, so it is a transaction, one part of which fails.
            let path = format!("/called-over/parent-{round}-{tries}/config");
            let answer = put(&client, &path, text("x")).await;
            // A write of the replica's own, such as that of a fence, may have been refused instead.
            if answer.is_err() || tries == 5 {
                break (path, answer);
            }
            tries += 1;
        };
        refused(answer, Code::Unavailable, "BACKEND_UNAVAILABLE");
        eventually("the put is carried out", SOON, async || {
            put(&client, &path, text("x")).await.map_err(|status| format!("{status:?}"))
        })
        .await;
        embedded.faults().refuse_writes(1, code);
        stream.set(&format!("/called-over/more-{round}"), text("x")).await;
        embedded.faults().refuse_writes(1, code);
        let (_lock, _) = Locking::take(&client, &format!("/called-over-lock-{round}"), "holder").await;
    }
    let node = get(&client, "/called-over").await;
    assert_eq!(node.children["first"].stat.unwrap().czxid, first.generation, "the session goes on");
}

#[tokio::test]
async fn a_view_that_missed_an_event_finds_out_by_the_number_of_children() {
    let sandbox = Arm::ZooKeeper.sandbox("missed").await;
    let zk = sandbox.zk().await;
    let filter = NotificationFilter::start(sandbox.servers.parse().unwrap()).await;
    let server = Server::start(&format!("{}{}", filter.address(), sandbox.chroot)).await;
    let client = server.client().await;
    let drop_next = |path: &str| filter.drop_next(format!("{}{path}", sandbox.chroot));
    for path in ["/missed/one", "/missed/two/a", "/missed/three"] {
        zk.create(path, b"1").await;
    }
    let mut watching = Watching::start(&client, "/missed").await;
    let recursive = WatchRequest { path: "/missed".into(), recursive: true, ..Default::default() };
    let mut deep = Watching::start_with(&client, recursive).await;

    // The next event reveals the missed change.
    drop_next("/missed/new");
    zk.create("/missed/new", b"1").await;
    filter.has_dropped().await;
    let known = cached(&client, "/missed").await.unwrap().node.unwrap();
    assert_eq!(known.children.len(), 3, "nothing has told of it");
    zk.set("/missed/three", b"2").await;
    watching.until("what was missed", |known| known.names() == ["new", "one", "three", "two"]).await;
    deep.until("what was missed", |known| known.names() == ["new", "one", "three", "two", "two/a"]).await;

    // So does a LATEST read.
    drop_next("/missed/one");
    zk.delete("/missed/one").await;
    filter.has_dropped().await;
    let answer = client.clone().get(latest("/missed")).await.unwrap().into_inner();
    assert_eq!(answer.node.unwrap().children.len(), 3);
    watching.until("what was missed", |known| known.names() == ["new", "three", "two"]).await;

    // And so does an event further down.
    drop_next("/missed/two/b");
    zk.create("/missed/two/b", b"1").await;
    filter.has_dropped().await;
    zk.set("/missed/two/a", b"2").await;
    deep.until("what was missed", |known| known.names() == ["new", "three", "two", "two/a", "two/b"]).await;
    // Neither watch had to begin anew.
    assert_eq!((watching.snapshots, deep.snapshots), (1, 1));
}
