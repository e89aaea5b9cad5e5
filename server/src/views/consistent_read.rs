//! Makes cuts of reads and events: states of the path that ZooKeeper had at one moment. Pure.
//!
//! A round reads all nodes that events have named since the last cut that was shown, together with the path's own node,
//! and learns which events came before its answers. A node that these events name and that the round had not read since
//! is *open*. A round that leaves nothing open is a cut: everything that differs from the last cut was read, and
//! nothing was read too early.
//!
//! Under a steady stream of writes every round leaves something open. Then the next round closes it: what it finds
//! there was also true at the end of the round before, unless events of the same nodes came in between. A round reads
//! all nodes that events have named so far, so a node that changes all the time is never open for long, and cuts keep
//! coming.

use std::sync::Arc;

use super::node::{NodeRead, Reads, ViewNode};
use super::scope::RelativePaths;
use crate::types::Zxid;

/// The reads of one round.
#[derive(Debug, Default)]
pub(super) struct ReadRound {
    /// The path's own node, read last. `None` if it was absent and nothing that was read with it dates its absence.
    pub(super) node: Option<NodeRead>,
    /// The reads of nodes below.
    pub(super) reads: Reads,
    /// The names in the events that came before the last answer.
    named: RelativePaths,
    /// Those of `named` that were not read after their event.
    open: RelativePaths,
    /// ZooKeeper's last transaction at the last read.
    pub(super) zxid: Zxid,
    /// The events that had arrived before the last answer.
    pub(super) arrived: Arrived,
    /// The latest barrier that the last read was behind.
    pub(super) barrier: u64,
}

/// Events on one connection, up to a number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Arrived {
    /// The connection.
    pub(super) connection: u64,
    /// The mailbox's number for the last event.
    pub(super) upto: u64,
}

impl Arrived {
    /// Whether a state that includes these events includes the others.
    pub(super) fn includes(self, other: Self) -> bool {
        self.connection == other.connection && self.upto >= other.upto
    }
}

impl ReadRound {
    /// Adds one answer, and the names in the events that came between the previous answer and this one.
    pub(super) fn answer(
        &mut self,
        named: RelativePaths,
        reads: impl IntoIterator<Item = (Arc<str>, Option<Arc<ViewNode>>)>,
    ) {
        self.open.extend(named.iter().cloned());
        self.named.extend(named);
        for (name, read) in reads {
            self.open.remove(&name);
            self.reads.insert(name, read);
        }
    }
}

/// A consistent state, as its difference from the cut before.
#[derive(Debug)]
pub(super) struct Cut {
    /// The path's own node.
    pub(super) node: NodeRead,
    /// The nodes below that may differ.
    pub(super) reads: Reads,
    /// ZooKeeper's last transaction at the cut, or a later one.
    pub(super) zxid: Zxid,
    /// The events that it includes.
    pub(super) arrived: Arrived,
    /// The latest barrier that the cut is behind.
    pub(super) barrier: u64,
}

/// The rounds since the last cut.
#[derive(Debug, Default)]
pub(super) struct ConsistentRead {
    wanted: RelativePaths,
    is_wanted: bool,
    last: Option<ReadRound>,
}

impl ConsistentRead {
    /// Asks for a round over these names, which events have named; with none, over the path's own node alone.
    pub(super) fn want(&mut self, names: RelativePaths) {
        self.wanted.extend(names);
        self.is_wanted = true;
    }

    /// The names that the next round has to read.
    pub(super) fn wanted(&self) -> &RelativePaths {
        &self.wanted
    }

    /// Whether another round is needed: something was named, or is open.
    pub(super) fn is_due(&self) -> bool {
        self.is_wanted || self.last.is_some()
    }

    /// Adds a round that has read [`ConsistentRead::wanted`]; returns a cut if that completes one.
    pub(super) fn finish(&mut self, mut round: ReadRound) -> Option<Cut> {
        self.wanted.extend(round.named.iter().cloned());
        self.is_wanted = false;
        let last = self.last.take();
        let is_closed = |last: &ReadRound| {
            last.node.is_some()
                && last.open.iter().all(|name| !round.named.contains(name) && round.reads.contains_key(name))
        };
        if round.open.is_empty()
            && let Some(node) = round.node.take()
        {
            let mut reads = last.map(|last| last.reads).unwrap_or_default();
            reads.extend(round.reads);
            self.wanted.clear();
            let ReadRound { zxid, arrived, barrier, .. } = round;
            return Some(Cut { node, reads, zxid, arrived, barrier });
        }
        match last {
            Some(mut last) if is_closed(&last) => {
                let closed = last.open.iter().filter_map(|name| Some((name.clone(), round.reads.get(name)?.clone())));
                last.reads.extend(closed);
                self.wanted.clone_from(&round.named);
                self.last = Some(round);
                let ReadRound { node, reads, zxid, arrived, barrier, .. } = last;
                node.map(|node| Cut { node, reads, zxid, arrived, barrier })
            }
            last => {
                let mut reads = last.map(|last| last.reads).unwrap_or_default();
                reads.extend(std::mem::take(&mut round.reads));
                round.reads = reads;
                self.last = Some(round);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;
    use crate::types::Stat;

    const BATCH: usize = 20;

    /// Names, and the transactions that last wrote them.
    type Tree = BTreeMap<Arc<str>, i64>;

    fn entry(zxid: i64) -> Arc<ViewNode> {
        Arc::new(ViewNode::new(zxid.to_string().as_bytes(), Stat { mzxid: zxid, ..Stat::default() }))
    }

    fn apply(tree: &mut Tree, name: Arc<str>, write: Option<i64>) {
        match write {
            Some(zxid) => drop(tree.insert(name, zxid)),
            None => drop(tree.remove(&name)),
        }
    }

    /// A ZooKeeper whose whole past is known, and that is written to all the time.
    struct World {
        past: Vec<(Arc<str>, Option<i64>)>,
        now: Tree,
        events: RelativePaths,
        rng: StdRng,
        names: usize,
    }

    impl World {
        fn write(&mut self) {
            let name: Arc<str> = self.rng.random_range(0..self.names).to_string().into();
            let zxid = i64::try_from(self.past.len() + 1).unwrap();
            let write = (!self.now.contains_key(&name) || self.rng.random_bool(0.7)).then_some(zxid);
            apply(&mut self.now, name.clone(), write);
            self.past.push((name.clone(), write));
            self.events.insert(name);
        }

        fn write_some(&mut self, most: usize) {
            for _ in 0..self.rng.random_range(0..=most) {
                self.write();
            }
        }

        fn round(&mut self, wanted: &RelativePaths, writes: usize) -> ReadRound {
            let mut round = ReadRound::default();
            let wanted: Vec<_> = wanted.iter().cloned().collect();
            let nothing = wanted.is_empty().then_some([].as_slice());
            for batch in wanted.chunks(BATCH).chain(nothing) {
                self.write_some(writes);
                let reads = batch.iter().map(|name| (name.clone(), self.now.get(name).map(|zxid| entry(*zxid))));
                round.answer(std::mem::take(&mut self.events), reads.collect::<Vec<_>>());
            }
            round.zxid = Zxid(i64::try_from(self.past.len()).unwrap());
            round.arrived.upto = u64::try_from(self.past.len()).unwrap();
            // The node carries the cut's own number, by which the test finds the true content.
            round.node = Some(NodeRead::Absent(round.zxid.0));
            round
        }
    }

    fn moments_are_true(seed: u64, names: usize, writes: usize) -> usize {
        println!("seed {seed}, {names} names, {writes} writes at most between two reads");
        let rng = StdRng::seed_from_u64(seed);
        let mut world = World { past: Vec::new(), now: Tree::new(), events: RelativePaths::new(), rng, names };
        let (mut consistent_read, mut shown, mut truth) = (ConsistentRead::default(), Tree::new(), Tree::new());
        let (mut cuts, mut latest) = (0, 0);
        for _ in 0..300 {
            consistent_read.want(std::mem::take(&mut world.events));
            let round = world.round(consistent_read.wanted(), writes);
            let Some(cut) = consistent_read.finish(round) else { continue };
            for (name, read) in cut.reads {
                apply(&mut shown, name, read.map(|entry| entry.stat.mzxid));
            }
            let number = usize::try_from(cut.zxid.0).unwrap();
            assert_eq!(cut.node, NodeRead::Absent(cut.zxid.0));
            assert_eq!(usize::try_from(cut.arrived.upto).unwrap(), number, "it includes all events before it");
            for (name, write) in &world.past[latest..number] {
                apply(&mut truth, name.clone(), *write);
            }
            assert_eq!(shown, truth, "at {number}");
            (latest, cuts) = (number, cuts + 1);
        }
        cuts
    }

    #[test]
    fn every_moment_is_one_that_was() {
        let seed: u64 = rand::random_range(0..u64::MAX / 2);
        for (offset, (names, writes)) in [(3, 1), (10, 3), (100, 2), (1000, 10)].into_iter().enumerate() {
            moments_are_true(seed + u64::try_from(offset).unwrap(), names, writes);
        }
    }

    #[test]
    fn moments_keep_coming_under_a_steady_stream_of_writes() {
        for (names, writes) in [(2, 8), (20, 8), (100_000, 20)] {
            let cuts = moments_are_true(7, names, writes);
            assert!(cuts > 60, "{cuts} cuts of {names} names");
        }
    }

    #[test]
    fn an_absence_that_nothing_dates_is_not_shown() {
        let mut consistent_read = ConsistentRead::default();
        assert!(consistent_read.finish(ReadRound::default()).is_none());
        assert!(consistent_read.is_due());
        let dated = ReadRound { node: Some(NodeRead::Absent(1)), ..ReadRound::default() };
        assert!(consistent_read.finish(dated).is_some());
        assert!(!consistent_read.is_due());
    }
}
