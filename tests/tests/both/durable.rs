//! Put and Delete: durable nodes, versions, recursion, and nodes that they do not touch.

use rollcall_proto::v1::{DeleteRequest, PutRequest};
use rollcall_tests::arm::Setting;
use rollcall_tests::client::{Client, Registration, data, delete, get, put, raw, refused, shown, text};
use rollcall_tests::follow::Locking;
use rollcall_tests::wait::soon;
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::ARM;

fn put_text(path: &str, value: &str) -> PutRequest {
    PutRequest { path: path.to_owned(), value: Some(text(value)), ..Default::default() }
}

async fn try_put(client: &Client, request: PutRequest) -> Result<i32, Status> {
    let answer = soon("an answer to Put", client.clone().put(request)).await?;
    Ok(answer.into_inner().stat.expect("PutResponse has a stat").version)
}

async fn try_delete(client: &Client, request: DeleteRequest) -> Result<(), Status> {
    soon("an answer to Delete", client.clone().delete(request)).await.map(|_| ())
}

fn recursive(path: &str) -> DeleteRequest {
    DeleteRequest { path: path.to_owned(), recursive: true, ..Default::default() }
}

#[tokio::test]
async fn put_creates_a_durable_node_with_its_parents_and_then_writes_it() {
    let s = ARM.setting("durable").await;
    let stat = put(&s.client, "/config/web/limit", data(json!({"limit": 5}))).await.unwrap();
    let node = s.zk.get("/config/web/limit").await.unwrap();
    let created = node.json()["created"].as_str().unwrap().to_owned();
    assert_eq!(node.text(), format!(r#"{{"created":"{created}","limit":5}}"#));
    assert!(!node.is_ephemeral());
    assert_eq!((stat.version, stat.czxid, stat.mzxid), (0, node.stat.czxid, node.stat.mzxid));
    assert!(s.zk.get("/config/web").await.unwrap().data.is_empty());

    let stat = put(&s.client, "/config/web/limit", text("six")).await.unwrap();
    let node = s.zk.get("/config/web/limit").await.unwrap();
    assert_eq!((stat.version, stat.mzxid, node.text()), (1, node.stat.mzxid, "six"));
    put(&s.client, "/config/web/limit", raw(b"\x00\xff")).await.unwrap();
    assert_eq!(s.zk.get("/config/web/limit").await.unwrap().data, b"\x00\xff");
}

#[tokio::test]
async fn put_without_a_value_makes_an_empty_node() {
    let s = ARM.setting("durable").await;
    try_put(&s.client, PutRequest { path: "/empty".into(), ..Default::default() }).await.unwrap();
    assert!(s.zk.get("/empty").await.unwrap().data.is_empty());
    assert!(get(&s.client, "/empty").await.value.is_none());
}

#[tokio::test]
async fn put_with_a_version_writes_that_version_only() {
    let s = ARM.setting("durable").await;
    put(&s.client, "/versioned", text("0")).await.unwrap();
    let versioned = |version, value| PutRequest { expected_version: Some(version), ..put_text("/versioned", value) };
    assert_eq!(try_put(&s.client, versioned(0, "1")).await.unwrap(), 1);
    let status = refused(try_put(&s.client, versioned(0, "2")).await, Code::Aborted, "VERSION_MISMATCH");
    let info = status.get_details_error_info().unwrap();
    assert!(info.metadata.values().any(|value| value == "1"), "the actual version is told: {info:?}");
    assert_eq!(s.zk.get("/versioned").await.unwrap().text(), "1");
    let absent = PutRequest { path: "/absent".into(), ..versioned(0, "x") };
    refused(try_put(&s.client, absent).await, Code::NotFound, "NO_NODE");
    assert!(!s.zk.exists("/absent").await);
}

#[tokio::test]
async fn of_many_that_write_one_version_one_wins() {
    let s = ARM.setting("durable").await;
    let other = s.another_server().await;
    let clients = [s.client.clone(), other.client().await];
    put(&s.client, "/race", text("start")).await.unwrap();
    for version in 0..10 {
        let calls = (0..8).map(|number| {
            let value = format!("{version}-{number}");
            let request = PutRequest { expected_version: Some(version), ..put_text("/race", &value) };
            let client = clients[number % 2].clone();
            tokio::spawn(async move { (value, try_put(&client, request).await) })
        });
        let mut winners = Vec::new();
        for call in calls.collect::<Vec<_>>() {
            let (value, answer) = call.await.unwrap();
            match answer {
                Ok(now) => {
                    assert_eq!(now, version + 1);
                    winners.push(value);
                }
                Err(status) => {
                    refused(Err::<(), _>(status), Code::Aborted, "VERSION_MISMATCH");
                }
            }
        }
        let node = s.zk.get("/race").await.unwrap();
        assert_eq!((winners, node.stat.version), (vec![node.text().to_owned()], version + 1));
    }
}

#[tokio::test]
async fn many_that_write_one_node_at_once_all_do() {
    let s = ARM.setting("durable").await;
    let writes = (0..300).map(|number| {
        let client = s.client.clone();
        tokio::spawn(async move { try_put(&client, put_text("/popular", &number.to_string())).await })
    });
    let mut versions = Vec::new();
    for write in writes.collect::<Vec<_>>() {
        versions.push(write.await.unwrap().unwrap());
    }
    versions.sort_unstable();
    assert_eq!(versions, (0..300).collect::<Vec<_>>());
}

#[tokio::test]
async fn create_only_leaves_what_exists() {
    let s = ARM.setting("durable").await;
    let request = |value| PutRequest { create_only: true, ..put_text("/once", value) };
    assert_eq!(try_put(&s.client, request("first")).await.unwrap(), 0);
    refused(try_put(&s.client, request("second")).await, Code::AlreadyExists, "NODE_EXISTS");
    assert_eq!(s.zk.get("/once").await.unwrap().text(), "first");
}

#[tokio::test]
async fn delete_with_a_version_deletes_that_version_only() {
    let s = ARM.setting("durable").await;
    put(&s.client, "/versioned", text("0")).await.unwrap();
    put(&s.client, "/versioned", text("1")).await.unwrap();
    let versioned =
        |version| DeleteRequest { path: "/versioned".into(), expected_version: Some(version), ..Default::default() };
    let status = refused(try_delete(&s.client, versioned(0)).await, Code::Aborted, "VERSION_MISMATCH");
    let info = status.get_details_error_info().unwrap();
    assert!(info.metadata.values().any(|value| value == "1"), "the actual version is told: {info:?}");
    try_delete(&s.client, versioned(1)).await.unwrap();
    assert!(!s.zk.exists("/versioned").await);
    refused(try_delete(&s.client, versioned(1)).await, Code::NotFound, "NO_NODE");
    refused(delete(&s.client, "/versioned").await, Code::NotFound, "NO_NODE");
}

#[tokio::test]
async fn delete_takes_children_only_when_it_is_recursive() {
    let s = ARM.setting("durable").await;
    for path in ["/tree/a/b", "/tree/c", "/treetop"] {
        put(&s.client, path, text("x")).await.unwrap();
    }
    refused(delete(&s.client, "/tree").await, Code::FailedPrecondition, "NOT_EMPTY");
    assert!(s.zk.exists("/tree/a/b").await);
    let versioned = DeleteRequest { expected_version: Some(7), ..recursive("/tree") };
    refused(try_delete(&s.client, versioned).await, Code::Aborted, "VERSION_MISMATCH");
    assert!(s.zk.exists("/tree/a/b").await && s.zk.exists("/tree/c").await, "nothing is deleted");
    try_delete(&s.client, recursive("/tree")).await.unwrap();
    assert_eq!(get(&s.client, "/").await.children.into_keys().collect::<Vec<_>>(), ["treetop"]);
    refused(try_delete(&s.client, recursive("/tree")).await, Code::NotFound, "NO_NODE");
}

#[tokio::test]
async fn a_large_subtree_is_deleted_whole() {
    let s = ARM.setting("durable").await;
    let pad = "p".repeat(1000);
    // Over 1 MiB of paths: too many for one request to ZooKeeper.
    for number in 0..1500 {
        s.zk.create(&format!("/wide/{pad}/{number}"), b"").await;
    }
    try_delete(&s.client, recursive("/wide")).await.unwrap();
    assert!(!s.zk.exists("/wide").await);
}

/// A registration, a held lock and a waiter, all below `/busy`.
async fn busy(s: &Setting) -> (Registration, Locking, Locking) {
    let mut stream = Registration::open(&s.client).await;
    stream.set("/busy/services/a", text("x")).await;
    put(&s.client, "/busy/durable", text("x")).await.unwrap();
    let (holder, _) = Locking::take(&s.client, "/busy/lock", "holder").await;
    let (waiter, _) = Locking::queue(&s.client, "/busy/lock", "waiter").await;
    (stream, holder, waiter)
}

#[tokio::test]
async fn what_meets_a_registration_or_a_locks_node_is_refused_and_nothing_is_deleted() {
    let s = ARM.setting("durable").await;
    let _held = busy(&s).await;
    let lease = s.zk.children("/busy/lock").await.unwrap().remove(0);
    for path in ["/busy/services/a", &format!("/busy/lock/{lease}")] {
        refused(put(&s.client, path, text("y")).await, Code::FailedPrecondition, "HAS_REGISTRATIONS");
        refused(delete(&s.client, path).await, Code::FailedPrecondition, "HAS_REGISTRATIONS");
    }
    for path in ["/busy", "/busy/services", "/busy/lock", "/busy/lock-__lock__"] {
        refused(try_delete(&s.client, recursive(path)).await, Code::FailedPrecondition, "HAS_REGISTRATIONS");
    }
    for path in ["/busy/services/a", "/busy/durable", &format!("/busy/lock/{lease}")] {
        assert!(s.zk.exists(path).await, "{path} is deleted");
    }
    assert_eq!(s.zk.children("/busy/lock-__lock__").await.unwrap().len(), 1);
    assert_eq!(s.zk.get("/busy/services/a").await.unwrap().text(), "x");
}

#[tokio::test]
async fn what_kazoo_registered_is_left_alone_too() {
    let s = ARM.setting("durable").await;
    s.zk.create_ephemeral("/theirs/registration", b"x").await;
    let path = "/theirs/registration";
    refused(put(&s.client, path, text("y")).await, Code::FailedPrecondition, "HAS_REGISTRATIONS");
    refused(delete(&s.client, path).await, Code::FailedPrecondition, "HAS_REGISTRATIONS");
    refused(try_delete(&s.client, recursive("/theirs")).await, Code::FailedPrecondition, "HAS_REGISTRATIONS");
    assert_eq!(s.zk.get(path).await.unwrap().text(), "x");
}

#[tokio::test]
async fn a_put_below_a_registration_is_refused() {
    let s = ARM.setting("durable").await;
    let mut stream = Registration::open(&s.client).await;
    stream.set("/service", text("x")).await;
    let answer = put(&s.client, "/service/child", text("y")).await;
    refused(answer, Code::FailedPrecondition, "HAS_REGISTRATIONS");
}

#[tokio::test]
async fn what_was_written_is_read_back_the_same() {
    let s = ARM.setting("durable").await;
    let value = json!({"whole": 10733, "half": 0.5, "negative": -3, "text": "größe \u{1F600} \"\\\n", "list": [[], {}, null, true]});
    put(&s.client, "/same", data(value.clone())).await.unwrap();
    let node = get(&s.client, "/same").await;
    assert_eq!(rollcall_tests::client::plain(shown(node.value.as_ref())), value);
    assert_eq!(rollcall_tests::client::plain(s.zk.get("/same").await.unwrap().json()), value);
}

#[tokio::test]
async fn a_delete_that_stops_after_its_first_transaction_says_that_a_part_may_be_gone() {
    let s = ARM.setting("durable").await;
    for number in 0..200 {
        s.zk.create(&format!("/part/deep/er/{number}"), b"").await;
    }
    s.zk.create("/part/kept/child", b"").await;
    s.zk.make_read_only("/part/kept").await;
    let status = refused(try_delete(&s.client, recursive("/part")).await, Code::Unknown, "OUTCOME_UNKNOWN");
    assert!(status.message().contains("/part") && status.message().contains("access control"), "{}", status.message());
    assert!(s.zk.exists("/part/kept/child").await);
    assert!(s.zk.children("/part/deep/er").await.unwrap().len() < 200, "the deepest go first");
    // If nothing was deleted, the answer says so.
    refused(try_delete(&s.client, recursive("/part/kept")).await, Code::PermissionDenied, "NO_AUTH");
}
