//! Removes the nodes of locks that no client has used for `--lock-idle`.
//!
//! Each replica reads the records of all locks eight times in that time, a shard at a time. A record holds the
//! transaction of the last use that any replica has seen, and ZooKeeper keeps the time at which the record was written.
//! So this outlives every replica: a lock that did not change since its record was written is idle since then. Any
//! number of replicas may do this at once, since each write and each removal checks the record's version.
//!
//! Nothing can be lost: a lock that is wanted again is made again, and its tokens still rise, since they are
//! ZooKeeper's transactions.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::lock_nodes::{LockNodes, LockRecord, Versions, removal_of_begun};
use crate::locks::long_lists::READ_CHUNK;
use crate::locks::timing::pool_change;
use crate::types::{NodePath, Zxid};
use crate::zk::layout::{LOCK_RECORDS, lock_queue};
use crate::zk::{self, CommitError, EphemeralSession, Pool, Read, Session};

/// Number of rounds through all records in the time after which a lock is idle.
const ROUNDS: u32 = 8;
/// The shortest and the longest time of one round. A longer round removes an idle lock that much later; a shorter one
/// asks ZooKeeper all the time where `--lock-idle` is short.
const ROUND: std::ops::RangeInclusive<Duration> = Duration::from_millis(250)..=Duration::from_secs(3600);

/// The parts of the replica that the removal of idle locks needs.
#[derive(Debug)]
pub(crate) struct IdleLocks {
    pub(crate) pool: Pool,
    /// Time without use after which a lock is removed.
    pub(crate) idle: Duration,
}

/// The treatment of one record.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The lock is gone: delete the record.
    Forget,
    /// The lock was used since the record was written: write the use into the record.
    Used(Zxid),
    Leave,
    Remove(Versions),
    /// Remove a lock that has no queue.
    RemoveBegun(i32),
}

fn judge(record: &LockRecord, silent_for: Duration, nodes: LockNodes, idle: Duration) -> Verdict {
    match nodes {
        LockNodes::None => Verdict::Forget,
        LockNodes::Lock { used, .. } | LockNodes::Begun { used, .. } if used != record.used => Verdict::Used(used),
        LockNodes::Begun { version, .. } if silent_for >= idle => Verdict::RemoveBegun(version),
        LockNodes::Lock { is_busy: false, versions, .. } if silent_for >= idle => Verdict::Remove(versions),
        LockNodes::Lock { .. } | LockNodes::Begun { .. } | LockNodes::Other => Verdict::Leave,
    }
}

/// Removes idle locks; never returns.
pub(crate) async fn run(locks: IdleLocks) {
    let round = (locks.idle / ROUNDS).clamp(*ROUND.start(), *ROUND.end());
    // Replicas that are started together take turns.
    tokio::time::sleep(round.mul_f64(rand::random())).await;
    loop {
        let begun = Instant::now();
        match locks.pool.any() {
            Ok(owner) => {
                if let Err(error) = one_round(&locks, &owner, round).await {
                    tracing::debug!(%error, "the records of locks could not be gone through");
                }
            }
            Err(_) => pool_change(&locks.pool).await,
        }
        tokio::time::sleep_until(begun + round).await;
    }
}

/// Reads all records once, in about half of the time of a round.
async fn one_round(locks: &IdleLocks, owner: &EphemeralSession, round: Duration) -> Result<(), zk::Error> {
    let root = NodePath::trusted(LOCK_RECORDS);
    let Some((shards, _)) = owner.session().children(&root).await? else { return Ok(()) };
    let pause = round / 2 / u32::try_from(shards.len().max(1)).unwrap_or(u32::MAX);
    for shard in shards {
        let shard = root.join(&shard);
        let names = owner.session().children(&shard).await?.map(|(names, _)| names).unwrap_or_default();
        for chunk in names.chunks(READ_CHUNK / 2) {
            look_at(locks, owner, &shard, chunk).await?;
        }
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

/// Reads some records of a shard, and their locks.
async fn look_at(
    locks: &IdleLocks,
    owner: &EphemeralSession,
    shard: &NodePath,
    names: &[String],
) -> Result<(), zk::Error> {
    let session = owner.session();
    let paths: Vec<_> = names.iter().map(|name| shard.join(name)).collect();
    let mut records = Vec::new();
    for read in session.get_many(paths.iter().map(NodePath::as_str)).await?.into_iter().flatten().flatten() {
        if let Some(record) = LockRecord::parse(&read.data) {
            records.push((record, read));
        }
    }
    let nodes: Vec<_> =
        records.iter().flat_map(|(record, _)| [record.path.clone(), lock_queue(&record.path)]).collect();
    let reads = session.get_many(nodes.iter().map(NodePath::as_str)).await?;
    for ((record, read), nodes) in records.into_iter().zip(reads.chunks(2)) {
        let [Ok(lock), Ok(queue)] = nodes else { continue };
        let verdict = judge(&record, age(&read), LockNodes::of(lock.as_ref(), queue.as_ref()), locks.idle);
        let done = carry_out(locks, owner, record, &read, verdict).await;
        // Another replica was faster, or a client uses the lock: the next round sees.
        if let Err(CommitError::Zk(error)) = done {
            return Err(error);
        }
    }
    Ok(())
}

/// Time since a node was written, by ZooKeeper's clock and this machine's. A difference does no harm: a lock that is
/// removed early is made again.
fn age(read: &Read) -> Duration {
    let written = Duration::from_millis(u64::try_from(read.stat.mtime).unwrap_or_default());
    SystemTime::now().duration_since(UNIX_EPOCH + written).unwrap_or_default()
}

async fn carry_out(
    locks: &IdleLocks,
    owner: &EphemeralSession,
    record: LockRecord,
    read: &Read,
    verdict: Verdict,
) -> Result<(), CommitError> {
    let (path, version) = (record.path.clone(), read.stat.version);
    let ops = match verdict {
        Verdict::Leave => return Ok(()),
        Verdict::Used(used) => return owner.commit(vec![LockRecord { used, ..record }.write(version)]).await.map(drop),
        Verdict::Forget => return owner.commit(vec![record.delete(version)]).await.map(drop),
        Verdict::Remove(versions) => versions.removal(&path).to_vec(),
        Verdict::RemoveBegun(version) => removal_of_begun(&path, version).to_vec(),
    };
    // An operator who has protected the nodes wants to keep them.
    if !are_open(owner.session(), &path).await.map_err(CommitError::Zk)? {
        return Ok(());
    }
    owner.commit([vec![record.delete(version)], ops].concat()).await?;
    tracing::info!(%path, "a lock that nobody has used for {:?} is removed", locks.idle);
    Ok(())
}

/// Whether the existing nodes allow everything to everybody.
async fn are_open(session: &Session, path: &NodePath) -> Result<bool, zk::Error> {
    let queue = lock_queue(path);
    let (lock, queue) = futures_util::future::join(session.is_open(path), session.is_open(&queue)).await;
    Ok([lock?, queue?].into_iter().all(|is_open| is_open != Some(false)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Stat;

    #[test]
    fn a_lock_is_removed_once_it_has_not_changed_for_long_enough() {
        const DAY: Duration = Duration::from_secs(86_400);
        let record = |used| LockRecord { path: NodePath::trusted("/a"), used: Zxid(used) };
        let nodes = |children, pzxid| {
            let lock = Stat { num_children: children, pzxid, ..Stat::default() };
            let [lock, queue] =
                [("1", lock), ("", Stat::default())].map(|(data, stat)| Read { data: data.into(), stat });
            LockNodes::of(Some(&lock), Some(&queue))
        };
        let judge = |used, silent_for, nodes| judge(&record(used), silent_for, nodes, DAY);
        assert_eq!(judge(0, 2 * DAY, nodes(0, 9)), Verdict::Used(Zxid(9)), "it was used since");
        assert_eq!(judge(9, DAY / 2, nodes(0, 9)), Verdict::Leave);
        assert!(matches!(judge(9, DAY, nodes(0, 9)), Verdict::Remove(_)));
        assert_eq!(judge(9, 2 * DAY, nodes(1, 9)), Verdict::Leave, "it is held");
        assert_eq!(judge(9, 2 * DAY, LockNodes::Other), Verdict::Leave);
        assert_eq!(judge(9, Duration::ZERO, LockNodes::None), Verdict::Forget);
        let begun = LockNodes::Begun { used: Zxid(9), version: 3 };
        assert_eq!(judge(0, 2 * DAY, begun), Verdict::Used(Zxid(9)));
        assert_eq!(judge(9, DAY / 2, begun), Verdict::Leave);
        assert_eq!(judge(9, DAY, begun), Verdict::RemoveBegun(3));
    }
}
