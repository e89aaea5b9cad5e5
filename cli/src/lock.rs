//! `rollcall lock`.

use std::future::pending;
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use rollcall::{Client, Error, Lock, LockGuard, LockState, Place, Reason};
use rustix::process::Signal;
use tokio::time::{sleep, sleep_until};

use super::args::LockArgs;
use super::child::{Child, Signals, code};
use super::deadline::Notice;
use super::escape::escaped;
use super::exit::{Failure, LOCK_LOST, Outcome};
use super::leash::Leash;
use super::term::{print, say};
use super::waiting::patiently;

/// Pause before the next attempt after one that found no replica within the time of a call, which may be very short.
const AGAIN: Duration = Duration::from_millis(100);

pub(crate) async fn run(client: &Client, args: LockArgs) -> Outcome {
    let notice = Notice::new(args.ttl, args.grace).map_err(Failure::usage)?;
    let mut signals = Signals::all()?;
    let mut lock = client.lock(&args.path).simultaneous(args.simultaneous).ttl(args.ttl);
    if let Some(name) = &args.name {
        lock = lock.name(name);
    }
    if !args.quiet && args.wait.is_some() {
        lock = lock.on_queued(tell_place);
    }
    let what = format!("the lock {}", args.path);
    let acquiring = patiently(client, &what, acquire(lock, args.wait));
    let guard = tokio::select! {
        guard = acquiring => guard.map_err(|error| Failure::of_lock(&error))?,
        signal = next_ending(&mut signals) => return Ok(ExitCode::from(exit_code(signal))),
    };
    if args.leave {
        let id = guard.leave();
        if let Err(failure) = print(&escaped(&id)) {
            // Nobody knows the id, so nobody else can release the lock. An error means that it is gone already, which
            // is just as good.
            let _ = client.release_lock(id).await;
            return Err(failure);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.command.is_empty() {
        return hold(&args.path, guard, &mut signals, args.quiet).await;
    }
    let token = guard.fencing_token().to_string();
    let environment = [("ROLLCALL_FENCING_TOKEN", token.as_str()), ("ROLLCALL_LOCK", &args.path)];
    let ended = match start(&args.command, environment) {
        Ok((child, leash)) => supervise(&guard, child, leash, notice, &mut signals).await,
        Err(failure) => Err(failure),
    };
    // A lost lock is reported by `Ended::Lost`. A lock that could not be released goes with its ttl.
    let released = guard.release().await;
    match ended? {
        Ended::ByItself(status) => {
            if let Err(error) = released {
                say(&format!("COMMAND has ended, but the lock could not be given back: {error}"));
            }
            Ok(code(status))
        }
        Ended::Lost(why) => {
            Err(Failure::new(LOCK_LOST, format!("lock {} is lost, and COMMAND was ended: {why}", args.path)))
        }
    }
}

/// Acquires the lock, or waits for it for as long as the user wants, even without a replica or ZooKeeper. A mere
/// attempt may take as long as any call.
async fn acquire(lock: Lock, wait: Option<Option<Duration>>) -> Result<LockGuard, Error> {
    let begun = Instant::now();
    let left = || match wait {
        None => Some(Duration::ZERO),
        Some(wait) => wait.map(|wait| wait.saturating_sub(begun.elapsed())),
    };
    loop {
        let acquired = match left() {
            Some(wait) => lock.clone().wait(wait).acquire().await,
            None => lock.clone().acquire().await,
        };
        let is_in_vain = match &acquired {
            Err(Error::Unreachable { .. }) => true,
            Err(error) => matches!(error.reason(), Some(Reason::BackendUnavailable | Reason::Draining)),
            Ok(_) => false,
        };
        if !is_in_vain || left() == Some(Duration::ZERO) {
            return acquired;
        }
        sleep(AGAIN).await;
    }
}

/// Starts the leash and then COMMAND, which never runs without the leash.
fn start(command: &[String], environment: [(&'static str, &str); 2]) -> Result<(Child, Leash), Failure> {
    let leash = Leash::start()?;
    match Child::start(command, environment) {
        Ok(child) => Ok((child, leash)),
        Err(failure) => {
            leash.release();
            Err(failure)
        }
    }
}

fn tell_place(place: &Place) {
    // If nobody holds the lock, the turn comes at once.
    if !place.holders.is_empty() {
        say(&format!("place {} in the queue, held by {}", place.position, place.holders.join(", ")));
    }
}

async fn next_ending(signals: &mut Signals) -> Signal {
    loop {
        let signal = signals.next().await;
        if super::child::is_ending(signal) {
            return signal;
        }
    }
}

fn exit_code(signal: Signal) -> u8 {
    u8::try_from(128 + signal.as_raw()).unwrap_or(1)
}

/// Holds the lock until a signal.
async fn hold(path: &str, guard: LockGuard, signals: &mut Signals, quiet: bool) -> Outcome {
    if !quiet {
        print(&format!("held token={}", guard.fencing_token()))?;
    }
    tokio::select! {
        _ = next_ending(signals) => {
            guard.release().await.map_err(|error| Failure::of_lock(&error))?;
            Ok(ExitCode::SUCCESS)
        }
        reason = guard.lost() => Err(Failure::new(LOCK_LOST, format!("lock {path} is lost: {reason}"))),
    }
}

/// How COMMAND ended.
enum Ended {
    ByItself(ExitStatus),
    Lost(String),
}

/// The state of supervision.
enum Phase {
    Running,
    /// The lock is lost, or runs out. SIGTERM was sent.
    Ending {
        kill_at: Instant,
        why: String,
    },
    Killed {
        why: String,
    },
}

/// Waits for the end of COMMAND, and makes sure that COMMAND ends before the lock does.
async fn supervise(
    guard: &LockGuard,
    mut child: Child,
    mut leash: Leash,
    notice: Notice,
    signals: &mut Signals,
) -> Result<Ended, Failure> {
    let mut states = guard.states();
    let mut phase = Phase::Running;
    // The time until which the lock was certain, by the last state that gave one.
    let mut until = until_of(&guard.state()).unwrap_or_else(Instant::now);
    leash.guard(child.group(), notice.kill_at(until));
    let status = loop {
        let state = states.borrow_and_update().clone();
        let now = Instant::now();
        if let Phase::Running = phase {
            if let Some(new) = until_of(&state) {
                if new != until {
                    until = new;
                    leash.prolong(notice.kill_at(until));
                }
                if now >= notice.term_at(until) {
                    phase = Phase::Ending {
                        kill_at: notice.kill_at(until),
                        why: "no replica could renew it in time".to_owned(),
                    };
                }
            } else if let LockState::Lost { reason } = &state {
                // Others may get the lock at any moment, so COMMAND has only a short time to end.
                phase =
                    Phase::Ending { kill_at: notice.kill_at(until).min(now + notice.margin), why: reason.to_string() };
            }
            if let Phase::Ending { .. } = phase {
                child.signal(Signal::TERM);
            }
        }
        if let Phase::Ending { kill_at, why } = &mut phase
            && now >= *kill_at
        {
            child.signal(Signal::KILL);
            phase = Phase::Killed { why: std::mem::take(why) };
        }
        let wake = match &phase {
            Phase::Running => Some(notice.term_at(until)),
            Phase::Ending { kill_at, .. } => Some(*kill_at),
            Phase::Killed { .. } => None,
        };
        tokio::select! {
            biased;
            status = child.wait() => break status?,
            () = async { match wake { Some(at) => sleep_until(at.into()).await, None => pending().await } } => {}
            changed = states.changed(), if matches!(phase, Phase::Running) => drop(changed),
            signal = signals.next() => child.signal(signal),
        }
    };
    let ended = match phase {
        Phase::Running => Ended::ByItself(status),
        Phase::Ending { why, .. } | Phase::Killed { why } => {
            child.kill_the_rest();
            Ended::Lost(why)
        }
    };
    leash.release();
    Ok(ended)
}

fn until_of(state: &LockState) -> Option<Instant> {
    match state {
        LockState::Held { until } | LockState::Suspended { until } => Some(*until),
        _ => None,
    }
}
