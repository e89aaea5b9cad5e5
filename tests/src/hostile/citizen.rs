//! The good citizen: a client that asks for little, and measures how others affect the replica.
//!
//! It holds a registration with a ttl and keeps it alive, watches, and reads every 50 ms. Each second it reads a path
//! that has not been read before, registers a new name, and takes and releases a lock. At intervals a client with a ttl
//! of 1 s dies. It compares the nodes in ZooKeeper with the answers that it got.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rollcall_proto::v1::acquire_lock_response::Event as LockEvent;
use rollcall_proto::v1::register_request::Request;
use rollcall_proto::v1::register_response::Response;
use rollcall_proto::v1::watch_response::Event;
use rollcall_proto::v1::{self, ChangeKind};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};

use crate::client::{Client, span, text};
use crate::wait::{SOON, check, eventually};
use crate::zookeeper_witness::Witness;

/// The citizen's own address. The floods have another, and some take all connections that one address may have.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// The path below which the citizen registers, and which it reads and watches.
pub const HOME: &str = "/citizen";
/// The lasting registration.
const STEADY: &str = "/citizen/steady";
/// The ttl of the lasting registration.
const TTL: Duration = Duration::from_secs(5);
/// The ttl of the clients that die.
const SHORT_TTL: Duration = Duration::from_secs(1);

/// Time-outs of the citizen.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Time-out of a call.
    pub call: Duration,
    /// Time-out for the end of a dead client's registration.
    pub expiry: Duration,
}

/// A kind of action of the citizen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Reads its home, 20 times a second.
    Get,
    /// Reads a path that has not been read before.
    FreshGet,
    /// Sends a keep-alive for its registration.
    KeepAlive,
    /// Registers a new name.
    Register,
    /// Waits until the watcher reports the new name, from the begin of its registration.
    Watch,
    /// Takes a lock and releases it.
    Lock,
    /// Waits for the end of a dead client's registration, and measures how late it is.
    Expire,
}

impl Act {
    /// All kinds.
    pub const ALL: [Act; 7] =
        [Act::Get, Act::FreshGet, Act::KeepAlive, Act::Register, Act::Watch, Act::Lock, Act::Expire];

    /// The part of its time that does not count.
    fn granted(self) -> Duration {
        if self == Act::Expire { SHORT_TTL } else { Duration::ZERO }
    }
}

/// One finished act.
#[derive(Clone, Debug)]
struct Sample {
    act: Act,
    begun: Instant,
    took: Duration,
    failure: Option<String>,
}

/// The record of the citizen.
#[derive(Debug, Default)]
struct Record {
    samples: Vec<Sample>,
    /// The acts in progress, by number.
    under_way: BTreeMap<u64, (Act, Instant)>,
    begun: u64,
    /// Registrations that were acknowledged to the citizen, and did not exist.
    missed: Vec<(Instant, String)>,
    /// The unanswered keep-alives.
    waiting: VecDeque<Instant>,
    generation: Option<i64>,
    /// The names that the watcher knows; `None` before its first state.
    known: Option<BTreeSet<String>>,
}

/// A running citizen. Dropping ends it.
#[derive(Debug)]
pub struct Citizen {
    shared: Shared,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Debug)]
struct Shared {
    address: SocketAddr,
    zk: Witness,
    patience: Patience,
    record: Arc<Mutex<Record>>,
}

impl Citizen {
    /// Starts a citizen, and returns when it is registered and watches. `zk` is a session in the server's chroot. An
    /// act that takes longer than `patience` has failed.
    pub async fn start(address: SocketAddr, zk: Witness, patience: Patience) -> Citizen {
        let shared = Shared { address, zk, patience, record: Arc::default() };
        let mut tasks = JoinSet::new();
        tasks.spawn(shared.clone().keep_registered());
        tasks.spawn(shared.clone().watch());
        eventually("the citizen is registered, and watches", 2 * SOON, async || {
            let known = shared.read(|record| record.known.clone());
            check(known.is_some_and(|known| known.contains("steady")), || format!("{:?}", shared.record))
        })
        .await;
        tasks.spawn(shared.clone().look_into_zookeeper());
        tasks.spawn(shared.clone().read_often());
        tasks.spawn(shared.clone().do_something_new());
        tasks.spawn(shared.clone().die_now_and_then());
        Citizen { shared, _tasks: tasks }
    }

    /// The duration of each act that began in this interval. A failed act counts for at least the time-out of a call,
    /// an unfinished one for as long as it has taken so far.
    pub fn times(&self, act: Act, from: Instant, to: Instant) -> Vec<Duration> {
        self.shared.read(|record| {
            let done = record.samples.iter().filter(|sample| sample.act == act && (from..to).contains(&sample.begun));
            let mut times: Vec<_> = done.map(|sample| sample.took).collect();
            let granted = act.granted();
            let under_way =
                record.under_way.values().filter(|(other, begun)| *other == act && (from..to).contains(begun));
            times.extend(under_way.map(|(_, begun)| begun.elapsed().saturating_sub(granted)));
            if act == Act::KeepAlive {
                times.extend(record.waiting.iter().filter(|sent| (from..to).contains(sent)).map(Instant::elapsed));
            }
            times
        })
    }

    /// The slowest acts of one kind that began in this interval, at most `most`: the begin of each, counted from
    /// `from`, and its duration.
    pub fn slowest(&self, act: Act, from: Instant, to: Instant, most: usize) -> Vec<(Duration, Duration)> {
        self.shared.read(|record| {
            let done = record.samples.iter().filter(|sample| sample.act == act && (from..to).contains(&sample.begun));
            let mut slowest: Vec<_> = done.map(|sample| (sample.begun - from, sample.took)).collect();
            slowest.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
            slowest.truncate(most);
            slowest
        })
    }

    /// Waits until all acts that began before `before` are over, and an act of each kind has begun and succeeded since.
    pub async fn answered(&self, before: Instant) {
        let longest = self.shared.patience.call.max(self.shared.patience.expiry) + 2 * SOON;
        eventually("the citizen's calls are over, and new ones are answered", longest, async || {
            let begun = |record: &Record| record.under_way.values().filter(|(_, begun)| *begun < before).count();
            let left = self.shared.read(begun);
            check(left == 0, || format!("{left} are not"))?;
            let succeeded = |act| {
                let is_it = |sample: &Sample| sample.act == act && sample.begun > before && sample.failure.is_none();
                self.shared.read(|record| record.samples.iter().any(is_it))
            };
            let missing: Vec<_> = Act::ALL.into_iter().filter(|act| !succeeded(*act)).collect();
            check(missing.is_empty(), || {
                let failures = |record: &Record| record.samples.iter().rev().find_map(|sample| sample.failure.clone());
                format!("no {missing:?} since; the last failure: {:?}", self.shared.read(failures))
            })
        })
        .await;
    }

    /// The errors of failed acts that began in this interval.
    pub fn failures(&self, from: Instant, to: Instant) -> Vec<(Act, String)> {
        let failure = |sample: &Sample| Some((sample.act, sample.failure.clone()?));
        let in_time = |sample: &&Sample| (from..to).contains(&sample.begun);
        self.shared.read(|record| record.samples.iter().filter(in_time).filter_map(failure).collect())
    }

    /// The number of acts that began and succeeded within this interval.
    pub fn succeeded(&self, act: Act, from: Instant, to: Instant) -> usize {
        let succeeded = |sample: &&Sample| {
            let over = sample.begun + sample.took + act.granted();
            sample.act == act && sample.failure.is_none() && sample.begun >= from && over <= to
        };
        self.shared.read(|record| record.samples.iter().filter(succeeded).count())
    }

    /// The registrations that should have existed in this interval, and did not.
    pub fn missed(&self, from: Instant, to: Instant) -> Vec<String> {
        let in_time = |missed: &&(Instant, String)| (from..to).contains(&missed.0);
        self.shared.read(|record| record.missed.iter().filter(in_time).map(|(_, what)| what.clone()).collect())
    }
}

/// A Register stream with one registration.
struct Held {
    requests: mpsc::Sender<v1::RegisterRequest>,
    answers: Streaming<v1::RegisterResponse>,
    generation: i64,
    /// Keep-alives that are not answered yet.
    unanswered: usize,
}

impl Shared {
    fn read<T>(&self, read: impl FnOnce(&Record) -> T) -> T {
        read(&self.record.lock().unwrap())
    }

    fn missed(&self, what: String) {
        self.record.lock().unwrap().missed.push((Instant::now(), what));
    }

    /// A client with its own connection, which reconnects when it breaks.
    fn client(&self) -> Client {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("an address is a URI");
        Client::new(endpoint.local_address(Some(ADDRESS)).tcp_nodelay(true).connect_lazy())
    }

    /// Makes a call and records its duration. `None` when it failed.
    async fn timed<T>(&self, act: Act, call: impl Future<Output = Result<T, Status>>) -> Option<T> {
        let number = self.begin(act);
        let done = timeout(self.patience.call, call).await;
        let (done, failure) = match done {
            Ok(Ok(done)) => (Some(done), None),
            Ok(Err(status)) => (None, Some(format!("{:?}: {}", status.code(), status.message()))),
            Err(_) => (None, Some("no answer".to_owned())),
        };
        self.end(number, failure);
        done
    }

    fn begin(&self, act: Act) -> u64 {
        let mut record = self.record.lock().unwrap();
        let number = record.begun;
        record.begun += 1;
        record.under_way.insert(number, (act, Instant::now()));
        number
    }

    fn end(&self, number: u64, failure: Option<String>) {
        let mut record = self.record.lock().unwrap();
        let Some((act, begun)) = record.under_way.remove(&number) else { return };
        // A call that is refused at once would look fast.
        let least = if failure.is_some() { self.patience.call } else { Duration::ZERO };
        let took = begun.elapsed().saturating_sub(act.granted()).max(least);
        record.samples.push(Sample { act, begun, took, failure });
    }

    async fn keep_registered(self) {
        loop {
            let client = self.client();
            let generation = self.read(|record| record.generation);
            if let Some(held) = self.timed(Act::Register, register(&client, STEADY, Some(TTL), generation)).await {
                if generation.is_some_and(|generation| generation != held.generation) {
                    self.missed(format!("{STEADY} was registered anew"));
                }
                self.record.lock().unwrap().generation = Some(held.generation);
                let why = self.keep_alive(held).await;
                let mut record = self.record.lock().unwrap();
                record.waiting.clear();
                let failure = Some(format!("the stream is over: {why}"));
                record.samples.push(Sample {
                    act: Act::KeepAlive,
                    begun: Instant::now(),
                    took: self.patience.call,
                    failure,
                });
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Keeps the registration alive until the stream ends, and returns how it ended.
    async fn keep_alive(&self, mut held: Held) -> String {
        let mut ticks = regularly(Duration::from_secs(1));
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let keep_alive = Some(Request::KeepAlive(v1::KeepAlive {}));
                    if held.requests.try_send(v1::RegisterRequest { request: keep_alive }).is_ok() {
                        self.record.lock().unwrap().waiting.push_back(Instant::now());
                    }
                }
                answer = held.answers.message() => match answer {
                    Ok(Some(v1::RegisterResponse { response: Some(Response::KeptAlive(_)) })) if held.unanswered > 0 => {
                        held.unanswered -= 1;
                    }
                    Ok(Some(v1::RegisterResponse { response: Some(Response::KeptAlive(_)) })) => {
                        let mut record = self.record.lock().unwrap();
                        if let Some(begun) = record.waiting.pop_front() {
                            let took = begun.elapsed();
                            record.samples.push(Sample { act: Act::KeepAlive, begun, took, failure: None });
                        }
                    }
                    Ok(Some(v1::RegisterResponse { response: Some(Response::Pending(_)) })) => {}
                    Ok(Some(other)) => self.missed(format!("{STEADY}: {:?}", other.response)),
                    Ok(None) => return "OK".to_owned(),
                    Err(status) => return format!("{:?}: {}", status.code(), status.message()),
                },
            }
        }
    }

    async fn watch(self) {
        loop {
            let request = v1::WatchRequest { path: HOME.to_owned(), ..Default::default() };
            let mut client = self.client();
            match client.watch(request).await {
                Ok(answer) => self.read_events(answer.into_inner()).await,
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn read_events(&self, mut events: Streaming<v1::WatchResponse>) {
        let mut parts = BTreeSet::new();
        while let Ok(Some(message)) = events.message().await {
            match message.event {
                Some(Event::Snapshot(snapshot)) => {
                    parts.extend(snapshot.node.unwrap_or_default().children.into_keys());
                    if !snapshot.more {
                        self.record.lock().unwrap().known = Some(std::mem::take(&mut parts));
                    }
                }
                Some(Event::Delta(delta)) => delta.changes.into_iter().for_each(|change| self.changed(change)),
                _ => {}
            }
        }
    }

    fn changed(&self, change: v1::Change) {
        if change.kind() == ChangeKind::Removed && STEADY.ends_with(&format!("/{}", change.name)) {
            self.missed(format!("the watcher is told that {STEADY} is gone"));
        }
        let mut record = self.record.lock().unwrap();
        let known = record.known.get_or_insert_default();
        match change.kind() {
            ChangeKind::Removed => drop(known.remove(&change.name)),
            ChangeKind::Added => drop(known.insert(change.name)),
            ChangeKind::Deleted => known.clear(),
            _ => {}
        }
    }

    async fn look_into_zookeeper(self) {
        let (mut ticks, mut was_there) = (regularly(Duration::from_millis(250)), true);
        loop {
            ticks.tick().await;
            let generation = self.read(|record| record.generation);
            // When ZooKeeper does not answer, nothing is compared.
            if let Ok(Ok(stat)) = timeout(self.patience.call, self.zk.client().check_stat(STEADY)).await
                && self.read(|record| record.generation) == generation
            {
                let is_there = stat.map(|stat| stat.czxid) == generation;
                if was_there && !is_there {
                    self.missed(format!("{STEADY} is not in ZooKeeper"));
                }
                was_there = is_there;
            }
        }
    }

    async fn read_often(self) {
        let (mut ticks, mut calls) = (regularly(Duration::from_millis(50)), JoinSet::new());
        let client = self.client();
        loop {
            ticks.tick().await;
            let (shared, client) = (self.clone(), client.clone());
            calls.spawn(async move {
                let node = shared.timed(Act::Get, get(&client, HOME)).await;
                if node.is_some_and(|node| !node.children.contains_key("steady")) {
                    shared.missed(format!("a Get has no {STEADY}"));
                }
            });
            while calls.try_join_next().is_some() {}
        }
    }

    async fn do_something_new(self) {
        let (mut ticks, mut calls, client) = (regularly(Duration::from_secs(1)), JoinSet::new(), self.client());
        for number in 0_u64.. {
            ticks.tick().await;
            let (shared, call) = (self.clone(), client.clone());
            calls
                .spawn(async move { drop(shared.timed(Act::FreshGet, get(&call, &format!("/fresh-{number}"))).await) });
            let (shared, call) = (self.clone(), client.clone());
            calls.spawn(async move { shared.register_something(&call, number).await });
            let (shared, call) = (self.clone(), client.clone());
            let path = format!("/citizen-lock-{}", number % 3);
            calls.spawn(async move {
                shared.timed(Act::Lock, lock(&call, &path)).await;
            });
            while calls.try_join_next().is_some() {}
        }
    }

    /// Registers a new name, looks for it in ZooKeeper, and waits until the watcher knows it.
    async fn register_something(&self, client: &Client, number: u64) {
        let name = format!("fresh-{number}");
        let path = format!("{HOME}/{name}");
        let (watched, begun) = (self.begin(Act::Watch), Instant::now());
        let Some(held) = self.timed(Act::Register, register(client, &path, None, None)).await else {
            self.record.lock().unwrap().under_way.remove(&watched);
            return;
        };
        if let Ok(Ok(stat)) = timeout(self.patience.call, self.zk.client().check_stat(&path)).await
            && stat.map(|stat| stat.czxid) != Some(held.generation)
        {
            self.missed(format!("{path} was acknowledged and is not in ZooKeeper"));
        }
        let is_known = || self.read(|record| record.known.as_ref().is_some_and(|known| known.contains(&name)));
        while !is_known() && begun.elapsed() < 2 * self.patience.call {
            sleep(Duration::from_millis(2)).await;
        }
        self.end(watched, (!is_known()).then(|| "the watcher is not told".to_owned()));
    }

    async fn die_now_and_then(self) {
        let mut ticks = regularly(Duration::from_secs(2));
        for number in 0_u64.. {
            ticks.tick().await;
            let path = format!("/citizen-dead/{number}");
            let client = self.client();
            let registering = async {
                match register(&client, &path, Some(SHORT_TTL), None).await {
                    // This process did not get the processor for as long as the ttl.
                    Err(status) if status.code() == Code::Aborted => Ok(None),
                    registered => registered.map(Some),
                }
            };
            let Some(held) = self.timed(Act::Register, registering).await.flatten() else { continue };
            drop((held, client));
            let (number, begun) = (self.begin(Act::Expire), Instant::now());
            let mut is_gone = false;
            while !is_gone && begun.elapsed() < self.patience.expiry {
                sleep(Duration::from_millis(20)).await;
                let stat = timeout(self.patience.call, self.zk.client().check_stat(&path)).await;
                is_gone = matches!(stat, Ok(Ok(None)));
            }
            self.end(number, (!is_gone).then(|| format!("{path} outlives its ttl by {:?}", begun.elapsed())));
        }
    }
}

fn regularly(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

async fn get(client: &Client, path: &str) -> Result<v1::Node, Status> {
    let request = v1::GetRequest { path: path.to_owned(), ..Default::default() };
    Ok(client.clone().get(request).await?.into_inner().node.unwrap_or_default())
}

/// Opens a Register stream and registers one path, or resumes the registration of this generation.
async fn register(client: &Client, path: &str, ttl: Option<Duration>, generation: Option<i64>) -> Result<Held, Status> {
    let (requests, receiver) = mpsc::channel(64);
    let open = v1::OpenSession { ttl: ttl.map(span), ..Default::default() };
    let set = v1::SetRegistration { path: path.to_owned(), value: Some(text("x")), generation, ..Default::default() };
    for request in [Request::Open(open), Request::Set(set)] {
        requests.try_send(v1::RegisterRequest { request: Some(request) }).expect("there is room");
    }
    let mut answers = client.clone().register(ReceiverStream::new(receiver)).await?.into_inner();
    // The answer may take longer than the ttl.
    let (mut ticks, mut unanswered) = (regularly(ttl.unwrap_or(TTL) / 4), 0);
    loop {
        let answer = tokio::select! {
            answer = answers.message() => answer?,
            _ = ticks.tick() => {
                let keep_alive = Some(Request::KeepAlive(v1::KeepAlive {}));
                // A full queue already contains enough keep-alives.
                unanswered += usize::from(requests.try_send(v1::RegisterRequest { request: keep_alive }).is_ok());
                continue;
            }
        };
        match answer.and_then(|message| message.response) {
            Some(Response::Registered(registered)) => {
                return Ok(Held { requests, answers, generation: registered.generation, unanswered });
            }
            Some(Response::KeptAlive(_)) => unanswered = unanswered.saturating_sub(1),
            Some(Response::Opened(_) | Response::Pending(_)) => {}
            other => return Err(Status::internal(format!("not registered: {other:?}"))),
        }
    }
}

/// Takes a lock and releases it.
async fn lock(client: &Client, path: &str) -> Result<(), Status> {
    let request = v1::AcquireLockRequest { path: path.to_owned(), ..Default::default() };
    let mut events = client.clone().acquire_lock(request).await?.into_inner();
    loop {
        match events.message().await?.and_then(|message| message.event) {
            Some(LockEvent::Held(held)) => {
                client.clone().release_lock(v1::ReleaseLockRequest { lock_id: held.lock_id }).await?;
                return Ok(());
            }
            Some(LockEvent::Queued(_) | LockEvent::Heartbeat(_)) => {}
            other => return Err(Status::internal(format!("not held: {other:?}"))),
        }
    }
}
