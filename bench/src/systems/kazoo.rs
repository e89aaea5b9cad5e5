//! kazoo, as its users have it: one client in a process of its own, with today's version.

use std::io::Write as _;
use std::path::Path;
use std::process::{ChildStdin, Command};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rollcall_tests::process::{Process, scratch};
use rollcall_tests::wait::{check, eventually};

use super::{Directory, START};

/// One process with one client. Dropping kills it.
#[derive(Debug)]
pub(crate) struct Kazoo {
    process: Process,
    input: ChildStdin,
    /// How many lines have been read of what it says.
    read: usize,
    _directory: Directory,
}

impl Kazoo {
    /// Starts so many processes, and waits until all are connected.
    pub(crate) async fn start(count: usize, hosts: &str) -> anyhow::Result<Vec<Kazoo>> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = root.join("../.cache/venv/bin/python");
        ensure!(python.is_file(), "no {}: run tests/setup.sh python", python.display());
        let mut all = Vec::with_capacity(count);
        for _ in 0..count {
            let directory = scratch("kazoo");
            let mut command = Command::new(&python);
            command.arg(root.join("semaphore.py")).arg(hosts).env("PYTHONDONTWRITEBYTECODE", "1");
            let (process, input) = Process::spawn_with_input("kazoo", directory.path(), &mut command);
            all.push(Kazoo { process, input, read: 0, _directory: Box::new(directory) });
        }
        for kazoo in &mut all {
            ensure!(kazoo.says(START).await? == "ready", "kazoo says something else than that it is ready");
        }
        Ok(all)
    }

    /// Has it take a Semaphore and give it back for so long; [`Kazoo::rate`] says how often it did.
    pub(crate) fn begin(&mut self, path: &str, time: Duration) -> anyhow::Result<()> {
        writeln!(self.input, "{path} {}", time.as_secs_f64()).context("kazoo does not read")
    }

    /// How many times a second it held the lock.
    pub(crate) async fn rate(&mut self, time: Duration) -> anyhow::Result<f64> {
        let said = self.says(time + START).await?;
        let (count, seconds) = said.split_once(' ').with_context(|| format!("kazoo says {said:?}"))?;
        Ok(count.parse::<f64>()? / seconds.parse::<f64>()?)
    }

    /// The next line.
    async fn says(&mut self, patience: Duration) -> anyhow::Result<String> {
        let said = eventually("kazoo says something", patience, async || {
            let said = self.process.stdout();
            let lines = &said[..said.rfind('\n').map_or(0, |end| end + 1)];
            match (lines.lines().nth(self.read), self.process.exited()) {
                (Some(line), _) => Ok(Ok(line.to_owned())),
                (None, Some(status)) => Ok(Err(status)),
                (None, None) => check(false, || said).map(|()| Ok(String::new())),
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

    /// Which version it is.
    pub(super) fn version() -> String {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/venv/bin/python");
        super::facts::first_line(Command::new(python).args(["-c", "import kazoo.version as v; print(v.__version__)"]))
    }
}
