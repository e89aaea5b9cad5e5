//! The queue for a lock: what waiters are told as it moves, waiters that leave or are removed, what is found after a
//! lost answer, and the limit of a lock.

use std::time::{Duration, UNIX_EPOCH};

use rollcall_proto::v1::acquire_lock_response::Event;
use rollcall_proto::v1::{AcquireLockRequest, DescribeLockRequest, LostReason, Queued};
use rollcall_tests::client::{describe, put, refused, release, span, text};
use rollcall_tests::follow::{Locking, lock};
use rollcall_tests::proxy::Traffic;
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually, soon};
use rollcall_tests::zookeeper_witness::Witness;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Code;

use super::ARM;

fn limited(path: &str, name: &str, simultaneous: u32) -> AcquireLockRequest {
    AcquireLockRequest { simultaneous, ..lock(path, name) }
}

/// Waits until the stream reports this position.
async fn told(stream: &mut Locking, position: u32, holders: &[&str]) {
    let mut last: Option<Queued> = None;
    loop {
        match stream.next().await.unwrap() {
            Some(Event::Queued(queued)) if queued.position == position && queued.holders == holders => return,
            Some(Event::Queued(queued)) => {
                let before = last.map_or(u32::MAX, |last| last.position);
                assert!(queued.position <= before, "nobody comes in ahead of one who waits: {queued:?}");
                last = Some(queued);
            }
            other => panic!("neither place {position} nor another: {other:?}, after {last:?}"),
        }
    }
}

async fn wait_until_they_are(zk: &Witness, path: &str, contenders: usize, leases: usize) {
    eventually("the lock has so many contenders and leases", SOON, async || {
        let waiting = zk.children(&format!("{path}-__lock__")).await.unwrap_or_default();
        let holding = zk.children(path).await.unwrap_or_default();
        check((waiting.len(), holding.len()) == (contenders, leases), || format!("{waiting:?} {holding:?}"))
    })
    .await;
}

#[tokio::test]
async fn who_waits_is_told_how_the_queue_moves() {
    let s = ARM.setting("queue").await;
    let server = s.another_server().await;
    let other = server.client().await;
    let (holder, _) = Locking::take(&s.client, "/moves", "holder").await;
    let (first, _) = Locking::queue(&other, "/moves", "first").await;
    let (mut second, _) = Locking::queue(&s.client, "/moves", "second").await;
    let (mut third, queued) = Locking::queue(&other, "/moves", "third").await;
    assert_eq!((queued.position, &queued.holders[..]), (3, &["holder".to_owned()][..]));
    drop(first);
    told(&mut second, 1, &["holder"]).await;
    told(&mut third, 2, &["holder"]).await;
    drop(holder);
    second.held().await.unwrap();
    told(&mut third, 1, &["second"]).await;
    drop(second);
    third.held().await.unwrap();
}

#[tokio::test]
async fn whoever_leaves_keeps_nobody_waiting_and_changes_no_order() {
    const WAITERS: usize = 40;
    let s = ARM.setting("queue").await;
    let servers = [s.another_server().await, s.another_server().await];
    let clients = [s.client.clone(), servers[0].client().await, servers[1].client().await];
    let (holder, held) = Locking::take(&s.client, "/leave", "holder").await;
    let mut waiters = Vec::new();
    for number in 0..WAITERS {
        let (waiter, queued) = Locking::queue(&clients[number % 3], "/leave", &number.to_string()).await;
        assert_eq!(usize::try_from(queued.position).unwrap(), number + 1);
        waiters.push(Some(waiter));
    }
    // Neighbours leave together, and so do the first and the last; the lock is released meanwhile.
    let leaving = [0, 1, 7, 8, 9, 20, 22, 24, WAITERS - 1];
    drop(leaving.map(|number| waiters[number].take()));
    drop(holder);
    let mut token = held.fencing_token;
    for (number, waiter) in waiters.iter_mut().enumerate() {
        let Some(mut waiter) = waiter.take() else { continue };
        let held = waiter.held().await.unwrap();
        assert!(held.fencing_token > token, "{number} was served before one who came earlier");
        token = held.fencing_token;
        // Grants alternate with waiters that leave at that moment.
        drop(waiter);
    }
    wait_until_they_are(&s.zk, "/leave", 0, 0).await;
}

#[tokio::test]
async fn who_waits_and_is_released_through_any_replica_ends_ok_and_the_others_move_up() {
    let s = ARM.setting("queue").await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    for client in [&s.client, &other_client] {
        let (holder, _) = Locking::take(&s.client, "/released", "holder").await;
        let (mut first, first_queued) = Locking::queue(&s.client, "/released", "first").await;
        let (mut second, second_queued) = Locking::queue(&s.client, "/released", "second").await;
        let (mut third, _) = Locking::queue(&other_client, "/released", "third").await;
        assert!(release(client, &second_queued.lock_id).await.unwrap());
        second.end().await.unwrap();
        told(&mut third, 2, &["holder"]).await;
        assert!(release(client, &first_queued.lock_id).await.unwrap());
        first.end().await.unwrap();
        refused(release(client, &first_queued.lock_id).await, Code::NotFound, "LOCK_LOST");
        drop(holder);
        third.held().await.unwrap();
        drop(third);
        wait_until_they_are(&s.zk, "/released", 0, 0).await;
    }
}

#[tokio::test]
async fn who_waits_and_whose_place_a_stranger_deletes_is_told_so() {
    let s = ARM.setting("queue").await;
    let (holder, _) = Locking::take(&s.client, "/deleted", "holder").await;
    let mut waiters = Vec::new();
    for name in ["first", "second", "third"] {
        waiters.push(Locking::queue(&s.client, "/deleted", name).await.0);
    }
    let mut contenders = s.zk.children("/deleted-__lock__").await.unwrap();
    contenders.sort_by_key(|name| name[name.len() - 10..].to_owned());
    // First a contender in the middle, then the first.
    for (contender, waiter) in [(1, 1), (0, 0)] {
        s.zk.delete(&format!("/deleted-__lock__/{}", contenders[contender])).await;
        let lost = loop {
            match waiters[waiter].next().await.unwrap() {
                Some(Event::Lost(lost)) => break lost,
                Some(Event::Queued(_)) => {}
                other => panic!("lost comes before the end, not {other:?}"),
            }
        };
        assert_eq!(lost.reason(), LostReason::Removed);
        refused(waiters[waiter].next().await, Code::Aborted, "LOCK_LOST");
    }
    drop(holder);
    waiters[2].held().await.unwrap();
}

#[tokio::test]
async fn a_place_and_a_grant_whose_answers_were_lost_are_found() {
    let s = ARM.behind_a_proxy("queue", &[]).await;
    let server = Server::start(&s.sandbox.hosts).await;
    let untroubled = server.client().await;
    let (holder, held) = Locking::take(&untroubled, "/lost", "holder").await;
    s.proxy.stall_answers_after(b"the waiter's name");
    let client = s.client.clone();
    let waiter = tokio::spawn(async move { Locking::queue(&client, "/lost", "the waiter's name").await });
    s.proxy.stalled().await;
    wait_until_they_are(&s.zk, "/lost", 1, 1).await;
    let place = s.zk.children("/lost-__lock__").await.unwrap();
    s.proxy.cut();
    s.proxy.set_traffic(Traffic::Pass);
    let (mut waiter, queued) = soon("a place", waiter).await.unwrap();
    assert_eq!(queued.position, 1);
    assert_eq!(s.zk.children("/lost-__lock__").await.unwrap(), place, "found, not made again");

    // The next request with the waiter's name is the grant.
    s.proxy.stall_answers_after(b"the waiter's name");
    drop(holder);
    s.proxy.stalled().await;
    eventually("the lock is granted", SOON, async || {
        let leases = s.zk.children("/lost").await.unwrap();
        let [lease] = &leases[..] else { return Err(format!("{leases:?}")) };
        let lease = s.zk.get(&format!("/lost/{lease}")).await;
        check(lease.as_ref().is_some_and(|lease| lease.text() == "the waiter's name"), || format!("{lease:?}"))
    })
    .await;
    let lease = s.zk.children("/lost").await.unwrap();
    s.proxy.cut();
    s.proxy.set_traffic(Traffic::Pass);
    let granted = waiter.held().await.unwrap();
    assert!(granted.fencing_token > held.fencing_token);
    assert_eq!(s.zk.children("/lost").await.unwrap(), lease, "found, not made again");
    wait_until_they_are(&s.zk, "/lost", 0, 1).await;
    drop(waiter);
    wait_until_they_are(&s.zk, "/lost", 0, 0).await;
}

#[tokio::test]
async fn who_enters_with_a_change_of_hands_whose_answer_was_lost_is_found() {
    let s = ARM.behind_a_proxy("queue", &[]).await;
    let (end, ending) = watch::channel(false);
    let mut turns = JoinSet::new();
    for number in 0..6 {
        let (client, ending) = (s.client.clone(), ending.clone());
        turns.spawn(async move {
            while !*ending.borrow() {
                drop(Locking::take(&client, "/turns", &number.to_string()).await);
            }
        });
    }
    for number in 0..10 {
        let (client, name) = (s.client.clone(), format!("newcomer {number}"));
        s.proxy.stall_answers_after(name.as_bytes());
        let newcomer = tokio::spawn(async move { Locking::take(&client, "/turns", &name).await });
        s.proxy.stalled().await;
        s.proxy.cut();
        s.proxy.set_traffic(Traffic::Pass);
        drop(soon("its turn", newcomer).await.unwrap());
    }
    end.send_replace(true);
    soon("the others' turns", turns.join_all()).await;
    wait_until_they_are(&s.zk, "/turns", 0, 0).await;
}

#[tokio::test]
async fn a_lock_in_doubt_is_held_again_when_zookeeper_is_back_in_time() {
    let s = ARM.behind_a_proxy("queue", &["--session-timeout", "30s"]).await;
    let (mut holder, held) = Locking::take(&s.client, "/doubt", "holder").await;
    s.cut_off().await;
    let Some(Event::Suspended(suspended)) = holder.next().await.unwrap() else { panic!("suspended comes next") };
    let remaining = Duration::try_from(suspended.remaining.unwrap()).unwrap();
    assert!(remaining > Duration::ZERO && remaining < Duration::from_secs(30), "{remaining:?}");
    s.proxy.accept().await;
    assert_eq!(holder.held().await.unwrap(), held, "the same lock with the same token");
}

#[tokio::test]
async fn what_is_released_elsewhere_while_its_holder_is_cut_off_ends_ok_and_what_a_stranger_deletes_is_lost() {
    let s = ARM.behind_a_proxy("queue", &["--session-timeout", "60s"]).await;
    let server = Server::start(&s.sandbox.hosts).await;
    let elsewhere = server.client().await;
    let with_ttl = AcquireLockRequest { ttl: Some(span(Duration::from_secs(600))), ..lock("/away-with-ttl", "holder") };
    let mut lasting = Locking::start(&s.client, with_ttl).await.unwrap();
    let lasting_held = lasting.held().await.unwrap();
    let (stream, held) = Locking::take(&s.client, "/away", "holder").await;
    let (mut deleted, _) = Locking::take(&s.client, "/away-deleted", "holder").await;
    s.cut_off().await;
    for held in [&held, &lasting_held] {
        assert!(release(&elsewhere, &held.lock_id).await.unwrap());
    }
    let lease = s.zk.children("/away-deleted").await.unwrap().remove(0);
    s.zk.delete(&format!("/away-deleted/{lease}")).await;
    s.proxy.accept().await;
    for mut stream in [stream, lasting] {
        while let Some(event) = stream.next().await.unwrap() {
            assert!(matches!(event, Event::Suspended(_)), "{event:?}");
        }
    }
    let lost = loop {
        match deleted.next().await.unwrap() {
            Some(Event::Suspended(_)) => {}
            Some(Event::Lost(lost)) => break lost,
            other => panic!("neither suspended nor lost: {other:?}"),
        }
    };
    assert_eq!(lost.reason(), LostReason::Removed);
}

#[tokio::test]
async fn a_description_says_who_since_when_and_whose() {
    let s = ARM.setting("queue").await;
    let mut ours = Locking::start(&s.client, limited("/who", "ours", 3)).await.unwrap();
    let ours_held = ours.held().await.unwrap();
    let theirs = "/who/0123456789abcdef0123456789abcdef";
    s.zk.create_ephemeral(theirs, b"theirs").await;
    let ttl = Some(span(Duration::from_secs(600)));
    let lasting = AcquireLockRequest { ttl, ..limited("/who", "lasting", 3) };
    let mut lasting = Locking::start(&s.client, lasting).await.unwrap();
    let lasting_held = lasting.held().await.unwrap();
    let waiting = "/who-__lock__/0123456789abcdef0123456789abcdef__lock__";
    // ZooKeeper's next number is the number of children created so far: two.
    s.zk.create_ephemeral(&format!("{waiting}0000000002"), b"b'kazoo'").await;
    let mut waiter = Locking::start(&s.client, limited("/who", "waiter", 3)).await.unwrap();
    waiter.next().await.unwrap();

    let described = describe(&s.client, "/who").await;
    assert_eq!((described.path.as_str(), described.simultaneous), ("/who", 3));
    let theirs = s.zk.get(theirs).await.unwrap().stat;
    let holders: Vec<_> = described
        .holders
        .iter()
        .map(|party| (party.name.as_str(), party.fencing_token, party.foreign, party.ttl))
        .collect();
    let expected = [
        ("ours", ours_held.fencing_token, false, None),
        ("theirs", theirs.czxid, true, None),
        ("lasting", lasting_held.fencing_token, false, ttl),
    ];
    assert_eq!(holders, expected);
    let since = described.holders[1].since_time.unwrap();
    let created = UNIX_EPOCH + Duration::from_millis(u64::try_from(theirs.ctime).unwrap());
    assert_eq!(std::time::SystemTime::try_from(since).unwrap(), created);
    let waiters: Vec<_> =
        described.waiters.iter().map(|party| (party.name.as_str(), party.fencing_token, party.foreign)).collect();
    assert_eq!(waiters, [("kazoo", 0, true), ("waiter", 0, false)]);
    assert!(described.waiters.iter().all(|party| party.since_time.is_some()));
}

#[tokio::test]
async fn the_number_of_a_lock_is_changed_by_an_operator_and_by_no_call() {
    let s = ARM.setting("queue").await;
    let (holder, _) = Locking::take(&s.client, "/number", "holder").await;
    let (waiter, _) = Locking::queue(&s.client, "/number", "waiter").await;
    let nodes = ["/number-__lock__", "/number"];
    for path in nodes {
        refused(put(&s.client, path, text("2")).await, Code::FailedPrecondition, "HAS_REGISTRATIONS");
        assert!(s.zk.client().delete(path, None).await.is_err(), "what the docs rely on");
    }
    drop((holder, waiter));
    wait_until_they_are(&s.zk, "/number", 0, 0).await;
    // Nobody uses the lock any more, but it keeps its number.
    for path in nodes {
        refused(put(&s.client, path, text("2")).await, Code::FailedPrecondition, "HAS_REGISTRATIONS");
    }
    let two = || limited("/number", "two", 2);
    let differs = match Locking::start(&s.client, two()).await {
        Ok(mut stream) => stream.held().await,
        Err(status) => Err(status),
    };
    refused(differs, Code::FailedPrecondition, "LOCK_LIMIT_DIFFERS");
    // As docs/locks.md describes it.
    for path in nodes {
        s.zk.delete(path).await;
    }
    let mut both = Vec::new();
    for _ in 0..2 {
        let mut stream = Locking::start(&s.client, two()).await.unwrap();
        stream.held().await.unwrap();
        both.push(stream);
    }
    assert_eq!(s.zk.get("/number").await.unwrap().text(), "2");
}

#[tokio::test]
async fn another_number_is_noticed_by_who_has_taken_the_lock_again_and_again() {
    let s = ARM.setting("queue").await;
    for _ in 0..4 {
        let (mut stream, held) = Locking::take(&s.client, "/renumbered", "me").await;
        assert!(release(&s.client, &held.lock_id).await.unwrap());
        stream.end().await.unwrap();
    }
    s.zk.set("/renumbered", b"2").await;
    let mut stream = Locking::start(&s.client, lock("/renumbered", "me")).await.unwrap();
    refused(stream.held().await, Code::FailedPrecondition, "LOCK_LIMIT_DIFFERS");
    wait_until_they_are(&s.zk, "/renumbered", 0, 0).await;
    let mut stream = Locking::start(&s.client, limited("/renumbered", "me", 2)).await.unwrap();
    stream.held().await.unwrap();
}

#[tokio::test]
async fn a_zookeeper_server_that_falls_silent_costs_no_lock() {
    let s = ARM.behind_a_proxy("queue", &["--session-timeout", "12s"]).await;
    let mut holders = Vec::new();
    for number in 0..8 {
        holders.push(Locking::take(&s.client, &format!("/silent-{number}"), "holder").await);
    }
    // So that the last answer of a session is not the one to a heartbeat.
    for _ in 0..20 {
        describe(&s.client, "/silent-0").await;
    }
    s.proxy.half_open();
    for (stream, held) in &mut holders {
        let Some(Event::Suspended(_)) = stream.next().await.unwrap() else { panic!("suspended comes next") };
        assert_eq!(stream.held().await.unwrap(), *held, "the same lock with the same token");
    }
}

#[tokio::test]
async fn what_meets_a_zookeeper_connection_that_hangs_is_answered_in_time() {
    // A connection is given up after a third of this: later than any test waits.
    let s = ARM.behind_a_proxy("queue", &["--session-timeout", "3m"]).await;
    let server = Server::start(&s.sandbox.hosts).await;
    let (_holder, held) = Locking::take(&server.client().await, "/hangs", "holder").await;
    s.proxy.set_traffic(Traffic::Stall);
    refused(release(&s.client, &held.lock_id).await, Code::Unavailable, "BACKEND_UNAVAILABLE");
    let question = DescribeLockRequest { path: "/hangs".to_owned() };
    let answer = soon("an answer to DescribeLock", s.client.clone().describe_lock(question)).await;
    refused(answer, Code::Unavailable, "BACKEND_UNAVAILABLE");
    s.proxy.set_traffic(Traffic::Pass);
    assert!(release(&s.client, &held.lock_id).await.unwrap());
}

#[tokio::test]
async fn a_place_whose_session_has_just_ended_is_released_when_it_is_taken_again() {
    let mut s = ARM.setting("queue").await;
    let server = s.another_server().await;
    let other = server.client().await;
    let (_holder, _) = Locking::take(&other, "/again", "holder").await;
    let (_waiter, queued) = Locking::queue(&s.client, "/again", "waiter").await;
    // As when the session is over, and the waiter is about to queue again.
    s.server.pause();
    let place = format!("/again-__lock__/{}", s.zk.children("/again-__lock__").await.unwrap().remove(0));
    s.zk.delete(&place).await;
    let mut releasing = std::pin::pin!(release(&other, &queued.lock_id));
    // To see that it is not answered yet, the test can only wait a little.
    tokio::time::timeout(Duration::from_millis(300), &mut releasing).await.unwrap_err();
    s.zk.create_ephemeral(&place, b"waiter").await;
    assert!(releasing.await.unwrap());
    s.zk.wait_gone(&place).await;
}
