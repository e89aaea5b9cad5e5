//! One flood: the citizen is measured alone, beside the flood, and after it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rollcall_tests::hostile::child::{FloodProcess, Order};
use rollcall_tests::hostile::citizen::{Act, Citizen, Patience};
use rollcall_tests::hostile::{Flood, Load, Size, Target, prepare};
use rollcall_tests::process::Signal;
use rollcall_tests::zookeeper_witness::Witness;
use tokio::time::{Instant, sleep};

use super::shown;
use crate::stats::Latencies;
use crate::systems::{Fsync, Rollcall, Setup, ZooKeeper};
use crate::usage::{Meter, memory};

/// Time after which the citizen gives up a call, or the expiry of a registration.
const PATIENCE: Patience = Patience { call: Duration::from_secs(10), expiry: Duration::from_secs(60) };
/// Duration of the measurement without the flood.
const ALONE: Duration = Duration::from_secs(10);
/// Time after the end of the flood in which the citizen is still measured, since the remains of a flood count too.
const AFTERMATH: Duration = Duration::from_secs(4);
/// Time in which the server has to free its memory.
const SETTLING: Duration = Duration::from_secs(60);
/// Time in which a server has to end: its drain takes 10 s at most.
const LONGEST_END: Duration = Duration::from_secs(40);
/// The path where each replica lists its sessions.
const FENCES: &str = "/.rollcall/fences";

/// The citizen's measurements in one interval.
#[derive(Debug)]
pub(super) struct Noticed {
    pub(super) get_p50: Duration,
    pub(super) get_p99: Duration,
    /// The 99th percentile of the other calls. With so few of them it is the longest.
    pub(super) new_path: Duration,
    pub(super) register: Duration,
    pub(super) lock: Duration,
    pub(super) keep_alive: Duration,
    /// `None` where no registration succeeded.
    pub(super) expiry: Option<Duration>,
}

/// The measurements of one flood.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) alone: Noticed,
    pub(super) beside: Noticed,
    /// Failed calls and missed registrations, until the end of the trial.
    pub(super) failed: usize,
    pub(super) missed: usize,
    pub(super) memory_before: u64,
    pub(super) memory_peak: u64,
    pub(super) memory_after: u64,
    /// The processor use of the server during the flood, in cores.
    pub(super) processor: f64,
    pub(super) sessions_lost: usize,
    /// The time from SIGTERM to the server's end. A server that takes too long is killed.
    pub(super) end: Duration,
    /// The trial in words.
    pub(super) log: String,
}

impl Trial {
    /// Runs one flood for `time`, or for as long as this kind of flood needs.
    pub(super) async fn run(setup: &Setup, flood: Flood, time: Duration) -> anyhow::Result<Trial> {
        let time = match flood {
            Flood::MassRegistrations => 4 * time,
            Flood::StoppedWatcher | Flood::ManyStreams => 2 * time,
            _ => time,
        };
        let zookeeper = ZooKeeper::start(Fsync::On).await?;
        let servers = zookeeper.address().to_string();
        Witness::connect(&servers).await.create("/citizens", b"").await;
        let hosts = format!("{servers}/citizens");
        let zk = Witness::connect(&hosts).await;
        prepare(flood, Load::new(Size::Full, time), &zk).await;
        let mut rollcall = Rollcall::serving(setup.program(), &hosts).await?;
        let citizen = Citizen::start(rollcall.address(), zk.clone(), PATIENCE).await;
        sleep(Duration::from_secs(1)).await;

        let alone = Instant::now();
        sleep(ALONE).await;
        let (sessions, before) = (sessions(&zk).await, memory(rollcall.pid())?.resident);
        let begin = Instant::now();
        let target = Target { grpc: rollcall.address(), http: rollcall.http() };
        let order = Order { flood, target, size: Size::Full, time };
        let flooded = flooded(&rollcall, order, setup.floods().nice).await?;
        sleep(AFTERMATH).await;
        let end = Instant::now();
        let after = settled(&rollcall, before).await?;
        // Calls that were in flight at the end of the flood are over by then.
        while end.elapsed() < PATIENCE.call {
            sleep(Duration::from_millis(100)).await;
        }
        let left = self::sessions(&zk).await;
        let (alone, beside) = (noticed(&citizen, alone, begin), noticed(&citizen, begin, end));
        let now = Instant::now();
        let quiet = noticed(&citizen, end, now);
        let (failed, missed) = (citizen.failures(begin, now).len(), citizen.missed(begin, now).len());
        let details = details(&citizen, begin, now);
        let log = format!(
            "{}; slowest Gets: {}; Get p99 {} alone, {} beside, {} after; {details}",
            flooded.done,
            slowest(&citizen, begin, end),
            shown(alone.get_p99),
            shown(beside.get_p99),
            shown(quiet.get_p99)
        );
        drop(citizen);
        let ended = ended(&mut rollcall).await;
        Ok(Trial {
            alone,
            beside,
            failed,
            missed,
            memory_before: before,
            memory_peak: flooded.peak,
            memory_after: after,
            processor: flooded.processor,
            sessions_lost: sessions.difference(&left).count(),
            end: ended,
            log,
        })
    }
}

/// Measurements of the server during a flood.
struct Flooded {
    done: String,
    peak: u64,
    processor: f64,
}

async fn flooded(rollcall: &Rollcall, order: Order, nice: u8) -> anyhow::Result<Flooded> {
    let pids = [rollcall.pid()];
    let meter = Meter::start(&pids)?;
    let program = std::env::current_exe()?;
    let flood = FloodProcess::spawn(&program, &[crate::FLOOD], order, nice);
    let mut flood = std::pin::pin!(flood.finish());
    let mut peak = 0;
    let done = loop {
        tokio::select! {
            done = &mut flood => break done,
            () = sleep(Duration::from_millis(50)) => peak = peak.max(memory(rollcall.pid())?.resident),
        }
    };
    let taken = meter.stop(1)?;
    Ok(Flooded { done, peak, processor: taken.processor.as_secs_f64() / taken.time.as_secs_f64() })
}

/// The server's memory, in bytes, once it is within a tenth of `before`, or after [`SETTLING`].
async fn settled(rollcall: &Rollcall, before: u64) -> anyhow::Result<u64> {
    let begin = Instant::now();
    loop {
        let resident = memory(rollcall.pid())?.resident;
        if resident * 10 <= before * 11 || begin.elapsed() > SETTLING {
            return Ok(resident);
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// The ZooKeeper sessions with a fence of the server; none when ZooKeeper does not answer.
async fn sessions(zk: &Witness) -> BTreeSet<String> {
    zk.client().list_children(FENCES).await.into_iter().flatten().collect()
}

fn noticed(citizen: &Citizen, from: Instant, to: Instant) -> Noticed {
    let measured = |act, percent| {
        let mut latencies = Latencies::default();
        citizen.times(act, from, to).into_iter().for_each(|time| latencies.push(time));
        latencies.percentile(percent)
    };
    let percentile = |act, percent| measured(act, percent).unwrap_or_default();
    Noticed {
        get_p50: percentile(Act::Get, 50),
        get_p99: percentile(Act::Get, 99),
        new_path: percentile(Act::FreshGet, 99),
        register: percentile(Act::Register, 99).max(percentile(Act::Watch, 99)),
        lock: percentile(Act::Lock, 99),
        keep_alive: percentile(Act::KeepAlive, 100),
        expiry: measured(Act::Expire, 100),
    }
}

/// The begin of the slowest Gets, since the begin of the flood, and their durations.
fn slowest(citizen: &Citizen, from: Instant, to: Instant) -> String {
    let slowest = citizen.slowest(Act::Get, from, to, 5);
    let shown = slowest.into_iter().map(|(at, took)| format!("{} at {:.1} s", shown(took), at.as_secs_f64()));
    shown.collect::<Vec<_>>().join(", ")
}

/// The failures in words: the count of each kind, and an example.
fn details(citizen: &Citizen, from: Instant, to: Instant) -> String {
    let mut failures: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for (act, why) in citizen.failures(from, to) {
        failures.entry(format!("{act:?}")).or_insert((0, why)).0 += 1;
    }
    let mut details: Vec<String> =
        failures.into_iter().map(|(act, (count, why))| format!("{count} {act} failed ({why})")).collect();
    if let Some(first) = citizen.missed(from, to).first() {
        details.push(format!("missed: {first}"));
    }
    if details.is_empty() { "nothing failed".to_owned() } else { details.join("; ") }
}

/// Sends SIGTERM to the server, and returns how long it takes to end.
async fn ended(rollcall: &mut Rollcall) -> Duration {
    let begin = Instant::now();
    rollcall.process().signal(Signal::TERM);
    while rollcall.process().exited().is_none() && begin.elapsed() < LONGEST_END {
        sleep(Duration::from_millis(20)).await;
    }
    let took = begin.elapsed();
    rollcall.process().kill();
    took
}
