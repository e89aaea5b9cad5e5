//! The consequences that operations in ZooKeeper, and changes there, have for a path.

use std::cmp::Ordering;
use std::time::Duration;

use rand::RngExt as _;
use tokio::time::Instant;

use super::claims::{Claim, Claimed, Held, Observed, Policy};
use super::entry::{FIRST_PUT_BACK_PAUSE, Operation, PathCommand, RequestedClaim, Witness};
use super::outbox::{Notice, RegistrationLostReason};
use super::state::{Effect, State, StreamId};
use crate::error::Error;
use crate::types::{Generation, NodePath, SessionId, Stat};
use crate::zk::{NodeEvents, Read};

/// Time for which a node that could not be read is left alone; it doubles with each failure.
const FIRST_LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Longest such pause. With a shorter one an outage costs more, the more is registered. After most outages there is a
/// resync.
const LONGEST_LOOK_AGAIN: Duration = Duration::from_secs(30);

impl State {
    pub(super) fn claimed(&mut self, path: &NodePath, outcome: Claimed, now: Instant) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        let Some(Operation::Claiming(asked)) = entry.operation.take() else { return };
        let has_waited = asked.claim.told_pending;
        let is_answered = !matches!(outcome, Claimed::Unavailable { .. });
        match outcome {
            Claimed::Held { held, stat, adopted } => self.claim_held(path, asked, held, (stat, adopted), now),
            Claimed::TakenOver => self.claim_lost(path, asked),
            Claimed::Refused(error) if asked.claim.is_put_right() => self.not_put_right(path, Some(&error), now),
            Claimed::Unavailable { .. } if asked.claim.is_put_right() => self.not_put_right(path, None, now),
            Claimed::Refused(error) => self.claim_refused(path, asked.by, error, now),
            Claimed::Unavailable { uncertain_create } => self.claim_waits(path, asked, uncertain_create, now),
        }
        if has_waited {
            self.retried(is_answered, now);
        }
        self.advance(path, now);
    }

    fn claim_held(
        &mut self,
        path: &NodePath,
        asked: RequestedClaim,
        held: Held,
        (stat, adopted): (Stat, bool),
        now: Instant,
    ) {
        let RequestedClaim { by, claim, memory } = asked;
        let (generation, bytes) = (held.generation, held.bytes.len());
        let before = self.hold(path, Some(held));
        let Some(entry) = self.entries.get_mut(path) else { return };
        entry.first = match claim.policy {
            Policy::TakeOver | Policy::Exclusive => Some(generation),
            Policy::Resume(asked) => {
                let is_known = before.as_ref().is_some_and(|before| asked <= before.generation);
                Some(entry.first.filter(|_| is_known).unwrap_or(asked).min(asked))
            }
            Policy::Update(_) | Policy::Restore(_) | Policy::PutBack { .. } | Policy::PutRight(_) => entry.first,
        };
        if claim.is_put_right() {
            return self.data_right(path, stat, generation, now);
        }
        if let Some(dispute) = &mut entry.dispute {
            dispute.end(now);
        }
        entry.absent = false;
        entry.leftover = None;
        entry.paused_until = None;
        entry.restore_at = None;
        if adopted {
            // The node was read on one server. Its watch may be on another, and may have begun before.
            entry.unseen = Some(None);
        }
        let is_new = before.as_ref().map(|before| before.generation) != Some(generation);
        let registered = |restored| Notice::Registered { path: path.clone(), generation, stat, restored, adopted };
        let Some(by) = by else {
            if let Some(holder) = entry.holder.filter(|_| is_new) {
                self.tell(holder, registered(true));
            }
            return;
        };
        let earlier = entry.holder.replace(by).filter(|holder| *holder != by);
        if let Some(stream) = self.streams.get_mut(&by) {
            if let Some((footprint, memory)) = stream.footprint(path).as_mut().zip(memory) {
                footprint.keep(memory, path, bytes);
            }
        } else {
            entry.push(PathCommand::Drop { by, footprint: None, goodbye: self.goodbyes.another() });
        }
        if let Some((holder, before)) = earlier.zip(before) {
            self.lose(path, holder, before.generation);
        }
        self.tell(by, registered(false));
    }

    /// A claim waits: ZooKeeper could not be asked, or there was no room.
    fn claim_waits(
        &mut self,
        path: &NodePath,
        asked: RequestedClaim,
        uncertain_create: Option<SessionId>,
        now: Instant,
    ) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        let RequestedClaim { by, mut claim, memory } = asked;
        let is_first = !std::mem::replace(&mut claim.told_pending, true);
        if let Some(session) = uncertain_create {
            claim.uncertain_creates.add(session);
        }
        entry.operation = Some(Operation::Waiting(RequestedClaim { by, claim, memory }));
        self.waiting.add(path, now);
        if let Some(stream) = by.filter(|_| is_first) {
            self.tell(stream, Notice::Pending { path: path.clone() });
        }
    }

    /// A later incarnation exists, which the claim may not displace.
    fn claim_lost(&mut self, path: &NodePath, asked: RequestedClaim) {
        let RequestedClaim { by, claim, memory } = asked;
        let Some(entry) = self.entries.get_mut(path) else { return };
        let known = entry.generation();
        let holder_concerned = by.is_none() || by == entry.holder;
        if holder_concerned {
            let holder = entry.holder.take();
            self.hold(path, None);
            match (holder.zip(known), &claim.policy) {
                // The path is claimed again right away, and goes on counting for its stream.
                (Some((holder, generation)), Policy::Update(_)) => self.tell_of_takeover(path, holder, generation),
                (Some((holder, generation)), _) => self.lose(path, holder, generation),
                (None, _) => {}
            }
        } else {
            // A node that is later than the claim's generation may be later than the one that we hold as well.
            entry.unseen = Some(None);
        }
        match (by, claim.policy) {
            // New data for a registration that is no longer ours: a `set` without generation takes over, as it would
            // have in the first place.
            (Some(by), Policy::Update(_)) => {
                let command = Claim::new(claim.content, Policy::TakeOver);
                self.begin_claim(path, Some(by), command, memory);
            }
            (Some(by), Policy::Resume(generation)) if !(holder_concerned && known.is_some()) => {
                self.lose(path, by, generation);
            }
            _ => {}
        }
    }

    fn claim_refused(&mut self, path: &NodePath, by: Option<StreamId>, error: Error, now: Instant) {
        let jitter = self.rng.random_range(0.5..1.0);
        let Some(entry) = self.entries.get_mut(path) else { return };
        // Another stream that holds the path may not know yet.
        entry.evicted |= matches!(error, Error::Evicted { .. });
        if let Some(by) = by {
            if entry.holder != Some(by) {
                self.drop_path(path, by);
            }
            self.reject(by, path, error);
            return;
        }
        if entry.evicted {
            return;
        }
        // No client has asked for the path just now: its holder relies on it, and the refusal may pass.
        let pause = entry.pause(now, jitter).max(FIRST_PUT_BACK_PAUSE);
        if pause == FIRST_PUT_BACK_PAUSE {
            tracing::warn!(%path, %error, "a registration can't be restored; it is tried again");
        }
        entry.absent = true;
        entry.last_put_back = Some(now);
        entry.paused_until = Some(now + pause);
        entry.restore_at = Some(now + pause);
        self.pauses.insert((now + pause, path.clone()));
    }

    /// A later incarnation has taken the place of the one that a stream held.
    pub(super) fn lose(&mut self, path: &NodePath, stream: StreamId, generation: Generation) {
        self.drop_path(path, stream);
        self.tell_of_takeover(path, stream, generation);
        self.forget_if_gone(stream);
    }

    fn tell_of_takeover(&mut self, path: &NodePath, stream: StreamId, generation: Generation) {
        // Also tells a stream whose ttl is over, and whose paths are removed one by one: this path's turn is still to
        // come.
        let notice = Notice::Lost { path: path.clone(), generation, reason: RegistrationLostReason::TakenOver };
        self.effects.push(Effect::Tell { stream, notice });
    }

    pub(super) fn removed(&mut self, path: &NodePath, now: Instant) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        let Some(Operation::Removing { told, .. }) = entry.operation.take() else { return };
        self.hold(path, None);
        if let Some(stream) = told {
            self.tell(stream, Notice::Unregistered { path: path.clone() });
        }
        self.advance(path, now);
    }

    /// Something happened to a node. It is read again, unless this replica did it. Mostly it did if the node appeared;
    /// where ZooKeeper does not report the transaction, before 3.9, only a read can tell.
    pub(super) fn changed(&mut self, path: &NodePath, seen: NodeEvents, now: Instant) {
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

    /// The incarnation that is held still exists.
    fn seen_standing(&mut self, path: &NodePath, read: &Read, holder: StreamId, gaps: u64, now: Instant) {
        let Some(entry) = self.entries.get_mut(path) else { return };
        if entry.unseen.is_none() {
            entry.witness = Witness::seen(gaps);
        }
        if entry.held.as_ref().is_some_and(|held| read.stat.mzxid > held.written.0) {
            self.data_seen(path, read, holder, now);
        }
    }

    pub(super) fn verified(&mut self, path: &NodePath, seen: Option<Observed>, now: Instant) {
        let jitter = self.rng.random_range(0.5..1.0);
        let Some(entry) = self.entries.get_mut(path) else { return };
        let Some(Operation::Verifying { gaps }) = entry.operation else { return };
        entry.operation = None;
        let (Some(held), Some(holder)) = (entry.held.clone(), entry.holder) else {
            self.advance(path, now);
            return;
        };
        if seen.is_some() {
            entry.look_again = None;
        }
        match seen {
            // Mostly the connection was lost, and a resync follows on the next one. It may also have been a passing
            // refusal.
            None => {
                let pause = entry.look_again.map_or(FIRST_LOOK_AGAIN, |(_, pause)| LONGEST_LOOK_AGAIN.min(pause * 2));
                entry.unseen = Some(None);
                entry.look_again = Some((now + pause, pause));
                self.pauses.insert((now + pause, path.clone()));
            }
            // An eviction that was over before the registration does not concern it: its record may not be removed yet.
            Some(Observed::Evicted { written }) if written.0 > held.generation.0 => entry.evicted = true,
            Some(Observed::Absent | Observed::Evicted { .. }) => {
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
                        entry.holder = None;
                        self.hold(path, None);
                        self.lose(path, holder, held.generation);
                    }
                    Ordering::Equal => self.seen_standing(path, &read, holder, gaps, now),
                    // The server that was read has not seen our own write yet.
                    Ordering::Less => {}
                }
            }
        }
        self.advance(path, now);
    }
}
