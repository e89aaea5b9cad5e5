//! Measures the lag of the machine itself. A promise with a time in it has to be forgiven this lag on a machine that is
//! busy with other tests.

use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use tokio::runtime;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::zookeeper_witness::Witness;

/// Pause in each round.
const PAUSE: Duration = Duration::from_millis(10);

/// Repeats the steps of a replica at the end of a ttl, and records how much longer than it should each round takes: it
/// waits for a timer and, if it has a ZooKeeper, writes there. It runs in a thread of its own, so that the work of the
/// test does not count as lag.
#[derive(Debug)]
pub struct MachineLag {
    rounds: Arc<Mutex<Rounds>>,
    thread: JoinHandle<()>,
    _end: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Rounds {
    /// The start of the current round.
    began: SystemTime,
    past: Vec<Round>,
}

#[derive(Clone, Copy, Debug)]
struct Round {
    ended: SystemTime,
    late: Duration,
}

impl MachineLag {
    /// Starts with the timer alone.
    pub fn start() -> MachineLag {
        MachineLag::spawn(None)
    }

    /// Starts with writes to a node of its own in ZooKeeper, at `host:port,…/chroot`.
    pub fn start_writing(hosts: &str) -> MachineLag {
        MachineLag::spawn(Some(hosts.to_owned()))
    }

    fn spawn(hosts: Option<String>) -> MachineLag {
        let rounds = Arc::new(Mutex::new(Rounds { began: SystemTime::now(), past: Vec::new() }));
        let (end, ending) = oneshot::channel();
        let noted = Arc::clone(&rounds);
        let thread = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = measure(hosts, &noted) => {}
                    _ = ending => {}
                }
            });
        });
        MachineLag { rounds, thread, _end: end }
    }

    /// The worst lag of the machine since `since`, in any round that overlaps with that time.
    ///
    /// # Panics
    /// When a write to ZooKeeper has failed.
    pub fn worst_since(&self, since: SystemTime) -> Duration {
        assert!(!self.thread.is_finished(), "the measuring goes on");
        let rounds = self.rounds.lock().unwrap();
        let present = rounds.began.elapsed().unwrap_or_default().saturating_sub(PAUSE);
        let past = rounds.past.iter().filter(|round| round.ended >= since).map(|round| round.late);
        past.max().unwrap_or_default().max(present)
    }

    /// The worst lag of the machine between these moments, in any round that overlaps with that time. The moments must
    /// be in the past.
    pub fn worst_between(&self, since: SystemTime, until: SystemTime) -> Duration {
        let rounds = self.rounds.lock().unwrap();
        let first = rounds.past.partition_point(|round| round.ended < since);
        let begins = |round: &Round| round.ended.checked_sub(PAUSE + round.late).unwrap_or(SystemTime::UNIX_EPOCH);
        let those = rounds.past[first..].iter().take_while(|round| begins(round) <= until);
        those.map(|round| round.late).max().unwrap_or_default()
    }
}

async fn measure(hosts: Option<String>, rounds: &Mutex<Rounds>) {
    const NODE: &str = "/machine-lag";
    let zookeeper = match hosts {
        Some(hosts) => {
            let zk = Witness::connect(&hosts).await;
            zk.create(NODE, b"").await;
            Some(zk)
        }
        None => None,
    };
    loop {
        rounds.lock().unwrap().began = SystemTime::now();
        let began = Instant::now();
        sleep(PAUSE).await;
        if let Some(zk) = &zookeeper {
            zk.set(NODE, b"").await;
        }
        let round = Round { ended: SystemTime::now(), late: began.elapsed().saturating_sub(PAUSE) };
        rounds.lock().unwrap().past.push(round);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{SOON, check, eventually};
    use crate::zookeeper::{Options, ZooKeeper};

    #[test]
    fn the_past_is_as_late_as_the_rounds_that_reach_into_it() {
        let second = |number| SystemTime::UNIX_EPOCH + Duration::from_secs(number);
        let round = |ended, late| Round { ended: second(ended), late: Duration::from_secs(late) };
        let rounds = Rounds { began: second(40), past: vec![round(10, 1), round(20, 5), round(30, 2)] };
        let (thread, end) = (thread::spawn(|| {}), oneshot::channel().0);
        let machine_lag = MachineLag { rounds: Arc::new(Mutex::new(rounds)), thread, _end: end };
        let worst = |from, until| machine_lag.worst_between(second(from), second(until)).as_secs();
        assert_eq!((worst(0, 8), worst(9, 10), worst(11, 14), worst(9, 16)), (0, 1, 0, 5));
        assert_eq!((worst(21, 29), worst(31, 39), worst(0, 99)), (2, 0, 5));
    }

    #[tokio::test]
    async fn the_lag_includes_the_zookeeper_that_it_writes_to() {
        let mut zookeeper = ZooKeeper::standalone(Options::default()).await;
        let (timer, writer) = (MachineLag::start(), MachineLag::start_writing(&zookeeper.hosts()));
        eventually("both have begun", SOON, async || {
            let counts = [&timer, &writer].map(|machine_lag| machine_lag.rounds.lock().unwrap().past.len());
            check(counts.iter().all(|count| *count > 0), || format!("{counts:?} rounds"))
        })
        .await;
        let since = SystemTime::now();
        zookeeper.pause(0);
        eventually("the one that writes is late", SOON, async || {
            let late = writer.worst_since(since);
            check(late > Duration::from_secs(1), || format!("{late:?}"))
        })
        .await;
        zookeeper.resume(0);
        let resumed = SystemTime::now();
        eventually("it is in time again", SOON, async || {
            let (late, ever) = (writer.worst_since(SystemTime::now()), writer.worst_since(since));
            check(late < Duration::from_secs(1) && ever > late, || format!("{late:?} since {resumed:?}, {ever:?} ever"))
        })
        .await;
        assert!(timer.worst_since(since) < writer.worst_since(since));
    }
}
