//! Programs that register like any other, with the crate `rollcall-client`, and without code for faults of replicas.
//!
//! [`Registrant`] is one such program in this process, [`RegistrantProcess`] many in a process of their own, to be
//! killed or stopped. Both record what the client reported, with the times.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use rollcall::{Client, RegistrationState};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::runtime;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::process::{Process, beside, scratch};
use crate::wait::{SOON, check, eventually};

/// The registrations of a registrant, and its replicas.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The addresses of the replicas, in any order.
    pub replicas: Vec<SocketAddr>,
    /// The ttl of the registrations.
    pub ttl: Option<Duration>,
    /// The paths to register.
    pub paths: Vec<String>,
    /// The data of each registration.
    pub data: Json,
}

/// A report of the client to a registrant about one path.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The time of the report.
    pub at: SystemTime,
    /// The path.
    pub path: String,
    /// The state.
    pub news: News,
}

impl fmt::Debug for Told {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        write!(formatter, "{at:.3} {} {:?}", self.path, self.news)
    }
}

/// A [`RegistrationState`] that can be serialized.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    /// Not registered, or not for certain.
    Pending,
    /// Registered, with this generation.
    Registered(i64),
    /// Lost, overwritten or closed, in words.
    Over(String),
}

impl From<&RegistrationState> for News {
    fn from(state: &RegistrationState) -> News {
        match state {
            RegistrationState::Pending { .. } => News::Pending,
            RegistrationState::Registered { generation } => News::Registered(*generation),
            other => News::Over(format!("{other:?}")),
        }
    }
}

/// A program within this one. Dropping it is its death: its connections end, without a goodbye.
#[derive(Debug)]
pub struct Registrant {
    close: oneshot::Sender<oneshot::Sender<()>>,
    history: History,
    paths: Vec<String>,
}

/// The reports so far.
#[derive(Clone, Debug, Default)]
struct History(Arc<Mutex<Vec<Told>>>);

impl History {
    /// Records each state of a registration.
    async fn follow(self, path: String, mut states: watch::Receiver<RegistrationState>) {
        loop {
            let news = News::from(&*states.borrow_and_update());
            self.0.lock().unwrap().push(Told { at: SystemTime::now(), path: path.clone(), news });
            if states.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Registrant {
    /// Starts a registrant. It runs until it is dropped or closed.
    pub fn start(terms: Terms) -> Registrant {
        let (close, closing) = oneshot::channel();
        let (history, paths) = (History::default(), terms.paths.clone());
        let noted = history.clone();
        // With a runtime of its own, all its tasks end at once, and no state ends unrecorded.
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(live(terms, noted, closing));
        });
        Registrant { close, history, paths }
    }

    /// All reports so far.
    pub fn history(&self) -> Vec<Told> {
        self.history.0.lock().unwrap().clone()
    }

    /// The generations of its registrations, as far as it knows.
    pub fn generations(&self) -> BTreeMap<String, i64> {
        generations(self.history())
    }

    /// Waits until everything is registered, through any replica.
    pub async fn registered(&self) {
        eventually("everything is registered", 3 * SOON, async || {
            let held = self.generations().len();
            check(held == self.paths.len(), || {
                let history = self.history();
                format!("{held} of {}; told last: {:#?}", self.paths.len(), &history[history.len().saturating_sub(8)..])
            })
        })
        .await;
    }

    /// Unregisters everything, and waits for it, for at most `patience`. Returns whether that was enough.
    pub async fn close(self, patience: Duration) -> bool {
        let (closed, done) = oneshot::channel();
        self.close.send(closed).expect("it runs");
        timeout(patience, done).await.is_ok()
    }
}

/// The generations of a program's registrations, from the reports that it received.
pub fn generations(history: Vec<Told>) -> BTreeMap<String, i64> {
    let mut generations = BTreeMap::new();
    for told in history {
        match told.news {
            News::Registered(generation) => drop(generations.insert(told.path, generation)),
            News::Pending | News::Over(_) => drop(generations.remove(&told.path)),
        }
    }
    generations
}

/// The main function of the program.
async fn live(terms: Terms, history: History, closing: oneshot::Receiver<oneshot::Sender<()>>) {
    let replicas: Vec<_> = terms.replicas.iter().map(SocketAddr::to_string).collect();
    let client = Client::connect(replicas).lazy().expect("addresses are endpoints");
    let mut following = JoinSet::new();
    let mut registrations = Vec::new();
    for path in terms.paths {
        let register = client.register(path.as_str()).data(&terms.data);
        let register = match terms.ttl {
            Some(ttl) => register.ttl(ttl),
            None => register.without_ttl(),
        };
        let registration = register.in_background().expect("the terms of a test are sound");
        following.spawn(history.clone().follow(path, registration.states()));
        registrations.push(registration);
    }
    // The handle was dropped: the program dies. No task is left that could send a goodbye.
    let Ok(mut closed) = closing.await else { return };
    let mut closes = JoinSet::new();
    for registration in registrations {
        closes.spawn(registration.close());
    }
    tokio::select! {
        _ = closes.join_all() => {}
        () = closed.closed() => return,
    }
    // The caller may have stopped waiting.
    let _ = closed.send(());
}

/// The arguments of a process with registrants.
#[derive(Clone, Debug)]
pub struct Many {
    /// The addresses of the replicas.
    pub replicas: Vec<SocketAddr>,
    /// The ttl of the registrations.
    pub ttl: Option<Duration>,
    /// Number of clients, each with its own connection and stream.
    pub clients: usize,
    /// Number of registrations of each client.
    pub each: usize,
    /// The prefix of their paths; the numbers of the client and of the registration follow.
    pub prefix: String,
}

impl Many {
    /// All paths.
    pub fn paths(&self) -> Vec<String> {
        (0..self.clients).flat_map(|client| self.paths_of(client)).collect()
    }

    fn paths_of(&self, client: usize) -> impl Iterator<Item = String> {
        (0..self.each).map(move |index| format!("{}{client}-{index}", self.prefix))
    }

    /// The terms of one client after another.
    fn terms(&self) -> impl Iterator<Item = Terms> {
        (0..self.clients).map(move |client| {
            let (paths, data) = (self.paths_of(client).collect(), json!({ "client": client }));
            Terms { replicas: self.replicas.clone(), ttl: self.ttl, paths, data }
        })
    }

    /// The command line of the program `registrant`.
    pub fn arguments(&self) -> Vec<String> {
        let replicas: Vec<_> = self.replicas.iter().map(SocketAddr::to_string).collect();
        let ttl = self.ttl.unwrap_or_default().as_millis();
        vec![replicas.join(","), ttl.to_string(), self.clients.to_string(), self.each.to_string(), self.prefix.clone()]
    }

    /// Parses the command line of the program `registrant`.
    ///
    /// # Panics
    /// When the arguments are not those of `registrant`.
    pub fn parse(arguments: &[String]) -> Many {
        let [replicas, ttl, clients, each, prefix] = arguments else { panic!("five arguments, not {arguments:?}") };
        let ttl = Duration::from_millis(ttl.parse().expect("a ttl in milliseconds"));
        Many {
            replicas: replicas.split(',').map(|replica| replica.parse().expect("an address")).collect(),
            ttl: (!ttl.is_zero()).then_some(ttl),
            clients: clients.parse().expect("how many clients"),
            each: each.parse().expect("how many registrations each"),
            prefix: prefix.clone(),
        }
    }
}

/// The main function of the program `registrant`: it holds its registrations until it is killed, and prints each report
/// as a line of JSON.
pub async fn run_process(many: &Many) {
    use std::io::Write as _;
    let registrants: Vec<_> = many.terms().map(Registrant::start).collect();
    let mut read = vec![0; registrants.len()];
    loop {
        let mut lines = String::new();
        for (registrant, read) in registrants.iter().zip(&mut read) {
            let told = registrant.history.0.lock().unwrap();
            for told in &told[*read..] {
                lines.push_str(&serde_json::to_string(told).expect("it is plain data"));
                lines.push('\n');
            }
            *read = told.len();
        }
        std::io::stdout().write_all(lines.as_bytes()).expect("standard output stands");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Clients in a process of their own. Dropping kills it.
#[derive(Debug)]
pub struct RegistrantProcess {
    process: Process,
    paths: BTreeSet<String>,
    _directory: TempDir,
}

impl RegistrantProcess {
    /// Starts the process.
    ///
    /// # Panics
    /// When `cargo` has not put the program beside this test program.
    pub fn spawn(many: &Many) -> RegistrantProcess {
        let directory = scratch("registrant");
        let mut command = Command::new(beside("registrant"));
        let process = Process::spawn("registrant", directory.path(), command.args(many.arguments()));
        RegistrantProcess { process, paths: many.paths().into_iter().collect(), _directory: directory }
    }

    /// The process, to be killed or stopped.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// All reports to its clients that it has printed. An incomplete last line is left out.
    pub fn history(&self) -> Vec<Told> {
        let said = self.process.stdout();
        let whole = said.rfind('\n').map_or("", |end| &said[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("a line of a registrant")).collect()
    }

    /// Waits until everything is registered.
    pub async fn registered(&self) {
        eventually("everything is registered", 3 * SOON, async || {
            let history = self.history();
            let registered = |told: &Told| matches!(told.news, News::Registered(_)).then(|| told.path.clone());
            let held: BTreeSet<_> = history.iter().filter_map(registered).collect();
            let missing = self.paths.difference(&held).next();
            check(missing.is_none(), || format!("{missing:?} is missing; told last: {:?}", history.last()))
        })
        .await;
    }
}
