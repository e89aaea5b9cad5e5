//! AcquireLock, ReleaseLock, DescribeLock: stream locks with kazoo's Semaphore recipe.

use std::time::Duration;

use rollcall_proto::v1::AcquireLockRequest;
use rollcall_tests::client::{Registration, describe, put, refused, release, set, span, text, zero};
use rollcall_tests::follow::{Locking, lock};
use rollcall_tests::wait::{SOON, check, eventually};
use rollcall_tests::zookeeper_witness::Witness;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::ARM;

fn limited(path: &str, name: &str, simultaneous: u32) -> AcquireLockRequest {
    AcquireLockRequest { simultaneous, ..lock(path, name) }
}

fn try_lock(path: &str) -> AcquireLockRequest {
    AcquireLockRequest { wait: zero(), ..lock(path, "") }
}

fn names(parties: &[rollcall_proto::v1::LockParty]) -> Vec<&str> {
    parties.iter().map(|party| party.name.as_str()).collect()
}

/// Waits until ZooKeeper shows neither holders nor waiters of the lock.
async fn wait_free(zk: &Witness, path: &str) {
    eventually("nobody holds the lock or waits for it", SOON, async || {
        let leases = zk.children(path).await.unwrap_or_default();
        let contenders = zk.children(&format!("{path}-__lock__")).await.unwrap_or_default();
        check(leases.is_empty() && contenders.is_empty(), || format!("{leases:?} {contenders:?}"))
    })
    .await;
}

#[tokio::test]
async fn a_free_lock_is_queued_for_and_then_held() {
    let s = ARM.setting("locks").await;
    let (mut stream, queued) = Locking::queue(&s.client, "/jobs/nightly", "me").await;
    assert_eq!((queued.position, queued.holders.len()), (1, 0));
    let held = stream.held().await.unwrap();
    assert_eq!(held.lock_id, queued.lock_id);
    assert!(held.ttl.is_none());

    assert_eq!(s.zk.get("/jobs/nightly").await.unwrap().text(), "1");
    let leases = s.zk.children("/jobs/nightly").await.unwrap();
    let [lease] = &leases[..] else { panic!("{leases:?}") };
    assert!(lease.len() == 32 && lease.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase()));
    let node = s.zk.get(&format!("/jobs/nightly/{lease}")).await.unwrap();
    assert!(node.is_ephemeral());
    assert_eq!((node.text(), node.stat.czxid), ("me", held.fencing_token));
    assert!(!held.lock_id.contains(lease), "the lease does not tell the id");
    drop(stream);
    wait_free(&s.zk, "/jobs/nightly").await;
    assert!(s.zk.exists("/jobs/nightly").await, "the path with its number stays");
}

#[tokio::test]
async fn first_come_first_served_across_replicas() {
    let s = ARM.setting("locks").await;
    let other = s.another_server().await;
    let clients = [s.client.clone(), other.client().await];
    let (first, mut last_token) = {
        let (stream, held) = Locking::take(&s.client, "/queue", "holder").await;
        (stream, held.fencing_token)
    };
    let mut waiters = Vec::new();
    for number in 0..6 {
        let (stream, queued) = Locking::queue(&clients[number % 2], "/queue", &format!("waiter {number}")).await;
        assert_eq!((queued.position as usize, queued.holders), (number + 1, vec!["holder".to_owned()]));
        waiters.push(stream);
    }
    let described = describe(&s.client, "/queue").await;
    assert_eq!((described.simultaneous, names(&described.holders)), (1, vec!["holder"]));
    assert_eq!(names(&described.waiters), (0..6).map(|n| format!("waiter {n}")).collect::<Vec<_>>());
    assert_eq!(described.holders[0].fencing_token, last_token);
    assert!(described.waiters.iter().all(|party| party.fencing_token == 0 && !party.foreign));

    drop(first);
    for (number, mut waiter) in waiters.into_iter().enumerate() {
        let held = waiter.held().await.unwrap();
        assert!(held.fencing_token > last_token, "the token rises with every grant");
        last_token = held.fencing_token;
        let described = describe(&s.client, "/queue").await;
        assert_eq!(names(&described.holders), [format!("waiter {number}")]);
        drop(waiter);
    }
    wait_free(&s.zk, "/queue").await;
}

#[tokio::test]
async fn a_try_takes_a_free_lock_and_leaves_a_busy_one_alone() {
    let s = ARM.setting("locks").await;
    let mut first = Locking::start(&s.client, try_lock("/try")).await.unwrap();
    first.held().await.unwrap();
    let busy = Locking::start(&s.client, AcquireLockRequest { name: "second".into(), ..try_lock("/try") });
    let status = refused(
        match busy.await {
            Ok(mut stream) => stream.held().await,
            Err(status) => Err(status),
        },
        Code::Aborted,
        "LOCK_BUSY",
    );
    let info = status.get_details_error_info().unwrap();
    assert!(info.metadata.values().any(|value| value.contains("/try")), "{info:?}");
    assert_eq!(s.zk.children("/try-__lock__").await.unwrap(), Vec::<String>::new(), "no node is left");
    assert_eq!(s.zk.children("/try").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_wait_that_is_over_says_who_holds_the_lock_and_leaves_no_node() {
    let s = ARM.setting("locks").await;
    let (_first, _) = Locking::take(&s.client, "/wait", "the holder").await;
    let request = AcquireLockRequest { wait: Some(span(Duration::from_millis(300))), ..lock("/wait", "waiter") };
    let mut waiter = Locking::start(&s.client, request).await.unwrap();
    let status = refused(waiter.held().await, Code::Aborted, "LOCK_BUSY");
    let info = status.get_details_error_info().unwrap();
    assert!(info.metadata.values().any(|value| value.contains("the holder")), "the holders are named: {info:?}");
    assert_eq!(s.zk.children("/wait-__lock__").await.unwrap(), Vec::<String>::new());
    assert_eq!(names(&describe(&s.client, "/wait").await.waiters), Vec::<&str>::new());
}

#[tokio::test]
async fn a_wait_that_is_long_enough_ends_with_the_lock() {
    let s = ARM.setting("locks").await;
    let (first, _) = Locking::take(&s.client, "/enough", "first").await;
    let request = AcquireLockRequest { wait: Some(span(SOON)), ..lock("/enough", "second") };
    let mut waiter = Locking::start(&s.client, request).await.unwrap();
    waiter.next().await.unwrap();
    drop(first);
    waiter.held().await.unwrap();
}

#[tokio::test]
async fn a_cancelled_or_disconnected_waiter_leaves_no_node() {
    let s = ARM.setting("locks").await;
    let (first, _) = Locking::take(&s.client, "/cancel", "first").await;
    let (cancelled, _) = Locking::queue(&s.client, "/cancel", "cancelled").await;
    let connection = s.server.client().await;
    let (disconnected, _) = Locking::queue(&connection, "/cancel", "disconnected").await;
    let (mut last, _) = Locking::queue(&s.client, "/cancel", "last").await;
    assert_eq!(s.zk.children("/cancel-__lock__").await.unwrap().len(), 3);
    drop(cancelled);
    drop((disconnected, connection));
    eventually("only one waits", SOON, async || {
        let waiters = describe(&s.client, "/cancel").await.waiters;
        check(names(&waiters) == ["last"], || format!("{waiters:?}"))
    })
    .await;
    assert_eq!(s.zk.children("/cancel-__lock__").await.unwrap().len(), 1);
    drop(first);
    last.held().await.unwrap();
}

#[tokio::test]
async fn acquire_calls_that_are_cancelled_at_once_leave_nothing() {
    let s = ARM.setting("locks").await;
    for number in 0..50 {
        let stream = Locking::start(&s.client, lock("/hasty", &number.to_string())).await.unwrap();
        drop(stream);
    }
    wait_free(&s.zk, "/hasty").await;
    Locking::take(&s.client, "/hasty", "patient").await;
}

#[tokio::test]
async fn as_many_hold_it_as_may() {
    let s = ARM.setting("locks").await;
    let mut holders = Vec::new();
    for number in 0..3 {
        let mut stream = Locking::start(&s.client, limited("/three", &number.to_string(), 3)).await.unwrap();
        stream.held().await.unwrap();
        holders.push(stream);
    }
    assert_eq!(s.zk.get("/three").await.unwrap().text(), "3");
    let mut fourth = Locking::start(&s.client, limited("/three", "fourth", 3)).await.unwrap();
    fourth.next().await.unwrap();
    let described = describe(&s.client, "/three").await;
    assert_eq!((described.simultaneous, names(&described.holders)), (3, vec!["0", "1", "2"]));
    assert_eq!(names(&described.waiters), ["fourth"]);
    holders.remove(1);
    fourth.held().await.unwrap();
    assert_eq!(s.zk.children("/three").await.unwrap().len(), 3);
}

#[tokio::test]
async fn another_limit_than_the_path_has_is_refused() {
    let s = ARM.setting("locks").await;
    let (_stream, _) = Locking::take(&s.client, "/limit", "one").await;
    let other = Locking::start(&s.client, limited("/limit", "two", 2)).await;
    let answer = match other {
        Ok(mut stream) => stream.held().await,
        Err(status) => Err(status),
    };
    refused(answer, Code::FailedPrecondition, "LOCK_LIMIT_DIFFERS");
    assert_eq!(s.zk.children("/limit-__lock__").await.unwrap(), Vec::<String>::new());
    // Zero means one.
    let mut same = Locking::start(&s.client, limited("/limit", "same", 1)).await.unwrap();
    same.next().await.unwrap();
}

#[tokio::test]
async fn a_path_that_is_no_lock_is_refused_and_left_alone() {
    let s = ARM.setting("locks").await;
    s.zk.create("/config", br#"{"limit":5}"#).await;
    s.zk.create("/services", b"").await;
    s.zk.create("/services/ssh", b"a durable child that is no lease").await;
    for path in ["/config", "/services"] {
        let before = s.zk.get(path).await.unwrap();
        let answer = match Locking::start(&s.client, lock(path, "me")).await {
            Ok(mut stream) => stream.held().await,
            Err(status) => Err(status),
        };
        refused(answer, Code::FailedPrecondition, "NOT_A_LOCK");
        assert_eq!(s.zk.get(path).await.unwrap().data, before.data);
    }
}

/// A durable node among the leases or the contenders of a lock would block it for good.
#[tokio::test]
async fn no_call_makes_a_node_among_a_locks_own() {
    let s = ARM.setting("locks").await;
    let (holder, _) = Locking::take(&s.client, "/jobs", "holder").await;
    s.zk.create("/gone-__lock__", b"").await;
    let among = [
        "/jobs/nightly",
        "/jobs/deep/nightly",
        "/jobs-__lock__",
        "/jobs-__lock__/x__lock__0000000000",
        "/jobs-__lock__/deep/nightly",
        "/never-__lock__/x__lock__0000000000",
        "/gone/nightly",
    ];
    for path in among {
        let answer = match Locking::start(&s.client, lock(path, "me")).await {
            Ok(mut stream) => stream.held().await,
            Err(status) => Err(status),
        };
        refused(answer, Code::FailedPrecondition, "NOT_A_LOCK");
        assert_eq!(
            s.zk.get(path).await.map(|node| node.text().to_owned()),
            (path == "/jobs-__lock__").then(String::new)
        );
    }
    let mut stream = Registration::open(&s.client).await;
    for path in among.into_iter().filter(|path| path.contains("__lock__")) {
        stream.send(set(path, text("x"))).await;
        let rejected = stream.rejected().await;
        assert_eq!(rejected.path, path);
        assert_eq!(rejected.reason, "HAS_REGISTRATIONS");
        if path.matches('/').count() > 1 {
            refused(put(&s.client, path, text("x")).await, Code::FailedPrecondition, "HAS_REGISTRATIONS");
        }
    }
    drop(holder);
    for path in ["/jobs", "/never"] {
        Locking::take(&s.client, path, "next").await;
    }
}

#[tokio::test]
async fn an_empty_lock_node_is_filled_in() {
    // kazoo leaves an empty node when it dies between its create and its set.
    let s = ARM.setting("locks").await;
    s.zk.create("/empty", b"").await;
    let mut stream = Locking::start(&s.client, limited("/empty", "me", 2)).await.unwrap();
    stream.held().await.unwrap();
    assert_eq!(s.zk.get("/empty").await.unwrap().text(), "2");
}

#[tokio::test]
async fn any_child_counts_as_a_lease() {
    let s = ARM.setting("locks").await;
    s.zk.create("/foreign", b"1").await;
    let theirs = "0123456789abcdef0123456789abcdef";
    s.zk.create_ephemeral(&format!("/foreign/{theirs}"), b"kazoo").await;
    let (mut stream, queued) = Locking::queue(&s.client, "/foreign", "ours").await;
    assert_eq!(queued.holders, ["kazoo"]);
    let described = describe(&s.client, "/foreign").await;
    assert_eq!(names(&described.holders), ["kazoo"]);
    assert!(described.holders[0].foreign);
    s.zk.delete(&format!("/foreign/{theirs}")).await;
    stream.held().await.unwrap();
}

#[tokio::test]
async fn a_lock_is_released_from_elsewhere_by_its_id() {
    let s = ARM.setting("locks").await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    for client in [&s.client, &other_client] {
        let (mut holder, held) = Locking::take(&s.client, "/elsewhere", "holder").await;
        let (mut waiter, _) = Locking::queue(&s.client, "/elsewhere", "waiter").await;
        assert!(release(client, &held.lock_id).await.unwrap());
        holder.end().await.unwrap();
        let next = waiter.held().await.unwrap();
        assert!(next.fencing_token > held.fencing_token);
        refused(release(client, &held.lock_id).await, Code::NotFound, "LOCK_LOST");
        drop(waiter);
        wait_free(&s.zk, "/elsewhere").await;
    }
}

#[tokio::test]
async fn a_waiter_is_released_by_its_id() {
    let s = ARM.setting("locks").await;
    let (_holder, _) = Locking::take(&s.client, "/waiter", "holder").await;
    let (mut waiter, queued) = Locking::queue(&s.client, "/waiter", "waiter").await;
    assert!(release(&s.client, &queued.lock_id).await.unwrap());
    waiter.end().await.unwrap();
    assert_eq!(s.zk.children("/waiter-__lock__").await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn ids_that_are_unknown_are_lost() {
    let s = ARM.setting("locks").await;
    let (_holder, held) = Locking::take(&s.client, "/known", "holder").await;
    let mut close = held.lock_id.clone();
    close.pop();
    for id in ["nonsense", close.as_str()] {
        refused(release(&s.client, id).await, Code::NotFound, "LOCK_LOST");
    }
    assert_eq!(names(&describe(&s.client, "/known").await.holders), ["holder"], "it is held all the same");
}

#[tokio::test]
async fn a_lock_that_nobody_ever_took_is_described_as_such() {
    let s = ARM.setting("locks").await;
    let described = describe(&s.client, "/never").await;
    assert_eq!((described.path.as_str(), described.simultaneous), ("/never", 0));
    assert!(described.holders.is_empty() && described.waiters.is_empty());
    assert!(!s.zk.exists("/never").await, "a question makes no node");
}

#[tokio::test]
async fn a_quiet_lock_sends_heartbeats() {
    let s = ARM.setting("locks").await;
    let request = AcquireLockRequest { heartbeat: Some(span(Duration::from_secs(1))), ..lock("/beat", "me") };
    let mut stream = s.client.clone().acquire_lock(request).await.unwrap().into_inner();
    let mut beats = 0;
    while beats < 2 {
        let message = rollcall_tests::client::next("a heartbeat", &mut stream).await.unwrap().unwrap();
        if let Some(rollcall_proto::v1::acquire_lock_response::Event::Heartbeat(_)) = message.event {
            beats += 1;
        }
    }
}

#[tokio::test]
async fn contenders_across_replicas_never_hold_it_together() {
    let s = ARM.setting("locks").await;
    let other = s.another_server().await;
    let clients = [s.client.clone(), other.client().await];
    let inside = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..8 {
        let (client, inside, zk) = (clients[number % 2].clone(), inside.clone(), s.zk.clone());
        tasks.spawn(async move {
            use std::sync::atomic::Ordering::SeqCst;
            for _ in 0..10 {
                let (stream, _) = Locking::take(&client, "/contended", &number.to_string()).await;
                assert_eq!(inside.fetch_add(1, SeqCst), 0, "two hold the lock");
                assert_eq!(zk.children("/contended").await.unwrap().len(), 1);
                inside.fetch_sub(1, SeqCst);
                drop(stream);
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    wait_free(&s.zk, "/contended").await;
}
