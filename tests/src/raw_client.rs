//! A handwritten client that a test harms. It stays on one stream, and records when it sent each answered keep-alive.
//! So a test knows the latest time from which the replica may count the ttl. A real client does not report that.

use std::process::Command;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::time::{MissedTickBehavior, interval};
use tonic::transport::Endpoint;

use crate::client::{Client, Registration, text};
use crate::process::{Process, beside, scratch};
use crate::registrant::Many;
use crate::wait::{SOON, check, eventually};

/// Interval of the keep-alives of a client without a ttl.
const WITHOUT_TTL: Duration = Duration::from_secs(1);

/// The main function of the program `raw_client`: registers everything on one stream, and prints the time at which it
/// sent each keep-alive that was answered. It ends with the stream.
///
/// # Panics
/// When anything goes wrong.
pub async fn run_process(many: &Many) {
    use std::io::Write as _;
    let endpoint = Endpoint::from_shared(format!("http://{}", many.replicas[0])).expect("an address is a URI");
    let client = Client::new(endpoint.tcp_nodelay(true).connect().await.expect("the replica runs"));
    let mut stream = match many.ttl {
        Some(ttl) => Registration::open_with_ttl(&client, ttl).await,
        None => Registration::open(&client).await,
    };
    for path in many.paths() {
        stream.set(&path, text("raw_client")).await;
    }
    let asked = stream.opened.keep_alive_interval.and_then(|span| span.try_into().ok());
    let mut ticks = interval(asked.unwrap_or(WITHOUT_TTL));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked_at = SystemTime::now();
        stream.keep_alive().await;
        let line = serde_json::to_string(&asked_at).expect("it is plain data") + "\n";
        std::io::stdout().write_all(line.as_bytes()).expect("standard output stands");
    }
}

/// A process of the program `raw_client`. Dropping kills it.
#[derive(Debug)]
pub struct RawClientProcess {
    process: Process,
    _directory: TempDir,
}

impl RawClientProcess {
    /// Starts it, and waits until everything is registered and a keep-alive was answered.
    ///
    /// # Panics
    /// When `cargo` has not put the program beside this test program.
    pub async fn start(many: &Many) -> RawClientProcess {
        let directory = scratch("raw_client");
        let mut command = Command::new(beside("raw_client"));
        let process = Process::spawn("raw_client", directory.path(), command.args(many.arguments()));
        let client = RawClientProcess { process, _directory: directory };
        eventually("a keep-alive is answered", 2 * SOON, async || client.heard_after().ok_or("none was".to_owned()))
            .await;
        client
    }

    /// The process, to be killed or stopped.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A time after which the replica has heard from it: when it sent the last answered keep-alive.
    pub fn heard_after(&self) -> Option<SystemTime> {
        let said = self.process.stdout();
        let whole = &said[..said.rfind('\n')?];
        whole.lines().last().map(|line| serde_json::from_str(line).expect("a line of the client"))
    }

    /// Waits until another keep-alive was answered. Until the next one is due, [`heard_after`](Self::heard_after) is
    /// then the time at which it sent the last one of all.
    pub async fn next_heard(&self) {
        let before = self.heard_after();
        eventually("another keep-alive is answered", SOON, async || {
            check(self.heard_after() > before, || format!("{before:?} was the last"))
        })
        .await;
    }
}
