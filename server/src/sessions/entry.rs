//! The life of one path: its holder, its node in ZooKeeper, and its next operation.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use tokio::time::Instant;

use super::claims::{Claim, Content, Fresh, Held, Policy};
use super::disputes::Dispute;
use super::footprint::Footprint;
use super::outbox::{Notice, RegistrationLostReason};
use super::state::{Effect, State, StreamId};
use super::streams::Stream;
use super::upkeep::NodeRemoval;
use crate::budget::Share;
use crate::error::Error;
use crate::types::{Generation, NodePath, Zxid};
use crate::value::{EncodedValue, Stamp};
use crate::zk::{ErrorCode, NodeEvents};

/// Pause before the second put-back of a registration that is deleted again and again; it doubles from there.
pub(super) const FIRST_PUT_BACK_PAUSE: Duration = Duration::from_millis(100);
/// Longest such pause.
const LONGEST_PUT_BACK_PAUSE: Duration = Duration::from_secs(30);
/// Time in which the ends of streams that have arrived may be read, before the registrations of a lost ZooKeeper
/// session are made again: a replica that was itself stopped finds such ends in its sockets.
const RESTORE_DELAY: Duration = Duration::from_millis(200);
/// Time after which a put-back is forgotten: a registration that existed this long after it was put back is put back at
/// once the next time.
const SETTLED: Duration = Duration::from_secs(120);

/// Pause before the next try to delete a node that ZooKeeper refused to delete; it doubles from there.
const FIRST_LEFTOVER_PAUSE: Duration = Duration::from_secs(1);
/// Longest such pause. With a shorter one ZooKeeper would refuse thousands of deletes all the time.
const LONGEST_LEFTOVER_PAUSE: Duration = Duration::from_secs(600);

/// A stream's command for a path.
#[derive(Debug)]
pub(super) enum PathCommand {
    /// To hold the path.
    Set {
        by: StreamId,
        value: EncodedValue,
        stamp: Stamp,
        generation: Option<Generation>,
        exclusive: bool,
        /// The command's share of the account.
        memory: Share,
    },
    /// To give the path back, and be told.
    Unset {
        by: StreamId,
        /// The path's share of the account, if the stream no longer has it.
        footprint: Option<Footprint>,
        /// The command's share of the account, while it waits.
        _memory: Option<Share>,
        goodbye: Goodbye,
    },
    /// The stream is over.
    Drop {
        by: StreamId,
        /// As in [`PathCommand::Unset`].
        footprint: Option<Footprint>,
        goodbye: Goodbye,
    },
}

/// Marks that a path is to be removed, or is being removed, for as long as this exists.
#[derive(Debug)]
pub(super) struct Goodbye(#[expect(dead_code, reason = "it is counted by its clones")] Arc<()>);

/// Counts the paths that are still to be removed.
#[derive(Debug, Default)]
pub(super) struct Goodbyes(Arc<()>);

impl Goodbyes {
    pub(super) fn another(&self) -> Goodbye {
        Goodbye(self.0.clone())
    }

    pub(super) fn is_empty(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl PathCommand {
    fn is_goodbye_of(&self, stream: StreamId) -> bool {
        matches!(self, Self::Unset { by, .. } | Self::Drop { by, .. } if *by == stream)
    }
}

/// The one operation that is under way for a path.
#[derive(Debug)]
pub(super) enum Operation {
    /// A claim that is under way.
    Claiming(RequestedClaim),
    /// A claim that waits for ZooKeeper.
    Waiting(RequestedClaim),
    Removing {
        told: Option<StreamId>,
        /// The path's share of the account until the node is gone.
        footprint: Option<Footprint>,
        _goodbye: Goodbye,
    },
    /// `gaps` is the number of gaps before the node is read; see [`Witness`].
    Verifying { gaps: u64 },
}

/// A claim, and the stream for which it is made.
#[derive(Debug)]
pub(super) struct RequestedClaim {
    /// The stream that asked; `None` when a registration is restored.
    pub(super) by: Option<StreamId>,
    pub(super) claim: Claim,
    /// The request's share of the account.
    pub(super) memory: Option<Share>,
}

/// A node that no stream holds any more, and that ZooKeeper refuses to delete. It exists until its session ends, or
/// until another try succeeds.
#[derive(Debug)]
pub(super) struct Leftover {
    again_at: Instant,
    pause: Duration,
    /// The path's share of the account until the node is gone.
    _footprint: Option<Footprint>,
}

/// Distinguishes a delete by a foreign program from a takeover, whose delete and create come together.
#[derive(Debug, Default)]
pub(super) struct Witness {
    /// The last create that the watch reported; `Some(None)` if ZooKeeper does not report its transaction.
    created: Option<Option<Zxid>>,
    /// Number of gaps that the parent's watch had when the node was last seen to exist. Changes in a later gap may have
    /// been missed.
    gaps: u64,
}

impl Witness {
    pub(super) fn note(&mut self, seen: NodeEvents) {
        if seen.created {
            self.created = Some(match (self.created, seen.created_by) {
                (None, by) => by,
                (Some(Some(earlier)), Some(by)) => Some(earlier.max(by)),
                (Some(_), _) => None,
            });
        }
    }

    /// The node was seen to exist, after this number of gaps.
    pub(super) fn seen(gaps: u64) -> Self {
        Self { created: None, gaps }
    }

    /// Whether this incarnation, which is gone, may have been taken over. `gaps` is the number of gaps by now.
    fn allows_takeover(&self, generation: Generation, gaps: u64) -> bool {
        let is_later = |by: Option<Zxid>| by.is_none_or(|by| by.0 > generation.0);
        self.gaps != gaps || self.created.is_some_and(is_later)
    }
}

/// The state of one path.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// The stream that holds it.
    pub(super) holder: Option<StreamId>,
    /// The node in ZooKeeper, as far as this replica knows.
    pub(super) held: Option<Held>,
    /// The first incarnation that the present one continues, by being resumed, restored or put back. A client may not
    /// have heard of the later ones yet.
    pub(super) first: Option<Generation>,
    pub(super) operation: Option<Operation>,
    commands: VecDeque<PathCommand>,
    /// Set if something happened to the node that has not been read yet; with its transaction, if that is known.
    pub(super) unseen: Option<Option<Zxid>>,
    /// Whether an operator has evicted the path, and its holder has not been told yet.
    pub(super) evicted: bool,
    /// Whether the node is to be put back.
    pub(super) absent: bool,
    put_backs: u32,
    pub(super) last_put_back: Option<Instant>,
    /// The node is not put back before this time.
    pub(super) paused_until: Option<Instant>,
    /// The node could not be read: the time before which it is not read again, and the pause that ends then.
    pub(super) look_again: Option<(Instant, Duration)>,
    /// The path is not registered again before this time, because its ZooKeeper session was lost.
    pub(super) restore_at: Option<Instant>,
    /// Set once another program has written into the node.
    pub(super) dispute: Option<Box<Dispute>>,
    /// Set while ZooKeeper refuses to delete the node, which no stream holds any more.
    pub(super) leftover: Option<Box<Leftover>>,
    /// The connection of the stream that last asked for the path, whose turn the path's operations take.
    pub(super) connection: u64,
    pub(super) witness: Witness,
}

impl Entry {
    /// Maximum number of commands that wait for one path.
    pub(super) const COMMANDS: usize = 1024;

    pub(super) fn push(&mut self, command: PathCommand) {
        self.commands.push_back(command);
    }

    /// Whether no further request finds a place. The end of a stream always does.
    pub(super) fn is_full(&self) -> bool {
        self.commands.len() >= Self::COMMANDS
    }

    /// Whether a request has to wait for an operation.
    pub(super) fn is_busy(&self) -> bool {
        self.operation.is_some()
    }

    /// Whether requests wait.
    pub(super) fn has_commands(&self) -> bool {
        !self.commands.is_empty()
    }

    /// Whether a request of this stream for the path waits.
    pub(super) fn is_asked_for_by(&self, stream: StreamId) -> bool {
        self.commands.iter().any(|command| matches!(command, PathCommand::Set { by, .. } if *by == stream))
    }

    /// Whether this stream's goodbye to the path waits.
    fn has_goodbye_of(&self, stream: StreamId) -> bool {
        self.commands.iter().any(|command| command.is_goodbye_of(stream))
    }

    pub(super) fn generation(&self) -> Option<Generation> {
        self.held.as_ref().map(|held| held.generation)
    }

    /// Whether the node is this incarnation, or continues it.
    fn is_continuation_of(&self, asked: Generation) -> bool {
        self.first.is_some_and(|first| first <= asked) && Some(asked) <= self.generation()
    }

    /// Marks the node to be read again, after this number of gaps; `true` if the caller has to read it now.
    pub(super) fn begin_verify(&mut self, gaps: u64) -> bool {
        let idle = self.operation.is_none() && self.held.is_some() && self.holder.is_some();
        // After a gap there is a connection again, mostly.
        self.look_again = None;
        if idle {
            self.unseen = None;
            self.operation = Some(Operation::Verifying { gaps });
        } else {
            self.unseen = Some(None);
        }
        idle
    }

    /// The pause before the node is put back now.
    pub(super) fn pause(&mut self, now: Instant, jitter: f64) -> Duration {
        if self.last_put_back.is_some_and(|last| now > last + SETTLED) {
            self.put_backs = 0;
        }
        let doublings = self.put_backs.saturating_sub(1).min(16);
        let pause = if self.put_backs == 0 { Duration::ZERO } else { FIRST_PUT_BACK_PAUSE * 2_u32.pow(doublings) };
        self.put_backs += 1;
        pause.min(LONGEST_PUT_BACK_PAUSE).mul_f64(jitter)
    }
}

impl State {
    /// Begins the next operation for a path, if none is under way.
    pub(super) fn advance(&mut self, path: &NodePath, now: Instant) {
        loop {
            self.stop_unwanted(path);
            let Some(entry) = self.entries.get_mut(path) else { return };
            if entry.operation.is_some() {
                return;
            }
            if std::mem::take(&mut entry.evicted) {
                self.take_out(path);
                continue;
            }
            let Some(command) = entry.commands.pop_front() else {
                // A path is idle for most of its life: it keeps no memory for later commands.
                entry.commands = VecDeque::new();
                break;
            };
            match command {
                PathCommand::Set { by, value, stamp, generation, exclusive, memory } => {
                    let content = Content::Fresh(Arc::new(Fresh { value, stamp }));
                    self.begin_set(path, by, content, generation, exclusive, memory);
                }
                PathCommand::Unset { by, footprint, goodbye, .. } => self.give_back(path, by, true, footprint, goodbye),
                PathCommand::Drop { by, footprint, goodbye } => self.give_back(path, by, false, footprint, goodbye),
            }
        }
        self.advance_unasked(path, now);
    }

    /// Stops the operation under way for a path, if no stream wants it any more.
    fn stop_unwanted(&mut self, path: &NodePath) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        let is_kept_by = |stream: StreamId| {
            !entry.has_goodbye_of(stream) && self.streams.get(&stream).is_some_and(|stream| !stream.is_closing())
        };
        let is_kept = || entry.holder.is_some_and(is_kept_by);
        match &entry.operation {
            // The node is to be removed, whatever the read shows.
            Some(Operation::Verifying { .. }) if entry.holder.is_some_and(|holder| entry.has_goodbye_of(holder)) => {
                entry.operation = None;
                entry.unseen = Some(None);
            }
            Some(Operation::Waiting(RequestedClaim { by, claim, .. })) if !claim.may_exist(&self.standing) => {
                let is_wanted = match *by {
                    Some(by) => is_kept_by(by) && self.streams.get(&by).is_some_and(Stream::is_attached),
                    None => is_kept(),
                };
                if !is_wanted {
                    // No node exists, and nobody waits for one: it must not appear when ZooKeeper is back.
                    let by = *by;
                    let is_resumed = matches!(claim.policy, Policy::Resume(own) if entry.generation() == Some(own));
                    entry.operation = None;
                    self.waiting.remove(path);
                    if let Some(by) = by {
                        self.reject(by, path, Error::BackendUnavailable);
                        if is_resumed {
                            self.adopt_to_give_back(path, by);
                        }
                    }
                }
            }
            // The claim may still wait for its turn.
            Some(Operation::Claiming(RequestedClaim { by: None, claim, .. })) if !is_kept() => claim.abandon(),
            _ => {}
        }
    }

    /// A client has come back for a registration that exists here, and has said goodbye before ZooKeeper could be
    /// asked, or before its request had begun. The registration of its earlier stream ends with that goodbye.
    fn adopt_to_give_back(&mut self, path: &NodePath, by: StreamId) {
        // The stream may give its paths back one by one, and this path's turn may be still to come.
        let is_leaving = self.streams.get(&by).is_none_or(Stream::is_closing);
        let Some(entry) = self.entries.get_mut(path) else { return };
        if !is_leaving && !entry.has_goodbye_of(by) {
            return;
        }
        let Some((earlier, generation)) = entry.holder.filter(|holder| *holder != by).zip(entry.generation()) else {
            return;
        };
        entry.holder = Some(by);
        self.lose(path, earlier, generation);
    }

    /// Does what an idle path without commands needs.
    fn advance_unasked(&mut self, path: &NodePath, now: Instant) {
        let gaps = self.gaps(path);
        let Some(entry) = self.entries.get_mut(path) else { return };
        let (Some(held), Some(holder)) = (&entry.held, entry.holder) else {
            self.remove_leftover(path, now);
            return;
        };
        // A stream that is over, or has said goodbye, gives its paths back one by one: this path's turn is still to
        // come.
        let Some(stream) = self.streams.get(&holder).filter(|stream| !stream.is_closing()) else { return };
        let is_here = stream.is_attached();
        // The stream is about to end, unless a message of its client is still to be read. The node must not appear
        // again before that.
        let is_overdue = stream.is_overdue(now);
        let decided_at = if is_overdue { now + RESTORE_DELAY } else { now };
        let (content, generation, written) = (Content::Exact(held.bytes.clone()), held.generation, held.written);
        if !self.standing.contains(&held.session) {
            let at = decided_at.max(*entry.restore_at.get_or_insert(now + RESTORE_DELAY));
            if at > now {
                self.pauses.insert((at, path.clone()));
                return;
            }
            entry.restore_at = None;
            if !is_here && self.nodes.get(&held.session).is_some_and(|nodes| nodes.expired_during_stall) {
                self.let_go(path, holder);
                return;
            }
            self.begin_claim(path, None, Claim::new(content, Policy::Restore(generation)), None);
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
            let fence_epoch = entry.witness.allows_takeover(generation, gaps).then_some(held.fence_epoch);
            let policy = Policy::PutBack { generation, session: held.session, fence_epoch };
            self.begin_claim(path, None, Claim::new(content, policy), None);
        } else if entry.look_again.is_none_or(|(at, _)| at <= now)
            && entry.unseen.take().is_some_and(|zxid| zxid.is_none_or(|zxid| zxid > written))
        {
            entry.operation = Some(Operation::Verifying { gaps });
            let connection = entry.connection;
            self.effects.push(Effect::Verify { path: path.clone(), connection });
        } else if entry.look_again.is_none()
            && let Some(due) = entry.dispute.as_ref().and_then(|dispute| dispute.due()).filter(|due| *due <= now)
        {
            // A node that could not be read is not written before it has been read.
            if is_overdue {
                self.pauses.insert((due.max(decided_at), path.clone()));
            } else {
                self.put_right(path);
            }
        }
    }

    /// Forgets a path that no stream holds. A node that ZooKeeper refused to delete is removed first, if it is time for
    /// another try, or if something has happened to it.
    fn remove_leftover(&mut self, path: &NodePath, now: Instant) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        let stands = entry.held.as_ref().is_some_and(|held| self.standing.contains(&held.session));
        let Some(leftover) = entry.leftover.as_ref().filter(|_| stands) else {
            self.forget(path);
            return;
        };
        if leftover.again_at <= now || entry.unseen.take().is_some() {
            self.begin_removal(path, None, None, self.goodbyes.another());
        }
    }

    /// ZooKeeper refuses to remove a node that was given back. The holder is told that it is unregistered, and the
    /// delete is tried again.
    pub(super) fn removal_refused(&mut self, path: &NodePath, code: ErrorCode, now: Instant) {
        let jitter = self.rng.random_range(0.5..1.0);
        let Some(entry) = self.entries.get_mut(path) else { return };
        let Some(Operation::Removing { told, footprint, .. }) = entry.operation.take() else { return };
        if let Some(leftover) = &mut entry.leftover {
            leftover.pause = (leftover.pause * 2).min(LONGEST_LEFTOVER_PAUSE);
        } else {
            tracing::warn!(%path, %code, "a registration can't be removed; it is tried again until its session ends");
            entry.leftover =
                Some(Box::new(Leftover { again_at: now, pause: FIRST_LEFTOVER_PAUSE, _footprint: footprint }));
        }
        if let Some(leftover) = &mut entry.leftover {
            leftover.again_at = now + leftover.pause.mul_f64(jitter);
            self.pauses.insert((leftover.again_at, path.clone()));
        }
        if let Some(stream) = told {
            self.tell(stream, Notice::Unregistered { path: path.clone() });
        }
        self.advance(path, now);
    }

    /// A replica that was stopped for that long is as good as one that died. Its client, which is no longer here, has
    /// come back elsewhere, and may have ended there, or will come back.
    fn let_go(&mut self, path: &NodePath, holder: StreamId) {
        self.drop_path(path, holder);
        self.forget(path);
        self.forget_if_gone(holder);
    }

    pub(super) fn begin_claim(
        &mut self,
        path: &NodePath,
        by: Option<StreamId>,
        mut claim: Claim,
        memory: Option<Share>,
    ) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        let connection = entry.connection;
        let session = entry.held.as_ref().map(|held| held.session);
        claim.home = session.filter(|session| self.standing.contains(session));
        entry.operation = Some(Operation::Claiming(RequestedClaim { by, claim: claim.clone(), memory }));
        self.effects.push(Effect::Claim { path: path.clone(), by, claim, connection });
    }

    fn begin_set(
        &mut self,
        path: &NodePath,
        by: StreamId,
        content: Content,
        generation: Option<Generation>,
        exclusive: bool,
        memory: Share,
    ) {
        // A client that is gone, with or without a ttl, may have registered elsewhere meanwhile. If not, it will ask
        // again.
        let Some(stream) = self.streams.get_mut(&by).filter(|stream| stream.is_attached()) else {
            let entry = self.entries.get(path);
            if generation.zip(entry).is_some_and(|(asked, entry)| entry.is_continuation_of(asked)) {
                self.adopt_to_give_back(path, by);
            }
            return;
        };
        let account = stream.account.clone();
        let footprint = stream.footprint(path);
        if footprint.is_none() {
            match Footprint::take(&account, path) {
                Ok(taken) => *footprint = Some(taken),
                Err(error) => {
                    self.drop_path(path, by);
                    self.reject(by, path, error);
                    return;
                }
            }
        }
        let Some(entry) = self.entries.get_mut(path) else { return };
        entry.connection = account.id();
        let standing = entry.generation();
        let policy = match (generation, standing) {
            // The stream's own registration: new data for the same incarnation.
            (None, Some(own)) if entry.holder == Some(by) => Policy::Update(own),
            // The incarnation that continues the one which the client asked for, and of which it may not have heard
            // yet.
            (Some(asked), Some(own)) if entry.is_continuation_of(asked) => Policy::Resume(own),
            (Some(asked), _) => Policy::Resume(asked),
            (None, _) if exclusive => Policy::Exclusive,
            (None, _) => Policy::TakeOver,
        };
        let mut claim = Claim::new(content, policy);
        if let (Policy::Update(_), Some(held)) | (Policy::Resume(_), Some(held)) = (&claim.policy, &entry.held)
            && claim.policy.known() == standing
        {
            claim.first = Some(held.bytes.clone());
        }
        self.begin_claim(path, Some(by), claim, Some(memory));
    }

    /// `by` no longer wants the path. `footprint` is the path's share of the account, if the stream no longer has it.
    fn give_back(&mut self, path: &NodePath, by: StreamId, tell: bool, footprint: Option<Footprint>, goodbye: Goodbye) {
        let told = tell.then_some(by);
        let footprint = self.drop_path(path, by).or(footprint);
        let Some(entry) = self.entries.get_mut(path) else { return };
        if entry.holder == Some(by) {
            entry.holder = None;
            if entry.held.is_some() {
                self.begin_removal(path, told, footprint, goodbye);
                return;
            }
        }
        if let Some(stream) = told {
            self.tell(stream, Notice::Unregistered { path: path.clone() });
        }
    }

    fn begin_removal(
        &mut self,
        path: &NodePath,
        told: Option<StreamId>,
        footprint: Option<Footprint>,
        goodbye: Goodbye,
    ) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        let Some(held) = &entry.held else { return };
        entry.operation = Some(Operation::Removing { told, footprint, _goodbye: goodbye });
        let (session, connection) = (held.session, entry.connection);
        let removal = NodeRemoval { path: path.clone(), generation: held.generation, bytes: held.bytes.len() };
        self.effects.push(Effect::Remove { session, removal, connection });
    }

    /// An operator has evicted a path: its holder, if there is one, loses it.
    pub(super) fn evicted(&mut self, path: &NodePath, now: Instant) {
        if let Some(entry) = self.entries.get_mut(path) {
            entry.evicted = true;
            self.advance(path, now);
        }
    }

    /// Takes a path from its holder. Mostly the eviction has deleted the node; not if it was made again meanwhile.
    fn take_out(&mut self, path: &NodePath) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        let (Some(generation), Some(holder)) = (entry.generation(), entry.holder.take()) else { return };
        entry.absent = false;
        let footprint = self.drop_path(path, holder);
        let notice = Notice::Lost { path: path.clone(), generation, reason: RegistrationLostReason::Evicted };
        // Also tells a stream whose paths are removed one by one: this path's turn is still to come.
        self.effects.push(Effect::Tell { stream: holder, notice });
        self.begin_removal(path, None, footprint, self.goodbyes.another());
        self.forget_if_gone(holder);
    }

    /// Tries a claim again that waited for ZooKeeper.
    pub(super) fn retry(&mut self, path: &NodePath) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        match entry.operation.take() {
            Some(Operation::Waiting(RequestedClaim { by, claim, memory })) => {
                self.waiting.begun();
                self.begin_claim(path, by, claim, memory);
            }
            other => entry.operation = other,
        }
    }
}
