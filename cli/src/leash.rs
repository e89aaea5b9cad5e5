//! The leash: a separate process that ends COMMAND's process group when the lock's holder can't, because the holder was
//! killed, or stopped past the deadline.
//!
//! The leash is started before COMMAND, so that COMMAND never runs without it. It reads from its standard input first
//! the process group, then deadlines as milliseconds of the monotonic clock, and `done` when there is nothing left to
//! guard. When a deadline passes, or its input ends without `done`, it kills the group.

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use rustix::time::{ClockId, clock_gettime};
use std::os::unix::process::CommandExt as _;

use super::exit::{FAILED, Failure};
use super::orphans::Ours;

/// The word that ends the leash without killing.
const DONE: &str = "done";

/// The other end of the leash, in the process that holds the lock.
#[derive(Debug)]
pub(crate) struct Leash {
    process: std::process::Child,
    _ours: Ours,
}

impl Leash {
    /// Starts a leash, which guards nothing yet.
    pub(crate) fn start() -> Result<Self, Failure> {
        let process = program()?
            .arg("__leash")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A signal from the terminal that ends this process must not end the leash.
            .process_group(0)
            .spawn()
            .map_err(|error| Failure::new(FAILED, format!("can't start the leash of COMMAND: {error}")))?;
        let _ours = Ours::new(Pid::from_child(&process));
        Ok(Self { process, _ours })
    }

    /// Begins to guard a process group.
    pub(crate) fn guard(&mut self, group: Pid, until: Instant) {
        self.say(&group.as_raw_nonzero().to_string());
        self.prolong(until);
    }

    /// Moves the deadline.
    pub(crate) fn prolong(&mut self, until: Instant) {
        // The order matters: if this process is stopped between the two, the deadline gets earlier, not later.
        let now = monotonic();
        let left = until.saturating_duration_since(Instant::now());
        self.say(&(now + left).as_millis().to_string());
    }

    /// Ends the leash when there is nothing left to guard.
    pub(crate) fn release(mut self) {
        self.say(DONE);
        // The leash ends at once.
        let _ = self.process.wait();
    }

    fn say(&mut self, line: &str) {
        if let Some(input) = &mut self.process.stdin {
            // A leash that is gone has killed the group.
            let _ = writeln!(input, "{line}");
        }
    }
}

/// This program, even if its file was replaced or deleted after the start.
fn program() -> Result<Command, Failure> {
    const SELF: &str = "/proc/self/exe";
    let path = if Path::new(SELF).exists() { SELF.into() } else { std::env::current_exe()? };
    let mut command = Command::new(path);
    command.arg0("rollcall");
    Ok(command)
}

fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or_default();
    Duration::new(u64::try_from(now.tv_sec).unwrap_or_default(), nanos)
}

/// Runs the leash.
pub(crate) fn watch() -> ExitCode {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    // No group was given, so nothing was started.
    let Some(group) = lines.recv().ok().and_then(|line| Pid::from_raw(line.parse().ok()?)) else {
        return ExitCode::SUCCESS;
    };
    let mut deadline: Option<Duration> = None;
    loop {
        let left = deadline.map_or(Duration::from_secs(3600), |deadline| deadline.saturating_sub(monotonic()));
        match lines.recv_timeout(left) {
            Ok(line) if line == DONE => return ExitCode::SUCCESS,
            Ok(line) => deadline = line.parse().ok().map(Duration::from_millis).or(deadline),
            Err(RecvTimeoutError::Timeout) if deadline.is_none_or(|deadline| monotonic() < deadline) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    // The group may have ended by itself.
    let _ = kill_process_group(group, Signal::KILL);
    ExitCode::SUCCESS
}
