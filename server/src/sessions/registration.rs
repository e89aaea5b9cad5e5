//! One path: its holder, its node in ZooKeeper, and what it needs next: when the node is put back, restored, read again or
//! let go (`idle_step`).
//!
//! Pure: a registration is told what has happened, and answers with steps and effects. The owner of all registrations
//! carries the steps out (`advance`).

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::claims::{Claim, Content, Held, Policy};
use super::dispute::Dispute;
use super::effects::{Effect, NodeRemoval, StreamId};
use super::footprint::Footprint;
use super::stalls::{self, AfterLoss};
use super::streams::{Stream, Streams};
use super::times::{
    FIRST_LEFTOVER_PAUSE, FIRST_PUT_BACK_PAUSE, LONGEST_LEFTOVER_PAUSE, LONGEST_PUT_BACK_PAUSE, SETTLED,
};
use crate::budget::Share;
use crate::types::{Generation, NodePath, SessionId, Zxid};
use crate::value::{EncodedValue, Stamp};
use crate::zk::{ErrorCode, NodeEvents};

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

/// The next step for a path.
#[derive(Debug)]
pub(super) enum PathStep {
    /// Nothing: its operation is under way.
    Wait,
    /// No operation is under way, and no command waits: see [`Registration::idle_step`].
    Idle,
    /// A claim that waited for ZooKeeper is over, because no stream wants it any more. `by` is the stream that asked, and
    /// is told; `is_resumed`: it asked for the incarnation that is held.
    GiveUp { by: Option<StreamId>, is_resumed: bool },
    /// An operator has evicted the path: its holder loses it.
    TakeOut,
    /// A command is carried out.
    Obey(PathCommand),
}

/// The next step for a path that is idle.
#[derive(Debug)]
pub(super) enum IdleStep {
    /// Nothing.
    Rest,
    /// Nothing before this time.
    LookAt(Instant),
    /// A path that no stream holds is forgotten.
    Forget,
    /// Another try to remove a node that no stream holds.
    RemoveLeftover,
    /// A path is forgotten, and its holder loses it, without a word: see [`AfterLoss::LetGo`].
    LetGo { holder: StreamId },
    /// The node is made again, or put right.
    Claim(Claim),
    /// The node is read.
    Verify(Effect),
}

/// The facts besides its own state on which the step of an idle path depends.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) streams: &'a Streams,
    /// The ZooKeeper sessions that live.
    pub(super) standing: &'a HashSet<SessionId>,
    /// Number of times that the watch which covers the path may have missed something.
    pub(super) gaps: u64,
    /// Whether the session of its node ended while this replica was stalled.
    pub(super) expired_during_stall: bool,
    pub(super) now: Instant,
}

/// The state of one path.
#[derive(Debug, Default)]
pub(super) struct Registration {
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

impl Registration {
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
    pub(super) fn is_continuation_of(&self, asked: Generation) -> bool {
        self.first.is_some_and(|first| first <= asked) && Some(asked) <= self.generation()
    }

    /// Marks the node to be read again, after this number of gaps. Returns the read, if it begins now.
    pub(super) fn begin_verify(&mut self, path: &NodePath, gaps: u64) -> Option<Effect> {
        // After a gap there is a connection again, mostly.
        self.look_again = None;
        if self.operation.is_none() && self.held.is_some() && self.holder.is_some() {
            self.unseen = None;
            return Some(self.verify(path, gaps));
        }
        self.unseen = Some(None);
        None
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

    /// The next step of this path.
    pub(super) fn step(&mut self, streams: &Streams, standing: &HashSet<SessionId>) -> PathStep {
        if let Some((by, is_resumed)) = self.stop_unwanted(streams, standing) {
            return PathStep::GiveUp { by, is_resumed };
        }
        if self.operation.is_some() {
            return PathStep::Wait;
        }
        if std::mem::take(&mut self.evicted) {
            return PathStep::TakeOut;
        }
        if let Some(command) = self.commands.pop_front() {
            return PathStep::Obey(command);
        }
        // A path is idle for most of its life: it keeps no memory for later commands.
        self.commands = VecDeque::new();
        PathStep::Idle
    }

    /// Stops the operation under way, if no stream wants it any more. Returns the stream whose claim was waiting for
    /// ZooKeeper, and whether that was to resume the incarnation that is held.
    fn stop_unwanted(&mut self, streams: &Streams, standing: &HashSet<SessionId>) -> Option<(Option<StreamId>, bool)> {
        let is_kept_by = |stream: StreamId| {
            !self.has_goodbye_of(stream) && streams.get(&stream).is_some_and(|stream| !stream.is_closing())
        };
        let is_kept = || self.holder.is_some_and(is_kept_by);
        match &self.operation {
            // The node is to be removed, whatever the read shows.
            Some(Operation::Verifying { .. }) if self.holder.is_some_and(|holder| self.has_goodbye_of(holder)) => {
                self.operation = None;
                self.unseen = Some(None);
            }
            Some(Operation::Waiting(RequestedClaim { by, claim, .. })) if !claim.may_exist(standing) => {
                let is_wanted = match *by {
                    Some(by) => is_kept_by(by) && streams.get(&by).is_some_and(Stream::is_attached),
                    None => is_kept(),
                };
                if !is_wanted {
                    // No node exists, and nobody waits for one: it must not appear when ZooKeeper is back.
                    let by = *by;
                    let is_resumed = matches!(claim.policy, Policy::Resume(own) if self.generation() == Some(own));
                    self.operation = None;
                    return Some((by, is_resumed));
                }
            }
            // The claim may still wait for its turn.
            Some(Operation::Claiming(RequestedClaim { by: None, claim, .. })) if !is_kept() => claim.abandon(),
            _ => {}
        }
        None
    }

    /// The next step of this path, which is idle and has no commands.
    pub(super) fn idle_step(&mut self, path: &NodePath, around: &Surroundings<'_>) -> IdleStep {
        let now = around.now;
        let (Some(held), Some(holder)) = (&self.held, self.holder) else { return self.leftover_step(around) };
        // A stream that is over, or has said goodbye, gives its paths back one by one: this path's turn is still to
        // come.
        let Some(stream) = around.streams.get(&holder).filter(|stream| !stream.is_closing()) else {
            return IdleStep::Rest;
        };
        // The node of a stream that is about to end must not appear again before that.
        let is_overdue = stream.is_overdue(now);
        let decided_at = stalls::decided_at(is_overdue, now);
        let (content, generation, written) = (Content::Exact(held.bytes.clone()), held.generation, held.written);
        if !around.standing.contains(&held.session) {
            let (is_here, is_lost_by_stall) = (stream.is_attached(), around.expired_during_stall);
            return match stalls::after_loss(&mut self.restore_at, is_here, is_overdue, is_lost_by_stall, now) {
                AfterLoss::Wait(at) => IdleStep::LookAt(at),
                AfterLoss::LetGo => IdleStep::LetGo { holder },
                AfterLoss::Restore => IdleStep::Claim(Claim::new(content, Policy::Restore(generation))),
            };
        }
        if self.absent {
            if self.paused_until.is_some_and(|until| until > now) {
                return IdleStep::Rest;
            }
            if is_overdue {
                return IdleStep::LookAt(decided_at);
            }
            let fence_epoch = self.witness.allows_takeover(generation, around.gaps).then_some(held.fence_epoch);
            let policy = Policy::PutBack { generation, session: held.session, fence_epoch };
            self.absent = false;
            self.last_put_back = Some(now);
            return IdleStep::Claim(Claim::new(content, policy));
        }
        if self.look_again.is_none_or(|(at, _)| at <= now)
            && self.unseen.take().is_some_and(|zxid| zxid.is_none_or(|zxid| zxid > written))
        {
            return IdleStep::Verify(self.verify(path, around.gaps));
        }
        // A node that could not be read is not written before it has been read.
        let due = self.dispute.as_ref().and_then(|dispute| dispute.due());
        match due.filter(|due| *due <= now && self.look_again.is_none()) {
            Some(due) if is_overdue => IdleStep::LookAt(due.max(decided_at)),
            Some(_) => IdleStep::Claim(Claim::new(content, Policy::PutRight(generation))),
            None => IdleStep::Rest,
        }
    }

    /// The next step of a path that no stream holds. A node that ZooKeeper refused to delete is removed before the path
    /// is forgotten, if it is time for another try, or if something has happened to it.
    fn leftover_step(&mut self, around: &Surroundings<'_>) -> IdleStep {
        let stands = self.held.as_ref().is_some_and(|held| around.standing.contains(&held.session));
        match self.leftover.as_ref().filter(|_| stands) {
            None => IdleStep::Forget,
            Some(leftover) if leftover.again_at <= around.now || self.unseen.take().is_some() => {
                IdleStep::RemoveLeftover
            }
            Some(_) => IdleStep::Rest,
        }
    }

    /// The read of the node begins.
    fn verify(&mut self, path: &NodePath, gaps: u64) -> Effect {
        self.operation = Some(Operation::Verifying { gaps });
        Effect::Verify { path: path.clone(), connection: self.connection }
    }

    /// A claim for the path begins.
    pub(super) fn begin_claim(
        &mut self,
        path: &NodePath,
        RequestedClaim { by, mut claim, memory }: RequestedClaim,
        standing: &HashSet<SessionId>,
    ) -> Effect {
        let session = self.held.as_ref().map(|held| held.session);
        claim.home = session.filter(|session| standing.contains(session));
        self.operation = Some(Operation::Claiming(RequestedClaim { by, claim: claim.clone(), memory }));
        Effect::Claim { path: path.clone(), by, claim, connection: self.connection }
    }

    /// The claim that a stream's command `set` makes. `generation` is the incarnation that the client asked for.
    pub(super) fn requested(
        &self,
        by: StreamId,
        content: Content,
        generation: Option<Generation>,
        exclusive: bool,
    ) -> Claim {
        let standing = self.generation();
        let policy = match (generation, standing) {
            // The stream's own registration: new data for the same incarnation.
            (None, Some(own)) if self.holder == Some(by) => Policy::Update(own),
            // The incarnation that continues the one which the client asked for, and of which it may not have heard
            // yet.
            (Some(asked), Some(own)) if self.is_continuation_of(asked) => Policy::Resume(own),
            (Some(asked), _) => Policy::Resume(asked),
            (None, _) if exclusive => Policy::Exclusive,
            (None, _) => Policy::TakeOver,
        };
        let mut claim = Claim::new(content, policy);
        if let (Policy::Update(_), Some(held)) | (Policy::Resume(_), Some(held)) = (&claim.policy, &self.held)
            && claim.policy.known() == standing
        {
            claim.first = Some(held.bytes.clone());
        }
        claim
    }

    /// The removal of the node begins, if there is one. `told` is the stream that is told when the node is gone.
    pub(super) fn begin_removal(
        &mut self,
        path: &NodePath,
        told: Option<StreamId>,
        footprint: Option<Footprint>,
        goodbye: Goodbye,
    ) -> Option<Effect> {
        let held = self.held.as_ref()?;
        self.operation = Some(Operation::Removing { told, footprint, _goodbye: goodbye });
        let removal = NodeRemoval { path: path.clone(), generation: held.generation, bytes: held.bytes.len() };
        Some(Effect::Remove { session: held.session, removal, connection: self.connection })
    }

    /// ZooKeeper refuses to remove the node. Returns the stream that is told, if one waits for the removal, and the time
    /// of the next try; `None` if no removal is under way.
    pub(super) fn removal_refused(
        &mut self,
        path: &NodePath,
        code: ErrorCode,
        now: Instant,
        jitter: f64,
    ) -> Option<(Option<StreamId>, Instant)> {
        let Operation::Removing { told, footprint, .. } = self.operation.take()? else { return None };
        let leftover = match &mut self.leftover {
            Some(leftover) => {
                leftover.pause = (leftover.pause * 2).min(LONGEST_LEFTOVER_PAUSE);
                leftover
            }
            None => {
                tracing::warn!(%path, %code, "a registration can't be removed; it is tried again until its session ends");
                let leftover = Leftover { again_at: now, pause: FIRST_LEFTOVER_PAUSE, _footprint: footprint };
                self.leftover.insert(Box::new(leftover))
            }
        };
        leftover.again_at = now + leftover.pause.mul_f64(jitter);
        let again_at = leftover.again_at;
        Some((told, again_at))
    }

    /// Takes the path from its holder, which is returned with the incarnation that it held. Mostly the eviction has
    /// deleted the node; not if it was made again meanwhile.
    pub(super) fn take_from_holder(&mut self) -> Option<(StreamId, Generation)> {
        let taken = self.holder.take().zip(self.generation())?;
        self.absent = false;
        Some(taken)
    }

    /// Takes the claim that waits for ZooKeeper, if there is one.
    pub(super) fn take_waiting(&mut self) -> Option<RequestedClaim> {
        match self.operation.take() {
            Some(Operation::Waiting(claim)) => Some(claim),
            other => {
                self.operation = other;
                None
            }
        }
    }

    /// Hands the registration to `by`, another stream of the same client, which is leaving: `is_leaving`, or its goodbye
    /// waits. Returns the earlier holder, and what it held.
    pub(super) fn adopt_to_give_back(&mut self, by: StreamId, is_leaving: bool) -> Option<(StreamId, Generation)> {
        if !is_leaving && !self.has_goodbye_of(by) {
            return None;
        }
        let earlier = self.holder.filter(|holder| *holder != by).zip(self.generation())?;
        self.holder = Some(by);
        Some(earlier)
    }
}
