//! Makes consistent moments of reads and events. Pure.
//!
//! A round reads all nodes that events have named since the last moment that was shown, together with the path's own
//! node, and learns which events came before its answers. A node that these events name and that the round had not read
//! since is *open*. A round that leaves nothing open is a moment: everything that differs from the last moment was
//! read, and nothing was read too early.
//!
//! Under a steady stream of writes every round leaves something open. Then the next round closes it: what it finds
//! there was also true at the end of the round before, unless events of the same nodes came in between. A round reads
//! all nodes that events have named so far, so a node that changes all the time is never open for long, and moments
//! keep coming.

use std::collections::HashSet;
use std::sync::Arc;

use super::state::{Entry, NodeRead, Reads};
use crate::types::Zxid;

/// Relative paths.
pub(super) type Names = HashSet<Arc<str>>;

/// The reads of one round.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// The path's own node, read last. `None` if it was absent and nothing that was read with it dates its absence.
    pub(super) node: Option<NodeRead>,
    /// The reads of nodes below.
    pub(super) reads: Reads,
    /// The names in the events that came before the last answer.
    named: Names,
    /// Those of `named` that were not read after their event.
    open: Names,
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

impl Round {
    /// Adds one answer, and the names in the events that came between the previous answer and this one.
    pub(super) fn answer(&mut self, named: Names, reads: impl IntoIterator<Item = (Arc<str>, Option<Arc<Entry>>)>) {
        self.open.extend(named.iter().cloned());
        self.named.extend(named);
        for (name, read) in reads {
            self.open.remove(&name);
            self.reads.insert(name, read);
        }
    }
}

/// A consistent moment, as its difference from the moment before.
#[derive(Debug)]
pub(super) struct Moment {
    /// The path's own node.
    pub(super) node: NodeRead,
    /// The nodes below that may differ.
    pub(super) reads: Reads,
    /// ZooKeeper's last transaction at that moment, or a later one.
    pub(super) zxid: Zxid,
    /// The events that it includes.
    pub(super) arrived: Arrived,
    /// The latest barrier that the moment is behind.
    pub(super) barrier: u64,
}

/// The rounds since the last moment.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    wanted: Names,
    is_wanted: bool,
    last: Option<Round>,
}

impl Rounds {
    /// Asks for a round over these names, which events have named; with none, over the path's own node alone.
    pub(super) fn want(&mut self, names: Names) {
        self.wanted.extend(names);
        self.is_wanted = true;
    }

    /// The names that the next round has to read.
    pub(super) fn wanted(&self) -> &Names {
        &self.wanted
    }

    /// Whether another round is needed: something was named, or is open.
    pub(super) fn are_due(&self) -> bool {
        self.is_wanted || self.last.is_some()
    }

    /// Adds a round that has read [`Rounds::wanted`]; returns a moment if that completes one.
    pub(super) fn finish(&mut self, mut round: Round) -> Option<Moment> {
        self.wanted.extend(round.named.iter().cloned());
        self.is_wanted = false;
        let last = self.last.take();
        let is_closed = |last: &Round| {
            last.node.is_some()
                && last.open.iter().all(|name| !round.named.contains(name) && round.reads.contains_key(name))
        };
        if round.open.is_empty()
            && let Some(node) = round.node.take()
        {
            let mut reads = last.map(|last| last.reads).unwrap_or_default();
            reads.extend(round.reads);
            self.wanted.clear();
            let Round { zxid, arrived, barrier, .. } = round;
            return Some(Moment { node, reads, zxid, arrived, barrier });
        }
        match last {
            Some(mut last) if is_closed(&last) => {
                let closed = last.open.iter().filter_map(|name| Some((name.clone(), round.reads.get(name)?.clone())));
                last.reads.extend(closed);
                self.wanted.clone_from(&round.named);
                self.last = Some(round);
                let Round { node, reads, zxid, arrived, barrier, .. } = last;
                node.map(|node| Moment { node, reads, zxid, arrived, barrier })
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

    fn entry(zxid: i64) -> Arc<Entry> {
        Arc::new(Entry::new(zxid.to_string().as_bytes(), Stat { mzxid: zxid, ..Stat::default() }))
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
        events: Names,
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

        fn round(&mut self, wanted: &Names, writes: usize) -> Round {
            let mut round = Round::default();
            let wanted: Vec<_> = wanted.iter().cloned().collect();
            let nothing = wanted.is_empty().then_some([].as_slice());
            for batch in wanted.chunks(BATCH).chain(nothing) {
                self.write_some(writes);
                let reads = batch.iter().map(|name| (name.clone(), self.now.get(name).map(|zxid| entry(*zxid))));
                round.answer(std::mem::take(&mut self.events), reads.collect::<Vec<_>>());
            }
            round.zxid = Zxid(i64::try_from(self.past.len()).unwrap());
            round.arrived.upto = u64::try_from(self.past.len()).unwrap();
            // The node carries the moment's own number, by which the test finds the true content.
            round.node = Some(NodeRead::Absent(round.zxid.0));
            round
        }
    }

    fn moments_are_true(seed: u64, names: usize, writes: usize) -> usize {
        println!("seed {seed}, {names} names, {writes} writes at most between two reads");
        let rng = StdRng::seed_from_u64(seed);
        let mut world = World { past: Vec::new(), now: Tree::new(), events: Names::new(), rng, names };
        let (mut rounds, mut shown, mut truth) = (Rounds::default(), Tree::new(), Tree::new());
        let (mut moments, mut latest) = (0, 0);
        for _ in 0..300 {
            rounds.want(std::mem::take(&mut world.events));
            let round = world.round(rounds.wanted(), writes);
            let Some(moment) = rounds.finish(round) else { continue };
            for (name, read) in moment.reads {
                apply(&mut shown, name, read.map(|entry| entry.stat.mzxid));
            }
            let number = usize::try_from(moment.zxid.0).unwrap();
            assert_eq!(moment.node, NodeRead::Absent(moment.zxid.0));
            assert_eq!(usize::try_from(moment.arrived.upto).unwrap(), number, "it includes all events before it");
            for (name, write) in &world.past[latest..number] {
                apply(&mut truth, name.clone(), *write);
            }
            assert_eq!(shown, truth, "at {number}");
            (latest, moments) = (number, moments + 1);
        }
        moments
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
            let moments = moments_are_true(7, names, writes);
            assert!(moments > 60, "{moments} moments of {names} names");
        }
    }

    #[test]
    fn an_absence_that_nothing_dates_is_not_shown() {
        let mut rounds = Rounds::default();
        assert!(rounds.finish(Round::default()).is_none());
        assert!(rounds.are_due());
        let dated = Round { node: Some(NodeRead::Absent(1)), ..Round::default() };
        assert!(rounds.finish(dated).is_some());
        assert!(!rounds.are_due());
    }
}
