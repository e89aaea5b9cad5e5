//! Observers of a fault: a Rollcall watcher that goes from replica to replica, and a kazoo program. Each records every
//! change that it sees, with the time. ZooKeeper's own record is in [`crate::journal`].

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::watch_response::Event;
use rollcall_proto::v1::{self, ChangeKind};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::transport::Endpoint;

use crate::client::span;
use crate::follow::Watching;
use crate::process::{Process, scratch};
use crate::wait::{SOON, check, eventually};

/// An observed change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The time of the observation.
    pub at: SystemTime,
    /// The kind of change.
    pub kind: ChangeKind,
    /// The name of the child; empty for the path itself.
    pub name: String,
}

impl Seen {
    /// The kind and the name, without the time.
    pub fn change(&self) -> (ChangeKind, &str) {
        (self.kind, &self.name)
    }
}

/// Interval of the heartbeats that a watcher asks for.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Time without a message after which a watcher leaves its replica, and time-out of opening a stream.
const PATIENCE: Duration = Duration::from_secs(4);

/// A Rollcall watcher that resumes at another replica, from its last revision, when one fails. It also checks the rules
/// of Watch on each stream, as [`Watching`] does.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Mutex<Record>>,
    task: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct Record {
    seen: Vec<Seen>,
    names: BTreeSet<String>,
    streams: usize,
}

impl Watcher {
    /// Watches a path through the first replica that answers. Returns when the first state has arrived.
    pub async fn start(replicas: &[SocketAddr], path: &str) -> Watcher {
        let shared = Arc::new(Mutex::new(Record::default()));
        let mut task = JoinSet::new();
        task.spawn(watch(replicas.to_vec(), path.to_owned(), shared.clone()));
        let watcher = Watcher { shared, task: Mutex::new(task) };
        eventually("a watcher has begun", 2 * SOON, async || {
            check(watcher.record(|record| record.streams) > 0, || "no stream stands".to_owned())
        })
        .await;
        watcher
    }

    fn record<T>(&self, read: impl FnOnce(&Record) -> T) -> T {
        let ended = self.task.lock().unwrap().try_join_next();
        assert!(ended.is_none(), "the watcher has seen a rule of Watch broken: {ended:?}");
        read(&self.shared.lock().unwrap())
    }

    /// All changes since the first state.
    pub fn seen(&self) -> Vec<Seen> {
        self.record(|record| record.seen.clone())
    }

    /// The names of the children that the watcher knows.
    pub fn names(&self) -> BTreeSet<String> {
        self.record(|record| record.names.clone())
    }

    /// The number of streams so far.
    pub fn streams(&self) -> usize {
        self.record(|record| record.streams)
    }

    /// Waits until the watcher knows a child.
    pub async fn knows(&self, name: &str) {
        let what = format!("the Rollcall watcher sees {name}");
        eventually(&what, 2 * SOON, async || {
            check(self.names().contains(name), || format!("{} names", self.names().len()))
        })
        .await;
    }

    /// Waits until the watcher knows exactly these names.
    pub async fn knows_exactly(&self, names: &BTreeSet<String>) {
        eventually("the Rollcall watcher sees what there is", 2 * SOON, async || {
            let known = self.names();
            check(known == *names, || format!("different: {:?}", known.symmetric_difference(names).collect::<Vec<_>>()))
        })
        .await;
    }
}

async fn watch(replicas: Vec<SocketAddr>, path: String, shared: Arc<Mutex<Record>>) {
    let mut watching: Option<Watching> = None;
    for replica in replicas.iter().cycle() {
        if let Ok(Ok(())) = timeout(PATIENCE, begin(*replica, &path, &mut watching)).await
            && let Some(watching) = &mut watching
        {
            let mut is_first = true;
            loop {
                take_over(watching, &shared, is_first);
                is_first = false;
                match timeout(PATIENCE, watching.try_step()).await {
                    Ok(Ok(message)) => match message.event {
                        Some(Event::Draining(_)) => break,
                        Some(Event::Snapshot(snapshot)) => {
                            assert!(!snapshot.reset, "ZooKeeper never went back in time");
                        }
                        _ => {}
                    },
                    _ => break,
                }
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Starts to watch at a replica, or resumes there.
async fn begin(replica: SocketAddr, path: &str, watching: &mut Option<Watching>) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(format!("http://{replica}")).expect("an address is a URI");
    let client = RegistryClient::new(endpoint.connect().await.map_err(|error| error.to_string())?);
    let request = v1::WatchRequest { path: path.to_owned(), heartbeat: Some(span(HEARTBEAT)), ..Default::default() };
    let begun = match watching {
        Some(watching) => watching.resume(&client, request).await,
        None => Watching::try_start(&client, request).await.map(|begun| *watching = Some(begun)),
    };
    begun.map_err(|status| status.to_string())
}

/// Records the changes and the names that the stream has brought.
fn take_over(watching: &mut Watching, shared: &Mutex<Record>, is_first: bool) {
    let at = SystemTime::now();
    let mut record = shared.lock().unwrap();
    let changes = watching.changes.drain(..).chain(watching.differences.drain(..));
    let before = record.seen.len();
    record.seen.extend(changes.map(|(kind, name)| Seen { at, kind, name }));
    if is_first || record.seen.len() > before {
        record.names = watching.known.children.keys().cloned().collect();
    }
    record.streams += usize::from(is_first);
}

/// A program that watches the children of a path with kazoo's `ChildrenWatch`. Dropping kills it.
#[derive(Debug)]
pub struct Kazoo {
    process: Mutex<Process>,
    _directory: TempDir,
}

/// A line of `tests/python/watch_children.py`.
#[derive(Debug, Deserialize)]
struct Line {
    at: f64,
    #[serde(default)]
    added: Vec<String>,
    #[serde(default)]
    removed: Vec<String>,
}

impl Kazoo {
    /// Watches an existing path. Returns when the first list has arrived.
    pub async fn start(hosts: &str, path: &str) -> Kazoo {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = root.join("../.cache/venv/bin/python");
        assert!(python.exists(), "no {}: run tests/setup.sh python", python.display());
        let directory = scratch("kazoo");
        let mut command = Command::new(python);
        command.arg("-u").arg(root.join("python/watch_children.py")).args([hosts, path]);
        let process = Mutex::new(Process::spawn("kazoo", directory.path(), &mut command));
        let kazoo = Kazoo { process, _directory: directory };
        eventually("kazoo watches", 2 * SOON, async || {
            check(!kazoo.lines().is_empty(), || kazoo.process.lock().unwrap().stderr())
        })
        .await;
        kazoo
    }

    fn lines(&self) -> Vec<Line> {
        let mut process = self.process.lock().unwrap();
        let ended = process.exited();
        assert!(ended.is_none(), "kazoo has ended, {ended:?}: {}", process.stderr());
        let said = process.stdout();
        let whole = said.rfind('\n').map_or("", |end| &said[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("a line of watch_children.py")).collect()
    }

    /// All changes since the first list.
    pub fn seen(&self) -> Vec<Seen> {
        let changes = |line: Line| {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs_f64(line.at);
            let removed = line.removed.into_iter().map(move |name| Seen { at, kind: ChangeKind::Removed, name });
            removed.chain(line.added.into_iter().map(move |name| Seen { at, kind: ChangeKind::Added, name }))
        };
        self.lines().into_iter().skip(1).flat_map(changes).collect()
    }

    /// The names of the children that kazoo knows.
    pub fn names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for line in self.lines() {
            for name in &line.removed {
                names.remove(name);
            }
            names.extend(line.added);
        }
        names
    }

    /// Waits until kazoo knows a child.
    pub async fn knows(&self, name: &str) {
        let what = format!("kazoo sees {name}");
        eventually(&what, 2 * SOON, async || {
            check(self.names().contains(name), || format!("{} names", self.names().len()))
        })
        .await;
    }

    /// Waits until kazoo knows exactly these names.
    pub async fn knows_exactly(&self, names: &BTreeSet<String>) {
        eventually("kazoo sees what there is", 2 * SOON, async || {
            let known = self.names();
            check(known == *names, || format!("different: {:?}", known.symmetric_difference(names).collect::<Vec<_>>()))
        })
        .await;
    }
}
