//! The task that watches the records of evictions, and removes those that are over.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::known::{KnownEviction, MAX_EVICTIONS, Shared, tick};
use super::record::{self, EvictionRecord};
use crate::types::{NodePath, Zxid};
use crate::zk::layout::EVICTED;
use crate::zk::{self, Batch, Mailbox, Response, Session, Subscription};

/// Number of records in one read: a path has 4 KiB at most.
const RECORDS_PER_READ: usize = 128;
/// Pause after a reading that has failed, and between two tries to remove a record that is over.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Time over which replicas remove a record that is over: mostly the first replica does it for all.
const SPREAD: Duration = Duration::from_secs(2);

/// A record as it was read.
struct FoundRecord {
    name: String,
    record: EvictionRecord,
    /// When it was written, in milliseconds by ZooKeeper's clock.
    mtime: i64,
    written: Zxid,
}

/// Runs for ever.
pub(super) async fn run(shared: Arc<Shared>) {
    let root = NodePath::trusted(EVICTED);
    let mailbox = Arc::new(Mailbox::default());
    let subscription = shared.zk.hub.subscribe(&root, &mailbox);
    // For each eviction that is over, when its record is removed.
    let mut removals: HashMap<String, Instant> = HashMap::new();
    let mut reload_at = None;
    loop {
        let next_end = next_end(&shared, &removals);
        let due = [reload_at, next_end, removals.values().min().copied()].into_iter().flatten().min();
        let is_due = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            batch = mailbox.next() => if is_news(&batch) {
                reload_at = Some(Instant::now());
            },
            () = is_due => {}
        }
        let now = Instant::now();
        if reload_at.is_some_and(|at| at <= now) {
            reload_at = match load(&shared, &subscription).await {
                Ok(()) => None,
                Err(error) => {
                    tracing::debug!(%error, "the records of evictions can't be read");
                    Some(now + RETRY_PAUSE)
                }
            };
        }
        end(&shared, &mut removals);
        remove(&shared, &mut removals).await;
    }
}

/// Whether more has happened than the write of a replica that asks for the time.
fn is_news(batch: &Batch) -> bool {
    let is_tick = |(path, seen): (&Arc<str>, &zk::NodeEvents)| **path == *EVICTED && !seen.created && !seen.deleted;
    !batch.resync.is_empty() || !batch.events.iter().all(is_tick)
}

/// When the next eviction ends, of those that have not ended yet.
fn next_end(shared: &Shared, removals: &HashMap<String, Instant>) -> Option<Instant> {
    let known = shared.known.lock();
    known.iter().filter(|(name, _)| !removals.contains_key(*name)).map(|(_, known)| known.until).min()
}

/// Reads all records, and publishes the evictions in force.
async fn load(shared: &Shared, subscription: &Subscription) -> Result<(), zk::Error> {
    let session = subscription.session();
    let (found, names, changed) = read(&session).await?;
    let is_new =
        |found: &FoundRecord| shared.known.lock().get(&found.name).is_none_or(|known| known.written < found.written);
    let new: Vec<_> = found.into_iter().filter(is_new).collect();
    let (zookeeper_now, now) = if new.is_empty() { (0, Instant::now()) } else { time(shared).await };
    let mut known = shared.known.lock();
    // A record that this replica made after this reading is not in the list yet.
    known.retain(|name, known| names.contains(name) || known.written > changed);
    for FoundRecord { name, record, mtime, written } in new {
        let age = Duration::from_millis(u64::try_from(zookeeper_now.saturating_sub(mtime)).unwrap_or_default());
        let until = now + record.duration.saturating_sub(age);
        let later = KnownEviction { path: record.path, until, written };
        if known.get(&name).is_none_or(|known| known.written < written) {
            known.insert(name, later);
        }
    }
    shared.show(&known);
    Ok(())
}

/// All records, their names, and the transaction that created or removed one last.
async fn read(session: &Session) -> Result<(Vec<FoundRecord>, HashSet<String>, Zxid), zk::Error> {
    let Some((names, stat)) = session.children(&NodePath::trusted(EVICTED)).await? else {
        return Ok((Vec::new(), HashSet::new(), Zxid(0)));
    };
    let names: Vec<_> = names.into_iter().take(2 * MAX_EVICTIONS).collect();
    let mut found = Vec::new();
    for chunk in names.chunks(RECORDS_PER_READ) {
        let paths: Vec<_> = chunk.iter().map(|name| record::named(name)).collect();
        let reads = session.get_many(paths.iter().map(NodePath::as_str)).await?;
        for (name, read) in chunk.iter().zip(reads) {
            let Ok(Some(read)) = read else { continue };
            match EvictionRecord::parse(name, &read.data) {
                Some(record) => found.push(FoundRecord {
                    name: name.clone(),
                    record,
                    mtime: read.stat.mtime,
                    written: Zxid(read.stat.mzxid),
                }),
                None => tracing::warn!(name, "a record of an eviction can't be read"),
            }
        }
    }
    Ok((found, names.into_iter().collect(), Zxid(stat.pzxid)))
}

/// The time by ZooKeeper's clock, in milliseconds, by which records are dated, and the instant of it on this replica.
/// Clocks of replicas may be wrong. If ZooKeeper does not answer, every eviction counts as new, so that none ends too
/// early.
async fn time(shared: &Shared) -> (i64, Instant) {
    let answer = match shared.zk.pool.any() {
        Ok(owner) => owner.session().submit(tick()).await,
        Err(error) => Err(error),
    };
    match answer.map(|answer| answer.response) {
        Ok(Response::Stat(stat)) => (stat.mtime, Instant::now()),
        _ => (0, Instant::now()),
    }
}

/// Removes evictions that are over from the table, and notes when their records are removed.
fn end(shared: &Shared, removals: &mut HashMap<String, Instant>) {
    let now = Instant::now();
    let known = shared.known.lock();
    let is_over = |name: &String| known.get(name).is_some_and(|known| known.until <= now);
    removals.retain(|name, _| is_over(name));
    let ended: Vec<_> = known.keys().filter(|name| is_over(name) && !removals.contains_key(*name)).cloned().collect();
    if !ended.is_empty() && shared.table.borrow().is_some() {
        shared.show(&known);
    }
    removals.extend(ended.into_iter().map(|name| (name, now + SPREAD.mul_f64(rand::random()))));
}

/// Removes the records whose removal is due.
async fn remove(shared: &Shared, removals: &mut HashMap<String, Instant>) {
    let now = Instant::now();
    let due: Vec<_> = removals.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
    for name in due {
        if is_removed(shared, &name).await {
            shared.change(|known| known.retain(|other, known| *other != name || known.until > now));
            removals.remove(&name);
        } else {
            removals.insert(name, now + RETRY_PAUSE);
        }
    }
}

/// Removes a record, unless it was written since. Returns whether nothing is left to do about it.
async fn is_removed(shared: &Shared, name: &str) -> bool {
    let written = shared.known.lock().get(name).map(|known| known.written);
    let (Some(written), Ok(owner)) = (written, shared.zk.pool.any()) else { return written.is_none() };
    let path = record::named(name);
    let stat = match owner.session().exists(&path).await {
        Ok(Some(stat)) => stat,
        Ok(None) => return true,
        Err(_) => return false,
    };
    if stat.mzxid != written.0 {
        // The watch will report it, or this server is behind.
        return false;
    }
    // If the record was written again meanwhile, this fails, and the watch reports it.
    let deleted = owner.commit(vec![zk::delete(path.as_str(), stat.version)]).await;
    deleted.is_ok()
}
