//! Rules for all streams, and the services beside the calls: headers, cancellation, many streams, health, reflection.

use std::time::Duration;

use rollcall_proto::v1;
use rollcall_proto::v1::register_response::Response;
use rollcall_proto::v1::{AcquireLockRequest, WatchRequest};
use rollcall_tests::client::{Registration, get, set, text};
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
    // A lock that is not granted and a watch of an absent path send headers as well.
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
        let count = s.zk.children("/crowd").await.map_or(0, |names| names.len());
        check(count == COUNT, || format!("{count}"))
    })
    .await;
    // Unary calls on the same connection do not wait.
    assert!(get(&s.client, "/crowd/0").await.exists);
    streams.truncate(1);
    eventually("all but one are gone", 3 * SOON, async || {
        let count = s.zk.children("/crowd").await.map_or(0, |names| names.len());
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
        let leases = s.zk.children("/deadline").await.unwrap();
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
