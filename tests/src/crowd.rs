//! Many clients of a fleet, in processes of their own, and what must be true of what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::fleet::{Fleet, MARKER, name_of};
use crate::registrant::{Many, News, RegistrantProcess, Told};
use crate::wait::{SOON, check, eventually};

/// Where they all register.
pub const PLACE: &str = "/fleet";

/// Clients in two processes, one with a ttl and one without. Dropping kills them.
#[derive(Debug)]
pub struct Crowd([RegistrantProcess; 2]);

impl Crowd {
    /// So many clients with a ttl, and a tenth as many without, each with so many registrations below [`PLACE`]; all of
    /// them registered.
    pub async fn start(fleet: &Fleet, clients: usize, each: usize, ttl: Duration) -> Crowd {
        let with =
            Many { clients, each, ttl: Some(ttl), replicas: fleet.addresses(), prefix: format!("{PLACE}/with-ttl-") };
        let without = Many { clients: clients / 10, ttl: None, prefix: format!("{PLACE}/without-"), ..with.clone() };
        let processes = [with, without].map(|many| RegistrantProcess::spawn(&many));
        for process in &processes {
            process.registered().await;
        }
        Crowd(processes)
    }

    /// What they were told.
    pub fn history(&self) -> Vec<Told> {
        self.0.iter().flat_map(RegistrantProcess::history).collect()
    }

    /// How many streams they have had.
    pub fn streams(&self) -> usize {
        self.history().iter().filter(|told| matches!(told.news, News::Opened(_))).count()
    }

    /// Waits until ZooKeeper has exactly what they were told that they hold, in these incarnations.
    ///
    /// # Panics
    /// When they were told of a loss.
    pub async fn stands(&self, fleet: &Fleet) {
        let bare = fleet.sandbox.bare().await;
        eventually("ZooKeeper has what the clients were told", 2 * SOON, async || {
            let generations = self.0.iter().flat_map(|process| generations(&process.history()));
            let generations: BTreeMap<_, _> = generations.collect();
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

    /// The same, and nothing had to be made again.
    ///
    /// # Panics
    /// When something was.
    pub async fn stands_undisturbed(&self, fleet: &Fleet) {
        self.stands(fleet).await;
        let is_restored = |told: &Told| matches!(told.news, News::Registered { restored: true, .. });
        let restored: Vec<_> = self.history().into_iter().filter(is_restored).collect();
        assert!(restored.is_empty(), "{} were made again, such as {:?}", restored.len(), restored.first());
    }
}

/// The generation that each path has, by what the clients of one process were told.
///
/// # Panics
/// When a generation falls, or anything was lost, refused or overwritten.
fn generations(history: &[Told]) -> BTreeMap<String, i64> {
    let mut generations = BTreeMap::new();
    for Told { client, at, news } in history {
        match news {
            News::Registered { path, generation, .. } => {
                let before = generations.insert(path.clone(), *generation);
                let rises = before.is_none_or(|before| before <= *generation);
                assert!(rises, "{path} fell from {before:?}: {:#?}", of(history, *client, path));
            }
            News::Lost { path, .. } | News::Rejected { path, .. } | News::Overwritten(path) => {
                panic!("{news:?} at {at:?}; all of it: {:#?}", of(history, *client, path));
            }
            _ => {}
        }
    }
    generations
}

/// What a client was told of a path, and of its streams.
fn of<'a>(history: &'a [Told], wanted: usize, path: &str) -> Vec<&'a Told> {
    let concerns = |news: &News| match news {
        News::Registered { path: other, .. }
        | News::Lost { path: other, .. }
        | News::Rejected { path: other, .. }
        | News::Overwritten(other) => other == path,
        News::KeptAlive { .. } => false,
        News::Opened(_) | News::Draining | News::Broken(_) | News::Closed => true,
    };
    history.iter().filter(|told| told.client == wanted && concerns(&told.news)).collect()
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
