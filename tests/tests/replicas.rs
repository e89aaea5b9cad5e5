//! Replicas restarted, killed, stopped under registrations: whoever looks on sees nothing of it, and no end of an older
//! incarnation touches a newer one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rollcall_tests::fleet::{Fleet, Onlookers, Route, name_of};
use rollcall_tests::registrant::{Many, News, RegistrantProcess, Told};
use rollcall_tests::wait::{SOON, check, eventually};

pub(crate) const REGISTRANT: &str = env!("CARGO_BIN_EXE_registrant");
/// How many ZooKeeper sessions each replica holds ephemerals in.
const SESSIONS: usize = 4;

/// Clients that hold so many registrations below `/fleet`.
pub(crate) fn many(fleet: &Fleet, clients: usize, each: usize, ttl: Option<Duration>) -> Many {
    Many { replicas: fleet.addresses(), ttl, clients, each, prefix: "/fleet/client-".to_owned() }
}

/// The generation that each path has, by what the clients were told. Nothing was lost, refused or made again.
#[track_caller]
pub(crate) fn undisturbed(history: &[Told]) -> BTreeMap<String, i64> {
    let mut generations = BTreeMap::new();
    for Told { at, news } in history {
        match news {
            News::Registered { path, generation, restored, .. } => {
                assert!(!restored, "{path} was made again at {at:?}");
                let before = generations.insert(path.clone(), *generation);
                assert!(before.is_none_or(|before| before <= *generation), "{path} fell from {before:?} to {generation}");
            }
            News::Lost { .. } | News::Rejected { .. } | News::Overwritten(_) => panic!("{news:?} at {at:?}"),
            _ => {}
        }
    }
    generations
}

/// Waits until ZooKeeper has exactly these registrations, in these incarnations.
pub(crate) async fn stand(fleet: &Fleet, generations: impl Fn() -> BTreeMap<String, i64>) {
    eventually("ZooKeeper has what the clients were told", 2 * SOON, async || {
        let generations = generations();
        let names: BTreeSet<_> = generations.keys().map(|path| name_of(path)).collect();
        let found: BTreeSet<_> = fleet.bare.children("/fleet").await.unwrap_or_default().into_iter().collect();
        let registrations: BTreeSet<_> = found.into_iter().filter(|name| name.starts_with("client-")).collect();
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

#[tokio::test]
async fn a_rolling_restart_of_all_replicas_is_seen_by_nobody() {
    let mut fleet = Fleet::start(3, Route::Direct, &["--session-timeout", "6s"]).await;
    fleet.bare.create("/fleet", b"").await;
    let clients = RegistrantProcess::spawn(REGISTRANT, &many(&fleet, 20, 50, Some(Duration::from_secs(12))));
    clients.registered().await;
    let onlookers = Onlookers::begin(&fleet, "/fleet").await;
    for index in 0..3 {
        fleet.restart_replica(index).await;
    }
    older_sessions_are_over(&fleet, 3).await;
    stand(&fleet, || undisturbed(&clients.history())).await;
    onlookers.sights(&fleet).await.are_empty();
    assert!(onlookers.rollcall.streams() > 1, "the watcher's replica was restarted as well");
    let moved = clients.history().iter().filter(|told| matches!(told.news, News::Opened(_))).count();
    assert!(moved > 20, "clients had to move: {moved} streams");
}
