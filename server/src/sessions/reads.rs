//! Reads of the nodes at registered paths: many paths at once, connections in turn, a bounded number under way.

use std::collections::{HashMap, VecDeque};

use super::lanes::Lane;
use super::upkeep::BATCH;
use crate::spare;
use crate::types::{NodePath, SessionId};
use crate::zk::WatchSessionId;

/// Maximum number of reads under way for one watching session, and of reads that confirm. Each may bring [`BATCH`]
/// values. A server that hangs does not hold up the others.
const READS: usize = 4;

/// One read of at most [`BATCH`] paths.
#[derive(Debug, PartialEq)]
pub(super) enum BatchRead {
    /// A read of nodes to which something may have happened, in the session of their watches.
    Verify { watch_session: WatchSessionId, paths: Vec<NodePath> },
    /// A read of nodes to which most likely nothing happened, in the session that holds them. Each comes with the
    /// length of its data.
    Confirm { session: SessionId, nodes: Vec<(NodePath, usize)> },
}

/// The stage of the read of a path.
#[derive(Debug)]
enum Stage {
    Waiting,
    UnderWay,
    /// The read is under way, and was asked for again since: its result may be older than the last request.
    Outdated {
        connection: u64,
        watch_session: WatchSessionId,
    },
}

/// The reads that wait, and the number that are under way.
#[derive(Debug)]
pub(super) struct ReadQueue {
    /// For each watching session, the connections with paths that wait, each once.
    turns: HashMap<WatchSessionId, Lane<u64>>,
    waiting: HashMap<(u64, WatchSessionId), VecDeque<NodePath>>,
    /// The stage of each path that is verified.
    stages: HashMap<NodePath, Stage>,
    /// These are read when nothing is left to verify.
    confirmations: VecDeque<(SessionId, Vec<(NodePath, usize)>)>,
    confirming: usize,
}

impl ReadQueue {
    pub(super) fn new() -> Self {
        Self {
            turns: HashMap::new(),
            waiting: HashMap::new(),
            stages: HashMap::new(),
            confirmations: VecDeque::new(),
            confirming: 0,
        }
    }

    /// Asks for a read of a path that begins after this call.
    pub(super) fn verify(&mut self, connection: u64, watch_session: WatchSessionId, path: NodePath) {
        match self.stages.get_mut(&path) {
            Some(Stage::Waiting | Stage::Outdated { .. }) => {}
            Some(stage @ Stage::UnderWay) => *stage = Stage::Outdated { connection, watch_session },
            None => {
                self.stages.insert(path.clone(), Stage::Waiting);
                let waiting = self.waiting.entry((connection, watch_session)).or_default();
                if waiting.is_empty() {
                    self.turns.entry(watch_session).or_insert_with(|| Lane::new(READS)).push(connection, connection);
                }
                waiting.push_back(path);
            }
        }
    }

    /// Returns the number of reads that this takes.
    pub(super) fn confirm(&mut self, session: SessionId, nodes: &[(NodePath, usize)]) -> usize {
        self.confirmations.extend(nodes.chunks(BATCH).map(|nodes| (session, nodes.to_vec())));
        nodes.len().div_ceil(BATCH)
    }

    /// Whether [`ReadQueue::next`] has a read.
    pub(super) fn has_next(&self) -> bool {
        self.turns.values().any(Lane::has_next) || (self.confirming < READS && !self.confirmations.is_empty())
    }

    /// The next read. It is under way until [`ReadQueue::verified`] or [`ReadQueue::confirmed`].
    pub(super) fn next(&mut self) -> Option<BatchRead> {
        if let Some(read) = self.next_verification() {
            return Some(read);
        }
        if self.confirming == READS {
            return None;
        }
        let (session, nodes) = self.confirmations.pop_front()?;
        self.confirming += 1;
        Some(BatchRead::Confirm { session, nodes })
    }

    fn next_verification(&mut self) -> Option<BatchRead> {
        let (watch_session, lane) = self.turns.iter_mut().find(|(_, lane)| lane.has_next())?;
        let (watch_session, connection) = (*watch_session, lane.next(1).pop()?);
        let waiting = self.waiting.get_mut(&(connection, watch_session))?;
        let paths: Vec<_> = waiting.drain(..waiting.len().min(BATCH)).collect();
        if waiting.is_empty() {
            self.waiting.remove(&(connection, watch_session));
        } else {
            lane.push(connection, connection);
        }
        for path in &paths {
            self.stages.insert(path.clone(), Stage::UnderWay);
        }
        Some(BatchRead::Verify { watch_session, paths })
    }

    /// A read is over. Removes from `found` the paths that were asked for again since, which are read again.
    pub(super) fn verified<T>(&mut self, watch_session: WatchSessionId, found: &mut Vec<(NodePath, T)>) {
        if let Some(lane) = self.turns.get_mut(&watch_session) {
            lane.done();
        }
        found.retain(|(path, _)| match self.stages.remove(path) {
            Some(Stage::Outdated { connection, watch_session }) => {
                self.verify(connection, watch_session, path.clone());
                false
            }
            _ => true,
        });
        spare::shrink(&mut self.stages);
    }

    /// A read that confirms is over.
    pub(super) fn confirmed(&mut self) {
        self.confirming = self.confirming.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: SessionId = SessionId(1);

    fn path(name: impl std::fmt::Display) -> NodePath {
        NodePath::trusted(format!("/{name}"))
    }

    fn paths(read: Option<BatchRead>) -> Vec<NodePath> {
        match read {
            Some(BatchRead::Verify { paths, .. }) => paths,
            Some(BatchRead::Confirm { nodes, .. }) => nodes.into_iter().map(|(path, _)| path).collect(),
            None => Vec::new(),
        }
    }

    #[test]
    fn paths_that_wait_are_read_together_and_connections_take_turns() {
        let mut reads = ReadQueue::new();
        for index in 0..100_000 {
            reads.verify(1, WatchSessionId(0), path(index));
        }
        reads.verify(2, WatchSessionId(0), path("other"));
        let (mut count, mut turn_of_other) = (0, None);
        while let Some(read) = reads.next() {
            let mut found: Vec<_> = paths(Some(read)).into_iter().map(|path| (path, ())).collect();
            if found.iter().any(|(found, ())| *found == path("other")) {
                turn_of_other = Some(count);
            }
            reads.verified(WatchSessionId(0), &mut found);
            count += 1;
        }
        assert_eq!(count, 100_000_usize.div_ceil(BATCH) + 1);
        assert_eq!(turn_of_other, Some(1));
        assert!(reads.waiting.is_empty() && reads.stages.is_empty());
    }

    #[test]
    fn paths_are_read_where_their_watches_are() {
        let mut reads = ReadQueue::new();
        for index in 0..4 {
            reads.verify(1, WatchSessionId(index % 2), path(index));
        }
        let mut begun: Vec<_> = std::iter::from_fn(|| reads.next()).map(|read| paths(Some(read))).collect();
        begun.sort();
        assert_eq!(begun, [[path(0), path(2)], [path(1), path(3)]]);
    }

    #[test]
    fn what_was_read_before_it_was_asked_for_is_no_answer() {
        let mut reads = ReadQueue::new();
        for _ in 0..2 {
            // Asked for twice before the read begins: one read answers both.
            reads.verify(1, WatchSessionId(0), path("a"));
        }
        reads.verify(1, WatchSessionId(0), path("b"));
        let mut found: Vec<_> = paths(reads.next()).into_iter().map(|path| (path, ())).collect();
        assert_eq!(found.len(), 2);
        reads.verify(1, WatchSessionId(0), path("a"));
        assert_eq!(reads.next(), None, "of a path one read at a time");
        reads.verified(WatchSessionId(0), &mut found);
        assert_eq!(found, [(path("b"), ())]);
        assert_eq!(paths(reads.next()), [path("a")]);
    }

    #[test]
    fn a_bounded_number_is_under_way_and_what_confirms_comes_last() {
        let mut reads = ReadQueue::new();
        assert_eq!(reads.confirm(SESSION, &vec![(path("held"), 4); BATCH + 1]), 2);
        for index in 0..=READS * BATCH {
            reads.verify(1, WatchSessionId(0), path(index));
        }
        let begun: Vec<_> = std::iter::from_fn(|| reads.next()).collect();
        assert_eq!(begun.len(), READS + 2);
        assert!(begun[..READS].iter().all(|read| matches!(read, BatchRead::Verify { .. })));
        assert!(begun[READS..].iter().all(|read| matches!(read, BatchRead::Confirm { .. })));
        reads.verify(2, WatchSessionId(1), path("where another server is"));
        assert_eq!(paths(reads.next()), [path("where another server is")], "none of its reads are under way");
        assert!(!reads.has_next());
        let first = begun.into_iter().next();
        reads.verified(WatchSessionId(0), &mut paths(first).into_iter().map(|path| (path, ())).collect());
        assert_eq!(paths(reads.next()).len(), 1);
    }
}
