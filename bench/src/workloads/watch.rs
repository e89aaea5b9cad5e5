//! The time from a write to the event at a watcher.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rollcall_proto::v1::watch_response::Event;
use rollcall_proto::v1::{Change, ChangeKind, WatchRequest, WatchResponse};
use rollcall_tests::client::shown;
use rollcall_tests::zookeeper_witness::Witness;
use tokio::join;
use tonic::Streaming;
use zookeeper_client::{AddWatchMode, Client as ZooKeeper, EventType, PersistentWatcher};

use super::Workload;
use crate::report::{Case, ROLLCALL, Round, System, Unit, ZOOKEEPER};
use crate::stats::Latencies;
use crate::systems::Setup;

const OURS: &str = "/watch/rollcall";
const THEIRS: &str = "/watch/zookeeper";
const CHILDREN: u64 = 10;

/// ZooKeeper, the event and then a read of the new value.
const THEN_READ: System = System("zookeeper, then read");

/// The workload, prepared.
#[derive(Debug)]
pub(crate) struct Watch {
    writer: Witness,
    rollcall: Streaming<WatchResponse>,
    watcher: PersistentWatcher,
    /// The session of the watcher: its reads are as new as its events.
    zookeeper: ZooKeeper,
    /// Number of writes so far. No two write the same.
    writes: u64,
}

/// The latencies of one kind of write.
#[derive(Default)]
struct Times {
    rollcall: Latencies,
    event: Latencies,
    then_read: Latencies,
}

impl Workload for Watch {
    const NAME: &str = "watch";
    const NOTE: &str = "from just before a write, by zookeeper-client on a session of its own, until the event arrives at a Watch \
         stream, or at a persistent recursive watch of zookeeper-client. Rollcall's event carries the value; \
         ZooKeeper's is a path: `then read` reads the value too. The systems take turns, one write at a time, nothing \
         else under way.";

    async fn prepare(setup: &Setup) -> anyhow::Result<Watch> {
        let writer = setup.zk().await;
        for parent in [OURS, THEIRS] {
            for child in 0..CHILDREN {
                writer.create(&format!("{parent}/server{child}"), b"{}").await;
            }
        }
        let zookeeper = setup.zk().await.client().clone();
        let watcher = zookeeper.watch(THEIRS, AddWatchMode::PersistentRecursive).await?;
        let request = WatchRequest { path: OURS.to_owned(), ..Default::default() };
        let mut rollcall = setup.client().await?.watch(request).await?.into_inner();
        let first = rollcall.message().await?.context("the stream ended before its snapshot")?;
        let Some(Event::Snapshot(_)) = first.event else { bail!("not a snapshot: {first:?}") };
        Ok(Watch { writer, rollcall, watcher, zookeeper, writes: 0 })
    }

    async fn round(&mut self, _setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
        // The systems share each time in turns.
        let (mut set, mut create) = (Times::default(), Times::default());
        let end = Instant::now() + 2 * round.time;
        while Instant::now() < end {
            self.set(&mut set).await?;
        }
        let end = Instant::now() + 2 * round.time;
        while Instant::now() < end {
            self.create(&mut create).await?;
        }
        for (name, times) in [("data set", set), ("child created", create)] {
            for percent in [50, 99] {
                let case =
                    Case { workload: Watch::NAME, name: format!("{name}, p{percent}"), unit: Unit::Microseconds };
                let systems = [(ROLLCALL, &times.rollcall), (ZOOKEEPER, &times.event), (THEN_READ, &times.then_read)];
                for (system, latencies) in systems {
                    let time = latencies.percentile(percent).context("nothing was measured")?;
                    round.add(&case, system, time.as_secs_f64() * 1e6);
                }
            }
        }
        Ok(())
    }
}

impl Watch {
    /// Sets a child's data, once for each system.
    async fn set(&mut self, times: &mut Times) -> anyhow::Result<()> {
        let (number, data) = self.next_write();
        let name = format!("server{}", number % CHILDREN);

        let (path, begin) = (format!("{OURS}/{name}"), Instant::now());
        let event = rollcall_event(&mut self.rollcall, ChangeKind::Updated, &name, number, begin);
        let (written, event) = join!(self.writer.client().set_data(&path, data.as_bytes(), None), event);
        written?;
        times.rollcall.push(event?);

        let (path, begin) = (format!("{THEIRS}/{name}"), Instant::now());
        let event = zookeeper_event(&mut self.watcher, &self.zookeeper, EventType::NodeDataChanged, &path, begin);
        let (written, event) = join!(self.writer.client().set_data(&path, data.as_bytes(), None), event);
        written?;
        times.push_zk(event?);
        Ok(())
    }

    /// Creates a child, once for each system. Its deletion is not measured, but is over before the next write begins.
    async fn create(&mut self, times: &mut Times) -> anyhow::Result<()> {
        let (number, data) = self.next_write();
        let name = format!("new{number}");

        let (path, begin) = (format!("{OURS}/{name}"), Instant::now());
        let event = rollcall_event(&mut self.rollcall, ChangeKind::Added, &name, number, begin);
        let (written, event) = join!(self.writer.try_create(&path, data.as_bytes()), event);
        written?;
        times.rollcall.push(event?);
        self.writer.client().delete(&path, None).await?;
        rollcall_event(&mut self.rollcall, ChangeKind::Removed, &name, number, begin).await?;

        let (path, begin) = (format!("{THEIRS}/{name}"), Instant::now());
        let event = zookeeper_event(&mut self.watcher, &self.zookeeper, EventType::NodeCreated, &path, begin);
        let (written, event) = join!(self.writer.try_create(&path, data.as_bytes()), event);
        written?;
        times.push_zk(event?);
        self.writer.client().delete(&path, None).await?;
        while !is_event(&self.watcher.changed().await, EventType::NodeDeleted, &path)? {}
        Ok(())
    }

    fn next_write(&mut self) -> (u64, String) {
        self.writes += 1;
        (self.writes, format!(r#"{{"write":{}}}"#, self.writes))
    }
}

impl Times {
    fn push_zk(&mut self, (event, then_read): (Duration, Duration)) {
        self.event.push(event);
        self.then_read.push(then_read);
    }
}

/// The time from `begin` until the Watch stream reports that change of a child by that write.
async fn rollcall_event(
    stream: &mut Streaming<WatchResponse>,
    kind: ChangeKind,
    name: &str,
    write: u64,
    begin: Instant,
) -> anyhow::Result<Duration> {
    loop {
        let message = stream.message().await?.context("the Watch ended")?;
        let time = begin.elapsed();
        match message.event {
            Some(Event::Delta(delta)) => {
                let is_it = |change: &&Change| change.kind() == kind && change.name == name;
                if let Some(change) = delta.changes.iter().find(is_it) {
                    match written_by(change) {
                        Some(by) if by == write => return Ok(time),
                        None if kind == ChangeKind::Removed => return Ok(time),
                        other => bail!("{name} comes with {other:?} instead of {write}"),
                    }
                }
            }
            Some(Event::Current(_)) => {}
            other => bail!("no delta: {other:?}"),
        }
    }
}

/// The number of the write that made the value of a change.
fn written_by(change: &Change) -> Option<u64> {
    shown(change.child.as_ref()?.value.as_ref())["write"].as_u64()
}

/// The times from `begin` until the watcher reports that event, and until its value is read.
async fn zookeeper_event(
    watcher: &mut PersistentWatcher,
    client: &ZooKeeper,
    kind: EventType,
    path: &str,
    begin: Instant,
) -> anyhow::Result<(Duration, Duration)> {
    while !is_event(&watcher.changed().await, kind, path)? {}
    let event = begin.elapsed();
    client.get_data(path).await?;
    Ok((event, begin.elapsed()))
}

fn is_event(event: &zookeeper_client::WatchedEvent, kind: EventType, path: &str) -> anyhow::Result<bool> {
    if event.event_type == EventType::Session {
        bail!("the watcher's session is {:?}", event.session_state);
    }
    Ok(event.event_type == kind && event.path == path)
}
