//! The operations in ZooKeeper for registrations: a bounded number is under way, the others wait in lanes.
//!
//! New claims have a lane of their own, claims of known registrations (resumed, updated, registered again) another, and
//! removals one for each ZooKeeper session. In each lane the connections take turns. Removals of one session go in
//! batches: one read of up to 48 nodes, one transaction, one write of the fence. Reads that check whether nodes still
//! exist take up to 48 paths each. A removal that was asked for comes before them, and before a claim that the replica
//! makes by itself.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::claiming::{Claims, Requester};
use super::claims::{Claim, Claimed, Observed, Policy};
use super::effects::NodeRemoval;
use super::lanes::Lane;
use super::reads::{BatchRead, ReadQueue};
use super::upkeep::{BATCH, Upkeep};
use crate::contact::StallDetector;
use crate::evictions::Evictions;
use crate::types::{Generation, NodePath, SessionId};
use crate::zk::{ErrorCode, FenceEpoch, PathReservation, WatchSessionId, Zk};

/// Maximum number of claims of one kind under way. It must fill the writers of all ZooKeeper sessions: with the usual
/// four these have 2,048 units in multis under way.
const CLAIMS: usize = 2048;
/// Maximum number of batches of removals under way in one ZooKeeper session. Its writer sends one guarded multi after
/// the other. More batches than it takes along each time would only wait there.
const REMOVALS: usize = 8;
/// Maximum number of operations that are begun in one turn.
const BEGUN_AT_ONCE: usize = 128;

/// The result of an operation.
pub(super) enum FinishedOperation {
    Claimed(NodePath, Claimed, Option<PathReservation>),
    /// These nodes are gone, except those at the paths that ZooKeeper refuses to delete.
    Removed(Vec<NodeRemoval>, Vec<(NodePath, ErrorCode)>),
    Verified(Vec<(NodePath, Option<Observed>)>),
    /// `None`: the nodes could not be read.
    Confirmed(SessionId, Option<(FenceEpoch, Vec<(NodePath, Generation)>)>),
}

/// The lane in which an operation waited.
#[derive(Debug, Clone, Copy)]
enum From {
    Kept,
    Fresh,
    Removals(SessionId),
    Verifying(WatchSessionId),
    Confirming,
}

struct Claiming {
    path: NodePath,
    claim: Claim,
    requester: Requester,
}

/// The operations under way, and those that wait.
pub(super) struct Operations {
    claims: Claims,
    upkeep: Upkeep,
    /// Claims of paths that are known already: resumed, updated, registered again. New claims, however many, do not
    /// delay them.
    kept: Lane<Claiming>,
    /// Claims of new paths.
    fresh: Lane<Claiming>,
    /// By ZooKeeper session: a session that can't be reached does not delay the others.
    removals: HashMap<SessionId, Lane<NodeRemoval>>,
    reads: ReadQueue,
    /// The task that owns this runs them: there are many, and each does little but wait.
    under_way: FuturesUnordered<BoxFuture<'static, (From, FinishedOperation)>>,
}

impl Operations {
    pub(super) fn new(zk: &Zk, evictions: &Evictions, stall_detector: &Arc<StallDetector>) -> Self {
        Self {
            claims: Claims::new(zk.clone(), evictions.clone(), stall_detector.clone()),
            upkeep: Upkeep::new(zk.clone(), evictions.clone()),
            kept: Lane::new(CLAIMS),
            fresh: Lane::new(CLAIMS),
            removals: HashMap::new(),
            reads: ReadQueue::new(),
            under_way: FuturesUnordered::new(),
        }
    }

    pub(super) fn claim(&mut self, connection: u64, path: NodePath, claim: Claim, requester: Requester) {
        let lane = match claim.policy {
            Policy::TakeOver | Policy::Exclusive => &mut self.fresh,
            Policy::Resume(_)
            | Policy::Update(_)
            | Policy::Restore(_)
            | Policy::PutBack { .. }
            | Policy::PutRight(_) => &mut self.kept,
        };
        lane.push(connection, Claiming { path, claim, requester });
    }

    pub(super) fn remove(&mut self, connection: u64, session: SessionId, removal: NodeRemoval) {
        self.removals.entry(session).or_insert_with(|| Lane::new(REMOVALS)).push(connection, removal);
    }

    /// If several reads of one path are asked for, only the last is answered.
    pub(super) fn verify(&mut self, connection: u64, path: NodePath) {
        if let Some(watch_session) = self.upkeep.watch_session_of(&path) {
            self.reads.verify(connection, watch_session, path);
        }
    }

    /// Returns the number of reads that this takes.
    pub(super) fn confirm(&mut self, session: SessionId, nodes: &[(NodePath, usize)]) -> usize {
        self.reads.confirm(session, nodes)
    }

    /// Whether [`Operations::begin`] has an operation to begin.
    pub(super) fn can_begin(&self) -> bool {
        self.kept.has_next()
            || self.fresh.has_next()
            || self.removals.values().any(Lane::has_next)
            || self.reads.has_next()
    }

    /// Begins some of the waiting operations.
    pub(super) fn begin(&mut self) {
        for _ in 0..BEGUN_AT_ONCE {
            let mut has_begun = false;
            for from in [From::Kept, From::Fresh] {
                let lane = if matches!(from, From::Kept) { &mut self.kept } else { &mut self.fresh };
                if let Some(Claiming { path, claim, requester }) = lane.next(1).pop() {
                    has_begun = true;
                    let claims = self.claims.clone();
                    self.under_way.push(Box::pin(async move {
                        let (claimed, reservation) = claims.claim(&path, claim, &requester).await;
                        (from, FinishedOperation::Claimed(path, claimed, reservation))
                    }));
                }
            }
            for (session, lane) in &mut self.removals {
                let (session, removals) = (*session, lane.next(BATCH));
                if !removals.is_empty() {
                    has_begun = true;
                    let upkeep = self.upkeep.clone();
                    self.under_way.push(Box::pin(async move {
                        let refused = upkeep.remove(session, &removals).await;
                        (From::Removals(session), FinishedOperation::Removed(removals, refused))
                    }));
                }
            }
            if let Some(read) = self.reads.next() {
                has_begun = true;
                self.begin_read(read);
            }
            if !has_begun {
                break;
            }
        }
    }

    /// The next operation that is over.
    ///
    /// # Cancellation
    /// Safe: nothing is taken before the future is ready.
    pub(super) async fn next(&mut self) -> FinishedOperation {
        let Some((from, mut finished)) = self.under_way.next().await else { return std::future::pending().await };
        match from {
            From::Kept => self.kept.done(),
            From::Fresh => self.fresh.done(),
            From::Removals(session) => {
                if let Some(lane) = self.removals.get_mut(&session) {
                    lane.done();
                    if lane.is_idle() {
                        self.removals.remove(&session);
                    }
                }
            }
            From::Verifying(watch_session) => {
                if let FinishedOperation::Verified(seen) = &mut finished {
                    self.reads.verified(watch_session, seen);
                }
            }
            From::Confirming => self.reads.confirmed(),
        }
        finished
    }

    fn begin_read(&mut self, read: BatchRead) {
        let upkeep = self.upkeep.clone();
        self.under_way.push(match read {
            BatchRead::Verify { watch_session, paths } => Box::pin(async move {
                let seen = upkeep.observe(watch_session, &paths).await;
                let seen = seen.unwrap_or_else(|| paths.iter().map(|_| None).collect());
                (From::Verifying(watch_session), FinishedOperation::Verified(paths.into_iter().zip(seen).collect()))
            }),
            BatchRead::Confirm { session, nodes } => Box::pin(async move {
                (From::Confirming, FinishedOperation::Confirmed(session, upkeep.confirm(session, &nodes).await))
            }),
        });
    }
}
