//! What holds for all streams, and what stands beside the calls: headers, cancellation, many streams, health, reflection.

use std::time::Duration;

use rollcall_proto::v1;
use rollcall_proto::v1::register_response::Response;
use rollcall_proto::v1::{AcquireLockRequest, WatchRequest};
use rollcall_tests::client::{Registration, get, put, set, text};
use rollcall_tests::follow::{Locking, Watching, lock};
use rollcall_tests::server::SERVICE;
use rollcall_tests::wait::{SOON, check, eventually, soon};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use super::ARM;

#[tokio::test]
async fn headers_go_out_before_any_request_is_read() {
    let s = ARM.setting("streams").await;
    let (requests, receiver) = mpsc::channel(1);
    let mut call = s.client.clone();
    let mut stream = soon("headers", call.register(ReceiverStream::new(receiver))).await.unwrap().into_inner();
    requests.send(v1::RegisterRequest { request: Some(set("/first", text("x"))) }).await.unwrap();
    let first = soon("opened", stream.message()).await.unwrap().unwrap();
    assert!(matches!(first.response, Some(Response::Opened(_))), "{first:?}");
    // A lock that is not granted and a watch of what is not there have headers as well.
    let (_holder, _) = Locking::take(&s.client, "/lock", "holder").await;
    soon("headers of AcquireLock", s.client.clone().acquire_lock(lock("/lock", "waiter"))).await.unwrap();
    soon("headers of Watch", s.client.clone().watch(WatchRequest { path: "/absent".into(), ..Default::default() }))
        .await
        .unwrap();
}

#[tokio::test]
async fn thousands_of_streams_share_a_connection() {
    const COUNT: usize = 2_000;
    let s = ARM.setting("streams").await;
    let mut streams = Vec::new();
    for number in 0..COUNT {
        let mut stream = Registration::open(&s.client).await;
        stream.send(set(&format!("/crowd/{number}"), text("x"))).await;
        if number % 100 == 0 {
            stream.registered().await;
        }
        streams.push(stream);
    }
    eventually("all are registered", 3 * SOON, async || {
        let count = s.bare.children("/crowd").await.map_or(0, |names| names.len());
        check(count == COUNT, || format!("{count}"))
    })
    .await;
    // Unary calls on the same connection are not kept waiting.
    assert!(get(&s.client, "/crowd/0").await.exists);
    streams.truncate(1);
    eventually("all but one are gone", 3 * SOON, async || {
        let count = s.bare.children("/crowd").await.map_or(0, |names| names.len());
        check(count == 1, || format!("{count}"))
    })
    .await;
}

#[tokio::test]
async fn a_burst_of_cancelled_streams_costs_no_other_stream() {
    let s = ARM.setting("streams").await;
    let mut watching = Watching::start(&s.client, "/steady").await;
    let mut stream = Registration::open(&s.client).await;
    let first = stream.set("/steady/one", text("x")).await;
    let mut burst = JoinSet::new();
    for number in 0..500 {
        let mut client = s.client.clone();
        burst.spawn(async move {
            match number % 3 {
                0 => drop(client.watch(WatchRequest { path: "/steady".into(), ..Default::default() }).await),
                1 => drop(Locking::start(&client, lock("/burst", "me")).await),
                _ => drop(Registration::open_with(&client, [set("/burst-r", text("x"))]).await),
            }
        });
    }
    while let Some(ended) = burst.join_next().await {
        ended.unwrap();
    }
    let again = stream.set("/steady/one", text("y")).await;
    assert_eq!(again.generation, first.generation);
    watching.until("the change", |known| known.child("one") == serde_json::json!({"text": "y"})).await;
}

#[tokio::test]
async fn a_watch_that_nobody_reads_slows_nobody() {
    let s = ARM.setting("streams").await;
    let value = "x".repeat(100 * 1024);
    put(&s.client, "/slow", text("")).await.unwrap();
    // Its own connection: what is not read fills that one's window only.
    let lazy = s.server.client().await;
    let mut stalled = lazy.clone().watch(WatchRequest { path: "/slow".into(), ..Default::default() }).await.unwrap();
    let mut reading = Watching::start(&s.client, "/slow").await;
    for number in 0..100 {
        put(&s.client, "/slow", text(&format!("{number} {value}"))).await.unwrap();
    }
    let end = format!("99 {value}");
    reading.until("the last value", |known| known.value["text"] == end.as_str()).await;
    // The one that slept catches up, with what it missed put together.
    let mut last = None;
    let mut messages = 0;
    while last.as_deref() != Some(end.as_str()) {
        let message = soon("the state", stalled.get_mut().message()).await.unwrap().unwrap();
        messages += 1;
        use v1::watch_response::Event;
        let value = match message.event.unwrap() {
            Event::Snapshot(snapshot) => snapshot.node.unwrap().value,
            Event::Delta(delta) => delta.changes.last().unwrap().child.clone().unwrap().value,
            _ => continue,
        };
        last = match value.and_then(|value| value.kind) {
            Some(v1::value::Kind::Text(text)) => Some(text),
            _ => None,
        };
    }
    assert!(messages < 100, "missed states are put together: {messages} messages");
}

#[tokio::test]
async fn a_thousand_stalled_watches_cost_little_and_a_thousand_live_ones_nothing() {
    const WATCHES: usize = 1000;
    /// What a stalled watch may occupy while it misses 100 times 50 KB: its place, and a share of what all are told.
    const MOST: usize = 64 * 1024;
    let s = ARM.setting("streams").await;
    put(&s.client, "/crowd", text("")).await.unwrap();
    put(&s.client, "/crowd/one", text("")).await.unwrap();
    let request = || WatchRequest { path: "/crowd".into(), ..Default::default() };
    let before = s.server.resident_bytes();
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let client = s.server.stalled_client().await;
        for _ in 0..WATCHES / 2 {
            stalled.push(soon("headers of Watch", client.clone().watch(request())).await.unwrap());
        }
    }
    let mut reading = Watching::start(&s.client, "/crowd").await;
    for number in 0..100 {
        let value = format!("{number} {}", "x".repeat(50 * 1024));
        put(&s.client, "/crowd/one", text(&value)).await.unwrap();
        reading.until("the value", |known| known.child("one")["text"] == value.as_str()).await;
    }
    let each = s.server.resident_bytes().saturating_sub(before) / WATCHES;
    println!("{each} bytes for each stalled watch");
    assert!(each < MOST, "{each} bytes for each stalled watch");

    let mut live = JoinSet::new();
    let end = "29";
    for _ in 0..4 {
        let client = s.server.client().await;
        for _ in 0..WATCHES / 4 {
            let mut watching = Watching::start(&client, "/crowd").await;
            live.spawn(async move {
                watching.until("the end", |known| known.child("two")["text"] == end).await;
                assert_eq!(watching.snapshots, 1);
            });
        }
    }
    for number in 0..30 {
        put(&s.client, "/crowd/two", text(&number.to_string())).await.unwrap();
    }
    while let Some(ended) = live.join_next().await {
        ended.unwrap();
    }
    // They stand: nobody was dropped.
    assert_eq!(stalled.len(), WATCHES);
    s.server.wait_for_streams(WATCHES + 1).await;
}

#[tokio::test]
async fn a_deadline_ends_a_lock_and_a_watch() {
    let s = ARM.setting("streams").await;
    let mut request = tonic::Request::new(AcquireLockRequest { ..lock("/deadline", "me") });
    request.set_timeout(Duration::from_secs(2));
    let mut stream = s.client.clone().acquire_lock(request).await.unwrap().into_inner();
    let status = loop {
        match soon("the deadline", stream.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a deadline is no OK"),
            Err(status) => break status,
        }
    };
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    eventually("the lease is gone", SOON, async || {
        let leases = s.bare.children("/deadline").await.unwrap();
        check(leases.is_empty(), || format!("{leases:?}"))
    })
    .await;
}

#[tokio::test]
async fn health_is_told_under_both_names() {
    let s = ARM.setting("streams").await;
    for service in ["", SERVICE] {
        assert_eq!(s.server.health(service).await.unwrap(), ServingStatus::Serving, "{service:?}");
    }
    assert_eq!(s.server.health("no.such.Service").await.unwrap_err().code(), Code::NotFound);
}
