//! Sessions: what is granted, what remains, and what ends.

use std::time::Duration;

use rollcall_tests::raw::{newcomer, resumption};
use rollcall_tests::wait::{SOON, check, eventually};
use rollcall_wire::{ConnectRequest, CreateMode, ErrorCode, EventKind, Request, Response, WatchMode};

use super::{Client, Ground, create, exists, get, ground, set, told};

/// The shortest time-out that outlives a few ticks of the servers.
const SHORT: Duration = Duration::from_secs(2);

/// Closes the session, so that it does not remain for its time-out.
async fn close(client: &mut Client) {
    client.done(Request::CloseSession).await;
    client.hung_up_on().await;
}

/// The answer to a client that asks for a session that is over.
async fn is_over(ground: &Ground, request: &ConnectRequest) {
    let mut client = ground.open(request).await.expect("the end of a session is told");
    let answer = client.session();
    assert_eq!((answer.timeout_ms, answer.session_id), (0, 0));
    client.hung_up_on().await;
}

#[tokio::test]
async fn the_time_out_that_is_asked_for_is_granted_within_bounds() {
    let ground = ground().await;
    let mut ids = Vec::new();
    for (asked, granted) in [(5_000, 5_000), (0, 100), (1, 100), (100, 100), (600_001, 600_000)] {
        let mut client = ground.client_for(Duration::from_millis(asked)).await;
        assert_eq!((client.session().timeout_ms, client.session().password.len()), (granted, 16));
        assert!(client.id() != 0 && !ids.contains(&client.id()), "{ids:?}");
        ids.push(client.id());
        close(&mut client).await;
    }
}

#[tokio::test]
async fn a_session_is_taken_up_again_with_all_that_it_owns() {
    let ground = ground().await;
    let mut before = ground.client().await;
    let made = before.create("/mine", CreateMode::Ephemeral).await;
    assert_eq!(made.ephemeral_owner, before.id());
    before.raw.hang_up().await;
    let request = ConnectRequest { last_zxid_seen: made.czxid, timeout_ms: 7_000, ..resumption(before.session()) };
    let mut after = ground.open(&request).await.unwrap();
    assert_eq!((after.id(), &after.session().password), (before.id(), &before.session().password));
    assert_eq!(after.session().timeout_ms, 7_000, "granted anew");
    assert_eq!(after.stat("/mine").await, Some(made));
    after.create("/mine too", CreateMode::Ephemeral).await;
}

#[tokio::test]
async fn without_its_password_a_session_is_over_for_who_asks_and_stands_all_the_same() {
    let ground = ground().await;
    let mut owner = ground.client().await;
    let made = owner.create("/mine", CreateMode::Ephemeral).await;
    let right = resumption(owner.session());
    let wrong = ConnectRequest { password: vec![7; 16].into(), ..right.clone() };
    is_over(&ground, &wrong).await;
    let mut again = ground.open(&right).await.unwrap();
    assert_eq!((again.id(), again.stat("/mine").await), (owner.id(), Some(made)));
}

#[tokio::test]
async fn a_session_that_never_was_is_over() {
    let ground = ground().await;
    is_over(&ground, &ConnectRequest { session_id: 0x0123_4567_89ab_cdef, ..newcomer(SHORT) }).await;
}

#[tokio::test]
async fn a_session_that_moves_leaves_the_connection_that_it_had() {
    let ground = ground().await;
    let mut before = ground.client().await;
    before.create("/mine", CreateMode::Ephemeral).await;
    let mut after = ground.open(&resumption(before.session())).await.unwrap();
    before.hung_up_on().await;
    assert!(after.stat("/mine").await.is_some());
    after.done(set("/mine", 0)).await;
}

#[tokio::test]
async fn who_has_seen_more_than_the_server_is_hung_up_on_and_loses_nothing() {
    let ground = ground().await;
    let mut client = ground.client().await;
    let made = client.create("/mine", CreateMode::Ephemeral).await;
    let future = made.czxid + (1 << 50);
    for request in [resumption(client.session()), newcomer(SHORT)] {
        assert!(ground.open(&ConnectRequest { last_zxid_seen: future, ..request }).await.is_none());
    }
    // Like a client that asks again with no transaction seen, to find out whether its session is over.
    let mut again = ground.open(&resumption(client.session())).await.unwrap();
    assert_eq!((again.id(), again.stat("/mine").await), (client.id(), Some(made)));
}

#[tokio::test]
async fn a_silent_session_ends_with_its_ephemerals_in_one_transaction() {
    let ground = ground().await;
    let mut watcher = ground.client().await;
    watcher.plant(&["/fences", "/services", "/durable"]).await;
    let mut mortal = ground.client_for(SHORT).await;
    let mut paths: Vec<_> = (0..20).map(|number| format!("/services/{number:02}")).collect();
    paths.push("/fences/mine".to_owned());
    for path in &paths {
        mortal.create(path, CreateMode::Ephemeral).await;
    }
    let all = Request::AddWatch { path: "/".into(), mode: WatchMode::PersistentRecursive };
    watcher.done(all).await;
    mortal.hung_up_on().await;
    let mut events = Vec::new();
    eventually("the first event", SOON, async || {
        events = watcher.events().await;
        check(!events.is_empty(), || "nothing is told".to_owned())
    })
    .await;
    // None of them outlives the first deletion that is reported. So a missing fence means that all ephemerals are gone.
    for part in watcher.multi_read(paths.iter().map(|path| get(path)).collect()).await {
        assert_eq!(part, Err(ErrorCode::NoNode));
    }
    let mut heard = told(&events);
    heard.sort_unstable_by_key(|(_, path)| *path);
    paths.sort_unstable();
    let expected: Vec<_> = paths.iter().map(|path| (EventKind::Deleted, path.as_str())).collect();
    assert_eq!(heard, expected);
    let zxid = events[0].zxid;
    assert!(events.iter().all(|event| event.zxid == zxid), "{events:?}");
    assert_eq!(watcher.stat("/services").await.unwrap().pzxid, zxid);
    assert_eq!(watcher.stat("/fences").await.unwrap().pzxid, zxid);
    is_over(&ground, &resumption(mortal.session())).await;
}

#[tokio::test]
async fn a_session_lives_for_as_long_as_it_is_heard() {
    let ground = ground().await;
    let (mut older, mut younger) = (ground.client_for(SHORT).await, ground.client_for(SHORT).await);
    let mut watcher = ground.client().await;
    older.create("/older", CreateMode::Ephemeral).await;
    younger.create("/younger", CreateMode::Ephemeral).await;
    // Both sessions have the same time-out, and only the silent one ends.
    eventually("the silent session is over", SOON, async || {
        older.events().await;
        check(watcher.stat("/younger").await.is_none(), || "it lives".to_owned())
    })
    .await;
    assert!(watcher.stat("/older").await.is_some());
    older.done(set("/older", 0)).await;
}

#[tokio::test]
async fn a_session_that_is_closed_takes_its_ephemerals_with_it_at_once() {
    let ground = ground().await;
    let (mut closing, mut watcher) = (ground.client().await, ground.client().await);
    closing.plant(&["/durable"]).await;
    closing.create("/mine", CreateMode::Ephemeral).await;
    watcher.done(Request::Exists { path: "/mine".into(), watch: true }).await;
    let sent = closing.send(Request::CloseSession).await;
    // The next request is not carried out. Whether it is answered is a race with the end of the connection.
    closing.send(create("/late", CreateMode::Persistent)).await;
    assert!(matches!(closing.answer(sent).await.result, Ok(Response::Done)));
    if let Some(frame) = closing.raw.next().await {
        assert_eq!(frame.header.error, ErrorCode::SessionExpired.to_wire());
        closing.hung_up_on().await;
    }
    let answer = watcher.ask(exists("/mine")).await;
    assert_eq!(told(&answer.events), [(EventKind::Deleted, "/mine")]);
    assert_eq!(answer.result, Err(ErrorCode::NoNode));
    assert!(watcher.stat("/durable").await.is_some() && watcher.stat("/late").await.is_none());
    is_over(&ground, &resumption(closing.session())).await;
}
