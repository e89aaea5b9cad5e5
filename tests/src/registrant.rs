//! A client as a real one would be: it knows several replicas, sends its keep-alives in time, and when a stream breaks, falls
//! silent or drains it goes to another replica and resumes each registration with the generation that it was last given.
//!
//! [`Registrant`] is one in this process, [`RegistrantProcess`] many in a process of their own, to be killed or stopped.
//! Both keep what they were told, with the times.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rollcall_proto::v1::register_request::Request;
use rollcall_proto::v1::register_response::Response;
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::{self, LostReason};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Streaming};
use tonic_types::StatusExt as _;

use crate::client::{data, resume, set, span};
use crate::process::{Process, scratch};
use crate::wait::{SOON, check, eventually};

/// How long a replica may take to accept a connection and to say `opened`, at most.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a client without a ttl says that it lives.
const WITHOUT_TTL: Duration = Duration::from_secs(1);
/// The longest pause after all replicas were tried in vain.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// What a registrant is to hold, and where.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Where to go; any order.
    pub replicas: Vec<SocketAddr>,
    /// How long what it holds outlives it.
    pub ttl: Option<Duration>,
    /// What it is to hold.
    pub wishes: Vec<Wish>,
}

/// A path that a registrant wants.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The path.
    pub path: String,
    /// What it is to hold there.
    pub value: v1::Value,
    /// The generation that it was last given; none: it starts anew.
    pub generation: Option<i64>,
}

/// One thing that a registrant was told, or found out.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// By whom: the number of a client among those of its process.
    pub client: usize,
    /// When.
    pub at: SystemTime,
    /// What.
    pub news: News,
}

impl fmt::Debug for Told {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        write!(formatter, "{at:.3} #{} {:?}", self.client, self.news)
    }
}

/// See [`Told`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    /// A stream is open.
    Opened(SocketAddr),
    /// A path is registered.
    Registered {
        /// The path.
        path: String,
        /// Its generation.
        generation: i64,
        /// Whether the server made it again unasked.
        restored: bool,
        /// Whether it stood.
        adopted: bool,
    },
    /// A path is gone for this client.
    Lost {
        /// The path.
        path: String,
        /// Which incarnation.
        generation: i64,
        /// Why: the name of a `LostReason`.
        reason: String,
    },
    /// A path can't be had.
    Rejected {
        /// The path.
        path: String,
        /// The stable reason.
        reason: String,
    },
    /// Somebody else wrote into it.
    Overwritten(String),
    /// A keep-alive was answered: the server has heard from us after this moment.
    KeptAlive {
        /// When the keep-alive was handed to the connection.
        asked_at: SystemTime,
    },
    /// The replica is about to stop.
    Draining,
    /// The stream is over, and why.
    Broken(String),
    /// The goodbye was answered in full.
    Closed,
}

/// A client in this process. Dropping it is its death: the connection closes, without a goodbye.
#[derive(Debug)]
pub struct Registrant {
    orders: mpsc::Sender<Order>,
    history: History,
    paths: Vec<String>,
    task: JoinSet<()>,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Close,
}

/// What was told so far.
#[derive(Clone, Debug, Default)]
struct History {
    client: usize,
    told: Arc<Mutex<Vec<Told>>>,
    /// Where each path stands: what was told of it last.
    standing: Arc<Mutex<BTreeMap<String, Standing>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Registered(i64),
    Over,
}

impl History {
    fn note(&self, news: News) {
        self.told.lock().unwrap().push(Told { client: self.client, at: SystemTime::now(), news });
    }
}

impl Registrant {
    /// Begins. It goes on until it is dropped, or all that it held is gone.
    pub fn start(terms: Terms) -> Registrant {
        Registrant::start_as(0, terms)
    }

    fn start_as(client: usize, terms: Terms) -> Registrant {
        let (orders, receiver) = mpsc::channel(1);
        let history = History { client, ..Default::default() };
        let paths = terms.wishes.iter().map(|wish| wish.path.clone()).collect();
        let mut task = JoinSet::new();
        task.spawn(Life::new(terms, history.clone()).run(receiver));
        Registrant { orders, history, paths, task }
    }

    /// Everything that it was told.
    pub fn history(&self) -> Vec<Told> {
        self.history.told.lock().unwrap().clone()
    }

    /// The generation of a path that it holds, as far as it knows.
    pub fn generation(&self, path: &str) -> Option<i64> {
        match self.history.standing.lock().unwrap().get(path) {
            Some(Standing::Registered(generation)) => Some(*generation),
            _ => None,
        }
    }

    /// What it wants to hold.
    pub fn paths(&self) -> &[String] {
        &self.paths
    }

    /// Waits until everything is registered, by whatever replica.
    pub async fn registered(&self) {
        eventually("everything is registered", 3 * SOON, async || {
            let held = self.paths.iter().filter(|path| self.generation(path).is_some()).count();
            check(held == self.paths.len(), || {
                let is_news = |told: &Told| !matches!(told.news, News::KeptAlive { .. });
                let history: Vec<_> = self.history().into_iter().filter(is_news).collect();
                format!("{held} of {}; told last: {:#?}", self.paths.len(), &history[history.len().saturating_sub(8)..])
            })
        })
        .await;
    }

    /// Says goodbye, and waits until everything is taken down; whether that was within `patience`.
    pub async fn close(mut self, patience: Duration) -> bool {
        self.orders.try_send(Order::Close).expect("it has room for one");
        timeout(patience, self.task.join_next()).await.is_ok()
    }
}

/// The state of a registrant that outlives its streams.
struct Life {
    replicas: Vec<SocketAddr>,
    next: usize,
    ttl: Option<Duration>,
    wishes: BTreeMap<String, Wish>,
    history: History,
}

/// Why a stream was left.
enum Leave {
    /// It is of no use any more.
    Broken(String),
    /// The replica goes; the stream still holds what it holds.
    Draining(Box<Stream>),
    /// All is said and done.
    Closed,
}

/// One open stream.
struct Stream {
    requests: mpsc::Sender<v1::RegisterRequest>,
    responses: Streaming<v1::RegisterResponse>,
    interval: Duration,
}

impl Life {
    fn new(terms: Terms, history: History) -> Life {
        let next = rand::random_range(0..terms.replicas.len());
        let wishes = terms.wishes.into_iter().map(|wish| (wish.path.clone(), wish)).collect();
        Life { replicas: terms.replicas, next, ttl: terms.ttl, wishes, history }
    }

    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut failures = 0_u32;
        let mut draining = None;
        loop {
            let replica = self.replicas[self.next % self.replicas.len()];
            self.next += 1;
            let left = match timeout(PATIENCE, self.open(replica)).await {
                Ok(Ok(stream)) => {
                    failures = 0;
                    self.history.note(News::Opened(replica));
                    self.serve(stream, &mut draining, &mut orders).await
                }
                Ok(Err(cause)) => Leave::Broken(cause),
                Err(_) => Leave::Broken(format!("{replica} does not answer")),
            };
            match left {
                Leave::Closed => return self.history.note(News::Closed),
                Leave::Draining(stream) => {
                    self.history.note(News::Draining);
                    draining = Some(stream);
                }
                Leave::Broken(cause) => {
                    self.history.note(News::Broken(cause));
                    failures += 1;
                    if failures as usize >= self.replicas.len() {
                        let pause = Duration::from_millis(25) * 2_u32.pow(failures.min(8));
                        sleep(pause.min(LONGEST_PAUSE).mul_f64(rand::random_range(0.5..1.0))).await;
                    }
                }
            }
        }
    }

    /// A stream on a connection of its own.
    async fn open(&self, replica: SocketAddr) -> Result<Stream, String> {
        let endpoint = Endpoint::from_shared(format!("http://{replica}")).expect("an address is a URI");
        let channel = endpoint.tcp_nodelay(true).connect().await.map_err(|error| format!("{replica}: {error}"))?;
        let mut client = RegistryClient::new(channel).max_decoding_message_size(2 << 20);
        let (requests, queue) = mpsc::channel(64);
        let open = Request::Open(v1::OpenSession { ttl: self.ttl.map(span), ..Default::default() });
        requests.try_send(v1::RegisterRequest { request: Some(open) }).expect("there is room");
        let answer = client.register(ReceiverStream::new(queue)).await.map_err(|status| said(&status))?;
        let mut responses = answer.into_inner();
        let first = responses.message().await.map_err(|status| said(&status))?;
        match first.and_then(|message| message.response) {
            Some(Response::Opened(opened)) => {
                let interval = opened.keep_alive_interval.and_then(|interval| interval.try_into().ok());
                Ok(Stream { requests, responses, interval: interval.unwrap_or(WITHOUT_TTL) })
            }
            other => Err(format!("{other:?} instead of opened")),
        }
    }

    /// Says what it holds, and stays for as long as the stream does. A stream that is being drained is let go when all that
    /// it holds was resumed here.
    async fn serve(
        &mut self,
        mut stream: Stream,
        draining: &mut Option<Box<Stream>>,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Leave {
        let mut unsent: VecDeque<Request> = self.wishes.values().map(Wish::request).collect();
        let mut unanswered = unsent.len();
        let mut asked = VecDeque::new();
        let mut is_closing = false;
        let mut last_heard = Instant::now();
        let mut tick = tokio::time::interval_at(last_heard + stream.interval, stream.interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let requests = stream.requests.clone();
            tokio::select! {
                // First what has arrived: whoever was stopped finds it waiting.
                biased;
                message = stream.responses.message() => {
                    last_heard = Instant::now();
                    let response = match message {
                        Ok(Some(message)) => message.response,
                        Ok(None) if is_closing => return Leave::Closed,
                        Ok(None) => return Leave::Broken("the stream ended".to_owned()),
                        Err(status) => return Leave::Broken(said(&status)),
                    };
                    match response {
                        Some(Response::Draining(_)) => return Leave::Draining(Box::new(stream)),
                        Some(Response::KeptAlive(_)) => {
                            // One that nobody asked for comes only after longer than our keep-alives are apart.
                            if let Some(asked_at) = asked.pop_front() {
                                self.history.note(News::KeptAlive { asked_at });
                            }
                        }
                        Some(response) => {
                            if self.hear(response) {
                                unanswered = unanswered.saturating_sub(1);
                            }
                            if unanswered == 0 {
                                *draining = None;
                            }
                        }
                        None => {}
                    }
                }
                room = requests.reserve(), if !unsent.is_empty() => {
                    let Ok(room) = room else { return Leave::Broken("nobody reads requests".to_owned()) };
                    let request = unsent.pop_front();
                    if matches!(request, Some(Request::KeepAlive(_))) {
                        asked.push_back(SystemTime::now());
                    }
                    room.send(v1::RegisterRequest { request });
                }
                _ = tick.tick() => {
                    let keep_alive = Request::KeepAlive(v1::KeepAlive {});
                    if let Some(draining) = draining {
                        // What has not moved yet is held there. A stream that is full, or over, needs no sign of life.
                        let _ = draining.requests.try_send(v1::RegisterRequest { request: Some(keep_alive.clone()) });
                    }
                    unsent.push_back(keep_alive);
                }
                Some(Order::Close) = orders.recv() => {
                    is_closing = true;
                    unsent.push_back(Request::Close(v1::CloseSession {}));
                }
                () = tokio::time::sleep_until(last_heard + 2 * stream.interval) => {
                    return Leave::Broken(format!("silent for {:?}", 2 * stream.interval));
                }
            }
        }
    }

    /// Notes a response; `true` when it is a set's final answer.
    fn hear(&mut self, response: Response) -> bool {
        let mut standing = self.history.standing.lock().unwrap();
        match response {
            Response::Registered(registered) => {
                let v1::Registered { path, generation, restored, adopted, .. } = registered;
                if let Some(wish) = self.wishes.get_mut(&path) {
                    wish.generation = Some(generation);
                }
                standing.insert(path.clone(), Standing::Registered(generation));
                self.history.note(News::Registered { path, generation, restored, adopted });
                !restored
            }
            Response::Lost(lost) => {
                let reason = lost.reason().as_str_name().to_owned();
                // What has only run out is asked for again on the next stream; the rest belongs to others.
                let is_over = lost.reason() != LostReason::Expired;
                if is_over {
                    self.wishes.remove(&lost.path);
                }
                standing.insert(lost.path.clone(), Standing::Over);
                self.history.note(News::Lost { path: lost.path, generation: lost.generation, reason });
                is_over
            }
            Response::Rejected(rejected) => {
                self.wishes.remove(&rejected.path);
                standing.insert(rejected.path.clone(), Standing::Over);
                self.history.note(News::Rejected { path: rejected.path, reason: rejected.reason });
                true
            }
            Response::Overwritten(overwritten) => {
                self.history.note(News::Overwritten(overwritten.path));
                false
            }
            Response::Unregistered(unregistered) => {
                standing.insert(unregistered.path, Standing::Over);
                false
            }
            Response::Opened(_) | Response::Pending(_) | Response::KeptAlive(_) | Response::Draining(_) => false,
        }
    }
}

impl Wish {
    fn request(&self) -> Request {
        match self.generation {
            Some(generation) => resume(&self.path, self.value.clone(), generation),
            None => set(&self.path, self.value.clone()),
        }
    }
}

/// A status in short.
fn said(status: &tonic::Status) -> String {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    let code: Code = status.code();
    format!("{code:?} {reason} {}", status.message())
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
    pub fn terms(&self) -> impl Iterator<Item = Terms> {
        // With a `created` of its own a client knows its registration again after an answer was lost (Register, rule 5).
        let created = format!("{:?}", SystemTime::now());
        (0..self.clients).map(move |client| {
            let value = data(json!({ "client": client, "created": created }));
            let wish = |path| Wish { path, value: value.clone(), generation: None };
            let wishes = self.paths_of(client).map(wish).collect();
            Terms { replicas: self.replicas.clone(), ttl: self.ttl, wishes }
        })
    }

    /// The command line of the program `registrant`.
    fn arguments(&self) -> Vec<String> {
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
    let registrants: Vec<_> =
        many.terms().enumerate().map(|(client, terms)| Registrant::start_as(client, terms)).collect();
    let mut read = vec![0; registrants.len()];
    loop {
        let mut lines = String::new();
        for (registrant, read) in registrants.iter().zip(&mut read) {
            let told = registrant.history.told.lock().unwrap();
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
    paths: Vec<String>,
    _directory: TempDir,
}

impl RegistrantProcess {
    /// Starts it.
    ///
    /// # Panics
    /// When `cargo` has not put the program beside this test program.
    pub fn spawn(many: &Many) -> RegistrantProcess {
        let test = std::env::current_exe().expect("a program knows where it is");
        // target/PROFILE/deps/TEST
        let program = test.ancestors().nth(2).expect("a test program lies in target").join("registrant");
        let directory = scratch("registrant");
        let mut command = Command::new(program);
        let process = Process::spawn("registrant", directory.path(), command.args(many.arguments()));
        RegistrantProcess { process, paths: many.paths(), _directory: directory }
    }

    /// The process, to be killed or stopped.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Everything that it was told and has printed. A line that is not complete yet is left out.
    pub fn history(&self) -> Vec<Told> {
        let said = self.process.stdout();
        let whole = said.rfind('\n').map_or("", |end| &said[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("a line of a registrant")).collect()
    }

    /// Waits until everything is registered.
    pub async fn registered(&self) {
        eventually("everything is registered", 3 * SOON, async || {
            let history = self.history();
            let registered = |told: &Told| match &told.news {
                News::Registered { path, .. } => Some(path.clone()),
                _ => None,
            };
            let held: HashSet<_> = history.iter().filter_map(registered).collect();
            let missing = self.paths.iter().find(|path| !held.contains(*path));
            check(missing.is_none(), || format!("{missing:?} is missing; told last: {:?}", history.last()))
        })
        .await;
    }
}
