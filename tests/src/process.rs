//! Child processes that never outlive the test program.
//!
//! Dropping a [`Process`] kills it. That does not help when the test program itself is killed, or leaves through `exit`
//! as the test harness does. So each test program has one watchdog: a shell that reads from a pipe. The test program
//! reports every child on the pipe. The kernel closes the pipe when the program ends, whatever the cause. The shell
//! then kills the remaining children and removes the program's scratch directory.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process, kill_process_group};
use tempfile::TempDir;

use crate::wait::{SOON, eventually};

const WATCHDOG: &str = r#"
trap '' INT TERM HUP
pids=
while read -r operation pid; do
    case $operation in
        add) pids="$pids $pid" ;;
        remove)
            left=
            for known in $pids; do [ "$known" = "$pid" ] || left="$left $known"; done
            pids=$left ;;
    esac
done
for pid in $pids; do kill -KILL "-$pid"; done
for round in 1 2 3 4 5; do rm -rf -- "$0" && break; sleep 0.2; done
"#;

/// Shared by a whole test program: the watchdog with its pipe, and a scratch directory that is removed when the program
/// ends.
struct Program {
    watchdog: Mutex<Child>,
    scratch: PathBuf,
}

static PROGRAM: LazyLock<Program> = LazyLock::new(|| {
    let scratch = tempfile::Builder::new().prefix("rollcall-tests-").tempdir().expect("a scratch directory").keep();
    let watchdog = Command::new("sh")
        .args(["-c", WATCHDOG])
        .arg(&scratch)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("a watchdog shell");
    Program { watchdog: Mutex::new(watchdog), scratch }
});

fn tell_watchdog(operation: &str, pid: u32) {
    let mut watchdog = PROGRAM.watchdog.lock().unwrap();
    let pipe = watchdog.stdin.as_mut().expect("its input is piped");
    // One write a line, so that the shell never reads half a line.
    pipe.write_all(format!("{operation} {pid}\n").as_bytes()).expect("the watchdog reads until we end");
}

/// A new empty directory. It is removed when the returned value is dropped, or with the test program at the latest.
pub fn scratch(name: &str) -> TempDir {
    tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(&PROGRAM.scratch).expect("a scratch directory")
}

/// A program that `cargo` has put beside this test program.
///
/// # Panics
/// When the test program's own path is unknown.
pub fn beside(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a program knows where it is");
    // target/PROFILE/deps/TEST
    test.ancestors().nth(2).expect("a test program lies in target").join(name)
}

/// A child process of the test program, and the process group that it leads. Its output goes to files. The end of its
/// standard error is shown when the test that owns it fails. Dropping kills it and its group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    /// Set once the process is reaped: from then on another process may have the pid.
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with no input and with its output in `directory`, as `NAME.out` and `NAME.err`, appended to.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn spawn(name: &str, directory: &Path, command: &mut Command) -> Process {
        Process::start(name, directory, command.stdin(Stdio::null()))
    }

    /// Starts `command` like [`Process::spawn`], with a pipe to its input.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn spawn_with_input(name: &str, directory: &Path, command: &mut Command) -> (Process, ChildStdin) {
        let mut process = Process::start(name, directory, command.stdin(Stdio::piped()));
        let input = process.child.stdin.take().expect("its input is piped");
        (process, input)
    }

    fn start(name: &str, directory: &Path, command: &mut Command) -> Process {
        let stdout = directory.join(format!("{name}.out"));
        let stderr = directory.join(format!("{name}.err"));
        let append = |path: &Path| -> File { File::options().create(true).append(true).open(path).unwrap() };
        let child = command
            .stdout(append(&stdout))
            .stderr(append(&stderr))
            // Ctrl-C in a terminal reaches only the test program; its children end with it.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("can't start {name} ({:?}): {error}", command.get_program()));
        tell_watchdog("add", child.id());
        Process { name: name.to_owned(), child, stdout, stderr, ended: None }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the process alone. A process that has ended gets none.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn signal(&mut self, signal: Signal) {
        if self.exited().is_none() {
            kill_process(self.kernel_pid(), signal)
                .unwrap_or_else(|error| panic!("can't signal {}: {error}", self.name));
        }
    }

    /// Freezes the process: it keeps its connections and does nothing. Returns when every thread has stopped.
    ///
    /// # Panics
    /// When the kernel refuses, or a thread does not stop in time.
    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
        let deadline = Instant::now() + SOON;
        while !self.is_stopped() {
            assert!(Instant::now() < deadline, "{} does not stop", self.name);
            std::thread::yield_now();
        }
    }

    /// Whether all threads are stopped. A running thread goes on for a moment after the signal was sent.
    pub fn is_stopped(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).into_iter().flatten().flatten();
        let states = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
        // The state is the first word after the name, which is in parentheses.
        states.into_iter().all(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['T', 'Z', 'X'])))
    }

    /// Interrupts the process and all that it has started, like Ctrl-C in a terminal.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn interrupt(&mut self) {
        if self.exited().is_none() {
            kill_process_group(self.kernel_pid(), Signal::INT)
                .unwrap_or_else(|error| panic!("can't interrupt {}: {error}", self.name));
        }
    }

    fn kernel_pid(&self) -> Pid {
        i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a pid of a child")
    }

    /// The exit status, if the process has ended.
    ///
    /// # Panics
    /// When the kernel reports an error.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none()
            && let Some(status) = self.child.try_wait().expect("a child can be waited for")
        {
            tell_watchdog("remove", self.child.id());
            self.ended = Some(status);
        }
        self.ended
    }

    /// Waits until the process ends.
    ///
    /// # Panics
    /// When it runs beyond the deadline.
    pub async fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        eventually(&what, deadline, async || self.exited().ok_or_else(|| "it runs".to_owned())).await
    }

    /// Kills the process and its group with SIGKILL, stopped or not, and waits until it is gone.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn kill(&mut self) {
        if self.exited().is_none() {
            kill_process_group(self.kernel_pid(), Signal::KILL).expect("a child can be killed");
            self.ended = Some(self.child.wait().expect("a child can be waited for"));
            tell_watchdog("remove", self.child.id());
        }
    }

    /// Its standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// Its standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let before = self.exited();
        self.kill();
        if std::thread::panicking() {
            let log = self.stderr();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n");
            let state = before.map_or_else(|| "was running".to_owned(), |status| format!("had ended, {status}"));
            eprintln!("--- {} {state}; the end of what it said:\n{tail}\n---", self.name);
        }
    }
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{SOON, check};

    fn sleeper(directory: &Path) -> Process {
        Process::spawn("sleeper", directory, Command::new("sh").args(["-c", "echo up; exec sleep 600"]))
    }

    fn runs(pid: u32) -> bool {
        // A zombie has no command line.
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|bytes| !bytes.is_empty())
    }

    #[tokio::test]
    async fn dropping_a_process_ends_it() {
        let directory = scratch("process");
        let process = sleeper(directory.path());
        let pid = process.pid();
        eventually("it says that it is up", SOON, async || check(process.stdout() == "up\n", || process.stdout()))
            .await;
        drop(process);
        assert!(!runs(pid));
    }

    #[tokio::test]
    async fn the_watchdog_ends_what_a_program_leaves_behind() {
        let directory = scratch("watchdog");
        let mut left_behind = sleeper(directory.path());
        let pid = left_behind.pid();
        let removed = directory.path().join("removed");
        fs::create_dir(&removed).unwrap();
        // A separate watchdog, whose program "ends" when the pipe is closed.
        let mut watchdog =
            Command::new("sh").args(["-c", WATCHDOG]).arg(&removed).stdin(Stdio::piped()).spawn().unwrap();
        let mut pipe = watchdog.stdin.take().unwrap();
        pipe.write_all(format!("add {pid}\nadd 99999999\nremove 99999999\n").as_bytes()).unwrap();
        assert!(left_behind.exited().is_none());
        drop(pipe);
        left_behind.wait(SOON).await;
        watchdog.wait().unwrap();
        assert!(!removed.exists());
    }
}
