//! AcquireLock with a ttl: hanging up, coming back, releasing from anywhere, and the end of a lock that no client comes
//! back for. Locks that live as long as their stream are in `locks.rs`.

use std::time::Duration;

use rollcall_proto::v1::acquire_lock_response::Event;
use rollcall_proto::v1::{AcquireLockRequest, Held, LostReason};
use rollcall_tests::client::{Client, describe, refused, release, retry_delay, span, zero};
use rollcall_tests::follow::{Locking, lock};
use rollcall_tests::process::Signal;
use rollcall_tests::proxy::Traffic;
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually};
use rollcall_tests::zookeeper_witness::Witness;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::ARM;

/// A ttl that has to expire in a test.
const SHORT: Duration = Duration::from_secs(3);
/// Longer than any test waits.
const LONG: Duration = Duration::from_secs(600);

fn lasting(path: &str, name: &str, ttl: Duration) -> AcquireLockRequest {
    AcquireLockRequest { ttl: Some(span(ttl)), ..lock(path, name) }
}

fn back(path: &str, lock_id: &str) -> AcquireLockRequest {
    AcquireLockRequest { lock_id: lock_id.to_owned(), ..lock(path, "") }
}

/// Asks for a lock and waits until it is held.
async fn take(client: &Client, request: AcquireLockRequest) -> (Locking, Held) {
    let mut stream = Locking::start(client, request).await.expect("the lock may be asked for");
    let held = stream.held().await.expect("the lock is granted");
    (stream, held)
}

/// The result of a call for a lock that can't be had.
async fn answer(client: &Client, request: AcquireLockRequest) -> Result<Held, Status> {
    Locking::start(client, request).await?.held().await
}

/// The nodes of a lock with one holder: its lease, and the lease's record.
async fn nodes(zk: &Witness, path: &str) -> (String, String) {
    let leases = zk.children(path).await.unwrap();
    let [lease] = &leases[..] else { panic!("one holds {path}: {leases:?}") };
    (format!("{path}/{lease}"), format!("/.rollcall/leases/{lease}"))
}

/// Waits until nothing of a lock is left in ZooKeeper except its path.
async fn wait_free(zk: &Witness, path: &str) {
    eventually(&format!("{path} is free"), SOON, async || {
        let leases = zk.children(path).await.unwrap_or_default();
        let contenders = zk.children(&format!("{path}-__lock__")).await.unwrap_or_default();
        check(leases.is_empty() && contenders.is_empty(), || format!("{leases:?} {contenders:?}"))
    })
    .await;
}

/// Hangs up a stream with a lock without a ttl and waits until the server has handled that. By then it has handled
/// earlier hang-ups too.
async fn wait_until_heard(client: &Client, zk: &Witness) {
    drop(Locking::take(client, "/heard", "witness").await);
    wait_free(zk, "/heard").await;
}

#[tokio::test]
async fn a_lock_with_a_ttl_is_a_durable_lease_with_a_record() {
    let s = ARM.setting("lasting").await;
    let (_stream, held) = take(&s.client, lasting("/jobs/nightly", "me", LONG)).await;
    assert_eq!(held.ttl, Some(span(LONG)));
    let (lease, record) = nodes(&s.zk, "/jobs/nightly").await;
    let node = s.zk.get(&lease).await.unwrap();
    assert!(!node.is_ephemeral());
    assert_eq!((node.text(), node.stat.czxid), ("me", held.fencing_token));
    let record = s.zk.get(&record).await.unwrap();
    assert!(!record.is_ephemeral() && !record.text().contains(&held.lock_id), "{}", record.text());
    assert_eq!(record.stat.czxid, held.fencing_token, "made in one transaction");
    let holder = describe(&s.client, "/jobs/nightly").await.holders.remove(0);
    assert_eq!((holder.name.as_str(), holder.fencing_token, holder.foreign), ("me", held.fencing_token, false));
    assert_eq!(holder.ttl, Some(span(LONG)));
}

#[tokio::test]
async fn a_lock_that_was_hung_up_is_held_until_it_is_released_by_its_id_on_any_replica() {
    let s = ARM.setting("lasting").await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    for client in [&s.client, &other_client] {
        let (stream, held) = take(&s.client, lasting("/hung-up", "me", LONG)).await;
        drop(stream);
        wait_until_heard(&s.client, &s.zk).await;
        let (lease, record) = nodes(&s.zk, "/hung-up").await;
        let busy = AcquireLockRequest { wait: zero(), ..lock("/hung-up", "second") };
        refused(answer(&other_client, busy).await, Code::Aborted, "LOCK_BUSY");
        let (mut waiter, queued) = Locking::queue(&other_client, "/hung-up", "waiter").await;
        assert_eq!(queued.holders, ["me"]);
        assert!(release(client, &held.lock_id).await.unwrap());
        assert!(waiter.held().await.unwrap().fencing_token > held.fencing_token);
        assert!(!s.zk.exists(&lease).await && !s.zk.exists(&record).await);
        refused(release(client, &held.lock_id).await, Code::NotFound, "LOCK_LOST");
        drop(waiter);
        wait_free(&s.zk, "/hung-up").await;
    }
}

#[tokio::test]
async fn a_stream_whose_lock_is_released_on_another_replica_ends_ok() {
    let s = ARM.setting("lasting").await;
    let other = s.another_server().await;
    let (mut stream, held) = take(&s.client, lasting("/released", "me", LONG)).await;
    assert!(release(&other.client().await, &held.lock_id).await.unwrap());
    stream.end().await.unwrap();
    refused(answer(&s.client, back("/released", &held.lock_id)).await, Code::NotFound, "LOCK_LOST");
}

#[tokio::test]
async fn coming_back_on_any_replica_finds_the_same_lock_with_the_same_token() {
    let s = ARM.setting("lasting").await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    let (stream, held) = take(&s.client, lasting("/back", "me", LONG)).await;
    let (lease, _) = nodes(&s.zk, "/back").await;
    let before = s.zk.get(&lease).await.unwrap();
    let (mut waiter, _) = Locking::queue(&s.client, "/back", "waiter").await;
    drop(stream);
    let mut last = None;
    for client in [&s.client, &other_client, &other_client, &s.client] {
        drop(last.take());
        let mut again = Locking::start(client, back("/back", &held.lock_id)).await.unwrap();
        let Some(Event::Queued(queued)) = again.next().await.unwrap() else { panic!("queued comes first") };
        assert_eq!((&queued.lock_id, queued.position), (&held.lock_id, 1));
        assert_eq!(again.held().await.unwrap(), held);
        assert_eq!(s.zk.get(&lease).await.unwrap(), before, "the lease is not touched");
        last = Some(again);
    }
    assert!(release(&other_client, &held.lock_id).await.unwrap());
    last.unwrap().end().await.unwrap();
    waiter.held().await.unwrap();
}

#[tokio::test]
async fn the_ttl_on_the_replica_that_was_left_does_not_end_what_was_picked_up() {
    let s = ARM.setting("lasting").await;
    let other = s.another_server().await;
    let (stream, held) = take(&s.client, lasting("/left", "me", SHORT)).await;
    drop(stream);
    let (mut again, _) = take(&other.client().await, back("/left", &held.lock_id)).await;
    // Hung up later than the other, so that its ttl expires later.
    let (witness, _) = take(&s.client, lasting("/witness", "witness", SHORT)).await;
    drop(witness);
    wait_free(&s.zk, "/witness").await;
    let (lease, record) = nodes(&s.zk, "/left").await;
    assert_eq!(s.zk.get(&lease).await.unwrap().stat.czxid, held.fencing_token);
    assert!(release(&s.client, &held.lock_id).await.unwrap());
    again.end().await.unwrap();
    assert!(!s.zk.exists(&record).await);
}

#[tokio::test]
async fn a_second_stream_for_a_lock_supersedes_the_first() {
    let s = ARM.setting("lasting").await;
    let other = s.another_server().await;
    let (mut stream, held) = take(&s.client, lasting("/twice", "me", LONG)).await;
    for client in [s.client.clone(), other.client().await, s.client.clone()] {
        let (again, found) = take(&client, back("/twice", &held.lock_id)).await;
        assert_eq!(found, held);
        refused(stream.end().await, Code::Aborted, "SUPERSEDED");
        stream = again;
    }
    let (lease, _) = nodes(&s.zk, "/twice").await;
    assert_eq!(s.zk.get(&lease).await.unwrap().stat.czxid, held.fencing_token);
    assert!(release(&s.client, &held.lock_id).await.unwrap());
    stream.end().await.unwrap();
}

#[tokio::test]
async fn a_second_stream_supersedes_the_first_without_a_ttl_too() {
    let s = ARM.setting("lasting").await;
    let (mut first, queued) = Locking::queue(&s.client, "/stream", "me").await;
    let held = first.held().await.unwrap();
    let (mut waiter, waiting) = Locking::queue(&s.client, "/stream", "waiter").await;
    let (second, again) = take(&s.client, back("/stream", &queued.lock_id)).await;
    assert_eq!(again, held);
    refused(first.end().await, Code::Aborted, "SUPERSEDED");
    let mut second_waiter = Locking::start(&s.client, back("/stream", &waiting.lock_id)).await.unwrap();
    let Some(Event::Queued(place)) = second_waiter.next().await.unwrap() else { panic!("queued comes first") };
    assert_eq!(place.lock_id, waiting.lock_id);
    refused(waiter.end().await, Code::Aborted, "SUPERSEDED");
    assert_eq!(s.zk.children("/stream-__lock__").await.unwrap().len(), 1, "one place");
    // The ends of superseded streams have no effect any more; the end of the current one does.
    drop((first, waiter));
    drop(second);
    let next = second_waiter.held().await.unwrap();
    assert!(next.lock_id == waiting.lock_id && next.fencing_token > held.fencing_token);
    drop(second_waiter);
    wait_free(&s.zk, "/stream").await;
}

#[tokio::test]
async fn ids_that_are_unknown_or_over_are_lost_and_take_no_place() {
    let s = ARM.setting("lasting").await;
    let other = s.another_server().await;
    let (stream, held) = take(&s.client, lasting("/ids", "me", LONG)).await;
    assert!(release(&s.client, &held.lock_id).await.unwrap());
    drop(stream);
    let (_holder, holding) = Locking::take(&s.client, "/ids", "holder").await;
    let mut close = holding.lock_id.clone();
    let first = if close.starts_with('A') { "B" } else { "A" };
    close.replace_range(0..1, first);
    for client in [s.client.clone(), other.client().await] {
        for id in [held.lock_id.as_str(), close.as_str(), "nonsense"] {
            refused(answer(&client, back("/ids", id)).await, Code::NotFound, "LOCK_LOST");
            refused(release(&client, id).await, Code::NotFound, "LOCK_LOST");
        }
    }
    assert_eq!(s.zk.children("/ids-__lock__").await.unwrap(), Vec::<String>::new(), "no place is taken");
    assert_eq!(describe(&s.client, "/ids").await.holders.len(), 1);
}

#[tokio::test]
async fn a_waiter_that_hangs_up_before_held_leaves_nothing_ttl_or_not() {
    let s = ARM.setting("lasting").await;
    let other = s.another_server().await;
    let (holder, held) = take(&s.client, lasting("/hasty", "holder", LONG)).await;
    let mut waiter = Locking::start(&other.client().await, lasting("/hasty", "waiter", LONG)).await.unwrap();
    let Some(Event::Queued(queued)) = waiter.next().await.unwrap() else { panic!("queued comes first") };
    drop(waiter);
    eventually("the waiter has left", SOON, async || {
        let contenders = s.zk.children("/hasty-__lock__").await.unwrap();
        check(contenders.is_empty(), || format!("{contenders:?}"))
    })
    .await;
    refused(answer(&s.client, back("/hasty", &queued.lock_id)).await, Code::NotFound, "LOCK_LOST");
    drop(holder);
    assert!(release(&s.client, &held.lock_id).await.unwrap());
    // A call that is cancelled before an answer leaves nothing held, whenever it is cancelled. A lock whose `held` was
    // sent, but not read by its client, remains for its ttl.
    for number in 0..30 {
        drop(Locking::start(&s.client, lasting("/hasty", &number.to_string(), SHORT)).await.unwrap());
    }
    // Earlier hang-ups have been handled by now, or the lock remains for its ttl.
    wait_until_heard(&s.client, &s.zk).await;
    eventually("no record is left", SOON, async || {
        let records = s.zk.children("/.rollcall/leases").await.unwrap_or_default();
        check(records.is_empty(), || format!("{records:?}"))
    })
    .await;
    wait_free(&s.zk, "/hasty").await;
}

#[tokio::test]
async fn a_stream_that_came_back_just_before_its_lock_is_released_ends_ok() {
    let s = ARM.behind_a_proxy("lasting", &[]).await;
    let other = Server::start(&s.sandbox.hosts).await;
    let other_client = other.client().await;
    let (stream, held) = take(&other_client, lasting("/just", "me", LONG)).await;
    drop(stream);
    let (_, record) = nodes(&s.zk, "/just").await;
    // The answer to the read of the record that sets a watch on it; it arrives after the release.
    s.proxy.stall_answers_after(&[record.as_bytes(), &[1]].concat());
    let (mut again, _) = take(&s.client, back("/just", &held.lock_id)).await;
    s.proxy.stalled().await;
    assert!(release(&other_client, &held.lock_id).await.unwrap());
    s.proxy.set_traffic(Traffic::Pass);
    again.end().await.unwrap();
}

#[tokio::test]
async fn a_lock_that_nobody_comes_back_for_ends_after_its_ttl_and_the_next_is_served() {
    let s = ARM.setting("lasting").await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    let (stream, held) = take(&s.client, lasting("/expires", "me", SHORT)).await;
    let (mut waiter, _) = Locking::queue(&other_client, "/expires", "next").await;
    let (lease, record) = nodes(&s.zk, "/expires").await;
    let ending = s.zk.ending(&lease).await;
    let hung_up = Instant::now();
    drop(stream);
    let stood = ending.at().await - hung_up;
    assert!(stood >= SHORT, "it stood for {stood:?}");
    assert!(waiter.held().await.unwrap().fencing_token > held.fencing_token);
    assert!(!s.zk.exists(&record).await);
    for client in [&s.client, &other_client] {
        refused(answer(client, back("/expires", &held.lock_id)).await, Code::NotFound, "LOCK_LOST");
        refused(release(client, &held.lock_id).await, Code::NotFound, "LOCK_LOST");
    }
}

#[tokio::test]
async fn a_broken_connection_leaves_the_lock_for_its_ttl() {
    let s = ARM.setting("lasting").await;
    let (proxy, client) = s.server.client_through_a_proxy().await;
    let (mut stream, held) = take(&client, lasting("/broken", "me", SHORT)).await;
    let (lease, _) = nodes(&s.zk, "/broken").await;
    let ending = s.zk.ending(&lease).await;
    let broken = Instant::now();
    proxy.cut();
    stream.end().await.unwrap_err();
    let (again, found) = take(&s.client, back("/broken", &held.lock_id)).await;
    assert_eq!(found, held);
    let hung_up = Instant::now();
    drop(again);
    let ended = ending.at().await;
    assert!(ended - broken >= SHORT && ended - hung_up >= SHORT, "the ttl counts from the last stream's end");
}

#[tokio::test]
async fn a_stream_that_stands_keeps_its_lock_beyond_the_ttl() {
    const SECOND: Duration = Duration::from_secs(1);
    let s = ARM.setting("lasting").await;
    let (mut stream, held) = take(&s.client, lasting("/stands", "me", SECOND)).await;
    for _ in 0..3 {
        let (witness, _) = take(&s.client, lasting("/witness", "witness", SECOND)).await;
        drop(witness);
        wait_free(&s.zk, "/witness").await;
    }
    let (lease, _) = nodes(&s.zk, "/stands").await;
    assert_eq!(s.zk.get(&lease).await.unwrap().stat.czxid, held.fencing_token);
    assert!(release(&s.client, &held.lock_id).await.unwrap());
    stream.end().await.unwrap();
}

#[tokio::test]
async fn coming_back_renews_the_lock() {
    let s = ARM.setting("lasting").await;
    let other = s.another_server().await;
    let clients = [s.client.clone(), other.client().await];
    let (stream, held) = take(&s.client, lasting("/renewed", "me", SHORT)).await;
    drop(stream);
    let mut turns = tokio::time::interval(SHORT / 30);
    for _ in 0..2 {
        let (witness, _) = take(&s.client, lasting("/witness", "witness", SHORT)).await;
        let (witness_lease, _) = nodes(&s.zk, "/witness").await;
        drop(witness);
        // Comes back to both replicas in turn, and twice to one, until an abandoned lock has expired.
        while s.zk.exists(&witness_lease).await {
            for client in [&clients[0], &clients[1], &clients[1]] {
                let (again, found) = take(client, back("/renewed", &held.lock_id)).await;
                assert_eq!(found, held);
                drop(again);
                turns.tick().await;
            }
        }
    }
    let (lease, record) = nodes(&s.zk, "/renewed").await;
    assert_eq!(s.zk.get(&lease).await.unwrap().stat.czxid, held.fencing_token);
    assert!(release(&s.client, &held.lock_id).await.unwrap());
    assert!(!s.zk.exists(&record).await);
}

#[tokio::test]
async fn a_lease_that_somebody_deletes_is_lost_removed() {
    let s = ARM.setting("lasting").await;
    let (mut stream, held) = take(&s.client, lasting("/removed", "me", LONG)).await;
    let (lease, record) = nodes(&s.zk, "/removed").await;
    s.zk.delete(&lease).await;
    let lost = match stream.next().await.unwrap() {
        Some(Event::Lost(lost)) => lost,
        other => panic!("lost comes before the end, not {other:?}"),
    };
    assert_eq!(lost.reason(), LostReason::Removed);
    refused(stream.next().await, Code::Aborted, "LOCK_LOST");
    s.zk.wait_gone(&record).await;
    refused(answer(&s.client, back("/removed", &held.lock_id)).await, Code::NotFound, "LOCK_LOST");
}

#[tokio::test]
async fn a_killed_replicas_lock_stands_for_its_ttl_and_is_then_freed_by_another() {
    let mut s = ARM.setting_with("lasting", &["--session-timeout", "3s"]).await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    let (_stream, held) = take(&s.client, lasting("/killed", "me", SHORT)).await;
    let (mut waiter, _) = Locking::queue(&other_client, "/killed", "waiter").await;
    let (lease, record) = nodes(&s.zk, "/killed").await;
    let keeper = s.zk.get(&record).await.unwrap().json()["owner"].as_str().unwrap().to_owned();
    let fence = s.zk.ending(&format!("/.rollcall/fences/{keeper}")).await;
    let lease = s.zk.ending(&lease).await;
    let killed = Instant::now();
    s.server.process().kill();
    let (fence, lease) = (fence.at().await, lease.at().await);
    assert!(fence < lease, "while the keeper's fence stands, only the keeper ends it");
    assert!(lease - killed >= SHORT, "it stood for {:?}", lease - killed);
    assert!(waiter.held().await.unwrap().fencing_token > held.fencing_token);
    assert!(!s.zk.exists(&record).await);
    refused(answer(&other_client, back("/killed", &held.lock_id)).await, Code::NotFound, "LOCK_LOST");
}

#[tokio::test]
async fn a_lock_whose_keeper_died_alone_is_freed_by_a_later_replica_that_counts_its_whole_ttl() {
    let mut s = ARM.setting_with("lasting", &["--session-timeout", "3s"]).await;
    let (_stream, _) = take(&s.client, lasting("/alone", "me", SHORT)).await;
    let (lease, record) = nodes(&s.zk, "/alone").await;
    s.server.process().kill();
    eventually("all fences are gone", SOON, async || {
        let fences = s.zk.children("/.rollcall/fences").await.unwrap();
        check(fences.is_empty(), || format!("{fences:?}"))
    })
    .await;
    let ending = s.zk.ending(&lease).await;
    let started = Instant::now();
    let later = s.another_server().await;
    let (mut waiter, _) = Locking::queue(&later.client().await, "/alone", "waiter").await;
    let stood = ending.at().await - started;
    assert!(stood >= SHORT, "it stood for {stood:?}");
    waiter.held().await.unwrap();
    assert!(!s.zk.exists(&record).await);
}

#[tokio::test]
async fn the_holder_of_a_killed_replicas_lock_comes_back_on_another() {
    let mut s = ARM.setting_with("lasting", &["--session-timeout", "3s"]).await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    let (_early, early) = take(&s.client, lasting("/early", "me", SHORT)).await;
    let (late_stream, late) = take(&s.client, lasting("/late", "me", LONG)).await;
    let (witness, _) = take(&s.client, lasting("/witness", "witness", SHORT)).await;
    drop((late_stream, witness));
    s.server.process().kill();
    // Before and after the end of the dead replica's ZooKeeper session.
    let (mut early_stream, found) = take(&other_client, back("/early", &early.lock_id)).await;
    assert_eq!(found, early);
    wait_free(&s.zk, "/witness").await;
    let (mut late_stream, found) = take(&other_client, back("/late", &late.lock_id)).await;
    assert_eq!(found, late);
    for (path, held) in [("/early", &early), ("/late", &late)] {
        let (lease, _) = nodes(&s.zk, path).await;
        assert_eq!(s.zk.get(&lease).await.unwrap().stat.czxid, held.fencing_token);
        assert!(release(&other_client, &held.lock_id).await.unwrap());
    }
    early_stream.end().await.unwrap();
    late_stream.end().await.unwrap();
}

#[tokio::test]
async fn a_lost_zookeeper_session_of_its_keeper_does_not_cost_a_lock_with_a_ttl() {
    let s = ARM.behind_a_proxy("lasting", &["--session-timeout", "3s"]).await;
    let (mut stream, held) = take(&s.client, lasting("/session", "me", LONG)).await;
    let (_hung_up, hung_up) = take(&s.client, lasting("/hung-up", "me", LONG)).await;
    let (mut lost, _) = Locking::take(&s.client, "/without", "me").await;
    let (without, _) = nodes(&s.zk, "/without").await;
    drop(_hung_up);
    s.cut_off().await;
    let Some(Event::Suspended(_)) = stream.next().await.unwrap() else { panic!("suspended comes next") };
    // A lock without a ttl ends with the session, and its holder knows before ZooKeeper can give it to another.
    let ending = s.zk.ending(&without).await;
    refused(
        loop {
            match lost.next().await {
                Ok(Some(Event::Suspended(_))) => {}
                Ok(Some(Event::Lost(lost))) => assert_eq!(lost.reason(), LostReason::SessionLost),
                ended => break ended,
            }
        },
        Code::Aborted,
        "LOCK_LOST",
    );
    let told = Instant::now();
    assert!(told < ending.at().await);
    s.proxy.accept().await;
    assert_eq!(stream.held().await.unwrap(), held);
    let (mut again, found) = take(&s.client, back("/hung-up", &hung_up.lock_id)).await;
    assert_eq!(found, hung_up);
    for (path, held) in [("/session", &held), ("/hung-up", &hung_up)] {
        let (lease, _) = nodes(&s.zk, path).await;
        assert_eq!(s.zk.get(&lease).await.unwrap().stat.czxid, held.fencing_token);
        assert!(release(&s.client, &held.lock_id).await.unwrap());
    }
    stream.end().await.unwrap();
    again.end().await.unwrap();
}

#[tokio::test]
async fn a_replica_that_stops_gives_stream_locks_back_and_leaves_those_with_a_ttl() {
    // A time-out so long that no ZooKeeper session ends here.
    let mut s = ARM.setting_with("lasting", &["--session-timeout", "10m", "--drain", "0s"]).await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    let (stream, _) = Locking::take(&s.client, "/stream", "stopping").await;
    let (mut next, queued) = Locking::queue(&other_client, "/stream", "next").await;
    assert_eq!(queued.holders, ["stopping"]);
    let (_busy, _) = Locking::take(&other_client, "/busy", "busy").await;
    let (waiting, _) = Locking::queue(&s.client, "/busy", "stopping").await;
    let (lasting_stream, held) = take(&s.client, lasting("/lasting", "me", LONG)).await;
    let (hung_up_stream, hung_up) = take(&s.client, lasting("/hung-up", "me", LONG)).await;
    drop(hung_up_stream);
    s.server.process().signal(Signal::TERM);
    for mut stream in [stream, waiting, lasting_stream] {
        let status = refused(stream.end().await, Code::Unavailable, "DRAINING");
        assert!(retry_delay(&status) <= SOON, "{status:?}");
    }
    let status = s.server.process().wait(SOON).await;
    assert!(status.success(), "{status}");
    next.held().await.unwrap();
    assert_eq!(s.zk.children("/busy-__lock__").await.unwrap(), Vec::<String>::new(), "its waiter has left");
    let (_again, found) = take(&other_client, back("/lasting", &held.lock_id)).await;
    assert_eq!(found, held);
    let (lease, record) = nodes(&s.zk, "/hung-up").await;
    assert_eq!(s.zk.get(&lease).await.unwrap().stat.czxid, hung_up.fencing_token);
    assert!(release(&other_client, &hung_up.lock_id).await.unwrap());
    assert!(!s.zk.exists(&lease).await && !s.zk.exists(&record).await);
}

#[tokio::test]
async fn coming_back_on_a_connection_that_hangs_is_answered_in_time() {
    // A connection is given up after a third of this: later than any test waits.
    let s = ARM.behind_a_proxy("lasting", &["--session-timeout", "3m"]).await;
    let other = Server::start(&s.sandbox.hosts).await;
    let other_client = other.client().await;
    let (mut stream, held) = take(&other_client, lasting("/hangs", "me", LONG)).await;
    s.proxy.set_traffic(Traffic::Stall);
    for wait in [None, Some(span(Duration::from_millis(300)))] {
        let request = AcquireLockRequest { wait, ..back("/hangs", &held.lock_id) };
        refused(answer(&s.client, request).await, Code::Unavailable, "BACKEND_UNAVAILABLE");
    }
    s.proxy.set_traffic(Traffic::Pass);
    // A call that was refused has not taken the lock from its holder.
    drop(take(&s.client, lasting("/witness", "witness", LONG)).await);
    assert!(release(&other_client, &held.lock_id).await.unwrap());
    stream.end().await.unwrap();
}

#[tokio::test]
async fn coming_back_to_the_keeper_itself_is_answered_in_time_while_its_connection_hangs() {
    // A connection is given up after a third of this: later than any test waits.
    let s = ARM.behind_a_proxy("lasting", &["--session-timeout", "3m"]).await;
    let (stream, held) = take(&s.client, lasting("/hangs", "me", LONG)).await;
    drop(stream);
    s.proxy.set_traffic(Traffic::Stall);
    for wait in [None, Some(span(Duration::from_millis(300)))] {
        let request = AcquireLockRequest { wait, ..back("/hangs", &held.lock_id) };
        refused(answer(&s.client, request).await, Code::Unavailable, "BACKEND_UNAVAILABLE");
    }
    s.proxy.set_traffic(Traffic::Pass);
    let (mut stream, found) = take(&s.client, back("/hangs", &held.lock_id)).await;
    assert_eq!(found, held);
    assert!(release(&s.client, &held.lock_id).await.unwrap());
    stream.end().await.unwrap();
}

#[tokio::test]
async fn coming_back_waits_for_zookeeper_however_short_the_wait_for_the_lock_is() {
    let s = ARM.setting("lasting").await;
    let other = s.another_server().await;
    let clients = [s.client.clone(), other.client().await];
    let (mut stream, held) = take(&s.client, lasting("/impatient", "me", LONG)).await;
    for wait in [zero(), Some(span(Duration::from_nanos(1)))] {
        for client in &clients {
            let request = AcquireLockRequest { wait, ..back("/impatient", &held.lock_id) };
            let (again, found) = take(client, request).await;
            assert_eq!(found, held);
            stream = again;
        }
    }
    assert!(release(&s.client, &held.lock_id).await.unwrap());
    stream.end().await.unwrap();
}

#[tokio::test]
async fn locks_with_a_ttl_are_taken_though_somebody_has_wiped_the_tree() {
    let s = ARM.setting("lasting").await;
    for round in 0..2 {
        let (_stream, held) = take(&s.client, lasting("/wiped", "me", LONG)).await;
        let (_, record) = nodes(&s.zk, "/wiped").await;
        assert!(s.zk.exists(&record).await, "round {round}");
        assert!(release(&s.client, &held.lock_id).await.unwrap());
        for path in ["/wiped", "/wiped-__lock__", "/.rollcall"] {
            s.zk.delete_all(path).await;
        }
    }
    // The nodes that other replicas rely on are made again as well.
    eventually("the fences are made again", SOON, async || {
        let fences = s.zk.children("/.rollcall/fences").await.unwrap_or_default();
        check(!fences.is_empty(), || "there is none".to_owned())
    })
    .await;
}
