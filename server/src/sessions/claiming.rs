//! Carries claims out in ZooKeeper: makes a path ours.
//!
//! Everything here is written to be right whatever other replicas, kazoo programs and lost answers do meanwhile: each
//! write is conditional on what was read, and a write that fails is followed by another look.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::claims::{Claim, ClaimStep, Claimed, Held, Policy};
use super::comparison::{decided, new_bytes};
use super::outbox::Outbox;
use super::stalls;
use crate::budget::Resource;
use crate::contact::StallDetector;
use crate::error::Error;
use crate::evictions::{EvictionVerdict, Evictions, record_path};
use crate::refusal;
use crate::types::{Generation, NodePath, SessionId, Stat, Zxid};
use crate::value::own;
use crate::zk::{
    self, CommitError, CreateMode, EphemeralSession, ErrorCode, FenceEpoch, Guard, NoRoom, PathReservation, Read, Unit,
    Zk, layout,
};

/// Maximum number of looks of one claim, before it is left to a later try.
const CLAIM_TRIES: u32 = 64;

/// The party for which a claim is made.
#[derive(Debug, Clone)]
pub(super) enum Requester {
    /// The replica itself, which registers again.
    Replica,
    /// A client, whose RPC this outbox belongs to.
    Client(Arc<Outbox>),
    /// A client whose RPC is over.
    Gone,
}

impl Requester {
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Replica => false,
            Self::Client(outbox) => outbox.is_abandoned(),
            Self::Gone => true,
        }
    }
}

/// The state of a claim's looks at ZooKeeper.
#[derive(Debug, Default)]
struct ClaimLooks {
    /// The session of every look: the same one, so that a sync of it counts.
    reader: Option<EphemeralSession>,
    is_synced: bool,
    /// Whether the parents were made, and were gone again.
    is_bereft: bool,
}

impl ClaimLooks {
    /// Has the server that is read catch up.
    async fn sync(&self, path: &NodePath) -> Result<(), zk::Error> {
        match &self.reader {
            Some(reader) => reader.session().sync(path).await,
            None => Ok(()),
        }
    }
}

/// The replacement of a node by one of ours.
struct Replacement {
    read: Read,
    /// The session that owns the node, if it is one of ours, with the state of its fence that was known before the node
    /// was read.
    ours: Option<(EphemeralSession, FenceEpoch)>,
    bytes: Bytes,
    adopted: bool,
}

/// Carries claims out.
#[derive(Debug, Clone)]
pub(super) struct Claims {
    zk: Zk,
    evictions: Evictions,
    stall_detector: Arc<StallDetector>,
}

/// How an attempt ended.
enum AttemptEnd {
    Done(Claimed, Option<PathReservation>),
    /// Look at the node (again).
    Look,
}

/// Why a claim has no room for its node.
enum NotNow {
    Zk(zk::Error),
    Refused(Error),
}

impl NotNow {
    fn into_end(self) -> Result<AttemptEnd, zk::Error> {
        match self {
            Self::Zk(error) => Err(error),
            Self::Refused(error) => Ok(AttemptEnd::Done(Claimed::Refused(error), None)),
        }
    }
}

impl Claims {
    pub(super) fn new(zk: Zk, evictions: Evictions, stall_detector: Arc<StallDetector>) -> Self {
        Self { zk, evictions, stall_detector }
    }

    /// Makes a path ours. The reservation belongs to the node that was made, or that may have been made, if there is
    /// one.
    pub(super) async fn claim(
        &self,
        path: &NodePath,
        mut claim: Claim,
        requester: &Requester,
    ) -> (Claimed, Option<PathReservation>) {
        if claim.uncertain_creates.is_empty() && (requester.is_gone() || claim.is_abandoned()) {
            // The claim waited longer for its turn than anybody wanted it.
            return (Claimed::Unavailable { uncertain_create: None }, None);
        }
        self.evictions.read_once().await;
        if let Some(kept_out) = self.kept_out(path, &claim) {
            return (kept_out, None);
        }
        let mut create_first = claim.creates_first();
        let mut look = ClaimLooks::default();
        for attempt in 0..CLAIM_TRIES {
            let tried = if std::mem::take(&mut create_first) {
                self.create(path, &mut claim, &mut look).await
            } else {
                // Boxed, like everything that is rarely needed: the usual claim is small.
                Box::pin(self.look_and_act(path, &mut claim, requester, &mut look)).await
            };
            match tried {
                Ok(AttemptEnd::Done(claimed, reservation)) => return (claimed, reservation),
                Ok(AttemptEnd::Look) => {}
                Err(error) => return (Self::failed(path, &claim, error), None),
            }
            if attempt >= 2 {
                // Another client works on the same path, or on the same fence. Out of step with it, this claim is done
                // sooner.
                let pause = rand::random_range(0..=u64::from(attempt.min(20)));
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        }
        (Claimed::Unavailable { uncertain_create: claim.uncertain_creates.last() }, None)
    }

    /// The result for a claim of a path that is evicted, or whose evictions are not known yet. A claim of which a node
    /// may exist goes on, and its node is removed afterwards.
    fn kept_out(&self, path: &NodePath, claim: &Claim) -> Option<Claimed> {
        if !claim.uncertain_creates.is_empty() {
            return None;
        }
        match self.evictions.verdict(path) {
            EvictionVerdict::Free => None,
            EvictionVerdict::Evicted(_) => Some(self.evicted(path)),
            EvictionVerdict::Unknown => Some(Claimed::Unavailable { uncertain_create: None }),
        }
    }

    fn evicted(&self, path: &NodePath) -> Claimed {
        let remaining = match self.evictions.verdict(path) {
            EvictionVerdict::Evicted(remaining) => remaining,
            // The table is behind.
            EvictionVerdict::Free | EvictionVerdict::Unknown => Duration::ZERO,
        };
        Claimed::Refused(Error::Evicted { path: path.clone(), remaining })
    }

    fn failed(path: &NodePath, claim: &Claim, error: zk::Error) -> Claimed {
        let unavailable = Claimed::Unavailable { uncertain_create: claim.uncertain_creates.last() };
        match error {
            // The parents were made, and are gone again: others delete them all the time.
            zk::Error::Refused(ErrorCode::NoNode) => unavailable,
            zk::Error::Refused(code) => Claimed::Refused(refusal::refused(path, code)),
            zk::Error::TooLarge(bytes) => Claimed::Refused(refusal::too_large(path, bytes)),
            zk::Error::NotSent
            | zk::Error::OutcomeUnknown
            | zk::Error::SessionExpired
            | zk::Error::AnswerTooLarge(_) => unavailable,
        }
    }

    /// Reserves room in a session for the node. If there is no more room, a claim for a node that existed before goes
    /// on waiting for some.
    fn reserve(&self, path: &NodePath, claim: &Claim) -> Result<PathReservation, NotNow> {
        let bytes = path.as_str().len();
        if let Policy::PutBack { session, .. } = claim.policy
            && let Some(owner) = self.zk.pool.owner(session)
        {
            return Ok(owner.reserve_for_its_own(bytes));
        }
        // In the session where its node may be, or was before, the claim has room already.
        let sessions = claim.uncertain_creates.latest_first().chain(claim.home);
        let mut owners = sessions.filter_map(|session| self.zk.pool.owner(session));
        if let Some(owner) = owners.find(|owner| owner.session().is_up()) {
            return Ok(owner.reserve_for_its_own(bytes));
        }
        self.zk.pool.reserve(bytes).map_err(|why| self.no_room(why, claim))
    }

    fn no_room(&self, why: NoRoom, claim: &Claim) -> NotNow {
        match (why, &claim.policy) {
            (NoRoom::Full, Policy::TakeOver | Policy::Exclusive | Policy::Resume(_)) => {
                NotNow::Refused(Resource::PathBytes.exceeded(self.zk.pool.capacity()))
            }
            _ => NotNow::Zk(zk::Error::NotSent),
        }
    }

    async fn create(&self, path: &NodePath, claim: &mut Claim, look: &mut ClaimLooks) -> Result<AttemptEnd, zk::Error> {
        let reservation = match self.reserve(path, claim) {
            Ok(reservation) => reservation,
            Err(why) => return why.into_end(),
        };
        let owner = reservation.owner();
        let fence_epoch = owner.writer().fence_epoch();
        let guard = match claim.policy {
            Policy::PutBack { session, fence_epoch: Some(fence_epoch), .. } if session == owner.id() => {
                Guard::Own(fence_epoch)
            }
            _ => Guard::None,
        };
        let bytes = new_bytes(claim).await;
        // If others delete the parents all the time, they are created in the same transaction.
        let mut ops =
            if look.is_bereft { Box::pin(owner.session().creates_of_parents(path)).await? } else { Vec::new() };
        ops.push(zk::create(path.as_str(), bytes.clone(), CreateMode::Ephemeral));
        let unit = Unit { guard, ops };
        match owner.writer().commit(unit).await {
            Ok(committed) => {
                let stat = self.stat_after(owner, path, &committed, bytes.len()).await;
                let held = Held {
                    generation: Generation(committed.zxid.0),
                    session: owner.id(),
                    bytes,
                    written: committed.zxid,
                    fence_epoch,
                };
                Ok(AttemptEnd::Done(Claimed::Held { held, stat, adopted: false }, Some(reservation)))
            }
            Err(CommitError::FenceMoved) => Box::pin(self.doubt(path, owner, claim)).await,
            Err(CommitError::Part { code: ErrorCode::NodeExists, .. }) => {
                // A look has seen no node, because its server is behind. This session's server knows of the node now.
                Box::pin(look.sync(path)).await?;
                look.reader.get_or_insert_with(|| owner.clone());
                Ok(AttemptEnd::Look)
            }
            Err(CommitError::Part { code: ErrorCode::NoNode, .. }) => {
                if std::mem::replace(&mut look.is_bereft, true) {
                    return Ok(AttemptEnd::Look);
                }
                match Box::pin(owner.session().ensure_parents(path)).await {
                    // The parents were deleted again meanwhile: look again from the start.
                    Ok(()) | Err(zk::Error::Refused(ErrorCode::NoNode)) => Ok(AttemptEnd::Look),
                    Err(error) => Err(error),
                }
            }
            Err(CommitError::Part { code, .. }) => Err(zk::Error::Refused(code)),
            Err(CommitError::Zk(error)) => Self::not_committed(path, claim, reservation, error),
        }
    }

    /// ZooKeeper did not answer a create. If the node may exist all the same, its room stays reserved.
    fn not_committed(
        path: &NodePath,
        claim: &mut Claim,
        reservation: PathReservation,
        error: zk::Error,
    ) -> Result<AttemptEnd, zk::Error> {
        if !error.is_unknown() {
            return Err(error);
        }
        claim.uncertain_creates.add(reservation.owner().id());
        Ok(AttemptEnd::Done(Self::failed(path, claim, error), Some(reservation)))
    }

    /// A put-back met a moved fence: something was taken over from the session since this node was last seen in it. If
    /// a node exists after all, that node decides. If none does, the registration counts as taken over, and as given up
    /// by its new holder.
    async fn doubt(
        &self,
        path: &NodePath,
        owner: &EphemeralSession,
        claim: &mut Claim,
    ) -> Result<AttemptEnd, zk::Error> {
        owner.session().sync(path).await?;
        if owner.session().exists(path).await?.is_none() {
            let record = owner.session().get(&record_path(path)).await?;
            let known = claim.policy.known().unwrap_or_default();
            if let Some(record) = record.filter(|record| record.stat.mzxid > known.0) {
                self.evictions.learn(path, &record);
                return Ok(AttemptEnd::Done(self.evicted(path), None));
            }
            return Ok(AttemptEnd::Done(Claimed::TakenOver, None));
        }
        if let Policy::PutBack { generation, .. } = claim.policy {
            claim.policy = Policy::Restore(generation);
        }
        Ok(AttemptEnd::Look)
    }

    async fn look_and_act(
        &self,
        path: &NodePath,
        claim: &mut Claim,
        requester: &Requester,
        look: &mut ClaimLooks,
    ) -> Result<AttemptEnd, zk::Error> {
        // The node of an earlier create may exist in the session that sent it: only that session is sure to see it.
        let uncertain = claim.uncertain_creates.latest_first().find_map(|session| self.zk.pool.owner(session));
        let reader = match uncertain.or(look.reader.take()) {
            Some(owner) => owner,
            None => self.zk.pool.any()?,
        };
        look.reader = Some(reader.clone());
        let fence_epoch = reader.writer().fence_epoch();
        let read = reader.session().get(path).await?;
        let owner_id = read.as_ref().map(|read| SessionId(read.stat.ephemeral_owner));
        let mut ours = (owner_id == Some(reader.id())).then_some((reader.clone(), fence_epoch));
        if let Some(owner) = owner_id.filter(|_| ours.is_none()).and_then(|id| self.zk.pool.owner(id)) {
            // The known state of a session's fence is valid only together with reads of that session.
            let fence_epoch = owner.writer().fence_epoch();
            if owner.session().get(path).await? != read {
                look.reader = Some(owner);
                return Ok(AttemptEnd::Look);
            }
            ours = Some((owner, fence_epoch));
        }
        let step = decided(claim, path, read.as_ref(), ours.is_some(), look.is_synced).await;
        match (step, read, ours) {
            (ClaimStep::Create, _, _) => self.create(path, claim, look).await,
            (ClaimStep::Keep, Some(read), Some((owner, fence_epoch))) => {
                Ok(Self::keep(path, &read, &owner, fence_epoch, claim))
            }
            (ClaimStep::Write(bytes), Some(read), Some((owner, fence_epoch))) => {
                Self::write(path, claim, read, &owner, fence_epoch, bytes).await
            }
            (ClaimStep::Replace { .. }, Some(read), _) if self.is_forgone(claim, &read, requester).await => {
                Ok(AttemptEnd::Done(Claimed::TakenOver, None))
            }
            (ClaimStep::Replace { bytes, adopted }, Some(read), ours) => {
                let wanted = Replacement { read, ours, bytes, adopted };
                self.replace(path, claim, wanted, look).await
            }
            (ClaimStep::Leave, _, _) => Ok(AttemptEnd::Done(Claimed::Unavailable { uncertain_create: None }, None)),
            (ClaimStep::TakenOver, _, _) => Ok(AttemptEnd::Done(Claimed::TakenOver, None)),
            (ClaimStep::Refuse(error), _, _) => Ok(AttemptEnd::Done(Claimed::Refused(error), None)),
            (ClaimStep::Behind, _, _) => {
                reader.session().sync(path).await?;
                look.is_synced = true;
                Ok(AttemptEnd::Look)
            }
            (ClaimStep::Keep | ClaimStep::Write(_) | ClaimStep::Replace { .. }, _, _) => Ok(AttemptEnd::Look),
        }
    }

    /// Whether the client that asks is gone: most likely to another replica, while this one was stopped or cut off, and
    /// the node is what it holds there.
    async fn is_forgone(&self, claim: &Claim, read: &Read, requester: &Requester) -> bool {
        if claim.uncertain_creates.has(SessionId(read.stat.ephemeral_owner)) {
            // The node is ours, and must not be left behind.
            return false;
        }
        let is_later = claim.policy.known().is_some_and(|known| known.0 < read.stat.czxid);
        if let Some(delay) = stalls::replace_delay(is_later, &self.stall_detector) {
            tokio::time::sleep(delay).await;
        }
        requester.is_gone()
    }

    fn keep(
        path: &NodePath,
        read: &Read,
        owner: &EphemeralSession,
        fence_epoch: FenceEpoch,
        claim: &Claim,
    ) -> AttemptEnd {
        let held = Held {
            generation: Generation(read.stat.czxid),
            session: owner.id(),
            bytes: own(&read.data),
            written: Zxid(read.stat.mzxid),
            fence_epoch,
        };
        let adopted = matches!(claim.policy, Policy::Resume(_));
        let reservation = owner.reserve_for_its_own(path.as_str().len());
        AttemptEnd::Done(Claimed::Held { held, stat: read.stat, adopted }, Some(reservation))
    }

    /// Writes new data into a node of ours.
    async fn write(
        path: &NodePath,
        claim: &Claim,
        read: Read,
        owner: &EphemeralSession,
        fence_epoch: FenceEpoch,
        bytes: Bytes,
    ) -> Result<AttemptEnd, zk::Error> {
        let op = zk::set_data(path.as_str(), bytes.clone(), read.stat.version);
        match owner.writer().commit(Unit { guard: Guard::Own(fence_epoch), ops: vec![op] }).await {
            Ok(committed) => {
                let stat = match committed.parts.first() {
                    Some(zk::Response::Stat(stat)) => *stat,
                    _ => read.stat,
                };
                let held = Held {
                    generation: Generation(read.stat.czxid),
                    session: owner.id(),
                    bytes,
                    written: committed.zxid,
                    fence_epoch,
                };
                let adopted = matches!(claim.policy, Policy::Resume(_));
                let reservation = owner.reserve_for_its_own(path.as_str().len());
                Ok(AttemptEnd::Done(Claimed::Held { held, stat, adopted }, Some(reservation)))
            }
            Err(
                CommitError::FenceMoved | CommitError::Part { code: ErrorCode::BadVersion | ErrorCode::NoNode, .. },
            ) => Ok(AttemptEnd::Look),
            Err(CommitError::Part { code, .. }) => Err(zk::Error::Refused(code)),
            Err(CommitError::Zk(error)) => Err(error),
        }
    }

    /// Replaces a node by one of ours in one transaction, so that nobody sees a moment without it.
    async fn replace(
        &self,
        path: &NodePath,
        claim: &mut Claim,
        Replacement { read, ours, bytes, adopted }: Replacement,
        look: &ClaimLooks,
    ) -> Result<AttemptEnd, zk::Error> {
        let length = path.as_str().len();
        let reservation = match &ours {
            // In the same session, so that the fence is that session's own, and no more room is taken.
            Some((standing, _)) => Ok(standing.reserve_for_its_own(length)),
            None => self.zk.pool.reserve_for_taken(length, SessionId(read.stat.ephemeral_owner)),
        };
        let reservation = match reservation {
            Ok(reservation) => reservation,
            Err(why) => return self.no_room(why, claim).into_end(),
        };
        let owner = reservation.owner();
        let (guard, fence_epoch) = match ours {
            Some((_, fence_epoch)) => (Guard::Own(fence_epoch), fence_epoch),
            None => {
                let fence_epoch = owner.writer().fence_epoch();
                let Some(guard) = self.foreign_guard(owner, path, &read).await? else {
                    // Either server may be behind.
                    owner.session().sync(path).await?;
                    look.sync(path).await?;
                    return Ok(AttemptEnd::Look);
                };
                (guard, fence_epoch)
            }
        };
        let ops = vec![
            zk::delete(path.as_str(), read.stat.version),
            zk::create(path.as_str(), bytes.clone(), CreateMode::Ephemeral),
        ];
        match owner.writer().commit(Unit { guard, ops }).await {
            Ok(committed) => {
                let stat = self.stat_after(owner, path, &committed, bytes.len()).await;
                let generation = Generation(committed.zxid.0);
                let held = Held { generation, session: owner.id(), bytes, written: committed.zxid, fence_epoch };
                Ok(AttemptEnd::Done(Claimed::Held { held, stat, adopted }, Some(reservation)))
            }
            Err(CommitError::FenceMoved) => Ok(AttemptEnd::Look),
            Err(CommitError::Part { code, .. }) => match code {
                ErrorCode::BadVersion | ErrorCode::NoNode | ErrorCode::NodeExists => {
                    look.sync(path).await?;
                    Ok(AttemptEnd::Look)
                }
                code => Err(zk::Error::Refused(code)),
            },
            Err(CommitError::Zk(error)) => Self::not_committed(path, claim, reservation, error),
        }
    }

    /// The fence of the session that owns the node, read in one state with the node. `None`: another node is at the
    /// path by now.
    async fn foreign_guard(
        &self,
        owner: &EphemeralSession,
        path: &NodePath,
        read: &Read,
    ) -> Result<Option<Guard>, zk::Error> {
        let fence = layout::fence(SessionId(read.stat.ephemeral_owner));
        let both = owner.session().get_many([fence.as_str(), path.as_str()]).await?;
        let [fence_read, node] = both.as_slice() else { return Ok(None) };
        let is_same = |other: &Read| other.stat.czxid == read.stat.czxid && other.stat.version == read.stat.version;
        if !matches!(node, Ok(Some(node)) if is_same(node)) {
            return Ok(None);
        }
        Ok(Some(match fence_read {
            Ok(Some(fence_read)) => Guard::Foreign { path: fence, version: fence_read.stat.version },
            // The session of a foreign program, or one that is just ending: it has no fence.
            _ => Guard::None,
        }))
    }

    /// The stat of a node that has just been created. If the answer has none, it is read. If another has replaced the
    /// node by then, it is put together from what this replica knows.
    async fn stat_after(
        &self,
        owner: &EphemeralSession,
        path: &NodePath,
        committed: &zk::Committed,
        length: usize,
    ) -> Stat {
        let zxid = committed.zxid.0;
        if let Some(zk::Response::Created { stat, .. }) = committed.parts.last()
            && stat.czxid == zxid
        {
            return *stat;
        }
        match Box::pin(owner.session().exists(path)).await {
            Ok(Some(stat)) if stat.czxid == zxid => stat,
            _ => Stat {
                czxid: zxid,
                mzxid: zxid,
                pzxid: zxid,
                ephemeral_owner: owner.id().0,
                data_length: i32::try_from(length).unwrap_or(i32::MAX),
                ..Stat::default()
            },
        }
    }
}
