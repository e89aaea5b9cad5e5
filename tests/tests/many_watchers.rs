//! The requests to ZooKeeper for each change, by its own counter: the same for one watcher as for ten thousand.

use std::net::SocketAddr;
use std::time::Duration;

use rollcall_proto::v1;
use rollcall_proto::v1::watch_response::Event;
use rollcall_tests::client::{Client, next};
use rollcall_tests::server::Server;
use rollcall_tests::unread::Unread;
use rollcall_tests::zookeeper::{Options, ZooKeeper, four_letter_word};
use rollcall_tests::zookeeper_witness::Witness;
use tokio::task::JoinSet;
use tonic::Streaming;

const CONNECTIONS: usize = 10;
const WATCHERS: usize = 10_000;
/// Number of additional watchers that never read.
const STALLED: usize = 1_000;
/// More than [`HEARTBEATS`], so that one more request for each change is noticed.
const CHANGES: usize = 12;
/// Number of heartbeats of the replica's sessions that may fall due in a measurement on a busy machine.
const HEARTBEATS: usize = 8;
/// So long that no ping, and no write to a fence, comes in between.
const SESSION: Duration = Duration::from_secs(600);

#[tokio::test]
async fn zookeeper_is_asked_the_same_for_each_change_whether_one_watches_or_ten_thousand() {
    let zookeeper = ZooKeeper::standalone(Options::default()).await;
    let sandbox = zookeeper.sandbox("many-watchers").await;
    let server = Server::start_with(&sandbox.hosts, &["--session-timeout", "600s"]).await;
    let zk = Witness::connect_with(&sandbox.hosts, SESSION, None).await;
    zk.create("/many/child", b"0").await;
    let counter = Counter(zookeeper.address(0));

    let mut watchers = Watchers::default();
    watchers.open(&server.client().await, 1).await;
    watchers.hear_of_one_change(&zk).await;
    let of_one = counter.requests_of(async || watchers.hear_of_changes(&zk).await).await;
    assert!(of_one >= 2 * CHANGES, "{CHANGES} changes cost {of_one} requests: a write and a read each, at the least");

    let more = counter.requests_of(async || {
        for _ in 0..CONNECTIONS {
            watchers.open(&server.client().await, WATCHERS / CONNECTIONS).await;
        }
    });
    let more = more.await;
    assert!(more <= HEARTBEATS, "who comes later is told from memory, and {WATCHERS} cost {more} requests");

    let of_many = counter.requests_of(async || watchers.hear_of_changes(&zk).await).await;
    let as_many = of_one.saturating_sub(HEARTBEATS)..=of_one + HEARTBEATS;
    assert!(as_many.contains(&of_many), "{of_many} requests for {CHANGES} changes, and {of_one} for one watcher");

    let (mut stalled, channel) = (Vec::new(), server.narrow_channel(0).await);
    for _ in 0..STALLED {
        stalled.push(Unread::watch(&channel, watch()).await);
    }
    let beside_stalled = counter.requests_of(async || watchers.hear_of_changes(&zk).await).await;
    assert!(
        as_many.contains(&beside_stalled),
        "{beside_stalled} requests for {CHANGES} changes beside {STALLED} that do not read, and {of_one} for one watcher"
    );
}

fn watch() -> v1::WatchRequest {
    v1::WatchRequest { path: "/many".to_owned(), ..Default::default() }
}

/// ZooKeeper's counter of received requests.
struct Counter(SocketAddr);

impl Counter {
    /// The number of requests that arrive during `work`.
    async fn requests_of(&self, work: impl AsyncFnOnce()) -> usize {
        let before = self.received().await;
        work().await;
        // The second question is counted too.
        self.received().await - before - 1
    }

    async fn received(&self) -> usize {
        let said = four_letter_word(self.0, "srvr").await.expect("ZooKeeper answers");
        let count = said.lines().find_map(|line| line.strip_prefix("Received: "));
        count.and_then(|count| count.parse().ok()).expect("ZooKeeper counts what it receives")
    }
}

/// Streams, in groups that are read at the same time.
#[derive(Default)]
struct Watchers {
    groups: Vec<Vec<Streaming<v1::WatchResponse>>>,
    changes: usize,
}

impl Watchers {
    /// Opens `count` more streams, and reads the first state from each.
    async fn open(&mut self, client: &Client, count: usize) {
        let mut group = Vec::with_capacity(count);
        for _ in 0..count {
            let mut stream = client.clone().watch(watch()).await.expect("Watch begins").into_inner();
            let first = heard(&mut stream).await;
            assert!(matches!(first, Event::Snapshot(_)), "{first:?}");
            group.push(stream);
        }
        self.groups.push(group);
    }

    async fn hear_of_changes(&mut self, zk: &Witness) {
        for _ in 0..CHANGES {
            self.hear_of_one_change(zk).await;
        }
    }

    /// Makes one change, and returns when every watcher has received it.
    async fn hear_of_one_change(&mut self, zk: &Witness) {
        self.changes += 1;
        zk.set("/many/child", self.changes.to_string().as_bytes()).await;
        let mut readers = JoinSet::new();
        for mut group in self.groups.drain(..) {
            readers.spawn(async move {
                for stream in &mut group {
                    let event = heard(stream).await;
                    assert!(matches!(event, Event::Delta(_)), "{event:?}");
                }
                group
            });
        }
        self.groups = readers.join_all().await;
    }
}

/// The next event of a stream, without heartbeats.
async fn heard(stream: &mut Streaming<v1::WatchResponse>) -> Event {
    loop {
        let message = next("an event", stream).await.expect("the stream stands").expect("the stream goes on");
        match message.event.expect("a message is not empty") {
            Event::Current(_) => {}
            event => return event,
        }
    }
}
