//! COMMAND: a process group of its own, to which signals are passed on.

use std::ffi::OsStr;
use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;
use tokio::signal::unix::{self, SignalKind};

use super::exit::{CANNOT_RUN, Failure, NOT_FOUND};

/// The signals that ask to end, and those that mean something else.
const ENDING: [(Signal, SignalKind); 4] = [
    (Signal::INT, SignalKind::interrupt()),
    (Signal::TERM, SignalKind::terminate()),
    (Signal::HUP, SignalKind::hangup()),
    (Signal::QUIT, SignalKind::quit()),
];
const OTHER: [(Signal, SignalKind); 2] =
    [(Signal::USR1, SignalKind::user_defined1()), (Signal::USR2, SignalKind::user_defined2())];

/// The signals that are sent to this command.
pub(crate) struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    /// Those that ask to end.
    pub(crate) fn ending() -> Result<Self, Failure> {
        Self::listen(&ENDING)
    }

    /// All that are passed on.
    pub(crate) fn all() -> Result<Self, Failure> {
        Self::listen(&[&ENDING[..], &OTHER[..]].concat())
    }

    fn listen(kinds: &[(Signal, SignalKind)]) -> Result<Self, Failure> {
        let listen = |(signal, kind): &(Signal, SignalKind)| Ok((*signal, unix::signal(*kind)?));
        Ok(Self(kinds.iter().map(listen).collect::<Result<_, std::io::Error>>()?))
    }

    /// The next one.
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

/// Whether a signal asks to end.
pub(crate) fn is_ending(signal: Signal) -> bool {
    ENDING.iter().any(|(ending, _)| *ending == signal)
}

/// COMMAND, running.
pub(crate) struct Child {
    process: tokio::process::Child,
    group: Pid,
}

impl Child {
    /// Starts it, with more in its environment.
    pub(crate) fn start(
        command: &[String],
        environment: impl IntoIterator<Item = (&'static str, impl AsRef<OsStr>)>,
    ) -> Result<Self, Failure> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(Failure::usage("there is no COMMAND"));
        };
        let mut command = Command::new(program);
        command.args(arguments).envs(environment).process_group(0);
        // A group that is not the terminal's would be stopped when it reads from there.
        if std::io::stdin().is_terminal() {
            command.stdin(Stdio::null());
        }
        let process = command.spawn().map_err(|error| {
            let code = if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN };
            Failure::new(code, format!("can't run {program}: {error}"))
        })?;
        let group = process.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let group = group.ok_or_else(|| Failure::new(CANNOT_RUN, format!("{program} has no process id")))?;
        Ok(Self { process, group })
    }

    pub(crate) fn group(&self) -> Pid {
        self.group
    }

    /// Waits for its end.
    ///
    /// # Cancellation
    /// Safe.
    pub(crate) async fn wait(&mut self) -> Result<ExitStatus, Failure> {
        Ok(self.process.wait().await?)
    }

    /// Sends a signal to it and all that it has started, as long as it was not waited for.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.process.id().is_some() {
            // It may have ended by itself.
            let _ = kill_process_group(self.group, signal);
        }
    }

    /// Kills what is left of its group after its own end.
    pub(crate) fn kill_the_rest(&self) {
        // Mostly nobody is left.
        let _ = kill_process_group(self.group, Signal::KILL);
    }
}

/// COMMAND's code, as a shell gives it.
pub(crate) fn code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
