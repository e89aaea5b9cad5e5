//! Nodes that an operator has prepared where Rollcall may create nothing: existing nodes are used, and problems are
//! named.

use std::slice;

use rollcall_proto::v1::AcquireLockRequest;
use rollcall_tests::client::{Registration, get, put, text};
use rollcall_tests::follow::{Locking, lock};
use rollcall_tests::server::{SERVICE, Server};
use rollcall_tests::wait::{SOON, check, eventually, soon};
use rollcall_tests::zookeeper_witness::Witness;
use tonic_health::pb::health_check_response::ServingStatus;
use zookeeper_client::{Acl, AuthId, Permission};

use super::ARM;

/// The permission that the operator needs to change the ACL of the node later.
const ADMIN: Permission = Permission::ADMIN;

async fn allow(zk: &Witness, path: &str, permission: Permission) {
    let acl = Acl::new(permission | ADMIN, AuthId::anyone());
    soon("ZooKeeper answers", zk.client().set_acl(path, slice::from_ref(&acl), None)).await.unwrap();
}

#[tokio::test]
async fn what_exists_is_used_though_its_parent_may_not_be_written() {
    let sandbox = ARM.sandbox("prepared").await;
    let zk = sandbox.zk().await;
    for path in ["/.rollcall/fences", "/.rollcall/leases", "/services/ssh", "/config/app", "/locks/queued-__lock__"] {
        zk.create(path, b"").await;
    }
    zk.create("/locks/queued", b"1").await;
    zk.create("/unread", b"").await;
    for path in ["/.rollcall", "/services", "/config", "/locks", "/"] {
        allow(&zk, path, Permission::READ).await;
    }
    allow(&zk, "/.rollcall/fences", Permission::READ | Permission::CREATE).await;
    allow(&zk, "/.rollcall/leases", Permission::READ | Permission::CREATE | Permission::DELETE).await;
    allow(&zk, "/unread", Permission::CREATE | Permission::DELETE).await;
    let server = Server::start(&sandbox.hosts).await;
    let client = server.client().await;
    let mut stream = Registration::open(&client).await;
    stream.set("/services/ssh/host:22", text("x")).await;
    put(&client, "/config/app/deep/er", text("x")).await.unwrap();
    // The parents are missing, below one that may not be read.
    stream.set("/unread/registered/deep", text("x")).await;
    put(&client, "/unread/put/deep", text("x")).await.unwrap();
    let (_holder, _) = Locking::take(&client, "/unread/locked/deep", "holder").await;
    let (holder, _) = Locking::take(&client, "/locks/queued", "holder").await;
    drop(holder);
    let ttl = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let mut lasting =
        Locking::start(&client, AcquireLockRequest { ttl, ..lock("/locks/queued", "lasting") }).await.unwrap();
    lasting.held().await.unwrap();
    assert!(get(&client, "/services/ssh").await.children.contains_key("host:22"));
}

#[tokio::test]
async fn what_may_not_be_used_is_named_with_the_permission_that_it_needs() {
    let all = Permission::READ | Permission::CREATE | Permission::DELETE;
    for (node, allowed, needed) in [
        ("/.rollcall/fences", Permission::CREATE, "READ"),
        ("/.rollcall/fences", Permission::READ, "CREATE"),
        ("/.rollcall/leases", Permission::CREATE | Permission::DELETE, "READ"),
        ("/.rollcall/leases", Permission::READ | Permission::DELETE, "CREATE"),
        ("/.rollcall/leases", Permission::READ | Permission::CREATE, "DELETE"),
    ] {
        let sandbox = ARM.sandbox("prepared").await;
        let zk = sandbox.zk().await;
        for path in ["/.rollcall/fences", "/.rollcall/leases"] {
            zk.create(path, b"").await;
        }
        allow(&zk, node, allowed).await;
        let chroot = &sandbox.chroot;
        let text = format!("access control list of {chroot}{node} must give rollcall the permission {needed}");
        is_told_until(&sandbox.hosts, &text, async || allow(&zk, node, all).await).await;
    }
    let sandbox = ARM.sandbox("prepared").await;
    let (zk, chroot) = (sandbox.zk().await, &sandbox.chroot);
    allow(&zk, "/", Permission::READ).await;
    let text = format!(
        "create {chroot}/.rollcall by hand, or have zookeeper's access control list of {chroot} give rollcall the permission CREATE"
    );
    is_told_until(&sandbox.hosts, &text, async || allow(&zk, "/", all).await).await;
}

/// A server logs this text and serves nobody, until the problem is fixed.
async fn is_told_until(hosts: &str, text: &str, mend: impl AsyncFnOnce()) {
    let mut server = Server::launch(hosts, &[]).await;
    eventually(text, SOON, async || {
        let log = server.process().stderr();
        check(log.contains(text), || log)
    })
    .await;
    assert_eq!(server.health(SERVICE).await.unwrap(), ServingStatus::NotServing);
    mend().await;
    server.wait_until_serving().await;
}
