//! The rules of registrations, as pure state: (state, input, now) → effects.
//!
//! A stream owns nothing but the list of paths that it asked for; a path's [`Entry`] says who holds it, what stands in
//! ZooKeeper for it, and what is still to do, one operation at a time. Operations are effects; what became of them comes
//! back as an input.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::claims::{Claim, Claimed, Observed};
use super::entry::{Command, Entry};
use super::outbox::{LostReason, Notice};
use crate::error::Error;
use crate::types::{Generation, NodePath, SessionId};
use crate::value::{EncodedValue, Stamp};
use crate::zk::{Moves, Seen};

/// After a ttl has gone by, how long what has already arrived may take to be read: a replica that was itself stopped
/// finds the messages of living clients in its sockets.
const EXPIRY_GRACE: Duration = Duration::from_millis(500);

/// What is told about a path for which [`Entry::COMMANDS`] requests wait.
const TOO_MANY_REQUESTS: (&str, &str, usize) =
    ("TOO_MANY_REQUESTS", "the number of requests that wait for one path", Entry::COMMANDS);

/// One Register stream of this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StreamId(pub(crate) u64);

/// What a replica can't be made to exceed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Registrations of one stream.
    pub(crate) registrations_per_stream: usize,
    /// The values of one stream's registrations together, and of the requests that wait, in bytes.
    pub(crate) bytes_per_stream: usize,
    /// Registrations of this replica.
    pub(crate) registrations: usize,
}

/// What happened.
#[derive(Debug)]
pub(super) enum Input {
    /// A stream's first message.
    Open { stream: StreamId, session_id: String, ttl: Option<Duration>, pid: Option<u32> },
    /// A client wants to hold a path.
    Set {
        stream: StreamId,
        path: NodePath,
        value: EncodedValue,
        /// How long the value is in a znode.
        bytes: usize,
        generation: Option<Generation>,
        exclusive: bool,
        created: String,
    },
    /// A client gives a path back.
    Unset { stream: StreamId, path: NodePath },
    /// A client is alive.
    KeepAlive { stream: StreamId },
    /// A request was refused before it got here.
    Reject { stream: StreamId, path: String, error: Error },
    /// A client says goodbye.
    Close { stream: StreamId },
    /// A client broke a rule of the protocol: the stream ends, and what it holds goes, or stays for its ttl, as when a
    /// stream breaks.
    Fail { stream: StreamId, error: Error },
    /// The RPC is over, without a goodbye.
    Gone { stream: StreamId },
    /// Time went by. `has_unread`: messages have arrived that this state has not been given yet.
    Tick { has_unread: bool },
    /// An [`Effect::Claim`] is over.
    Claimed { path: NodePath, outcome: Claimed },
    /// An [`Effect::Remove`] is over: what the session held of the path is gone.
    Removed { path: NodePath },
    /// A path of an [`Effect::Verify`] was read; `None` if that failed.
    Verified { path: NodePath, seen: Option<Observed> },
    /// These ZooKeeper sessions stand; the ephemerals of all others are gone. `overslept`: what is over now is because this
    /// replica was stopped.
    Sessions { standing: HashSet<SessionId>, overslept: bool },
    /// ZooKeeper can be reached: what waits for it is tried again.
    BackendUp,
    /// Another replica has written this session's fence: what is known of it is old.
    FenceMoved { session: SessionId },
    /// An [`Effect::Confirm`] is over: these incarnations stand in the session.
    Confirmed { moves: Moves, standing: Vec<(NodePath, Generation)> },
    /// Something happened to a watched node.
    Changed { path: NodePath, seen: Seen },
    /// Everything below this parent has to be looked at.
    Resync { parent: NodePath },
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(super) enum Effect {
    /// Tell a client.
    Tell { stream: StreamId, notice: Notice },
    /// End a stream.
    Close { stream: StreamId, end: Result<(), Error> },
    /// Make the path ours, `by` a client's request or unasked: [`Input::Claimed`] follows.
    Claim { path: NodePath, by: Option<StreamId>, claim: Claim },
    /// Take this incarnation down: [`Input::Removed`] follows.
    Remove { path: NodePath, generation: Generation, session: SessionId },
    /// Read what stands at these paths, all of one parent: [`Input::Verified`] follows for each.
    Verify { parent: NodePath, paths: Vec<NodePath> },
    /// Read which of these paths stand in this session: [`Input::Confirmed`] follows.
    Confirm { session: SessionId, paths: Vec<NodePath> },
    /// Nothing is held of the path any more.
    Release { path: NodePath },
    /// From now on tell of changes below this parent, beginning with [`Input::Resync`].
    Watch { parent: NodePath },
    /// No longer.
    Unwatch { parent: NodePath },
}

impl Stream {
    /// Whether its RPC stands: with a ttl it may be over, and what was registered on it stand.
    pub(super) fn is_attached(&self) -> bool {
        self.attached
    }

    /// Whether its ttl has gone by since its client was heard last.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        !self.is_closing && self.ttl.is_some_and(|ttl| self.last_heard + ttl <= now)
    }

    /// Notes that it holds, or asks for, a path.
    pub(super) fn add(&mut self, path: &NodePath, bytes: usize) {
        let before = self.paths.insert(path.clone(), bytes).unwrap_or_default();
        self.value_bytes = (self.value_bytes + bytes).saturating_sub(before);
    }

    /// It no longer holds a path, nor asks for it.
    pub(super) fn remove(&mut self, path: &NodePath) {
        self.value_bytes = self.value_bytes.saturating_sub(self.paths.remove(path).unwrap_or_default());
    }
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) pid: Option<u32>,
    ttl: Option<Duration>,
    /// Whether the RPC still stands.
    attached: bool,
    last_heard: Instant,
    /// When its ttl is looked at next.
    check_at: Option<Instant>,
    /// Since when the ttl is over, while what has arrived may still have to be read.
    doubtful_since: Option<Instant>,
    /// The paths that it holds or has asked for, each with the length of the last value.
    paths: HashMap<NodePath, usize>,
    /// How much its registrations hold, by the last value that it set for each, and how much waits to be set, in bytes.
    value_bytes: usize,
    pub(super) queued_bytes: usize,
    /// How many `unregistered` it is still to be told.
    farewells: usize,
    /// Whether it has said goodbye.
    is_closing: bool,
}

/// All registrations of a replica.
#[derive(Debug)]
pub(super) struct State {
    limits: Limits,
    pub(super) streams: HashMap<StreamId, Stream>,
    pub(super) entries: HashMap<NodePath, Entry>,
    /// The paths with an entry, by parent.
    siblings: HashMap<NodePath, HashSet<NodePath>>,
    /// When to look at a session's ttl; what it finds may be that there is time left.
    deadlines: BTreeSet<(Instant, StreamId)>,
    /// Paths that are put back after a pause.
    pub(super) pauses: BTreeSet<(Instant, NodePath)>,
    /// Paths whose operation waits for ZooKeeper.
    pub(super) waiting: HashSet<NodePath>,
    pub(super) standing: HashSet<SessionId>,
    pub(super) effects: Vec<Effect>,
    pub(super) rng: StdRng,
}

impl State {
    pub(super) fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            streams: HashMap::new(),
            entries: HashMap::new(),
            siblings: HashMap::new(),
            deadlines: BTreeSet::new(),
            pauses: BTreeSet::new(),
            waiting: HashSet::new(),
            standing: HashSet::new(),
            effects: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Takes one input, and says what is to be done.
    pub(super) fn step(&mut self, input: Input, now: Instant) -> Vec<Effect> {
        match input {
            Input::Open { stream, session_id, ttl, pid } => self.open(stream, session_id, ttl, pid, now),
            Input::Set { stream, path, value, bytes, generation, exclusive, created } => {
                if let Some(pid) = self.heard(stream, now).map(|stream| stream.pid) {
                    let stamp = Stamp { pid, created };
                    let command = Command::Set { by: stream, value, bytes, stamp, generation, exclusive };
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
            Input::Tick { has_unread } => self.tick(now, has_unread),
            Input::Claimed { path, outcome } => self.claimed(&path, outcome, now),
            Input::Removed { path } => self.removed(&path, now),
            Input::Verified { path, seen } => self.verified(&path, seen, now),
            Input::Sessions { standing, overslept } => self.sessions(standing, overslept, now),
            Input::BackendUp => {
                for path in std::mem::take(&mut self.waiting) {
                    // Not what nobody waits for any more.
                    self.advance(&path, now);
                    self.retry(&path);
                }
            }
            Input::FenceMoved { session } => self.fence_moved(session),
            Input::Confirmed { moves, standing } => {
                for (path, generation) in standing {
                    let held = self.entries.get_mut(&path).and_then(|entry| entry.held.as_mut());
                    if let Some(held) = held.filter(|held| held.generation == generation) {
                        held.moves = moves;
                    }
                }
            }
            Input::Changed { path, seen } => self.changed(&path, seen, now),
            Input::Resync { parent } => self.resync(&parent),
        }
        std::mem::take(&mut self.effects)
    }

    /// When the next [`Input::Tick`] is due.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let pause = self.pauses.first().map(|(at, _)| *at);
        [deadline, pause].into_iter().flatten().min()
    }

    /// Whether something is still to be taken down.
    pub(super) fn is_leaving(&self) -> bool {
        self.entries.values().any(Entry::is_leaving)
    }

    /// Whether something waits for ZooKeeper.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn tell(&mut self, stream: StreamId, notice: Notice) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        let is_farewell = matches!(notice, Notice::Unregistered { .. });
        self.effects.push(Effect::Tell { stream, notice });
        if is_farewell {
            state.farewells = state.farewells.saturating_sub(1);
            self.end_if_closed(stream);
        }
    }

    /// Ends a stream that has said goodbye, once all is told.
    fn end_if_closed(&mut self, stream: StreamId) {
        let is_closed = |state: &Stream| state.is_closing && state.farewells == 0;
        if self.streams.get(&stream).is_some_and(is_closed) {
            self.take_stream(stream);
            self.effects.push(Effect::Close { stream, end: Ok(()) });
        }
    }

    fn open(&mut self, stream: StreamId, session_id: String, ttl: Option<Duration>, pid: Option<u32>, now: Instant) {
        let state = Stream {
            pid,
            ttl,
            attached: true,
            last_heard: now,
            check_at: None,
            doubtful_since: None,
            paths: HashMap::new(),
            value_bytes: 0,
            queued_bytes: 0,
            farewells: 0,
            is_closing: false,
        };
        self.streams.insert(stream, state);
        if let Some(ttl) = ttl {
            self.check_at(stream, now + ttl);
        }
        self.tell(stream, Notice::Opened { session_id, ttl });
    }

    /// Notes that a stream's client lives; `None` if the stream is no more, or has said goodbye.
    fn heard(&mut self, stream: StreamId, now: Instant) -> Option<&mut Stream> {
        let state = self.streams.get_mut(&stream)?;
        state.last_heard = now;
        state.doubtful_since = None;
        (!state.is_closing).then_some(state)
    }

    fn set(&mut self, command: Command, stream: StreamId, path: &NodePath, now: Instant) {
        let Some(state) = self.streams.get(&stream) else { return };
        let bytes = command.bytes();
        let held = state.paths.get(path);
        let entry = self.entries.get(path);
        let Limits { registrations_per_stream, bytes_per_stream, registrations } = self.limits;
        let limits = [
            (
                held.is_none() && state.paths.len() >= registrations_per_stream,
                ("TOO_MANY_REGISTRATIONS", "the number of registrations of a stream", registrations_per_stream),
            ),
            (
                state.value_bytes + state.queued_bytes + bytes > bytes_per_stream + held.copied().unwrap_or_default(),
                ("TOO_MANY_BYTES", "the size of all registrations of a stream, in bytes,", bytes_per_stream),
            ),
            (entry.is_some_and(Entry::is_full), TOO_MANY_REQUESTS),
            (
                entry.is_none() && self.entries.len() >= registrations,
                ("REPLICA_FULL", "the number of registrations of this replica", registrations),
            ),
        ];
        if let Some((_, (reason, what, limit))) = limits.into_iter().find(|(is_over, _)| *is_over) {
            self.reject(stream, path, reason, what, limit);
            return;
        }
        if let Some(state) = self.streams.get_mut(&stream) {
            state.add(path, bytes);
            state.queued_bytes += bytes;
        }
        self.command(path, command, now);
    }

    fn reject(&mut self, stream: StreamId, path: &NodePath, reason: &'static str, what: &'static str, limit: usize) {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        let (path, error) = (path.as_str().to_owned(), Error::LimitExceeded { reason, what, limit });
        self.tell(stream, Notice::Rejected { path, error });
    }

    /// Queues a command for a path, and carries it out when the path is idle.
    pub(super) fn command(&mut self, path: &NodePath, command: Command, now: Instant) {
        if !self.entries.contains_key(path) {
            self.entries.insert(path.clone(), Entry::default());
            if let Some(parent) = path.parent() {
                let siblings = self.siblings.entry(parent.clone()).or_default();
                siblings.insert(path.clone());
                if siblings.len() == 1 {
                    self.effects.push(Effect::Watch { parent });
                }
            }
        }
        if let Some(entry) = self.entries.get_mut(path) {
            entry.push(command);
        }
        self.advance(path, now);
    }

    /// Forgets a path of which nothing is held or asked.
    pub(super) fn forget(&mut self, path: &NodePath) {
        self.entries.remove(path);
        self.waiting.remove(path);
        self.effects.push(Effect::Release { path: path.clone() });
        let Some(parent) = path.parent() else { return };
        if let Some(siblings) = self.siblings.get_mut(&parent) {
            siblings.remove(path);
            if siblings.is_empty() {
                self.siblings.remove(&parent);
                self.effects.push(Effect::Unwatch { parent });
            }
        }
    }

    fn unset(&mut self, stream: StreamId, path: &NodePath, now: Instant) {
        if self.heard(stream, now).is_none() {
            return;
        }
        if self.entries.get(path).is_some_and(Entry::is_full) {
            let (reason, what, limit) = TOO_MANY_REQUESTS;
            self.reject(stream, path, reason, what, limit);
            return;
        }
        let Some(state) = self.streams.get_mut(&stream) else { return };
        state.farewells += 1;
        self.command(path, Command::Unset { by: stream }, now);
    }

    fn close(&mut self, stream: StreamId, now: Instant) {
        let Some(state) = self.heard(stream, now) else { return };
        let paths: Vec<_> = state.paths.keys().cloned().collect();
        state.farewells += paths.len();
        state.is_closing = true;
        for path in paths {
            self.command(&path, Command::Unset { by: stream }, now);
        }
        self.end_if_closed(stream);
    }

    fn gone(&mut self, stream: StreamId, now: Instant) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        if state.ttl.is_some() && !state.is_closing {
            state.attached = false;
            // What was asked and has not begun is not done any more.
            let undone: Vec<_> = state.paths.keys().filter(|path| self.waiting.contains(*path)).cloned().collect();
            for path in undone {
                self.advance(&path, now);
            }
            self.forget_if_gone(stream);
        } else {
            self.drop_stream(stream, now);
        }
    }

    /// Nothing is kept for one who has gone and has nothing to come back for.
    pub(super) fn forget_if_gone(&mut self, stream: StreamId) {
        if self.streams.get(&stream).is_some_and(|state| !state.attached && state.paths.is_empty()) {
            self.take_stream(stream);
        }
    }

    fn check_at(&mut self, stream: StreamId, at: Instant) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        if let Some(before) = state.check_at.replace(at) {
            self.deadlines.remove(&(before, stream));
        }
        self.deadlines.insert((at, stream));
    }

    fn take_stream(&mut self, stream: StreamId) -> Option<Stream> {
        let state = self.streams.remove(&stream)?;
        if let Some(at) = state.check_at {
            self.deadlines.remove(&(at, stream));
        }
        Some(state)
    }

    fn drop_stream(&mut self, stream: StreamId, now: Instant) {
        let Some(state) = self.take_stream(stream) else { return };
        for path in state.paths.into_keys() {
            self.command(&path, Command::Drop { by: stream }, now);
        }
    }

    fn tick(&mut self, now: Instant, has_unread: bool) {
        while let Some((at, stream)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(at, stream));
            self.check_ttl(stream, now, has_unread);
        }
        while let Some((at, path)) = self.pauses.first().cloned().filter(|(at, _)| *at <= now) {
            self.pauses.remove(&(at, path.clone()));
            self.advance(&path, now);
        }
    }

    fn check_ttl(&mut self, stream: StreamId, now: Instant, has_unread: bool) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        let Some(ttl) = state.ttl.filter(|_| !state.is_closing) else { return };
        let over_at = state.last_heard + ttl;
        if over_at > now {
            self.check_at(stream, over_at);
            return;
        }
        let since = *state.doubtful_since.get_or_insert(now);
        if now < since + EXPIRY_GRACE || has_unread {
            self.check_at(stream, (since + EXPIRY_GRACE).max(now + EXPIRY_GRACE / 10));
            return;
        }
        if state.attached {
            let held: Vec<_> = state.paths.keys().cloned().collect();
            for path in held {
                let entry = self.entries.get(&path).filter(|entry| entry.holder == Some(stream));
                if let Some(generation) = entry.and_then(Entry::generation) {
                    self.tell(stream, Notice::Lost { path, generation, reason: LostReason::Expired });
                }
            }
            self.effects.push(Effect::Close { stream, end: Err(Error::SessionExpired { ttl }) });
        }
        self.drop_stream(stream, now);
    }

    fn sessions(&mut self, standing: HashSet<SessionId>, overslept: bool, now: Instant) {
        let lost: HashSet<_> = self.standing.difference(&standing).copied().collect();
        self.standing = standing;
        if lost.is_empty() {
            return;
        }
        let concerned = |entry: &Entry| entry.held.as_ref().is_some_and(|held| lost.contains(&held.session));
        let paths: Vec<_> =
            self.entries.iter().filter(|(_, entry)| concerned(entry)).map(|(path, _)| path.clone()).collect();
        for path in paths {
            if let Some(entry) = self.entries.get_mut(&path) {
                entry.overslept |= overslept;
            }
            self.advance(&path, now);
        }
    }

    /// Something was taken over from a session. That the rest is still ours is read anew, so that a later put-back does
    /// not take this for a takeover of its own.
    fn fence_moved(&mut self, session: SessionId) {
        let is_there = |entry: &Entry| entry.held.as_ref().is_some_and(|held| held.session == session);
        let paths: Vec<_> =
            self.entries.iter().filter(|(_, entry)| is_there(entry)).map(|(path, _)| path.clone()).collect();
        if !paths.is_empty() {
            self.effects.push(Effect::Confirm { session, paths });
        }
    }

    fn resync(&mut self, parent: &NodePath) {
        let mut paths = Vec::new();
        for path in self.siblings.get(parent).into_iter().flatten() {
            if let Some(entry) = self.entries.get_mut(path)
                && entry.begin_verify()
            {
                paths.push(path.clone());
            }
        }
        if !paths.is_empty() {
            self.effects.push(Effect::Verify { parent: parent.clone(), paths });
        }
    }
}
