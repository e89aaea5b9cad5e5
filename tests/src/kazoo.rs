//! kazoo processes that contend for locks.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::contender::Lock;
use crate::process::{Process, scratch};

/// The Python environments with kazoo 2.11 and 2.6.
pub const VERSIONS: [&str; 2] = ["venv", "judges/kazoo-2.6"];

/// A kazoo process with several contending threads. Dropping kills it, and its session expires.
#[derive(Debug)]
pub struct Kazoo {
    process: Process,
    _directory: TempDir,
}

impl Kazoo {
    /// Starts a process of one of the [`VERSIONS`]. Each of its threads takes one of the locks after another, at
    /// random.
    ///
    /// # Panics
    /// When there is no such environment.
    pub fn start(hosts: &str, version: &str, name: &str, threads: usize, locks: &[Lock]) -> Kazoo {
        let directory = scratch("kazoo");
        let mut command = python(version, "contend.py");
        command.args([hosts, name, &threads.to_string()]);
        command.args(locks.iter().map(|lock| format!("{}={}", lock.path, lock.limit)));
        Kazoo { process: Process::spawn(name, directory.path(), &mut command), _directory: directory }
    }

    /// The number of times that it has held a lock.
    ///
    /// # Panics
    /// When it has ended by itself.
    pub fn held(&mut self) -> usize {
        let ended = self.process.exited();
        assert!(ended.is_none(), "kazoo has ended, {ended:?}: {}", self.process.stderr());
        self.process.stdout().lines().count()
    }
}

/// A kazoo process that takes a lock whose nodes others remove. Dropping kills it.
#[derive(Debug)]
pub struct Vanishing {
    process: Process,
    _directory: TempDir,
}

impl Vanishing {
    /// Starts a process of one of the [`VERSIONS`]. While it holds the lock at `path`, the node `guard` exists.
    ///
    /// # Panics
    /// When there is no such environment.
    pub fn start(hosts: &str, version: &str, path: &str, guard: &str) -> Vanishing {
        let directory = scratch("kazoo");
        let mut command = python(version, "vanishing_lock.py");
        command.args([hosts, path, guard]);
        Vanishing { process: Process::spawn("kazoo", directory.path(), &mut command), _directory: directory }
    }

    /// The results of its turns so far, as printed by `python/vanishing_lock.py`.
    ///
    /// # Panics
    /// When it has ended by itself.
    pub fn turns(&mut self) -> Vec<String> {
        let ended = self.process.exited();
        assert!(ended.is_none(), "kazoo has ended, {ended:?}: {}", self.process.stderr());
        self.process.stdout().lines().map(str::to_owned).collect()
    }
}

/// The Python of one of the [`VERSIONS`], with a script.
fn python(version: &str, script: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("../.cache").join(version).join("bin/python");
    assert!(python.exists(), "no {}: run tests/setup.sh python judges", python.display());
    let mut command = Command::new(python);
    command.arg("-u").arg(root.join("python").join(script));
    command
}
