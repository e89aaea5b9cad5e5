//! Many clients of a fleet, in processes of their own, and what must be true of what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::fleet::{Fleet, MARKER, name_of};
use crate::registrant::{Many, News, RegistrantProcess, Told};
use crate::wait::{SOON, check, eventually};

/// Where they all register.
pub const PLACE: &str = "/fleet";

/// What the paths begin with of those that have a ttl.
const WITH_TTL: &str = "/fleet/with-ttl-";

/// Which clients of a crowd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// All.
    All,
    /// Those with a ttl: the others go with their connection, and say so at once.
    WithTtl,
}

/// Clients in processes of their own. Dropping kills them.
#[derive(Debug)]
pub struct Crowd(Vec<RegistrantProcess>);

impl Crowd {
    /// So many clients with a ttl, and a tenth as many without, each with so many registrations below [`PLACE`]; all of
    /// them registered.
    pub async fn start(fleet: &Fleet, clients: usize, each: usize, ttl: Duration) -> Crowd {
        let with = Many { clients, each, ttl: Some(ttl), replicas: fleet.addresses(), prefix: WITH_TTL.to_owned() };
        let without = Many { clients: clients / 10, ttl: None, prefix: format!("{PLACE}/without-"), ..with.clone() };
        Crowd::of(&[with, without]).await
    }

    /// These clients, each kind in a process of its own; all of them registered.
    pub async fn of(kinds: &[Many]) -> Crowd {
        let processes: Vec<_> = kinds.iter().map(RegistrantProcess::spawn).collect();
        for process in &processes {
            process.registered().await;
        }
        Crowd(processes)
    }

    /// What they were told.
    pub fn history(&self) -> Vec<Told> {
        self.0.iter().flat_map(RegistrantProcess::history).collect()
    }

    /// The generation that each path has, by what the clients were told.
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

    /// Waits until ZooKeeper has exactly what they were told that they hold, in these incarnations.
    ///
    /// # Panics
    /// When they were told of a loss.
    pub async fn stands(&self, fleet: &Fleet) {
        let bare = fleet.sandbox.bare().await;
        eventually("ZooKeeper has what the clients were told", 2 * SOON, async || {
            let generations = self.generations();
            let names: BTreeSet<_> = generations.keys().map(|path| name_of(path)).collect();
            let found = bare.children(PLACE).await.unwrap_or_default().into_iter();
            let standing: BTreeSet<_> = found.filter(|name| !name.starts_with(MARKER)).collect();
            check(names == standing, || {
                format!("different: {:?}", names.symmetric_difference(&standing).take(3).collect::<Vec<_>>())
            })?;
            for (path, generation) in &generations {
                let standing = bare.get(path).await.map(|node| node.stat.czxid);
                check(standing == Some(*generation), || format!("{path} is {standing:?}, not {generation}"))?;
            }
            Ok(())
        })
        .await;
    }

    /// The same, and these clients were never in doubt.
    ///
    /// # Panics
    /// When one was told that it may not be registered any more.
    pub async fn stands_undisturbed(&self, fleet: &Fleet, whose: Whose) {
        self.stands(fleet).await;
        self.was_undisturbed(|path| whose == Whose::All || path.starts_with(WITH_TTL));
    }

    /// Those who hold the paths that `concerns` takes were never in doubt.
    ///
    /// # Panics
    /// When one was told that it may not be registered any more.
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

/// What was told of a path.
fn of<'a>(history: &'a [Told], path: &str) -> Vec<&'a Told> {
    history.iter().filter(|told| told.path == path).collect()
}

/// Waits until only the ZooKeeper sessions of so many replicas are left.
pub async fn older_sessions_are_over(fleet: &Fleet, running: usize) {
    /// How many sessions each replica holds ephemerals in.
    const SESSIONS: usize = 4;
    eventually("the sessions of the older replicas are over", 2 * SOON, async || {
        let fences = fleet.bare.children("/.rollcall/fences").await.unwrap_or_default();
        check(fences.len() == running * SESSIONS, || format!("{} fences", fences.len()))
    })
    .await;
}
