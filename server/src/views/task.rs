//! The task of one view: waits for something to do, reads, shows.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::fetch::{Failure, Line, Loaded};
use super::rounds::{Moment, Rounds};
use super::state::State;
use super::view::{BackendState, View};
use crate::types::Zxid;
use crate::zk::{Batch, Link, Mailbox, Session, Subscription, Zk};

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_CAP: Duration = Duration::from_secs(2);
/// How often in a row a load whose numbers of children disagree is thrown away, before it is shown all the same.
const DISAGREEMENTS: u32 = 5;
/// How long a server that has answered a sync may be behind what was shown before, or what this process knows of.
const FALLEN_BACK_AFTER: Duration = Duration::from_secs(1);
/// How soon a server is asked again that is behind what this process knows of.
const LAG: Duration = Duration::from_millis(2);

pub(super) struct Task {
    view: Arc<View>,
    zk: Zk,
    mailbox: Arc<Mailbox>,
    subscription: Subscription,
    /// What has to be read.
    work: Work,
    /// Not before then is anything tried again.
    retry_at: Option<Instant>,
    failures: u32,
    disagreements: u32,
    /// That the last load was older than what is shown.
    is_behind: bool,
}

/// What has to be read.
enum Work {
    /// What events named, and what a barrier asks for.
    Changes(Box<Rounds>),
    /// Everything.
    Everything,
    /// Everything, but only when somebody asks: the path was refused.
    Demanded,
}

impl Task {
    pub(super) fn new(view: Arc<View>, zk: Zk) -> Self {
        let mailbox = Arc::new(Mailbox::default());
        let subscription = zk.hub.subscribe(&view.scope.path, &mailbox);
        let (work, retry_at) = (Work::Everything, None);
        Self { view, zk, mailbox, subscription, work, retry_at, failures: 0, disagreements: 0, is_behind: false }
    }

    /// Keeps the view up to date until `retire` resolves or somebody else ends the view.
    pub(super) async fn run(mut self, retire: impl Future<Output = ()>) {
        let view = self.view.clone();
        tokio::select! {
            () = view.stopped() => {}
            () = retire => {}
            () = self.serve() => {}
        }
    }

    async fn serve(&mut self) {
        loop {
            if self.has_work() {
                let result = self.work().await;
                self.after(result);
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
            Work::Demanded => self.view.owes_barrier(),
            Work::Changes(rounds) => rounds.are_due() || self.view.owes_barrier(),
        }
    }

    /// Waits for something that may be work.
    async fn wait(&mut self) {
        if self.has_work() && self.subscription.connection().is_some() {
            return;
        }
        let session = self.subscription.session();
        let mut link = session.link();
        let state = *link.borrow_and_update();
        self.note_link(state, &session);
        let mut changed = None;
        let retry_at = self.retry_at;
        tokio::select! {
            batch = self.mailbox.next() => self.note(&batch),
            () = self.view.asked() => {}
            // A session that has expired says no more; the mailbox tells when the next one watches.
            _ = link.changed(), if state != Link::Expired => changed = Some(*link.borrow()),
            () = sleep_until(retry_at) => self.retry_at = None,
        }
        if let Some(state) = changed {
            // By the next round another session may have taken this one's place.
            self.note_link(state, &session);
        }
    }

    fn note(&mut self, batch: &Batch) {
        let scope = &self.view.scope;
        let named = scope.named(batch);
        // What happened to the path itself names nothing below it.
        let is_due = !named.is_empty() || batch.events.contains_key(scope.path.as_str());
        let is_resync = !batch.resync.is_empty();
        match &mut self.work {
            Work::Changes(rounds) if is_due && !is_resync => rounds.want(named),
            Work::Changes(_) | Work::Demanded if is_resync => self.work = Work::Everything,
            Work::Demanded if is_due => self.work = Work::Everything,
            Work::Changes(_) | Work::Demanded | Work::Everything => {}
        }
        // It may be this view's own reads that end the connection, again and again.
        if is_resync && self.failures < 2 {
            self.retry_at = None;
        }
    }

    fn note_link(&self, link: Link, session: &Session) {
        let backend = match link {
            Link::Up(_) => return,
            Link::Down => BackendState::Suspended,
            Link::Expired => BackendState::Lost,
        };
        let heard = session.last_heard().map(|heard| SystemTime::now() - heard.elapsed());
        self.view.suspend(backend, heard);
    }

    /// Reads until all that is known of is shown. When it fails, everything has to be read again.
    async fn work(&mut self) -> Result<(), Failure> {
        let batch = self.mailbox.take();
        self.note(&batch);
        // Without a watch there is nothing to do: it is being set, and a resync will tell.
        let line = Line::new(&self.subscription, &self.mailbox, &self.view.scope).ok_or(Failure::Resync)?;
        match std::mem::replace(&mut self.work, Work::Everything) {
            Work::Changes(rounds) => self.read_rounds(&line, *rounds, None).await?,
            Work::Everything | Work::Demanded => {
                // A refusal answers those who have asked by now.
                self.view.begin_barrier();
                let Loaded { state, named } = line.load().await?;
                let mut rounds = Rounds::default();
                rounds.want(named);
                self.read_rounds(&line, rounds, Some(state)).await?;
                self.disagreements = 0;
                self.is_behind = false;
            }
        }
        self.work = Work::Changes(Box::default());
        Ok(())
    }

    /// Reads rounds until nothing is open, and shows every moment.
    async fn read_rounds(&self, line: &Line<'_>, mut rounds: Rounds, mut fresh: Option<State>) -> Result<(), Failure> {
        // Nor is a first look older than what this process has seen.
        let at_least = if fresh.is_some() { self.zk.last_zxid() } else { Zxid::default() };
        let mut barrier = Barrier::new(at_least);
        let mut is_undated = false;
        loop {
            // Whoever asks while a server is behind gets the next barrier: this one is not put off.
            let asked = if barrier.behind_since.is_some() { None } else { self.view.begin_barrier() };
            let is_new = barrier.renew(asked, || self.zk.last_zxid());
            let is_absent = fresh.as_ref().map_or_else(|| self.view.is_absent(), |state| !state.exists());
            let mut round = line.round(rounds.wanted(), is_absent || is_undated, is_new).await?;
            round.barrier = barrier.passed(round.zxid, Instant::now());
            is_undated = round.node.is_none();
            if let Some(moment) = rounds.finish(round) {
                match &mut fresh {
                    // The moment may be that of an earlier round.
                    Some(state) if barrier.is_ahead_of(moment.zxid) => drop(state.take_in(moment.node, moment.reads)),
                    _ => self.show(moment, fresh.take())?,
                }
            }
            if fresh.is_none() && !rounds.are_due() && !self.view.owes_barrier() {
                return Ok(());
            }
            if let Some(since) = barrier.behind_since {
                tokio::time::sleep(LAG.max(since.elapsed() / 4)).await;
            }
        }
    }

    fn show(&self, moment: Moment, fresh: Option<State>) -> Result<(), Failure> {
        let Some(mut state) = fresh else {
            return if self.view.show(moment) { Ok(()) } else { Err(Failure::Disagrees) };
        };
        let Moment { node, reads, zxid, barrier } = moment;
        state.take_in(node, reads);
        if !state.agrees() && self.disagreements < DISAGREEMENTS {
            return Err(Failure::Disagrees);
        }
        if self.view.is_ahead_of(zxid) && !self.is_behind {
            return Err(Failure::Behind);
        }
        self.view.show_whole(state, zxid, barrier);
        Ok(())
    }

    fn after(&mut self, result: Result<(), Failure>) {
        let path = &self.view.scope.path;
        match result {
            Ok(()) => self.failures = 0,
            Err(Failure::Resync) => {}
            Err(Failure::Forbidden) => {
                self.work = Work::Demanded;
                self.view.forbid();
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

/// What a barrier and a load need: a sync, and a server that has come as far as this process knows ZooKeeper has.
///
/// The latter is for sessions that are connected to the leader: it answers a sync at once, though it may show a write a
/// moment later than the follower that has acknowledged it.
struct Barrier {
    number: u64,
    at_least: Zxid,
    /// Since when the server has been found to be behind.
    behind_since: Option<Instant>,
}

impl Barrier {
    fn new(at_least: Zxid) -> Self {
        Self { number: 0, at_least, behind_since: None }
    }

    /// Takes up a barrier that is asked for; whether there has to be a sync.
    fn renew(&mut self, asked: Option<u64>, at_least: impl FnOnce() -> Zxid) -> bool {
        if let Some(number) = asked.filter(|number| *number > self.number) {
            *self = Self { number, ..Self::new(at_least()) };
            return true;
        }
        self.behind_since.is_some()
    }

    /// The barrier, if any, that a read at this transaction is behind. A server that stays behind has lost its past, and is
    /// taken as it is.
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

    /// Whether what was read at this transaction is too old.
    fn is_ahead_of(&self, zxid: Zxid) -> bool {
        zxid < self.at_least
    }
}

/// After the n-th failure in a row.
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
    use super::*;

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
        // However late it is: it has not been behind before.
        let late = now + 10 * FALLEN_BACK_AFTER;
        assert_eq!(barrier.passed(Zxid(9), late), 0);
        let almost = late + FALLEN_BACK_AFTER.mul_f64(0.9);
        assert!((0..1000).all(|_| barrier.passed(Zxid(9), almost) == 0));
        assert_eq!(barrier.passed(Zxid(9), late + FALLEN_BACK_AFTER), 2);
        assert!(barrier.behind_since.is_none() && !barrier.is_ahead_of(Zxid(9)));
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
