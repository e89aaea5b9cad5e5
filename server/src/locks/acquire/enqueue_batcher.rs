//! While a lock changes hands fast on this replica, a new contender is created in the transaction of the next handoff,
//! so that ZooKeeper writes both to its disk at once.
//!
//! A new contender waits for a handoff at most half as long again as the last one took. If it waits in vain, later ones
//! wait more rarely: perhaps the holder gives the lock back only when another contender is in the queue.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::hints::HintTable;
use crate::types::{NodePath, SessionId};
use crate::zk::{Request, Response};

/// A lock changes hands fast if its last two handoffs are no further apart. With a larger value new contenders wait
/// longer.
const FAST: Duration = Duration::from_millis(20);
/// Maximum number of contenders that one transaction creates. A larger value delays the handoff.
const MOST: usize = 16;
/// Number of waits in vain in a row after which waits do not become rarer any more.
const MISSES: u32 = 10;

/// The rate at which a lock changes hands on this replica.
#[derive(Debug, Clone, Copy)]
struct HandoffRate {
    session: SessionId,
    changed_at: Instant,
    /// The time between the last two handoffs, if it is short.
    interval: Option<Duration>,
    /// Number of waits in vain in a row.
    misses: u32,
    /// Number of new contenders that will not wait, because others have waited in vain.
    skipped: u32,
}

/// The new contenders that wait for the next handoff of each lock.
#[derive(Debug, Default)]
pub(crate) struct EnqueueBatcher {
    rates: HintTable<HandoffRate>,
    waiting: Mutex<HashMap<NodePath, Vec<BatchedEnqueue>>>,
}

/// A new contender that waits for a handoff.
#[derive(Debug)]
pub(crate) struct BatchedEnqueue {
    session: SessionId,
    enqueue: Request,
    result: oneshot::Sender<BatchResult>,
}

/// The result of a wait for a handoff.
#[derive(Debug, PartialEq)]
pub(crate) enum BatchResult {
    /// The contender was created; this is the answer to its create.
    Done(Response),
    /// The contender was not created: it has to be created by a transaction of its own.
    No,
    /// The transaction was not answered.
    Unknown,
}

impl HandoffRate {
    /// The rate after another handoff.
    fn after(before: Option<HandoffRate>, session: SessionId, now: Instant) -> HandoffRate {
        let Some(before) = before.filter(|before| before.session == session) else {
            return HandoffRate { session, changed_at: now, interval: None, misses: 0, skipped: 0 };
        };
        let interval = Some(now - before.changed_at).filter(|interval| *interval <= FAST);
        HandoffRate { changed_at: now, interval, ..before }
    }

    /// Time until which the next handoff in this session is worth a wait. `None`: it is not.
    fn next_until(self, session: SessionId, now: Instant) -> Option<Instant> {
        let until = self.changed_at + self.interval.filter(|_| self.session == session)? * 3 / 2;
        (now <= until && self.skipped == 0).then_some(until)
    }

    /// The rate after a contender was created with a handoff, or has waited in vain.
    fn tried(self, is_miss: bool) -> HandoffRate {
        let misses = if is_miss { (self.misses + 1).min(MISSES) } else { 0 };
        HandoffRate { misses, skipped: if is_miss { 1 << misses } else { 0 }, ..self }
    }
}

impl EnqueueBatcher {
    /// A handoff was done in this session.
    pub(crate) fn changed(&self, path: &NodePath, session: SessionId) {
        self.rates.set(path, HandoffRate::after(self.rates.get(path), session, Instant::now()));
    }

    /// The lock was given back without a handoff.
    pub(crate) fn paused(&self, path: &NodePath) {
        self.note(path, |rate| HandoffRate { interval: None, ..rate });
    }

    /// Time until which the next handoff in this session is worth a wait; `None`: it is not.
    pub(crate) fn next_until(&self, path: &NodePath, session: SessionId) -> Option<Instant> {
        self.rates.get(path)?.next_until(session, Instant::now())
    }

    /// Creates a contender in the transaction of the next handoff, if that is likely to be near, and before `deadline`.
    pub(crate) async fn enqueue(
        &self,
        path: &NodePath,
        session: SessionId,
        enqueue: &Request,
        deadline: Option<Instant>,
    ) -> BatchResult {
        let is_soon = |until: &Instant| deadline.is_none_or(|deadline| *until < deadline);
        let Some(until) = self.next_until(path, session).filter(is_soon) else {
            self.note(path, |rate| HandoffRate { skipped: rate.skipped.saturating_sub(1), ..rate });
            return BatchResult::No;
        };
        let changed_at = self.rates.get(path).map(|rate| rate.changed_at);
        let (result, mut outcome) = oneshot::channel();
        let batched = BatchedEnqueue { session, enqueue: enqueue.clone(), result };
        self.waiting.lock().entry(path.clone()).or_default().push(batched);
        let answered = tokio::time::timeout_at(until, &mut outcome).await.ok();
        let is_left = answered.is_none() && self.withdraw(path, enqueue);
        // It is no miss if a handoff took other contenders instead.
        self.note(path, |rate| rate.tried(is_left && Some(rate.changed_at) == changed_at));
        match answered {
            Some(outcome) => outcome.unwrap_or(BatchResult::Unknown),
            None if is_left => BatchResult::No,
            // A transaction with it is in flight.
            None => outcome.await.unwrap_or(BatchResult::Unknown),
        }
    }

    fn note(&self, path: &NodePath, change: impl FnOnce(HandoffRate) -> HandoffRate) {
        if let Some(rate) = self.rates.get(path) {
            self.rates.set(path, change(rate));
        }
    }

    /// Returns whether the contender was still waiting.
    fn withdraw(&self, path: &NodePath, enqueue: &Request) -> bool {
        let mut waiting = self.waiting.lock();
        let Some(batched) = waiting.get_mut(path) else { return false };
        let before = batched.len();
        // Each request has a name of its own.
        batched.retain(|other| other.enqueue != *enqueue);
        let was_waiting = batched.len() < before;
        if batched.is_empty() {
            waiting.remove(path);
        }
        was_waiting
    }

    /// The contenders that a handoff in this session creates now.
    pub(crate) fn take(&self, path: &NodePath, session: SessionId) -> Vec<BatchedEnqueue> {
        let mut waiting = self.waiting.lock();
        let Some(batched) = waiting.get_mut(path) else { return Vec::new() };
        let is_here = |other: &mut BatchedEnqueue| other.session == session && !other.result.is_closed();
        let taken = batched.extract_if(.., is_here).take(MOST).collect();
        if batched.is_empty() {
            waiting.remove(path);
        }
        taken
    }
}

impl BatchedEnqueue {
    /// The operation for the transaction.
    pub(crate) fn request(&self) -> Request {
        self.enqueue.clone()
    }

    /// Reports the result. Without a report the result counts as not known.
    pub(crate) fn tell(self, result: BatchResult) {
        // The contender waits for it.
        let _ = self.result.send(result);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use futures_util::future::FutureExt as _;

    use super::*;
    use crate::zk::{self, CreateMode};

    const HERE: SessionId = SessionId(1);

    static PATH: LazyLock<NodePath> = LazyLock::new(|| NodePath::trusted("/a"));

    fn enter(name: &str) -> Request {
        zk::create(&format!("/a-__lock__/{name}"), "".into(), CreateMode::EphemeralSequential)
    }

    #[test]
    fn the_next_handoff_is_near_after_two_that_were_and_in_one_session() {
        let (now, there) = (Instant::now(), SessionId(2));
        let (soon, late) = (now + FAST / 2, now + FAST + Duration::from_nanos(1));
        let once = HandoffRate::after(None, HERE, now);
        assert_eq!(once.next_until(HERE, now), None);
        assert_eq!(HandoffRate::after(Some(once), HERE, late).next_until(HERE, late), None, "they were far apart");
        assert_eq!(
            HandoffRate::after(Some(once), there, soon).next_until(there, soon),
            None,
            "they were in two sessions"
        );
        let twice = HandoffRate::after(Some(once), HERE, soon);
        let until = soon + FAST * 3 / 4;
        assert_eq!(twice.next_until(HERE, until), Some(until));
        assert_eq!(twice.next_until(HERE, until + Duration::from_nanos(1)), None);
        assert_eq!(twice.next_until(there, soon), None);
    }

    #[test]
    fn waits_in_vain_make_others_wait_ever_more_rarely_until_one_does_not() {
        let now = Instant::now();
        let rate = HandoffRate { session: HERE, changed_at: now, interval: Some(FAST), misses: 0, skipped: 0 };
        let missed = rate.tried(true);
        assert_eq!((missed.skipped, missed.next_until(HERE, now)), (2, None));
        assert_eq!(HandoffRate::after(Some(missed), HERE, now).skipped, 2);
        assert_eq!(missed.tried(true).skipped, 4);
        assert_eq!((0..40).fold(rate, |rate, _| rate.tried(true)).skipped, 1 << MISSES);
        assert!(missed.tried(true).tried(false).next_until(HERE, now).is_some());
    }

    /// A lock that changes hands fast, and has just done so, however slow the test is.
    fn fast() -> EnqueueBatcher {
        let batcher = EnqueueBatcher::default();
        let changed_at = Instant::now() + Duration::from_millis(100);
        batcher
            .rates
            .set(&PATH, HandoffRate { session: HERE, changed_at, interval: Some(FAST), misses: 0, skipped: 0 });
        batcher
    }

    #[tokio::test]
    async fn no_contender_waits_for_a_handoff_that_is_not_near() {
        let batcher = EnqueueBatcher::default();
        assert_eq!(batcher.enqueue(&PATH, HERE, &enter("a"), None).now_or_never(), Some(BatchResult::No));
        batcher.changed(&PATH, HERE);
        assert_eq!(batcher.enqueue(&PATH, HERE, &enter("a"), None).now_or_never(), Some(BatchResult::No));
        let fast = fast();
        assert_eq!(fast.enqueue(&PATH, HERE, &enter("a"), None).now_or_never(), None);
        let soon = Some(Instant::now());
        assert_eq!(fast.enqueue(&PATH, HERE, &enter("b"), soon).now_or_never(), Some(BatchResult::No));
    }

    #[tokio::test]
    async fn a_new_contender_is_created_with_the_next_handoff_of_its_session() {
        let batcher = fast();
        let change = async {
            tokio::task::yield_now().await;
            assert!(batcher.take(&PATH, SessionId(2)).is_empty());
            let mut taken = batcher.take(&PATH, HERE);
            assert_eq!(taken.iter().map(BatchedEnqueue::request).collect::<Vec<_>>(), [enter("a"), enter("b")]);
            drop(taken.pop());
            // The answer may take longer than a contender waits for a handoff.
            tokio::time::sleep(FAST * 2).await;
            taken.remove(0).tell(BatchResult::Done(Response::Done));
        };
        let (a, b) = (enter("a"), enter("b"));
        let (a, b, ()) =
            tokio::join!(batcher.enqueue(&PATH, HERE, &a, None), batcher.enqueue(&PATH, HERE, &b, None), change);
        assert_eq!((a, b), (BatchResult::Done(Response::Done), BatchResult::Unknown));
        assert!(batcher.waiting.lock().is_empty());
    }

    #[tokio::test]
    async fn a_contender_that_has_waited_in_vain_is_created_alone() {
        let batcher = fast();
        assert_eq!(batcher.enqueue(&PATH, HERE, &enter("a"), None).await, BatchResult::No);
        assert!(batcher.take(&PATH, HERE).is_empty());
        assert!(batcher.waiting.lock().is_empty());
        for _ in 0..2 {
            assert_eq!(batcher.enqueue(&PATH, HERE, &enter("b"), None).now_or_never(), Some(BatchResult::No));
        }
        assert_eq!(batcher.rates.get(&PATH).unwrap().skipped, 0);
    }

    #[tokio::test]
    async fn a_handoff_creates_a_bounded_number_of_contenders() {
        let batcher = fast();
        let requests: Vec<_> = (0..MOST + 1).map(|number| enter(&number.to_string())).collect();
        let entering = requests.iter().map(|request| batcher.enqueue(&PATH, HERE, request, None));
        let change = async {
            tokio::task::yield_now().await;
            let taken = batcher.take(&PATH, HERE);
            assert_eq!(taken.len(), MOST);
            taken.into_iter().for_each(|entrant| entrant.tell(BatchResult::Done(Response::Done)));
        };
        let (entered, ()) = tokio::join!(futures_util::future::join_all(entering), change);
        assert_eq!(entered.iter().filter(|entered| **entered == BatchResult::No).count(), 1);
    }
}
