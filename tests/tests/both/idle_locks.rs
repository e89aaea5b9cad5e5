//! The nodes of unused locks: removed after `--lock-idle`, and by Delete at once.

use std::time::Duration;

use rollcall_proto::v1::{AcquireLockRequest, DeleteRequest};
use rollcall_tests::client::{Client, delete, put, refused, release, span, text, zero};
use rollcall_tests::follow::{Locking, lock};
use rollcall_tests::kazoo::{VERSIONS, Vanishing};
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually};
use rollcall_tests::zookeeper_witness::Witness;
use tonic::Code;

use super::ARM;

/// Much shorter than in production.
const IDLE: &[&str] = &["--lock-idle", "1s"];

/// Locks have records, and are not removed while a test runs.
const RECORDED: &[&str] = &["--lock-idle", "24h"];

/// Takes a lock without a ttl and releases it.
async fn use_once(client: &Client, path: &str) {
    let (mut stream, held) = Locking::take(client, path, "me").await;
    assert!(release(client, &held.lock_id).await.unwrap());
    stream.end().await.unwrap();
}

/// The number of records of locks.
async fn records(zk: &Witness) -> usize {
    let mut count = 0;
    for shard in zk.children("/.rollcall/locks").await.unwrap_or_default() {
        count += zk.children(&format!("/.rollcall/locks/{shard}")).await.unwrap_or_default().len();
    }
    count
}

async fn stands(zk: &Witness, path: &str) -> bool {
    let (lock, queue) = (zk.exists(path).await, zk.exists(&format!("{path}-__lock__")).await);
    assert_eq!(lock, queue, "both nodes come and go together");
    lock
}

/// Waits until the nodes and the records of these locks are gone.
async fn wait_until_removed(zk: &Witness, paths: &[&str], records_left: usize) {
    eventually("idle locks are removed", SOON, async || {
        let mut left = Vec::new();
        for path in paths {
            if zk.exists(path).await || zk.exists(&format!("{path}-__lock__")).await {
                left.push(*path);
            }
        }
        let records = records(zk).await;
        check(left.is_empty() && records == records_left, || format!("{left:?}, {records} records"))
    })
    .await;
}

#[tokio::test]
async fn a_lock_that_nobody_uses_is_removed_and_one_that_is_held_or_waited_for_is_not() {
    let s = ARM.setting_with("idle", IDLE).await;
    let (mut holder, held) = Locking::take(&s.client, "/jobs/held", "holder").await;
    let lasting = AcquireLockRequest { ttl: Some(span(Duration::from_secs(600))), ..lock("/jobs/lasting", "me") };
    let mut stream = Locking::start(&s.client, lasting).await.unwrap();
    let lasts = stream.held().await.unwrap();
    drop(stream);
    for path in ["/jobs/foreign", "/jobs/foreign-__lock__"] {
        s.zk.create(path, b"1").await;
    }
    for round in 0..3 {
        // In the next round the nodes that this replica remembers are gone.
        for job in ["/jobs/one", "/jobs/two"] {
            use_once(&s.client, job).await;
            use_once(&s.client, job).await;
        }
        wait_until_removed(&s.zk, &["/jobs/one", "/jobs/two"], 2).await;
        assert!(stands(&s.zk, "/jobs/held").await && stands(&s.zk, "/jobs/lasting").await, "round {round}");
    }
    assert!(stands(&s.zk, "/jobs/foreign").await, "it was not made through Rollcall");
    assert!(release(&s.client, &held.lock_id).await.unwrap());
    holder.end().await.unwrap();
    assert!(release(&s.client, &lasts.lock_id).await.unwrap());
    wait_until_removed(&s.zk, &["/jobs/held", "/jobs/lasting"], 0).await;
}

#[tokio::test]
async fn what_is_known_of_idle_locks_outlives_the_replica_that_made_them() {
    let s = ARM.setting_with("idle", RECORDED).await;
    use_once(&s.client, "/left").await;
    assert_eq!(records(&s.zk).await, 1);
    drop(s.server);
    let never = Server::start(&s.sandbox.hosts).await;
    use_once(&never.client().await, "/unrecorded").await;
    let other = Server::start_with(&s.sandbox.hosts, IDLE).await;
    wait_until_removed(&s.zk, &["/left"], 0).await;
    assert!(stands(&s.zk, "/unrecorded").await);
    drop(other);
}

#[tokio::test]
async fn a_lock_whose_replica_ended_before_it_had_made_the_queue_is_removed_too() {
    let s = ARM.setting_with("idle", RECORDED).await;
    for path in ["/begun", "/busy"] {
        use_once(&s.client, path).await;
        s.zk.delete(&format!("{path}-__lock__")).await;
    }
    s.zk.create("/busy/child", b"").await;
    let other = Server::start_with(&s.sandbox.hosts, IDLE).await;
    wait_until_removed(&s.zk, &["/begun"], 1).await;
    assert!(s.zk.exists("/busy").await, "something lies below it");
    use_once(&other.client().await, "/begun").await;
}

#[tokio::test]
async fn delete_removes_a_lock_that_nobody_has_to_do_with() {
    let s = ARM.setting_with("idle", RECORDED).await;
    let (holder, _) = Locking::take(&s.client, "/dir/l", "holder").await;
    let (waiter, _) = Locking::queue(&s.client, "/dir/l", "waiter").await;
    let asked =
        |path: &str, recursive, expected_version| DeleteRequest { path: path.to_owned(), recursive, expected_version };
    let in_the_way = |answer| refused(answer, Code::FailedPrecondition, "HAS_REGISTRATIONS");
    in_the_way(delete(&s.client, "/dir/l").await);
    drop(holder);
    drop(waiter);
    eventually("both have left", SOON, async || {
        let parties = [s.zk.children("/dir/l").await.unwrap(), s.zk.children("/dir/l-__lock__").await.unwrap()];
        check(parties.iter().all(Vec::is_empty), || format!("{parties:?}"))
    })
    .await;
    let another_version = s.client.clone().delete(asked("/dir/l", false, Some(7))).await;
    refused(another_version, Code::Aborted, "VERSION_MISMATCH");
    in_the_way(delete(&s.client, "/dir/l-__lock__").await);
    in_the_way(s.client.clone().delete(asked("/dir", true, None)).await.map(drop));
    assert!(stands(&s.zk, "/dir/l").await);
    delete(&s.client, "/dir/l").await.unwrap();
    assert!(!stands(&s.zk, "/dir/l").await);
    assert_eq!(records(&s.zk).await, 0);
    refused(delete(&s.client, "/dir/l").await, Code::NotFound, "NO_NODE");
    use_once(&s.client, "/dir/l").await;
}

#[tokio::test]
async fn only_what_is_surely_a_lock_is_deleted_as_one() {
    let s = ARM.setting("idle").await;
    // A configuration node that happens to have a sibling with such a name.
    s.zk.create("/config", b"{}").await;
    s.zk.create("/config-__lock__", b"").await;
    refused(delete(&s.client, "/config").await, Code::FailedPrecondition, "HAS_REGISTRATIONS");
    // A number without a queue is a durable node like others.
    put(&s.client, "/limit", text("1")).await.unwrap();
    delete(&s.client, "/limit").await.unwrap();
}

/// A replica takes a lock that it was the last to hold by a number that it remembers. That number may come up again in
/// the queue of a lock that was removed and created again, while another client holds it.
#[tokio::test]
async fn what_a_replica_remembers_of_a_lock_that_was_removed_gives_nobody_a_lock_that_is_held() {
    let s = ARM.setting("idle").await;
    let other = s.another_server().await;
    let theirs = other.client().await;
    for uses in [1, 2, 3] {
        for _ in 0..uses {
            use_once(&s.client, "/again").await;
        }
        delete(&theirs, "/again").await.unwrap();
        for _ in 1..uses {
            use_once(&theirs, "/again").await;
        }
        let (mut holder, held) = Locking::take(&theirs, "/again", "holder").await;
        let mut stream =
            Locking::start(&s.client, AcquireLockRequest { wait: zero(), ..lock("/again", "me") }).await.unwrap();
        refused(stream.held().await, Code::Aborted, "LOCK_BUSY");
        assert!(release(&theirs, &held.lock_id).await.unwrap());
        holder.end().await.unwrap();
        delete(&theirs, "/again").await.unwrap();
    }
}

#[tokio::test]
async fn kazoo_and_rollcall_share_a_lock_that_is_removed_all_the_time_and_one_holds_it_at_a_time() {
    const TURNS: usize = 60;
    for version in VERSIONS {
        let s = ARM.setting_with("idle", IDLE).await;
        let mut kazoo = Vanishing::start(&s.sandbox.hosts, version, "/shared", "/guard");
        let (mut removed, mut ours) = (0, 0);
        eventually("kazoo and we have had the lock often, and it was removed often", 6 * SOON, async || {
            match delete(&s.client, "/shared").await {
                Ok(()) => removed += 1,
                Err(status) => assert!([Code::NotFound, Code::FailedPrecondition].contains(&status.code()), "{status}"),
            }
            let request = AcquireLockRequest { wait: Some(span(Duration::from_millis(200))), ..lock("/shared", "me") };
            let mut stream = Locking::start(&s.client, request).await.unwrap();
            match stream.held().await {
                Ok(held) => {
                    s.zk.try_create("/guard", b"ours").await.expect("nobody else holds the lock");
                    s.zk.delete("/guard").await;
                    assert!(release(&s.client, &held.lock_id).await.unwrap());
                    ours += 1;
                }
                Err(status) => drop(refused(Err::<(), _>(status), Code::Aborted, "LOCK_BUSY")),
            }
            let turns = kazoo.turns();
            let strange = turns.iter().find(|turn| !["held", "vanished"].contains(&turn.as_str()));
            assert_eq!(strange, None, "of {version}");
            let held = turns.iter().filter(|turn| *turn == "held").count();
            check(held >= TURNS && ours >= TURNS && removed >= TURNS, || format!("{held} {ours} {removed}"))
        })
        .await;
        let vanished = kazoo.turns().iter().filter(|turn| *turn == "vanished").count();
        println!("{version}: removed {removed} times, {vanished} of them between two requests of kazoo");
    }
}
