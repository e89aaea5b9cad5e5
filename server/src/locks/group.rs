//! Group commit: while a lock changes hands fast on this replica, whoever comes takes its place in the queue in the
//! transaction of the next change, so that ZooKeeper writes both to its disk at once.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::lock;
use super::memory::Memory;
use crate::types::{NodePath, SessionId};
use crate::zk::{Request, Response};

/// A lock changes hands fast when its last two changes are no further apart.
const FAST: Duration = Duration::from_millis(20);
/// How many take their places in one transaction.
const MOST: usize = 16;
/// How often in a row waiting for a change in vain makes the waits rarer.
const MISSES: u32 = 10;

/// When a lock changed hands here.
#[derive(Debug, Clone, Copy)]
struct Pace {
    session: SessionId,
    changed_at: Instant,
    /// The time between the last two changes, if that is short.
    interval: Option<Duration>,
    /// How often in a row one who came has waited in vain: perhaps nobody gives the lock back before it is in the queue.
    misses: u32,
    /// How many who come do not wait, therefore.
    skipped: u32,
}

/// Those who wait for the next change of each lock.
#[derive(Debug, Default)]
pub(super) struct Groups {
    paces: Memory<Pace>,
    waiting: Mutex<HashMap<NodePath, Vec<Entrant>>>,
}

/// One who comes.
#[derive(Debug)]
pub(super) struct Entrant {
    session: SessionId,
    enter: Request,
    entered: oneshot::Sender<Entered>,
}

/// What became of one who waited for a change.
#[derive(Debug, PartialEq)]
pub(super) enum Entered {
    /// It is in the queue, by this answer.
    Done(Response),
    /// It is not: it has to enter by itself.
    No,
    /// The transaction was not answered.
    Unknown,
}

impl Pace {
    /// After another change.
    fn after(before: Option<Pace>, session: SessionId, now: Instant) -> Pace {
        let Some(before) = before.filter(|before| before.session == session) else {
            return Pace { session, changed_at: now, interval: None, misses: 0, skipped: 0 };
        };
        let interval = Some(now - before.changed_at).filter(|interval| *interval <= FAST);
        Pace { changed_at: now, interval, ..before }
    }

    /// Until when the next change in this session is worth waiting for: half as long again as the last one took. `None`:
    /// it is not.
    fn next_until(self, session: SessionId, now: Instant) -> Option<Instant> {
        let until = self.changed_at + self.interval.filter(|_| self.session == session)? * 3 / 2;
        (now <= until && self.skipped == 0).then_some(until)
    }

    /// After one who came has entered with a change, or has waited for it in vain.
    fn tried(self, is_miss: bool) -> Pace {
        let misses = if is_miss { (self.misses + 1).min(MISSES) } else { 0 };
        Pace { misses, skipped: if is_miss { 1 << misses } else { 0 }, ..self }
    }
}

impl Groups {
    /// The lock has changed hands in this session.
    pub(super) fn changed(&self, path: &NodePath, session: SessionId) {
        self.paces.set(path, Pace::after(self.paces.get(path), session, Instant::now()));
    }

    /// The lock was given back, and passed to nobody.
    pub(super) fn paused(&self, path: &NodePath) {
        self.note(path, |pace| Pace { interval: None, ..pace });
    }

    /// Until when the next change of hands in this session is worth waiting for; `None`: it is not.
    pub(super) fn next_until(&self, path: &NodePath, session: SessionId) -> Option<Instant> {
        self.paces.get(path)?.next_until(session, Instant::now())
    }

    /// Enters the queue in the transaction of the next change of hands, if one is likely to be near, and before `deadline`.
    pub(super) async fn enter(
        &self,
        path: &NodePath,
        session: SessionId,
        enter: &Request,
        deadline: Option<Instant>,
    ) -> Entered {
        let is_soon = |until: &Instant| deadline.is_none_or(|deadline| *until < deadline);
        let Some(until) = self.next_until(path, session).filter(is_soon) else {
            self.note(path, |pace| Pace { skipped: pace.skipped.saturating_sub(1), ..pace });
            return Entered::No;
        };
        let changed_at = self.paces.get(path).map(|pace| pace.changed_at);
        let (entered, mut outcome) = oneshot::channel();
        let entrant = Entrant { session, enter: enter.clone(), entered };
        lock(&self.waiting).entry(path.clone()).or_default().push(entrant);
        let answered = tokio::time::timeout_at(until, &mut outcome).await.ok();
        let is_left = answered.is_none() && self.withdraw(path, enter);
        // Others were taken along where the lock has changed hands.
        self.note(path, |pace| pace.tried(is_left && Some(pace.changed_at) == changed_at));
        match answered {
            Some(outcome) => outcome.unwrap_or(Entered::Unknown),
            None if is_left => Entered::No,
            // It was taken before, and is answered yet.
            None => outcome.await.unwrap_or(Entered::Unknown),
        }
    }

    fn note(&self, path: &NodePath, change: impl FnOnce(Pace) -> Pace) {
        if let Some(pace) = self.paces.get(path) {
            self.paces.set(path, change(pace));
        }
    }

    /// Whether it was still waiting.
    fn withdraw(&self, path: &NodePath, enter: &Request) -> bool {
        let mut waiting = lock(&self.waiting);
        let Some(entrants) = waiting.get_mut(path) else { return false };
        let before = entrants.len();
        // Each has a name of its own.
        entrants.retain(|entrant| entrant.enter != *enter);
        let was_waiting = entrants.len() < before;
        if entrants.is_empty() {
            waiting.remove(path);
        }
        was_waiting
    }

    /// Those who enter with a change of hands that is made in this session now.
    pub(super) fn take(&self, path: &NodePath, session: SessionId) -> Vec<Entrant> {
        let mut waiting = lock(&self.waiting);
        let Some(entrants) = waiting.get_mut(path) else { return Vec::new() };
        let is_here = |entrant: &mut Entrant| entrant.session == session && !entrant.entered.is_closed();
        let taken = entrants.extract_if(.., is_here).take(MOST).collect();
        if entrants.is_empty() {
            waiting.remove(path);
        }
        taken
    }
}

impl Entrant {
    /// What the transaction has to do for it.
    pub(super) fn request(&self) -> Request {
        self.enter.clone()
    }

    /// Tells it what came of that. One that is dropped takes it for not known.
    pub(super) fn tell(self, entered: Entered) {
        // It waits for this.
        let _ = self.entered.send(entered);
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
    fn the_next_change_is_near_after_two_that_were_and_in_one_session() {
        let (now, there) = (Instant::now(), SessionId(2));
        let (soon, late) = (now + FAST / 2, now + FAST + Duration::from_nanos(1));
        let once = Pace::after(None, HERE, now);
        assert_eq!(once.next_until(HERE, now), None);
        assert_eq!(Pace::after(Some(once), HERE, late).next_until(HERE, late), None, "they were far apart");
        assert_eq!(Pace::after(Some(once), there, soon).next_until(there, soon), None, "they were in two sessions");
        let twice = Pace::after(Some(once), HERE, soon);
        let until = soon + FAST * 3 / 4;
        assert_eq!(twice.next_until(HERE, until), Some(until));
        assert_eq!(twice.next_until(HERE, until + Duration::from_nanos(1)), None);
        assert_eq!(twice.next_until(there, soon), None);
    }

    #[test]
    fn who_waits_in_vain_makes_others_wait_ever_more_rarely_until_one_does_not() {
        let now = Instant::now();
        let pace = Pace { session: HERE, changed_at: now, interval: Some(FAST), misses: 0, skipped: 0 };
        let missed = pace.tried(true);
        assert_eq!((missed.skipped, missed.next_until(HERE, now)), (2, None));
        assert_eq!(Pace::after(Some(missed), HERE, now).skipped, 2);
        assert_eq!(missed.tried(true).skipped, 4);
        assert_eq!((0..40).fold(pace, |pace, _| pace.tried(true)).skipped, 1 << MISSES);
        assert!(missed.tried(true).tried(false).next_until(HERE, now).is_some());
    }

    /// A lock that changes hands fast, and has just done so, however slow the test is.
    fn fast() -> Groups {
        let groups = Groups::default();
        let changed_at = Instant::now() + Duration::from_millis(100);
        groups.paces.set(&PATH, Pace { session: HERE, changed_at, interval: Some(FAST), misses: 0, skipped: 0 });
        groups
    }

    #[tokio::test]
    async fn nobody_waits_for_a_change_that_is_not_near() {
        let groups = Groups::default();
        assert_eq!(groups.enter(&PATH, HERE, &enter("a"), None).now_or_never(), Some(Entered::No));
        groups.changed(&PATH, HERE);
        assert_eq!(groups.enter(&PATH, HERE, &enter("a"), None).now_or_never(), Some(Entered::No));
        let fast = fast();
        assert_eq!(fast.enter(&PATH, HERE, &enter("a"), None).now_or_never(), None);
        let soon = Some(Instant::now());
        assert_eq!(fast.enter(&PATH, HERE, &enter("b"), soon).now_or_never(), Some(Entered::No));
    }

    #[tokio::test]
    async fn who_comes_enters_with_the_next_change_of_its_session() {
        let groups = fast();
        let change = async {
            tokio::task::yield_now().await;
            assert!(groups.take(&PATH, SessionId(2)).is_empty());
            let mut taken = groups.take(&PATH, HERE);
            assert_eq!(taken.iter().map(Entrant::request).collect::<Vec<_>>(), [enter("a"), enter("b")]);
            drop(taken.pop());
            // The answer may take longer than anybody waits for a change.
            tokio::time::sleep(FAST * 2).await;
            taken.remove(0).tell(Entered::Done(Response::Done));
        };
        let (a, b) = (enter("a"), enter("b"));
        let (a, b, ()) = tokio::join!(groups.enter(&PATH, HERE, &a, None), groups.enter(&PATH, HERE, &b, None), change);
        assert_eq!((a, b), (Entered::Done(Response::Done), Entered::Unknown));
        assert!(lock(&groups.waiting).is_empty());
    }

    #[tokio::test]
    async fn who_has_waited_in_vain_enters_by_itself_alone() {
        let groups = fast();
        assert_eq!(groups.enter(&PATH, HERE, &enter("a"), None).await, Entered::No);
        assert!(groups.take(&PATH, HERE).is_empty());
        assert!(lock(&groups.waiting).is_empty());
        for _ in 0..2 {
            assert_eq!(groups.enter(&PATH, HERE, &enter("b"), None).now_or_never(), Some(Entered::No));
        }
        assert_eq!(groups.paces.get(&PATH).unwrap().skipped, 0);
    }

    #[tokio::test]
    async fn a_change_takes_a_bounded_number_along() {
        let groups = fast();
        let requests: Vec<_> = (0..MOST + 1).map(|number| enter(&number.to_string())).collect();
        let entering = requests.iter().map(|request| groups.enter(&PATH, HERE, request, None));
        let change = async {
            tokio::task::yield_now().await;
            let taken = groups.take(&PATH, HERE);
            assert_eq!(taken.len(), MOST);
            taken.into_iter().for_each(|entrant| entrant.tell(Entered::Done(Response::Done)));
        };
        let (entered, ()) = tokio::join!(futures_util::future::join_all(entering), change);
        assert_eq!(entered.iter().filter(|entered| **entered == Entered::No).count(), 1);
    }
}
