//! The leash: a process of its own that ends COMMAND's process group when the lock's holder can't, because it was killed,
//! or stopped past the deadline.
//!
//! It reads deadlines from its standard input, as milliseconds of the monotonic clock, and `done` when nothing is left to
//! guard. When a deadline passes, or its input ends without that word, it kills the group.

use std::io::{BufRead as _, Write as _};
use std::process::{ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use rustix::time::{ClockId, clock_gettime};
use std::os::unix::process::CommandExt as _;

use super::exit::{FAILED, Failure};

/// The word that lets go.
const DONE: &str = "done";

/// The other end: in the process that holds the lock.
#[derive(Debug)]
pub(crate) struct Leash(std::process::Child);

impl Leash {
    /// Starts one for a process group.
    pub(crate) fn start(group: Pid, until: Instant) -> Result<Self, Failure> {
        let program = std::env::current_exe()?;
        let process = std::process::Command::new(program)
            .arg("__leash")
            .arg(group.as_raw_nonzero().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What ends us from a terminal must not end it.
            .process_group(0)
            .spawn()
            .map_err(|error| Failure::new(FAILED, format!("can't start the leash of COMMAND: {error}")))?;
        let mut leash = Self(process);
        leash.prolong(until);
        Ok(leash)
    }

    /// Moves the deadline.
    pub(crate) fn prolong(&mut self, until: Instant) {
        // In this order: to be stopped between the two makes the deadline earlier, not later.
        let now = monotonic();
        let left = until.saturating_duration_since(Instant::now());
        self.say(&(now + left).as_millis().to_string());
    }

    /// Nothing is left to guard.
    pub(crate) fn release(mut self) {
        self.say(DONE);
        // It ends at once.
        let _ = self.0.wait();
    }

    fn say(&mut self, line: &str) {
        if let Some(input) = &mut self.0.stdin {
            // One that has gone has killed the group.
            let _ = writeln!(input, "{line}");
        }
    }
}

fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or_default();
    Duration::new(u64::try_from(now.tv_sec).unwrap_or_default(), nanos)
}

/// What the leash does.
pub(crate) fn watch(group: i32) -> ExitCode {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
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
    if let Some(group) = Pid::from_raw(group) {
        // It may have ended by itself.
        let _ = kill_process_group(group, Signal::KILL);
    }
    ExitCode::SUCCESS
}
