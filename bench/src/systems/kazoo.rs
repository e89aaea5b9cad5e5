//! kazoo, as its users run it: one client in a process of its own.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rollcall_tests::process::{Process, scratch};
use rollcall_tests::wait::eventually;

use super::{Directory, START};

/// One process with one client. Dropping kills it.
#[derive(Debug)]
pub(crate) struct Kazoo {
    process: Process,
    input: ChildStdin,
    /// Number of output lines that have been read.
    read: usize,
    _directory: Directory,
}

impl Kazoo {
    /// Starts a process that reads, connected to `host:port/chroot`.
    pub(super) fn reader(hosts: &str) -> anyhow::Result<Kazoo> {
        Kazoo::start("get.py", hosts)
    }

    /// Starts `count` processes that take Semaphores, and waits until all are connected.
    pub(crate) async fn semaphores(count: usize, hosts: &str) -> anyhow::Result<Vec<Kazoo>> {
        let mut all = (0..count).map(|_| Kazoo::start("semaphore.py", hosts)).collect::<Result<Vec<_>, _>>()?;
        for kazoo in &mut all {
            ensure!(kazoo.says(START).await? == "ready", "kazoo says something else than that it is ready");
        }
        Ok(all)
    }

    fn start(program: &str, hosts: &str) -> anyhow::Result<Kazoo> {
        let python = python();
        ensure!(python.is_file(), "no {}: run tests/setup.sh python", python.display());
        let directory = scratch("kazoo");
        let mut command = Command::new(python);
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("kazoo").join(program);
        command.arg(program).arg(hosts).env("PYTHONDONTWRITEBYTECODE", "1");
        let (process, input) = Process::spawn_with_input("kazoo", directory.path(), &mut command);
        Ok(Kazoo { process, input, read: 0, _directory: Box::new(directory) })
    }

    /// Returns how often a second it reads the list of a path and each of its children, one request at a time.
    ///
    /// # Errors
    /// When the process ends, as it does when a value is missing.
    pub(crate) async fn reads(&mut self, path: &str, children: usize, time: Duration) -> anyhow::Result<f64> {
        writeln!(self.input, "{path} {children} {}", time.as_secs_f64()).context("kazoo does not read")?;
        let said = self.says(START + 2 * time).await?;
        said.parse().with_context(|| format!("no rate: {said:?}"))
    }

    /// Makes it take a Semaphore and give it back for `time`; [`Kazoo::rate`] returns how often it did.
    pub(crate) fn begin(&mut self, path: &str, time: Duration) -> anyhow::Result<()> {
        writeln!(self.input, "{path} {}", time.as_secs_f64()).context("kazoo does not read")
    }

    /// Returns how many times a second it held the lock.
    pub(crate) async fn rate(&mut self, time: Duration) -> anyhow::Result<f64> {
        let said = self.says(time + START).await?;
        let (count, seconds) = said.split_once(' ').with_context(|| format!("kazoo says {said:?}"))?;
        Ok(count.parse::<f64>()? / seconds.parse::<f64>()?)
    }

    /// The next output line.
    async fn says(&mut self, patience: Duration) -> anyhow::Result<String> {
        let said = eventually("kazoo says something", patience, async || {
            let said = self.process.stdout();
            let lines = &said[..said.rfind('\n').map_or(0, |end| end + 1)];
            match (lines.lines().nth(self.read), self.process.exited()) {
                (Some(line), _) => Ok(Ok(line.to_owned())),
                (None, Some(status)) => Ok(Err(status)),
                (None, None) => Err(said),
            }
        })
        .await;
        match said {
            Ok(line) => {
                self.read += 1;
                Ok(line)
            }
            Err(status) => bail!("kazoo ended, {status}:\n{}", self.process.stderr()),
        }
    }

    /// The version of kazoo and of Python.
    pub(super) fn version() -> String {
        let print = "import kazoo, platform; print(kazoo.__version__, 'on Python', platform.python_version())";
        super::facts::first_line(Command::new(python()).args(["-c", print]))
    }
}

fn python() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/venv/bin/python")
}
