//! kazoo, as a Python program of its own.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rollcall_tests::process::{Process, scratch};
use rollcall_tests::wait::eventually;

use super::{Directory, START};

/// A program that reads with kazoo on one session. Dropping kills it.
#[derive(Debug)]
pub(crate) struct Kazoo {
    process: Process,
    input: ChildStdin,
    /// How many answers it has given.
    answers: usize,
    _directory: Directory,
}

impl Kazoo {
    /// Starts it on `host:port/chroot`.
    pub(super) fn start(hosts: &str) -> anyhow::Result<Kazoo> {
        let python = python();
        ensure!(python.is_file(), "no {}: run tests/setup.sh python", python.display());
        let directory = scratch("kazoo");
        let mut command = Command::new(python);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("kazoo/get.py")).arg(hosts);
        let (process, input) = Process::spawn_with_input("kazoo", directory.path(), &mut command);
        Ok(Kazoo { process, input, answers: 0, _directory: Box::new(directory) })
    }

    /// How often a second it reads the list of a path and each of its children, one request after the other.
    ///
    /// # Errors
    /// When it ends, as it does when a value is missing.
    pub(crate) async fn reads(&mut self, path: &str, children: usize, time: Duration) -> anyhow::Result<f64> {
        writeln!(self.input, "{path} {children} {}", time.as_secs_f64()).context("kazoo has ended")?;
        let said = eventually("kazoo answers", START + 2 * time, async || {
            match (self.process.stdout().lines().nth(self.answers), self.process.exited()) {
                (Some(line), _) => Ok(Some(line.to_owned())),
                (None, Some(_)) => Ok(None),
                (None, None) => Err("it reads".to_owned()),
            }
        })
        .await;
        self.answers += 1;
        let Some(said) = said else { bail!("kazoo has ended:\n{}", self.process.stderr()) };
        said.parse().with_context(|| format!("no rate: {said:?}"))
    }

    /// Which it is.
    pub(super) fn version() -> String {
        let print = "import kazoo, platform; print(kazoo.__version__, 'on Python', platform.python_version())";
        super::facts::first_line(Command::new(python()).args(["-c", print]))
    }
}

fn python() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/venv/bin/python")
}
