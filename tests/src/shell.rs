//! The command `rollcall`, run as a shell runs it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value as Json;
use tempfile::TempDir;

use crate::arm::{Arm, Setting};
use crate::process::{Process, scratch};
use crate::server;
use crate::wait::{SOON, check, eventually};

/// A program that `cargo build -p rollcall-cli -p rollcall-client --bins --examples` has put beside the server.
///
/// # Panics
/// When it is missing.
pub fn built(name: &str) -> PathBuf {
    let path = server::program().parent().expect("it lies in a directory").join(name);
    assert!(
        path.is_file(),
        "no {}: run cargo build -p rollcall-cli -p rollcall-client --bins --examples",
        path.display()
    );
    path
}

/// A directory to run commands in, and a server on the embedded backend.
#[derive(Debug)]
pub struct Shell {
    /// The server and its backend.
    pub s: Setting,
    /// The working directory of commands.
    pub directory: TempDir,
}

/// The result of a command that has ended.
#[derive(Debug)]
pub struct Done {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Shell {
    /// Starts the server.
    pub async fn open() -> Shell {
        Shell { s: Arm::Embedded.setting("cli").await, directory: scratch("cli") }
    }

    /// The command `rollcall` with arguments, connected to the server.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_at(&self.s.server.grpc().to_string(), arguments)
    }

    /// The command `rollcall` with arguments, connected to another server.
    pub fn command_at(&self, server: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(built("rollcall"));
        command.args(arguments).env("ROLLCALL_SERVER", server).current_dir(self.directory.path());
        command
    }

    /// A script of `sh` in which `$ROLLCALL` is the command `rollcall`.
    pub fn script(&self, text: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", text]).env("ROLLCALL", built("rollcall")).current_dir(self.directory.path());
        command.env("ROLLCALL_SERVER", self.s.server.grpc().to_string());
        command
    }

    /// Starts a command. The name is only for its output files.
    pub fn start(&self, name: &str, arguments: &[&str]) -> Process {
        Process::spawn(name, self.directory.path(), &mut self.command(arguments))
    }

    /// Runs a command to its end.
    pub async fn run(&self, arguments: &[&str]) -> Done {
        let directory = scratch("run");
        let process = Process::spawn("rollcall", directory.path(), &mut self.command(arguments));
        done(process).await
    }

    /// Runs a command that must succeed, and returns its output.
    ///
    /// # Panics
    /// When it fails.
    pub async fn ok(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments).await;
        assert_eq!(done.code, Some(0), "{arguments:?}: {done:?}");
        done.stdout
    }

    /// A file in the working directory of commands.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// Waits for the end of a command.
pub async fn done(mut process: Process) -> Done {
    let status = process.wait(SOON).await;
    Done { code: status.code(), stdout: process.stdout(), stderr: process.stderr() }
}

/// Waits until the output of a command contains `what`.
pub async fn says(process: &Process, what: &str) {
    let said = || process.stdout() + &process.stderr();
    eventually(what, SOON, async || check(said().contains(what), said)).await;
}

/// Waits until a file consists of whole lines.
pub async fn written(file: &Path) -> String {
    eventually("a file is written", SOON, async || match std::fs::read_to_string(file) {
        Ok(text) if text.ends_with('\n') => Ok(text),
        other => Err(format!("{other:?}")),
    })
    .await
}

/// Whether a process runs.
pub fn runs(pid: &str) -> bool {
    // A zombie has no command line.
    std::fs::read(format!("/proc/{}/cmdline", pid.trim())).is_ok_and(|bytes| !bytes.is_empty())
}

/// Parses JSON.
///
/// # Panics
/// When the text is no JSON.
pub fn object(text: &str) -> Json {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
