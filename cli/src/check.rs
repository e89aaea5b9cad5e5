//! The check of `register`: a command whose exit status gives the health of the service.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{Instant, sleep_until, timeout};

use super::group::Group;

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    Up,
    Down,
}

/// Counts results in a row. Pure.
#[derive(Debug)]
pub(crate) struct Counter {
    rise: u32,
    fall: u32,
    health: Health,
    in_a_row: u32,
}

impl Counter {
    /// A counter without results, which begins with down.
    pub(crate) fn new(rise: u32, fall: u32) -> Self {
        Self { rise, fall, health: Health::Down, in_a_row: 0 }
    }

    /// Counts a result. Returns the new health, if the result changes it.
    pub(crate) fn count(&mut self, result: Health) -> Option<Health> {
        if result == self.health {
            self.in_a_row = 0;
            return None;
        }
        self.in_a_row += 1;
        let needed = if result == Health::Up { self.rise } else { self.fall };
        if self.in_a_row < needed {
            return None;
        }
        (self.health, self.in_a_row) = (result, 0);
        Some(result)
    }
}

/// A shell command that is run repeatedly.
#[derive(Debug)]
pub(crate) struct Check {
    command: String,
    every: Duration,
    next_at: Instant,
    counter: Counter,
}

impl Check {
    pub(crate) fn new(command: String, every: Duration, counter: Counter) -> Self {
        Self { command, every, next_at: Instant::now(), counter }
    }

    /// Runs the check until the health changes.
    ///
    /// # Cancellation
    /// The running check is killed with everything that it has started; its result does not count.
    pub(crate) async fn changed(&mut self) -> Health {
        loop {
            sleep_until(self.next_at).await;
            self.next_at = Instant::now() + self.every;
            if let Some(health) = self.counter.count(self.once().await) {
                return health;
            }
        }
    }

    /// Runs the check once. A check that takes longer than the interval has failed. No process that it has started
    /// outlives it.
    async fn once(&self) -> Health {
        let mut command = Command::new("sh");
        command.arg("-c").arg(&self.command).stdin(Stdio::null()).stdout(Stdio::null());
        let Ok(mut check) = Group::spawn(&mut command) else { return Health::Down };
        // The shell may have started other processes, which would go on without it.
        let _killed = check.killed_on_drop();
        match timeout(self.every, check.wait()).await {
            Ok(Ok(status)) if status.success() => Health::Up,
            Ok(Ok(_) | Err(_)) | Err(_) => Health::Down,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_changes_after_so_many_in_a_row() {
        let mut counter = Counter::new(2, 3);
        let results = "+-++--+---+-++".chars().map(|c| if c == '+' { Health::Up } else { Health::Down });
        let changes: Vec<_> = results.map(|result| counter.count(result)).collect();
        let mut expected = vec![None; 14];
        (expected[3], expected[9], expected[13]) = (Some(Health::Up), Some(Health::Down), Some(Health::Up));
        assert_eq!(changes, expected);
    }
}
