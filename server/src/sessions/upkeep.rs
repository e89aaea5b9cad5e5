//! Operations in ZooKeeper on registered nodes: removing them, and checking whether they still exist.

use futures_util::future::join_all;

use super::claims::Observed;
use super::effects::NodeRemoval;
use super::times::{FIRST_REREAD_PAUSE, LONGEST_REREAD_PAUSE};
use crate::evictions::{Evictions, record_path};
use crate::types::{Generation, NodePath, SessionId, Stat, Zxid};
use crate::zk::{self, CommitError, EphemeralSession, ErrorCode, FenceEpoch, Guard, Pauses, Unit, WatchSessionId, Zk};

/// Maximum number of nodes that are read at once: with the largest data the answer stays below what a connection takes.
pub(super) const BATCH: usize = 48;
/// Maximum number of bytes of data of nodes that are read together only for their stats. With more data each stat is
/// asked for by itself.
const READ_BYTES: usize = 128 * 1024;

/// Carries out removals, and reads nodes.
#[derive(Debug, Clone)]
pub(super) struct Upkeep {
    zk: Zk,
    evictions: Evictions,
}

impl Upkeep {
    pub(super) fn new(zk: Zk, evictions: Evictions) -> Self {
        Self { zk, evictions }
    }

    /// Removes incarnations, at most [`BATCH`], and returns when all are gone: by our delete, by another's, or with
    /// their session. Returns those that ZooKeeper refuses to delete.
    pub(super) async fn remove(&self, session: SessionId, removals: &[NodeRemoval]) -> Vec<(NodePath, ErrorCode)> {
        let mut refused = Vec::new();
        let mut left: Vec<_> = removals.iter().collect();
        let mut is_whole = true;
        let mut pauses = Pauses::new(FIRST_REREAD_PAUSE, LONGEST_REREAD_PAUSE);
        while !left.is_empty()
            && let Some(owner) = self.zk.pool.owner(session)
        {
            let before = left.len();
            let tried = Self::try_remove(&owner, &mut left, &mut refused, is_whole).await;
            if left.len() < before {
                pauses.reset();
            }
            match tried {
                // The read was too early: the change has not reached this session's server. Or one node spoils the
                // transaction for all.
                Ok(()) if std::mem::take(&mut is_whole) => continue,
                Ok(()) => {}
                Err(error) if error.is_connection_lost() => {
                    if !owner.session().is_up() {
                        owner.session().connected().await;
                        pauses.reset();
                    }
                }
                Err(_) => is_whole = false,
            }
            if !left.is_empty() {
                tokio::time::sleep(pauses.next()).await;
            }
        }
        refused
    }

    /// One try. Leaves in `left` the nodes that may still exist. `is_whole`: all in one transaction, or each by itself.
    async fn try_remove(
        owner: &EphemeralSession,
        left: &mut Vec<&NodeRemoval>,
        refused: &mut Vec<(NodePath, ErrorCode)>,
        is_whole: bool,
    ) -> Result<(), zk::Error> {
        let fence_epoch = owner.writer().fence_epoch();
        let nodes: Vec<_> = left.iter().map(|removal| (&removal.path, removal.bytes)).collect();
        let stats = stats(owner, &nodes, is_whole).await?;
        let found = left.iter().copied().zip(stats).filter_map(|(removal, stat)| Some((removal, stat?)));
        let standing: Vec<_> = found.filter(|(removal, stat)| stat.czxid == removal.generation.0).collect();
        *left = standing.iter().map(|(removal, _)| *removal).collect();
        let deletes = standing.iter().map(|(removal, stat)| zk::delete(removal.path.as_str(), stat.version));
        let unit = |ops| Unit { guard: Guard::Own(fence_epoch), ops };
        if is_whole && standing.len() > 1 {
            match owner.writer().commit(unit(deletes.collect())).await {
                Ok(_) => left.clear(),
                Err(CommitError::FenceMoved | CommitError::Part { .. }) => {}
                Err(CommitError::Zk(error)) => return Err(error),
            }
            return Ok(());
        }
        let outcomes = join_all(deletes.map(|delete| owner.writer().commit(unit(vec![delete])))).await;
        let mut failed = None;
        left.clear();
        for ((removal, _), outcome) in standing.into_iter().zip(outcomes) {
            match outcome {
                Ok(_) | Err(CommitError::Part { code: ErrorCode::NoNode, .. }) => {}
                Err(CommitError::FenceMoved | CommitError::Part { code: ErrorCode::BadVersion, .. }) => {
                    left.push(removal);
                }
                Err(CommitError::Part { code, .. } | CommitError::Zk(zk::Error::Refused(code))) => {
                    refused.push((removal.path.clone(), code));
                }
                Err(CommitError::Zk(error)) => {
                    left.push(removal);
                    failed = Some(error);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// The nodes of these that exist in this session, with the state of its fence that was known before they were read.
    /// Each node comes with the length of its data.
    pub(super) async fn confirm(
        &self,
        session: SessionId,
        nodes: &[(NodePath, usize)],
    ) -> Option<(FenceEpoch, Vec<(NodePath, Generation)>)> {
        let owner = self.zk.pool.owner(session)?;
        let fence_epoch = owner.writer().fence_epoch();
        let asked: Vec<_> = nodes.iter().map(|(path, bytes)| (path, *bytes)).collect();
        let stats = stats(&owner, &asked, true).await.ok()?;
        let standing = nodes.iter().zip(stats).filter_map(|((path, _), stat)| {
            let stat = stat.filter(|stat| stat.ephemeral_owner == session.0)?;
            Some((path.clone(), Generation(stat.czxid)))
        });
        Some((fence_epoch, standing.collect()))
    }

    /// The watching session that covers a path: that of its parent.
    pub(super) fn watch_session_of(&self, path: &NodePath) -> Option<WatchSessionId> {
        path.parent().map(|parent| self.zk.hub.watch_session_of(&parent))
    }

    /// The nodes at these paths, read in the session of their watches.
    pub(super) async fn observe(
        &self,
        watch_session: WatchSessionId,
        paths: &[NodePath],
    ) -> Option<Vec<Option<Observed>>> {
        let reads = self.zk.hub.session_of(watch_session).get_many(paths.iter().map(NodePath::as_str)).await.ok()?;
        let observed = reads.into_iter().map(|read| match read {
            Ok(Some(read)) => Some(Observed::Standing { read }),
            Ok(None) => Some(Observed::Absent),
            Err(_) => None,
        });
        let mut observed: Vec<_> = observed.collect();
        self.find_evicted(watch_session, paths, &mut observed).await;
        Some(observed)
    }

    /// Marks nodes that are absent and evicted. The record was written in the transaction that deleted the node: a
    /// session that sees one sees the other, however far its server is behind.
    async fn find_evicted(&self, watch_session: WatchSessionId, paths: &[NodePath], observed: &mut [Option<Observed>]) {
        let absent = || observed.iter().enumerate().filter(|(_, seen)| matches!(seen, Some(Observed::Absent)));
        let (indexes, records): (Vec<_>, Vec<_>) =
            absent().filter_map(|(index, _)| Some((index, record_path(paths.get(index)?)))).unzip();
        if records.is_empty() {
            return;
        }
        let reads = self.zk.hub.session_of(watch_session).get_many(records.iter().map(NodePath::as_str)).await;
        for (slot, index) in indexes.into_iter().enumerate() {
            observed[index] = match reads.as_ref().map(|reads| &reads[slot]) {
                Ok(Ok(None)) => Some(Observed::Absent),
                Ok(Ok(Some(record))) => {
                    self.evictions.learn(&paths[index], record);
                    Some(Observed::Evicted { written: Zxid(record.stat.mzxid) })
                }
                // The node is read again later.
                Ok(Err(_)) | Err(_) => None,
            };
        }
    }
}

/// The stats of these nodes, in their order; `None` for a node that does not exist. Each node comes with the length of
/// its data. `is_whole`: all in one read, or each by itself.
async fn stats(
    owner: &EphemeralSession,
    nodes: &[(&NodePath, usize)],
    is_whole: bool,
) -> Result<Vec<Option<Stat>>, zk::Error> {
    let session = owner.session();
    let bytes: usize = nodes.iter().map(|(_, bytes)| bytes).sum();
    if !is_whole || nodes.len() == 1 || bytes > READ_BYTES {
        let asked = join_all(nodes.iter().map(|(path, _)| session.exists(path)));
        return asked.await.into_iter().collect();
    }
    let reads = session.get_many(nodes.iter().map(|(path, _)| path.as_str())).await?;
    let mut stats = Vec::with_capacity(reads.len());
    for (read, (path, _)) in reads.into_iter().zip(nodes) {
        stats.push(match read {
            Ok(read) => read.map(|read| read.stat),
            // A session that may not read a node may still ask whether it exists.
            Err(_) => session.exists(path).await?,
        });
    }
    Ok(stats)
}
