//! Clients come and go at random while replicas and ZooKeeper servers are killed, stopped and restarted, and while
//! their own connections fail and their processes are stopped. [`judge`] decides whether a name was ever gone without a
//! cause in its own history.
//!
//! `ROLLCALL_CHAOS` is the duration in seconds (120); `ROLLCALL_SEED` repeats a seed.

mod client;
mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rollcall_tests::crowd::PLACE;
use rollcall_tests::fleet::{Fleet, Onlookers, Route, name_of};
use rollcall_tests::journal::Journal;
use rollcall_tests::machine_lag::MachineLag;
use rollcall_tests::observe::Kazoo;
use rollcall_tests::process::Signal;
use rollcall_tests::registrant::News;
use rollcall_tests::wait::{SOON, check, eventually};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use self::client::{Client, Living};
use self::judge::{Blow, KEEPALIVE, Life, SESSION, Server, Trouble, World};

const CLIENTS: usize = 200;
/// Number of findings shown in full.
const SHOWN: usize = 3;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|error| panic!("{name}: {error}")))
}

fn milliseconds(rng: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

/// The troubles of replicas and ZooKeeper servers.
#[derive(Debug, Default)]
struct Broken {
    replicas: Vec<Trouble<(Server, Blow)>>,
    zookeeper: Vec<Trouble<usize>>,
}

/// Breaks and repairs servers again and again: at most one replica and one ZooKeeper server at a time.
async fn break_things(fleet: &mut Fleet, mut rng: StdRng, end: Instant) -> Broken {
    let mut broken = Broken::default();
    while Instant::now() < end {
        sleep(milliseconds(&mut rng, 200..1200)).await;
        let from = SystemTime::now();
        let blows = [Blow::Kill, Blow::Restart, Blow::Stop, Blow::StopPastItsSessions];
        let blow = rng.random_bool(0.75).then(|| blows[rng.random_range(0..blows.len())]);
        let replica = rng.random_range(0..fleet.replicas.len());
        let struck = Server { replica, nth: fleet.replicas[replica].predecessors() };
        let server = (blow.is_none() || rng.random_bool(0.4)).then(|| rng.random_range(0..fleet.zookeeper.size()));
        if let Some(server) = server {
            fleet.zookeeper.kill(server);
        }
        let pause = milliseconds(&mut rng, 500..3000);
        match blow {
            Some(Blow::Kill) => fleet.kill_replica(replica),
            Some(Blow::Restart) => fleet.replicas[replica].server().process().signal(Signal::TERM),
            Some(Blow::Stop | Blow::StopPastItsSessions) => fleet.replicas[replica].server().pause(),
            None => {}
        }
        sleep(pause).await;
        if let Some(server) = server {
            fleet.zookeeper.start(server);
            fleet.zookeeper.ready().await;
            broken.zookeeper.push(Trouble { what: server, from, until: SystemTime::now() });
        }
        match blow {
            Some(Blow::Kill) => fleet.start_replica(replica).await,
            Some(Blow::Restart) => {
                fleet.replicas[replica].server().process().wait(3 * SOON).await;
                fleet.start_replica(replica).await;
            }
            Some(Blow::StopPastItsSessions) => {
                sleep(SESSION).await;
                fleet.replicas[replica].server().resume();
            }
            Some(Blow::Stop) => fleet.replicas[replica].server().resume(),
            None => {}
        }
        let until = SystemTime::now();
        broken.replicas.extend(blow.map(|blow| Trouble { what: (struck, blow), from, until }));
    }
    broken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_come_and_go_while_everything_breaks() {
    let seed = from_environment("ROLLCALL_SEED").unwrap_or_else(rand::random);
    let length = Duration::from_secs(from_environment("ROLLCALL_CHAOS").unwrap_or(120));
    println!(
        "once more: ROLLCALL_SEED={seed} ROLLCALL_CHAOS={} cargo test -p rollcall-tests -- --nocapture chaos::clients",
        length.as_secs()
    );
    let machine_lag = MachineLag::start();
    let (session, keepalive) = (format!("{}s", SESSION.as_secs()), format!("{}s", KEEPALIVE.as_secs()));
    let options = ["--session-timeout", &session, "--keepalive", &keepalive];
    let mut fleet = Fleet::start(3, Route::Direct, &options).await;
    let onlookers = Onlookers::begin(&fleet, PLACE).await;
    let end = Instant::now() + length;
    let mut clients = JoinSet::new();
    for index in 0..CLIENTS {
        let rng = StdRng::seed_from_u64(seed.wrapping_add(index as u64 + 1));
        let client = Client::new(index, fleet.addresses(), rng, end).await;
        clients.spawn(client.come_and_go());
    }
    let broken = break_things(&mut fleet, StdRng::seed_from_u64(seed), end).await;
    let (mut lives, mut living, mut ways) = (Vec::new(), Vec::new(), Vec::new());
    for outcome in clients.join_all().await {
        lives.extend(outcome.lives);
        living.extend(outcome.living);
        ways.extend(outcome.proxies);
    }
    exactly_the_living_are_there(&fleet, &onlookers, &living).await;
    let count = living.len();
    lives.extend(living.into_iter().map(Living::end));
    println!("{} lives of {CLIENTS} clients, {count} of them living", lives.len());
    for trouble in &broken.replicas {
        println!("  {:?} {:?}", lasted(trouble), trouble.what);
    }
    for trouble in &broken.zookeeper {
        println!("  {:?} ZooKeeper {} killed", lasted(trouble), trouble.what);
    }
    let servers = (0..).zip(&fleet.replicas).flat_map(|(replica, one)| {
        let servers = (0..).zip(one.sessions());
        servers.flat_map(move |(nth, sessions)| sessions.into_iter().map(move |id| (id, Server { replica, nth })))
    });
    let late = |from, until| machine_lag.worst_between(from, until);
    let Broken { replicas, zookeeper } = broken;
    let world = World { replicas, zookeeper, sessions: servers.collect(), late: &late };
    no_living_client_lost_its_name(&world, &lives, &fleet.journal());
}

fn lasted<What>(trouble: &Trouble<What>) -> Duration {
    trouble.until.duration_since(trouble.from).unwrap_or_default()
}

/// In the end ZooKeeper holds exactly the registrations of living clients, in the incarnations that they were told, and
/// all watchers agree.
async fn exactly_the_living_are_there(fleet: &Fleet, onlookers: &Onlookers, living: &[Living]) {
    let names: BTreeSet<_> = living.iter().map(|one| name_of(one.path())).collect();
    let zk = fleet.sandbox.zk().await;
    eventually("ZooKeeper holds exactly what living clients hold", 3 * SOON, async || {
        let standing: BTreeSet<_> = zk.children(PLACE).await.unwrap_or_default().into_iter().collect();
        check(standing == names, || {
            let too_many: Vec<_> = standing.difference(&names).collect();
            let missing = living.iter().filter(|one| !standing.contains(&name_of(one.path())));
            format!("too many: {too_many:?}, missing: {:#?}", missing.collect::<Vec<_>>())
        })?;
        for one in living {
            let path = one.path();
            let (node, told) = (zk.get(path).await.map(|node| node.stat.czxid), one.generation());
            check(node.is_some() && node == told, || format!("{path} is {node:?}, the client was told {told:?}"))?;
        }
        Ok(())
    })
    .await;
    onlookers.rollcall.knows_exactly(&names).await;
    // kazoo's own watch, as seen once, does not always recover from so many lost connections. So a new one must agree.
    Kazoo::start(&fleet.sandbox.hosts, PLACE).await.knows_exactly(&names).await;
}

/// Checks that no living client was told of a loss, and that each absence of its name has a cause in its own history,
/// and was short.
#[track_caller]
fn no_living_client_lost_its_name(world: &World<'_>, lives: &[Life], journal: &Journal) {
    let absences = journal.absences(|path| path.starts_with(PLACE));
    let mut present: BTreeMap<String, Vec<(SystemTime, SystemTime)>> = BTreeMap::new();
    for node in journal.lives(|path| path.starts_with(PLACE)) {
        let ended = node.ended.map_or(SystemTime::now(), |(_, at)| at);
        present.entry(node.path).or_default().push((node.from, ended));
    }
    let mut findings = Vec::new();
    // The absences by deletion, and those by the end of a session.
    let (mut overlaps, mut longest, mut without) = ([0, 0], Duration::ZERO, Duration::ZERO);
    for life in lives {
        let mut note = |found: Result<Duration, String>| {
            let error = found.as_ref().err().map(|error| (error.clone(), life));
            findings.extend(error);
            found.unwrap_or_default()
        };
        if let Some(lost) = life.history.iter().find(|told| matches!(told.news, News::Over(_))) {
            note(Err(format!("a living client was told {lost:?}")));
        }
        for absence in absences.iter().filter(|absence| absence.path == life.path) {
            let overlap = note(world.explain(life, absence));
            overlaps[usize::from(absence.with_session)] += u32::from(!overlap.is_zero());
            longest = longest.max(overlap);
        }
        let none = Vec::new();
        without = without.max(note(world.without_name(life, present.get(&life.path).unwrap_or(&none))));
    }
    println!(
        "names came and went {} times, {overlaps:?} times, by themselves and with their session, while their clients were \
         sure of them, for {longest:?} at most; the longest time without a name that nothing hindered: {without:?}; the \
         machine was {:?} late at most",
        absences.len(),
        (world.late)(SystemTime::UNIX_EPOCH, SystemTime::now()),
    );
    for (finding, life) in findings.iter().take(SHOWN) {
        let harms = life.troubles.len();
        println!("{finding}\n{life:#?}\n{harms} harms\n{:#?}", journal.story(&life.path));
    }
    if !findings.is_empty() {
        println!("{:#?}\n{:#?}\n{:x?}", world.replicas, world.zookeeper, world.sessions);
    }
    let told: Vec<_> = findings.iter().map(|(finding, _)| finding).collect();
    assert!(told.is_empty(), "{} findings: {told:#?}", told.len());
}
