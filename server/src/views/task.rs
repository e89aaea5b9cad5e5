//! The task of one view: waits for something to do, reads, shows.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::fetch::{Failure, Line, Loaded};
use super::rounds::{Moment, Rounds};
use super::state::State;
use super::view::{BackendState, View};
use crate::zk::{Batch, Hub, Link, Mailbox, Session, Subscription};

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_CAP: Duration = Duration::from_secs(2);
/// How often in a row a load whose numbers of children disagree is thrown away, before it is shown all the same.
const DISAGREEMENTS: u32 = 5;

pub(super) struct Task {
    view: Arc<View>,
    mailbox: Arc<Mailbox>,
    subscription: Subscription,
    /// What has to be read.
    work: Work,
    /// Not before then is anything tried again.
    retry_at: Option<Instant>,
    failures: u32,
    disagreements: u32,
}

/// What has to be read.
enum Work {
    /// What events named, and what a barrier asks for.
    Changes(Rounds),
    /// Everything.
    Everything,
    /// Everything, but only when somebody asks: the path was refused.
    Demanded,
}

impl Task {
    pub(super) fn new(view: Arc<View>, hub: &Hub) -> Self {
        let mailbox = Arc::new(Mailbox::default());
        let subscription = hub.subscribe(&view.scope.path, &mailbox);
        Self { view, mailbox, subscription, work: Work::Everything, retry_at: None, failures: 0, disagreements: 0 }
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
        let retry_at = self.retry_at;
        tokio::select! {
            batch = self.mailbox.next() => self.note(&batch),
            () = self.view.asked() => {}
            // A session that has expired says no more; the mailbox tells when the next one watches.
            _ = link.changed(), if state != Link::Expired => {}
            () = sleep_until(retry_at) => self.retry_at = None,
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
        if is_resync {
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
        let Some(line) = Line::new(&self.subscription, &self.mailbox, &self.view.scope) else { return Ok(()) };
        match std::mem::replace(&mut self.work, Work::Everything) {
            Work::Changes(rounds) => self.read_rounds(&line, rounds, None, 0).await?,
            Work::Everything | Work::Demanded => {
                let barrier = self.view.begin_barrier().unwrap_or_default();
                let Loaded { state, named } = line.load().await?;
                let mut rounds = Rounds::default();
                rounds.want(named);
                let accept = self.disagreements >= DISAGREEMENTS;
                self.read_rounds(&line, rounds, Some(Fresh { state, accept }), barrier).await?;
                self.disagreements = 0;
            }
        }
        self.work = Work::Changes(Rounds::default());
        Ok(())
    }

    /// Reads rounds until nothing is open, and shows every moment. `synced` is the barrier that is begun already.
    async fn read_rounds(
        &self,
        line: &Line<'_>,
        mut rounds: Rounds,
        mut fresh: Option<Fresh>,
        mut synced: u64,
    ) -> Result<(), Failure> {
        let mut is_undated = false;
        loop {
            let barrier = self.view.begin_barrier().filter(|barrier| *barrier > synced);
            synced = barrier.unwrap_or(synced);
            let is_absent = match &fresh {
                Some(fresh) => !fresh.state.exists(),
                None => self.view.is_absent(),
            };
            let round = line.round(rounds.wanted(), is_absent || is_undated, synced, barrier.is_some()).await?;
            is_undated = round.node.is_none();
            if let Some(moment) = rounds.finish(round) {
                self.show(moment, fresh.take())?;
            }
            if !rounds.are_due() && !self.view.owes_barrier() {
                return Ok(());
            }
        }
    }

    fn show(&self, moment: Moment, fresh: Option<Fresh>) -> Result<(), Failure> {
        let Some(Fresh { mut state, accept }) = fresh else {
            return if self.view.show(moment) { Ok(()) } else { Err(Failure::Disagrees) };
        };
        let Moment { node, reads, zxid, barrier } = moment;
        state.apply(node, reads, zxid);
        if !state.agrees() && !accept {
            return Err(Failure::Disagrees);
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
            Err(Failure::Zk(error)) => {
                self.failures += 1;
                tracing::debug!(%path, %error, "a view can't be read");
                self.retry_at = Some(Instant::now() + pause(self.failures));
            }
        }
    }
}

/// A state that was read as a whole and is not shown yet.
struct Fresh {
    state: State,
    /// Show it even if its numbers of children disagree.
    accept: bool,
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
