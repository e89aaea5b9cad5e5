//! Bad input and refusals. Each gets the error of the table, with a reason that never changes, and affects no other
//! client.

use std::time::Duration;

use rollcall_proto::v1;
use rollcall_proto::v1::register_request::Request;
use rollcall_proto::v1::{AcquireLockRequest, GetRequest, OpenSession, PutRequest, WatchRequest};
use rollcall_tests::client::{
    Client, Registration, data, delete, get, latest, put, refused, set, shown, span, text, violated_field,
};
use rollcall_tests::follow::{Locking, lock};
use rollcall_tests::wait::soon;
use rollcall_tests::zookeeper_witness::Witness;
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::ARM;

/// The first message of a Watch, or the status that it ends with.
async fn watch(client: &Client, request: WatchRequest) -> Result<v1::WatchResponse, Status> {
    let mut stream = soon("headers of Watch", client.clone().watch(request)).await?.into_inner();
    Ok(soon("a message of Watch", stream.message()).await?.expect("a Watch does not end with OK"))
}

async fn acquire(client: &Client, request: AcquireLockRequest) -> Result<v1::Held, Status> {
    Locking::start(client, request).await?.held().await
}

/// The answers of all calls that take a path, for `path`.
async fn everywhere(client: &Client, path: &str) -> Vec<(&'static str, Status)> {
    let mut client = client.clone();
    let named = path.to_owned();
    let describe = v1::DescribeLockRequest { path: named.clone() };
    let evict = v1::EvictRequest { path: named.clone(), duration: None };
    vec![
        ("Get", client.get(GetRequest { path: named.clone(), ..Default::default() }).await.unwrap_err()),
        ("Get", client.get(latest(path)).await.unwrap_err()),
        ("Watch", watch(&client, WatchRequest { path: named, ..Default::default() }).await.unwrap_err()),
        ("Put", put(&client, path, text("x")).await.unwrap_err()),
        ("Delete", delete(&client, path).await.unwrap_err()),
        ("AcquireLock", acquire(&client, lock(path, "me")).await.unwrap_err()),
        ("DescribeLock", client.describe_lock(describe).await.unwrap_err()),
        ("Evict", client.evict(evict).await.unwrap_err()),
    ]
}

#[tokio::test]
async fn bad_paths_are_refused_by_every_call() {
    let s = ARM.setting("errors").await;
    let long = format!("/{}", "x".repeat(10 * 1024));
    let mut stream = Registration::open(&s.client).await;
    // ZooKeeper refuses halves of surrogate pairs, and so every character beyond U+FFFF.
    let bad = [
        "",
        "relative",
        "relative/path",
        "//",
        "/a//b",
        "/a/",
        "/a/../b",
        "/a/./b",
        "/..",
        "/a\0b",
        "/a\u{1}b",
        "/a\u{e000}",
        "/a\u{fff5}",
        "/😀",
        &long,
        "/.rollcall",
        "/.rollcall/fences",
    ];
    for path in bad {
        for (call, status) in everywhere(&s.client, path).await {
            let status = refused(Err::<(), _>(status), Code::InvalidArgument, "INVALID_PATH");
            assert_eq!(violated_field(&status), "path", "{call} of {path:?}");
        }
        stream.send(set(path, text("x"))).await;
        let rejected = stream.rejected().await;
        assert_eq!((rejected.reason.as_str(), Code::from(rejected.code)), ("INVALID_PATH", Code::InvalidArgument));
        assert_eq!(rejected.path, path, "the answer names the path as it was sent");
    }
    stream.set("/good", text("x")).await;
}

#[tokio::test]
async fn unusual_paths_that_zookeeper_takes_are_taken() {
    let s = ARM.setting("errors").await;
    let mut stream = Registration::open(&s.client).await;
    for path in ["/größe/漢字", "/a b/ c ", "/...", "/.rollcall2", "/a/.hidden", "/server1:22,x=\"y\"{}"] {
        stream.set(path, text("x")).await;
        assert_eq!(s.zk.get(path).await.unwrap().text(), "x");
        assert!(get(&s.client, path).await.exists);
    }
}

#[tokio::test]
async fn values_over_the_limit_are_refused_and_values_at_the_limit_are_not() {
    let s = ARM.setting("errors").await;
    const LIMIT: usize = 256 * 1024;
    let (fits, over) = ("x".repeat(LIMIT), "x".repeat(LIMIT + 1));
    put(&s.client, "/fits", text(&fits)).await.unwrap();
    assert_eq!(s.zk.get("/fits").await.unwrap().data.len(), LIMIT);
    assert_eq!(shown(get(&s.client, "/fits").await.value.as_ref()), json!({ "text": fits }));
    let status = refused(put(&s.client, "/over", text(&over)).await, Code::InvalidArgument, "VALUE_TOO_LARGE");
    assert_eq!(violated_field(&status), "value");
    // As JSON, with its quotes, it is over the limit.
    refused(put(&s.client, "/over", data(json!({ "x": fits }))).await, Code::InvalidArgument, "VALUE_TOO_LARGE");
    assert!(!s.zk.exists("/over").await);
    let mut stream = Registration::open(&s.client).await;
    stream.set("/fits/not", text("x")).await;
    stream.send(set("/over", text(&over))).await;
    assert_eq!(stream.rejected().await.reason, "VALUE_TOO_LARGE");
}

#[tokio::test]
async fn numbers_that_json_has_not_are_refused() {
    let s = ARM.setting("errors").await;
    let number = |double| prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(double)) };
    for double in [f64::NAN, f64::INFINITY] {
        let fields = [("n".to_owned(), number(double))].into();
        let value = v1::Value { kind: Some(v1::value::Kind::Data(prost_types::Struct { fields })) };
        let status = put(&s.client, "/number", value).await.unwrap_err();
        refused(Err::<(), _>(status), Code::InvalidArgument, "PROTOCOL");
    }
    assert!(!s.zk.exists("/number").await);
}

#[tokio::test]
async fn ttls_out_of_bounds_are_refused() {
    let s = ARM.setting("errors").await;
    let out_of_bounds = [Duration::from_millis(999), Duration::from_secs(601), Duration::from_secs(1 << 40)];
    for ttl in out_of_bounds
        .map(|ttl| Some(span(ttl)))
        .into_iter()
        .chain([Some(prost_types::Duration { seconds: -5, nanos: 0 })])
    {
        let open = Request::Open(OpenSession { ttl, ..Default::default() });
        let answer = Registration::open_with(&s.client, [open]).await;
        let ended = match answer {
            Ok(mut stream) => stream.next().await.map(|_| ()),
            Err(status) => Err(status),
        };
        refused(ended, Code::InvalidArgument, "INVALID_TTL");
        let answer = acquire(&s.client, AcquireLockRequest { ttl, ..lock("/ttl", "me") }).await;
        let status = refused(answer, Code::InvalidArgument, "INVALID_TTL");
        assert_eq!(violated_field(&status), "ttl");
    }
    assert_eq!(s.zk.children("/ttl-__lock__").await.unwrap_or_default(), Vec::<String>::new());
}

#[tokio::test]
async fn other_faults_of_the_protocol_are_named() {
    let s = ARM.setting("errors").await;
    let mut client = s.client.clone();
    let page = GetRequest { page_token: "no token of ours".into(), page_size: 1, ..latest("/x") };
    refused(client.get(page).await, Code::InvalidArgument, "PROTOCOL");
    let page = GetRequest { page_size: -1, ..latest("/x") };
    refused(client.get(page).await, Code::InvalidArgument, "PROTOCOL");
    for seconds in [-1, 601] {
        let heartbeat = Some(prost_types::Duration { seconds, nanos: 0 });
        let request = WatchRequest { path: "/x".into(), heartbeat, ..Default::default() };
        let status = refused(watch(&s.client, request).await, Code::InvalidArgument, "PROTOCOL");
        assert_eq!(violated_field(&status), "heartbeat");
        let request = AcquireLockRequest { heartbeat, ..lock("/x", "me") };
        refused(acquire(&s.client, request).await, Code::InvalidArgument, "PROTOCOL");
    }
    let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    refused(client.get(GetRequest { wait: negative, ..latest("/x") }).await, Code::InvalidArgument, "PROTOCOL");
    let request = AcquireLockRequest { wait: negative, ..lock("/x", "me") };
    refused(acquire(&s.client, request).await, Code::InvalidArgument, "PROTOCOL");
    let both = PutRequest { path: "/x".into(), expected_version: Some(0), create_only: true, ..Default::default() };
    refused(client.put(both).await, Code::InvalidArgument, "PROTOCOL");
}

#[tokio::test]
async fn what_zookeepers_acl_forbids_is_denied() {
    let s = ARM.setting("errors").await;
    let owner = Witness::connect_as(&s.sandbox.hosts, "ann:secret").await;
    owner.create_private("/private", b"x").await;
    for (call, status) in everywhere(&s.client, "/private").await {
        let status = refused(Err::<(), _>(status), Code::PermissionDenied, "NO_AUTH");
        let info = status.get_details_error_info().unwrap();
        assert!(info.metadata.values().any(|value| value == "/private"), "{call} names the path: {info:?}");
    }
    let mut stream = Registration::open(&s.client).await;
    stream.send(set("/private/child", text("x"))).await;
    let rejected = stream.rejected().await;
    assert_eq!((rejected.reason.as_str(), Code::from(rejected.code)), ("NO_AUTH", Code::PermissionDenied));
    stream.set("/public", text("x")).await;
}

#[tokio::test]
async fn what_all_may_read_and_nobody_change_is_read_and_not_changed() {
    let s = ARM.setting("errors").await;
    s.zk.create_read_only("/readable", b"x").await;
    assert_eq!(shown(get(&s.client, "/readable").await.value.as_ref()), json!({"text": "x"}));
    refused(put(&s.client, "/readable", text("y")).await, Code::PermissionDenied, "NO_AUTH");
    refused(put(&s.client, "/readable/child", text("y")).await, Code::PermissionDenied, "NO_AUTH");
    assert_eq!(s.zk.get("/readable").await.unwrap().text(), "x");
}

#[tokio::test]
async fn a_private_child_does_not_hide_the_others() {
    let s = ARM.setting("errors").await;
    let owner = Witness::connect_as(&s.sandbox.hosts, "ann:secret").await;
    owner.create_private("/mixed/private", b"secret").await;
    s.zk.create("/mixed/public", b"x").await;
    let node = get(&s.client, "/mixed").await;
    assert_eq!(shown(node.children["public"].value.as_ref()), json!({"text": "x"}));
    if let Some(private) = node.children.get("private") {
        assert!(private.value.is_none(), "{private:?}");
    }
}

#[tokio::test]
async fn long_names_are_cut_in_errors() {
    let s = ARM.setting("errors").await;
    let long = format!("/{}", "größe".repeat(500));
    s.zk.create(&long, b"x").await;
    let status = refused(delete(&s.client, &format!("{long}/absent")).await, Code::NotFound, "NO_NODE");
    assert!(status.message().contains('…'), "{}", status.message());
    let create = PutRequest { path: long, create_only: true, ..Default::default() };
    refused(s.client.clone().put(create).await, Code::AlreadyExists, "NODE_EXISTS");
}

#[tokio::test]
async fn a_read_only_server_refuses_every_write() {
    let s = ARM.setting_with("errors", &["--read-only"]).await;
    s.zk.create("/there", b"x").await;
    assert!(get(&s.client, "/there").await.exists);
    refused(put(&s.client, "/there", text("y")).await, Code::PermissionDenied, "READ_ONLY");
    refused(delete(&s.client, "/there").await, Code::PermissionDenied, "READ_ONLY");
    refused(acquire(&s.client, lock("/lock", "me")).await, Code::PermissionDenied, "READ_ONLY");
    refused(rollcall_tests::client::release(&s.client, "any").await, Code::PermissionDenied, "READ_ONLY");
    let answer = Registration::open_with(&s.client, [set("/registration", text("x"))]).await;
    match answer {
        Ok(mut stream) => assert_eq!(stream.rejected().await.reason, "READ_ONLY"),
        Err(status) => {
            refused(Err::<(), _>(status), Code::PermissionDenied, "READ_ONLY");
        }
    }
    assert_eq!(s.zk.get("/there").await.unwrap().text(), "x");
    assert!(!s.zk.exists("/registration").await && !s.zk.exists("/lock").await);
}

#[tokio::test]
async fn a_bad_neighbour_costs_nobody_anything() {
    let s = ARM.setting("errors").await;
    let mut good = Registration::open(&s.client).await;
    let first = good.set("/good", text("0")).await;
    let over = "x".repeat(256 * 1024 + 1);
    for number in 0..20 {
        // On the same connection: refused calls, streams that end with an error, streams that are dropped at once.
        everywhere(&s.client, "/a//b").await;
        put(&s.client, "/over", text(&over)).await.unwrap_err();
        let bad = Registration::open_with(&s.client, [set("/bad", text("x"))]).await.unwrap();
        bad.send_message(v1::RegisterRequest { request: None }).await;
        drop(Locking::start(&s.client, lock("/x//y", "me")).await);
        let answer = good.set("/good", text(&number.to_string())).await;
        assert_eq!(answer.generation, first.generation);
    }
}
