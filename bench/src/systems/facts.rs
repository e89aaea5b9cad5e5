//! Facts about the machine and the systems: versions, cores, the load before the run, the cost of an fsync.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rollcall_tests::process::scratch;

use super::{Etcd, Kazoo, ZooKeeper};
use crate::stats::Latencies;

/// A fact with its name.
type Fact = (&'static str, String);

/// Facts about the machine, read before anything is started.
pub(super) fn of_the_machine() -> anyhow::Result<Vec<Fact>> {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let fsync = fsync_time(scratch("fsync").path()).context("can't measure fsync")?;
    Ok(vec![
        ("cores", available_parallelism().map_or_else(|error| error.to_string(), |cores| cores.to_string())),
        ("load before", load.split(' ').next().unwrap_or_default().to_owned()),
        ("fsync", format!("{} µs, the median of 100 appends of 4 KiB", fsync.as_micros())),
        ("build", if cfg!(debug_assertions) { "DEBUG: these figures say nothing" } else { "release" }.to_owned()),
    ])
}

/// Facts about the systems that every run starts.
pub(super) async fn of_the_systems(program: &Path, zookeeper: &ZooKeeper) -> anyhow::Result<Vec<Fact>> {
    Ok(vec![
        ("rollcall-server", first_line(Command::new(program).arg("--version"))),
        ("zookeeper", zookeeper.says("Zookeeper version").await?),
        ("zookeeper-client", locked_version("zookeeper-client", include_str!("../../../Cargo.lock")).to_owned()),
        ("etcd", Etcd::version()),
        ("kazoo", Kazoo::version()),
        ("java", first_line(Command::new("java").arg("-version"))),
    ])
}

/// The time of an fsync in the directory of the logs: the least that a commit costs.
fn fsync_time(directory: &Path) -> std::io::Result<Duration> {
    let mut file = fs::File::create(directory.join("fsync"))?;
    let mut times = Latencies::default();
    for _ in 0..100 {
        let begin = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(begin.elapsed());
    }
    Ok(times.percentile(50).unwrap_or_default())
}

/// The first line that a program prints, on stdout or stderr.
pub(super) fn first_line(command: &mut Command) -> String {
    match command.output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned()
        }
        Err(error) => error.to_string(),
    }
}

/// The version of a crate in Cargo.lock.
fn locked_version<'a>(name: &str, lock: &'a str) -> &'a str {
    let entry = lock.split_once(&format!("name = \"{name}\"\nversion = \""));
    entry.and_then(|(_, rest)| rest.split('"').next()).unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_the_lock_file() {
        let lock = "[[package]]\nname = \"tokio\"\nversion = \"1.2.3\"\n\n[[package]]\nname = \"tonic\"\nversion = \"4.5.6\"\n";
        assert_eq!(locked_version("tonic", lock), "4.5.6");
        assert_eq!(locked_version("axum", lock), "unknown");
    }
}
