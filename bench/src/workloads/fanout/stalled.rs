//! One change, sent to watchers that read, with and without as many watchers beside them that do not.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::crowd::Crowd;
use super::target::Target;
use super::{Rounds, Way, Workload, grouped, one_change};
use crate::http2::WINDOW;
use crate::progress;
use crate::report::{Case, ROLLCALL, Round, System, Unit};
use crate::stats::Latencies;
use crate::systems::Setup;
use crate::usage::{Meter, Taken};

const WATCHERS: usize = 1_000;
/// Numbers of connections of the reading watchers; the stalled ones have as many of their own.
const CONNECTIONS: [usize; 3] = [1, 10, 100];
/// Window of a stream that is not read, in bytes: it takes the present state and a dozen changes.
const NARROW: u32 = 4 * 1024;
/// Number of changes that fill the window.
const WARM_UP: usize = 60;
/// The duration of the measurement, in times of a round; the two sides take turns.
const TIMES: u32 = 4;

/// A server without stalled watchers.
const ALONE: System = System("rollcall, none stalled");

/// The workload. It prepares nothing: each round is complete in itself.
#[derive(Debug)]
pub(crate) struct Stalled;

/// A server, its watchers, and their latencies.
struct Side {
    target: Target,
    crowd: Crowd,
    _stalled: Option<Crowd>,
    changes: usize,
    latencies: Latencies,
    taken: Taken,
}

impl Workload for Stalled {
    const NAME: &str = "stalled";
    const NOTE: &str = "as fanout, 1,000 who read, on two servers that take turns, change by change. On one as many watch besides, over \
         as many connections of their own, who have stopped reading: the windows of their streams are full. A ratio of 1 says \
         that nobody is slower for them. Processor: of the server alone, for an event delivered to one who reads.";
    const ROUNDS: Rounds = Rounds::Cold(3);

    async fn prepare(_setup: &Setup) -> anyhow::Result<Stalled> {
        Ok(Stalled)
    }

    async fn round(&mut self, setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
        for connections in CONNECTIONS {
            progress(&format!("{}: over {connections}", Stalled::NAME));
            let mut beside = Side::start(setup, connections, true).await?;
            let mut alone = Side::start(setup, connections, false).await?;
            for _ in 0..WARM_UP {
                beside.change().await?;
                alone.change().await?;
            }
            beside.forget();
            alone.forget();
            let end = Instant::now() + TIMES * round.time;
            while Instant::now() < end {
                for side in round.turn([&mut beside, &mut alone]) {
                    side.change().await?;
                }
            }
            for (system, side) in [(ROLLCALL, beside), (ALONE, alone)] {
                side.report(round, system, connections).await?;
            }
        }
        Ok(())
    }
}

impl Side {
    async fn start(setup: &Setup, connections: usize, has_stalled: bool) -> anyhow::Result<Side> {
        let path = if has_stalled { "/fanout-beside" } else { "/fanout-alone" };
        let target = Target::start(setup, Way::Rollcall, path).await?;
        let stalled = if has_stalled {
            Some(Crowd::gather(&target, Way::Rollcall, WATCHERS, connections, NARROW).await?)
        } else {
            None
        };
        let crowd = Crowd::gather(&target, Way::Rollcall, WATCHERS, connections, WINDOW).await?;
        let (latencies, taken) = (Latencies::default(), Taken::default());
        Ok(Side { target, crowd, _stalled: stalled, changes: 0, latencies, taken })
    }

    async fn change(&mut self) -> anyhow::Result<()> {
        let pids = [self.target.server()];
        let meter = Meter::start(&pids)?;
        self.latencies.push(one_change(&mut self.target, &mut self.crowd).await?);
        self.taken += meter.stop(WATCHERS)?;
        self.changes += 1;
        Ok(())
    }

    fn forget(&mut self) {
        (self.latencies, self.taken) = (Latencies::default(), Taken::default());
    }

    async fn report(self, round: &mut Round<'_>, system: System, connections: usize) -> anyhow::Result<()> {
        let percentile = |percent| {
            let time: Duration = self.latencies.percentile(percent).context("nothing was measured")?;
            anyhow::Ok(time.as_secs_f64() * 1e3)
        };
        let figures = [
            ("p50", Unit::Milliseconds, percentile(50)?),
            ("p99", Unit::Milliseconds, percentile(99)?),
            ("processor", Unit::Microseconds, self.taken.processor_each()),
        ];
        for (figure, unit, value) in figures {
            let name = format!("{figure}: {} over {connections}", grouped(WATCHERS));
            round.add(&Case { workload: Stalled::NAME, name, unit }, system, value);
        }
        self.crowd.leave(self.changes).await
    }
}
