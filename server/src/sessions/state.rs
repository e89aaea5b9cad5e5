//! The rules of registrations, as pure state: (state, input, now) → effects.
//!
//! A stream owns nothing but the list of paths that it asked for (`streams`, `lifetimes`). A path's [`Registration`] has
//! its holder, its node in ZooKeeper, and what is still to do, one operation at a time. It says what its path needs next
//! (`registration`); the state meets the need (`advance`). Operations are effects; their results come back as inputs
//! (`outcomes`). Work on many paths is done in slices (`Chore`), so that no input takes long.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Bound;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

use super::claims::Held;
use super::effects::{Effect, Input, StreamId};
use super::outbox::Notice;
use super::registration::{Goodbyes, PathCommand, Registration, Witness};
use super::retries::Retries;
use super::stalls::Ticks;
use super::streams::{Departure, Stream, Streams};
use crate::spare;
use crate::types::{NodePath, SessionId};
use crate::value::Stamp;

/// Maximum number of paths, or of streams, that are dealt with in one step.
const PATHS_PER_STEP: usize = 256;
/// Maximum number of paths that are dealt with at once when a stream ends: most streams have no more.
const FIRST_SLICE: usize = 16;

/// Work on many paths, which is done in slices.
#[derive(Debug)]
pub(super) enum Chore {
    /// The end of a stream.
    Departure(Departure),
    /// These paths may need something.
    Look(PathWalk),
    /// The nodes below this parent are read again.
    Verify(NodePath),
}

/// A walk along paths that may need something.
#[derive(Debug)]
pub(super) struct PathWalk {
    among: Among,
    /// The last path that was looked at.
    after: Option<NodePath>,
}

/// The paths of a walk.
#[derive(Debug, Clone, Copy)]
enum Among {
    Stream(StreamId),
    Session(SessionId),
}

/// The paths below one parent that are registered or asked for.
#[derive(Debug, Default)]
struct Siblings {
    paths: BTreeSet<NodePath>,
    /// Number of times that the parent's watch may have missed something.
    gaps: u64,
    /// The last path that was read again, while that is under way; empty at the start.
    verified: Option<Option<NodePath>>,
}

/// The nodes that are held in one ZooKeeper session.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    paths: BTreeSet<NodePath>,
    /// Whether the session ended while this replica was stalled.
    pub(super) expired_during_stall: bool,
}

/// All registrations of a replica.
#[derive(Debug)]
pub(super) struct State {
    pub(super) streams: Streams,
    pub(super) registrations: HashMap<NodePath, Registration>,
    /// The paths that are registered or asked for, by parent.
    siblings: HashMap<NodePath, Siblings>,
    /// The paths that are held, by ZooKeeper session: those of all registrations that hold a node. See [`State::hold`].
    pub(super) nodes: HashMap<SessionId, Nodes>,
    /// When to check a session's ttl. The check may find that there is time left.
    pub(super) deadlines: BTreeSet<(Instant, StreamId)>,
    /// Paths that are put back after a pause.
    pub(super) pauses: BTreeSet<(Instant, NodePath)>,
    /// Paths whose operation waits for ZooKeeper.
    pub(super) waiting: Retries,
    pub(super) chores: VecDeque<Chore>,
    pub(super) standing: HashSet<SessionId>,
    /// The paths that are still to be removed.
    pub(super) goodbyes: Goodbyes,
    pub(super) ticks: Ticks,
    pub(super) effects: Vec<Effect>,
    pub(super) rng: StdRng,
}

impl State {
    pub(super) fn new(seed: u64, now: Instant) -> Self {
        Self {
            streams: Streams::new(),
            registrations: HashMap::new(),
            siblings: HashMap::new(),
            nodes: HashMap::new(),
            deadlines: BTreeSet::new(),
            pauses: BTreeSet::new(),
            waiting: Retries::new(now),
            chores: VecDeque::new(),
            standing: HashSet::new(),
            goodbyes: Goodbyes::default(),
            ticks: Ticks::new(now),
            effects: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Takes one input, and returns what is to be done.
    pub(super) fn step(&mut self, input: Input, now: Instant) -> Vec<Effect> {
        match input {
            Input::Open { stream, session_id, ttl, pid, account, heard } => {
                self.open(stream, Stream::new(ttl, pid, account, heard, now), session_id, now);
            }
            Input::Set { stream, path, value, generation, exclusive, created, memory } => {
                if let Some(pid) = self.heard(stream, now).map(|stream| stream.pid) {
                    let stamp = Stamp { pid, created };
                    let command = PathCommand::Set { by: stream, value, stamp, generation, exclusive, memory };
                    self.set(command, stream, &path, now);
                }
            }
            Input::Unset { stream, path } => self.unset(stream, &path, now),
            Input::KeepAlive { stream } => {
                if self.heard(stream, now).is_some() {
                    self.tell(stream, Notice::KeptAlive);
                }
            }
            Input::Reject { stream, path, error } => {
                if self.heard(stream, now).is_some() {
                    self.tell(stream, Notice::Rejected { path, error });
                }
            }
            Input::Close { stream } => self.close(stream, now),
            Input::Fail { stream, error } => self.effects.push(Effect::Close { stream, end: Err(error) }),
            Input::Gone { stream } => self.gone(stream, now),
            Input::Tick => self.tick(now),
            Input::GoOn => self.go_on(PATHS_PER_STEP, now),
            Input::Claimed { path, outcome } => self.claimed(&path, outcome, now),
            Input::Removed { path } => self.removed(&path, now),
            Input::RemovalRefused { path, code } => self.removal_refused(&path, code, now),
            Input::Verified { path, seen } => self.verified(&path, seen, now),
            Input::Sessions { standing, expired_during_stall } => self.sessions(standing, expired_during_stall, now),
            Input::BackendUp => {
                self.waiting.hurry(now);
                self.retry_some(now);
            }
            Input::FenceMoved { session } => self.fence_moved(session),
            Input::Confirmed { fence_epoch, standing } => {
                for (path, generation) in standing {
                    let held = self.registrations.get_mut(&path).and_then(|registration| registration.held.as_mut());
                    if let Some(held) = held.filter(|held| held.generation == generation) {
                        held.fence_epoch = fence_epoch;
                    }
                }
            }
            Input::Evicted { path } => self.evicted(&path, now),
            Input::Changed { path, seen } => self.changed(&path, seen, now),
            Input::Resync { parent } => self.resync(parent, now),
        }
        std::mem::take(&mut self.effects)
    }

    /// When the next [`Input::Tick`] is due.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let pause = self.pauses.first().map(|(at, _)| *at);
        [deadline, pause, self.waiting.due(), self.ticks.next()].into_iter().flatten().min()
    }

    /// Whether something is still to be removed.
    pub(super) fn is_leaving(&self) -> bool {
        self.has_chores() || !self.goodbyes.is_empty()
    }

    /// Whether [`Input::GoOn`] has work to go on with.
    pub(super) fn has_chores(&self) -> bool {
        !self.chores.is_empty()
    }

    /// Whether a claim waits for ZooKeeper, or is being tried again.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_idle()
    }

    /// Queues a command for a path, and carries it out when the path is idle.
    pub(super) fn command(&mut self, path: &NodePath, command: PathCommand, now: Instant) {
        if !self.registrations.contains_key(path) {
            let mut registration = Registration::default();
            if let Some(parent) = path.parent() {
                let siblings = self.siblings.entry(parent.clone()).or_default();
                siblings.paths.insert(path.clone());
                registration.witness = Witness::seen(siblings.gaps);
                if siblings.paths.len() == 1 {
                    self.effects.push(Effect::Watch { parent });
                }
            }
            self.registrations.insert(path.clone(), registration);
        }
        if let Some(registration) = self.registrations.get_mut(path) {
            registration.push(command);
        }
        self.advance(path, now);
    }

    /// Notes the node that is held at a path. Returns the one that was held before.
    pub(super) fn hold(&mut self, path: &NodePath, held: Option<Held>) -> Option<Held> {
        let registration = self.registrations.get_mut(path)?;
        let session = held.as_ref().map(|held| held.session);
        let before = std::mem::replace(&mut registration.held, held);
        let earlier = before.as_ref().map(|held| held.session);
        if earlier != session {
            if let Some(earlier) = earlier
                && let Some(nodes) = self.nodes.get_mut(&earlier)
            {
                nodes.paths.remove(path);
                if nodes.paths.is_empty() {
                    self.nodes.remove(&earlier);
                }
            }
            if let Some(session) = session {
                self.nodes.entry(session).or_default().paths.insert(path.clone());
            }
        }
        before
    }

    /// Forgets a path of which nothing is held or asked.
    pub(super) fn forget(&mut self, path: &NodePath) {
        self.hold(path, None);
        self.registrations.remove(path);
        spare::shrink(&mut self.registrations);
        self.waiting.remove(path);
        self.effects.push(Effect::Release { path: path.clone() });
        let Some(parent) = path.parent() else { return };
        if let Some(siblings) = self.siblings.get_mut(&parent) {
            siblings.paths.remove(path);
            if siblings.paths.is_empty() {
                self.siblings.remove(&parent);
                spare::shrink(&mut self.siblings);
                self.effects.push(Effect::Unwatch { parent });
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        self.ticks.note(now);
        for _ in 0..PATHS_PER_STEP {
            let Some((at, stream)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) else { break };
            self.deadlines.remove(&(at, stream));
            self.check_ttl(stream, now);
        }
        for _ in 0..PATHS_PER_STEP {
            let Some((at, path)) = self.pauses.first().cloned().filter(|(at, _)| *at <= now) else { break };
            self.pauses.remove(&(at, path.clone()));
            self.advance(&path, now);
        }
        self.retry_some(now);
    }

    /// Tries some of the claims again that wait for ZooKeeper, if it is time.
    fn retry_some(&mut self, now: Instant) {
        for path in self.waiting.round(now) {
            // This drops a claim that nobody waits for any more.
            self.advance(&path, now);
            self.retry(&path);
        }
    }

    /// A claim that was tried again is over.
    pub(super) fn retried(&mut self, is_success: bool, now: Instant) {
        let jitter = self.rng.random_range(0.5..1.0);
        self.waiting.finished(is_success, now, jitter);
    }

    /// Begins a chore with its first slice.
    pub(super) fn begin(&mut self, chore: Chore, now: Instant) {
        self.chores.push_front(chore);
        self.go_on(FIRST_SLICE, now);
    }

    /// Begins a chore when it is its turn, after all that were begun before.
    pub(super) fn begin_later(&mut self, chore: Chore) {
        self.chores.push_back(chore);
    }

    /// Looks at the paths of a stream.
    pub(super) fn look_at_paths_of(&mut self, stream: StreamId, now: Instant) {
        self.begin(Chore::Look(PathWalk { among: Among::Stream(stream), after: None }), now);
    }

    /// Deals with `count` paths, of one chore after the other. A chore that is not over then goes to the end of the
    /// queue.
    fn go_on(&mut self, count: usize, now: Instant) {
        let mut left = count;
        while left > 0
            && let Some(mut chore) = self.chores.pop_front()
        {
            let done = match &mut chore {
                Chore::Departure(departure) => (0..left).take_while(|_| self.depart(departure, now)).count(),
                Chore::Look(look) => self.look(look, left, now),
                Chore::Verify(parent) => self.verify_some(parent, left),
            };
            if done == left {
                self.chores.push_back(chore);
            }
            // A chore that has come to its end took a little time, too.
            left = left.saturating_sub(done.max(1));
        }
    }

    /// Looks at the next paths, and returns their number.
    fn look(&mut self, look: &mut PathWalk, count: usize, now: Instant) -> usize {
        let range = (look.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let paths: Vec<_> = match look.among {
            Among::Stream(stream) => {
                let paths = self.streams.get(&stream).map(|stream| stream.paths_in(range));
                paths.into_iter().flatten().take(count).cloned().collect()
            }
            Among::Session(session) => {
                let paths = self.nodes.get(&session).map(|nodes| nodes.paths.range::<NodePath, _>(range));
                paths.into_iter().flatten().take(count).cloned().collect()
            }
        };
        look.after = paths.last().cloned();
        for path in &paths {
            self.advance(path, now);
        }
        paths.len()
    }

    fn sessions(&mut self, standing: HashSet<SessionId>, expired_during_stall: bool, now: Instant) {
        let lost: Vec<_> = self.standing.difference(&standing).copied().collect();
        self.standing = standing;
        for session in lost {
            let Some(nodes) = self.nodes.get_mut(&session) else { continue };
            nodes.expired_during_stall |= expired_during_stall;
            self.begin(Chore::Look(PathWalk { among: Among::Session(session), after: None }), now);
        }
    }

    /// Something was taken over from a session. This reads again which of its nodes are still ours, so that a later
    /// put-back of one does not take this for a takeover of its own node.
    fn fence_moved(&mut self, session: SessionId) {
        if let Some(nodes) = self.nodes.get(&session) {
            let length = |path| {
                self.registrations.get(path).and_then(|registration| registration.held.as_ref()).map_or(0, Held::len)
            };
            let nodes = nodes.paths.iter().map(|path| (path.clone(), length(path))).collect();
            self.effects.push(Effect::Confirm { session, nodes });
        }
    }

    /// Number of times that the watch which covers a path may have missed something.
    pub(super) fn gaps(&self, path: &NodePath) -> u64 {
        path.parent().and_then(|parent| self.siblings.get(&parent)).map_or(0, |siblings| siblings.gaps)
    }

    fn resync(&mut self, parent: NodePath, now: Instant) {
        let Some(siblings) = self.siblings.get_mut(&parent) else { return };
        siblings.gaps += 1;
        if siblings.verified.replace(None).is_none() {
            self.begin(Chore::Verify(parent), now);
        }
    }

    /// Reads the next paths below a parent again, and returns their number.
    fn verify_some(&mut self, parent: &NodePath, count: usize) -> usize {
        let Some(siblings) = self.siblings.get_mut(parent) else { return 0 };
        let Some(verified) = siblings.verified.take() else { return 0 };
        let from = verified.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let paths: Vec<_> =
            siblings.paths.range::<NodePath, _>((from, Bound::Unbounded)).take(count).cloned().collect();
        let has_more = paths.len() == count;
        siblings.verified = has_more.then(|| paths.last().cloned());
        let (gaps, taken) = (siblings.gaps, paths.len());
        for path in paths {
            if let Some(registration) = self.registrations.get_mut(&path) {
                self.effects.extend(registration.begin_verify(&path, gaps));
            }
        }
        taken
    }
}
