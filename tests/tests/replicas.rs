//! Replicas restarted, killed, stopped under registrations: whoever looks on sees nothing of it, and no end of an older
//! incarnation touches a newer one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use rollcall_tests::client::{Registration, text};
use rollcall_tests::fleet::{Fleet, MARKER, Onlookers, Route, name_of};
use rollcall_tests::registrant::{Many, News, RegistrantProcess, Told};
use rollcall_tests::wait::{SOON, check, eventually};

pub(crate) const REGISTRANT: &str = env!("CARGO_BIN_EXE_registrant");
const MIN_TTL: Duration = Duration::from_secs(1);
/// How many ZooKeeper sessions each replica holds ephemerals in.
const SESSIONS: usize = 4;

/// The generation that each path has, by what the clients were told. Nothing was lost, refused or made again.
#[track_caller]
pub(crate) fn undisturbed(history: &[Told]) -> BTreeMap<String, i64> {
    let mut generations = BTreeMap::new();
    for Told { client, at, news } in history {
        match news {
            News::Registered { path, generation, restored, .. } => {
                assert!(!restored, "{path} was made again at {at:?}");
                let before = generations.insert(path.clone(), *generation);
                assert!(
                    before.is_none_or(|before| before <= *generation),
                    "{path} fell from {before:?} to {generation}"
                );
            }
            News::Lost { path, .. } | News::Rejected { path, .. } | News::Overwritten(path) => {
                panic!("{news:?} at {at:?}; before: {:#?}", of(history, *client, path));
            }
            _ => {}
        }
    }
    generations
}

/// What a client was told of a path, and of its streams.
fn of<'a>(history: &'a [Told], wanted: usize, path: &str) -> Vec<&'a Told> {
    let concerns = |news: &News| match news {
        News::Registered { path: other, .. } | News::Lost { path: other, .. } | News::Rejected { path: other, .. } => {
            other == path
        }
        News::Overwritten(other) => other == path,
        News::KeptAlive { .. } => false,
        News::Opened(_) | News::Draining | News::Broken(_) | News::Closed => true,
    };
    history.iter().filter(|told| told.client == wanted && concerns(&told.news)).collect()
}

/// Waits until ZooKeeper has exactly these registrations, in these incarnations.
pub(crate) async fn stand(fleet: &Fleet, generations: impl Fn() -> BTreeMap<String, i64>) {
    eventually("ZooKeeper has what the clients were told", 2 * SOON, async || {
        let generations = generations();
        let names: BTreeSet<_> = generations.keys().map(|path| name_of(path)).collect();
        let found: BTreeSet<_> = fleet.bare.children("/fleet").await.unwrap_or_default().into_iter().collect();
        let registrations: BTreeSet<_> = found.into_iter().filter(|name| !name.starts_with(MARKER)).collect();
        check(names == registrations, || {
            format!("different: {:?}", names.symmetric_difference(&registrations).take(3).collect::<Vec<_>>())
        })?;
        for (path, generation) in &generations {
            let standing = fleet.bare.get(path).await.map(|node| node.stat.czxid);
            check(standing == Some(*generation), || format!("{path} is {standing:?}, not {generation}"))?;
        }
        Ok(())
    })
    .await;
}

/// Waits until only the sessions of the replicas that run now are left.
pub(crate) async fn older_sessions_are_over(fleet: &Fleet, running: usize) {
    eventually("the sessions of the older replicas are over", 2 * SOON, async || {
        let fences = fleet.bare.children("/.rollcall/fences").await.unwrap_or_default();
        check(fences.len() == running * SESSIONS, || format!("{} fences", fences.len()))
    })
    .await;
}

/// Clients in two processes, one with a ttl and one without.
struct Clients([RegistrantProcess; 2]);

impl Clients {
    /// So many clients with a ttl, and a tenth as many without, each with so many registrations; all of them registered.
    async fn start(fleet: &Fleet, clients: usize, each: usize, ttl: Duration) -> Clients {
        let with =
            Many { clients, each, ttl: Some(ttl), replicas: fleet.addresses(), prefix: "/fleet/with-ttl-".into() };
        let without = Many { clients: clients / 10, ttl: None, prefix: "/fleet/without-".into(), ..with.clone() };
        let processes = [with, without].map(|many| RegistrantProcess::spawn(REGISTRANT, &many));
        for process in &processes {
            process.registered().await;
        }
        Clients(processes)
    }

    fn undisturbed(&self) -> BTreeMap<String, i64> {
        self.0.iter().flat_map(|process| undisturbed(&process.history())).collect()
    }

    /// How many streams they have had.
    fn streams(&self) -> usize {
        let is_opened = |told: &Told| matches!(told.news, News::Opened(_));
        self.0.iter().map(|process| process.history().iter().filter(|told| is_opened(told)).count()).sum()
    }
}

#[tokio::test]
async fn a_rolling_restart_of_all_replicas_is_seen_by_nobody() {
    let mut fleet = Fleet::start(3, Route::Direct, &["--session-timeout", "6s"]).await;
    fleet.bare.create("/fleet", b"").await;
    let clients = Clients::start(&fleet, 20, 50, Duration::from_secs(12)).await;
    let onlookers = Onlookers::begin(&fleet, "/fleet").await;
    for index in 0..3 {
        fleet.restart_replica(index).await;
    }
    older_sessions_are_over(&fleet, 3).await;
    stand(&fleet, || clients.undisturbed()).await;
    onlookers.sights(&fleet).await.are_empty();
    assert!(onlookers.rollcall.streams() > 1, "the watcher's replica was restarted as well");
    assert!(clients.streams() > 22, "clients had to move: {} streams", clients.streams());
}

#[tokio::test]
async fn what_a_killed_replica_held_is_back_before_its_zookeeper_sessions_end() {
    let mut fleet = Fleet::start(2, Route::Direct, &["--session-timeout", "6s"]).await;
    fleet.bare.create("/fleet", b"").await;
    let clients = Clients::start(&fleet, 20, 50, Duration::from_secs(12)).await;
    let onlookers = Onlookers::begin(&fleet, "/fleet").await;
    let killed = SystemTime::now();
    fleet.kill_replica(0);
    older_sessions_are_over(&fleet, 1).await;
    stand(&fleet, || clients.undisturbed()).await;
    onlookers.sights(&fleet).await.are_empty();
    let is_back = |told: &&Told| told.at > killed && matches!(told.news, News::Registered { .. });
    let back: Vec<_> = clients.0.iter().flat_map(|process| process.history()).filter(|told| is_back(&told)).collect();
    let last = back.iter().map(|told| told.at).max().expect("some were on the killed replica");
    let took = last.duration_since(killed).unwrap_or_default();
    println!("{} registrations of the killed replica were resumed within {took:?}", back.len());
}

#[tokio::test]
async fn a_replica_stopped_past_its_zookeeper_sessions_wakes_up_and_harms_nobody() {
    let mut fleet = Fleet::start(2, Route::Direct, &["--session-timeout", "6s"]).await;
    fleet.bare.create("/fleet", b"").await;
    let clients = Clients::start(&fleet, 20, 50, Duration::from_secs(4)).await;
    // This one does not look whether anybody answers, and so stays.
    let stays = fleet.replicas[0].server().client().await;
    let mut stays = Registration::open(&stays).await;
    let first = stays.set("/stays", text("x")).await;
    let onlookers = Onlookers::begin(&fleet, "/fleet").await;
    fleet.replicas[0].server().pause();
    older_sessions_are_over(&fleet, 1).await;
    assert!(!fleet.bare.exists("/stays").await);
    stand(&fleet, || clients.undisturbed()).await;

    fleet.replicas[0].server().resume();
    let back = stays.registered().await;
    assert!(back.restored && back.generation > first.generation, "{back:?}");
    // Whatever the replica thought of its older streams, it has done when it ends one that began later.
    let mut witness = Registration::open_with_ttl(&fleet.replicas[0].server().client().await, MIN_TTL).await;
    witness.set("/witness", text("x")).await;
    fleet.bare.wait_gone("/witness").await;
    fleet.replicas[0].server().wait_for_streams(1).await;
    stand(&fleet, || clients.undisturbed()).await;
    onlookers.sights(&fleet).await.are_empty();
}
