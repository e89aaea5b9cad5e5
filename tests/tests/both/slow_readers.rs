//! Watchers that do not read, or read slowly: each takes bounded memory, and affects no other client.

use rollcall_proto::v1::watch_response::Event;
use rollcall_proto::v1::{self, WatchRequest, WatchResponse};
use rollcall_tests::arm::Setting;
use rollcall_tests::client::{put, span, text};
use rollcall_tests::follow::Watching;
use rollcall_tests::unread::Unread;
use rollcall_tests::wait::{SOON, check, eventually, soon};
use tokio::task::JoinSet;

use super::ARM;

/// Number of watchers that read, and of those that do not.
const WATCHES: usize = 1000;
const CONNECTIONS: usize = 4;
/// Maximum memory of a stalled watch, in bytes: its own state, and a share of the messages for all.
const MOST: usize = 64 * 1024;

/// A Watch without heartbeats: all its messages are changes.
fn watch(path: &str) -> WatchRequest {
    WatchRequest { path: path.to_owned(), heartbeat: Some(span(std::time::Duration::ZERO)), ..Default::default() }
}

/// Opens [`WATCHES`] streams on which the server can send at most one window, and reads nothing.
async fn stall(s: &Setting, path: &str, window: u32) -> Vec<Unread> {
    let mut stalled = Vec::with_capacity(WATCHES);
    for _ in 0..CONNECTIONS {
        let channel = s.server.narrow_channel(window).await;
        for _ in 0..WATCHES / CONNECTIONS {
            stalled.push(Unread::watch(&channel, watch(path)).await);
        }
    }
    stalled
}

#[tokio::test]
async fn a_watch_that_nobody_reads_slows_nobody() {
    let s = ARM.setting("streams").await;
    let value = "x".repeat(100 * 1024);
    put(&s.client, "/slow", text("")).await.unwrap();
    // On its own connection, so that unread messages fill only the window of that one.
    let lazy = s.server.client().await;
    let mut stalled = lazy.clone().watch(WatchRequest { path: "/slow".into(), ..Default::default() }).await.unwrap();
    let mut reading = Watching::start(&s.client, "/slow").await;
    for number in 0..100 {
        put(&s.client, "/slow", text(&format!("{number} {value}"))).await.unwrap();
    }
    let end = format!("99 {value}");
    reading.until("the last value", |known| known.value["text"] == end.as_str()).await;
    // The slow watcher catches up, with the missed changes merged.
    let mut last = None;
    let mut messages = 0;
    while last.as_deref() != Some(end.as_str()) {
        let message = soon("the state", stalled.get_mut().message()).await.unwrap().unwrap();
        messages += 1;
        use v1::watch_response::Event;
        let value = match message.event.unwrap() {
            Event::Snapshot(snapshot) => snapshot.node.unwrap().value,
            Event::Delta(delta) => delta.changes.last().unwrap().child.clone().unwrap().value,
            _ => continue,
        };
        last = match value.and_then(|value| value.kind) {
            Some(v1::value::Kind::Text(text)) => Some(text),
            _ => None,
        };
    }
    assert!(messages < 100, "missed states are put together: {messages} messages");
}

/// Fails when the stalled watches have cost too much since `before`.
fn weigh(s: &Setting, before: usize, watches: usize) {
    let each = s.server.resident_bytes().saturating_sub(before) / watches;
    println!("{each} bytes for each stalled watch");
    assert!(each < MOST, "{each} bytes for each stalled watch");
}

#[tokio::test]
async fn a_thousand_stalled_watches_cost_little_and_a_thousand_live_ones_nothing() {
    const CHANGES: usize = 30;
    let s = ARM.setting("slow").await;
    put(&s.client, "/crowd", text("")).await.unwrap();
    put(&s.client, "/crowd/one", text("")).await.unwrap();
    let before = s.server.resident_bytes();
    let stalled = stall(&s, "/crowd", 0).await;
    let mut reading = Watching::start_with(&s.client, watch("/crowd")).await;
    for number in 0..100 {
        let value = format!("{number} {}", "x".repeat(50 * 1024));
        put(&s.client, "/crowd/one", text(&value)).await.unwrap();
        reading.until("the value", |known| known.child("one")["text"] == value.as_str()).await;
    }
    weigh(&s, before, WATCHES);
    drop(reading);

    let mut live = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = s.server.client().await;
        for _ in 0..WATCHES / CONNECTIONS {
            live.push(Watching::start_with(&client, watch("/crowd")).await);
        }
    }
    let told = s.server.metric("rollcall_watch_messages_total").await;
    for number in 0..CHANGES {
        let value = number.to_string();
        put(&s.client, "/crowd/two", text(&value)).await.unwrap();
        let mut hearing = JoinSet::new();
        for mut watching in live.drain(..) {
            let value = value.clone();
            hearing.spawn(async move {
                watching.until("the change", |known| known.child("two")["text"] == value.as_str()).await;
                watching
            });
        }
        live = hearing.join_all().await;
    }
    assert!(live.iter().all(|watching| (watching.snapshots, watching.changes.len()) == (1, CHANGES)));
    // Stalled watches could only add messages to a change, and there were none except for the reading ones.
    assert_eq!(s.server.metric("rollcall_watch_messages_total").await - told, CHANGES * WATCHES);
    // All streams are open: nobody was dropped.
    assert_eq!(stalled.len(), WATCHES);
    s.server.wait_for_streams(2 * WATCHES).await;
}

/// Waits until `count` messages were made.
async fn messages(s: &Setting, count: usize) {
    eventually("so many messages were made", SOON, async || {
        let told = s.server.metric("rollcall_watch_messages_total").await;
        check(told >= count, || format!("{told} of {count} messages"))
    })
    .await;
}

/// Reads a snapshot to its end, and returns the number of its parts.
async fn read_snapshot(stream: &mut Unread) -> usize {
    let mut parts = 1;
    while is_part(&stream.read().await) {
        parts += 1;
    }
    parts
}

fn is_part(message: &WatchResponse) -> bool {
    matches!(&message.event, Some(Event::Snapshot(snapshot)) if snapshot.more)
}

#[tokio::test]
async fn a_thousand_watches_stuck_in_a_large_snapshot_share_it_though_it_is_past() {
    const CHILDREN: usize = 50_000;
    /// Window of a stalled stream, in bytes.
    const WINDOW: u32 = 16 * 1024;
    /// Number of watches that read one part: the next is made for them when the state has changed since.
    const FURTHER: usize = 200;
    let s = ARM.setting("slow").await;
    s.zk.create("/large", b"").await;
    let value = format!(r#"{{"host":"server","port":8080,"zone":"{}"}}"#, "north".repeat(10));
    for chunk in 0..CHILDREN / 500 {
        let names = (0..500).map(|number| format!("/large/server-{:05}", chunk * 500 + number));
        s.zk.create_many(names, value.as_bytes()).await;
    }
    let channel = s.server.channel().await;
    let mut live = Unread::watch(&channel, watch("/large")).await;
    let parts = read_snapshot(&mut live).await;
    assert!(parts > 4, "{parts} parts");

    let before = s.server.resident_bytes();
    let mut stalled = stall(&s, "/large", WINDOW).await;
    messages(&s, parts + WATCHES).await;
    weigh(&s, before, WATCHES);

    put(&s.client, "/large/server-00000", text("new")).await.unwrap();
    let change = live.read().await;
    assert!(matches!(&change.event, Some(Event::Delta(delta)) if delta.changes.len() == 1), "{change:?}");
    let told = s.server.metric("rollcall_watch_messages_total").await;
    for stream in &mut stalled[..FURTHER] {
        stream.take().await;
    }
    messages(&s, told + FURTHER).await;
    // Without sharing, each of these would take a mebibyte.
    weigh(&s, before, WATCHES);

    // A watcher that reads on gets the rest of the state that it began with, and then the changes since.
    let stuck = &mut stalled[FURTHER - 1];
    assert_eq!(read_snapshot(stuck).await, parts - 1);
    assert_eq!(stuck.read().await, change);
}
