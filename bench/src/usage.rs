//! What a process costs, as the kernel counts it.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;

/// Resident memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// All of it: `VmRSS`.
    pub(crate) resident: u64,
    /// What no file backs: heap and stacks. `RssAnon`.
    pub(crate) anonymous: u64,
}

/// The memory of a process.
///
/// # Errors
/// When the kernel does not tell, as of a process that has ended.
pub(crate) fn memory(pid: u32) -> anyhow::Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("no process {pid}"))?;
    let field = |name| kilobytes(&status, name).with_context(|| format!("no {name} in /proc/{pid}/status"));
    Ok(Memory { resident: 1024 * field("VmRSS")?, anonymous: 1024 * field("RssAnon")? })
}

/// The processor time that a process has used, in user and kernel mode, all threads; in steps of 10 ms.
///
/// # Errors
/// When the kernel does not tell, as of a process that has ended.
pub(crate) fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("no process {pid}"))?;
    ticks(&stat).map(|ticks| Duration::from_millis(10 * ticks)).with_context(|| format!("no times in {stat:?}"))
}

fn kilobytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// The sum of `utime` and `stime`, which the kernel gives in hundredths of a second.
fn ticks(stat: &str) -> Option<u64> {
    // The second field is the program's name in parentheses, which may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut times = rest.split(' ').skip(11);
    Some(times.next()?.parse::<u64>().ok()? + times.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_time() {
        let memory = memory(std::process::id()).unwrap();
        assert!(memory.resident > memory.anonymous && memory.anonymous > 0, "{memory:?}");
        processor_time(std::process::id()).unwrap();
    }

    #[test]
    fn fields_are_found_by_name() {
        assert_eq!(kilobytes("VmHWM:\t  10 kB\nVmRSS:\t    8628 kB\n", "VmRSS"), Some(8628));
        assert_eq!(ticks("17 (a) b) S 1 17 17 0 -1 4194304 1 2 3 4 120 30 5 6 20 0"), Some(150));
    }
}
