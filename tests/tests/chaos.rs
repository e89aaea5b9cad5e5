//! Clients that come and go at random while replicas and ZooKeeper servers are killed, stopped and restarted under them.
//!
//! `ROLLCALL_CHAOS` says for how many seconds (120), `ROLLCALL_SEED` runs a seed again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rollcall_tests::crowd::PLACE;
use rollcall_tests::fleet::{Fleet, Onlookers, Route, name_of};
use rollcall_tests::journal::{Absence, Journal};
use rollcall_tests::process::Signal;
use rollcall_tests::registrant::{News, Registrant, Terms, Told};
use rollcall_tests::wait::{SOON, check, eventually};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

const CLIENTS: usize = 200;
/// The ZooKeeper sessions of the replicas; clients notice a silent replica sooner.
const SESSION: Duration = Duration::from_secs(6);
/// How long after a fault, and the end of the sessions that it cost, everything is well again, on a busy machine.
const RECOVERY: Duration = Duration::from_secs(10);

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|error| panic!("{name}: {error}")))
}

fn milliseconds(rng: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

/// One client from its start to its death.
#[derive(Debug)]
struct Life {
    path: String,
    /// When its name had to be there: see [`held`].
    held: Vec<(SystemTime, SystemTime)>,
    history: Vec<Told>,
}

impl Life {
    /// What became of a registrant that ends now.
    fn of(path: &str, registrant: &Registrant) -> Life {
        let until = SystemTime::now();
        let history = registrant.history();
        Life { path: path.to_owned(), held: held(&history, until), history }
    }

    /// How long the name was absent while it had to be there.
    fn overlap(&self, absence: &Absence) -> Option<Duration> {
        if absence.path != self.path {
            return None;
        }
        // ZooKeeper's clock has cut off what is below a millisecond.
        let gone = absence.from + Duration::from_millis(1);
        let overlaps = self.held.iter().filter_map(|(since, until)| {
            let end = absence.until.unwrap_or(*until).min(*until);
            end.duration_since(gone.max(*since)).ok()
        });
        overlaps.max().filter(|overlap| !overlap.is_zero())
    }
}

/// When a name had to be there: while its program, which ends at `until`, was told that it is registered. Without a ttl it
/// is told otherwise as soon as its connection breaks; with one, when no replica has answered for that long.
fn held(history: &[Told], until: SystemTime) -> Vec<(SystemTime, SystemTime)> {
    let mut spans = Vec::new();
    let mut since = None;
    for told in history {
        match told.news {
            News::Registered(_) => since = since.or(Some(told.at)),
            News::Pending | News::Over(_) => spans.extend(since.take().map(|since| (since, told.at))),
        }
    }
    spans.extend(since.map(|since| (since, until)));
    spans
}

/// The lives of one client, one after the other, up to `end`; and the client, if it lives then.
async fn come_and_go(
    index: usize,
    replicas: Vec<SocketAddr>,
    mut rng: StdRng,
    end: Instant,
) -> (Vec<Life>, Option<(String, Registrant)>) {
    let path = format!("{PLACE}/client-{index}");
    let mut lives = Vec::new();
    sleep(milliseconds(&mut rng, 0..5000)).await;
    for number in 1.. {
        let ttl = rng.random_bool(0.6).then(|| milliseconds(&mut rng, 3000..6000));
        let data = json!({ "client": index, "life": number });
        let registrant = Registrant::start(Terms { replicas: replicas.clone(), ttl, paths: vec![path.clone()], data });
        sleep_until(end.min(Instant::now() + milliseconds(&mut rng, 500..15_000))).await;
        if Instant::now() >= end {
            return (lives, Some((path, registrant)));
        }
        lives.push(Life::of(&path, &registrant));
        if rng.random_bool(0.3) {
            // Where no replica can be told in time, it dies.
            registrant.close(Duration::from_secs(2)).await;
        } else {
            drop(registrant);
        }
        sleep_until(end.min(Instant::now() + milliseconds(&mut rng, 0..5000))).await;
        if Instant::now() >= end {
            break;
        }
    }
    (lives, None)
}

/// When something was broken.
#[derive(Debug)]
struct Fault {
    what: String,
    from: SystemTime,
    until: SystemTime,
}

/// What happens to a replica.
#[derive(Clone, Copy, Debug)]
enum Blow {
    Kill,
    Restart,
    Stop,
    StopPastItsSessions,
}

/// Breaks something, and mends it, again and again: one replica and one ZooKeeper server at a time at most.
async fn break_things(fleet: &mut Fleet, mut rng: StdRng, end: Instant) -> Vec<Fault> {
    let mut faults = Vec::new();
    while Instant::now() < end {
        sleep(milliseconds(&mut rng, 200..1200)).await;
        let from = SystemTime::now();
        let blows = [Blow::Kill, Blow::Restart, Blow::Stop, Blow::StopPastItsSessions];
        let blow = rng.random_bool(0.75).then(|| blows[rng.random_range(0..blows.len())]);
        let replica = rng.random_range(0..fleet.replicas.len());
        let server = (blow.is_none() || rng.random_bool(0.4)).then(|| rng.random_range(0..fleet.zookeeper.size()));
        let what = format!("replica {replica} {blow:?}, ZooKeeper killed {server:?}");
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
        faults.push(Fault { what, from, until: SystemTime::now() });
    }
    faults
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_come_and_go_while_everything_breaks() {
    let seed = from_environment("ROLLCALL_SEED").unwrap_or_else(rand::random);
    let length = Duration::from_secs(from_environment("ROLLCALL_CHAOS").unwrap_or(120));
    println!("ROLLCALL_SEED={seed}, {length:?} of it");
    let session = format!("{}s", SESSION.as_secs());
    let mut fleet = Fleet::start(3, Route::Direct, &["--session-timeout", &session, "--keepalive", "2s"]).await;
    let onlookers = Onlookers::begin(&fleet, PLACE).await;
    let end = Instant::now() + length;
    let mut clients = JoinSet::new();
    for index in 0..CLIENTS {
        let rng = StdRng::seed_from_u64(seed.wrapping_add(index as u64 + 1));
        clients.spawn(come_and_go(index, fleet.addresses(), rng, end));
    }
    let faults = break_things(&mut fleet, StdRng::seed_from_u64(seed), end).await;
    let mut lives = Vec::new();
    let mut living = BTreeMap::new();
    for (past, present) in clients.join_all().await {
        lives.extend(past);
        living.extend(present);
    }
    for registrant in living.values() {
        registrant.registered().await;
    }
    exactly_the_living_are_there(&fleet, &onlookers, &living).await;
    lives.extend(living.iter().map(|(path, registrant)| Life::of(path, registrant)));
    let journal = fleet.journal();
    let absences = journal.absences(|path| path.starts_with(PLACE));
    println!(
        "{} lives of {CLIENTS} clients, {} of them living; {} faults; names came and went {} times",
        lives.len(),
        living.len(),
        faults.len(),
        absences.len(),
    );
    for fault in &faults {
        println!("  {:?} {}", fault.until.duration_since(fault.from).unwrap_or_default(), fault.what);
    }
    no_living_client_lost_its_name(&lives, &absences, &faults, &journal);
}

/// In the end ZooKeeper holds what living clients hold, in the incarnations that they were told, and all who watch agree.
async fn exactly_the_living_are_there(fleet: &Fleet, onlookers: &Onlookers, living: &BTreeMap<String, Registrant>) {
    let names: BTreeSet<_> = living.keys().map(|path| name_of(path)).collect();
    let bare = fleet.sandbox.bare().await;
    eventually("ZooKeeper holds exactly what living clients hold", 3 * SOON, async || {
        let standing: BTreeSet<_> = bare.children(PLACE).await.unwrap_or_default().into_iter().collect();
        check(standing == names, || {
            let too_many: Vec<_> = standing.difference(&names).collect();
            format!("too many: {too_many:?}, missing: {:?}", names.difference(&standing).collect::<Vec<_>>())
        })?;
        for (path, registrant) in living {
            let node = bare.get(path).await.map(|node| node.stat.czxid);
            let told = registrant.generations().remove(path);
            check(node == told, || format!("{path} is {node:?}, the client was told {told:?}"))?;
        }
        Ok(())
    })
    .await;
    onlookers.know_exactly(&names).await;
}

/// No living client was told of a loss, nor was its name deleted; where it went with a ZooKeeper session, a fault had ended
/// that session, and it was soon back.
#[track_caller]
fn no_living_client_lost_its_name(lives: &[Life], absences: &[Absence], faults: &[Fault], journal: &Journal) {
    // For whoever has to find out.
    let all = |path: &str| {
        let lives: Vec<_> = lives.iter().filter(|life| life.path == path).map(|life| &life.history).collect();
        format!("{path}: {lives:#?}\n{:#?}\n{faults:#?}", journal.story(path))
    };
    let mut explained = Duration::ZERO;
    for life in lives {
        let losses = life.history.iter().find(|told| matches!(told.news, News::Over(_)));
        assert!(losses.is_none(), "{losses:?}; {}", all(&life.path));
        for absence in absences {
            let Some(overlap) = life.overlap(absence) else { continue };
            let cause = faults.iter().find(|fault| {
                absence.with_session && fault.from <= absence.from && absence.from <= fault.until + SESSION + RECOVERY
            });
            assert!(cause.is_some(), "a living client's name was gone for {overlap:?}: {}", all(&life.path));
            assert!(overlap <= RECOVERY, "gone for {overlap:?} with {cause:?}: {}", all(&life.path));
            explained = explained.max(overlap);
        }
    }
    println!("the longest time that a living client's name was absent: {explained:?}");
}
