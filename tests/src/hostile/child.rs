//! A flood in a process of its own, with its own priority.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime;
use tokio::time::{Instant, sleep};

use super::{Flood, Load, Size, Target};
use crate::process::{Process, scratch};

/// Time after the end of a flood in which its process has to exit.
const GRACE: Duration = Duration::from_secs(5);

/// The arguments of a flood's process.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// The flood.
    pub flood: Flood,
    /// The server.
    pub target: Target,
    /// The size of the flood.
    pub size: Size,
    /// The duration of the flood.
    pub time: Duration,
}

impl Order {
    /// The order as a command line.
    fn arguments(&self) -> [String; 5] {
        let size = if self.size == Size::Small { "small" } else { "full" };
        let Target { grpc, http } = self.target;
        [self.flood.to_string(), grpc.to_string(), http.to_string(), size.to_owned(), self.time.as_millis().to_string()]
    }

    /// Parses a command line.
    fn parse(arguments: &[String]) -> Option<Order> {
        let [flood, grpc, http, size, time] = arguments else { return None };
        Some(Order {
            flood: Flood::named(flood)?,
            target: Target { grpc: grpc.parse().ok()?, http: http.parse().ok()? },
            size: match size.as_str() {
                "small" => Size::Small,
                "full" => Size::Full,
                _ => return None,
            },
            time: Duration::from_millis(time.parse().ok()?),
        })
    }
}

/// The main function of the process: runs a flood, and prints its tally.
///
/// # Panics
/// When the arguments are no order.
pub fn run_process(arguments: &[String]) {
    use std::io::Write as _;
    let order = Order::parse(arguments).expect("FLOOD GRPC HTTP small|full MILLISECONDS");
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let tally = runtime.block_on(order.flood.run(order.target, Load::new(order.size, order.time)));
    std::io::stdout().write_all(format!("{tally}\n").as_bytes()).expect("standard output is open");
    // A connection that hangs does not delay the end of the process.
    runtime.shutdown_background();
}

/// A running flood. Dropping kills it.
#[derive(Debug)]
pub struct FloodProcess {
    process: Process,
    order: Order,
    begin: Instant,
    _directory: TempDir,
}

impl FloodProcess {
    /// Starts a flood: `program`, called with `first` and the order as arguments, calls [`run_process`]. `nice` is the
    /// nice value; 19 is the lowest priority.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn spawn(program: &Path, first: &[&str], order: Order, nice: u8) -> FloodProcess {
        let directory = scratch("flood");
        let mut command = Command::new("nice");
        command.args(["-n", &nice.to_string()]).arg(program).args(first).args(order.arguments());
        let process = Process::spawn("flood", directory.path(), &mut command);
        FloodProcess { process, order, begin: Instant::now(), _directory: directory }
    }

    /// The flood's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits for its end, and kills it when its time is over. Returns its tally, and whether it had to be killed.
    pub async fn finish(mut self) -> String {
        let end = self.begin + self.order.time + GRACE;
        while self.process.exited().is_none() && Instant::now() < end {
            // A process that has stopped itself does not end.
            if self.order.flood == Flood::StoppedWatcher && Instant::now() > self.begin + self.order.time {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        let mut done = self.process.stdout().trim().to_owned();
        if self.process.exited().is_none() {
            self.process.kill();
            done.push_str(if done.is_empty() { "killed" } else { ", killed" });
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_as_it_was_written() {
        let address = "127.0.0.1:7".parse().unwrap();
        let target = Target { grpc: address, http: address };
        for flood in Flood::ALL {
            let order = Order { flood: *flood, target, size: Size::Small, time: Duration::from_millis(1_500) };
            let read = Order::parse(&order.arguments()).unwrap();
            assert_eq!((read.flood, read.size, read.time), (*flood, Size::Small, order.time));
        }
    }
}
