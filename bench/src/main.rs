//! `rollcall-bench`: Rollcall beside its peers, driven by one harness in one run.
//!
//! It starts ZooKeeper and a `rollcall-server` of its own, and everything else that a workload needs. Every workload
//! measures all systems in each round. Their order changes with the round, so that other work of the machine affects
//! all alike. The first round warms up and is not counted. Figures of different runs, or of different machines, can't
//! be compared; the ratios can.

mod aims;
mod case;
mod drive;
mod http2;
mod report;
mod stats;
mod systems;
mod table;
mod usage;
mod workloads;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Parser;
use rollcall_tests::hostile::{Flood, child};

use crate::report::Report;
use crate::systems::{Floods, Setup};
use crate::workloads::Name;

/// The argument that makes this program a flood: see [`child`].
const FLOOD: &str = "flood";

/// Measures Rollcall and its peers over loopback in one run: a table on stdout, progress on stderr.
#[derive(Debug, Parser)]
#[command(name = "rollcall-bench", version)]
struct Args {
    /// How many rounds are counted; one more warms up. What takes long does with fewer
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// How long each measurement of a round takes
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5)]
    seconds: f64,

    /// Only this workload; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<Name>,

    /// Of the workload `citizen`: only this flood; may be repeated
    #[arg(long, value_name = "NAME", value_parser = flood)]
    flood: Vec<Flood>,

    /// Of the workload `citizen`: at which priority the floods run; 19 is the lowest
    #[arg(long, value_name = "N", default_value_t = 19, value_parser = clap::value_parser!(u8).range(0..=19))]
    nice: u8,

    /// Writes the report with every sample as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// The server to measure; without it, the one that was built beside this program
    #[arg(long, value_name = "FILE", env = "ROLLCALL_SERVER_BIN")]
    server: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((FLOOD, order)) = arguments.split_first().map(|(first, order)| (first.as_str(), order)) {
        child::run_process(order);
        return Ok(());
    }
    measure(Args::parse())
}

#[tokio::main]
async fn measure(args: Args) -> anyhow::Result<()> {
    ensure!((0.05..=60.0).contains(&args.seconds), "--seconds must be between 0.05 and 60");
    if cfg!(debug_assertions) {
        progress("this is a debug build: its figures say nothing");
    }

    progress("starting ZooKeeper and rollcall-server");
    let kinds = if args.flood.is_empty() { Flood::ALL.to_vec() } else { args.flood };
    let floods = Floods { kinds, nice: args.nice };
    let setup = Setup::start(args.server, floods).await?;
    let mut report = Report::new(setup.facts(), args.rounds, args.seconds);
    report.notes.push(("all", workloads::NOTE));
    let names = if args.only.is_empty() { Name::ALL.to_vec() } else { args.only };
    for name in names {
        name.run(&setup, args.rounds, &mut report).await?;
    }
    if let Some(file) = args.json {
        write_file(&file, &format!("{:#}\n", report.json()))?;
    }
    write!(std::io::stdout(), "{report}").context("can't write to stdout")
}

fn flood(name: &str) -> Result<Flood, String> {
    let names = || Flood::ALL.iter().map(|flood| flood.name()).collect::<Vec<_>>().join(", ");
    Flood::named(name).ok_or_else(|| format!("not one of {}", names()))
}

fn write_file(file: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("can't write {}", file.display()))
}

/// Prints the progress of the run on stderr.
fn progress(line: &str) {
    // stderr may be closed; that is no reason to stop.
    drop(writeln!(std::io::stderr(), "rollcall-bench: {line}"));
}
