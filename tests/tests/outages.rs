//! ZooKeeper without its leader, down, or unreachable, with many registrations.

use std::time::{Duration, SystemTime};

use rollcall_proto::v1::ChangeKind;
use rollcall_tests::client::release;
use rollcall_tests::crowd::{Crowd, PLACE, Whose};
use rollcall_tests::fleet::{Fleet, Onlookers, Route, once_each};
use rollcall_tests::follow::Locking;
use rollcall_tests::machine_lag::MachineLag;
use rollcall_tests::proxy::{Proxy, gather};
use rollcall_tests::wait::{SOON, check, eventually};

const SESSION: Duration = Duration::from_secs(4);
const OPTIONS: &[&str] = &["--session-timeout", "4s"];
const TTL: Duration = Duration::from_secs(6);
/// Maximum time from ZooKeeper's return until everything is as it should be, without the lag of the machine.
const BACK: Duration = Duration::from_secs(3);

/// Registers a new name through each replica.
async fn register_anew(fleet: &mut Fleet, name: &str) {
    for replica in 0..fleet.replicas.len() {
        fleet.register_anew(replica, name).await;
    }
}

/// Compares the time from ZooKeeper's return with [`BACK`] plus the lag of the machine.
#[track_caller]
fn in_time(what: &str, took: Duration, machine: Duration) {
    println!("{what} after {took:?}; the machine was {machine:?} late");
    assert!(took <= BACK + machine, "{what} after {took:?}, longer than {BACK:?} and {machine:?}");
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
    /// Four sessions hold ephemerals, two watch.
    const SESSIONS: usize = 6;
    let mut fleet = Fleet::start(1, Route::Proxied, &["--session-timeout", "12s"]).await;
    let client = fleet.replicas[0].server().client().await;
    let mut holders = Vec::new();
    for number in 0..8 {
        holders.push(Locking::take(&client, &format!("/hangs-{number}"), "holder").await);
    }
    let hanging = (fleet.zookeeper.leader().await + 1) % fleet.zookeeper.size();
    gather(fleet.ways_of(0), hanging, SESSIONS).await;
    // It still accepts connections, but never answers.
    fleet.zookeeper.pause(hanging);
    eventually("all sessions are served by the others", 2 * SOON, async || {
        let open = fleet.ways_of(0).iter().map(Proxy::open);
        let elsewhere = open.enumerate().filter(|(node, _)| *node != hanging).map(|(_, open)| open).sum::<usize>();
        check(elsewhere == SESSIONS, || format!("{elsewhere} are"))
    })
    .await;
    for (stream, held) in &mut holders {
        assert!(release(&client, &held.lock_id).await.unwrap());
        stream.end().await.unwrap();
    }
}

/// Servers that are down do not count time: their sessions have all of it again afterwards. Checked: within 3 s of
/// their return the replicas register again.
#[tokio::test]
async fn an_ensemble_that_was_down_finds_everything_as_it_was_and_serves_within_3_s() {
    let mut fleet = Fleet::start(2, Route::Direct, OPTIONS).await;
    let crowd = Crowd::start(&fleet, 10, 30, TTL).await;
    let first = crowd.generations();
    let onlookers = Onlookers::begin(&fleet, PLACE).await;
    for outage in [SESSION / 2, SESSION * 3] {
        fleet.zookeeper.kill_all();
        tokio::time::sleep(outage).await;
        fleet.zookeeper.start_all();
        fleet.zookeeper.ready().await;
        let (machine_lag, is_back) = (MachineLag::start(), SystemTime::now());
        register_anew(&mut fleet, &format!("after-{}", outage.as_secs())).await;
        in_time(
            "both replicas register again",
            is_back.elapsed().unwrap_or_default(),
            machine_lag.worst_since(is_back),
        );
        crowd.stands_undisturbed(&fleet, Whose::All).await;
        assert_eq!(crowd.generations(), first, "nothing had to be made again");
    }
    onlookers.sights(&fleet).await.are_empty();
}

/// Checked: within 3 s of ZooKeeper's return everything is back.
#[tokio::test]
async fn replicas_out_of_zookeepers_reach_for_half_a_session_lose_nothing_and_for_three_get_all_of_it_back_within_3_s()
{
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
    let (machine_lag, let_in) = (MachineLag::start(), SystemTime::now());
    fleet.let_in().await;
    crowd.stands(&fleet).await;
    let machine = machine_lag.worst_since(let_in);
    let sights = onlookers.sights(&fleet).await;
    let last = sights.absences.iter().filter_map(|absence| absence.until).max().expect("all were absent");
    in_time("330 registrations are back", last.duration_since(let_in).unwrap_or_default(), machine);
    assert_eq!(sights.absences.len(), 330, "each was absent once");
    let elsewhere = sights.absences.iter().find(|absence| !absence.with_session || absence.until.is_none());
    assert_eq!(elsewhere, None, "each went with its session, and came back");
    once_each(&sights.kazoo, 330);
    let gone = sights.rollcall.iter().filter(|seen| seen.kind == ChangeKind::Removed).count();
    once_each(&sights.rollcall, gone);
    println!("the Rollcall watcher saw {gone} of them gone, and come back");
}
