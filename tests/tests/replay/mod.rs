//! A replay oracle for Watch: several random writers; connections are cut and replicas killed under the readers, which
//! resume from their revision at any replica. An observer with an undisturbed connection records every transaction. In
//! the end each state that any reader has had is compared with ZooKeeper's state at that revision.

mod reader;

use std::collections::{BTreeMap, HashMap};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rollcall_proto::v1;
use rollcall_tests::arm::Arm;
use rollcall_tests::client::{Client, Registration, delete, put, text};
use rollcall_tests::process::{Process, scratch};
use rollcall_tests::proxy::Proxy;
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually};
use rollcall_tests::zookeeper::Sandbox;
use rollcall_tests::zookeeper_witness::Witness;
use serde_json::{Value as Json, json};
use tokio::task::JoinSet;
use tokio::time::timeout;
use zookeeper_client::{AddWatchMode, CreateMode, EventType, PersistentWatcher, WatchedEvent};

use self::reader::{Copy, Reader, Seen, State, first_line};

const ROOT: &str = "/replay/root";
/// The last node written.
const END: &str = "end";
const READERS: u64 = 8;
/// Minimum number of faults and of transactions.
const FAULTS: usize = 24;
const TRANSACTIONS: usize = 600;
/// Maximum number of faults, however slow the machine is.
const MOST_FAULTS: usize = 200;

/// The faults of the replicas, and the behaviour of readers and writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    /// Short outages, in which no session ends; readers that are hardly ever far behind.
    Gentle,
    /// Outages that ZooKeeper sessions do not survive; readers that stay away until the ring has dropped their
    /// revision.
    Rough,
}

impl Course {
    fn options(self) -> &'static [&'static str] {
        match self {
            Course::Gentle => &[],
            Course::Rough => &["--session-timeout", "3s"],
        }
    }

    fn faults(self) -> usize {
        match self {
            Course::Gentle => FAULTS,
            Course::Rough => FAULTS / 4,
        }
    }

    /// Maximum time for which readers are away between two streams, in milliseconds.
    fn absence(self) -> u64 {
        match self {
            Course::Gentle => 30,
            Course::Rough => 1500,
        }
    }

    /// Text after the first line of some values: a few of them fill a ring.
    fn padding(self) -> String {
        match self {
            Course::Gentle => String::new(),
            Course::Rough => "x".repeat(32 * 1024),
        }
    }
}

/// The values by path and transaction, as known to writers and readers.
type Values = HashMap<(String, i64), Json>;

/// State shared by all tasks.
struct World {
    course: Course,
    sandbox: Sandbox,
    /// Clients of the running replicas.
    clients: Mutex<Vec<Client>>,
    values: Mutex<Values>,
    transactions: AtomicUsize,
    is_over: AtomicBool,
}

impl World {
    fn client(&self, random: &mut StdRng) -> Client {
        let clients = self.clients.lock().unwrap();
        clients[random.random_range(0..clients.len())].clone()
    }

    fn wrote(&self, path: &str, mzxid: i64, value: &str) {
        let name = path.strip_prefix(ROOT).unwrap().trim_start_matches('/').to_owned();
        self.values.lock().unwrap().insert((name, mzxid), json!({ "text": value }));
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// Sleeps for a random time.
async fn pause(random: &mut StdRng, most: u64) {
    tokio::time::sleep(Duration::from_millis(random.random_range(1..=most))).await;
}

// --- writers

/// Writes durable nodes with Put and Delete, through any replica.
async fn write_durable(world: Arc<World>, mut random: StdRng) {
    for step in 0.. {
        if world.is_over() {
            return;
        }
        let client = world.client(&mut random);
        let path = match random.random_range(0..8) {
            0 => ROOT.to_owned(),
            1 => format!("{ROOT}/deep/d{}", random.random_range(0..3)),
            _ => format!("{ROOT}/shared{}", random.random_range(0..6)),
        };
        let value = format!("put {step}");
        // A failed write has at worst an unknown outcome. If it happened, readers know the value.
        if path != ROOT && random.random_bool(0.3) {
            drop(delete(&client, &path).await);
        } else if let Ok(stat) = put(&client, &path, text(&value)).await {
            world.wrote(&path, stat.mzxid, &value);
        }
        pause(&mut random, 20).await;
    }
}

/// Makes registrations that come, are taken over with the same and with other data, and go.
async fn write_registrations(world: Arc<World>, mut random: StdRng) {
    let mut streams: Vec<Registration> = Vec::new();
    for step in 0.. {
        if world.is_over() {
            return;
        }
        if streams.len() > 4 || random.random_bool(0.2) {
            streams.drain(..streams.len() / 2);
        }
        let client = world.client(&mut random);
        let path = format!("{ROOT}/service{}", random.random_range(0..4));
        // Half of them are takeovers with the same data.
        let value = if random.random_bool(0.5) { "same".to_owned() } else { format!("registered {step}") };
        let set = rollcall_tests::client::set(&path, text(&value));
        let opened = timeout(SOON, Registration::open_with(&client, [set])).await;
        if let Ok(Ok(mut stream)) = opened {
            if let Ok(Ok(Some(v1::register_response::Response::Registered(registered)))) =
                timeout(Duration::from_millis(500), stream.next()).await
            {
                world.wrote(&path, registered.generation, &value);
            }
            streams.push(stream);
        }
        pause(&mut random, 60).await;
    }
}

/// Writes with a bare ZooKeeper client, which also deletes the whole path at times.
async fn write_zk(world: Arc<World>, mut random: StdRng) {
    let zk = world.sandbox.zk().await;
    let client = zk.client();
    let open = CreateMode::Persistent.with_acls(zookeeper_client::Acls::anyone_all());
    for step in 0.. {
        if world.is_over() {
            return;
        }
        let value = format!("bare {step}");
        let data = format!("{value}\n{}", world.course.padding());
        let path = format!("{ROOT}/shared{}", random.random_range(0..6));
        match random.random_range(0..40) {
            0 => remove_all(&zk).await,
            1..10 => drop(client.delete(&path, None).await),
            10..25 => {
                if let Ok(stat) = client.set_data(&path, data.as_bytes(), None).await {
                    world.wrote(&path, stat.mzxid, &value);
                }
            }
            _ => {
                drop(client.mkdir(ROOT, &open).await);
                if let Ok((stat, _)) = client.create(&path, data.as_bytes(), &open).await {
                    world.wrote(&path, stat.mzxid, &value);
                }
            }
        }
        pause(&mut random, 15).await;
    }
}

/// Other tasks write meanwhile, so failed deletes are ignored.
async fn remove_all(zk: &Witness) {
    let client = zk.client();
    for name in zk.children(ROOT).await.unwrap_or_default() {
        for below in zk.children(&format!("{ROOT}/{name}")).await.unwrap_or_default() {
            drop(client.delete(&format!("{ROOT}/{name}/{below}"), None).await);
        }
        drop(client.delete(&format!("{ROOT}/{name}"), None).await);
    }
    drop(client.delete(ROOT, None).await);
}

// --- the oracle

/// Records every event until the last node is written.
async fn record(world: Arc<World>, mut watcher: PersistentWatcher) -> Vec<WatchedEvent> {
    let mut events = Vec::new();
    loop {
        let event = watcher.changed().await;
        assert_ne!(event.event_type, EventType::Session, "nobody touches this connection");
        let is_end = event.path == format!("{ROOT}/{END}");
        events.push(event);
        world.transactions.store(events.len(), Ordering::Relaxed);
        if is_end {
            return events;
        }
    }
}

/// Compares each state of a reader with ZooKeeper's state at its revision. Returns the number of compared states.
fn compare(reader: &Reader, events: &[WatchedEvent], values: &Values) -> usize {
    let mut truth: BTreeMap<String, i64> = BTreeMap::new();
    let mut next = 0;
    for (number, State { revision, known, .. }) in reader.history.iter().enumerate() {
        while let Some(event) = events.get(next).filter(|event| event.zxid <= *revision) {
            next += 1;
            let Some(name) = event.path.strip_prefix(ROOT) else { continue };
            let name = name.trim_start_matches('/').to_owned();
            if name.contains('/') && !reader.request.recursive {
                continue;
            }
            match event.event_type {
                EventType::NodeDeleted => drop(truth.remove(&name)),
                _ => drop(truth.insert(name, event.zxid)),
            }
        }
        // The stat may be from before a takeover; then the data were the same.
        let is_right = |(name, seen): (&String, &Seen)| {
            let Some(zxid) = truth.get(name) else { return false };
            let written = values.get(&(name.clone(), *zxid));
            seen.mzxid <= *zxid && written.is_none_or(|value| *value == seen.value)
        };
        if known.len() != truth.len() || !known.iter().all(is_right) {
            let states = reader.history[number.saturating_sub(8)..=number].iter();
            let states: Vec<_> = states.map(|state| format!("{} {}", state.revision, state.how)).collect();
            let around = &events[next.saturating_sub(12)..events.len().min(next + 6)];
            let around: Vec<_> =
                around.iter().map(|event| format!("{} {:?} {}", event.zxid, event.event_type, event.path)).collect();
            panic!(
                "at {revision}, recursive {}, full {}:\n{known:?}\nis not\n{truth:?}\nthe reader's last states:\n{}\n\
                 what happened:\n{}",
                reader.request.recursive,
                reader.request.full,
                states.join("\n"),
                around.join("\n")
            );
        }
    }
    reader.history.len()
}

/// Adds the values that readers have seen to those that writers know.
fn learn(values: &mut Values, readers: &[Reader]) {
    let histories = readers.iter().flat_map(|reader| &reader.history);
    for (name, seen) in histories.flat_map(|state| &state.known) {
        let known = values.entry((name.clone(), seen.mzxid)).or_insert_with(|| seen.value.clone());
        assert_eq!(*known, seen.value, "{name:?} as {} wrote it", seen.mzxid);
    }
}

/// ZooKeeper's final state.
async fn read_all(zk: &Witness) -> Copy {
    let mut copy = Copy::new();
    let mut names = vec![String::new()];
    while let Some(name) = names.pop() {
        let path = format!("{ROOT}/{name}");
        let path = path.trim_end_matches('/');
        let node = zk.get(path).await.unwrap();
        let value = if node.data.is_empty() { Json::Null } else { first_line(json!({ "text": node.text() })) };
        let below = zk.children(path).await.unwrap();
        names.extend(below.iter().map(|child| format!("{name}/{child}").trim_start_matches('/').to_owned()));
        copy.insert(name, Seen { value, mzxid: node.stat.mzxid });
    }
    copy
}

/// Two replicas, each with a proxy to ZooKeeper.
struct Replicas {
    world: Arc<World>,
    proxies: [Proxy; 2],
    servers: [Server; 2],
}

impl Replicas {
    async fn start(world: &Arc<World>) -> Replicas {
        let proxy = async || Proxy::start(world.sandbox.servers.parse().unwrap()).await;
        let proxies = [proxy().await, proxy().await];
        let hosts = proxies.each_ref().map(|proxy| format!("{}{}", proxy.address(), world.sandbox.chroot));
        let start = async |hosts| Server::start_with(hosts, world.course.options()).await;
        let servers = [start(&hosts[0]).await, start(&hosts[1]).await];
        let replicas = Replicas { world: world.clone(), proxies, servers };
        replicas.tell().await;
        replicas
    }

    /// Gives all tasks clients of the running replicas.
    async fn tell(&self) {
        let clients = vec![self.servers[0].client().await, self.servers[1].client().await];
        *self.world.clients.lock().unwrap() = clients;
    }

    async fn break_something(&mut self, random: &mut StdRng) {
        let which = random.random_range(0..2);
        let proxy = &self.proxies[which];
        let course = self.world.course;
        match (random.random_range(0..6), course) {
            (0, _) => {
                self.servers[which].process().kill();
                let hosts = format!("{}{}", proxy.address(), self.world.sandbox.chroot);
                self.servers[which] = Server::start_with(&hosts, course.options()).await;
                self.tell().await;
            }
            (1, Course::Gentle) => {
                proxy.refuse().await;
                proxy.cut();
                pause(random, 1500).await;
                proxy.accept().await;
            }
            (_, Course::Rough) => {
                proxy.refuse().await;
                proxy.cut();
                // ZooKeeper ends sessions on the boundaries of its ticks, which are a second.
                tokio::time::sleep(Duration::from_millis(4500)).await;
                proxy.accept().await;
            }
            _ => proxy.cut(),
        }
    }
}

#[tokio::test]
async fn every_state_that_any_reader_has_had_was_zookeepers_at_that_revision() {
    let [deltas, currents, _] = replay(Course::Gentle).await;
    assert!(deltas > 0 && currents > 0, "nobody went on from where it was");
}

#[tokio::test]
async fn so_it_was_when_sessions_ended_and_the_past_was_forgotten() {
    let [_, _, snapshots] = replay(Course::Rough).await;
    assert!(snapshots > 0, "nobody was forgotten");
}

/// Returns how often readers resumed with a delta, without a change, and with a snapshot.
async fn replay(course: Course) -> [usize; 3] {
    let seed: u64 = rand::random_range(0..u64::MAX / 2);
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let sandbox = Arm::ZooKeeper.sandbox("replay").await;
    let (clients, values) = (Mutex::default(), Mutex::default());
    let world = Arc::new(World {
        course,
        sandbox,
        clients,
        values,
        transactions: AtomicUsize::new(0),
        is_over: AtomicBool::new(false),
    });
    let zk = world.sandbox.zk().await;
    zk.create(ROOT.rsplit_once('/').unwrap().0, b"").await;
    let watcher = zk.client().watch(ROOT, AddWatchMode::PersistentRecursive).await.unwrap();
    let recording = tokio::spawn(record(world.clone(), watcher));
    let mut replicas = Replicas::start(&world).await;

    let mut writers = JoinSet::new();
    writers.spawn(write_durable(world.clone(), StdRng::seed_from_u64(seed + 1)));
    writers.spawn(write_registrations(world.clone(), StdRng::seed_from_u64(seed + 2)));
    let directory = scratch("kazoo");
    let mut python = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.cache/venv/bin/python"));
    python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/python/churn.py"));
    python.args([&world.sandbox.hosts, ROOT, &seed.to_string()]);
    let (mut kazoo, input) = Process::spawn_with_input("kazoo", directory.path(), &mut python);
    let mut readers = JoinSet::new();
    for number in 0..READERS {
        readers.spawn(Reader::new(world.clone(), number, seed).run());
    }
    let faults = async {
        let is_enough =
            |faults| faults >= course.faults() && world.transactions.load(Ordering::Relaxed) >= TRANSACTIONS;
        for _ in (0..MOST_FAULTS).take_while(|faults| !is_enough(*faults)) {
            replicas.break_something(&mut random).await;
            pause(&mut random, 800).await;
        }
        world.is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(faults, write_zk(world.clone(), StdRng::seed_from_u64(seed + 3)));
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    drop(input);
    assert!(kazoo.wait(SOON).await.success(), "{}", kazoo.stderr());
    for line in kazoo.stdout().lines() {
        let mut parts = line.split('\t');
        let [path, mzxid, value] = [(); 3].map(|()| parts.next().unwrap());
        world.wrote(path, mzxid.parse().unwrap(), value);
    }
    eventually("registrations are gone", SOON, async || {
        let names = zk.children(ROOT).await.unwrap_or_default();
        check(!names.iter().any(|name| name.starts_with("service")), || format!("{names:?}"))
    })
    .await;
    zk.create(&format!("{ROOT}/{END}"), b"").await;
    let events = recording.await.unwrap();
    let mut done = Vec::new();
    while let Some(reader) = readers.join_next().await {
        done.push(reader.unwrap());
    }

    let truth = read_all(&zk).await;
    let mut values = std::mem::take(&mut *world.values.lock().unwrap());
    learn(&mut values, &done);
    let (mut states, mut resumed) = (0, [0; 3]);
    for reader in &done {
        let expected = truth.iter().filter(|(name, _)| reader.request.recursive || !name.contains('/'));
        assert!(
            reader
                .known
                .iter()
                .map(|(name, seen)| (name, &seen.value))
                .eq(expected.map(|(name, seen)| (name, &seen.value))),
            "{:?} is not {truth:?}",
            reader.known
        );
        states += compare(reader, &events, &values);
        resumed = std::array::from_fn(|kind| resumed[kind] + reader.resumed[kind]);
    }
    println!("{} transactions, {states} states compared", events.len());
    println!("resumed with {resumed:?} deltas, currents and snapshots");
    resumed
}
