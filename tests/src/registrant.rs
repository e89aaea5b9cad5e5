//! Programs that register as any does, with the crate `rollcall`, and with no code for what happens to replicas.
//!
//! [`Registrant`] is one in this process, [`RegistrantProcess`] many in a process of their own, to be killed or stopped.
//! Both keep what the client told them, with the times.

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

/// What a registrant is to hold, and where.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Where to go; any order.
    pub replicas: Vec<SocketAddr>,
    /// How long what it holds outlives it.
    pub ttl: Option<Duration>,
    /// What it is to hold.
    pub paths: Vec<String>,
    /// The data of each.
    pub data: Json,
}

/// One thing that a registrant was told of a path.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// When.
    pub at: SystemTime,
    /// Of which path.
    pub path: String,
    /// What.
    pub news: News,
}

impl fmt::Debug for Told {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        write!(formatter, "{at:.3} {} {:?}", self.path, self.news)
    }
}

/// A [`RegistrationState`] that can be written down.
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

/// What was told so far.
#[derive(Clone, Debug, Default)]
struct History(Arc<Mutex<Vec<Told>>>);

impl History {
    /// Notes each state of a registration.
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
    /// Begins. It goes on until it is dropped or closed.
    pub fn start(terms: Terms) -> Registrant {
        let (close, closing) = oneshot::channel();
        let (history, paths) = (History::default(), terms.paths.clone());
        let noted = history.clone();
        // With a runtime of its own everything of it ends at once, and no state is over before it was noted.
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(live(terms, noted, closing));
        });
        Registrant { close, history, paths }
    }

    /// Everything that it was told.
    pub fn history(&self) -> Vec<Told> {
        self.history.0.lock().unwrap().clone()
    }

    /// The generations of what it holds, as far as it knows.
    pub fn generations(&self) -> BTreeMap<String, i64> {
        generations(self.history())
    }

    /// Waits until everything is registered, by whatever replica.
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

    /// Takes down everything, and waits for it, for at most `patience`; whether that was enough.
    pub async fn close(self, patience: Duration) -> bool {
        let (closed, done) = oneshot::channel();
        self.close.send(closed).expect("it runs");
        timeout(patience, done).await.is_ok()
    }
}

/// The generations of what a program holds, by what it was told.
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

/// What the program does.
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
    // Its handle was dropped: it dies. Nothing runs any more that could send a goodbye.
    let Ok(mut closed) = closing.await else { return };
    let mut closes = JoinSet::new();
    for registration in registrations {
        closes.spawn(registration.close());
    }
    tokio::select! {
        _ = closes.join_all() => {}
        () = closed.closed() => return,
    }
    // Nobody may wait any more.
    let _ = closed.send(());
}

/// What a process of registrants is to do.
#[derive(Clone, Debug)]
pub struct Many {
    /// Where to go.
    pub replicas: Vec<SocketAddr>,
    /// How long what they hold outlives them.
    pub ttl: Option<Duration>,
    /// How many clients, each with a connection and a stream of its own.
    pub clients: usize,
    /// How many registrations each holds.
    pub each: usize,
    /// What their paths begin with; the numbers of the client and of the registration follow.
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

    /// One client after the other.
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

    /// Reads the command line of the program `registrant`.
    ///
    /// # Panics
    /// When it is another one.
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

/// What the program `registrant` does: holds its registrations until it is killed, and prints what it is told, one JSON
/// line each.
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
    /// Starts it.
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

    /// Everything that its clients were told and it has printed. A line that is not complete yet is left out.
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
