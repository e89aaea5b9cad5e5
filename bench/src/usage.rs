//! The cost of a process, as the kernel counts it.

use std::fs;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// Resident memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// All of it: `VmRSS`.
    pub(crate) resident: u64,
    /// Memory that no file backs: heap and stacks. `RssAnon`.
    pub(crate) anonymous: u64,
}

/// The memory of a process.
///
/// # Errors
/// When the kernel does not report it, as for a process that has ended.
pub(crate) fn memory(pid: u32) -> anyhow::Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("no process {pid}"))?;
    let field = |name| kilobytes(&status, name).with_context(|| format!("no {name} in /proc/{pid}/status"));
    Ok(Memory { resident: 1024 * field("VmRSS")?, anonymous: 1024 * field("RssAnon")? })
}

/// The processor time, in user and kernel mode, of the threads of a process that still run.
///
/// # Errors
/// When the kernel does not report it, as for a process that has ended.
fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("no process {pid}"))?;
    // A thread that ends while its directory is read is left out.
    let times = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    Ok(times.filter_map(|times| running(&times)).sum())
}

/// The cost of a number of operations.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taken {
    /// The number of operations.
    pub(crate) count: usize,
    /// Their duration.
    pub(crate) time: Duration,
    /// The processor time that the measured processes have used.
    pub(crate) processor: Duration,
}

impl AddAssign for Taken {
    fn add_assign(&mut self, other: Taken) {
        self.count += other.count;
        self.time += other.time;
        self.processor += other.processor;
    }
}

impl Taken {
    /// Operations per second.
    pub(crate) fn rate(self) -> f64 {
        self.count as f64 / self.time.as_secs_f64()
    }

    /// The processor time of one operation, in microseconds.
    pub(crate) fn processor_each(self) -> f64 {
        self.processor.as_secs_f64() * 1e6 / self.count as f64
    }
}

/// Measures time, and the processor time of some processes.
#[derive(Debug)]
pub(crate) struct Meter<'a> {
    pids: &'a [u32],
    begin: Instant,
    processor: Duration,
}

impl Meter<'_> {
    /// Starts measuring.
    ///
    /// # Errors
    /// When a process has ended.
    pub(crate) fn start(pids: &[u32]) -> anyhow::Result<Meter<'_>> {
        let processor = processor_times(pids)?;
        Ok(Meter { pids, begin: Instant::now(), processor })
    }

    /// Stops, and returns the cost of `count` operations.
    ///
    /// # Errors
    /// When a process has ended.
    pub(crate) fn stop(self, count: usize) -> anyhow::Result<Taken> {
        let time = self.begin.elapsed();
        let processor = processor_times(self.pids)?.saturating_sub(self.processor);
        Ok(Taken { count, time, processor })
    }
}

fn processor_times(pids: &[u32]) -> anyhow::Result<Duration> {
    pids.iter().map(|pid| processor_time(*pid)).sum()
}

fn kilobytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// The first time in `schedstat`, in nanoseconds.
fn running(schedstat: &str) -> Option<Duration> {
    schedstat.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_time() {
        let memory = memory(std::process::id()).unwrap();
        assert!(memory.resident > memory.anonymous && memory.anonymous > 0, "{memory:?}");
        assert!(!processor_time(std::process::id()).unwrap().is_zero());
    }

    #[test]
    fn fields_are_found_by_name() {
        assert_eq!(kilobytes("VmHWM:\t  10 kB\nVmRSS:\t    8628 kB\n", "VmRSS"), Some(8628));
        assert_eq!(running("1500 20 3\n"), Some(Duration::from_nanos(1500)));
    }
}
