//! The write batcher of one session: units that arrive together are sent together.
//!
//! A [`Unit`] is carried out as a whole or not at all. Units that wait are sent as one multi, bounded by count and
//! bytes. If the multi fails, each unit is sent once more, by itself. While fewer than [`IN_FLIGHT`] multis are under
//! way, nothing waits. The caller must not have two units on one path under way at a time.
//!
//! The writer alone knows the version of the session's own fence: see [`Guard::Own`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use rollcall_wire::{CreateMode, ErrorCode, Request, Response};
use tokio::sync::{mpsc, oneshot};

use super::Error;
use super::calls::{MULTI_BYTES, set_data};
use super::created::Created;
use super::fence::Fence;
use super::session::{Answer, Session};
use super::times::FENCE_PAUSE;
use crate::types::{NodePath, Zxid};

/// Maximum number of multis under way.
const IN_FLIGHT: usize = 4;
/// Maximum number of units in one multi.
const BATCH_UNITS: usize = 128;
/// Maximum number of foreign fences whose [`Chain`] is remembered. With more, all are forgotten: they belong to
/// sessions that end.
const MAX_CHAINS: usize = 1024;
/// Maximum number of units that wait; one more fails with [`Error::NotSent`].
const UNIT_QUEUE: usize = 65_536;

/// Whether the stats of the nodes that a transaction creates are wanted. They cost a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stats {
    Wanted,
    Unwanted,
}

/// Operations that are carried out together or not at all.
#[derive(Debug)]
pub(crate) struct Unit {
    /// The condition: what must not have happened meanwhile.
    pub(crate) guard: Guard,
    /// The operations; may be empty under a guard.
    pub(crate) ops: Vec<Request>,
}

/// The condition of a [`Unit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Guard {
    None,
    /// Nobody has taken anything over from this session since [`FenceEpoch`] was read. The same multi writes the fence,
    /// so that a takeover that is being prepared fails, and looks again.
    Own(FenceEpoch),
    /// Nothing was taken over from another replica's session, or taken down by it, since its fence had this version.
    /// The same multi writes the fence, so that the fence's owner fails, and looks again.
    Foreign {
        /// The path of the fence.
        path: String,
        /// Its version, read before the nodes were read, or in one multi read with them.
        version: i32,
    },
}

/// Number of times that the own fence was found changed by another replica. A unit that deletes a node that the session
/// holds reads this first, then reads the node, and is then committed under [`Guard::Own`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct FenceEpoch(u64);

#[cfg(test)]
impl FenceEpoch {
    /// The count after one change.
    pub(crate) fn later() -> Self {
        Self(1)
    }
}

/// A unit that was carried out.
#[derive(Debug)]
pub(crate) struct Committed {
    /// The transaction: the czxid of all nodes that it created.
    pub(crate) zxid: Zxid,
    /// The answers to the unit's operations. The stat of a create may be empty if the node was replaced at once.
    pub(crate) parts: Vec<Response>,
}

/// The reason why a unit was not carried out, or is not known to have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommitError {
    /// The guard does not hold: the caller has to read again and decide again.
    #[error("the fence has moved")]
    FenceMoved,
    /// ZooKeeper refused the operation with this index.
    #[error("part {index}: {code}")]
    Part {
        /// The index among the unit's operations.
        index: usize,
        /// ZooKeeper's error code.
        code: ErrorCode,
    },
    /// The unit failed as a whole.
    #[error(transparent)]
    Zk(#[from] Error),
}

type CommitResult = Result<Committed, CommitError>;

#[derive(Debug)]
struct Waiting {
    unit: Unit,
    reply: oneshot::Sender<CommitResult>,
}

/// A handle to the writer of one session.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Waiting>,
    fence_epoch: Arc<AtomicU64>,
}

impl Writer {
    /// The writer of `session`, whose fence is `fence` and has version 0; the future does the work. `mark`: the data
    /// that the owner writes into the fence.
    pub(super) fn start(
        session: Session,
        fence: String,
        mark: Bytes,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, waiting) = mpsc::channel(UNIT_QUEUE);
        let fence_epoch = Arc::new(AtomicU64::new(0));
        let task = Task {
            guard_len: session.wire_len(&set_data(&fence, mark.clone(), 0)) + fence.len(),
            session,
            fence: Fence { path: fence, mark },
            own: FenceVersion::Version(0),
            fence_epoch: fence_epoch.clone(),
            arriving: waiting,
            waiting: VecDeque::new(),
            under_way: FuturesUnordered::new(),
            fences_under_way: HashSet::new(),
            chains: HashMap::new(),
        };
        (Self { queue, fence_epoch }, task.run())
    }

    /// Carries out a unit.
    ///
    /// # Errors
    /// [`CommitError`]. After [`Error::OutcomeUnknown`] and [`Error::SessionExpired`] the unit may have been carried
    /// out.
    ///
    /// # Cancellation
    /// The unit is carried out all the same, unless it still waits.
    pub(crate) async fn commit(&self, unit: Unit) -> CommitResult {
        let (reply, outcome) = oneshot::channel();
        self.queue.try_send(Waiting { unit, reply }).map_err(|_| Error::NotSent)?;
        outcome.await.unwrap_or(Err(CommitError::Zk(Error::OutcomeUnknown)))
    }

    /// The present count of changes of the own fence, for [`Guard::Own`].
    pub(crate) fn fence_epoch(&self) -> FenceEpoch {
        FenceEpoch(self.fence_epoch.load(Ordering::Acquire))
    }
}

/// The result of one multi.
struct Done {
    batch: Vec<Waiting>,
    fences: Vec<(String, i32)>,
    result: Result<Vec<Committed>, CommitError>,
    /// Number of guards at the beginning of the multi: a failed part below this index is a guard.
    guards: usize,
}

enum FinishedWrite {
    Batch(Done),
    /// Each unit was sent by itself and answered; `own` is the known version of the own fence after that.
    Singles {
        fences: Vec<(String, i32)>,
        own: FenceVersion,
    },
    /// The own fence was read again: its version, and whether another replica has written it.
    Fence(Result<(i32, bool), Error>),
}

/// The known version of a fence. A foreign write of the own fence differs from our own writes by its data.
#[derive(Debug, Clone, Copy)]
enum FenceVersion {
    /// The version, unless another replica has written the fence since.
    Version(i32),
    /// The fence had this version; then a write of ours had no answer, or found another version.
    Unsure { after: i32 },
}

impl FenceVersion {
    fn version(self) -> Option<i32> {
        match self {
            Self::Version(version) => Some(version),
            Self::Unsure { .. } => None,
        }
    }

    fn last(self) -> i32 {
        match self {
            Self::Version(version) | Self::Unsure { after: version } => version,
        }
    }
}

struct Task {
    session: Session,
    fence: Fence,
    /// Size of the write of a fence on the wire, in bytes.
    guard_len: usize,
    own: FenceVersion,
    fence_epoch: Arc<AtomicU64>,
    arriving: mpsc::Receiver<Waiting>,
    waiting: VecDeque<Waiting>,
    under_way: FuturesUnordered<BoxFuture<'static, FinishedWrite>>,
    /// Fences that a multi under way writes: no other multi may assume their version.
    fences_under_way: HashSet<String>,
    /// Versions of foreign fences that are linked by multis of ours alone.
    chains: HashMap<String, Chain>,
}

/// Consecutive versions of a foreign fence, from the first on. A multi of ours made each from the one before, on the
/// condition that it was still current. So a reader of any of them has missed nothing up to the last.
#[derive(Debug, Clone, Copy)]
struct Chain {
    first: i32,
    steps: u32,
}

impl Chain {
    fn last(self) -> i32 {
        self.first.wrapping_add_unsigned(self.steps)
    }

    /// The last version, for a reader that has read `version`.
    fn now(self, version: i32) -> i32 {
        let is_in = version.wrapping_sub(self.first).cast_unsigned() <= self.steps;
        if is_in { self.last() } else { version }
    }

    /// The chain after one more step from `version`.
    fn grown(self, version: i32) -> Self {
        if version == self.last() && self.steps < u32::MAX / 4 {
            Self { steps: self.steps + 1, ..self }
        } else {
            Self { first: version, steps: 1 }
        }
    }
}

impl Task {
    async fn run(mut self) {
        loop {
            tokio::select! {
                arrived = self.arriving.recv(), if self.waiting.len() < BATCH_UNITS * IN_FLIGHT => {
                    let Some(first) = arrived else { return };
                    self.waiting.push_back(first);
                    while self.waiting.len() < BATCH_UNITS * IN_FLIGHT
                        && let Ok(next) = self.arriving.try_recv()
                    {
                        self.waiting.push_back(next);
                    }
                }
                Some(finished) = self.under_way.next() => self.finish(finished),
            }
            while self.under_way.len() < IN_FLIGHT && self.send_next() {}
        }
    }

    /// Sends the next multi, if anything can be sent now; returns whether it did.
    fn send_next(&mut self) -> bool {
        self.waiting.retain(|waiting| !waiting.reply.is_closed());
        let (batch, fences) = self.pick();
        if batch.is_empty() {
            return false;
        }
        let mut guards: Vec<Request> = Vec::new();
        for (path, version) in &fences {
            guards.push(self.fence.guard(path, *version));
            self.fences_under_way.insert(path.clone());
        }
        self.under_way.push(Box::pin(send_batch(self.session.clone(), guards, batch, fences)));
        true
    }

    /// Takes the units of one multi out of the queue; returns them, and the fences that the multi writes with their
    /// versions.
    fn pick(&mut self) -> (Vec<Waiting>, Vec<(String, i32)>) {
        let fence_epoch = self.fence_epoch.load(Ordering::Acquire);
        let mut batch: Vec<Waiting> = Vec::new();
        let mut fences: HashMap<String, i32> = HashMap::new();
        let mut bytes = 0;
        let mut left = VecDeque::new();
        while let Some(mut next) = self.waiting.pop_front() {
            // Includes the write of a fence, which is in this multi or another unit's.
            let size: usize = next.unit.ops.iter().map(|op| self.session.wire_len(op)).sum::<usize>() + self.guard_len;
            if batch.len() >= BATCH_UNITS || (bytes + size > MULTI_BYTES && !batch.is_empty()) {
                left.push_back(next);
                break;
            }
            let fence = match &next.unit.guard {
                Guard::None => None,
                Guard::Own(seen) if seen.0 != fence_epoch => {
                    drop(next.reply.send(Err(CommitError::FenceMoved)));
                    continue;
                }
                Guard::Own(_) => self.own.version().map(|version| (self.fence.path.clone(), version)),
                Guard::Foreign { path, version } => {
                    let chain = self.chains.get(path);
                    Some((path.clone(), chain.map_or(*version, |chain| chain.now(*version))))
                }
            };
            let fits = match (&next.unit.guard, &fence) {
                (Guard::None, _) => true,
                (_, None) => false,
                (_, Some((path, version))) => {
                    !self.fences_under_way.contains(path) && fences.get(path).is_none_or(|other| other == version)
                }
            };
            if !fits {
                left.push_back(next);
                continue;
            }
            if let (Guard::Foreign { version, .. }, Some((_, now))) = (&mut next.unit.guard, &fence) {
                // If the multi fails, the unit is sent by itself, starting from this version.
                *version = *now;
            }
            fences.extend(fence);
            bytes += size;
            batch.push(next);
        }
        left.append(&mut self.waiting);
        self.waiting = left;
        (batch, fences.into_iter().collect())
    }

    fn finish(&mut self, finished: FinishedWrite) {
        match finished {
            FinishedWrite::Batch(done) => self.finish_batch(done),
            FinishedWrite::Singles { fences, own } => {
                self.release(&fences);
                self.forget(&fences);
                if self.is_own_among(&fences) {
                    self.own = own;
                    if own.version().is_none() {
                        self.read_fence();
                    }
                }
            }
            FinishedWrite::Fence(Ok((version, moved))) => {
                self.own = FenceVersion::Version(version);
                if moved {
                    // Counted after the read, so that a caller that reads the new count reads its nodes later than
                    // that.
                    self.fence_epoch.fetch_add(1, Ordering::AcqRel);
                }
                self.fences_under_way.remove(&self.fence.path);
            }
            FinishedWrite::Fence(Err(_)) => self.read_fence(),
        }
    }

    fn finish_batch(&mut self, done: Done) {
        let Done { batch, fences, result, guards } = done;
        match result {
            Ok(committed) => {
                self.release(&fences);
                self.remember(&fences);
                if self.is_own_among(&fences) {
                    self.own = FenceVersion::Version(self.own.last().wrapping_add(1));
                }
                for (waiting, committed) in batch.into_iter().zip(committed) {
                    drop(waiting.reply.send(Ok(committed)));
                }
            }
            Err(CommitError::Part { .. } | CommitError::Zk(Error::TooLarge(_))) if batch.len() > 1 => {
                let singles = send_singles(self.session.clone(), self.fence.clone(), self.own, batch, fences);
                self.under_way.push(Box::pin(singles));
            }
            Err(error) => {
                self.release(&fences);
                self.forget(&fences);
                let error = match error {
                    CommitError::Part { index, .. } if index < guards => CommitError::FenceMoved,
                    CommitError::Part { index, code } => CommitError::Part { index: index - guards, code },
                    error => error,
                };
                let unknown = matches!(error, CommitError::Zk(error) if error.is_unknown());
                if self.is_own_among(&fences) && (unknown || error == CommitError::FenceMoved) {
                    self.read_fence();
                }
                for waiting in batch {
                    drop(waiting.reply.send(Err(error)));
                }
            }
        }
    }

    fn is_own_among(&self, fences: &[(String, i32)]) -> bool {
        fences.iter().any(|(fence, _)| *fence == self.fence.path)
    }

    fn release(&mut self, fences: &[(String, i32)]) {
        for (fence, _) in fences {
            self.fences_under_way.remove(fence);
        }
    }

    /// A multi of ours has changed these fences from these versions.
    fn remember(&mut self, fences: &[(String, i32)]) {
        if self.chains.len() > MAX_CHAINS {
            self.chains.clear();
        }
        for (fence, version) in fences.iter().filter(|(fence, _)| *fence != self.fence.path) {
            let chain = self.chains.get(fence).map(|chain| chain.grown(*version));
            self.chains.insert(fence.clone(), chain.unwrap_or(Chain { first: *version, steps: 1 }));
        }
    }

    /// The outcome for these fences is not known, or not ours alone.
    fn forget(&mut self, fences: &[(String, i32)]) {
        for (fence, _) in fences {
            self.chains.remove(fence);
        }
    }

    /// The own fence's version is not known: no unit that it guards is sent before the fence has been read.
    fn read_fence(&mut self) {
        let last = self.own.last();
        self.own = FenceVersion::Unsure { after: last };
        self.fences_under_way.insert(self.fence.path.clone());
        let (session, fence) = (self.session.clone(), self.fence.clone());
        self.under_way.push(Box::pin(async move {
            if !session.connected().await {
                // The session has ended, and so will the writer soon; no guarded unit can succeed any more.
                std::future::pending::<()>().await;
            }
            let read = read_fence(&session, &fence, last).await;
            if read.is_err() {
                tokio::time::sleep(FENCE_PAUSE).await;
            }
            FinishedWrite::Fence(read)
        }));
    }
}

/// The fence's version, and whether another replica has written it since it had version `last`.
async fn read_fence(session: &Session, fence: &Fence, last: i32) -> Result<(i32, bool), Error> {
    let path = &NodePath::trusted(fence.path.as_str());
    session.sync(path).await?;
    if let Some(read) = session.get(path).await? {
        let version = read.stat.version;
        let ours = version == last || (version == last.wrapping_add(1) && read.data == fence.mark);
        return Ok((version, !ours));
    }
    session.ensure_parents(path).await?;
    // The fence was deleted by hand. Without it nothing of this session could be taken over safely.
    session.create(path.as_str(), fence.mark.clone(), CreateMode::Ephemeral).await.map(|_| (0, true))
}

async fn send_batch(
    session: Session,
    guards: Vec<Request>,
    batch: Vec<Waiting>,
    fences: Vec<(String, i32)>,
) -> FinishedWrite {
    let guard_count = guards.len();
    let units: Vec<_> = batch.iter().map(|waiting| waiting.unit.ops.as_slice()).collect();
    let result = send(&session, guards, &units, Stats::Wanted).await;
    FinishedWrite::Batch(Done { batch, fences, result, guards: guard_count })
}

/// Sends each unit by itself, and answers it. Units of one fence follow each other, each with the version that the one
/// before it left; the others are pipelined.
async fn send_singles(
    session: Session,
    own_fence: Fence,
    own: FenceVersion,
    batch: Vec<Waiting>,
    fences: Vec<(String, i32)>,
) -> FinishedWrite {
    let mut pipelined = Vec::new();
    let mut guarded = Vec::new();
    for waiting in batch {
        match waiting.unit.guard {
            Guard::None => {
                let answer = send_one(&session, Vec::new(), &waiting.unit.ops, Stats::Wanted);
                pipelined.push(async move { drop(waiting.reply.send(answer.await)) });
            }
            _ => guarded.push(waiting),
        }
    }
    let guarded = async {
        let mut versions: HashMap<String, FenceVersion> = HashMap::from([(own_fence.path.clone(), own)]);
        for waiting in guarded {
            let (path, first) = match &waiting.unit.guard {
                Guard::Foreign { path, version } => (path.clone(), FenceVersion::Version(*version)),
                Guard::Own(_) | Guard::None => (own_fence.path.clone(), own),
            };
            let known = versions.entry(path.clone()).or_insert(first);
            let Some(version) = known.version() else {
                drop(waiting.reply.send(Err(CommitError::FenceMoved)));
                continue;
            };
            let guards = vec![own_fence.guard(&path, version)];
            let outcome = send_one(&session, guards, &waiting.unit.ops, Stats::Wanted).await;
            match &outcome {
                Ok(_) => *known = FenceVersion::Version(version.wrapping_add(1)),
                Err(CommitError::Part { .. }) => {}
                Err(CommitError::FenceMoved | CommitError::Zk(_)) => *known = FenceVersion::Unsure { after: version },
            }
            drop(waiting.reply.send(outcome));
        }
        versions.remove(&own_fence.path).unwrap_or(own)
    };
    let (_, own) = tokio::join!(futures_util::future::join_all(pipelined), guarded);
    FinishedWrite::Singles { fences, own }
}

/// Sends one unit at once.
pub(super) fn send_one(
    session: &Session,
    guards: Vec<Request>,
    ops: &[Request],
    stats: Stats,
) -> impl Future<Output = CommitResult> + Send + use<> {
    let guard_count = guards.len();
    let sent = send(session, guards, &[ops], stats);
    async move {
        match sent.await {
            Ok(mut committed) => committed.pop().ok_or(CommitError::Zk(Error::OutcomeUnknown)),
            Err(CommitError::Part { index, .. }) if index < guard_count => Err(CommitError::FenceMoved),
            Err(CommitError::Part { index, code }) => Err(CommitError::Part { index: index - guard_count, code }),
            Err(error) => Err(error),
        }
    }
}

/// Sends the guards and all units' operations as one transaction, and splits the answer.
fn send(
    session: &Session,
    guards: Vec<Request>,
    units: &[&[Request]],
    stats: Stats,
) -> impl Future<Output = Result<Vec<Committed>, CommitError>> + Send + use<> {
    let guard_count = guards.len();
    let mut all = guards;
    all.extend(units.iter().copied().flatten().cloned());
    let lengths: Vec<_> = units.iter().map(|ops| ops.len()).collect();
    let single = all.len() == 1;
    let created = if single || stats == Stats::Unwanted { None } else { Created::of(&all) };
    let sent = session.submit(if single { all.remove(0) } else { Request::Multi(all) });
    // Sent right behind it, so that it costs no time: a session's requests are carried out in order.
    let looked = created.map(|created| (session.submit(created.look()), created));
    let owner = session.id().0;
    async move {
        let answer = sent.await.map_err(|error| match error {
            Error::Refused(code) if single => CommitError::Part { index: 0, code },
            error => CommitError::Zk(error),
        })?;
        let mut results = match answer.response {
            Response::Parts(parts) => parts,
            response => vec![Ok(response)],
        };
        let failed =
            |result: &Result<_, ErrorCode>| matches!(result, Err(code) if *code != ErrorCode::RuntimeInconsistency);
        if let Some(index) = results.iter().position(failed) {
            let code = results[index].as_ref().err().copied().unwrap_or(ErrorCode::SystemError);
            return Err(CommitError::Part { index, code });
        }
        if let Some((looked, created)) = looked
            && let Ok(Answer { response: Response::Stat(stat), .. }) = looked.await
        {
            created.complete(&mut results, stat, answer.zxid, owner);
        }
        let mut parts = results.into_iter().flatten().skip(guard_count);
        Ok(lengths
            .into_iter()
            .map(|length| Committed { zxid: answer.zxid, parts: parts.by_ref().take(length).collect() })
            .collect())
    }
}
