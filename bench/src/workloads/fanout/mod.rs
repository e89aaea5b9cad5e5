//! One change, sent to many watchers.

mod crowd;
mod stalled;
mod target;

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::time::sleep;

use super::{Rounds, Workload, grouped};
use crate::http2::WINDOW;
use crate::progress;
use crate::report::{Case, ETCD, ETCD_STREAMS, ROLLCALL, Round, System, Unit};
use crate::stats::Latencies;
use crate::systems::Setup;
use crate::usage::{self, Meter, Taken};
use crowd::Crowd;
pub(crate) use stalled::Stalled;
use target::Target;

/// The number of watchers and of their connections.
const SHAPES: [(usize, usize); 8] =
    [(100, 1), (1_000, 10), (1_000, 100), (1_000, 1_000), (10_000, 1), (10_000, 10), (10_000, 100), (10_000, 1_000)];
/// The minimum and maximum number of counted changes of a shape; the time decides.
const CHANGES: RangeInclusive<usize> = 20..=200;
/// Number of changes before the counted ones, so that memory allocated by the first use does not count.
const WARM_UP: usize = 5;
/// The duration of the measurement of a shape, in times of a round.
const TIMES: u32 = 4;
/// Time from the last event to the measurement of memory.
const SETTLED: Duration = Duration::from_millis(300);

/// The system that is watched, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Rollcall,
    /// As etcd's own client does it: one stream a connection, all watches on it.
    Etcd,
    EtcdStreams,
}

/// The measurements of one shape.
struct Figures {
    latencies: Latencies,
    taken: Taken,
    /// The bytes of all watchers together.
    memory: u64,
}

/// The workload. It prepares nothing: each round is complete in itself.
#[derive(Debug)]
pub(crate) struct Fanout;

impl Workload for Fanout {
    const NAME: &str = "fanout";
    const NOTE: &str = "watchers over connections. Each case has a server and an etcd of its own, which have just started. A path \
         has 10 children; one of them is set (Put; etcd: Put), 20 to 200 times, as there is time for, each when the last watcher has heard of \
         the one before: times are from just before the write to the last watcher, and of fewer than 100 the p99 is the \
         slowest. Of Rollcall each watcher is a stream. etcd: \
         the keys below a prefix are watched, as clientv3 does it, on one stream a connection; `a stream each`: each \
         watch on a stream of its own. Processor: of an event delivered, all that the system is, which with Rollcall is \
         the server and ZooKeeper. Memory: what VmRSS of the server has grown by from before the first connection to \
         after the last change, divided by the watchers. All watchers are one program that speaks HTTP/2 by hand and \
         counts messages without a look into them; still it shares the cores with what is measured, and events/s are \
         what both reach together.";
    const ROUNDS: Rounds = Rounds::Cold(2);

    async fn prepare(_setup: &Setup) -> anyhow::Result<Fanout> {
        Ok(Fanout)
    }

    async fn round(&mut self, setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
        let mut found = Vec::new();
        for shape in SHAPES {
            for way in round.turn([Way::Rollcall, Way::Etcd, Way::EtcdStreams]) {
                progress(&format!("{}: {}, {}", Fanout::NAME, way.system().0, name(shape)));
                let measured = measure(setup, way, shape, TIMES * round.time).await;
                found.push((shape, way, measured.with_context(|| format!("{way:?}, {}", name(shape)))?));
            }
        }
        // One figure after the other, for the reader of the report.
        for figure in Figure::ALL {
            for (shape, way, figures) in &found {
                let (unit, value) = figure.of(figures, shape.0)?;
                let case = Case { workload: Fanout::NAME, name: format!("{}{}", figure.prefix(), name(*shape)), unit };
                round.add(&case, way.system(), value);
            }
        }
        Ok(())
    }
}

impl Way {
    fn system(self) -> System {
        match self {
            Way::Rollcall => ROLLCALL,
            Way::Etcd => ETCD,
            Way::EtcdStreams => ETCD_STREAMS,
        }
    }
}

/// The reported figures of each shape.
#[derive(Clone, Copy)]
enum Figure {
    Events,
    Percentile(usize),
    Processor,
    Memory,
}

impl Figure {
    const ALL: [Figure; 6] = [
        Figure::Events,
        Figure::Percentile(50),
        Figure::Percentile(99),
        Figure::Percentile(100),
        Figure::Processor,
        Figure::Memory,
    ];

    fn prefix(self) -> &'static str {
        match self {
            Figure::Events => "events: ",
            Figure::Percentile(50) => "p50: ",
            Figure::Percentile(99) => "p99: ",
            Figure::Percentile(_) => "max: ",
            Figure::Processor => "processor: ",
            Figure::Memory => "memory: ",
        }
    }

    fn of(self, figures: &Figures, watchers: usize) -> anyhow::Result<(Unit, f64)> {
        Ok(match self {
            Figure::Events => (Unit::PerSecond, figures.taken.rate()),
            Figure::Percentile(percent) => {
                let time = figures.latencies.percentile(percent).context("nothing was measured")?;
                (Unit::Milliseconds, time.as_secs_f64() * 1e3)
            }
            Figure::Processor => (Unit::Microseconds, figures.taken.processor_each()),
            Figure::Memory => (Unit::Kilobytes, figures.memory as f64 / 1e3 / watchers as f64),
        })
    }
}

fn name((watchers, connections): (usize, usize)) -> String {
    format!("{} over {}", grouped(watchers), grouped(connections))
}

async fn measure(
    setup: &Setup,
    way: Way,
    (watchers, connections): (usize, usize),
    time: Duration,
) -> anyhow::Result<Figures> {
    let mut target = Target::start(setup, way, "/fanout").await?;
    let before = usage::memory(target.server())?.resident;
    let mut crowd = Crowd::gather(&target, way, watchers, connections, WINDOW).await?;
    let mut latencies = Latencies::default();
    for _ in 0..WARM_UP {
        one_change(&mut target, &mut crowd).await?;
    }
    let pids = target.pids().to_vec();
    let meter = Meter::start(&pids)?;
    let (mut changes, end) = (0, Instant::now() + time);
    while changes < *CHANGES.start() || changes < *CHANGES.end() && Instant::now() < end {
        latencies.push(one_change(&mut target, &mut crowd).await?);
        changes += 1;
    }
    let taken = meter.stop(changes * watchers)?;
    sleep(SETTLED).await;
    let memory = usage::memory(target.server())?.resident.saturating_sub(before);
    crowd.leave(WARM_UP + changes).await?;
    Ok(Figures { latencies, taken, memory })
}

/// Makes one change, and returns the time until every watcher has received it.
async fn one_change(target: &mut Target, crowd: &mut Crowd) -> anyhow::Result<Duration> {
    crowd.expect_one_each();
    let begin = Instant::now();
    let (written, heard) = tokio::join!(target.write(), crowd.all_have_heard());
    written?;
    Ok(heard? - begin)
}
