//! Ends the leases whose keeper has gone: every replica does, and the record's version lets one of them succeed.
//!
//! A record is written by the session whose fence it names. So a keeper's end is always a change in the list of fences,
//! and that list is all that has to be watched: each change of it has all records read again, which is rare.
//!
//! A record may name a session of ours and have no task: a pick-up was carried out, but too late for who asked for it; or
//! a task failed. No other replica may end it; so we do. The task tells of it; what nothing told of is found within a
//! minute.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use tokio::time::Instant;

use super::id::Mark;
use super::record::{self, Record, record_path};
use super::{Shared, go_through, lock, seat};
use crate::types::NodePath;
use crate::zk::layout::{FENCES, LEASES, fence};
use crate::zk::{self, EphemeralSession, OneShot};

/// How many records are read at once.
const RECORDS_PER_LOOK: usize = 256;
/// Number of leases whose removal is under way at once.
const REMOVED_AT_ONCE: usize = 64;
/// Looked at once more after that, whatever the watch says.
const AT_LEAST_EVERY: Duration = Duration::from_secs(60);

/// A lease whose keeper is gone.
#[derive(Debug, Clone)]
struct Orphan {
    path: NodePath,
    version: i32,
    /// When its ttl is over, by our clock, counted from when we first saw that it had no keeper.
    due: Instant,
}

/// Never ends.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut orphans = HashMap::new();
    loop {
        let Ok(owner) = shared.pool.any() else {
            shared.room_may_be_free().await;
            continue;
        };
        let Ok(mut changed) = look(&shared, &owner, &mut orphans).await else {
            seat::pause().await;
            continue;
        };
        let look_again = Instant::now() + AT_LEAST_EVERY;
        loop {
            let due = orphans.values().map(|orphan| orphan.due).min().unwrap_or(look_again);
            tokio::select! {
                _ = &mut changed => break,
                () = shared.orphaned.notified() => break,
                () = tokio::time::sleep_until(due.min(look_again)) => {}
            }
            if !reap(&owner, &mut orphans).await {
                break;
            }
        }
    }
}

/// Finds the leases whose keeper is gone; those that were known stay due when they were. Gives a watch on the fences.
async fn look(
    shared: &Shared,
    owner: &EphemeralSession,
    orphans: &mut HashMap<String, Orphan>,
) -> Result<OneShot, zk::Error> {
    let session = owner.session();
    let (fences, leases) = (NodePath::trusted(FENCES), NodePath::trusted(LEASES));
    session.sync(&fences).await?;
    // The records first: the fence of one that was written later is in the list.
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
        // Somebody has deleted it: there is nothing to watch, and each session has still to make its fence again.
        session.ensure_parents(&fences.join("any")).await?;
        return Err(zk::Error::NotSent);
    };
    let standing: HashSet<_> = children.into_iter().collect();
    // After the records: a task is found from before its first write of one until it has no more to do with it.
    let mut without_keeper = Vec::new();
    for (index, (name, record, version)) in records.into_iter().enumerate() {
        if index % RECORDS_PER_LOOK == 0 {
            // There may be very many.
            tokio::task::yield_now().await;
        }
        if !standing.contains(NodePath::trusted(fence(record.owner)).name())
            || (shared.pool.owner(record.owner).is_some() && !has_task(shared, &name))
        {
            without_keeper.push((name, record, version));
        }
    }
    let known = std::mem::take(orphans);
    let now = Instant::now();
    *orphans = go_through(known.len() + without_keeper.len(), move || known_or_due(&known, without_keeper, now)).await;
    Ok(changed)
}

/// Whether a task of this replica has to do with the lease of this name.
fn has_task(shared: &Shared, name: &str) -> bool {
    Mark::of(name).is_some_and(|mark| lock(&shared.running).contains_key(&mark))
}

/// The orphans now: those that were known with the same version stay due when they were.
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

/// Removes what is due. `false`: look again.
async fn reap(owner: &EphemeralSession, orphans: &mut HashMap<String, Orphan>) -> bool {
    let now = Instant::now();
    let due: Vec<_> = orphans.iter().filter(|(_, orphan)| orphan.due <= now).map(|(name, _)| name.clone()).collect();
    if due.is_empty() {
        // It was the other time-out.
        return false;
    }
    let mut all_gone = true;
    let removals = due.into_iter().filter_map(|name| Some((orphans.get(&name)?.clone(), name)));
    let removals = removals.map(|(orphan, name)| async move {
        let removed = record::remove(owner, &orphan.path, &name, orphan.version).await;
        (orphan.path, name, removed)
    });
    // A replica that died may have kept thousands.
    let removals: Vec<_> = removals.collect();
    let mut removals = stream::iter(removals).buffer_unordered(REMOVED_AT_ONCE);
    while let Some((path, name, removed)) = removals.next().await {
        match removed {
            Ok(removal) => tracing::info!(%path, ?removal, "the ttl of a lock is over whose keeper is gone"),
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
