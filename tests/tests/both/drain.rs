//! How a replica drains: `draining` on every stream, clients that move, GOAWAY, and the end at the deadline.

use std::time::Duration;

use rollcall_proto::v1;
use rollcall_proto::v1::acquire_lock_response::Event as LockEvent;
use rollcall_proto::v1::register_response::Response;
use rollcall_proto::v1::watch_response::Event;
use rollcall_proto::v1::{ChangeKind, Draining, LostReason};
use rollcall_tests::arm::Setting;
use rollcall_tests::client::{Client, Registration, data, get, next, refused, retry_delay, set, span};
use rollcall_tests::follow::{Locking, Watching};
use rollcall_tests::process::Signal;
use rollcall_tests::server::{SERVICE, Server};
use rollcall_tests::wait::{SOON, check, eventually, soon};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::ARM;

/// Longer than any test waits.
const LONG: Duration = Duration::from_secs(600);

fn value() -> v1::Value {
    data(json!({"a": 1}))
}

/// One stream of each kind.
struct Streams {
    registering: Registration,
    watching: Watching,
    locking: Locking,
}

impl Streams {
    async fn open(client: &Client) -> Streams {
        let mut registering = Registration::open_with_ttl(client, LONG).await;
        registering.set("/drain/a", value()).await;
        let (locking, _) = Locking::take(client, "/lock", "me").await;
        Streams { registering, watching: Watching::start(client, "/drain").await, locking }
    }

    /// The next message of each stream, which must be `draining`.
    async fn told(&mut self) -> [Duration; 3] {
        let registering = self.registering.next().await.unwrap();
        let Some(Response::Draining(registering)) = registering else { panic!("not draining: {registering:?}") };
        let watching = self.watching.step().await.event;
        let Some(Event::Draining(watching)) = watching else { panic!("not draining: {watching:?}") };
        let locking = self.locking.next().await.unwrap();
        let Some(LockEvent::Draining(locking)) = locking else { panic!("not draining: {locking:?}") };
        [registering, watching, locking].map(remaining)
    }

    /// The end of each stream, which must be that the replica drains.
    async fn refused(mut self) -> [Duration; 3] {
        let watching = loop {
            if let Err(status) = self.watching.try_step().await {
                break status;
            }
        };
        [self.registering.end().await.unwrap_err(), watching, self.locking.end().await.unwrap_err()]
            .map(|status| retry_delay(&refused(Err::<(), _>(status), Code::Unavailable, "DRAINING")))
    }
}

fn remaining(draining: Draining) -> Duration {
    draining.remaining.expect("it says how long").try_into().expect("it is no negative time")
}

/// A server that drains for as long as a test needs, and has been asked to.
async fn draining(time: &str) -> (Setting, Streams) {
    let mut s = ARM.setting_with("drain", &["--drain", time]).await;
    let streams = Streams::open(&s.client).await;
    s.server.process().signal(Signal::TERM);
    (s, streams)
}

async fn ends_well(server: &mut Server) {
    let status = server.process().wait(SOON).await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn every_stream_is_told_to_move_and_the_replica_goes_when_all_have() {
    let (mut s, mut streams) = draining("500s").await;
    for remaining in streams.told().await {
        assert!(remaining > LONG / 2 && remaining <= Duration::from_secs(500), "{remaining:?}");
    }
    let other_server = s.another_server().await;
    let other = other_server.client().await;
    let generation = s.zk.get("/drain/a").await.unwrap().stat.czxid;
    let mut moved = Registration::open_with_ttl(&other, LONG).await;
    let again = moved.resume("/drain/a", value(), generation).await;
    assert!(again.adopted && again.generation > generation, "{again:?}");
    assert_eq!(streams.registering.lost().await.reason(), LostReason::TakenOver);
    drop(streams);
    ends_well(&mut s.server).await;
    assert_eq!(get(&other, "/drain").await.children.len(), 1);
}

#[tokio::test]
async fn at_the_deadline_what_is_left_ends_with_a_delay() {
    let (mut s, mut streams) = draining("1s").await;
    streams.told().await;
    let delays = streams.refused().await;
    assert!(delays[0] != delays[1] || delays[1] != delays[2], "the return of many is spread: {delays:?}");
    ends_well(&mut s.server).await;
}

#[tokio::test]
async fn a_get_that_waits_ends_with_a_delay_and_holds_nothing_up() {
    let mut s = ARM.setting_with("drain", &["--drain", "500s"]).await;
    let request = v1::GetRequest { path: "/nobody".to_owned(), wait: Some(span(LONG)), ..Default::default() };
    let mut client = s.client.clone();
    let waiting = tokio::spawn(async move { client.get(request).await });
    s.server.wait_for_streams(1).await;
    s.server.process().signal(Signal::TERM);
    let answer = soon("the end of the wait", waiting).await.unwrap();
    assert!(retry_delay(&refused(answer, Code::Unavailable, "DRAINING")) <= LONG);
    ends_well(&mut s.server).await;
}

#[tokio::test]
async fn a_second_signal_ends_the_drain() {
    let (mut s, mut streams) = draining("500s").await;
    streams.told().await;
    s.server.process().signal(Signal::TERM);
    streams.refused().await;
    ends_well(&mut s.server).await;
}

#[tokio::test]
async fn an_interrupt_ends_without_a_drain() {
    let mut s = ARM.setting_with("drain", &["--drain", "500s"]).await;
    let streams = Streams::open(&s.client).await;
    s.server.process().signal(Signal::INT);
    streams.refused().await;
    ends_well(&mut s.server).await;
}

#[tokio::test]
async fn while_it_drains_a_replica_is_not_ready_and_takes_no_new_streams() {
    let (s, mut streams) = draining("500s").await;
    streams.told().await;
    let ready = s.server.http_get("/readyz").await.unwrap();
    assert!(ready.starts_with("HTTP/1.1 503 ") && ready.ends_with("draining\n"), "{ready}");
    let refused = s.client.clone().watch(v1::WatchRequest { path: "/".to_owned(), ..Default::default() }).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    // Open streams are still served, on a connection that is to take no more calls.
    streams.registering.keep_alive().await;
    s.zk.create("/drain/b", b"1").await;
    streams.watching.until("the change", |known| known.names() == ["a", "b"]).await;
}

/// A connection opened after the open ones were asked to send no more calls.
async fn late(s: &Setting) -> Channel {
    eventually("a new connection is told that the replica drains", SOON, async || {
        let channel = s.server.channel().await;
        let answer = client_of(&channel).get(v1::GetRequest { path: "/".to_owned(), ..Default::default() }).await;
        check(answer.is_err(), || "it was answered".to_owned()).map(|()| channel)
    })
    .await
}

fn client_of(channel: &Channel) -> Client {
    Client::new(channel.clone())
}

#[tokio::test]
async fn who_connects_while_it_drains_is_told_so_until_the_end() {
    let (mut s, mut streams) = draining("500s").await;
    streams.told().await;
    let channel = late(&s).await;
    let mut client = client_of(&channel);
    let get = client.get(v1::GetRequest { path: "/".to_owned(), ..Default::default() }).await;
    assert!(retry_delay(&refused(get, Code::Unavailable, "DRAINING")) <= LONG);
    let watch = client.watch(v1::WatchRequest { path: "/".to_owned(), ..Default::default() }).await;
    refused(watch, Code::Unavailable, "DRAINING");
    let status = client.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.state(), v1::ReplicaState::Draining);
    let remaining = Duration::try_from(status.remaining.unwrap()).unwrap();
    assert!(remaining > LONG / 2 && remaining <= Duration::from_secs(500), "{remaining:?}");
    assert_eq!(status.counts.unwrap().register_streams, 1);
    assert_eq!(s.server.health(SERVICE).await.unwrap(), ServingStatus::NotServing);

    // Neither the connection nor an endless call on it delays the end of the drain.
    let request = HealthCheckRequest { service: SERVICE.to_owned() };
    let mut health = HealthClient::new(channel.clone()).watch(request).await.unwrap().into_inner();
    assert_eq!(health.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    drop(streams);
    ends_well(&mut s.server).await;
}

#[tokio::test]
async fn nothing_is_told_before_opened() {
    let mut s = ARM.setting_with("drain", &["--drain", "500s"]).await;
    let (sender, receiver) = mpsc::channel(1);
    let answers = soon("headers of Register", s.client.clone().register(ReceiverStream::new(receiver))).await;
    let mut answers = answers.unwrap().into_inner();
    s.server.process().signal(Signal::TERM);
    eventually("it drains", SOON, async || {
        let ready = s.server.http_get("/readyz").await.map_err(|error| error.to_string())?;
        check(ready.ends_with("draining\n"), || ready)
    })
    .await;
    sender.send(v1::RegisterRequest { request: Some(set("/late", value())) }).await.unwrap();
    let mut told = Vec::new();
    while told.len() < 3 {
        let answer = next("an answer of Register", &mut answers).await.unwrap().unwrap();
        told.push(match answer.response.unwrap() {
            Response::Opened(_) => "opened",
            Response::Draining(_) => "draining",
            Response::Registered(_) => "registered",
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(told[0], "opened", "{told:?}");
    told.sort_unstable();
    assert_eq!(told, ["draining", "opened", "registered"]);
}

#[tokio::test]
async fn a_replica_that_stops_leaves_registrations_standing() {
    let mut s = ARM.setting_with("drain", &["--session-timeout", "6s", "--drain", "0s"]).await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    let mut with = Registration::open_with_ttl(&s.client, LONG).await;
    let mut without = Registration::open(&s.client).await;
    let first = [with.set("/services/with", value()).await, without.set("/services/without", value()).await];
    with.set("/left", value()).await;
    let mut watching = Watching::start(&other_client, "/services").await;
    let ending = s.zk.ending("/left").await;
    let stopped = Instant::now();
    s.server.process().signal(Signal::TERM);
    for stream in [&mut with, &mut without] {
        stream.end().await.unwrap_err();
    }
    let status = s.server.process().wait(SOON).await;
    assert!(status.success(), "{status}");
    let mut new = Registration::open(&other_client).await;
    for (path, first) in ["/services/with", "/services/without"].into_iter().zip(first) {
        assert_eq!(s.zk.get(path).await.unwrap().stat.czxid, first.generation, "it stands");
        let again = new.resume(path, value(), first.generation).await;
        assert!(again.adopted && again.generation > first.generation, "{again:?}");
    }
    // A registration that was not resumed ends with the replica's ZooKeeper session, and nothing else does.
    assert!(ending.at().await > stopped);
    s.zk.create_ephemeral("/services/later", b"x").await;
    watching.until("what came later", |known| known.names() == ["later", "with", "without"]).await;
    assert_eq!(watching.changes, [(ChangeKind::Added, "later".to_owned())]);
}

#[tokio::test]
async fn what_a_client_gave_up_during_the_drain_is_gone_when_the_replica_is() {
    const PATHS: usize = 5_000;
    let mut s = ARM.setting_with("drain", &["--drain", "500s"]).await;
    let mut stream = Registration::open(&s.client).await;
    for index in 0..PATHS {
        stream.send(set(&format!("/left/{index}"), value())).await;
    }
    for _ in 0..PATHS {
        stream.registered().await;
    }
    s.server.process().signal(Signal::TERM);
    let draining = stream.next().await.unwrap();
    assert!(matches!(draining, Some(Response::Draining(_))), "{draining:?}");
    drop(stream);
    ends_well(&mut s.server).await;
    s.zk.sync("/left").await;
    assert_eq!(s.zk.children("/left").await.unwrap().len(), 0);
}
