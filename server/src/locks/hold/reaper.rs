//! Ends the leases with a ttl whose keeper is gone. Every replica does, and the version of the record lets one succeed.
//!
//! A record is written by the session whose fence it names. So the end of a keeper always changes the list of fences,
//! and that list is all that has to be watched. After each change, which is rare, all records are read again.
//!
//! A record may name a session of this replica for which no task runs: ZooKeeper carried out a pick-up too late for its
//! client, or a task failed. No other replica may end that lease, so this one does. The task reports it; a lease that
//! no task has reported is found within a minute.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use tokio::time::Instant;

use crate::locks::long_lists::go_through;
use crate::locks::recipe::lease_record::{self, Record, record_path};
use crate::locks::recipe::lock_id::Mark;
use crate::locks::running::RunningLocks;
use crate::locks::timing::{pause, pool_change};
use crate::types::NodePath;
use crate::zk::layout::{FENCES, LEASES, fence};
use crate::zk::{self, EphemeralSession, OneShot, Pool};

/// Maximum number of records in one read. A record is small, so this is more than
/// [`crate::locks::long_lists::READ_CHUNK`].
const RECORDS_PER_LOOK: usize = 256;
/// Maximum number of leases whose removal is in flight.
const REMOVED_AT_ONCE: usize = 64;
/// Time after which all records are read again though no watch has fired. A larger value finds leases later that no
/// task has reported.
const AT_LEAST_EVERY: Duration = Duration::from_secs(60);

/// The parts of the replica that the reaper needs.
#[derive(Debug)]
pub(crate) struct Reaper {
    pub(crate) pool: Pool,
    pub(crate) running: Arc<RunningLocks>,
}

/// A lease whose keeper is gone.
#[derive(Debug, Clone)]
struct Orphan {
    path: NodePath,
    version: i32,
    /// The end of its ttl by this replica's clock, counted from when this replica first saw that the keeper was gone.
    due: Instant,
}

/// Ends orphaned leases; never returns.
pub(crate) async fn run(reaper: Reaper) {
    let mut orphans = HashMap::new();
    loop {
        let Ok(owner) = reaper.pool.any() else {
            pool_change(&reaper.pool).await;
            continue;
        };
        let Ok(mut changed) = look(&reaper, &owner, &mut orphans).await else {
            pause().await;
            continue;
        };
        let look_again = Instant::now() + AT_LEAST_EVERY;
        loop {
            let due = orphans.values().map(|orphan| orphan.due).min().unwrap_or(look_again);
            tokio::select! {
                _ = &mut changed => break,
                () = reaper.running.orphaned() => break,
                () = tokio::time::sleep_until(due.min(look_again)) => {}
            }
            if !reap(&owner, &mut orphans).await {
                break;
            }
        }
    }
}

/// Finds the leases whose keeper is gone; those that were known stay due when they were. Returns a watch on the fences.
async fn look(
    reaper: &Reaper,
    owner: &EphemeralSession,
    orphans: &mut HashMap<String, Orphan>,
) -> Result<OneShot, zk::Error> {
    let session = owner.session();
    let (fences, leases) = (NodePath::trusted(FENCES), NodePath::trusted(LEASES));
    session.sync(&fences).await?;
    // The records first: the list of fences has the fence of every record that was read.
    let names = session.children(&leases).await?.map(|(names, _)| names).unwrap_or_default();
    let mut records = Vec::new();
    for chunk in names.chunks(RECORDS_PER_LOOK) {
        let paths: Vec<_> = chunk.iter().map(|name| record_path(name)).collect();
        let reads = session.get_many(paths.iter().map(NodePath::as_str)).await?;
        for (name, read) in chunk.iter().zip(reads) {
            let Ok(Some(read)) = read else { continue };
            match Record::parse(&read.data) {
                Some(record) => records.push((name.clone(), record, read.stat.version)),
                None => tracing::warn!(name, "a record of a lease can't be read"),
            }
        }
    }
    let (children, changed) = session.watch_children(&fences).await?;
    let Some((children, _)) = children else {
        // Another program has deleted it: there is nothing to watch, and each session has to make its fence again.
        session.ensure_parents(&fences.join("any")).await?;
        return Err(zk::Error::NotSent);
    };
    let standing: HashSet<_> = children.into_iter().collect();
    // The tasks after the records: a task is known from before it first writes a record until it has ended.
    let mut without_keeper = Vec::new();
    for (index, (name, record, version)) in records.into_iter().enumerate() {
        if index % RECORDS_PER_LOOK == 0 {
            // There may be very many.
            tokio::task::yield_now().await;
        }
        if !standing.contains(NodePath::trusted(fence(record.owner)).name())
            || (reaper.pool.owner(record.owner).is_some() && !has_task(&reaper.running, &name))
        {
            without_keeper.push((name, record, version));
        }
    }
    let known = std::mem::take(orphans);
    let now = Instant::now();
    *orphans = go_through(known.len() + without_keeper.len(), move || known_or_due(&known, without_keeper, now)).await;
    Ok(changed)
}

/// Whether a task of this replica has the lock of the lease with this name.
fn has_task(running: &RunningLocks, name: &str) -> bool {
    Mark::of(name).is_some_and(|mark| running.has(&mark))
}

/// The orphans now: those that were known, with the same version, stay due when they were.
fn known_or_due(
    known: &HashMap<String, Orphan>,
    records: Vec<(String, Record, i32)>,
    now: Instant,
) -> HashMap<String, Orphan> {
    let orphan = |(name, record, version): (String, Record, i32)| {
        let known = known.get(&name).filter(|orphan| orphan.version == version);
        let due = known.map_or(now + record.ttl, |orphan| orphan.due);
        (name, Orphan { path: record.path, version, due })
    };
    records.into_iter().map(orphan).collect()
}

/// Removes the leases that are due. `false`: look again.
async fn reap(owner: &EphemeralSession, orphans: &mut HashMap<String, Orphan>) -> bool {
    let now = Instant::now();
    let due: Vec<_> = orphans.iter().filter(|(_, orphan)| orphan.due <= now).map(|(name, _)| name.clone()).collect();
    if due.is_empty() {
        // The minute is over.
        return false;
    }
    let mut all_gone = true;
    let removals = due.into_iter().filter_map(|name| Some((orphans.get(&name)?.clone(), name)));
    let removals = removals.map(|(orphan, name)| async move {
        let removed = lease_record::remove(owner, &orphan.path, &name, orphan.version).await;
        (orphan.path, name, removed)
    });
    // A replica that died may have kept thousands of leases.
    let removals: Vec<_> = removals.collect();
    let mut removals = stream::iter(removals).buffer_unordered(REMOVED_AT_ONCE);
    while let Some((path, name, removed)) = removals.next().await {
        match removed {
            Ok(removal) => tracing::info!(%path, ?removal, "the ttl of a lock whose replica is gone has run out"),
            Err(zk::Error::Refused(code)) => tracing::error!(%path, %code, "zookeeper refuses to delete a lease"),
            Err(_) => {
                all_gone = false;
                continue;
            }
        }
        orphans.remove(&name);
    }
    all_gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SessionId;

    #[test]
    fn an_orphan_stays_due_when_it_was_until_its_record_is_written_or_it_has_a_keeper() {
        let (now, ttl) = (Instant::now(), Duration::from_secs(90));
        let record = Record { path: NodePath::trusted("/a"), ttl, owner: SessionId(1) };
        let records = |version| vec![("x".to_owned(), record.clone(), version)];
        let first = known_or_due(&HashMap::new(), records(3), now);
        assert_eq!(first["x"].due, now + ttl);
        let later = now + AT_LEAST_EVERY;
        assert_eq!(known_or_due(&first, records(3), later)["x"].due, now + ttl);
        assert_eq!(known_or_due(&first, records(4), later)["x"].due, later + ttl);
        assert!(known_or_due(&first, Vec::new(), later).is_empty());
    }
}
