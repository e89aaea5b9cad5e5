//! ZooKeeper without its leader, down, out of reach, under many registrations.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use rollcall_proto::v1::ChangeKind;
use rollcall_tests::client::{Registration, release, text};
use rollcall_tests::crowd::{Crowd, PLACE, Whose};
use rollcall_tests::fleet::{Fleet, Onlookers, Route};
use rollcall_tests::follow::Locking;
use rollcall_tests::observe::Seen;
use rollcall_tests::wait::{SOON, check, eventually};

const SESSION: Duration = Duration::from_secs(4);
const OPTIONS: &[&str] = &["--session-timeout", "4s"];
const TTL: Duration = Duration::from_secs(6);

/// Registers something new through each replica, which takes a ZooKeeper that works.
async fn register_anew(fleet: &mut Fleet, name: &str) {
    for (index, replica) in fleet.replicas.iter_mut().enumerate() {
        let mut stream = Registration::open(&replica.server().client().await).await;
        stream.set(&format!("/anew/{name}-{index}"), text("x")).await;
    }
}

#[tokio::test]
async fn the_loss_of_the_leader_is_seen_by_nobody() {
    let mut fleet = Fleet::start(2, Route::Direct, OPTIONS).await;
    let crowd = Crowd::start(&fleet, 10, 30, TTL).await;
    let first = crowd.generations();
    let onlookers = Onlookers::begin(&fleet, PLACE).await;
    for round in 0..2 {
        let leader = fleet.zookeeper.leader().await;
        let killed = SystemTime::now();
        fleet.zookeeper.kill(leader);
        register_anew(&mut fleet, &format!("round-{round}")).await;
        println!("both replicas register again {:?} after the leader's death", killed.elapsed().unwrap_or_default());
        fleet.zookeeper.start(leader);
        fleet.zookeeper.ready().await;
    }
    crowd.stands_undisturbed(&fleet, Whose::All).await;
    assert_eq!(crowd.generations(), first, "nothing had to be made again");
    onlookers.sights(&fleet).await.are_empty();
}

#[tokio::test]
async fn a_zookeeper_server_that_hangs_costs_no_lock() {
    /// Four sessions own, two watch.
    const SESSIONS: usize = 6;
    let mut fleet = Fleet::start(1, Route::Proxied, &["--session-timeout", "12s"]).await;
    let client = fleet.replicas[0].server().client().await;
    let mut holders = Vec::new();
    for number in 0..8 {
        holders.push(Locking::take(&client, &format!("/hangs-{number}"), "holder").await);
    }
    let hanging = (fleet.zookeeper.leader().await + 1) % fleet.zookeeper.size();
    let others: Vec<_> = (0..fleet.zookeeper.size()).filter(|node| *node != hanging).collect();
    for node in &others {
        fleet.proxies[*node].refuse().await;
        fleet.proxies[*node].cut();
    }
    eventually("all sessions are served by one server", SOON, async || {
        let open = fleet.proxies[hanging].open();
        check(open == SESSIONS, || format!("{open} are"))
    })
    .await;
    for node in &others {
        fleet.proxies[*node].accept().await;
    }
    // It takes connections still, and says nothing.
    fleet.zookeeper.pause(hanging);
    eventually("all sessions are served by the others", 2 * SOON, async || {
        let open: usize = others.iter().map(|node| fleet.proxies[*node].open()).sum();
        check(open == SESSIONS, || format!("{open} are"))
    })
    .await;
    for (stream, held) in &mut holders {
        assert!(release(&client, &held.lock_id).await.unwrap());
        stream.end().await.unwrap();
    }
}

/// Servers that are down keep no time: their sessions have all of it again when they are back.
#[tokio::test]
async fn an_ensemble_that_was_down_finds_everything_as_it_was() {
    let mut fleet = Fleet::start(2, Route::Direct, OPTIONS).await;
    let crowd = Crowd::start(&fleet, 10, 30, TTL).await;
    let first = crowd.generations();
    let onlookers = Onlookers::begin(&fleet, PLACE).await;
    for outage in [SESSION / 2, SESSION * 3] {
        fleet.zookeeper.kill_all();
        tokio::time::sleep(outage).await;
        fleet.zookeeper.start_all();
        fleet.zookeeper.ready().await;
        let is_back = SystemTime::now();
        register_anew(&mut fleet, &format!("after-{}", outage.as_secs())).await;
        println!("down for {outage:?}: both replicas register again after {:?}", is_back.elapsed().unwrap_or_default());
        crowd.stands_undisturbed(&fleet, Whose::All).await;
        assert_eq!(crowd.generations(), first, "nothing had to be made again");
    }
    onlookers.sights(&fleet).await.are_empty();
}

#[tokio::test]
async fn replicas_out_of_zookeepers_reach_for_half_a_session_lose_nothing_and_for_three_get_all_of_it_back() {
    let mut fleet = Fleet::start(2, Route::Proxied, OPTIONS).await;
    let crowd = Crowd::start(&fleet, 10, 30, TTL).await;
    let first = crowd.generations();
    let onlookers = Onlookers::begin(&fleet, PLACE).await;
    fleet.cut_off().await;
    tokio::time::sleep(SESSION / 2).await;
    fleet.let_in().await;
    register_anew(&mut fleet, "half").await;
    crowd.stands_undisturbed(&fleet, Whose::All).await;
    assert_eq!(crowd.generations(), first, "nothing had to be made again");
    onlookers.sights(&fleet).await.are_empty();

    fleet.cut_off().await;
    tokio::time::sleep(SESSION * 3).await;
    let held = onlookers.rollcall.names();
    assert_eq!(held.iter().filter(|name| name.starts_with("with")).count(), 330, "what was known is still told");
    let let_in = SystemTime::now();
    fleet.let_in().await;
    crowd.stands(&fleet).await;
    let sights = onlookers.sights(&fleet).await;
    let last = sights.absences.iter().filter_map(|absence| absence.until).max().expect("all were absent");
    println!("330 registrations were back {:?} after ZooKeeper", last.duration_since(let_in).unwrap_or_default());
    assert_eq!(sights.absences.len(), 330, "each was absent once");
    let elsewhere = sights.absences.iter().find(|absence| !absence.with_session || absence.until.is_none());
    assert_eq!(elsewhere, None, "each went with its session, and came back");
    once_each(&sights.kazoo, 330);
    let gone = sights.rollcall.iter().filter(|seen| seen.kind == ChangeKind::Removed).count();
    once_each(&sights.rollcall, gone);
    println!("the Rollcall watcher saw {gone} of them gone, and come back");
}

/// So many names went, once, and came back, once.
#[track_caller]
fn once_each(seen: &[Seen], names: usize) {
    let mut changes: BTreeMap<&str, Vec<ChangeKind>> = BTreeMap::new();
    for seen in seen {
        changes.entry(&seen.name).or_default().push(seen.kind);
    }
    let other = changes.iter().find(|(_, kinds)| **kinds != [ChangeKind::Removed, ChangeKind::Added]);
    assert_eq!(other, None, "each name went and came back");
    assert_eq!(changes.len(), names);
}
