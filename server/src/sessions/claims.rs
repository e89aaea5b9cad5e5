//! What is done in ZooKeeper for a registration: making a path ours, and taking it down.
//!
//! Everything here is written to be right whatever other replicas, kazoo programs and lost answers do meanwhile: each
//! write is conditional on what was read, and a write that fails is followed by another look.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::attempted::Attempted;
use super::outbox::Outbox;
use super::pulse::Pulse;
use crate::error::Error;
use crate::refusal;
use crate::types::{Generation, NodePath, SessionId, Stat, Zxid};
use crate::value::{EncodedValue, Stamp, own};
use crate::zk::{self, CommitError, CreateMode, ErrorCode, Guard, Moves, Owner, Read, Room, Unit, Zk, layout};

/// How often a claim looks again before it is left to a later try.
const TRIES: u32 = 64;
/// How long what has arrived may take to be read, before a client's word is taken for what stands later than it knows of.
const SETTLING: Duration = Duration::from_millis(200);

/// What a registration is to hold.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    /// What a client has just set: shared, since a claim is kept until it is known what became of it.
    Fresh(Arc<Fresh>),
    /// The bytes that stood.
    Exact(Bytes),
}

/// A value, and what the server adds to it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fresh {
    pub(super) value: EncodedValue,
    pub(super) stamp: Stamp,
}

impl Content {
    fn bytes(&self) -> Bytes {
        match self {
            Self::Fresh(fresh) => fresh.value.to_stamped_bytes(&fresh.stamp),
            Self::Exact(bytes) => bytes.clone(),
        }
    }

    /// The bytes for the same holder as before: the server's keys keep their first value.
    fn bytes_keeping(&self, first: &Bytes) -> Bytes {
        match self {
            Self::Fresh(fresh) => fresh.value.to_bytes_keeping(first, &fresh.stamp),
            Self::Exact(bytes) => bytes.clone(),
        }
    }

    fn is_same(&self, bytes: &Bytes) -> bool {
        match self {
            Self::Fresh(fresh) => fresh.value.is_same_data(bytes),
            Self::Exact(exact) => exact == bytes,
        }
    }

    /// Whether these bytes are this very value, `created` included: then a later incarnation is ours as well.
    fn is_identical(&self, bytes: &Bytes) -> bool {
        match self {
            Self::Fresh(fresh) => fresh.value.is_identical(bytes),
            Self::Exact(exact) => exact == bytes,
        }
    }
}

/// What may be done about a node that stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Policy {
    /// Any ephemeral is taken over.
    TakeOver,
    /// Nothing is.
    Exclusive,
    /// This incarnation, or a later one with the same value, is ours; nothing later is taken over.
    Resume(Generation),
    /// Our own registration gets new data.
    Update(Generation),
    /// This incarnation is ours, and most likely gone with its session; nothing later is taken over, whatever it holds.
    Restore(Generation),
    /// As [`Policy::Restore`], where the node was deleted by a foreign hand and its session stands.
    PutBack {
        /// The incarnation that was deleted.
        generation: Generation,
        /// The session that held it, and is to hold it again.
        session: SessionId,
        /// What was known of its fence when it was made; `None` when the watch has shown that nobody took it over.
        moves: Option<Moves>,
    },
}

impl Policy {
    /// The incarnation that is known, where there is one.
    fn known(&self) -> Option<Generation> {
        match self {
            Self::TakeOver | Self::Exclusive => None,
            Self::Resume(generation)
            | Self::Update(generation)
            | Self::Restore(generation)
            | Self::PutBack { generation, .. } => Some(*generation),
        }
    }
}

/// On whose behalf a claim is made.
#[derive(Debug, Clone)]
pub(super) enum Asker {
    /// The replica's own: it registers again.
    Replica,
    /// A client's, whose RPC this outbox belongs to.
    Client(Arc<Outbox>),
    /// A client's whose RPC is over.
    Gone,
}

impl Asker {
    fn is_gone(&self) -> bool {
        match self {
            Self::Replica => false,
            Self::Client(outbox) => outbox.is_abandoned(),
            Self::Gone => true,
        }
    }
}

/// A wish to hold a path.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Claim {
    pub(super) content: Content,
    pub(super) policy: Policy,
    /// The sessions in which a create was sent whose outcome is not known.
    pub(super) attempted: Attempted,
    /// Whether the client knows that it takes longer.
    pub(super) told_pending: bool,
}

impl Claim {
    pub(super) fn new(content: Content, policy: Policy) -> Self {
        Self { content, policy, attempted: Attempted::default(), told_pending: false }
    }
}

/// A node of ours.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Held {
    pub(super) generation: Generation,
    pub(super) session: SessionId,
    pub(super) bytes: Bytes,
    /// The last write that we know of: events up to it are no news.
    pub(super) written: Zxid,
    /// What was known of the session's fence before the node was made or adopted.
    pub(super) moves: Moves,
}

/// What became of a claim.
#[derive(Debug)]
pub(super) enum Claimed {
    /// The path is ours.
    Held { held: Held, stat: Stat, adopted: bool },
    /// A later incarnation stands.
    TakenOver,
    /// It can't be had.
    Refused(Error),
    /// ZooKeeper can't be reached; a create was sent in this session, by this try or an earlier one.
    Unavailable { attempted: Option<SessionId> },
}

/// What stands at a path.
#[derive(Debug)]
pub(super) enum Observed {
    Absent,
    Standing { read: Read },
}

/// What the next step of a claim is, after a look at what stands. Pure.
#[derive(Debug, PartialEq)]
enum Step {
    /// Create the node.
    Create,
    /// The node is ours as it is.
    Keep,
    /// The node is ours, and gets these bytes.
    Write(Bytes),
    /// Replace the node by one of ours with these bytes.
    Replace {
        bytes: Bytes,
        adopted: bool,
    },
    /// The server that was read is behind: look again.
    Behind,
    /// A later incarnation stands.
    TakenOver,
    Refuse(Error),
}

/// Decides about the node that stands. `on_our_session`: it belongs to a session of this replica that stands.
/// `is_current`: what was read is not older than the claim.
fn decide(claim: &Claim, path: &NodePath, read: Option<&Read>, on_our_session: bool, is_current: bool) -> Step {
    let Some(read) = read else { return Step::Create };
    if !read.stat.is_ephemeral() {
        return Step::Refuse(Error::NotEphemeral { path: path.clone() });
    }
    let standing = Generation(read.stat.czxid);
    let owner = SessionId(read.stat.ephemeral_owner);
    let was_our_create = on_our_session && claim.attempted.has(owner) && claim.content.is_same(&read.data);
    let resumed = match (claim.policy.known(), &claim.policy) {
        _ if was_our_create => return Step::Keep,
        (_, Policy::Exclusive) => return Step::Refuse(Error::NameTaken { path: path.clone() }),
        (None, _) => return Step::Replace { bytes: claim.content.bytes(), adopted: false },
        (Some(generation), _) => generation,
    };
    let is_same = claim.content.is_same(&read.data);
    let is_later_ours = match claim.policy {
        Policy::TakeOver | Policy::Exclusive | Policy::Resume(_) | Policy::Update(_) => {
            claim.content.is_identical(&read.data)
        }
        // Nobody asks: the client may have gone to another replica, and have resumed there with the very same bytes.
        Policy::Restore(_) | Policy::PutBack { .. } => claim.attempted.has(owner),
    };
    match standing.cmp(&resumed) {
        std::cmp::Ordering::Less if !is_current => Step::Behind,
        std::cmp::Ordering::Greater if !is_later_ours => Step::TakenOver,
        // An older incarnation than ours stands only when ZooKeeper has lost what came after.
        _ if on_our_session && is_same => Step::Keep,
        _ if on_our_session => Step::Write(claim.content.bytes_keeping(&read.data)),
        _ if is_same => Step::Replace { bytes: own(&read.data), adopted: true },
        _ => Step::Replace { bytes: claim.content.bytes_keeping(&read.data), adopted: true },
    }
}

/// As [`decide`], on another thread where values are so large that it takes long to compare them.
async fn decided(claim: &Claim, path: &NodePath, read: Option<&Read>, on_our_session: bool, is_current: bool) -> Step {
    const LARGE: usize = 16 * 1024;
    if read.is_none_or(|read| read.data.len() <= LARGE) {
        return decide(claim, path, read, on_our_session, is_current);
    }
    let (claim, path, read) = (claim.clone(), path.clone(), read.cloned());
    let decide = move || decide(&claim, &path, read.as_ref(), on_our_session, is_current);
    // It fails only while the replica ends; what was not looked at is not acted upon.
    tokio::task::spawn_blocking(decide).await.unwrap_or(Step::Behind)
}

/// Where a claim looks.
#[derive(Debug, Default)]
struct Look {
    /// The same session each time, so that a sync of it counts.
    reader: Option<Owner>,
    is_synced: bool,
}

/// Carries claims and removals out.
#[derive(Debug, Clone)]
pub(super) struct Claims {
    zk: Zk,
    pulse: Arc<Pulse>,
}

/// How an attempt ended.
enum Attempt {
    Done(Claimed, Option<Room>),
    /// Look (again) at what stands.
    Look,
}

impl Claims {
    pub(super) fn new(zk: Zk, pulse: Arc<Pulse>) -> Self {
        Self { zk, pulse }
    }

    /// Makes a path ours. The room belongs to the node that was made, if one was.
    pub(super) async fn claim(&self, path: &NodePath, mut claim: Claim, asker: &Asker) -> (Claimed, Option<Room>) {
        // In these cases most likely nothing stands: the create is the look.
        let mut create_first = match claim.policy {
            Policy::TakeOver | Policy::Exclusive | Policy::Restore(_) | Policy::PutBack { .. } => {
                claim.attempted.is_empty()
            }
            Policy::Resume(_) | Policy::Update(_) => false,
        };
        let mut look = Look::default();
        for attempt in 0..TRIES {
            let tried = if std::mem::take(&mut create_first) {
                self.create(path, &mut claim).await
            } else {
                // Boxed, as all that is rarely needed: the usual claim is small.
                Box::pin(self.look_and_act(path, &mut claim, asker, &mut look)).await
            };
            match tried {
                Ok(Attempt::Done(claimed, room)) => return (claimed, room),
                Ok(Attempt::Look) => {}
                Err(error) => return (self.failed(path, &claim, error), None),
            }
            if attempt >= 2 {
                // Somebody else works on the same path, or on the same fence: out of step with them one is done sooner.
                let pause = rand::random_range(0..=u64::from(attempt.min(20)));
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        }
        (Claimed::Unavailable { attempted: claim.attempted.last() }, None)
    }

    fn failed(&self, path: &NodePath, claim: &Claim, error: zk::Error) -> Claimed {
        match error {
            zk::Error::Refused(code) => Claimed::Refused(refusal::refused(path, code)),
            zk::Error::TooLarge(bytes) => Claimed::Refused(refusal::too_large(path, bytes)),
            zk::Error::NotSent
            | zk::Error::OutcomeUnknown
            | zk::Error::SessionExpired
            | zk::Error::AnswerTooLarge(_) => Claimed::Unavailable { attempted: claim.attempted.last() },
        }
    }

    fn room(&self, path: &NodePath, claim: &Claim) -> Result<Room, zk::Error> {
        let bytes = path.as_str().len();
        if let Policy::PutBack { session, .. } = claim.policy
            && let Some(owner) = self.zk.pool.owner(session)
        {
            // It was there before.
            return Ok(owner.room_for_its_own(bytes));
        }
        self.zk.pool.room(bytes).ok_or(zk::Error::NotSent)
    }

    async fn create(&self, path: &NodePath, claim: &mut Claim) -> Result<Attempt, zk::Error> {
        let room = self.room(path, claim)?;
        let owner = room.owner();
        let moves = owner.writer().moves();
        let guard = match claim.policy {
            Policy::PutBack { session, moves: Some(moves), .. } if session == owner.id() => Guard::Own(moves),
            _ => Guard::None,
        };
        let bytes = claim.content.bytes();
        let unit = Unit { guard, ops: vec![zk::create(path.as_str(), bytes.clone(), CreateMode::Ephemeral)] };
        match owner.writer().commit(unit).await {
            Ok(committed) => {
                let stat = self.stat_after(owner, path, &committed, bytes.len()).await;
                let held = Held {
                    generation: Generation(committed.zxid.0),
                    session: owner.id(),
                    bytes,
                    written: committed.zxid,
                    moves,
                };
                Ok(Attempt::Done(Claimed::Held { held, stat, adopted: false }, Some(room)))
            }
            Err(CommitError::FenceMoved) => Box::pin(self.doubt(path, owner, claim)).await,
            Err(CommitError::Part { code: ErrorCode::NodeExists, .. }) => Ok(Attempt::Look),
            Err(CommitError::Part { code: ErrorCode::NoNode, .. }) => {
                Box::pin(owner.session().ensure_parents(path)).await?;
                Ok(Attempt::Look)
            }
            Err(CommitError::Part { code, .. }) => Err(zk::Error::Refused(code)),
            Err(CommitError::Zk(error)) => {
                if error.is_unknown() {
                    claim.attempted.add(owner.id());
                }
                Err(error)
            }
        }
    }

    /// A put-back met a moved fence: something was taken over from the session since this node was last seen in it. If
    /// the node stands after all, what stands decides. If it does not, it counts as taken over, and given up there.
    async fn doubt(&self, path: &NodePath, owner: &Owner, claim: &mut Claim) -> Result<Attempt, zk::Error> {
        owner.session().sync(path).await?;
        if owner.session().exists(path).await?.is_none() {
            return Ok(Attempt::Done(Claimed::TakenOver, None));
        }
        if let Policy::PutBack { generation, .. } = claim.policy {
            claim.policy = Policy::Restore(generation);
        }
        Ok(Attempt::Look)
    }

    async fn look_and_act(
        &self,
        path: &NodePath,
        claim: &mut Claim,
        asker: &Asker,
        look: &mut Look,
    ) -> Result<Attempt, zk::Error> {
        // An earlier create may be in the session that it was sent in: only that session is sure to see it.
        let attempted = claim.attempted.latest_first().find_map(|session| self.zk.pool.owner(session));
        let reader = match attempted.or(look.reader.take()) {
            Some(owner) => owner,
            None => self.zk.pool.any()?,
        };
        look.reader = Some(reader.clone());
        let moves = reader.writer().moves();
        let read = reader.session().get(path).await?;
        let owner_id = read.as_ref().map(|read| SessionId(read.stat.ephemeral_owner));
        let mut ours = (owner_id == Some(reader.id())).then_some((reader.clone(), moves));
        if let Some(owner) = owner_id.filter(|_| ours.is_none()).and_then(|id| self.zk.pool.owner(id)) {
            // What is known of a session's fence only goes with what that session reads.
            let moves = owner.writer().moves();
            if owner.session().get(path).await? != read {
                look.reader = Some(owner);
                return Ok(Attempt::Look);
            }
            ours = Some((owner, moves));
        }
        let step = decided(claim, path, read.as_ref(), ours.is_some(), look.is_synced).await;
        match (step, read, ours) {
            (Step::Create, _, _) => self.create(path, claim).await,
            (Step::Keep, Some(read), Some((owner, moves))) => Ok(Self::keep(path, &read, &owner, moves, claim)),
            (Step::Write(bytes), Some(read), Some((owner, moves))) => {
                Self::write(path, claim, read, &owner, moves, bytes).await
            }
            (Step::Replace { .. }, Some(read), _) if self.is_forgone(claim, &read, asker).await => {
                Ok(Attempt::Done(Claimed::TakenOver, None))
            }
            (Step::Replace { bytes, adopted }, Some(read), ours) => {
                self.replace(path, claim, &read, ours, bytes, adopted).await
            }
            (Step::TakenOver, _, _) => Ok(Attempt::Done(Claimed::TakenOver, None)),
            (Step::Refuse(error), _, _) => Ok(Attempt::Done(Claimed::Refused(error), None)),
            (Step::Behind, _, _) => {
                reader.session().sync(path).await?;
                look.is_synced = true;
                Ok(Attempt::Look)
            }
            (Step::Keep | Step::Write(_) | Step::Replace { .. }, _, _) => Ok(Attempt::Look),
        }
    }

    /// Whether the client that asks has gone: most likely on to another replica, while this one was stopped or cut off, and
    /// what stands is what it holds there.
    async fn is_forgone(&self, claim: &Claim, read: &Read, asker: &Asker) -> bool {
        if claim.attempted.has(SessionId(read.stat.ephemeral_owner)) {
            // What stands is ours, and must not be left standing.
            return false;
        }
        let is_later = claim.policy.known().is_some_and(|known| known.0 < read.stat.czxid);
        if is_later || self.pulse.was_stopped() {
            // Either the client is here and an answer to it was lost, or the end of its stream is about to be read.
            tokio::time::sleep(SETTLING).await;
        }
        asker.is_gone()
    }

    fn keep(path: &NodePath, read: &Read, owner: &Owner, moves: Moves, claim: &Claim) -> Attempt {
        let held = Held {
            generation: Generation(read.stat.czxid),
            session: owner.id(),
            bytes: own(&read.data),
            written: Zxid(read.stat.mzxid),
            moves,
        };
        let adopted = matches!(claim.policy, Policy::Resume(_));
        let room = owner.room_for_its_own(path.as_str().len());
        Attempt::Done(Claimed::Held { held, stat: read.stat, adopted }, Some(room))
    }

    /// Writes new data into a node of ours.
    async fn write(
        path: &NodePath,
        claim: &Claim,
        read: Read,
        owner: &Owner,
        moves: Moves,
        bytes: Bytes,
    ) -> Result<Attempt, zk::Error> {
        let op = zk::set_data(path.as_str(), bytes.clone(), read.stat.version);
        match owner.writer().commit(Unit { guard: Guard::Own(moves), ops: vec![op] }).await {
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
                    moves,
                };
                let adopted = matches!(claim.policy, Policy::Resume(_));
                Ok(Attempt::Done(Claimed::Held { held, stat, adopted }, None))
            }
            Err(
                CommitError::FenceMoved | CommitError::Part { code: ErrorCode::BadVersion | ErrorCode::NoNode, .. },
            ) => Ok(Attempt::Look),
            Err(CommitError::Part { code, .. }) => Err(zk::Error::Refused(code)),
            Err(CommitError::Zk(error)) => Err(error),
        }
    }

    /// Replaces the node that stands by one of ours: one transaction, so that nobody sees a moment without it.
    async fn replace(
        &self,
        path: &NodePath,
        claim: &mut Claim,
        read: &Read,
        ours: Option<(Owner, Moves)>,
        bytes: Bytes,
        adopted: bool,
    ) -> Result<Attempt, zk::Error> {
        let room = match ours {
            Some(_) => self.room(path, claim)?,
            None => {
                let from = SessionId(read.stat.ephemeral_owner);
                self.zk.pool.room_for_taken(path.as_str().len(), from).ok_or(zk::Error::NotSent)?
            }
        };
        let owner = room.owner();
        let moves = owner.writer().moves();
        let guard = match ours {
            Some((standing, moves)) if standing.id() == owner.id() => Guard::Own(moves),
            _ => match self.foreign_guard(owner, path, read).await? {
                Some(guard) => guard,
                None => return Ok(Attempt::Look),
            },
        };
        let ops = vec![
            zk::delete(path.as_str(), read.stat.version),
            zk::create(path.as_str(), bytes.clone(), CreateMode::Ephemeral),
        ];
        match owner.writer().commit(Unit { guard, ops }).await {
            Ok(committed) => {
                let stat = self.stat_after(owner, path, &committed, bytes.len()).await;
                let generation = Generation(committed.zxid.0);
                let held = Held { generation, session: owner.id(), bytes, written: committed.zxid, moves };
                Ok(Attempt::Done(Claimed::Held { held, stat, adopted }, Some(room)))
            }
            Err(CommitError::FenceMoved) => Ok(Attempt::Look),
            Err(CommitError::Part { code, .. }) => match code {
                ErrorCode::BadVersion | ErrorCode::NoNode | ErrorCode::NodeExists => Ok(Attempt::Look),
                code => Err(zk::Error::Refused(code)),
            },
            Err(CommitError::Zk(error)) => {
                if error.is_unknown() {
                    claim.attempted.add(owner.id());
                }
                Err(error)
            }
        }
    }

    /// The fence of the session that owns the node, in one state with the node. `None`: the node is another by now.
    async fn foreign_guard(&self, owner: &Owner, path: &NodePath, read: &Read) -> Result<Option<Guard>, zk::Error> {
        let fence = layout::fence(SessionId(read.stat.ephemeral_owner));
        let both = owner.session().get_many([fence.as_str(), path.as_str()]).await?;
        let [fence_read, node] = both.as_slice() else { return Ok(None) };
        let is_same = |other: &Read| other.stat.czxid == read.stat.czxid && other.stat.version == read.stat.version;
        if !matches!(node, Ok(Some(node)) if is_same(node)) {
            owner.session().sync(path).await?;
            return Ok(None);
        }
        Ok(Some(match fence_read {
            Ok(Some(fence_read)) => Guard::Foreign { path: fence, version: fence_read.stat.version },
            // A foreign program's session, or one that is just ending: there is nothing to guard by.
            _ => Guard::None,
        }))
    }

    /// The stat of a node that has just been created. Where the answer has none, it is read; if another has replaced the
    /// node by then, what we know is put together.
    async fn stat_after(&self, owner: &Owner, path: &NodePath, committed: &zk::Committed, length: usize) -> Stat {
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

    /// Takes an incarnation down, and is not over before it is gone: by our delete, another's, or its session's end.
    pub(super) async fn remove(&self, path: &NodePath, generation: Generation, session: SessionId) {
        while let Some(owner) = self.zk.pool.owner(session) {
            match Self::try_remove(path, generation, &owner).await {
                Ok(true) => return,
                // Looked at too early: what changed has not reached this session's server.
                Ok(false) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(zk::Error::Refused(code)) => {
                    tracing::warn!(%path, %code, "a registration can't be removed; it goes with its session");
                    return;
                }
                Err(_) => {
                    owner.session().connected().await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
    }

    async fn try_remove(path: &NodePath, generation: Generation, owner: &Owner) -> Result<bool, zk::Error> {
        let moves = owner.writer().moves();
        let Some(stat) = owner.session().exists(path).await? else { return Ok(true) };
        if stat.czxid != generation.0 {
            return Ok(true);
        }
        let ops = vec![zk::delete(path.as_str(), stat.version)];
        match owner.writer().commit(Unit { guard: Guard::Own(moves), ops }).await {
            Ok(_) | Err(CommitError::Part { code: ErrorCode::NoNode, .. }) => Ok(true),
            Err(CommitError::FenceMoved | CommitError::Part { code: ErrorCode::BadVersion, .. }) => Ok(false),
            Err(CommitError::Part { code, .. }) => Err(zk::Error::Refused(code)),
            Err(CommitError::Zk(error)) => Err(error),
        }
    }

    /// Which of these paths stand in this session, with what was known of its fence before they were read.
    pub(super) async fn confirm(
        &self,
        session: SessionId,
        paths: &[NodePath],
    ) -> Option<(Moves, Vec<(NodePath, Generation)>)> {
        let owner = self.zk.pool.owner(session)?;
        let moves = owner.writer().moves();
        let reads = owner.session().get_many(paths.iter().map(NodePath::as_str)).await.ok()?;
        let standing = paths.iter().zip(reads).filter_map(|(path, read)| {
            let stat = read.ok()??.stat;
            (stat.ephemeral_owner == session.0).then(|| (path.clone(), Generation(stat.czxid)))
        });
        Some((moves, standing.collect()))
    }

    /// What stands at these paths, all of one parent, read where the parent's watch is.
    pub(super) async fn observe(&self, parent: &NodePath, paths: &[NodePath]) -> Option<Vec<Option<Observed>>> {
        let reads = self.zk.hub.session(parent).get_many(paths.iter().map(NodePath::as_str)).await.ok()?;
        let observed = reads.into_iter().map(|read| match read {
            Ok(Some(read)) => Some(Observed::Standing { read }),
            Ok(None) => Some(Observed::Absent),
            Err(_) => None,
        });
        Some(observed.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: Bytes = Bytes::from_static(b"x");

    fn decided(policy: Policy, sessions: &[i64], czxid: i64, owner: i64) -> Step {
        let path = NodePath::parse("/a/b").unwrap();
        let stat = Stat { czxid, mzxid: czxid, ephemeral_owner: owner, ..Stat::default() };
        let mut claim = Claim::new(Content::Exact(BYTES), policy);
        sessions.iter().for_each(|session| claim.attempted.add(SessionId(*session)));
        decide(&claim, &path, Some(&Read { data: BYTES, stat }), false, true)
    }

    fn replaced() -> Step {
        Step::Replace { bytes: BYTES, adopted: true }
    }

    #[test]
    fn the_client_that_comes_back_owns_a_later_incarnation_with_the_same_bytes() {
        assert_eq!(decided(Policy::Resume(Generation(5)), &[], 6, 1), replaced());
    }

    #[test]
    fn a_replica_that_registers_again_takes_nothing_over_that_is_later() {
        let put_back = Policy::PutBack { generation: Generation(5), session: SessionId(3), moves: None };
        for policy in [Policy::Restore(Generation(5)), put_back] {
            assert_eq!(decided(policy.clone(), &[], 6, 1), Step::TakenOver, "the client has resumed elsewhere");
            assert_eq!(decided(policy.clone(), &[2], 6, 1), Step::TakenOver);
            assert_eq!(decided(policy.clone(), &[1], 6, 1), replaced(), "an answer was lost");
            assert_eq!(decided(policy.clone(), &[1, 2], 6, 1), replaced(), "and another, in another session");
            assert_eq!(decided(policy, &[], 5, 1), replaced(), "seen where its session's end has not arrived");
        }
    }
}
