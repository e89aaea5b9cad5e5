//! The life of one path: who holds it, what stands in ZooKeeper for it, and what is to do next.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use tokio::time::Instant;

use super::claims::{Claim, Claimed, Content, Fresh, Held, Observed, Policy};
use super::outbox::{LostReason, Notice};
use super::state::{Effect, State, Stream, StreamId};
use crate::error::Error;
use crate::types::{Generation, NodePath, Zxid};
use crate::value::{EncodedValue, Stamp, own};
use crate::zk::{Read, Seen};

/// The pause before the second put-back of a registration that is deleted again and again; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a node is left alone that could not be read.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How long the ends of streams that have arrived may take to be read, before what a lost ZooKeeper session held is registered
/// again: a replica that was itself stopped finds them in its sockets.
const SETTLING: Duration = Duration::from_millis(200);
/// A registration that stood this long after it was put back is put back at once the next time.
const SETTLED: Duration = Duration::from_secs(120);

/// What a stream wants of a path.
#[derive(Debug)]
pub(super) enum Command {
    /// To hold it.
    Set {
        by: StreamId,
        value: EncodedValue,
        /// How long the value is.
        bytes: usize,
        stamp: Stamp,
        generation: Option<Generation>,
        exclusive: bool,
    },
    /// To give it back, and be told.
    Unset { by: StreamId },
    /// The stream is no more.
    Drop { by: StreamId },
}

impl Command {
    fn is_goodbye_of(&self, stream: StreamId) -> bool {
        matches!(self, Self::Unset { by } | Self::Drop { by } if *by == stream)
    }

    /// How many bytes of data it keeps.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Set { bytes, .. } => *bytes,
            Self::Unset { .. } | Self::Drop { .. } => 0,
        }
    }
}

/// The one operation that is under way for a path.
#[derive(Debug)]
enum Operation {
    /// `by` asked; nobody did when a registration is restored.
    Claiming {
        by: Option<StreamId>,
        claim: Claim,
    },
    /// A claim that waits for ZooKeeper.
    Waiting {
        by: Option<StreamId>,
        claim: Claim,
    },
    Removing {
        told: Option<StreamId>,
    },
    Verifying,
}

/// What tells a foreign hand's delete from a takeover, whose delete and create come together.
#[derive(Debug, Default)]
struct Witness {
    /// The last create that the watch told of; `Some(None)` where ZooKeeper does not tell its transaction.
    created: Option<Option<Zxid>>,
    /// Whether the watch may have missed something since the node was last read.
    has_gap: bool,
}

impl Witness {
    fn note(&mut self, seen: Seen) {
        if seen.created {
            self.created = Some(match (self.created, seen.created_by) {
                (None, by) => by,
                (Some(Some(earlier)), Some(by)) => Some(earlier.max(by)),
                (Some(_), _) => None,
            });
        }
    }

    /// Whether this incarnation, which is gone, may have been taken over.
    fn allows_takeover(&self, generation: Generation) -> bool {
        let is_later = |by: Option<Zxid>| by.is_none_or(|by| by.0 > generation.0);
        self.has_gap || self.created.is_some_and(is_later)
    }
}

/// One path.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// The stream that holds it.
    pub(super) holder: Option<StreamId>,
    /// What stands in ZooKeeper, as far as this replica knows.
    pub(super) held: Option<Held>,
    /// The first incarnation of which the one that stands is the continuation: resumed, restored or put back. A client
    /// may not have heard of the later ones yet.
    first: Option<Generation>,
    operation: Option<Operation>,
    commands: VecDeque<Command>,
    /// Whether something happened to the node that has not been looked at; by this transaction, where that is known.
    unseen: Option<Option<Zxid>>,
    /// Whether the node is to be put back.
    absent: bool,
    put_backs: u32,
    last_put_back: Option<Instant>,
    /// Not to be put back before.
    paused_until: Option<Instant>,
    /// Not to be looked at before.
    look_again_at: Option<Instant>,
    /// Not to be registered again before, since its ZooKeeper session was lost.
    restore_at: Option<Instant>,
    /// That session ended while this replica was stopped.
    pub(super) overslept: bool,
    witness: Witness,
}

impl Entry {
    /// How many commands may wait for one path.
    pub(super) const COMMANDS: usize = 1024;

    pub(super) fn push(&mut self, command: Command) {
        self.commands.push_back(command);
    }

    /// Whether no further request finds a place. The end of a stream always does.
    pub(super) fn is_full(&self) -> bool {
        self.commands.len() >= Self::COMMANDS
    }

    /// Whether it is being taken down, or is to be.
    pub(super) fn is_leaving(&self) -> bool {
        let is_goodbye = |command: &Command| !matches!(command, Command::Set { .. });
        matches!(self.operation, Some(Operation::Removing { .. })) || self.commands.iter().any(is_goodbye)
    }

    pub(super) fn generation(&self) -> Option<Generation> {
        self.held.as_ref().map(|held| held.generation)
    }

    /// Marks the node to be looked at; `true` when the caller is to do it now.
    pub(super) fn begin_verify(&mut self) -> bool {
        self.witness.has_gap = true;
        let idle = self.operation.is_none() && self.held.is_some() && self.holder.is_some();
        if idle {
            self.unseen = None;
            self.operation = Some(Operation::Verifying);
        } else {
            self.unseen = Some(None);
        }
        idle
    }

    /// How long to wait before the node is put back now.
    fn pause(&mut self, now: Instant, jitter: f64) -> Duration {
        if self.last_put_back.is_some_and(|last| now > last + SETTLED) {
            self.put_backs = 0;
        }
        let doublings = self.put_backs.saturating_sub(1).min(16);
        let pause = if self.put_backs == 0 { Duration::ZERO } else { FIRST_PAUSE * 2_u32.pow(doublings) };
        self.put_backs += 1;
        pause.min(LONGEST_PAUSE).mul_f64(jitter)
    }
}

impl State {
    /// Begins what is next for a path, if nothing is under way.
    pub(super) fn advance(&mut self, path: &NodePath, now: Instant) {
        loop {
            let Some(entry) = self.entries.get_mut(path) else { return };
            if let Some(Operation::Waiting { by: Some(by), claim }) = &entry.operation
                && !claim.attempted.latest_first().any(|session| self.standing.contains(&session))
            {
                let by = *by;
                let goodbye = entry.commands.iter().any(|command| command.is_goodbye_of(by));
                if goodbye || !self.streams.get(&by).is_some_and(Stream::is_attached) {
                    // Nothing stands of it, and nobody waits for it any more: it must not appear when ZooKeeper is back.
                    entry.operation = None;
                    self.waiting.remove(path);
                    let (path, error) = (path.as_str().to_owned(), Error::BackendUnavailable);
                    self.tell(by, Notice::Rejected { path, error });
                    continue;
                }
            }
            if entry.operation.is_some() {
                return;
            }
            let Some(command) = entry.commands.pop_front() else {
                // A path is idle for most of its life: it keeps no memory for what may come.
                entry.commands = VecDeque::new();
                break;
            };
            match command {
                Command::Set { by, value, bytes, stamp, generation, exclusive } => {
                    if let Some(stream) = self.streams.get_mut(&by) {
                        stream.queued_bytes = stream.queued_bytes.saturating_sub(bytes);
                    }
                    self.begin_set(path, by, value, stamp, generation, exclusive);
                }
                Command::Unset { by } => self.give_back(path, by, true),
                Command::Drop { by } => self.give_back(path, by, false),
            }
        }
        self.advance_unasked(path, now);
    }

    /// What an idle path without commands needs.
    fn advance_unasked(&mut self, path: &NodePath, now: Instant) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        let (Some(held), Some(holder)) = (&entry.held, entry.holder) else {
            self.forget(path);
            return;
        };
        // It is about to go, unless something of its client's is still to be read: not to be seen again before that.
        let is_overdue = self.streams.get(&holder).is_some_and(|stream| stream.is_overdue(now));
        let decided_at = if is_overdue { now + SETTLING } else { now };
        let (content, generation) = (Content::Exact(held.bytes.clone()), held.generation);
        if !self.standing.contains(&held.session) {
            let at = decided_at.max(*entry.restore_at.get_or_insert(now + SETTLING));
            if at > now {
                self.pauses.insert((at, path.clone()));
                return;
            }
            entry.restore_at = None;
            let is_here = self.streams.get(&holder).is_some_and(Stream::is_attached);
            if std::mem::take(&mut entry.overslept) && !is_here {
                self.let_go(path, holder);
                return;
            }
            self.begin_claim(path, None, Claim::new(content, Policy::Restore(generation)));
        } else if entry.absent {
            if entry.paused_until.is_some_and(|until| until > now) {
                return;
            }
            if is_overdue {
                self.pauses.insert((decided_at, path.clone()));
                return;
            }
            entry.absent = false;
            entry.last_put_back = Some(now);
            let moves = entry.witness.allows_takeover(generation).then_some(held.moves);
            let policy = Policy::PutBack { generation, session: held.session, moves };
            self.begin_claim(path, None, Claim::new(content, policy));
        } else if entry.look_again_at.is_none_or(|at| at <= now)
            && let Some(zxid) = entry.unseen.take()
        {
            if zxid.is_some_and(|zxid| zxid <= held.written) {
                return;
            }
            entry.operation = Some(Operation::Verifying);
            if let Some(parent) = path.parent() {
                self.effects.push(Effect::Verify { parent, paths: vec![path.clone()] });
            }
        }
    }

    /// A replica that was stopped for as long as that is as good as one that died: its client, which is not here any more,
    /// has come back elsewhere, and may have ended there, or comes back yet.
    fn let_go(&mut self, path: &NodePath, holder: StreamId) {
        if let Some(stream) = self.streams.get_mut(&holder) {
            stream.remove(path);
        }
        self.forget(path);
        self.forget_if_gone(holder);
    }

    fn begin_claim(&mut self, path: &NodePath, by: Option<StreamId>, claim: Claim) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        entry.operation = Some(Operation::Claiming { by, claim: claim.clone() });
        self.effects.push(Effect::Claim { path: path.clone(), by, claim });
    }

    fn begin_set(
        &mut self,
        path: &NodePath,
        by: StreamId,
        value: EncodedValue,
        stamp: Stamp,
        generation: Option<Generation>,
        exclusive: bool,
    ) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        // A client that is no more here, ttl or not, may have registered elsewhere meanwhile; if not, it will ask again.
        if !self.streams.get(&by).is_some_and(Stream::is_attached) {
            return;
        }
        let standing = entry.generation();
        let is_of_our_line = |asked| entry.first.is_some_and(|first| first <= asked) && Some(asked) <= standing;
        let policy = match (generation, standing) {
            // Its own registration: new data for the same incarnation.
            (None, Some(own)) if entry.holder == Some(by) => Policy::Update(own),
            // That of its line which stands, of which it may not have heard yet.
            (Some(asked), Some(own)) if is_of_our_line(asked) => Policy::Resume(own),
            (Some(asked), _) => Policy::Resume(asked),
            (None, _) if exclusive => Policy::Exclusive,
            (None, _) => Policy::TakeOver,
        };
        self.begin_claim(path, Some(by), Claim::new(Content::Fresh(Arc::new(Fresh { value, stamp })), policy));
    }

    /// `by` no longer wants the path.
    fn give_back(&mut self, path: &NodePath, by: StreamId, tell: bool) {
        let told = tell.then_some(by);
        let Some(entry) = self.entries.get_mut(path) else { return };
        if let Some(stream) = self.streams.get_mut(&by) {
            stream.remove(path);
        }
        if entry.holder == Some(by) {
            entry.holder = None;
            if let Some(held) = &entry.held {
                entry.operation = Some(Operation::Removing { told });
                let (generation, session) = (held.generation, held.session);
                self.effects.push(Effect::Remove { path: path.clone(), generation, session });
                return;
            }
        }
        if let Some(stream) = told {
            self.tell(stream, Notice::Unregistered { path: path.clone() });
        }
    }

    /// Tries again what waited for ZooKeeper.
    pub(super) fn retry(&mut self, path: &NodePath) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        match entry.operation.take() {
            Some(Operation::Waiting { by, claim }) => self.begin_claim(path, by, claim),
            other => entry.operation = other,
        }
    }

    pub(super) fn claimed(&mut self, path: &NodePath, outcome: Claimed, now: Instant) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        let Some(Operation::Claiming { by, claim }) = entry.operation.take() else { return };
        match outcome {
            Claimed::Held { held, stat, adopted } => {
                let before = entry.held.replace(held.clone());
                entry.first = match claim.policy {
                    Policy::TakeOver | Policy::Exclusive => Some(held.generation),
                    Policy::Resume(asked) => {
                        let is_known = before.as_ref().is_some_and(|before| asked <= before.generation);
                        Some(entry.first.filter(|_| is_known).unwrap_or(asked).min(asked))
                    }
                    Policy::Update(_) | Policy::Restore(_) | Policy::PutBack { .. } => entry.first,
                };
                entry.absent = false;
                entry.paused_until = None;
                entry.restore_at = None;
                entry.overslept = false;
                if adopted {
                    // It was read on one server; its watch may be on another, and have begun before.
                    entry.unseen = Some(None);
                }
                let is_new = before.as_ref().map(|before| before.generation) != Some(held.generation);
                let generation = held.generation;
                let registered =
                    |restored| Notice::Registered { path: path.clone(), generation, stat, restored, adopted };
                if let Some(by) = by {
                    let earlier = entry.holder.replace(by).filter(|holder| *holder != by);
                    if let Some(stream) = self.streams.get_mut(&by) {
                        stream.add(path, held.bytes.len());
                    } else {
                        entry.push(Command::Drop { by });
                    }
                    if let Some((holder, before)) = earlier.zip(before) {
                        self.lose(path, holder, before.generation, LostReason::TakenOver);
                    }
                    self.tell(by, registered(false));
                } else if let Some(holder) = entry.holder.filter(|_| is_new) {
                    self.tell(holder, registered(true));
                }
            }
            Claimed::TakenOver => self.claim_lost(path, by, claim),
            Claimed::Refused(error) => self.claim_refused(path, by, error),
            Claimed::Unavailable { attempted } => {
                let is_first = !claim.told_pending;
                let mut claim = Claim { told_pending: true, ..claim };
                if let Some(session) = attempted {
                    claim.attempted.add(session);
                }
                entry.operation = Some(Operation::Waiting { by, claim });
                self.waiting.insert(path.clone());
                if let Some(stream) = by.filter(|_| is_first) {
                    self.tell(stream, Notice::Pending { path: path.clone() });
                }
            }
        }
        self.advance(path, now);
    }

    /// A later incarnation stands, which the claim may not displace.
    fn claim_lost(&mut self, path: &NodePath, by: Option<StreamId>, claim: Claim) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        let known = entry.generation();
        let holder_concerned = by.is_none() || by == entry.holder;
        if holder_concerned {
            entry.held = None;
            if let Some((holder, generation)) = entry.holder.take().zip(known) {
                self.lose(path, holder, generation, LostReason::TakenOver);
            }
        } else {
            // Whatever is later than the claim's generation may be later than what we hold as well.
            entry.unseen = Some(None);
        }
        match (by, claim.policy) {
            // New data for what is no longer ours: a `set` without generation takes over, as it would have in the first place.
            (Some(by), Policy::Update(_)) => {
                let policy = Policy::TakeOver;
                self.begin_claim(path, Some(by), Claim::new(claim.content, policy));
            }
            (Some(by), Policy::Resume(generation)) if !(holder_concerned && known.is_some()) => {
                self.lose(path, by, generation, LostReason::TakenOver);
            }
            _ => {}
        }
    }

    fn claim_refused(&mut self, path: &NodePath, by: Option<StreamId>, error: Error) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        match by {
            Some(by) => {
                if entry.holder != Some(by)
                    && let Some(stream) = self.streams.get_mut(&by)
                {
                    stream.remove(path);
                }
                self.tell(by, Notice::Rejected { path: path.as_str().to_owned(), error });
            }
            None => {
                tracing::warn!(%path, %error, "a registration can't be restored");
                let known = entry.held.take().map(|held| held.generation);
                if let Some((holder, generation)) = entry.holder.take().zip(known) {
                    self.lose(path, holder, generation, LostReason::Removed);
                }
            }
        }
    }

    fn lose(&mut self, path: &NodePath, stream: StreamId, generation: Generation, reason: LostReason) {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.remove(path);
        }
        self.tell(stream, Notice::Lost { path: path.clone(), generation, reason });
    }

    pub(super) fn removed(&mut self, path: &NodePath, now: Instant) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        let Some(Operation::Removing { told }) = entry.operation.take() else { return };
        entry.held = None;
        if let Some(stream) = told {
            self.tell(stream, Notice::Unregistered { path: path.clone() });
        }
        self.advance(path, now);
    }

    /// Something happened to a node: looked at, unless it was our own doing. One that appears is, mostly; where ZooKeeper
    /// does not tell the transaction, before 3.9, only a look tells.
    pub(super) fn changed(&mut self, path: &NodePath, seen: Seen, now: Instant) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        entry.witness.note(seen);
        let is_foreign = seen.deleted || seen.data_changed;
        let zxid = if is_foreign { seen.zxid } else { seen.created_by };
        if !is_foreign && zxid.is_some() {
            return;
        }
        entry.unseen = Some(match entry.unseen {
            Some(None) => None,
            Some(earlier) if zxid.is_some() => earlier.max(zxid),
            _ => zxid,
        });
        self.advance(path, now);
    }

    /// The incarnation that is held stands.
    fn seen_standing(&mut self, path: &NodePath, read: &Read, held: &Held, holder: StreamId) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        if entry.unseen.is_none() {
            entry.witness = Witness::default();
        }
        if read.stat.mzxid <= held.written.0 {
            return;
        }
        let overwritten = read.data != held.bytes;
        let data = own(&read.data);
        entry.held = Some(Held { bytes: data.clone(), written: Zxid(read.stat.mzxid), ..held.clone() });
        if overwritten {
            self.tell(holder, Notice::Overwritten { path: path.clone(), data, stat: read.stat });
        }
    }

    pub(super) fn verified(&mut self, path: &NodePath, seen: Option<Observed>, now: Instant) {
        let jitter = self.rng.random_range(0.5..1.0);
        let Some(entry) = self.entries.get_mut(path) else { return };
        if !matches!(entry.operation, Some(Operation::Verifying)) {
            return;
        }
        entry.operation = None;
        let (Some(held), Some(holder)) = (entry.held.clone(), entry.holder) else {
            self.advance(path, now);
            return;
        };
        match seen {
            // Mostly the connection was lost, and a resync follows with the next; it may also have been a passing refusal.
            None => {
                entry.unseen = Some(None);
                entry.look_again_at = Some(now + LOOK_AGAIN);
                self.pauses.insert((now + LOOK_AGAIN, path.clone()));
            }
            Some(Observed::Absent) => {
                let pause = entry.pause(now, jitter);
                entry.absent = true;
                if !pause.is_zero() {
                    entry.paused_until = Some(now + pause);
                    self.pauses.insert((now + pause, path.clone()));
                }
            }
            Some(Observed::Standing { read }) => {
                entry.absent = false;
                match Generation(read.stat.czxid).cmp(&held.generation) {
                    Ordering::Greater => {
                        entry.held = None;
                        entry.holder = None;
                        self.lose(path, holder, held.generation, LostReason::TakenOver);
                    }
                    Ordering::Equal => self.seen_standing(path, &read, &held, holder),
                    // The server that was read has not seen our own write yet.
                    Ordering::Less => {}
                }
            }
        }
        self.advance(path, now);
    }
}
