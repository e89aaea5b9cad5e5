//! A replica that tests step by hand.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::claims::{Claim, Claimed, Held, Observed};
use super::effects::{Effect, Input, StreamId};
use super::footprint;
use super::outbox::{Notice, RegistrationLostReason};
use super::state::State;
use crate::budget::{Account, Budget, Limits};
use crate::contact::Heard;
use crate::types::{Generation, NodePath, SessionId, Stat, Zxid};
use crate::value::EncodedValue;
use crate::zk::{FenceEpoch, NodeEvents, Read};

pub(super) const SESSION: SessionId = SessionId(7);
pub(super) const OTHER_SESSION: SessionId = SessionId(8);
pub(super) const ONE: StreamId = StreamId(1);
pub(super) const TWO: StreamId = StreamId(2);
pub(super) const TTL: Duration = Duration::from_secs(10);

/// A state with a clock, and a counter for the transactions that the test makes in ZooKeeper's place.
pub(super) struct Replica {
    pub(super) state: State,
    pub(super) now: Instant,
    pub(super) zxid: i64,
    /// The account of the one connection over which all streams come.
    pub(super) account: Account,
    /// The signs of life that the readers of the streams note.
    pub(super) heard: HashMap<StreamId, Heard>,
}

impl Replica {
    pub(super) fn new() -> Self {
        Self::limited(Limits::NONE)
    }

    /// `limits` are those of its one connection.
    pub(super) fn limited(limits: Limits) -> Self {
        let account = Budget::new(limits, Limits::NONE).account();
        let now = Instant::now();
        let mut replica = Self { state: State::new(1, now), now, zxid: 100, account, heard: HashMap::new() };
        replica.step(sessions([SESSION]));
        replica
    }

    /// Takes an input, and does all work that is done in slices.
    pub(super) fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = self.state.step(input, self.now);
        while self.state.has_chores() {
            effects.extend(self.state.step(Input::GoOn, self.now));
        }
        effects
    }

    /// Lets time pass, with a tick whenever one is due.
    pub(super) fn after(&mut self, duration: Duration) -> Vec<Effect> {
        let end = self.now + duration;
        let mut effects = Vec::new();
        while let Some(at) = self.state.next_tick().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            effects.extend(self.step(Input::Tick));
        }
        self.now = end;
        effects
    }

    /// Lets time pass in which the replica is stopped.
    pub(super) fn stopped_for(&mut self, duration: Duration) -> Vec<Effect> {
        self.now += duration;
        self.step(Input::Tick)
    }

    pub(super) fn open(&mut self, stream: StreamId, ttl: Option<Duration>) {
        let heard = Heard::new(self.now);
        self.heard.insert(stream, heard.clone());
        let (session_id, account) = ("s".to_owned(), self.account.clone());
        let effects = self.step(Input::Open { stream, session_id, ttl, pid: None, account, heard });
        assert!(matches!(notices(&effects)[..], [(_, Notice::Opened { .. })]));
    }

    pub(super) fn set_with(
        &mut self,
        stream: StreamId,
        generation: Option<Generation>,
        exclusive: bool,
    ) -> Vec<Effect> {
        self.set_path(stream, path(), generation, exclusive)
    }

    pub(super) fn set_path(
        &mut self,
        stream: StreamId,
        path: NodePath,
        generation: Option<Generation>,
        exclusive: bool,
    ) -> Vec<Effect> {
        let (value, created) = (EncodedValue::plain(b"data"), "now".to_owned());
        match footprint::request(&self.account, &path, 4) {
            Ok(memory) => self.step(Input::Set { stream, path, value, generation, exclusive, created, memory }),
            Err(error) => self.step(Input::Reject { stream, path: path.as_str().to_owned(), error }),
        }
    }

    pub(super) fn set(&mut self, stream: StreamId) -> Vec<Effect> {
        self.set_with(stream, None, false)
    }

    pub(super) fn held(&mut self) -> Claimed {
        self.zxid += 1;
        held(self.zxid)
    }

    pub(super) fn claimed(&mut self, outcome: Claimed) -> Vec<Effect> {
        self.step(Input::Claimed { path: path(), outcome })
    }

    /// Opens a stream and registers the path.
    pub(super) fn register(&mut self, stream: StreamId, ttl: Option<Duration>) -> Generation {
        self.open(stream, ttl);
        self.set(stream);
        let outcome = self.held();
        let effects = self.claimed(outcome);
        assert!(
            notices(&effects).iter().any(|(to, notice)| *to == stream && matches!(notice, Notice::Registered { .. }))
        );
        Generation(self.zxid)
    }

    pub(super) fn deleted(&mut self) -> Vec<Effect> {
        self.zxid += 1;
        let effects = self.step(Input::Changed { path: path(), seen: deleted(Some(Zxid(self.zxid))) });
        assert!(matches!(effects[..], [Effect::Verify { .. }]), "{effects:?}");
        self.step(Input::Verified { path: path(), seen: Some(Observed::Absent) })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state.registrations.is_empty() && self.state.streams.is_empty() && self.state.waiting.is_empty()
    }
}

pub(super) fn sessions<const N: usize>(standing: [SessionId; N]) -> Input {
    Input::Sessions { standing: standing.into(), expired_during_stall: false }
}

pub(super) fn deleted(zxid: Option<Zxid>) -> NodeEvents {
    NodeEvents { deleted: true, zxid, ..NodeEvents::default() }
}

pub(super) fn path() -> NodePath {
    NodePath::trusted("/services/a")
}

pub(super) fn held(zxid: i64) -> Claimed {
    let bytes = Bytes::from_static(b"data");
    let held = Held {
        generation: Generation(zxid),
        session: SESSION,
        bytes,
        written: Zxid(zxid),
        fence_epoch: FenceEpoch::default(),
    };
    Claimed::Held { held, stat: Stat::default(), adopted: false }
}

pub(super) fn standing(czxid: i64, mzxid: i64, data: &'static [u8]) -> Option<Observed> {
    let stat = Stat { czxid, mzxid, ..Stat::default() };
    Some(Observed::Standing { read: Read { data: Bytes::from_static(data), stat } })
}

pub(super) fn notices(effects: &[Effect]) -> Vec<(StreamId, &Notice)> {
    let notice = |effect| match effect {
        &Effect::Tell { stream, ref notice } => Some((stream, notice)),
        _ => None,
    };
    effects.iter().filter_map(notice).collect()
}

pub(super) fn claims(effects: &[Effect]) -> Vec<&Claim> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::Claim { claim, .. } = effect { Some(claim) } else { None })
        .collect()
}

pub(super) fn is_removal(effects: &[Effect], generation: Generation) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Remove { removal, .. } if removal.generation == generation))
}

pub(super) fn is_lost(effects: &[Effect], stream: StreamId, lost: RegistrationLostReason) -> bool {
    notices(effects)
        .iter()
        .any(|(to, notice)| *to == stream && matches!(notice, Notice::Lost { reason, .. } if *reason == lost))
}
