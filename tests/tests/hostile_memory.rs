//! Memory that clients make the replica hold by unread answers and large messages. All of it is counted for their
//! connection. At the limit new requests are refused, and open streams go on.

use rollcall_proto::v1;
use rollcall_proto::v1::watch_response::Event;
use rollcall_tests::arm::{Arm, Setting};
use rollcall_tests::client::{Registration, get, put, set, text, unset};
use rollcall_tests::hand::Hand;
use rollcall_tests::unread::Unread;
use rollcall_tests::wait::{SOON, check, eventually, soon};
use tokio::task::JoinSet;

const WIDE: u32 = 1 << 30;
const BYTES: &str = "rollcall_in_use{resource=\"bytes\"}";

async fn embedded(options: &[&str]) -> Setting {
    Arm::Embedded.setting_with("memory", options).await
}

#[tokio::test]
async fn small_answers_that_nobody_reads_are_counted_and_bounded_however_wide_the_windows_are() {
    const STREAMS: usize = 300;
    /// Number of changes after which something must be held: a slow server sends many of them at once.
    const CHANGES: usize = 20_000;
    let s = embedded(&[]).await;
    put(&s.client, "/news", text("first")).await.unwrap();
    let mut hand = Hand::open(s.server.grpc(), WIDE).await;
    for number in 0..STREAMS {
        let stream = u32::try_from(2 * number + 1).unwrap();
        hand.call(stream, "/rollcall.v1.Registry/Watch");
        hand.last_message(stream, &v1::WatchRequest { path: "/news".to_owned(), ..Default::default() });
    }
    soon("the requests", hand.flush()).await.unwrap();
    s.server.wait_for_streams(STREAMS).await;
    let idle = s.server.metric(BYTES).await;
    let (mut changes, mut counted, mut rest) = (0, 0, 5);
    // When much is held, some more changes follow.
    while rest > 0 {
        assert!(changes < CHANGES, "{counted} bytes are held for each stream");
        for _ in 0..100 {
            changes += 1;
            put(&s.client, "/news", text(&format!("{changes:0100}"))).await.unwrap();
        }
        counted = s.server.metric(BYTES).await.saturating_sub(idle) / STREAMS;
        assert!(counted < 80 << 10, "{counted} bytes are held for each stream");
        if counted > 16 << 10 {
            rest -= 1;
        }
    }
    // The streams are open, and go on when they are read.
    let server = &s.server;
    tokio::select! {
        heard = hand.converse(|_| false) => panic!("the connection ended: {:?}", heard.goodbye),
        () = eventually("nothing is held any more", SOON, async || {
            let counted = server.metric(BYTES).await;
            check(counted < idle + (64 << 10), || format!("{counted} bytes, {idle} before"))
        }) => {}
    }
    s.server.wait_for_streams(STREAMS).await;
}

#[tokio::test]
async fn a_stream_counts_as_much_as_its_largest_message() {
    const STREAMS: usize = 20;
    const LARGE: usize = 1_900_000;
    let s = embedded(&[]).await;
    let client = s.server.client().await;
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        let mut stream = Registration::open(&client).await;
        stream.send(set(&format!("/large/{number}"), text(&"x".repeat(LARGE)))).await;
        stream.rejected().await;
        // The buffer keeps its size, though it is empty.
        stream.keep_alive().await;
        streams.push(stream);
    }
    // The gauge is updated at intervals.
    eventually("all are counted", SOON, async || {
        let counted = s.server.metric(BYTES).await;
        check(counted >= STREAMS * LARGE, || format!("{counted} bytes"))
    })
    .await;
    drop(streams);
    eventually("it is given back", SOON, async || {
        let left = s.server.metric(BYTES).await;
        check(left < LARGE, || format!("{left} bytes"))
    })
    .await;
}

#[tokio::test]
async fn at_the_limit_one_more_set_is_rejected_and_the_stream_goes_on() {
    const MOST: usize = 8 << 20;
    let s = embedded(&["--max-bytes-per-connection", &MOST.to_string()]).await;
    let client = s.server.client().await;
    let (mut standing, mut filling) = (Registration::open(&client).await, Registration::open(&client).await);
    standing.set("/full/stands", text("x")).await;
    let mut number = 0;
    for size in [250_000, 50_000, 5_000, 1_000] {
        loop {
            number += 1;
            filling.send(set(&format!("/full/{number}"), text(&"x".repeat(size)))).await;
            match filling.answer().await {
                v1::register_response::Response::Registered(_) => {}
                v1::register_response::Response::Rejected(rejected) => {
                    assert_eq!(rejected.reason, "TOO_MANY_BYTES");
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    standing.send(set("/full/one-more", text(&"x".repeat(3_000)))).await;
    assert_eq!(standing.rejected().await.reason, "TOO_MANY_BYTES");
    assert!(get(&s.client, "/full/stands").await.exists);
    standing.send(unset("/full/stands")).await;
    assert_eq!(standing.unregistered().await, "/full/stands");
}

#[tokio::test]
async fn watches_wait_for_room_and_none_is_dropped() {
    const MOST: usize = 8 << 20;
    const PATHS: usize = 40;
    let s = embedded(&["--max-bytes-per-connection", &MOST.to_string()]).await;
    for number in 0..PATHS {
        put(&s.client, &format!("/wide{number}"), text(&"x".repeat(250_000))).await.unwrap();
    }
    let channel = s.server.narrow_channel(16 << 10).await;
    let mut watches = Vec::new();
    for number in 0..PATHS {
        let request = v1::WatchRequest { path: format!("/wide{number}"), ..Default::default() };
        watches.push(Unread::watch(&channel, request).await);
    }
    eventually("there is no room for another", SOON, async || {
        let used = s.server.metric(BYTES).await;
        check(used > 6_000_000, || used.to_string())
    })
    .await;
    // One more watch waits, and receives a heartbeat.
    put(&s.client, "/one-more", text(&"x".repeat(250_000))).await.unwrap();
    let heartbeat = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let request = v1::WatchRequest { path: "/one-more".to_owned(), heartbeat, ..Default::default() };
    let mut waiting = Unread::watch(&channel, request).await;
    let quiet = waiting.read().await;
    assert_eq!((quiet.revision, quiet.event), (0, Some(Event::Current(v1::Current {}))));
    let mut readers: JoinSet<_> = watches
        .into_iter()
        .map(|mut watch| async move {
            let first = watch.take().await;
            (first.len(), watch)
        })
        .collect();
    while let Some(read) = soon("a snapshot", readers.join_next()).await {
        assert!(read.unwrap().0 > 250_000);
    }
    while !matches!(waiting.read().await.event, Some(Event::Snapshot(_))) {}
}
