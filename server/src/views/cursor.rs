//! A watcher's place in the past of a view, and its next message. Pure.

use std::sync::Arc;
use std::time::SystemTime;

use super::ring::{Delta, Since};
use super::state::State;
use super::view::{BackendState, Known};
use crate::types::{Revision, Zxid};

/// A message to a watcher.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// The full state; the watcher forgets what it knew before.
    Snapshot {
        state: Arc<State>,
        /// Whether ZooKeeper went back in time: revisions from before mean nothing now.
        is_reset: bool,
    },
    /// The net changes since the last state.
    Delta(Arc<Delta>),
    /// Nothing has changed since the revision that the watch began with.
    Current {
        /// The revision that dates the state.
        revision: Revision,
    },
    /// The state of the replica's connection to ZooKeeper from now on.
    Backend {
        state: BackendState,
        /// When the state was last known to be right; `None` while connected, and when nothing is known.
        as_of: Option<SystemTime>,
    },
}

/// The next thing to do.
#[derive(Debug)]
pub(super) enum CursorStep {
    /// Send this.
    Tell(Step),
    /// There is nothing to send.
    Wait,
    /// The client has seen a later revision than the view has.
    CatchUp(Revision),
}

/// A watcher's place, and all that a watcher costs.
#[derive(Debug)]
pub(super) struct Cursor {
    full: bool,
    position: Position,
    /// The revision of the last state that was sent.
    told: Revision,
    backend: BackendState,
    /// Number of ends of the session that the watcher knows of.
    losses: u64,
    /// Whether ZooKeeper has lost what the client knows.
    is_lost: bool,
}

#[derive(Debug, Clone, Copy)]
enum Position {
    /// Nothing was sent yet.
    Start(Option<Revision>),
    /// The watcher has the content of this revision.
    At { era: u64, revision: Revision },
}

impl Cursor {
    /// A watcher that begins with a snapshot or continues from a revision. With `full` it gets whole states instead of
    /// changes.
    pub(super) fn new(since: Option<Revision>, full: bool) -> Self {
        let (position, told) = (Position::Start(since), since.unwrap_or_default());
        Self { full, position, told, backend: BackendState::Connected, losses: 0, is_lost: false }
    }

    /// ZooKeeper has lost what the client knows, so the first message is a reset.
    pub(super) fn lose(&mut self) {
        self.is_lost = true;
    }

    /// The message to send now. It counts as sent.
    pub(super) fn advance(&mut self, known: &mut Known) -> CursorStep {
        let Some(state) = &known.state else { return CursorStep::Wait };
        if let Some(step) = self.loss(known) {
            return CursorStep::Tell(step);
        }
        let step = match self.position {
            Position::Start(_) if self.is_lost => Some(self.snapshot(known, state, true)),
            Position::Start(None) => Some(self.snapshot(known, state, false)),
            Position::Start(Some(since)) if known.may_have_lost(since) => Some(self.snapshot(known, state, true)),
            Position::Start(Some(since)) => match known.ring.since(since) {
                Since::Nothing => Some(self.current(known, state.revision)),
                Since::Changes(delta) => Some(self.delta(known, state, delta)),
                Since::Forgotten if since > state.revision => return CursorStep::CatchUp(since),
                Since::Forgotten => Some(self.snapshot(known, state, false)),
            },
            Position::At { era, .. } if era != known.era => Some(self.snapshot(known, state, true)),
            Position::At { revision, .. } if revision == state.revision => None,
            Position::At { revision, .. } => match known.ring.since(revision) {
                Since::Nothing => {
                    self.place(known, state.revision);
                    None
                }
                Since::Changes(delta) => Some(self.delta(known, state, delta)),
                Since::Forgotten => Some(self.snapshot(known, state, false)),
            },
        };
        // Changes from while ZooKeeper was away come first: «connected» says that the state is up to date.
        let step = step.or_else(|| {
            let is_other = self.backend != known.backend;
            self.backend = known.backend;
            is_other.then_some(Step::Backend { state: known.backend, as_of: known.as_of })
        });
        step.map_or(CursorStep::Wait, CursorStep::Tell)
    }

    /// The end of the session is sent even if the next session exists by now, and before anything that was read in the
    /// next.
    fn loss(&mut self, known: &Known) -> Option<Step> {
        let is_new = self.losses != known.losses && matches!(self.position, Position::At { .. });
        self.losses = known.losses;
        is_new.then(|| {
            self.backend = BackendState::Lost;
            Step::Backend { state: BackendState::Lost, as_of: known.lost_as_of }
        })
    }

    /// ZooKeeper was asked and knows no more than `known`, though the client has a later revision.
    ///
    /// A path's revision never falls in one history. So ZooKeeper has lost what the client has seen, if it is known to
    /// have fallen back, or to have elected a leader since; the restore of a backup often leaves no other trace.
    /// Otherwise the client's revision dates something that is not seen here, such as a change further down.
    pub(super) fn settle(&mut self, known: &mut Known) -> CursorStep {
        match (&known.state, self.position) {
            (Some(state), Position::Start(Some(since))) if state.revision < since => {
                let since_zxid = Zxid(since.0);
                let is_lost = known.zxid < since_zxid || known.zxid.epoch() > since_zxid.epoch();
                if is_lost || known.fell_from.is_some() {
                    return CursorStep::Tell(self.snapshot(known, state, true));
                }
                self.place(known, state.revision);
                CursorStep::Tell(Step::Current { revision: since })
            }
            _ => self.advance(known),
        }
    }

    /// For a heartbeat: the revision of the last state that was sent, or a later one that dates the same content. If
    /// nothing was sent yet: the revision that the watcher continues from, or zero.
    pub(super) fn revision(&mut self, known: &mut Known) -> Revision {
        if let (Position::At { era, revision }, Some(state)) = (self.position, &known.state)
            && era == known.era
            && matches!(known.ring.since(revision), Since::Nothing)
        {
            self.place(known, state.revision);
            self.told = self.told.max(state.revision);
        }
        self.told
    }

    /// The state of the replica's connection to ZooKeeper, as the watcher knows it.
    pub(super) fn backend(&self) -> BackendState {
        self.backend
    }

    /// The message that ZooKeeper is away, for a watcher that has got nothing yet.
    pub(super) fn suspend(&mut self) -> Step {
        self.backend = BackendState::Suspended;
        Step::Backend { state: BackendState::Suspended, as_of: None }
    }

    fn place(&mut self, known: &Known, revision: Revision) {
        self.position = Position::At { era: known.era, revision };
    }

    fn current(&mut self, known: &Known, revision: Revision) -> Step {
        self.place(known, revision);
        self.told = revision;
        Step::Current { revision }
    }

    fn snapshot(&mut self, known: &Known, state: &Arc<State>, is_reset: bool) -> Step {
        self.place(known, state.revision);
        self.told = state.revision;
        Step::Snapshot { state: state.clone(), is_reset }
    }

    fn delta(&mut self, known: &Known, state: &Arc<State>, delta: Arc<Delta>) -> Step {
        if self.full {
            return self.snapshot(known, state, false);
        }
        self.place(known, delta.revision);
        self.told = delta.revision;
        Step::Delta(delta)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::super::consistent_read::{Arrived, Cut};
    use super::super::node::{NodeRead, Reads, ViewNode};
    use super::super::ring::{ChangeKind, Limits};
    use super::super::scope::Scope;
    use super::super::view::View;
    use super::*;
    use crate::types::{NodePath, Stat};

    type Map = BTreeMap<String, Vec<u8>>;

    /// A ZooKeeper with one path, and a view of it.
    struct World {
        view: View,
        node: Option<Stat>,
        children: BTreeMap<u32, Arc<ViewNode>>,
        zxid: i64,
        rng: StdRng,
    }

    impl World {
        fn new(seed: u64, moments: usize) -> Self {
            println!("seed {seed}");
            let scope = Scope { path: NodePath::trusted("/p"), recursive: false };
            let view = View::unbounded(scope.clone(), Limits { moments, bytes: 1 << 20 });
            view.show_whole_now(State::empty(scope.path, false), Zxid(0), 0);
            Self { view, node: None, children: BTreeMap::new(), zxid: 0, rng: StdRng::seed_from_u64(seed) }
        }

        /// Makes one transaction; returns the child that it wrote.
        fn write(&mut self) -> Option<u32> {
            self.zxid += 1;
            let stat = Stat { czxid: self.zxid, mzxid: self.zxid, pzxid: self.zxid, ..Stat::default() };
            let Some(node) = &mut self.node else {
                self.node = Some(stat);
                return None;
            };
            if self.children.is_empty() && self.rng.random_bool(0.3) {
                self.node = None;
                return None;
            }
            let name = self.rng.random_range(0..8);
            let data = self.rng.random_range(0..2_u8).to_string();
            let entry = Arc::new(ViewNode::new(data.as_bytes(), stat));
            let takes_over = self.rng.random_bool(0.3);
            match self.children.get(&name) {
                Some(before) if takes_over => {
                    // The same data in a new node.
                    let entry = Arc::new(ViewNode::new(&before.data, stat));
                    self.children.insert(name, entry);
                    node.pzxid = self.zxid;
                }
                Some(_) if self.rng.random_bool(0.5) => {
                    self.children.remove(&name);
                    node.pzxid = self.zxid;
                }
                Some(_) => drop(self.children.insert(name, entry)),
                None => {
                    self.children.insert(name, entry);
                    node.pzxid = self.zxid;
                }
            }
            Some(name)
        }

        /// Makes some transactions, which the view sees as one cut.
        fn go_on(&mut self) {
            let reads: Vec<_> = (0..self.rng.random_range(1..4)).filter_map(|_| self.write()).collect();
            let reads: Reads =
                reads.into_iter().map(|name| (name.to_string().into(), self.children.get(&name).cloned())).collect();
            let count = i32::try_from(self.children.len()).unwrap();
            let node = match self.node {
                Some(stat) => NodeRead::Present(Arc::new(ViewNode::new(b"", Stat { num_children: count, ..stat }))),
                None => NodeRead::Absent(self.zxid),
            };
            assert!(self.view.show_now(Cut {
                node,
                reads,
                zxid: Zxid(self.zxid),
                arrived: Arrived::default(),
                barrier: 0
            }));
        }

        fn content(&self) -> Map {
            let own = self.node.iter().map(|_| (String::new(), Vec::new()));
            own.chain(self.children.iter().map(|(name, entry)| (name.to_string(), entry.data.to_vec()))).collect()
        }
    }

    /// A client, which assembles the state from its messages.
    struct Client {
        cursor: Cursor,
        map: Map,
        revision: Revision,
        snapshots: usize,
    }

    impl Client {
        fn new() -> Self {
            Self { cursor: Cursor::new(None, false), map: Map::new(), revision: Revision(-1), snapshots: 0 }
        }

        fn come_back(&mut self) {
            self.cursor = Cursor::new(Some(self.revision), false);
        }

        fn hear(&mut self, view: &View) {
            while let CursorStep::Tell(step) = self.cursor.advance(&mut view.known()) {
                match step {
                    Step::Snapshot { state, is_reset } => {
                        assert!(!is_reset && state.revision > self.revision);
                        self.map = state.children.iter().map(|(n, e)| (n.to_string(), e.data.to_vec())).collect();
                        self.map.extend(state.node.iter().map(|_| (String::new(), Vec::new())));
                        self.revision = state.revision;
                        self.snapshots += 1;
                    }
                    Step::Delta(delta) => {
                        assert!(delta.revision > self.revision && !delta.changes.is_empty());
                        self.revision = delta.revision;
                        self.apply(&delta);
                    }
                    Step::Current { revision } => {
                        assert!(revision >= self.revision);
                        self.revision = revision;
                    }
                    Step::Backend { .. } => panic!("the backend stays connected"),
                }
            }
            self.revision = self.cursor.revision(&mut view.known());
        }

        fn apply(&mut self, delta: &Delta) {
            for change in &delta.changes {
                let name = change.name.to_string();
                let data = change.entry.as_ref().map(|entry| entry.data.to_vec());
                let before = match data.clone() {
                    Some(data) => self.map.insert(name.clone(), data),
                    None => self.map.remove(&name),
                };
                match change.kind {
                    ChangeKind::Added | ChangeKind::Created => assert!(before.is_none(), "{name} is there already"),
                    ChangeKind::Updated | ChangeKind::DataChanged => {
                        assert!(before.is_some() && before != data, "{name} is the same");
                    }
                    ChangeKind::Removed => assert!(before.is_some(), "{name} is not there"),
                    ChangeKind::Deleted => self.map.clear(),
                }
            }
        }
    }

    #[test]
    fn readers_that_pause_end_with_what_there_is() {
        let mut world = World::new(rand::random_range(0..u64::MAX), 30);
        let mut clients: Vec<_> = (0..8).map(|_| Client::new()).collect();
        for _ in 0..5000 {
            world.go_on();
            for (index, client) in (0_u32..).zip(&mut clients) {
                // The first client reads every time, the last about every 128th time.
                if world.rng.random_bool(0.5_f64.powi(i32::try_from(index).unwrap())) {
                    if world.rng.random_bool(0.2) && client.revision.0 > 0 {
                        client.come_back();
                    }
                    client.hear(&world.view);
                    assert_eq!(client.map, world.content(), "client {index} at {:?}", client.revision);
                }
            }
        }
        assert_eq!(clients[0].snapshots, 1);
        assert!(clients[7].snapshots > 1);
    }

    #[test]
    fn a_revision_from_the_future_is_either_of_no_concern_or_of_another_past() {
        let mut world = World::new(1, 30);
        (0..5).for_each(|_| world.go_on());
        let zxid = world.zxid;
        let mut cursor = Cursor::new(Some(Revision(zxid + 3)), false);
        assert!(
            matches!(cursor.advance(&mut world.view.known()), CursorStep::CatchUp(revision) if revision.0 == zxid + 3)
        );
        // A heartbeat meanwhile does not make the revision fall.
        assert_eq!(cursor.revision(&mut world.view.known()).0, zxid + 3);
        assert!(matches!(
            cursor.settle(&mut world.view.known()),
            CursorStep::Tell(Step::Snapshot { is_reset: true, .. })
        ));

        let mut cursor = Cursor::new(Some(Revision(zxid + 3)), false);
        world.view.known().zxid = Zxid(zxid + 5);
        let settled = cursor.settle(&mut world.view.known());
        assert!(matches!(settled, CursorStep::Tell(Step::Current { revision }) if revision.0 == zxid + 3));
        assert!(matches!(cursor.advance(&mut world.view.known()), CursorStep::Wait));
        assert_eq!(cursor.revision(&mut world.view.known()).0, zxid + 3);
    }

    /// Shows a state of the path with this revision, read at this transaction.
    fn known_at(world: &World, revision: i64, zxid: i64) {
        let mut state = State::empty(NodePath::trusted("/p"), false);
        state.apply(NodeRead::Absent(revision), Reads::new(), Zxid(zxid));
        world.view.show_whole_now(state, Zxid(zxid), 0);
    }

    fn is_reset(next: &CursorStep) -> bool {
        matches!(next, CursorStep::Tell(Step::Snapshot { is_reset: true, .. }))
    }

    #[test]
    fn who_was_told_more_than_there_is_under_a_later_leader_was_told_of_a_lost_past() {
        let (first, second) = (5 << 32, 6 << 32);
        for (zxid, expected) in [(first + 0x200, false), (second + 1, true)] {
            let world = World::new(1, 30);
            known_at(&world, first + 0x50, zxid);
            let mut cursor = Cursor::new(Some(Revision(first + 0x100)), false);
            assert!(matches!(cursor.advance(&mut world.view.known()), CursorStep::CatchUp(_)));
            let next = cursor.settle(&mut world.view.known());
            assert_eq!(is_reset(&next), expected, "{next:?}");
        }
    }

    #[test]
    fn who_comes_back_after_a_fall_is_told_so_however_far_zookeeper_has_come_since() {
        let world = World::new(1, 30);
        known_at(&world, 200, 220);
        // ZooKeeper was restored to transaction 100; the path did not change between 50 and 100.
        known_at(&world, 50, 110);
        known_at(&world, 50, 300);
        for since in [150, 200, 250] {
            let mut cursor = Cursor::new(Some(Revision(since)), false);
            let mut next = cursor.advance(&mut world.view.known());
            if let CursorStep::CatchUp(_) = next {
                next = cursor.settle(&mut world.view.known());
            }
            assert!(is_reset(&next), "{since}: {next:?}");
        }
        // Revisions that the new past has reached by now are not trusted either.
        known_at(&world, 215, 400);
        known_at(&world, 230, 400);
        assert!(is_reset(&Cursor::new(Some(Revision(215)), false).advance(&mut world.view.known())));
        let next = Cursor::new(Some(Revision(230)), false).advance(&mut world.view.known());
        assert!(matches!(next, CursorStep::Tell(Step::Current { .. })), "{next:?}");
    }

    #[test]
    fn a_fall_is_seen_though_the_path_is_older_than_it() {
        let world = World::new(1, 30);
        known_at(&world, 50, 220);
        let mut cursor = Cursor::new(None, false);
        cursor.advance(&mut world.view.known());
        known_at(&world, 50, 110);
        assert!(is_reset(&cursor.advance(&mut world.view.known())));
    }

    #[test]
    fn what_changed_while_zookeeper_was_away_comes_before_connected() {
        let mut world = World::new(1, 30);
        let mut cursor = Cursor::new(None, true);
        cursor.advance(&mut world.view.known());
        world.view.suspend_now(BackendState::Suspended, None);
        world.view.suspend_now(BackendState::Lost, None);
        let lost = cursor.advance(&mut world.view.known());
        assert!(matches!(lost, CursorStep::Tell(Step::Backend { state: BackendState::Lost, .. })));
        world.go_on();
        assert!(matches!(
            cursor.advance(&mut world.view.known()),
            CursorStep::Tell(Step::Snapshot { is_reset: false, .. })
        ));
        let back = cursor.advance(&mut world.view.known());
        assert!(matches!(back, CursorStep::Tell(Step::Backend { state: BackendState::Connected, .. })));
        assert!(matches!(cursor.advance(&mut world.view.known()), CursorStep::Wait));
    }

    #[test]
    fn the_end_of_the_session_is_told_to_who_comes_late_and_to_nobody_who_comes_after() {
        let mut world = World::new(1, 30);
        let mut cursor = Cursor::new(None, false);
        cursor.advance(&mut world.view.known());
        let as_of = Some(SystemTime::UNIX_EPOCH);
        world.view.suspend_now(BackendState::Suspended, as_of);
        world.view.suspend_now(BackendState::Lost, None);
        world.go_on();
        let mut told = Vec::new();
        while let CursorStep::Tell(step) = cursor.advance(&mut world.view.known()) {
            told.push(match step {
                Step::Backend { state: BackendState::Lost, as_of: told } => ("lost", told),
                Step::Backend { state: BackendState::Connected, as_of: told } => ("connected", told),
                Step::Delta(_) => ("delta", None),
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(told, [("lost", as_of), ("delta", None), ("connected", None)]);
        let mut later = Cursor::new(None, false);
        assert!(matches!(later.advance(&mut world.view.known()), CursorStep::Tell(Step::Snapshot { .. })));
        assert!(matches!(later.advance(&mut world.view.known()), CursorStep::Wait));
    }

    #[test]
    fn a_zookeeper_that_lost_its_past_resets_its_watchers() {
        let mut world = World::new(1, 30);
        (0..9).for_each(|_| world.go_on());
        let mut cursor = Cursor::new(None, false);
        cursor.advance(&mut world.view.known());
        let mut fresh = State::empty(NodePath::trusted("/p"), false);
        fresh.apply(NodeRead::Absent(2), Reads::new(), Zxid(2));
        world.view.show_whole_now(fresh, Zxid(2), 0);
        let CursorStep::Tell(Step::Snapshot { state, is_reset: true }) = cursor.advance(&mut world.view.known()) else {
            panic!("a reset is told")
        };
        assert_eq!(state.revision, Revision(2));
        assert_eq!(cursor.revision(&mut world.view.known()), Revision(2));
    }
}
