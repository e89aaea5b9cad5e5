//! The task of one view: waits for work, reads, shows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;

use super::apart::apart;
use super::consistent_read::{ConsistentRead, Cut, ReadRound};
use super::fetch::{Failure, Line, Loaded};
use super::shared::Inner;
use super::state::State;
use super::view::{BackendState, ReadPoint, Refusal, View};
use crate::error::Error;
use crate::turns::{TurnPermit, Turns};
use crate::types::Zxid;
use crate::zk::{Batch, Link, Mailbox, Session, Subscription};

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_CAP: Duration = Duration::from_secs(2);
/// Maximum number of loads in a row that are discarded because their numbers of children disagree. The next one is
/// shown all the same.
const DISAGREEMENTS: u32 = 5;
/// Time for which a server that has answered a sync may be behind what was shown before, or what this process knows of.
const FALLEN_BACK_AFTER: Duration = Duration::from_secs(1);
/// Time after which a server that is behind what this process knows of is asked again.
const BEHIND_READ_PAUSE: Duration = Duration::from_millis(2);
/// Time after which the turn of a load ends, so that others begin as well: ZooKeeper may be out of reach of this load
/// alone.
const LOAD_TURN: Duration = Duration::from_secs(1);
/// Maximum number of connections in whose queues one view waits.
const LINES: usize = 64;
/// Time for which a path that is too large is refused without another attempt.
const REFUSED: Duration = Duration::from_secs(10);

pub(super) struct Task {
    view: Arc<View>,
    views: Arc<Inner>,
    /// The turns that the loads wait for, and the connection that they wait as; until the view is loaded for the first
    /// time.
    turns: Option<(Turns<()>, u64)>,
    /// The turn of the first load, and when it ends if ZooKeeper sends nothing.
    turn: Option<(TurnPermit<()>, Instant)>,
    mailbox: Arc<Mailbox>,
    subscription: Subscription,
    /// The reads that are needed.
    work: Work,
    /// Nothing is tried again before then.
    retry_at: Option<Instant>,
    failures: u32,
    disagreements: u32,
    /// Whether the last load was older than what is shown.
    is_behind: bool,
}

/// The reads that are needed.
enum Work {
    /// The nodes that events named, and what a barrier asks for.
    Changes(Box<ConsistentRead>),
    /// Everything.
    Everything,
    /// Everything, once a reader asks or something happens: the path is hidden.
    Demanded,
    /// Everything, but only once a reader asks: the path is too large, so an event is no reason to read all of it.
    Refused,
}

impl Task {
    /// Keeps the view up to date, and never ends. The first load waits for a turn of any connection that uses the view.
    /// Until then it asks ZooKeeper for nothing.
    pub(super) async fn run(view: Arc<View>, views: Arc<Inner>) {
        let turns = views.loads(&view.scope.path).clone();
        let (turn, connection) = first_turn(&view, &turns).await;
        let mailbox = view.mailbox.clone();
        let subscription = views.zk.hub.subscribe(&view.scope.path, &mailbox);
        let task = Self {
            view,
            views,
            turns: Some((turns, connection)),
            turn: Some((turn, Instant::now() + LOAD_TURN)),
            mailbox,
            subscription,
            work: Work::Everything,
            retry_at: None,
            failures: 0,
            disagreements: 0,
            is_behind: false,
        };
        task.serve().await;
    }

    async fn serve(mut self) {
        loop {
            if self.has_work() {
                // Boxed, so that the many views that only wait do not hold the memory that work needs.
                let result = Box::pin(self.work()).await;
                self.after(result).await;
            }
            self.wait().await;
        }
    }

    fn has_work(&self) -> bool {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        match &self.work {
            Work::Everything => true,
            Work::Demanded | Work::Refused => self.view.owes_barrier(),
            Work::Changes(consistent_read) => consistent_read.is_due() || self.view.owes_barrier(),
        }
    }

    /// Waits for an event that may bring work.
    async fn wait(&mut self) {
        if self.has_work() && self.subscription.connection().is_some() {
            return;
        }
        let session = self.subscription.session();
        let mut link = session.link();
        let state = *link.borrow_and_update();
        self.note_link(state, &session).await;
        let (mut changed, mut noticed) = (None, None);
        let (retry_at, turn_ends) = (self.retry_at, self.turn.as_ref().map(|(_, ends)| *ends));
        tokio::select! {
            batch = self.mailbox.next() => noticed = Some(batch),
            () = self.view.asked() => {}
            // A session that has expired reports nothing more; the mailbox reports when the next one watches.
            _ = link.changed(), if state != Link::Expired => changed = Some(*link.borrow()),
            () = sleep_until(retry_at) => self.retry_at = None,
            () = sleep_until(turn_ends) => self.turn = None,
        }
        if let Some(batch) = noticed {
            self.note(batch).await;
        }
        if let Some(state) = changed {
            // By the next round another session may have replaced this one.
            self.note_link(state, &session).await;
        }
    }

    async fn note(&mut self, batch: Batch) {
        let (scope, is_resync, upto) = (self.view.scope.clone(), !batch.resync.is_empty(), batch.upto);
        let (named, is_due) = apart(batch.events.len(), move || {
            let named = scope.named(&batch);
            // An event of the path itself names no node below it.
            let is_due = !named.is_empty() || batch.events.contains_key(scope.path.as_str());
            (named, is_due)
        })
        .await;
        match &mut self.work {
            Work::Changes(consistent_read) if is_due && !is_resync => consistent_read.want(named),
            Work::Changes(_) | Work::Demanded if is_resync => self.work = Work::Everything,
            Work::Demanded if is_due => self.work = Work::Everything,
            Work::Changes(_) | Work::Demanded | Work::Refused | Work::Everything => {}
        }
        if matches!(&self.work, Work::Changes(consistent_read) if !consistent_read.is_due()) {
            self.view.pass_over(upto).await;
        }
        // From the second failure on, the pause stays: this view's own reads may be what ends the connection, again and
        // again.
        if is_resync && self.failures < 2 {
            self.retry_at = None;
        }
    }

    async fn note_link(&self, link: Link, session: &Session) {
        let backend = match link {
            Link::Up(_) => return,
            Link::Down => BackendState::Suspended,
            Link::Expired => BackendState::Lost,
        };
        let heard = session.last_heard().map(|heard| SystemTime::now() - heard.elapsed());
        self.view.suspend(backend, heard).await;
    }

    /// Reads until everything that is known of is shown. If it fails, everything has to be read again.
    async fn work(&mut self) -> Result<(), Failure> {
        let batch = self.mailbox.take();
        self.note(batch).await;
        // Without a watch there is nothing to do: it is being set, and a resync follows.
        let line = Line::new(&self.subscription, &self.mailbox, &self.view.scope).ok_or(Failure::Resync)?;
        match std::mem::replace(&mut self.work, Work::Everything) {
            Work::Changes(consistent_read) => self.read_rounds(&line, *consistent_read, None).await?,
            Work::Everything | Work::Demanded | Work::Refused => {
                // A refusal answers the readers that have asked by now.
                self.view.begin_barrier();
                let turn = self.turn.take().map(|(turn, _)| turn);
                let Loaded { state, named } = line.load(turn, self.turns.as_ref(), |bytes| self.hold(bytes)).await?;
                let mut consistent_read = ConsistentRead::default();
                consistent_read.want(named);
                self.read_rounds(&line, consistent_read, Some(state)).await?;
                self.disagreements = 0;
                self.is_behind = false;
                self.turns = None;
            }
        }
        self.work = Work::Changes(Box::default());
        Ok(())
    }

    /// Reads rounds until nothing is open, and shows every cut.
    async fn read_rounds(
        &self,
        line: &Line<'_>,
        mut consistent_read: ConsistentRead,
        mut fresh: Option<State>,
    ) -> Result<(), Failure> {
        // A first load must not be older than what this process has seen either.
        let at_least = if fresh.is_some() { self.views.zk.last_zxid() } else { Zxid::default() };
        let mut barrier = Barrier::new(at_least);
        let mut is_undated = false;
        loop {
            // A reader that asks while a server is behind gets the next barrier, so that this one is not put off.
            let asked = if barrier.behind_since.is_some() { None } else { self.view.begin_barrier() };
            let is_new = barrier.renew(asked, || self.views.zk.last_zxid());
            let is_absent = fresh.as_ref().map_or_else(|| self.view.is_absent(), |state| !state.exists());
            let mut round = line.round(consistent_read.wanted(), is_absent || is_undated, is_new).await?;
            round.barrier = barrier.passed(round.zxid, Instant::now());
            is_undated = round.node.is_none();
            let cut;
            (consistent_read, cut) = finish(consistent_read, round).await;
            if let Some(cut) = cut {
                // The cut may belong to an earlier round.
                let is_old = barrier.is_ahead_of(cut.zxid);
                match fresh.take() {
                    Some(state) if is_old => fresh = Some(take_in(state, cut).await),
                    state => self.show(cut, state).await?,
                }
            }
            if fresh.is_none() && !consistent_read.is_due() && !self.view.owes_barrier() {
                return Ok(());
            }
            if let Some(since) = barrier.behind_since {
                tokio::time::sleep(BEHIND_READ_PAUSE.max(since.elapsed() / 4)).await;
            }
        }
    }

    async fn show(&self, cut: Cut, fresh: Option<State>) -> Result<(), Failure> {
        let Some(state) = fresh else {
            let is_right = self.view.show(cut).await.map_err(Failure::TooLarge)?;
            self.views.make_room();
            return if is_right { Ok(()) } else { Err(Failure::Disagrees) };
        };
        let Cut { zxid, arrived, barrier, .. } = cut;
        let state = take_in(state, cut).await;
        let (state, agrees) = apart(state.children.len(), move || {
            let agrees = state.agrees();
            (state, agrees)
        })
        .await;
        if !agrees && self.disagreements < DISAGREEMENTS {
            return Err(Failure::Disagrees);
        }
        if self.view.is_ahead_of(zxid) && !self.is_behind {
            return Err(Failure::Behind);
        }
        self.view.show_whole(state, ReadPoint { zxid, arrived, barrier }).await.map_err(Failure::TooLarge)
    }

    /// Takes memory for what was read so far; drops idle views if there is none.
    fn hold(&self, bytes: usize) -> Result<(), Error> {
        self.view.hold_for_load(bytes).or_else(|_| {
            self.views.make_room();
            self.view.hold_for_load(bytes)
        })
    }

    async fn after(&mut self, result: Result<(), Failure>) {
        let path = &self.view.scope.path;
        match result {
            Ok(()) => self.failures = 0,
            Err(Failure::Resync) => {}
            Err(Failure::Forbidden) => {
                self.work = Work::Demanded;
                self.view.forbid().await;
            }
            Err(Failure::TooLarge(error)) => {
                tracing::warn!(%path, %error, "a path is too large to be shown");
                let until = Instant::now() + REFUSED;
                self.work = Work::Refused;
                self.view.refuse(Refusal { error, until: Some(until) }).await;
            }
            Err(Failure::Disagrees) => {
                self.disagreements += 1;
                tracing::warn!(%path, times = self.disagreements, "a view missed something and is loaded again");
                self.retry_at = (self.disagreements > 1).then(|| Instant::now() + pause(self.disagreements));
            }
            Err(Failure::Behind) => {
                self.is_behind = true;
                self.retry_at = Some(Instant::now() + FALLEN_BACK_AFTER);
            }
            Err(Failure::Zk(error)) => {
                self.failures += 1;
                tracing::debug!(%path, %error, "a view can't be read");
                self.retry_at = Some(Instant::now() + pause(self.failures));
            }
        }
    }
}

/// A turn of any of the connections that use a view, and the number of that connection. So a connection that asks for
/// much does not delay another one that asks for the same view.
async fn first_turn(view: &View, turns: &Turns<()>) -> (TurnPermit<()>, u64) {
    let (mut waiting, mut lines) = (FuturesUnordered::new(), BTreeSet::new());
    loop {
        for connection in view.users(LINES) {
            if lines.len() < LINES && lines.insert(connection) {
                waiting.push(turns.turn(&(), connection).map(move |turn| (turn, connection)));
            }
        }
        tokio::select! {
            Some(first) = waiting.next() => return first,
            () = view.joined() => {}
        }
    }
}

/// [`ConsistentRead::finish`], which takes long after many events.
async fn finish(mut consistent_read: ConsistentRead, round: ReadRound) -> (ConsistentRead, Option<Cut>) {
    let names = consistent_read.wanted().len() + round.reads.len();
    apart(names, move || {
        let cut = consistent_read.finish(round);
        (consistent_read, cut)
    })
    .await
}

/// Adds a cut to a state that is not complete yet.
async fn take_in(mut state: State, cut: Cut) -> State {
    let Cut { node, reads, .. } = cut;
    apart(reads.len(), move || {
        drop(state.take_in(node, reads));
        state
    })
    .await
}

/// The needs of a barrier or a load: a sync, and a server that has come as far as this process knows ZooKeeper has.
///
/// The latter is for sessions that are connected to the leader: it answers a sync at once, though it may show a write a
/// moment later than the follower that has acknowledged it.
struct Barrier {
    number: u64,
    at_least: Zxid,
    /// The moment since which the server is known to be behind.
    behind_since: Option<Instant>,
}

impl Barrier {
    fn new(at_least: Zxid) -> Self {
        Self { number: 0, at_least, behind_since: None }
    }

    /// Adopts a barrier that was asked for; returns whether a sync is needed.
    fn renew(&mut self, asked: Option<u64>, at_least: impl FnOnce() -> Zxid) -> bool {
        if let Some(number) = asked.filter(|number| *number > self.number) {
            *self = Self { number, ..Self::new(at_least()) };
            return true;
        }
        self.behind_since.is_some()
    }

    /// The barrier, if any, that a read at this transaction is behind. A server that stays behind has lost its past,
    /// and is accepted as it is.
    fn passed(&mut self, zxid: Zxid, now: Instant) -> u64 {
        let since = self.behind_since.take().unwrap_or(now);
        if !self.is_ahead_of(zxid) {
            return self.number;
        }
        if now.duration_since(since) >= FALLEN_BACK_AFTER {
            self.at_least = zxid;
            return self.number;
        }
        self.behind_since = Some(since);
        0
    }

    /// Whether a read at this transaction is too old.
    fn is_ahead_of(&self, zxid: Zxid) -> bool {
        zxid < self.at_least
    }
}

/// The pause after this many failures in a row.
fn pause(failures: u32) -> Duration {
    RETRY_FIRST.saturating_mul(1 << failures.clamp(1, 16)).min(RETRY_CAP)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::super::purse::Purse;
    use super::super::ring;
    use super::super::scope::Scope;
    use super::*;
    use crate::budget::{Budget, Limits};
    use crate::types::NodePath;

    #[test]
    fn a_barrier_waits_for_a_server_that_is_behind_but_not_for_ever() {
        let mut barrier = Barrier::new(Zxid(0));
        let now = Instant::now();
        assert!(!barrier.renew(None, || panic!("nobody asks")));
        assert_eq!(barrier.passed(Zxid(3), now), 0);
        assert!(barrier.renew(Some(1), || Zxid(10)));
        assert_eq!(barrier.passed(Zxid(9), now), 0);
        assert!(barrier.behind_since.is_some() && barrier.renew(None, || panic!("it is the same barrier")));
        assert_eq!(barrier.passed(Zxid(10), now), 1);
        assert!(!barrier.renew(Some(1), || panic!("it is the same barrier")));
        assert!(barrier.renew(Some(2), || Zxid(20)));
        // However late it is, the server was not behind before.
        let late = now + 10 * FALLEN_BACK_AFTER;
        assert_eq!(barrier.passed(Zxid(9), late), 0);
        let almost = late + FALLEN_BACK_AFTER.mul_f64(0.9);
        assert!((0..1000).all(|_| barrier.passed(Zxid(9), almost) == 0));
        assert_eq!(barrier.passed(Zxid(9), late + FALLEN_BACK_AFTER), 2);
        assert!(barrier.behind_since.is_none() && !barrier.is_ahead_of(Zxid(9)));
    }

    #[tokio::test]
    async fn a_load_waits_in_the_lines_of_all_connections_that_want_it() {
        let budget = Budget::new(Limits::NONE, Limits::NONE);
        let (modest, greedy) = (budget.account(), budget.account());
        let turns = Turns::new(1);
        let current = turns.turn(&(), 99).await;
        let mut others: Vec<_> = (0..100).map(|_| Box::pin(turns.turn(&(), greedy.id()))).collect();
        assert!(others.iter_mut().all(|other| other.now_or_never().is_none()));
        let scope = Scope { path: NodePath::trusted("/a"), recursive: false };
        let purse = Purse::new(&greedy, budget.common_account(), 1);
        let view = View::new(scope, ring::Limits { moments: 1, bytes: 1 }, purse);
        let mut first = Box::pin(first_turn(&view, &turns));
        assert!((&mut first).now_or_never().is_none());
        view.join(&modest).unwrap();
        assert!((&mut first).now_or_never().is_none());
        // Each connection gets one turn.
        drop(current);
        drop(others.iter_mut().find_map(|other| other.now_or_never()).expect("one of the greedy has the turn"));
        let (_turn, connection) = first.now_or_never().expect("it has a turn");
        assert_eq!(connection, modest.id());
    }

    #[test]
    fn a_moment_of_an_earlier_round_is_not_taken_for_what_the_last_one_reached() {
        let mut barrier = Barrier::new(Zxid(10));
        barrier.passed(Zxid(9), Instant::now());
        barrier.passed(Zxid(10), Instant::now());
        assert!(barrier.behind_since.is_none());
        assert!(barrier.is_ahead_of(Zxid(9)) && !barrier.is_ahead_of(Zxid(10)));
    }

    #[test]
    fn pauses_grow_up_to_a_cap() {
        assert_eq!(pause(1), 2 * RETRY_FIRST);
        assert_eq!(pause(u32::MAX), RETRY_CAP);
    }
}
