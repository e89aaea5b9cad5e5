//! Many clients of a fleet, in processes of their own, and checks of their registrations.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::fleet::{Fleet, MARKER, name_of};
use crate::registrant::{Many, News, RegistrantProcess, Told};
use crate::wait::{SOON, check, eventually};

/// The parent of all their registrations.
pub const PLACE: &str = "/fleet";

/// The prefix of the paths with a ttl.
const WITH_TTL: &str = "/fleet/with-ttl-";

/// A selection of a crowd's clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// All.
    All,
    /// Those with a ttl: the others lose their registrations with their connection, and report it at once.
    WithTtl,
}

/// Clients in processes of their own. Dropping kills them.
#[derive(Debug)]
pub struct Crowd(Vec<RegistrantProcess>);

impl Crowd {
    /// Starts `clients` clients with a ttl, and a tenth as many without, each with `each` registrations below
    /// [`PLACE`]. Returns when all are registered.
    pub async fn start(fleet: &Fleet, clients: usize, each: usize, ttl: Duration) -> Crowd {
        let with = Many { clients, each, ttl: Some(ttl), replicas: fleet.addresses(), prefix: WITH_TTL.to_owned() };
        let without = Many { clients: clients / 10, ttl: None, prefix: format!("{PLACE}/without-"), ..with.clone() };
        Crowd::of(&[with, without]).await
    }

    /// Starts these clients, each kind in a process of its own. Returns when all are registered.
    pub async fn of(kinds: &[Many]) -> Crowd {
        let processes: Vec<_> = kinds.iter().map(RegistrantProcess::spawn).collect();
        for process in &processes {
            process.registered().await;
        }
        Crowd(processes)
    }

    /// All answers that they received.
    pub fn history(&self) -> Vec<Told> {
        self.0.iter().flat_map(RegistrantProcess::history).collect()
    }

    /// The generation of each path, from the answers that the clients received.
    ///
    /// # Panics
    /// When a generation falls, or anything was lost, overwritten or closed.
    pub fn generations(&self) -> BTreeMap<String, i64> {
        let history = self.history();
        let mut generations = BTreeMap::new();
        for Told { at, path, news } in &history {
            match news {
                News::Pending => {}
                News::Registered(generation) => {
                    let before = generations.insert(path.clone(), *generation);
                    let rises = before.is_none_or(|before| before <= *generation);
                    assert!(rises, "{path} fell from {before:?}: {:#?}", of(&history, path));
                }
                News::Over(what) => panic!("{what} at {at:?}; all of it: {:#?}", of(&history, path)),
            }
        }
        generations
    }

    /// Waits until ZooKeeper has exactly the registrations that the clients hold by their answers, in these
    /// incarnations.
    ///
    /// # Panics
    /// When a client was told of a loss.
    pub async fn stands(&self, fleet: &Fleet) {
        let zk = fleet.sandbox.zk().await;
        eventually("ZooKeeper has what the clients were told", 2 * SOON, async || {
            let generations = self.generations();
            let names: BTreeSet<_> = generations.keys().map(|path| name_of(path)).collect();
            let found = zk.children(PLACE).await.unwrap_or_default().into_iter();
            let standing: BTreeSet<_> = found.filter(|name| !name.starts_with(MARKER)).collect();
            check(names == standing, || {
                format!("different: {:?}", names.symmetric_difference(&standing).take(3).collect::<Vec<_>>())
            })?;
            for (path, generation) in &generations {
                let standing = zk.get(path).await.map(|node| node.stat.czxid);
                check(standing == Some(*generation), || format!("{path} is {standing:?}, not {generation}"))?;
            }
            Ok(())
        })
        .await;
    }

    /// Like [`Crowd::stands`], and these clients were never in doubt.
    ///
    /// # Panics
    /// When a client was told that it may no longer be registered.
    pub async fn stands_undisturbed(&self, fleet: &Fleet, whose: Whose) {
        self.stands(fleet).await;
        self.was_undisturbed(|path| whose == Whose::All || path.starts_with(WITH_TTL));
    }

    /// Checks that the holders of the paths for which `concerns` returns true were never in doubt.
    ///
    /// # Panics
    /// When a client was told that it may no longer be registered.
    #[track_caller]
    pub fn was_undisturbed(&self, concerns: impl Fn(&str) -> bool) {
        let history = self.history();
        let mut known = BTreeSet::new();
        let mut in_doubt = BTreeSet::new();
        for Told { path, news, .. } in history.iter().filter(|told| concerns(&told.path)) {
            match news {
                News::Pending if known.contains(path) => drop(in_doubt.insert(path)),
                News::Pending => {}
                News::Registered(_) | News::Over(_) => drop(known.insert(path)),
            }
        }
        let first = in_doubt.first().map(|path| of(&history, path));
        assert!(first.is_none(), "{} were in doubt, such as {first:#?}", in_doubt.len());
    }
}

/// The answers about a path.
fn of<'a>(history: &'a [Told], path: &str) -> Vec<&'a Told> {
    history.iter().filter(|told| told.path == path).collect()
}

/// Waits until only the ZooKeeper sessions of `running` replicas are left.
pub async fn older_sessions_are_over(fleet: &Fleet, running: usize) {
    /// Number of sessions in which each replica holds ephemerals.
    const SESSIONS: usize = 4;
    eventually("the sessions of the older replicas are over", 2 * SOON, async || {
        let fences = fleet.zk.children("/.rollcall/fences").await.unwrap_or_default();
        check(fences.len() == running * SESSIONS, || format!("{} fences", fences.len()))
    })
    .await;
}
