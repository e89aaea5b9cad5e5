//! A long queue for one lock: the time until the next contender is served, and the cost of the waiting contenders.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::future::try_join_all;
use rollcall_tests::client::{Client, describe};
use rollcall_tests::wait::{check, eventually};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::super::{Rounds, Workload};
use super::taker::{Stream, release};
use crate::report::{Case, ROLLCALL, Round, Unit};
use crate::stats::Latencies;
use crate::systems::{Rollcall, Setup};
use crate::usage;

/// Number of waiters while the lock changes hands.
const WAITING: usize = 1_000;
/// Number of handovers.
const HANDOVERS: usize = 1_000;
/// Number of waiters whose cost is measured.
const CROWD: usize = 10_000;
const CONNECTIONS: usize = 100;
/// Time from the last place in the queue to the measurement of memory: by then all waiters know the final queue.
const SETTLED: Duration = Duration::from_secs(5);
/// Time in which all contenders have to be gone.
const GONE: Duration = Duration::from_secs(60);

const HANDED_OVER: &str = "/queue/handed-over";
const FIRST: &str = "/queue/first";
const CROWDED: &str = "/queue/crowded";

/// The workload. It prepares nothing: each round is complete in itself.
#[derive(Debug)]
pub(crate) struct Queue;

impl Workload for Queue {
    const NAME: &str = "queue";
    const NOTE: &str = "waiters of one lock, over 100 connections to a server that has just started. Release to held: 1,000 wait; from \
         the call of ReleaseLock to `held` at the next client, 1,000 times; who has released stands at the end of the \
         queue again before the next release. Memory: what VmRSS and RssAnon of the server have grown by with 10,000 \
         waiters, divided by them. Watches: how many more ZooKeeper counts.";
    const ROUNDS: Rounds = Rounds::Cold(2);

    async fn prepare(_setup: &Setup) -> anyhow::Result<Queue> {
        Ok(Queue)
    }

    async fn round(&mut self, setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
        let server = setup.another().await?;
        let clients = try_join_all((0..CONNECTIONS).map(|_| server.client())).await?;
        hand_over(&clients, round).await?;
        drop((clients, server));
        let server = setup.another().await?;
        crowd(setup, &server, round).await
    }
}

fn add(round: &mut Round<'_>, name: &str, unit: Unit, figure: f64) {
    round.add(&Case { workload: Queue::NAME, name: name.to_owned(), unit }, ROLLCALL, figure);
}

async fn hand_over(clients: &[Client], round: &mut Round<'_>) -> anyhow::Result<()> {
    let mut clients = clients.iter().cycle();
    let mut client = || clients.next().cloned().context("there are clients");
    let mut queue = VecDeque::with_capacity(WAITING);
    let join = async |queue: &mut VecDeque<_>, mut client: Client| {
        let mut stream = Stream::open(&mut client, HANDED_OVER).await?;
        stream.queued().await?;
        queue.push_back((client, stream));
        anyhow::Ok(())
    };
    for _ in 0..=WAITING {
        join(&mut queue, client()?).await?;
    }
    let (mut holder, mut stream) = queue.pop_front().context("somebody waits")?;
    let mut held = stream.held().await?;
    let mut latencies = Latencies::default();
    for _ in 0..HANDOVERS {
        let (next, mut next_stream) = queue.pop_front().context("somebody waits")?;
        let begin = Instant::now();
        let next_held = async {
            let held = next_stream.held().await?;
            anyhow::Ok((held, begin.elapsed()))
        };
        let ((), (next_held, taken)) = tokio::try_join!(release(&mut holder, held), next_held)?;
        latencies.push(taken);
        stream.end().await?;
        join(&mut queue, holder).await?;
        (holder, stream, held) = (next, next_stream, next_held);
    }
    for (percent, name) in [(50, "release to held, p50"), (99, "release to held, p99")] {
        let taken = latencies.percentile(percent).context("nothing was measured")?;
        add(round, name, Unit::Milliseconds, taken.as_secs_f64() * 1e3);
    }
    drop((stream, queue));
    all_gone(&holder, HANDED_OVER).await;
    Ok(())
}

async fn crowd(setup: &Setup, server: &Rollcall, round: &mut Round<'_>) -> anyhow::Result<()> {
    let clients = try_join_all((0..CONNECTIONS).map(|_| server.client())).await?;
    // Memory allocated by the first use does not count for the waiters.
    let first = Stream::open(&mut clients[0].clone(), FIRST).await?;
    sleep(Duration::from_millis(500)).await;
    let (memory, watches) = (usage::memory(server.pid())?, setup.zookeeper().counts("zk_watch_count").await?);
    let begin = Instant::now();
    let streams = queue_up(&clients).await?;
    let queued = begin.elapsed();
    sleep(SETTLED).await;
    let after = usage::memory(server.pid())?;
    let more = setup.zookeeper().counts("zk_watch_count").await?.saturating_sub(watches);

    let each = |before: u64, after: u64| after.saturating_sub(before) as f64 / 1e3 / CROWD as f64;
    add(round, "memory of a waiter", Unit::Kilobytes, each(memory.resident, after.resident));
    add(round, "of it anonymous", Unit::Kilobytes, each(memory.anonymous, after.anonymous));
    add(round, "resident, all", Unit::Megabytes, after.resident as f64 / 1e6);
    add(round, "watches in ZooKeeper", Unit::Count, more as f64);
    add(round, "queueing up", Unit::PerSecond, CROWD as f64 / queued.as_secs_f64());
    drop((first, streams));
    all_gone(&clients[0], CROWDED).await;
    Ok(())
}

/// Queues one holder, and then all others at once.
async fn queue_up(clients: &[Client]) -> anyhow::Result<Vec<Stream>> {
    let mut holder = Stream::open(&mut clients[0].clone(), CROWDED).await?;
    holder.held().await?;
    let mut queueing = JoinSet::new();
    for client in clients {
        let mut client = client.clone();
        queueing.spawn(async move {
            let mut streams = Vec::with_capacity(CROWD / CONNECTIONS);
            for _ in 0..CROWD / CONNECTIONS {
                let mut stream = Stream::open(&mut client, CROWDED).await?;
                stream.queued().await?;
                streams.push(stream);
            }
            anyhow::Ok(streams)
        });
    }
    let mut streams = vec![holder];
    while let Some(queued) = queueing.join_next().await {
        streams.extend(queued.context("a client panicked")??);
    }
    Ok(streams)
}

/// Waits until the lock has no holder and no waiters, so that the next measurement is not disturbed.
async fn all_gone(client: &Client, path: &str) {
    eventually("all have left the queue", GONE, async || {
        let lock = describe(client, path).await;
        check(lock.holders.is_empty() && lock.waiters.is_empty(), || format!("{} wait", lock.waiters.len()))
    })
    .await;
}
