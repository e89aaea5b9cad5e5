//! The replicas that have sessions with ZooKeeper, by name: read from the fences.
//!
//! The list is read when a caller asks, at most once a second and once at a time, however many callers ask.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::layout::{self, FENCES};
use super::times::{FRESH, READING, ROSTER_PATIENCE};
use super::{Error, Pool, fence_mark};
use crate::types::{NodePath, SessionId};

/// Maximum number of fences that are read.
const MAX_FENCES: usize = 1000;
/// Maximum number of fences in one read.
const FENCES_PER_READ: usize = 128;

/// A list of the sessions of all replicas.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listed {
    /// The name of each session's replica; empty if it is not known.
    pub(crate) names: Arc<BTreeMap<SessionId, String>>,
    /// When the list was read; `None` if it never was.
    pub(crate) at: Option<(Instant, SystemTime)>,
}

impl Listed {
    fn is_fresh(&self) -> bool {
        self.at.is_some_and(|(at, _)| at.elapsed() < FRESH)
    }

    /// The name of a session's replica.
    pub(crate) fn name_of(&self, session: SessionId) -> Option<&str> {
        self.names.get(&session).map(String::as_str).filter(|name| !name.is_empty())
    }
}

/// A handle to the list. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Roster(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    listed: watch::Sender<Listed>,
    wanted: Notify,
}

impl Roster {
    /// The roster, and the task that reads it, which never ends.
    pub(super) fn start(pool: Pool) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::new(Shared { listed: watch::Sender::default(), wanted: Notify::new() });
        (Self(shared.clone()), run(shared, pool))
    }

    /// The last list.
    pub(crate) fn last(&self) -> Listed {
        self.0.listed.borrow().clone()
    }

    /// A list that is at most a second old; the last one while ZooKeeper does not answer.
    pub(crate) async fn current(&self) -> Listed {
        let mut listed = self.0.listed.subscribe();
        if !listed.borrow_and_update().is_fresh() {
            self.0.wanted.notify_one();
            // Can't fail: the sender is in the handle.
            let _ = timeout(ROSTER_PATIENCE, listed.changed()).await;
        }
        self.last()
    }
}

async fn run(shared: Arc<Shared>, pool: Pool) {
    loop {
        shared.wanted.notified().await;
        if shared.listed.borrow().is_fresh() {
            continue;
        }
        let known = shared.listed.borrow().names.clone();
        let read = timeout(READING, read(&pool, &known)).await.unwrap_or(Err(Error::NotSent));
        shared.listed.send_modify(|listed| {
            // The callers that wait are woken in either case.
            if let Ok(names) = read {
                *listed = Listed { names: Arc::new(names), at: Some((Instant::now(), SystemTime::now())) };
            }
        });
    }
}

async fn read(pool: &Pool, known: &BTreeMap<SessionId, String>) -> Result<BTreeMap<SessionId, String>, Error> {
    let owner = pool.any()?;
    let (fences, _) = owner.session().children(&NodePath::trusted(FENCES)).await?.unwrap_or_default();
    let sessions: Vec<_> = fences.iter().filter_map(|name| layout::session_of_fence(name)).take(MAX_FENCES).collect();
    let mut names = BTreeMap::new();
    for chunk in sessions.chunks(FENCES_PER_READ) {
        let paths: Vec<_> = chunk.iter().map(|session| layout::fence(*session)).collect();
        let reads = owner.session().get_many(paths.iter().map(String::as_str)).await?;
        for (session, read) in chunk.iter().zip(reads) {
            let Ok(Some(read)) = read else { continue };
            // Another replica that takes something over overwrites the name, until the owner writes again.
            let name = fence_mark::parse(&read.data).or_else(|| known.get(session).cloned());
            names.insert(*session, name.unwrap_or_default());
        }
    }
    Ok(names)
}
