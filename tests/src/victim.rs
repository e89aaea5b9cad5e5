//! A client to which something is about to happen, made by hand: it stays on one stream, and has on record when each
//! keep-alive was sent that was answered, so that a test knows since when at the latest the replica counts. A real client
//! tells nobody.

use std::process::Command;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::time::{MissedTickBehavior, interval};
use tonic::transport::Endpoint;

use crate::client::{Client, Registration, text};
use crate::process::{Process, beside, scratch};
use crate::registrant::Many;
use crate::wait::{SOON, check, eventually};

/// How often a client without a ttl says that it lives.
const WITHOUT_TTL: Duration = Duration::from_secs(1);

/// What the program `victim` does: registers everything on one stream, and prints the time of each keep-alive that was
/// answered since. It ends with the stream.
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
        stream.set(&path, text("victim")).await;
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

/// The program `victim`. Dropping kills it.
#[derive(Debug)]
pub struct VictimProcess {
    process: Process,
    _directory: TempDir,
}

impl VictimProcess {
    /// Starts it, and waits until everything is registered and a keep-alive was answered.
    ///
    /// # Panics
    /// When `cargo` has not put the program beside this test program.
    pub async fn start(many: &Many) -> VictimProcess {
        let directory = scratch("victim");
        let mut command = Command::new(beside("victim"));
        let process = Process::spawn("victim", directory.path(), command.args(many.arguments()));
        let victim = VictimProcess { process, _directory: directory };
        eventually("a keep-alive is answered", 2 * SOON, async || victim.heard_after().ok_or("none was".to_owned()))
            .await;
        victim
    }

    /// The process, to be killed or stopped.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The replica has heard from it after this moment.
    pub fn heard_after(&self) -> Option<SystemTime> {
        let said = self.process.stdout();
        let whole = &said[..said.rfind('\n')?];
        whole.lines().last().map(|line| serde_json::from_str(line).expect("a line of a victim"))
    }

    /// Waits until it was heard once more. For as long as the next keep-alive is not due, [`heard_after`](Self::heard_after)
    /// is then when the last of all was sent.
    pub async fn next_heard(&self) {
        let before = self.heard_after();
        eventually("another keep-alive is answered", SOON, async || {
            check(self.heard_after() > before, || format!("{before:?} was the last"))
        })
        .await;
    }
}
