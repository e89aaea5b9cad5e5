//! The state that the task of a lock and the stream of its client share: one value, never a queue.
//!
//! The task goes on whether or not the client reads. Otherwise a client that does not read would keep the whole queue
//! waiting. News that the client has not read are merged: the latest place in the queue, then the lock, then the end.
//!
//! The state says until when this replica can answer for the lock (`Vouched`). After that the stream sends no `held`
//! and no heartbeat before the task has judged the evidence anew. So the horizon that a client was told holds for a
//! replica that is stopped after any message. `docs/locks.md` has the arithmetic.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::time::Instant;

use super::event::{LockEvent, LostReason};
use crate::clock;
use crate::contact::Contact;
use crate::error::Error;
use crate::locks::recipe::lock_id::LockId;
use crate::types::FencingToken;

/// The command to the task. The last two are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// Go on: a stream is open.
    Go,
    /// Keep the lock: it has a ttl, its client knows that it holds it, and the stream has ended. The client was last
    /// heard at this time, and may come back.
    Keep(Instant),
    /// Give the lock up: its stream has ended.
    Drop,
    /// Give the lock up: a client has released it by its id.
    Release,
}

impl Command {
    fn is_final(self) -> bool {
        matches!(self, Self::Drop | Self::Release)
    }
}

/// The state of the lock, as the task knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    /// A stream came back to a lock with a ttl, and the task has still to find out whether this replica keeps the lock.
    Unverified(FencingToken),
    Held(FencingToken),
    Doubt(FencingToken, Instant),
    Over,
}

/// The part of [`Phase`] that the stream has last sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Held,
    Suspended,
}

/// The promises that a replica can keep though it may be stopped at any moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vouched {
    /// The stream may send `Held` until then.
    pub(crate) until: Instant,
    /// The stream may send `Held` as long as the client was heard within this time.
    pub(crate) heard_within: Duration,
    /// Time for which the client can rely on the stream's last message.
    pub(crate) horizon: Duration,
}

/// A place in the queue, as the client is told it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct QueuePosition {
    /// Counted from 1.
    position: u32,
    holders: Arc<[String]>,
}

/// The state that the task and the stream share.
#[derive(Debug)]
pub(crate) struct AcquisitionState {
    id: LockId,
    state: Mutex<State>,
    /// Moves with every change of `state`.
    news: watch::Sender<()>,
    /// Written only while `state` is locked.
    command: watch::Sender<Command>,
}

#[derive(Debug)]
struct State {
    /// The number of the latest stream; the earlier ones are superseded.
    stream: u64,
    /// Time for which the lock outlives its stream.
    ttl: Option<Duration>,
    /// Whether a stream has sent that the lock is held.
    granted: bool,
    position: Option<QueuePosition>,
    position_unread: bool,
    phase: Phase,
    told: Told,
    /// The connection of the latest stream.
    contact: Option<Contact>,
    vouched: Option<Vouched>,
    lost: Option<LostReason>,
    /// The end of the task.
    end: Option<Result<(), Error>>,
    /// Whether the stream has sent the end.
    end_told: bool,
}

impl State {
    /// Whether the stream may send `Held` now.
    fn may_tell(&self, now: Instant) -> bool {
        self.vouched.is_none_or(|vouched| {
            let is_heard = |contact: &Contact| contact.is_heard(vouched.heard_within, now);
            now <= vouched.until && self.contact.as_ref().is_none_or(is_heard)
        })
    }

    /// Time for which the client can rely on a message that the stream sends now.
    fn horizon(&self, now: Instant) -> Option<Duration> {
        let horizon = self.vouched?.horizon;
        Some(match self.phase {
            Phase::Doubt(_, until) => horizon.min(until.saturating_duration_since(now)),
            _ => horizon,
        })
    }

    fn doubt(&mut self, until: Instant) {
        if let Phase::Unverified(token) | Phase::Held(token) | Phase::Doubt(token, _) = self.phase {
            self.phase = Phase::Doubt(token, until);
        }
    }
}

impl AcquisitionState {
    /// The state of a lock without a stream; `Acquisition::attach` makes the first.
    pub(crate) fn new(id: LockId, ttl: Option<Duration>) -> Arc<Self> {
        let state = State {
            stream: 0,
            ttl,
            granted: false,
            position: None,
            position_unread: false,
            phase: Phase::Waiting,
            told: Told::Nothing,
            contact: None,
            vouched: None,
            lost: None,
            end: None,
            end_told: false,
        };
        Arc::new(Self {
            id,
            state: Mutex::new(state),
            news: watch::channel(()).0,
            command: watch::channel(Command::Go).0,
        })
    }

    /// The state of a lock with a ttl to which a client comes back: the client was told before, elsewhere, that it
    /// holds it.
    pub(crate) fn to_pick_up(id: LockId) -> Arc<Self> {
        let state = Self::new(id, Some(Duration::ZERO));
        state.state().granted = true;
        state
    }

    pub(crate) fn id(&self) -> &LockId {
        &self.id
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let value = change(&mut self.state());
        self.news.send_replace(());
        value
    }

    /// Tells the client its place in the queue, unless it knows it.
    pub(crate) fn queued(&self, position: u32, holders: Arc<[String]>) {
        let position = Some(QueuePosition { position, holders });
        if self.state().position != position {
            self.change(|state| {
                state.position = position;
                state.position_unread = true;
            });
        }
    }

    /// Whether the client has been told a place in the queue, or is about to be.
    pub(crate) fn was_queued(&self) -> bool {
        self.state().position.is_some()
    }

    /// The holders that the client was last told.
    pub(crate) fn holders(&self) -> Vec<String> {
        self.state().position.as_ref().map(|position| position.holders.to_vec()).unwrap_or_default()
    }

    /// Tells the client that it holds the lock. `false`: the client does not want it any more.
    pub(crate) fn held(&self, token: FencingToken) -> bool {
        self.change(|state| self.hold(state, token))
    }

    /// The same for a lease that was found to exist while `stream` was the latest. A later stream is told nothing
    /// before the task has looked at the lease again.
    pub(crate) fn still_held(&self, stream: u64, token: FencingToken) {
        self.change(|state| {
            if state.stream == stream {
                self.hold(state, token);
            }
        });
    }

    fn hold(&self, state: &mut State, token: FencingToken) -> bool {
        let wanted = state.end.is_none() && !self.command.borrow().is_final();
        if wanted {
            state.phase = Phase::Held(token);
        }
        if wanted && state.position.is_none() {
            // A holder was the first of the queue.
            state.position = Some(QueuePosition { position: 1, holders: Arc::default() });
            state.position_unread = true;
        }
        wanted
    }

    /// Tells the client that its lock is certain only until this time.
    pub(crate) fn suspended(&self, until: Instant) {
        self.change(|state| state.doubt(until));
    }

    /// The same for a lease that was found to exist while `stream` was the latest.
    pub(crate) fn still_suspended(&self, stream: u64, until: Instant) {
        self.change(|state| {
            if state.stream == stream {
                state.doubt(until);
            }
        });
    }

    /// Tells the client that its lock is lost, and ends the stream.
    pub(crate) fn lost(&self, reason: LostReason, error: Error) {
        self.change(|state| {
            state.phase = Phase::Over;
            if state.end.is_none() {
                state.lost = Some(reason);
                state.end = Some(Err(error));
            }
        });
    }

    /// Ends the stream; the first end counts.
    pub(crate) fn end(&self, end: Result<(), Error>) {
        self.change(|state| {
            state.phase = Phase::Over;
            state.end.get_or_insert(end);
        });
    }

    /// Ends the lock, unless a later stream than this one has come and is still open; returns whether the lock has ended.
    pub(crate) fn end_stream(&self, stream: u64, end: Result<(), Error>) -> bool {
        self.change(|state| {
            let came_since = state.stream != stream && *self.command.borrow() == Command::Go;
            if came_since && state.phase != Phase::Over {
                return false;
            }
            state.phase = Phase::Over;
            state.end.get_or_insert(end);
            true
        })
    }

    /// Ends a stream that still waits, and has its task give up; does nothing once the lock is held.
    pub(crate) fn end_waiting(&self, error: Error) {
        let waits = self.change(|state| {
            let waits = state.phase == Phase::Waiting;
            if waits {
                state.end.get_or_insert(Err(error));
            }
            waits
        });
        if waits {
            self.give(Command::Drop);
        }
    }

    /// Gives a final command; the first one counts. Returns whether this is the first.
    pub(crate) fn give(&self, command: Command) -> bool {
        let _state = self.state();
        self.set_command(command)
    }

    /// The caller has `state` locked.
    fn set_command(&self, command: Command) -> bool {
        self.command.send_if_modified(|current| {
            let open = !current.is_final();
            if open {
                *current = command;
            }
            open
        })
    }

    /// Sets the ttl of a lock that another replica has kept.
    pub(crate) fn picked_up(&self, ttl: Duration) {
        self.state().ttl = Some(ttl);
    }

    /// A new stream, over this connection, which supersedes the earlier ones. `None`: the lock is over.
    pub(crate) fn attach(&self, contact: Option<Contact>) -> Option<u64> {
        self.change(|state| {
            if state.phase == Phase::Over || state.end.is_some() || self.command.borrow().is_final() {
                return None;
            }
            if let (Phase::Held(token) | Phase::Doubt(token, _), Some(_)) = (state.phase, state.ttl) {
                state.phase = Phase::Unverified(token);
            }
            state.stream += 1;
            state.contact = contact;
            self.command.send_replace(Command::Go);
            state.told = Told::Nothing;
            state.position_unread = state.position.is_some();
            Some(state.stream)
        })
    }

    /// A stream has ended.
    pub(crate) fn detach(&self, stream: u64) {
        let state = self.state();
        if state.stream == stream {
            let keep = state.granted && state.ttl.is_some();
            let now = clock::now();
            let heard = state.contact.as_ref().map_or(now, |contact| contact.last_heard(now));
            self.set_command(if keep { Command::Keep(heard) } else { Command::Drop });
        }
    }

    /// The connection of the latest stream.
    pub(crate) fn contact(&self) -> Option<Contact> {
        self.state().contact.clone()
    }

    /// Replaces the promises that this replica can keep.
    pub(crate) fn vouch(&self, vouched: Vouched) {
        self.state().vouched = Some(vouched);
    }

    /// Whether the stream may send nothing now, because the client would take it for a sign that it holds the lock.
    pub(crate) fn is_held_back(&self, stream: u64, now: Instant) -> bool {
        let state = self.state();
        state.stream == stream && matches!(state.phase, Phase::Held(_)) && !state.may_tell(now)
    }

    /// Changes when the stream may have something new to send.
    pub(crate) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// The command, to read or to wait on.
    pub(crate) fn commands(&self) -> watch::Receiver<Command> {
        self.command.subscribe()
    }

    /// Whether the lock is over.
    pub(crate) fn is_over(&self) -> bool {
        self.state().phase == Phase::Over
    }

    /// Whether the task ended, or failed, in a way that may leave a lease with a ttl behind.
    pub(crate) fn may_leave_a_lease(&self) -> bool {
        matches!(self.state().end, None | Some(Err(Error::BackendUnavailable)))
    }

    /// Whether `stream` is the latest, and has sent nothing because the task has not found the lease yet.
    pub(crate) fn is_unverified(&self, stream: u64) -> bool {
        let state = self.state();
        state.stream == stream && matches!(state.phase, Phase::Unverified(_))
    }

    /// Whether the client still wants the lock, or its place in the queue.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.command.borrow().is_final()
    }

    /// Waits for a final command.
    pub(crate) async fn stopped(&self) -> Command {
        let mut commands = self.command.subscribe();
        let command = commands.wait_for(|command| command.is_final()).await.map(|command| *command);
        // The sender is a field of `self`: there is no error.
        command.unwrap_or(Command::Drop)
    }

    /// The number of the latest stream.
    pub(crate) fn stream(&self) -> u64 {
        self.state().stream
    }

    /// Waits until the task has ended, and returns how.
    pub(crate) async fn ended(&self) -> Result<(), Error> {
        let mut news = self.news.subscribe();
        loop {
            let (phase, end) = {
                let state = self.state();
                (state.phase, state.end.clone())
            };
            if phase == Phase::Over {
                return end.unwrap_or(Ok(()));
            }
            if news.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    /// The next message of a stream. `None`: nothing now. `Some(None)`: nothing any more.
    pub(crate) fn take(&self, stream: u64, now: Instant) -> Option<Option<Result<LockEvent, Error>>> {
        let mut state = self.state();
        if state.stream != stream {
            return Some(Some(Err(Error::Superseded { path: self.id.path().clone() })));
        }
        if state.position_unread
            && let Some(QueuePosition { position, holders }) = state.position.clone()
        {
            state.position_unread = false;
            let lock_id = self.id.text();
            return Some(Some(Ok(LockEvent::Queued { lock_id, position, holders: holders.to_vec() })));
        }
        match (state.phase, state.told) {
            // The task has still to judge the evidence anew, or the client to answer.
            (Phase::Held(_), _) if !state.may_tell(now) => {}
            (Phase::Held(token), Told::Nothing | Told::Suspended) | (Phase::Doubt(token, _), Told::Nothing) => {
                state.told = Told::Held;
                state.granted = true;
                let (ttl, horizon) = (state.ttl, state.horizon(now));
                let (lock_id, in_doubt) = (self.id.text(), matches!(state.phase, Phase::Doubt(..)));
                return Some(Some(Ok(LockEvent::Held { lock_id, fencing_token: token, ttl, horizon, in_doubt })));
            }
            (Phase::Doubt(_, until), Told::Held) => {
                state.told = Told::Suspended;
                return Some(Some(Ok(LockEvent::Suspended { remaining: until.saturating_duration_since(now) })));
            }
            (Phase::Held(_), Told::Held)
            | (Phase::Doubt(..), Told::Suspended)
            | (Phase::Waiting | Phase::Unverified(_) | Phase::Over, _) => {}
        }
        if let Some(reason) = state.lost.take() {
            return Some(Some(Ok(LockEvent::Lost { reason })));
        }
        match state.end.clone()? {
            Err(error) if !state.end_told => {
                state.end_told = true;
                Some(Some(Err(error)))
            }
            _ => Some(None),
        }
    }
}
