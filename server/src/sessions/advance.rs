//! Carries out the steps that registrations answer with.

use std::sync::Arc;

use rand::RngExt as _;
use tokio::time::Instant;

use super::claims::{Claim, Content, Fresh};
use super::effects::{Effect, StreamId};
use super::footprint::Footprint;
use super::outbox::{Notice, RegistrationLostReason};
use super::registration::{Goodbye, IdleStep, PathCommand, PathStep, RequestedClaim, Surroundings};
use super::state::State;
use super::streams::Stream;
use crate::budget::Share;
use crate::error::Error;
use crate::types::{Generation, NodePath};
use crate::zk::ErrorCode;

impl State {
    /// Begins the next operation for a path, if none is under way.
    pub(super) fn advance(&mut self, path: &NodePath, now: Instant) {
        while let Some(registration) = self.registrations.get_mut(path) {
            match registration.step(&self.streams, &self.standing) {
                PathStep::Wait => return,
                PathStep::Idle => return self.advance_idle(path, now),
                PathStep::GiveUp { by, is_resumed } => self.give_up(path, by, is_resumed),
                PathStep::TakeOut => self.take_out(path),
                PathStep::Obey(command) => self.obey(path, command),
            }
        }
    }

    /// Does what an idle path without commands needs.
    fn advance_idle(&mut self, path: &NodePath, now: Instant) {
        let gaps = self.gaps(path);
        let Some(registration) = self.registrations.get_mut(path) else { return };
        let nodes = registration.held.as_ref().and_then(|held| self.nodes.get(&held.session));
        let around = Surroundings {
            streams: &self.streams,
            standing: &self.standing,
            gaps,
            expired_during_stall: nodes.is_some_and(|nodes| nodes.expired_during_stall),
            now,
        };
        match registration.idle_step(path, &around) {
            IdleStep::Rest => {}
            IdleStep::LookAt(at) => {
                self.pauses.insert((at, path.clone()));
            }
            IdleStep::Forget => self.forget(path),
            IdleStep::RemoveLeftover => self.begin_removal(path, None, None, self.goodbyes.another()),
            IdleStep::LetGo { holder } => {
                self.drop_path(path, holder);
                self.forget(path);
                self.forget_if_gone(holder);
            }
            IdleStep::Claim(claim) => self.begin_claim(path, None, claim, None),
            IdleStep::Verify(effect) => self.effects.push(effect),
        }
    }

    fn obey(&mut self, path: &NodePath, command: PathCommand) {
        match command {
            PathCommand::Set { by, value, stamp, generation, exclusive, memory } => {
                let content = Content::Fresh(Arc::new(Fresh { value, stamp }));
                self.begin_set(path, by, content, generation, exclusive, memory);
            }
            PathCommand::Unset { by, footprint, goodbye, .. } => self.give_back(path, by, true, footprint, goodbye),
            PathCommand::Drop { by, footprint, goodbye } => self.give_back(path, by, false, footprint, goodbye),
        }
    }

    /// A claim that waited for ZooKeeper is over, because no stream wants it any more.
    fn give_up(&mut self, path: &NodePath, by: Option<StreamId>, is_resumed: bool) {
        self.waiting.remove(path);
        if let Some(by) = by {
            self.reject(by, path, Error::BackendUnavailable);
            if is_resumed {
                self.adopt_to_give_back(path, by);
            }
        }
    }

    /// A client has come back for a registration that exists here, and has said goodbye before ZooKeeper could be
    /// asked, or before its request had begun. The registration of its earlier stream ends with that goodbye.
    fn adopt_to_give_back(&mut self, path: &NodePath, by: StreamId) {
        // The stream may give its paths back one by one, and this path's turn may be still to come.
        let is_leaving = self.streams.get(&by).is_none_or(Stream::is_closing);
        let Some(registration) = self.registrations.get_mut(path) else { return };
        if let Some((earlier, generation)) = registration.adopt_to_give_back(by, is_leaving) {
            self.lose(path, earlier, generation);
        }
    }

    pub(super) fn begin_claim(&mut self, path: &NodePath, by: Option<StreamId>, claim: Claim, memory: Option<Share>) {
        if let Some(registration) = self.registrations.get_mut(path) {
            self.effects.push(registration.begin_claim(path, RequestedClaim { by, claim, memory }, &self.standing));
        }
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
            let asked = generation.zip(self.registrations.get(path));
            if asked.is_some_and(|(asked, registration)| registration.is_continuation_of(asked)) {
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
        let Some(registration) = self.registrations.get_mut(path) else { return };
        registration.connection = account.id();
        let claim = registration.requested(by, content, generation, exclusive);
        self.begin_claim(path, Some(by), claim, Some(memory));
    }

    /// `by` no longer wants the path. `footprint` is the path's share of the account, if the stream no longer has it.
    fn give_back(&mut self, path: &NodePath, by: StreamId, tell: bool, footprint: Option<Footprint>, goodbye: Goodbye) {
        let told = tell.then_some(by);
        let footprint = self.drop_path(path, by).or(footprint);
        let Some(registration) = self.registrations.get_mut(path) else { return };
        if registration.holder == Some(by) {
            registration.holder = None;
            if registration.held.is_some() {
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
        if let Some(registration) = self.registrations.get_mut(path) {
            self.effects.extend(registration.begin_removal(path, told, footprint, goodbye));
        }
    }

    /// ZooKeeper refuses to remove a node that was given back. The holder is told that it is unregistered, and the
    /// delete is tried again.
    pub(super) fn removal_refused(&mut self, path: &NodePath, code: ErrorCode, now: Instant) {
        let jitter = self.rng.random_range(0.5..1.0);
        let Some(registration) = self.registrations.get_mut(path) else { return };
        let Some((told, again_at)) = registration.removal_refused(path, code, now, jitter) else { return };
        self.pauses.insert((again_at, path.clone()));
        if let Some(stream) = told {
            self.tell(stream, Notice::Unregistered { path: path.clone() });
        }
        self.advance(path, now);
    }

    /// An operator has evicted a path: its holder, if there is one, loses it.
    pub(super) fn evicted(&mut self, path: &NodePath, now: Instant) {
        if let Some(registration) = self.registrations.get_mut(path) {
            registration.evicted = true;
            self.advance(path, now);
        }
    }

    /// Takes an evicted path from its holder.
    fn take_out(&mut self, path: &NodePath) {
        let Some(registration) = self.registrations.get_mut(path) else { return };
        let Some((holder, generation)) = registration.take_from_holder() else { return };
        let footprint = self.drop_path(path, holder);
        let notice = Notice::Lost { path: path.clone(), generation, reason: RegistrationLostReason::Evicted };
        // Also tells a stream whose paths are removed one by one: this path's turn is still to come.
        self.effects.push(Effect::Tell { stream: holder, notice });
        self.begin_removal(path, None, footprint, self.goodbyes.another());
        self.forget_if_gone(holder);
    }

    /// Tries a claim again that waited for ZooKeeper.
    pub(super) fn retry(&mut self, path: &NodePath) {
        let Some(registration) = self.registrations.get_mut(path) else { return };
        if let Some(RequestedClaim { by, claim, memory }) = registration.take_waiting() {
            self.waiting.begun();
            self.begin_claim(path, by, claim, memory);
        }
    }
}
