//! `rollcall-bench`: Rollcall beside its peers, driven by one harness in one run.
//!
//! It starts ZooKeeper and a `rollcall-server` of its own. Every workload measures all systems in each round, in an
//! order that turns with the round, so that what else the machine does hits all alike. The first round warms up and is
//! not counted. Figures of different runs, or of different machines, are not to be compared; the ratios may be.

mod drive;
mod report;
mod setup;
mod stats;
mod table;
mod workloads;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser;
use tokio::time::timeout;

use crate::report::Report;
use crate::setup::Setup;
use crate::workloads::{Name, Workload};

/// Measures Rollcall and its peers over loopback in one run: a table on stdout, progress on stderr.
#[derive(Debug, Parser)]
#[command(name = "rollcall-bench", version)]
struct Args {
    /// How many rounds are counted; one more warms up
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// How long each measurement of a round takes
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5)]
    seconds: f64,

    /// Only this workload; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<Name>,

    /// Writes the report with every sample as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// The server to measure; without it, the one that was built beside this program
    #[arg(long, value_name = "FILE", env = "ROLLCALL_SERVER_BIN")]
    server: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!((0.05..=60.0).contains(&args.seconds), "--seconds must be between 0.05 and 60");
    let time = Duration::from_secs_f64(args.seconds);
    if cfg!(debug_assertions) {
        progress("this is a debug build: its figures say nothing");
    }

    progress("starting ZooKeeper and rollcall-server");
    let setup = Setup::start(args.server).await?;
    let mut report = Report::new(setup.facts(), args.rounds, args.seconds);
    let names = if args.only.is_empty() { Name::ALL.to_vec() } else { args.only };
    let mut workloads = Vec::new();
    for name in names {
        let prepared = Workload::prepare(name, &setup).await;
        workloads.push((name, prepared.with_context(|| format!("can't prepare {name}"))?));
    }
    let limit = Duration::from_secs(60) + 100 * time;
    for round in 0..=args.rounds {
        for (name, workload) in &mut workloads {
            match round {
                0 => progress(&format!("warming up: {name}")),
                _ => progress(&format!("round {round} of {}: {name}", args.rounds)),
            }
            let mut samples = report.round(round);
            let measured = timeout(limit, workload.round(round, time, &mut samples)).await;
            measured
                .with_context(|| format!("{name} does not come to an end within {} s", limit.as_secs()))?
                .with_context(|| format!("{name}, round {round}"))?;
        }
    }
    if let Some(file) = args.json {
        std::fs::write(&file, format!("{:#}\n", report.json()))
            .with_context(|| format!("can't write {}", file.display()))?;
    }
    write!(std::io::stdout(), "{report}").context("can't write to stdout")
}

/// Says on stderr how far the run is.
fn progress(line: &str) {
    // Nobody may be listening: no reason to stop.
    drop(writeln!(std::io::stderr(), "rollcall-bench: {line}"));
}
