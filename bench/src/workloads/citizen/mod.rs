//! How each flood of hostile clients affects a well-behaved client, the citizen.

mod trial;

use std::time::Duration;

use rollcall_tests::hostile::Flood;

use self::trial::Trial;
use super::{Rounds, Workload, grouped};
use crate::progress;
use crate::report::{ALONE, Case, ROLLCALL, Round, Unit};
use crate::systems::Setup;

/// The workload. It prepares nothing: each round is complete in itself.
#[derive(Debug)]
pub(crate) struct Citizen;

impl Workload for Citizen {
    const NAME: &str = "citizen";
    const NOTE: &str = "a client that asks for little, beside one that floods the server; a ZooKeeper and a server of its own for each flood. \
         The citizen holds a registration with a ttl of 5 s and keeps it alive each second, watches, reads every 50 ms, and \
         each second reads a path that nobody has read, registers a new name, takes a lock and gives it back; every two \
         seconds a client with a ttl of 1 s dies. The flood is a process at the lowest priority (nice 19), unless --nice says otherwise: client, \
         server and flood share the processors. `spin` is such a process that spins and asks nothing of the server, for \
         comparison: what it costs the citizen is the machine's. A call that fails counts as 10 s, the longest that the \
         citizen waits. Keep-alive: the latest answer. Expiry: how late the registration of a dead client is removed; none where none could register. \
         Missed: registrations that the citizen was told of, and that are not there. After: memory as soon as it is back \
         within a tenth, or a minute after the flood.";
    const ROUNDS: Rounds = Rounds::Cold(1);
    /// The round first makes a million nodes, and a flood may leave much behind.
    const LIMIT: Duration = Duration::from_secs(3 * 3600);

    async fn prepare(_setup: &Setup) -> anyhow::Result<Citizen> {
        Ok(Citizen)
    }

    async fn round(&mut self, setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
        for flood in &setup.floods().kinds {
            progress(&format!("{}: {flood}", Citizen::NAME));
            let trial = Trial::run(setup, *flood, 16 * round.time).await?;
            progress(&format!("{}: {flood}: {}", Citizen::NAME, trial.log));
            report(round, *flood, &trial);
        }
        Ok(())
    }
}

fn report(round: &mut Round<'_>, flood: Flood, trial: &Trial) {
    let mut add = |figure: &str, unit, system, value| {
        round.add(&Case { workload: Citizen::NAME, name: format!("{figure}: {flood}"), unit }, system, value);
    };
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    add("Get p50", Unit::Milliseconds, ROLLCALL, milliseconds(trial.beside.get_p50));
    add("Get p50", Unit::Milliseconds, ALONE, milliseconds(trial.alone.get_p50));
    add("Get p99", Unit::Milliseconds, ROLLCALL, milliseconds(trial.beside.get_p99));
    add("Get p99", Unit::Milliseconds, ALONE, milliseconds(trial.alone.get_p99));
    add("new path, p99", Unit::Milliseconds, ROLLCALL, milliseconds(trial.beside.new_path));
    add("register, p99", Unit::Milliseconds, ROLLCALL, milliseconds(trial.beside.register));
    add("lock, p99", Unit::Milliseconds, ROLLCALL, milliseconds(trial.beside.lock));
    add("keep-alive", Unit::Milliseconds, ROLLCALL, milliseconds(trial.beside.keep_alive));
    if let Some(expiry) = trial.beside.expiry {
        add("expiry", Unit::Milliseconds, ROLLCALL, milliseconds(expiry));
    }
    add("failed", Unit::Count, ROLLCALL, trial.failed as f64);
    add("missed", Unit::Count, ROLLCALL, trial.missed as f64);
    add("sessions lost", Unit::Count, ROLLCALL, trial.sessions_lost as f64);
    add("memory, peak", Unit::Megabytes, ROLLCALL, megabytes(trial.memory_peak));
    add("memory, after", Unit::Megabytes, ROLLCALL, megabytes(trial.memory_after));
    add("memory, after", Unit::Megabytes, ALONE, megabytes(trial.memory_before));
    add("processor", Unit::PercentOfCore, ROLLCALL, trial.processor * 1e2);
    add("end", Unit::Seconds, ROLLCALL, trial.end.as_secs_f64());
}

/// Formats a time for a log line.
fn shown(time: Duration) -> String {
    match time.as_millis() {
        0..10 => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        milliseconds => format!("{} ms", grouped(usize::try_from(milliseconds).unwrap_or(usize::MAX))),
    }
}
