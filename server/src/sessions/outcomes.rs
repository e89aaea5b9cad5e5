//! The consequences that operations in ZooKeeper, and changes there, have for a path.

use std::cmp::Ordering;

use rand::RngExt as _;
use tokio::time::Instant;

use super::claims::{Claim, Claimed, Held, Observed, Policy};
use super::dispute::Dispute;
use super::effects::{Effect, StreamId};
use super::outbox::{Notice, RegistrationLostReason};
use super::registration::{Operation, PathCommand, RequestedClaim, Witness};
use super::state::State;
use super::times::{FIRST_LOOK_AGAIN, FIRST_PUT_BACK_PAUSE, LONGEST_LOOK_AGAIN};
use crate::error::Error;
use crate::types::{Generation, NodePath, SessionId, Stat, Zxid};
use crate::value::own;
use crate::zk::{NodeEvents, Read};

impl State {
    pub(super) fn claimed(&mut self, path: &NodePath, outcome: Claimed, now: Instant) {
        let Some(registration) = self.registrations.get_mut(path) else { return };
        let Some(Operation::Claiming(asked)) = registration.operation.take() else { return };
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
        let Some(registration) = self.registrations.get_mut(path) else { return };
        registration.first = match claim.policy {
            Policy::TakeOver | Policy::Exclusive => Some(generation),
            Policy::Resume(asked) => {
                let is_known = before.as_ref().is_some_and(|before| asked <= before.generation);
                Some(registration.first.filter(|_| is_known).unwrap_or(asked).min(asked))
            }
            Policy::Update(_) | Policy::Restore(_) | Policy::PutBack { .. } | Policy::PutRight(_) => registration.first,
        };
        if claim.is_put_right() {
            return self.data_right(path, stat, generation, now);
        }
        if let Some(dispute) = &mut registration.dispute {
            dispute.end(now);
        }
        registration.absent = false;
        registration.leftover = None;
        registration.paused_until = None;
        registration.restore_at = None;
        if adopted {
            // The node was read on one server. Its watch may be on another, and may have begun before.
            registration.unseen = Some(None);
        }
        let is_new = before.as_ref().map(|before| before.generation) != Some(generation);
        let registered = |restored| Notice::Registered { path: path.clone(), generation, stat, restored, adopted };
        let Some(by) = by else {
            if let Some(holder) = registration.holder.filter(|_| is_new) {
                self.tell(holder, registered(true));
            }
            return;
        };
        let earlier = registration.holder.replace(by).filter(|holder| *holder != by);
        if let Some(stream) = self.streams.get_mut(&by) {
            if let Some((footprint, memory)) = stream.footprint(path).as_mut().zip(memory) {
                footprint.keep(memory, path, bytes);
            }
        } else {
            registration.push(PathCommand::Drop { by, footprint: None, goodbye: self.goodbyes.another() });
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
        let Some(registration) = self.registrations.get_mut(path) else { return };
        let RequestedClaim { by, mut claim, memory } = asked;
        let is_first = !std::mem::replace(&mut claim.told_pending, true);
        if let Some(session) = uncertain_create {
            claim.uncertain_creates.add(session);
        }
        registration.operation = Some(Operation::Waiting(RequestedClaim { by, claim, memory }));
        self.waiting.add(path, now);
        if let Some(stream) = by.filter(|_| is_first) {
            self.tell(stream, Notice::Pending { path: path.clone() });
        }
    }

    /// A later incarnation exists, which the claim may not displace.
    fn claim_lost(&mut self, path: &NodePath, asked: RequestedClaim) {
        let RequestedClaim { by, claim, memory } = asked;
        let Some(registration) = self.registrations.get_mut(path) else { return };
        let known = registration.generation();
        let holder_concerned = by.is_none() || by == registration.holder;
        if holder_concerned {
            let holder = registration.holder.take();
            self.hold(path, None);
            match (holder.zip(known), &claim.policy) {
                // The path is claimed again right away, and goes on counting for its stream.
                (Some((holder, generation)), Policy::Update(_)) => self.tell_of_takeover(path, holder, generation),
                (Some((holder, generation)), _) => self.lose(path, holder, generation),
                (None, _) => {}
            }
        } else {
            // A node that is later than the claim's generation may be later than the one that we hold as well.
            registration.unseen = Some(None);
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
        let Some(registration) = self.registrations.get_mut(path) else { return };
        // Another stream that holds the path may not know yet.
        registration.evicted |= matches!(error, Error::Evicted { .. });
        if let Some(by) = by {
            if registration.holder != Some(by) {
                self.drop_path(path, by);
            }
            self.reject(by, path, error);
            return;
        }
        if registration.evicted {
            return;
        }
        // No client has asked for the path just now: its holder relies on it, and the refusal may pass.
        let pause = registration.pause(now, jitter).max(FIRST_PUT_BACK_PAUSE);
        if pause == FIRST_PUT_BACK_PAUSE {
            tracing::warn!(%path, %error, "a registration can't be restored; it is tried again");
        }
        registration.absent = true;
        registration.last_put_back = Some(now);
        registration.paused_until = Some(now + pause);
        registration.restore_at = Some(now + pause);
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
        let Some(registration) = self.registrations.get_mut(path) else { return };
        let Some(Operation::Removing { told, .. }) = registration.operation.take() else { return };
        self.hold(path, None);
        if let Some(stream) = told {
            self.tell(stream, Notice::Unregistered { path: path.clone() });
        }
        self.advance(path, now);
    }

    /// Something happened to a node. It is read again, unless this replica did it. Mostly it did if the node appeared;
    /// where ZooKeeper does not report the transaction, before 3.9, only a read can tell.
    pub(super) fn changed(&mut self, path: &NodePath, seen: NodeEvents, now: Instant) {
        let Some(registration) = self.registrations.get_mut(path) else { return };
        registration.witness.note(seen);
        let is_foreign = seen.deleted || seen.data_changed;
        let zxid = if is_foreign { seen.zxid } else { seen.created_by };
        if !is_foreign && zxid.is_some() {
            return;
        }
        registration.unseen = Some(match registration.unseen {
            Some(None) => None,
            Some(earlier) if zxid.is_some() => earlier.max(zxid),
            _ => zxid,
        });
        self.advance(path, now);
    }

    /// The incarnation that is held still exists.
    fn seen_standing(&mut self, path: &NodePath, read: &Read, holder: StreamId, gaps: u64, now: Instant) {
        let Some(registration) = self.registrations.get_mut(path) else { return };
        if registration.unseen.is_none() {
            registration.witness = Witness::seen(gaps);
        }
        if registration.held.as_ref().is_some_and(|held| read.stat.mzxid > held.written.0) {
            self.data_seen(path, read, holder, now);
        }
    }

    pub(super) fn verified(&mut self, path: &NodePath, seen: Option<Observed>, now: Instant) {
        let jitter = self.rng.random_range(0.5..1.0);
        let Some(registration) = self.registrations.get_mut(path) else { return };
        let Some(Operation::Verifying { gaps }) = registration.operation else { return };
        registration.operation = None;
        let (Some(held), Some(holder)) = (registration.held.clone(), registration.holder) else {
            self.advance(path, now);
            return;
        };
        if seen.is_some() {
            registration.look_again = None;
        }
        match seen {
            // Mostly the connection was lost, and a resync follows on the next one. It may also have been a passing
            // refusal.
            None => {
                let pause =
                    registration.look_again.map_or(FIRST_LOOK_AGAIN, |(_, pause)| LONGEST_LOOK_AGAIN.min(pause * 2));
                registration.unseen = Some(None);
                registration.look_again = Some((now + pause, pause));
                self.pauses.insert((now + pause, path.clone()));
            }
            // An eviction that was over before the registration does not concern it: its record may not be removed yet.
            Some(Observed::Evicted { written }) if written.0 > held.generation.0 => registration.evicted = true,
            Some(Observed::Absent | Observed::Evicted { .. }) => {
                let pause = registration.pause(now, jitter);
                registration.absent = true;
                if !pause.is_zero() {
                    registration.paused_until = Some(now + pause);
                    self.pauses.insert((now + pause, path.clone()));
                }
            }
            Some(Observed::Standing { read }) => {
                registration.absent = false;
                match Generation(read.stat.czxid).cmp(&held.generation) {
                    Ordering::Greater => {
                        registration.holder = None;
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

    /// The incarnation that is held was read with other data than its holder's, or with these again.
    fn data_seen(&mut self, path: &NodePath, read: &Read, holder: StreamId, now: Instant) {
        let Some(registration) = self.registrations.get_mut(path) else { return };
        let Some(held) = &mut registration.held else { return };
        held.written = Zxid(read.stat.mzxid);
        let generation = held.generation;
        if read.data == held.bytes {
            if registration.dispute.as_ref().is_some_and(|dispute| dispute.due().is_some()) {
                self.data_right(path, read.stat, generation, now);
            }
            return;
        }
        let dispute = registration.dispute.get_or_insert_with(|| Box::new(Dispute::new()));
        let (due, is_news) = dispute.overwritten(&read.data, now);
        if let Some(due) = due {
            self.pauses.insert((due, path.clone()));
        }
        if is_news {
            self.tell(holder, Notice::Overwritten { path: path.clone(), data: own(&read.data), stat: read.stat });
        }
    }

    /// The data of a registration are its holder's again.
    fn data_right(&mut self, path: &NodePath, stat: Stat, generation: Generation, now: Instant) {
        let Some(registration) = self.registrations.get_mut(path) else { return };
        if let Some(dispute) = &mut registration.dispute {
            dispute.end(now);
        }
        if let Some(holder) = registration.holder {
            let path = path.clone();
            self.tell(holder, Notice::Registered { path, generation, stat, restored: true, adopted: false });
        }
    }

    /// The data could not be put right: ZooKeeper refuses that, or could not be asked, or other changes are not known
    /// yet.
    fn not_put_right(&mut self, path: &NodePath, refusal: Option<&Error>, now: Instant) {
        let Some(registration) = self.registrations.get_mut(path) else { return };
        let Some(dispute) = &mut registration.dispute else { return };
        if let Some(error) = refusal
            && dispute.is_young()
        {
            tracing::warn!(%path, %error, "overwritten data can't be put right; that is tried again");
        }
        let due = dispute.again(refusal.is_some(), now);
        registration.unseen = Some(None);
        self.pauses.insert((due, path.clone()));
    }
}
