//! The workloads: one file or folder each. A workload prepares its nodes and connections once, and then measures all
//! systems in every round.

mod citizen;
mod embedded;
mod fanout;
mod get;
mod lock;
mod register;
mod watch;

use std::fmt;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use tokio::time::timeout;

use crate::progress;
use crate::report::{Report, Round};
use crate::systems::Setup;

/// The note about every run.
pub(crate) const NOTE: &str = "one ZooKeeper (its sample configuration) and one rollcall-server (its default options), both logging warnings \
     only, share this machine with their clients over loopback. `zookeeper` is the crate zookeeper-client on one \
     session, which leaves TCP_NODELAY off: one request at a time is slower through it than ZooKeeper could answer; \
     rollcall-server has ZooKeeper sessions of its own, 4 at first.";

/// A workload, which measures several systems.
trait Workload: Sized {
    /// Its name in the report.
    const NAME: &str;
    /// How the systems are driven, for the reader of the report.
    const NOTE: &str;
    /// The number of rounds.
    const ROUNDS: Rounds = Rounds::AsAsked;
    /// Time in which a round has to end, beside its measurements.
    const LIMIT: Duration = Duration::from_secs(300);

    /// Makes the nodes and connections of the workload.
    async fn prepare(setup: &Setup) -> anyhow::Result<Self>;

    /// Measures every system once, each for about the round's time.
    async fn round(&mut self, setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()>;
}

/// The number of rounds of a workload.
#[derive(Clone, Copy, Debug)]
enum Rounds {
    /// The requested number, after one round to warm up.
    AsAsked,
    /// At most this many, and none to warm up: each round starts the systems anew, and takes long.
    Cold(u32),
}

/// The workloads' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Name {
    /// The embedded backend: start, memory, operations per second.
    Embedded,
    /// Registrations per second.
    Register,
    /// What 10,000 registrations with a ttl cost that stand.
    Hold,
    /// The time until 10,000 registrations of a replica that was killed are resumed on another.
    Resume,
    /// Reads of a path with 1, 100 or 1,000 children and their values, per second.
    Get,
    /// The time from a write to the event at one who watches.
    Watch,
    /// One change, told to up to 10,000 who watch.
    Fanout,
    /// The same, beside as many who have stopped reading.
    Stalled,
    /// Locks acquired and released, per second.
    Lock,
    /// The time from a release to the next holder; what 10,000 waiters cost.
    Queue,
    /// What a good citizen notices of clients that mean harm.
    Citizen,
}

impl Name {
    /// All, in the order of the report.
    pub(crate) const ALL: [Name; 11] = [
        Name::Embedded,
        Name::Register,
        Name::Hold,
        Name::Resume,
        Name::Get,
        Name::Watch,
        Name::Fanout,
        Name::Stalled,
        Name::Lock,
        Name::Queue,
        Name::Citizen,
    ];

    /// Prepares the workload, measures it in all its rounds, and frees its resources.
    pub(crate) async fn run(self, setup: &Setup, rounds: u32, report: &mut Report) -> anyhow::Result<()> {
        match self {
            Name::Embedded => run::<embedded::Embedded>(setup, rounds, report).await,
            Name::Register => run::<register::Register>(setup, rounds, report).await,
            Name::Hold => run::<register::Hold>(setup, rounds, report).await,
            Name::Resume => run::<register::Resume>(setup, rounds, report).await,
            Name::Get => run::<get::Get>(setup, rounds, report).await,
            Name::Watch => run::<watch::Watch>(setup, rounds, report).await,
            Name::Fanout => run::<fanout::Fanout>(setup, rounds, report).await,
            Name::Stalled => run::<fanout::Stalled>(setup, rounds, report).await,
            Name::Lock => run::<lock::Lock>(setup, rounds, report).await,
            Name::Queue => run::<lock::Queue>(setup, rounds, report).await,
            Name::Citizen => run::<citizen::Citizen>(setup, rounds, report).await,
        }
        .with_context(|| format!("{self} failed"))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        formatter.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// Formats a number below a million for the reader.
fn grouped(number: usize) -> String {
    match number {
        1_000.. => format!("{},{:03}", number / 1_000, number % 1_000),
        _ => number.to_string(),
    }
}

async fn run<W: Workload>(setup: &Setup, rounds: u32, report: &mut Report) -> anyhow::Result<()> {
    report.notes.push((W::NAME, W::NOTE));
    progress(&format!("{}: preparing", W::NAME));
    let mut workload = W::prepare(setup).await.context("can't prepare it")?;
    let numbers = match W::ROUNDS {
        Rounds::AsAsked => 0..=rounds,
        Rounds::Cold(most) => 1..=rounds.min(most),
    };
    for number in numbers.clone() {
        match number {
            0 => progress(&format!("{}: warming up", W::NAME)),
            _ => progress(&format!("{}: round {number} of {}", W::NAME, numbers.end())),
        }
        let mut round = report.round(number);
        let limit = W::LIMIT + 600 * round.time;
        let measured = timeout(limit, workload.round(setup, &mut round)).await;
        measured.with_context(|| format!("no end within {} s", limit.as_secs()))??;
    }
    Ok(())
}
