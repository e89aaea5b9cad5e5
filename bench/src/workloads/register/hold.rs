//! The cost of many open streams that only send keep-alives.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use futures_util::future::try_join_all;
use rollcall_proto::v1::RegisterRequest;
use rollcall_proto::v1::register_response::Response;
use rollcall_tests::client::{data, set};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use super::stream::{keep_alive, open_all, open_with_ttl};
use super::{Workload, value};
use crate::report::{Case, ROLLCALL, Round, Unit};
use crate::systems::{Rollcall, Setup};
use crate::usage::{self, Meter};
use crate::workloads::Rounds;

const STREAMS: usize = 10_000;
const CONNECTIONS: usize = 100;
const TTL: Duration = Duration::from_secs(10);
/// Duration of the measurement: each stream sends three keep-alives.
const IDLE: Duration = TTL;
/// Interval between the keep-alives of parts of the streams.
const STEP: Duration = Duration::from_millis(20);
/// Time from the last answer to the measurement of memory.
const SETTLED: Duration = Duration::from_millis(500);

/// The workload. It prepares nothing: each round is complete in itself.
#[derive(Debug)]
pub(crate) struct Hold {
    /// Counts the rounds, so that no name is used twice: the registrations of a killed server exist for a while.
    rounds: u32,
}

impl Workload for Hold {
    const NAME: &str = "hold";
    const NOTE: &str = "10,000 Register streams over 100 connections to a server that has just started, with a ttl of 10 s and one \
         registration each. Memory: what VmRSS and RssAnon of the server have grown by, divided by the streams. Idle: \
         the server's processor time in 10 s in which each stream says every 3.3 s, as it must, that it is alive, and \
         is answered. ZooKeeper's connections: how many more it counts than before that server started.";
    const ROUNDS: Rounds = Rounds::Cold(2);

    async fn prepare(_setup: &Setup) -> anyhow::Result<Hold> {
        Ok(Hold { rounds: 0 })
    }

    async fn round(&mut self, setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
        self.rounds += 1;
        let (first, held) = (format!("first{}-", self.rounds), format!("held{}-", self.rounds));
        let connections = connections(setup).await?;
        let server = setup.another().await?;
        // Memory allocated by the first use does not count for the streams.
        drop(streams(&server, &first, 1).await?);
        sleep(SETTLED).await;
        let before = usage::memory(server.pid())?;
        let alive = Alive::keep(streams(&server, &held, STREAMS).await?);
        sleep(SETTLED).await;
        let after = usage::memory(server.pid())?;
        let heard = alive.heard.load(Ordering::Relaxed);
        let pids = [server.pid()];
        let meter = Meter::start(&pids)?;
        sleep(IDLE).await;
        let idle = meter.stop(STREAMS)?;
        let heard = alive.heard.load(Ordering::Relaxed) - heard;
        ensure!(heard >= STREAMS * 5 / 2, "{heard} signs of life were answered: the client is too slow");

        let mut add = |name: &str, unit, figure: f64| {
            round.add(&Case { workload: Hold::NAME, name: name.to_owned(), unit }, ROLLCALL, figure);
        };
        let each = |before: u64, after: u64| after.saturating_sub(before) as f64 / 1e3 / STREAMS as f64;
        add("memory of a stream", Unit::Kilobytes, each(before.resident, after.resident));
        add("of it anonymous", Unit::Kilobytes, each(before.anonymous, after.anonymous));
        add("resident, all", Unit::Megabytes, after.resident as f64 / 1e6);
        add("processor, idle", Unit::PercentOfCore, 100.0 * idle.processor.as_secs_f64() / idle.time.as_secs_f64());
        let more = self::connections(setup).await?.saturating_sub(connections);
        add("connections to ZooKeeper", Unit::Count, f64::from(more));
        Ok(())
    }
}

async fn connections(setup: &Setup) -> anyhow::Result<u32> {
    Ok(setup.zookeeper().says("Connections").await?.parse()?)
}

type Sides = (mpsc::Sender<RegisterRequest>, tonic::Streaming<rollcall_proto::v1::RegisterResponse>);

async fn streams(server: &Rollcall, kind: &str, count: usize) -> anyhow::Result<Vec<Sides>> {
    let clients = try_join_all((0..CONNECTIONS).map(|_| server.client())).await?;
    let value = data(value());
    let requests = (0..count)
        .map(|number| [open_with_ttl(TTL), set(&format!("/hold/{kind}{number}.example:8080"), value.clone())]);
    let opened = open_all(&clients, requests).await?;
    Ok(opened.into_iter().map(|(stream, _)| stream.split()).collect())
}

/// Clients that send keep-alives, and read the answers. Dropping ends them.
struct Alive {
    _tasks: JoinSet<()>,
    /// Number of answers that they have read.
    heard: Arc<AtomicUsize>,
}

impl Alive {
    fn keep(streams: Vec<Sides>) -> Alive {
        let (mut tasks, heard) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
        let mut senders = Vec::with_capacity(streams.len());
        for (sender, mut responses) in streams {
            senders.push(sender);
            let heard = heard.clone();
            tasks.spawn(async move {
                while let Ok(Some(message)) = responses.message().await {
                    let is_answer = matches!(message.response, Some(Response::KeptAlive(_)));
                    heard.fetch_add(usize::from(is_answer), Ordering::Relaxed);
                }
            });
        }
        tasks.spawn(async move {
            let steps = (TTL / 3).as_millis() / STEP.as_millis();
            let at_once = senders.len().div_ceil(usize::try_from(steps).unwrap_or(1));
            let mut ticks = interval(STEP);
            loop {
                for some in senders.chunks(at_once) {
                    ticks.tick().await;
                    // The count of the answers reveals a stream that has ended or takes no keep-alives.
                    some.iter().for_each(|sender| drop(sender.try_send(keep_alive())));
                }
            }
        });
        Alive { _tasks: tasks, heard }
    }
}
