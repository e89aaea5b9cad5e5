//! Register streams: what each has asked for, until when it lives, and the work that its end leaves.

use std::collections::{BTreeMap, btree_map};
use std::ops::Bound;
use std::time::Duration;

use tokio::time::Instant;

use super::entry::{Entry, PathCommand};
use super::footprint::{self, Footprint};
use super::outbox::{Notice, RegistrationLostReason};
use super::state::{Chore, Effect, State, StreamId};
use crate::budget::{Account, Resource};
use crate::contact::Heard;
use crate::error::Error;
use crate::spare;
use crate::types::{Generation, NodePath};

/// Time after the end of a ttl in which messages that have already arrived may be read: a replica that was itself
/// stopped finds the messages of living clients in its sockets. A message that was read counts, however long it waits
/// after that.
const EXPIRY_GRACE: Duration = Duration::from_millis(500);
/// Interval at which the state gets a tick while a ttl is in doubt.
const DOUBT_INTERVAL: Duration = Duration::from_millis(50);

/// One Register stream: its RPC, and with a ttl what may follow it.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) pid: Option<u32>,
    pub(super) account: Account,
    ttl: Option<Duration>,
    /// Whether the RPC is open.
    attached: bool,
    /// When its last message was taken. See [`Stream::last_heard`].
    last_taken: Instant,
    heard: Heard,
    /// When its ttl is checked next.
    check_at: Option<Instant>,
    /// When its ttl ended, while messages that have arrived may still have to be read.
    doubted_since: Option<Instant>,
    /// The paths that it holds or has asked for, with the footprint of each once its turn has come.
    paths: BTreeMap<NodePath, Option<Footprint>>,
    /// Number of `unregistered` notices that it has still to get.
    farewells: usize,
    /// Whether it has said goodbye.
    is_closing: bool,
}

/// The times of the state's ticks. While any ttl is in doubt ticks come often, so that a longer pause means that this
/// replica was stopped. The pause counts for all streams at once: the time that a look at each of many streams takes
/// does not count.
#[derive(Debug)]
pub(super) struct Ticks {
    last: Instant,
    /// When the last pause ended that was longer than [`EXPIRY_GRACE`].
    unbroken_since: Instant,
    /// Until when a ttl is in doubt.
    wanted_until: Instant,
}

impl Ticks {
    pub(super) fn new(now: Instant) -> Self {
        Self { last: now, unbroken_since: now, wanted_until: now }
    }

    pub(super) fn note(&mut self, now: Instant) {
        if now > self.last + EXPIRY_GRACE {
            self.unbroken_since = now;
        }
        self.last = now;
    }

    /// When the next tick is due.
    pub(super) fn next(&self) -> Option<Instant> {
        (self.last < self.wanted_until).then(|| self.last + DOUBT_INTERVAL)
    }

    /// Until when a ttl is in doubt, if it has been in doubt since `since`.
    fn doubt_ends(&mut self, since: Instant) -> Instant {
        let end = since.max(self.unbroken_since) + EXPIRY_GRACE;
        self.wanted_until = self.wanted_until.max(end);
        end
    }
}

/// The work that the end of a stream leaves, path by path.
#[derive(Debug)]
pub(super) struct Departure {
    stream: StreamId,
    paths: btree_map::IntoIter<NodePath, Option<Footprint>>,
    ending: Ending,
}

/// How a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// It has said goodbye, and is told of each path.
    Closed,
    /// The stream is over, and is told nothing.
    Dropped,
    /// It is open and was silent for its ttl: it is told what it has lost, and ended.
    Expired { ttl: Duration },
}

impl Departure {
    fn chore(stream: StreamId, paths: BTreeMap<NodePath, Option<Footprint>>, ending: Ending) -> Chore {
        Chore::Departure(Self { stream, paths: paths.into_iter(), ending })
    }
}

impl Stream {
    pub(super) fn new(ttl: Option<Duration>, pid: Option<u32>, account: Account, heard: Heard, now: Instant) -> Self {
        Self {
            pid,
            account,
            ttl,
            attached: true,
            last_taken: now,
            heard,
            check_at: None,
            doubted_since: None,
            paths: BTreeMap::new(),
            farewells: 0,
            is_closing: false,
        }
    }

    /// Whether its RPC is open. With a ttl the RPC may be over while the registrations are kept.
    pub(super) fn is_attached(&self) -> bool {
        self.attached
    }

    /// Whether it has said goodbye.
    pub(super) fn is_closing(&self) -> bool {
        self.is_closing
    }

    /// When its client was last heard: a message counts from when it was read. If the connection has no memory left,
    /// messages of its streams may not even arrive, behind unread messages of others. Each stream then gets one more
    /// ttl, and no more, or the registrations of a program that hangs would stay for as long as that lasts.
    fn last_heard(&self, now: Instant) -> Instant {
        let heard = self.last_taken.max(self.heard.last(now));
        match self.ttl {
            Some(ttl) if self.attached && self.account.is_exhausted(Resource::Bytes) => now.min(heard + ttl),
            _ => heard,
        }
    }

    /// Whether its ttl has gone by since its client was last heard.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        !self.is_closing && self.ttl.is_some_and(|ttl| self.last_heard(now) + ttl <= now)
    }

    /// The paths that it holds or has asked for, in their order.
    pub(super) fn paths_in(&self, range: (Bound<&NodePath>, Bound<&NodePath>)) -> impl Iterator<Item = &NodePath> {
        self.paths.range::<NodePath, _>(range).map(|(path, _)| path)
    }

    /// The footprint of a path, if it is held or its claim is under way.
    pub(super) fn footprint(&mut self, path: &NodePath) -> &mut Option<Footprint> {
        self.paths.entry(path.clone()).or_default()
    }
}

impl State {
    pub(super) fn tell(&mut self, stream: StreamId, notice: Notice) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        let is_farewell = matches!(notice, Notice::Unregistered { .. });
        self.effects.push(Effect::Tell { stream, notice });
        if is_farewell {
            state.farewells = state.farewells.saturating_sub(1);
            self.end_if_closed(stream);
        }
    }

    /// Ends a stream that has said goodbye, once it has been told everything.
    fn end_if_closed(&mut self, stream: StreamId) {
        let is_closed = |state: &Stream| state.is_closing && state.farewells == 0;
        if self.streams.get(&stream).is_some_and(is_closed) {
            self.take_stream(stream);
            self.effects.push(Effect::Close { stream, end: Ok(()) });
        }
    }

    pub(super) fn open(&mut self, stream: StreamId, state: Stream, session_id: String, now: Instant) {
        let ttl = state.ttl;
        self.streams.insert(stream, state);
        if let Some(ttl) = ttl {
            self.check_at(stream, now + ttl);
        }
        self.tell(stream, Notice::Opened { session_id, ttl });
    }

    /// Notes that a stream's client lives; `None` if the stream is over, or has said goodbye.
    pub(super) fn heard(&mut self, stream: StreamId, now: Instant) -> Option<&mut Stream> {
        let state = self.streams.get_mut(&stream)?;
        state.last_taken = now;
        state.doubted_since = None;
        (!state.is_closing).then_some(state)
    }

    pub(super) fn set(&mut self, command: PathCommand, stream: StreamId, path: &NodePath, now: Instant) {
        if self.entries.get(path).is_some_and(Entry::is_full) {
            self.reject(stream, path, too_many_requests());
            return;
        }
        if let Some(state) = self.streams.get_mut(&stream) {
            state.footprint(path);
        }
        self.command(path, command, now);
    }

    pub(super) fn reject(&mut self, stream: StreamId, path: &NodePath, error: Error) {
        self.tell(stream, Notice::Rejected { path: path.as_str().to_owned(), error });
    }

    pub(super) fn unset(&mut self, stream: StreamId, path: &NodePath, now: Instant) {
        if self.heard(stream, now).is_none() {
            return;
        }
        let Some(state) = self.streams.get_mut(&stream) else { return };
        let entry = self.entries.get(path);
        let memory = if entry.is_some_and(Entry::is_full) {
            Err(too_many_requests())
        } else if entry.is_some_and(Entry::is_busy) {
            let memory = footprint::request(&state.account, path, 0).map(Some);
            // Even at the limit a registration can be given back.
            if entry.is_some_and(Entry::has_commands) { memory } else { Ok(memory.unwrap_or_default()) }
        } else {
            Ok(None)
        };
        match memory {
            Ok(memory) => {
                state.farewells += 1;
                let goodbye = self.goodbyes.another();
                self.command(path, PathCommand::Unset { by: stream, footprint: None, _memory: memory, goodbye }, now);
            }
            Err(error) => self.reject(stream, path, error),
        }
    }

    pub(super) fn close(&mut self, stream: StreamId, now: Instant) {
        let Some(state) = self.heard(stream, now) else { return };
        let paths = std::mem::take(&mut state.paths);
        state.farewells += paths.len();
        state.is_closing = true;
        self.begin(Departure::chore(stream, paths, Ending::Closed), now);
        self.end_if_closed(stream);
    }

    pub(super) fn gone(&mut self, stream: StreamId, now: Instant) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        if state.ttl.is_some() && !state.is_closing {
            state.attached = false;
            if !self.waiting.is_empty() {
                // Requests that have not begun are not carried out any more.
                self.look_at_paths_of(stream, now);
            }
            self.forget_if_gone(stream);
        } else if let Some(state) = self.take_stream(stream) {
            self.begin(Departure::chore(stream, state.paths, Ending::Dropped), now);
        }
    }

    /// Forgets a stream that is over and has nothing to come back for.
    pub(super) fn forget_if_gone(&mut self, stream: StreamId) {
        if self.streams.get(&stream).is_some_and(|state| !state.attached && state.paths.is_empty()) {
            self.take_stream(stream);
        }
    }

    /// A stream neither holds a path any more nor has a claim for it under way. Returns the path's footprint.
    pub(super) fn drop_path(&mut self, path: &NodePath, stream: StreamId) -> Option<Footprint> {
        // The path stays in the list if the stream asks for it again: it is then to be answered, or removed, when the
        // stream ends.
        let is_asked_for = self.entries.get(path).is_some_and(|entry| entry.is_asked_for_by(stream));
        let paths = &mut self.streams.get_mut(&stream)?.paths;
        if is_asked_for { paths.get_mut(path)?.take() } else { paths.remove(path)? }
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
        spare::shrink(&mut self.streams);
        if let Some(at) = state.check_at {
            self.deadlines.remove(&(at, stream));
        }
        Some(state)
    }

    /// Deals with the next path of a stream that ends; `false` if there was none left.
    pub(super) fn depart(&mut self, departure: &mut Departure, now: Instant) -> bool {
        let stream = departure.stream;
        let Some((path, footprint)) = departure.paths.next() else {
            if let Ending::Expired { ttl } = departure.ending {
                self.effects.push(Effect::Close { stream, end: Err(Error::SessionExpired { ttl }) });
            }
            return false;
        };
        let goodbye = self.goodbyes.another();
        if departure.ending == Ending::Closed {
            self.command(&path, PathCommand::Unset { by: stream, footprint, _memory: None, goodbye }, now);
            return true;
        }
        if let Ending::Expired { .. } = departure.ending {
            let entry = self.entries.get(&path).filter(|entry| entry.holder == Some(stream));
            if let Some(generation) = entry.and_then(Entry::generation) {
                self.tell_of_loss(path.clone(), stream, generation);
            }
        }
        self.command(&path, PathCommand::Drop { by: stream, footprint, goodbye }, now);
        true
    }

    /// The stream is no longer among the living ones, and is ended right after.
    fn tell_of_loss(&mut self, path: NodePath, stream: StreamId, generation: Generation) {
        let notice = Notice::Lost { path, generation, reason: RegistrationLostReason::Expired };
        self.effects.push(Effect::Tell { stream, notice });
    }

    pub(super) fn check_ttl(&mut self, stream: StreamId, now: Instant) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        let Some(ttl) = state.ttl.filter(|_| !state.is_closing) else { return };
        let over_at = state.last_heard(now) + ttl;
        if over_at > now {
            state.doubted_since = None;
            self.check_at(stream, over_at);
            return;
        }
        let doubt_ends = self.ticks.doubt_ends(*state.doubted_since.get_or_insert(now));
        if now < doubt_ends {
            self.check_at(stream, doubt_ends);
            return;
        }
        let ending = if state.attached { Ending::Expired { ttl } } else { Ending::Dropped };
        if let Some(state) = self.take_stream(stream) {
            // The ttls of many streams may end in one step.
            self.begin_later(Departure::chore(stream, state.paths, ending));
        }
    }
}

fn too_many_requests() -> Error {
    let limit = u64::try_from(Entry::COMMANDS).unwrap_or(u64::MAX);
    Error::LimitExceeded { reason: "TOO_MANY_REQUESTS", what: "the number of requests that wait for one path", limit }
}
