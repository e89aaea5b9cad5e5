//! Register, rules 3, 4, 5 and 9: what a ttl preserves and for how long, resuming, ZooKeeper away.

use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rollcall_proto::v1;
use rollcall_proto::v1::register_request::Request;
use rollcall_proto::v1::register_response::Response;
use rollcall_proto::v1::{ChangeKind, LostReason, OpenSession};
use rollcall_tests::client::{Registration, data, refused, resume, set, span, unset};
use rollcall_tests::follow::Watching;
use rollcall_tests::proxy::Traffic;
use rollcall_tests::wait::{SOON, check, eventually};
use rollcall_tests::zookeeper_witness::Witness;
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use tonic::Code;

use super::ARM;

/// A ttl that has to expire in a test.
const SHORT: Duration = Duration::from_secs(3);
/// A ttl that has to expire in a test, but not before other steps are done.
const MEDIUM: Duration = Duration::from_secs(6);
/// Longer than any test waits.
const LONG: Duration = Duration::from_secs(600);

/// Reads the children of a path over and over, for as long as it is polled. `name` must be the only child, every time.
async fn never_a_moment_without(zk: &Witness, parent: &str, name: &str) -> Infallible {
    loop {
        assert_eq!(zk.children(parent).await.unwrap(), [name], "a moment without the node");
    }
}

/// Waits until a new registration would have a different `created` from this one.
async fn later_second(stat: Option<v1::Stat>) {
    let made = u64::try_from(stat.unwrap().ctime).unwrap() / 1000;
    eventually("the clock shows a later second", SOON, async || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        check(now > made, || format!("{now}"))
    })
    .await;
}

fn value() -> v1::Value {
    data(json!({"a": 1}))
}

#[tokio::test]
async fn opened_repeats_the_ttl_and_says_how_often_to_be_heard() {
    let s = ARM.setting("lifetimes").await;
    let with = Registration::open_with_ttl(&s.client, MEDIUM).await;
    assert_eq!((with.opened.ttl, with.opened.keep_alive_interval), (Some(span(MEDIUM)), Some(span(MEDIUM / 3))));
    let without = Registration::open(&s.client).await;
    assert_eq!((without.opened.ttl, without.opened.keep_alive_interval), (None, None));
}

#[tokio::test]
async fn with_a_ttl_a_registration_outlives_its_broken_stream_and_goes_after_the_ttl() {
    let s = ARM.setting("lifetimes").await;
    let (proxy, client) = s.server.client_through_a_proxy().await;
    let mut stream = Registration::open_with_ttl(&client, SHORT).await;
    stream.set("/broken", value()).await;
    let ending = s.zk.ending("/broken").await;
    let last_sent = Instant::now();
    stream.keep_alive().await;
    proxy.cut();
    stream.end().await.unwrap_err();
    let stood = ending.at().await - last_sent;
    assert!(stood >= SHORT, "it stood for {stood:?}");
}

#[tokio::test]
async fn a_cancelled_stream_leaves_its_registrations_for_the_ttl_as_a_broken_one_does() {
    let s = ARM.setting("lifetimes").await;
    let mut stream = Registration::open_with_ttl(&s.client, SHORT).await;
    let last_sent = Instant::now();
    stream.set("/cancelled", value()).await;
    let ending = s.zk.ending("/cancelled").await;
    drop(stream);
    let stood = ending.at().await - last_sent;
    assert!(stood >= SHORT, "it stood for {stood:?}");
}

#[tokio::test]
async fn everything_that_is_said_counts_for_the_ttl() {
    let s = ARM.setting("lifetimes").await;
    let mut stream = Registration::open_with_ttl(&s.client, SHORT).await;
    let first = stream.set("/said", value()).await;
    let begun = Instant::now();
    let mut turns = tokio::time::interval(SHORT / 6);
    while begun.elapsed() < SHORT * 2 {
        turns.tick().await;
        stream.keep_alive().await;
    }
    while begun.elapsed() < SHORT * 4 {
        turns.tick().await;
        stream.send(unset("/never")).await;
        assert_eq!(stream.unregistered().await, "/never");
    }
    assert_eq!(s.zk.get("/said").await.unwrap().stat.czxid, first.generation);
}

#[tokio::test]
async fn a_silent_stream_is_lost_expired_and_ends_session_expired() {
    let s = ARM.setting("lifetimes").await;
    let mut stream = Registration::open_with_ttl(&s.client, SHORT).await;
    let one = stream.set("/silent/one", value()).await.generation;
    let last_sent = Instant::now();
    let two = stream.set("/silent/two", value()).await.generation;
    let endings = [s.zk.ending("/silent/one").await, s.zk.ending("/silent/two").await];
    let mut lost = Vec::new();
    for _ in 0..2 {
        let told = stream.lost().await;
        assert!(last_sent.elapsed() >= SHORT, "told after {:?}", last_sent.elapsed());
        assert_eq!(told.reason(), LostReason::Expired);
        lost.push((told.path, told.generation));
    }
    lost.sort();
    assert_eq!(lost, [("/silent/one".to_owned(), one), ("/silent/two".to_owned(), two)]);
    refused(stream.next().await, Code::Aborted, "SESSION_EXPIRED");
    for ending in endings {
        let stood = ending.at().await - last_sent;
        assert!(stood >= SHORT, "it stood for {stood:?}");
    }
}

#[tokio::test]
async fn close_and_unset_work_at_once_with_a_ttl() {
    let s = ARM.setting("lifetimes").await;
    let mut stream = Registration::open_with_ttl(&s.client, LONG).await;
    for path in ["/a", "/b", "/c"] {
        stream.set(path, value()).await;
    }
    stream.send(unset("/a")).await;
    assert_eq!(stream.unregistered().await, "/a");
    assert!(!s.zk.exists("/a").await, "unregistered is said when it is true");
    stream.send(Request::Close(v1::CloseSession {})).await;
    let mut gone = [stream.unregistered().await, stream.unregistered().await];
    gone.sort();
    assert_eq!(gone, ["/b", "/c"]);
    assert_eq!(stream.next().await.unwrap(), None);
    assert!(!s.zk.exists("/b").await && !s.zk.exists("/c").await);
}

#[tokio::test]
async fn a_replica_that_was_paused_reads_what_has_arrived_before_it_lets_a_ttl_expire() {
    let mut s = ARM.setting("lifetimes").await;
    let mut stream = Registration::open_with_ttl(&s.client, SHORT).await;
    let first = stream.set("/paused", value()).await;
    s.server.pause();
    // A ttl can only expire in real time. The client is alive and keeps sending.
    for turn in 1..=6 {
        sleep_until(Instant::now() + SHORT / 3).await;
        stream.send(set(&format!("/said/{turn}"), value())).await;
    }
    s.server.resume();
    for _ in 0..6 {
        stream.registered().await;
    }
    stream.keep_alive().await;
    assert_eq!(s.zk.get("/paused").await.unwrap().stat.czxid, first.generation);
}

#[tokio::test]
async fn resume_on_the_same_replica_is_adopted_without_a_write() {
    let s = ARM.setting("lifetimes").await;
    let (proxy, client) = s.server.client_through_a_proxy().await;
    let mut old = Registration::open_with_ttl(&client, MEDIUM).await;
    let first = old.set("/same", value()).await;
    old.set("/witness", value()).await;
    let before = s.zk.get("/same").await.unwrap();
    proxy.cut();
    let mut new = Registration::open_with_ttl(&s.client, LONG).await;
    let again = new.resume("/same", value(), first.generation).await;
    assert!(again.adopted && !again.restored, "{again:?}");
    assert_eq!(again.generation, first.generation);
    assert_eq!(s.zk.get("/same").await.unwrap(), before, "not written");
    // The end of the older session does not affect the resumed registration.
    s.zk.wait_gone("/witness").await;
    new.set("/later", value()).await;
    assert_eq!(s.zk.get("/same").await.unwrap(), before, "not written");
    new.send(unset("/same")).await;
    assert_eq!(new.unregistered().await, "/same");
    assert!(!s.zk.exists("/same").await);
}

#[tokio::test]
async fn a_resume_takes_the_registration_from_a_stream_that_still_stands() {
    let s = ARM.setting("lifetimes").await;
    let other = s.another_server().await;
    for (path, client) in [("/here", s.client.clone()), ("/there", other.client().await)] {
        let mut old = Registration::open_with_ttl(&s.client, LONG).await;
        let first = old.set(path, value()).await;
        let mut new = Registration::open_with_ttl(&client, LONG).await;
        let again = new.resume(path, value(), first.generation).await;
        assert!(again.adopted, "{again:?}");
        let lost = old.lost().await;
        assert_eq!((lost.path.as_str(), lost.generation), (path, first.generation));
        assert_eq!(lost.reason(), LostReason::TakenOver);
        // The goodbye of the older stream does not affect a registration that it no longer holds.
        old.send(Request::Close(v1::CloseSession {})).await;
        old.end().await.unwrap();
        assert_eq!(s.zk.get(path).await.unwrap().stat.czxid, again.generation);
    }
}

#[tokio::test]
async fn resume_on_another_replica_is_atomic_and_unseen_by_watchers() {
    let s = ARM.setting("lifetimes").await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    let (proxy, client) = s.server.client_through_a_proxy().await;
    let mut old = Registration::open_with_ttl(&client, MEDIUM).await;
    let first = old.set("/services/one", value()).await;
    old.set("/witness", value()).await;
    let before = s.zk.get("/services/one").await.unwrap();
    let mut watching =
        [Watching::start(&s.client, "/services").await, Watching::start(&other_client, "/services").await];
    let come_back = async {
        proxy.cut();
        let mut new = Registration::open_with_ttl(&other_client, LONG).await;
        let again = new.resume("/services/one", value(), first.generation).await;
        assert!(again.adopted && !again.restored, "{again:?}");
        assert!(again.generation > first.generation);
        // Meanwhile the older session expires at the first replica.
        s.zk.wait_gone("/witness").await;
        let mut stream = Registration::open(&s.client).await;
        stream.set("/later", value()).await;
        (new, again)
    };
    let (new, again) = tokio::select! {
        back = come_back => back,
        never = never_a_moment_without(&s.zk, "/services", "one") => match never {},
    };
    let after = s.zk.get("/services/one").await.unwrap();
    assert_eq!((after.data, after.stat.czxid), (before.data, again.generation));
    assert_ne!(after.stat.ephemeral_owner, before.stat.ephemeral_owner);
    s.zk.create_ephemeral("/services/two", b"x").await;
    for watching in &mut watching {
        watching.until("what came later", |known| known.names() == ["one", "two"]).await;
        assert_eq!(watching.changes, [(ChangeKind::Added, "two".to_owned())]);
        assert_eq!(watching.snapshots, 1);
    }
    new.send(Request::Close(v1::CloseSession {})).await;
    s.zk.wait_gone("/services/one").await;
}

#[tokio::test]
async fn a_resume_with_other_data_changes_the_data_and_created_keeps_its_first_value() {
    let s = ARM.setting("lifetimes").await;
    let other = s.another_server().await;
    let open = |pid| Request::Open(OpenSession { pid, ttl: Some(span(LONG)), ..Default::default() });
    let mut stream = Registration::open_with(&s.client, [open(7)]).await.unwrap();
    let mut answer = stream.set("/services/one", data(json!({"turn": 0}))).await;
    let created = s.zk.get("/services/one").await.unwrap().json()["created"].as_str().unwrap().to_owned();
    later_second(answer.stat).await;
    let clients = [("same", s.client.clone()), ("another", other.client().await), ("another", s.client.clone())];
    let come_back = async {
        for (turn, (replica, client)) in clients.iter().enumerate() {
            let turn = turn + 1;
            let mut next = Registration::open_with(client, [open(8)]).await.unwrap();
            let again = next.resume("/services/one", data(json!({"turn": turn})), answer.generation).await;
            assert!(again.adopted, "{again:?}");
            assert_eq!(again.generation == answer.generation, *replica == "same", "{again:?}");
            let node = s.zk.get("/services/one").await.unwrap();
            let expected = format!(r#"{{"pid":7,"created":"{created}","turn":{turn}}}"#);
            assert_eq!((node.text(), node.stat.czxid), (expected.as_str(), again.generation));
            (stream, answer) = (next, again);
        }
    };
    tokio::select! {
        () = come_back => {}
        never = never_a_moment_without(&s.zk, "/services", "one") => match never {},
    }
}

#[tokio::test]
async fn a_resume_of_what_was_taken_over_is_lost() {
    let s = ARM.setting("lifetimes").await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    let (proxy, client) = s.server.client_through_a_proxy().await;
    let mut old = Registration::open_with_ttl(&client, LONG).await;
    let first = old.set("/taken", value()).await;
    proxy.cut();
    let mut new = Registration::open(&other_client).await;
    let second = new.set("/taken", data(json!({"a": 2}))).await;
    let before = s.zk.get("/taken").await.unwrap();
    for client in [&s.client, &other_client] {
        let mut back = Registration::open_with_ttl(client, LONG).await;
        back.send(resume("/taken", value(), first.generation)).await;
        let lost = back.lost().await;
        assert_eq!((lost.path.as_str(), lost.generation), ("/taken", first.generation));
        assert_eq!(lost.reason(), LostReason::TakenOver);
        // It holds nothing now, so its goodbye removes nothing.
        back.send(Request::Close(v1::CloseSession {})).await;
        back.end().await.unwrap();
    }
    new.keep_alive().await;
    assert_eq!(s.zk.get("/taken").await.unwrap(), before);
    assert_eq!(before.stat.czxid, second.generation);
}

#[tokio::test]
async fn a_resume_of_what_another_has_taken_over_with_the_same_data_is_lost_too() {
    let s = ARM.setting("lifetimes").await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    let open = |pid| Request::Open(OpenSession { pid, ttl: Some(span(LONG)), ..Default::default() });
    let (proxy, client) = s.server.client_through_a_proxy().await;
    let mut old = Registration::open_with(&client, [open(1)]).await.unwrap();
    let first = old.set("/taken", value()).await;
    proxy.cut();
    later_second(first.stat).await;
    // The same service, started again: `pid` and `created` differ from those before.
    let mut new = Registration::open_with(&other_client, [open(2)]).await.unwrap();
    let second = new.set("/taken", value()).await;
    later_second(second.stat).await;
    let before = s.zk.get("/taken").await.unwrap();
    for client in [&other_client, &s.client] {
        let mut back = Registration::open_with(client, [open(1)]).await.unwrap();
        back.send(resume("/taken", value(), first.generation)).await;
        let lost = back.lost().await;
        assert_eq!((lost.path.as_str(), lost.reason()), ("/taken", LostReason::TakenOver));
    }
    new.keep_alive().await;
    assert_eq!(s.zk.get("/taken").await.unwrap(), before);
}

#[tokio::test]
async fn a_resume_finds_the_later_generation_whose_answer_was_lost() {
    let s = ARM.setting("lifetimes").await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    // The client recognizes its registration by its own `created`.
    let value = || data(json!({"a": 1, "created": "2026-01-31 23:59:59"}));
    let mut old = Registration::open_with_ttl(&s.client, LONG).await;
    let first = old.set("/answer", value()).await;
    let mut unheard = Registration::open_with_ttl(&other_client, LONG).await;
    let second = unheard.resume("/answer", value(), first.generation).await;
    assert!(second.generation > first.generation);
    drop((old, unheard));
    let mut latest = second.generation;
    let mut streams = Vec::new();
    for client in [&other_client, &s.client] {
        let mut back = Registration::open_with_ttl(client, LONG).await;
        let again = back.resume("/answer", value(), first.generation).await;
        assert!(again.adopted && again.generation >= latest, "{again:?}");
        assert_eq!(s.zk.get("/answer").await.unwrap().stat.czxid, again.generation);
        latest = again.generation;
        streams.push(back);
    }
}

#[tokio::test]
async fn a_resume_of_an_absent_node_creates_it() {
    let s = ARM.setting("lifetimes").await;
    let other = s.another_server().await;
    let mut stream = Registration::open_with_ttl(&s.client, LONG).await;
    let first = stream.set("/absent", value()).await;
    stream.send(Request::Close(v1::CloseSession {})).await;
    stream.end().await.unwrap();
    let mut latest = first.generation;
    for client in [s.client.clone(), other.client().await] {
        assert!(!s.zk.exists("/absent").await);
        let mut back = Registration::open_with_ttl(&client, LONG).await;
        let again = back.resume("/absent", value(), latest).await;
        assert!(!again.adopted && !again.restored && again.generation > latest, "{again:?}");
        assert_eq!(s.zk.get("/absent").await.unwrap().stat.czxid, again.generation);
        latest = again.generation;
        back.send(unset("/absent")).await;
        back.unregistered().await;
    }
}

#[tokio::test]
async fn exclusive_is_refused_while_a_ttl_session_without_stream_lives() {
    let s = ARM.setting("lifetimes").await;
    let other = s.another_server().await;
    let (proxy, client) = s.server.client_through_a_proxy().await;
    let mut old = Registration::open_with_ttl(&client, MEDIUM).await;
    let last_sent = Instant::now();
    let first = old.set("/name", value()).await;
    proxy.cut();
    s.server.wait_for_streams(0).await;
    let exclusive = || {
        let set = v1::SetRegistration { path: "/name".into(), exclusive: true, ..Default::default() };
        Request::Set(set)
    };
    for client in [s.client.clone(), other.client().await] {
        let mut new = Registration::open(&client).await;
        new.send(exclusive()).await;
        let rejected = new.rejected().await;
        assert_eq!((Code::from(rejected.code), rejected.reason.as_str()), (Code::AlreadyExists, "NAME_TAKEN"));
    }
    assert_eq!(s.zk.get("/name").await.unwrap().stat.czxid, first.generation);
    let mut new = Registration::open(&s.client).await;
    let taken_at = eventually("the name is free", SOON, async || {
        new.send(exclusive()).await;
        match new.answer().await {
            Response::Registered(_) => Ok(Instant::now()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(taken_at - last_sent >= MEDIUM, "after {:?}", taken_at - last_sent);
}

#[tokio::test]
async fn a_set_while_zookeeper_is_away_is_pending_and_then_registered() {
    let s = ARM.behind_a_proxy("lifetimes", &[]).await;
    let mut stream = Registration::open_with_ttl(&s.client, LONG).await;
    let first = stream.set("/away/stands", value()).await;
    s.cut_off().await;
    for path in ["/away/one", "/away/two"] {
        stream.send(set(path, value())).await;
        let Ok(Some(Response::Pending(pending))) = stream.next().await else { panic!("pending comes first") };
        assert_eq!((pending.path.as_str(), pending.reason.as_str()), (path, "BACKEND_UNAVAILABLE"));
    }
    // Answers that need no ZooKeeper do not wait for it.
    stream.keep_alive().await;
    assert_eq!(s.zk.children("/away").await.unwrap(), ["stands"]);
    s.proxy.accept().await;
    let mut registered = [stream.registered().await, stream.registered().await];
    registered.sort_by(|one, two| one.path.cmp(&two.path));
    assert_eq!(registered.each_ref().map(|answer| answer.path.as_str()), ["/away/one", "/away/two"]);
    for answer in registered {
        assert!(!answer.restored && !answer.adopted, "{answer:?}");
        assert_eq!(s.zk.get(&answer.path).await.unwrap().stat.czxid, answer.generation);
    }
    assert_eq!(s.zk.get("/away/stands").await.unwrap().stat.czxid, first.generation, "not touched");
}

#[tokio::test]
async fn a_resume_while_zookeeper_is_away_is_pending_and_then_adopted() {
    let s = ARM.behind_a_proxy("lifetimes", &[]).await;
    let (link, client) = s.server.client_through_a_proxy().await;
    let mut old = Registration::open_with_ttl(&client, LONG).await;
    let first = old.set("/away", value()).await;
    let before = s.zk.get("/away").await.unwrap();
    s.cut_off().await;
    link.cut();
    let mut new = Registration::open_with_ttl(&s.client, LONG).await;
    new.send(resume("/away", value(), first.generation)).await;
    let Ok(Some(Response::Pending(_))) = new.next().await else { panic!("pending comes first") };
    s.proxy.accept().await;
    let again = new.registered().await;
    assert!(again.adopted, "{again:?}");
    assert_eq!(s.zk.get("/away").await.unwrap(), before, "not written");
}

#[tokio::test]
async fn a_pending_set_whose_client_leaves_never_appears() {
    let s = ARM.behind_a_proxy("lifetimes", &[]).await;
    s.zk.create("/away", b"").await;
    let mut witness = Registration::open(&s.client).await;
    let mut stream = Registration::open(&s.client).await;
    s.cut_off().await;
    stream.send(set("/away/left", value())).await;
    let Ok(Some(Response::Pending(_))) = stream.next().await else { panic!("pending comes first") };
    witness.send(set("/witness", value())).await;
    let Ok(Some(Response::Pending(_))) = witness.next().await else { panic!("pending comes first") };
    s.server.wait_for_streams(2).await;
    drop(stream);
    s.server.wait_for_streams(1).await;
    s.proxy.accept().await;
    witness.registered().await;
    witness.send(unset("/witness")).await;
    witness.unregistered().await;
    assert_eq!(s.zk.get("/away").await.unwrap().stat.cversion, 0, "there never was a child");
}

#[tokio::test]
async fn what_a_session_without_stream_holds_is_registered_again_after_a_lost_zookeeper_session() {
    let s = ARM.behind_a_proxy("lifetimes", &["--session-timeout", "3s"]).await;
    let (link, client) = s.server.client_through_a_proxy().await;
    let mut old = Registration::open_with_ttl(&client, LONG).await;
    let first = old.set("/again", value()).await;
    let before = s.zk.get("/again").await.unwrap();
    link.cut();
    s.server.wait_for_streams(0).await;
    s.cut_off().await;
    s.zk.wait_gone("/again").await;
    s.proxy.accept().await;
    let after = s.zk.wait_for("/again", "it is back", |_| true).await;
    assert_eq!(after.data, before.data, "with the same bytes");
    assert!(after.stat.czxid > first.generation);
}

#[tokio::test]
async fn what_a_killed_replica_held_is_resumed_elsewhere_without_a_moment_without_it() {
    let mut s = ARM.setting_with("lifetimes", &["--session-timeout", "6s"]).await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    // Only a living replica keeps a ttl: this one expires long before the ZooKeeper session ends, and is not counted
    // then.
    let mut old = Registration::open_with_ttl(&s.client, Duration::from_secs(1)).await;
    let first = old.set("/services/one", value()).await;
    old.set("/witness", value()).await;
    let ending = s.zk.ending("/witness").await;
    let come_back = async {
        let killed = Instant::now();
        s.server.process().kill();
        let mut new = Registration::open(&other_client).await;
        let again = new.resume("/services/one", value(), first.generation).await;
        assert!(again.adopted && again.generation > first.generation, "{again:?}");
        // ZooKeeper may have last heard from the replica a third of the time-out earlier.
        let stood = ending.at().await - killed;
        assert!(stood >= Duration::from_secs(3), "it stood for {stood:?}");
        (new, again)
    };
    let (_new, again) = tokio::select! {
        back = come_back => back,
        never = never_a_moment_without(&s.zk, "/services", "one") => match never {},
    };
    assert_eq!(s.zk.get("/services/one").await.unwrap().stat.czxid, again.generation);
}

/// Tests requests of every kind that are unanswered when a stream says goodbye.
#[tokio::test]
async fn nothing_of_a_stream_stands_or_appears_after_its_goodbye() {
    let s = ARM.setting("lifetimes").await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    s.zk.create("/bye", b"").await;
    let path = |index: usize| format!("/bye/{index}");
    for round in 0..40_usize {
        let client = if round % 2 == 0 { &s.client } else { &other_client };
        let mut stream = Registration::open_with_ttl(client, LONG).await;
        for index in 0..30 {
            stream.send(set(&path(index), value())).await;
            if round % 4 == 1 {
                stream.send(set(&path(index), data(json!({"a": 2})))).await;
            }
        }
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        stream.send(Request::Close(v1::CloseSession {})).await;
        let mut told = 0;
        while let Some(answer) = stream.next().await.unwrap() {
            told += usize::from(matches!(answer, Response::Unregistered(_)));
        }
        assert_eq!(told, 30);
        assert_eq!(s.zk.children("/bye").await.unwrap(), Vec::<String>::new(), "in round {round}");
    }
    let mut stream = Registration::open(&s.client).await;
    for index in 0..100 {
        stream.send(set(&path(index), value())).await;
        stream.send(unset(&path(index))).await;
        while !matches!(stream.answer().await, Response::Unregistered(_)) {}
        assert!(!s.zk.exists(&path(index)).await, "{index}");
    }
    stream.keep_alive().await;
    assert_eq!(s.zk.children("/bye").await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_goodbye_waits_for_a_set_whose_answer_is_lost_and_then_nothing_stands() {
    let s = ARM.behind_a_proxy("lifetimes", &[]).await;
    s.zk.create("/bye", b"").await;
    for goodbye in [unset("/bye/x"), Request::Close(v1::CloseSession {})] {
        let mut stream = Registration::open_with_ttl(&s.client, LONG).await;
        s.proxy.stall_answers_after(b"/bye/x");
        stream.send(set("/bye/x", value())).await;
        s.proxy.stalled().await;
        let made = s.zk.wait_for("/bye/x", "made, though nobody was told", |_| true).await;
        stream.send(goodbye).await;
        let Ok(Some(Response::Pending(_))) = stream.next().await else { panic!("pending comes first") };
        assert_eq!(s.zk.get("/bye/x").await.unwrap().stat.czxid, made.stat.czxid, "no goodbye was answered");
        s.proxy.set_traffic(Traffic::Pass);
        while !matches!(stream.next().await.unwrap(), Some(Response::Unregistered(_))) {}
        assert!(!s.zk.exists("/bye/x").await);
    }
}
