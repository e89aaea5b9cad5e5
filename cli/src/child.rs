//! COMMAND: it has a process group of its own, and signals are passed on to it.

use std::ffi::OsStr;
use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, ExitStatus, Stdio};

use rustix::process::{Pid, Signal};
use tokio::process::Command;
use tokio::signal::unix::{self, SignalKind};

use super::exit::{CANNOT_RUN, Failure, NOT_FOUND};
use super::group::Group;

/// The signals that ask a process to end, and those with another meaning.
const ENDING: [(Signal, SignalKind); 4] = [
    (Signal::INT, SignalKind::interrupt()),
    (Signal::TERM, SignalKind::terminate()),
    (Signal::HUP, SignalKind::hangup()),
    (Signal::QUIT, SignalKind::quit()),
];
const OTHER: [(Signal, SignalKind); 2] =
    [(Signal::USR1, SignalKind::user_defined1()), (Signal::USR2, SignalKind::user_defined2())];

/// The signals that are sent to this command. A signal that was ignored when this command was started, as by `nohup`,
/// stays ignored, also by COMMAND.
pub(crate) struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    /// Listens to the signals that ask a process to end.
    pub(crate) fn ending() -> Result<Self, Failure> {
        Self::listen(&ENDING)
    }

    /// Listens to all signals that are passed on.
    pub(crate) fn all() -> Result<Self, Failure> {
        Self::listen(&[&ENDING[..], &OTHER[..]].concat())
    }

    fn listen(kinds: &[(Signal, SignalKind)]) -> Result<Self, Failure> {
        let ignored = ignored();
        let kinds = kinds.iter().filter(|(signal, _)| ignored & (1 << (signal.as_raw() - 1)) == 0);
        let listen = |(signal, kind): &(Signal, SignalKind)| Ok((*signal, unix::signal(*kind)?));
        Ok(Self(kinds.map(listen).collect::<Result<_, std::io::Error>>()?))
    }

    /// The next signal.
    ///
    /// # Cancellation
    /// Safe.
    pub(crate) async fn next(&mut self) -> Signal {
        let Self(signals) = self;
        std::future::poll_fn(|context| {
            for (signal, stream) in signals.iter_mut() {
                if stream.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*signal);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// The signals that this process ignores, as a bit set; empty when the system does not show them.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or_default()
}

/// Whether a signal asks a process to end.
pub(crate) fn is_ending(signal: Signal) -> bool {
    ENDING.iter().any(|(ending, _)| *ending == signal)
}

/// The running COMMAND.
pub(crate) struct Child(Group);

impl Child {
    /// Starts COMMAND, with additions to its environment.
    pub(crate) fn start(
        command: &[String],
        environment: impl IntoIterator<Item = (&'static str, impl AsRef<OsStr>)>,
    ) -> Result<Self, Failure> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(Failure::usage("there is no COMMAND"));
        };
        let mut command = Command::new(program);
        command.args(arguments).envs(environment);
        // A process group that is not the terminal's foreground group would be stopped when it reads from the terminal.
        if std::io::stdin().is_terminal() {
            command.stdin(Stdio::null());
        }
        let group = Group::spawn(&mut command).map_err(|error| {
            let code = if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN };
            Failure::new(code, format!("can't run {program}: {error}"))
        })?;
        Ok(Self(group))
    }

    pub(crate) fn group(&self) -> Pid {
        self.0.id()
    }

    /// Waits for the end of COMMAND.
    ///
    /// # Cancellation
    /// Safe.
    pub(crate) async fn wait(&mut self) -> Result<ExitStatus, Failure> {
        Ok(self.0.wait().await?)
    }

    /// Sends a signal to COMMAND and everything that it has started, unless its end was already waited for.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.0.is_running() {
            self.0.signal(signal);
        }
    }

    /// Kills the rest of the group after COMMAND itself has ended.
    pub(crate) fn kill_the_rest(&self) {
        self.0.signal(Signal::KILL);
    }
}

/// COMMAND's exit code, as a shell gives it.
pub(crate) fn code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
