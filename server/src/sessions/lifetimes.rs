//! The life of a stream: it is opened, heard, asked to close, silent for its ttl, or gone.

use tokio::time::Instant;

use super::effects::{Effect, StreamId};
use super::footprint::{self, Footprint};
use super::outbox::{Notice, RegistrationLostReason};
use super::registration::{PathCommand, Registration};
use super::state::{Chore, State};
use super::streams::{Departure, Ending, Stream};
use crate::error::Error;
use crate::spare;
use crate::types::{Generation, NodePath};

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
        if self.registrations.get(path).is_some_and(Registration::is_full) {
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
        let registration = self.registrations.get(path);
        let memory = if registration.is_some_and(Registration::is_full) {
            Err(too_many_requests())
        } else if registration.is_some_and(Registration::is_busy) {
            let memory = footprint::request(&state.account, path, 0).map(Some);
            // Even at the limit a registration can be given back.
            if registration.is_some_and(Registration::has_commands) { memory } else { Ok(memory.unwrap_or_default()) }
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
        self.begin(Chore::Departure(Departure::new(stream, paths, Ending::Closed)), now);
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
            self.begin(Chore::Departure(Departure::new(stream, state.paths, Ending::Dropped)), now);
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
        let is_asked_for =
            self.registrations.get(path).is_some_and(|registration| registration.is_asked_for_by(stream));
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
            let registration = self.registrations.get(&path).filter(|registration| registration.holder == Some(stream));
            if let Some(generation) = registration.and_then(Registration::generation) {
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
            self.begin_later(Chore::Departure(Departure::new(stream, state.paths, ending)));
        }
    }
}

fn too_many_requests() -> Error {
    let limit = u64::try_from(Registration::COMMANDS).unwrap_or(u64::MAX);
    Error::LimitExceeded { reason: "TOO_MANY_REQUESTS", what: "the number of requests that wait for one path", limit }
}
