//! Waiting until a view is as new as something that its reader knows of.
//!
//! Mostly it is, and that is seen without a wait: either what is shown was read later, or an answer on the connection that
//! holds the watch is later, and no event has come before it that is not shown yet. Otherwise a sync has that connection
//! catch up. All who wait on one session share it, whatever they read; no view is read for it, unless an event says so.

use std::time::Duration;

use tokio::time::Instant;

use super::reader::Reader;
use super::rounds::Arrived;
use crate::types::Zxid;

/// Pause before a server is asked again that was behind although it has answered a sync. It doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// The longest pause. With a shorter one, calls that wait for what never comes cost ZooKeeper more.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Whether a view has reached a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reached {
    /// What is shown from now on is as new as that.
    Yes,
    /// ZooKeeper can't be reached, or not in time.
    NotInTime,
    /// ZooKeeper has answered, again and again, and its history ends here, before that.
    Never(Zxid),
}

/// How far a view is.
enum Look {
    Reached,
    /// These events have to be shown first.
    Unshown(Arrived),
    /// The server that watches may know no more than this.
    Behind(Zxid),
    /// No connection stands.
    Down,
}

impl Reader {
    /// Whether what is shown from now on is as new as this transaction. Costs nothing but a look.
    pub(crate) fn has_reached(&self, at_least: Zxid) -> bool {
        matches!(self.look(at_least, None), Look::Reached)
    }

    /// Waits until what is shown is as new as this transaction, and no longer than until the deadline. When ZooKeeper has been
    /// away for as long as a reader has patience, it does not wait. A path that can't be shown is for [`Reader::cached`].
    ///
    /// # Cancellation
    /// Safe.
    pub(crate) async fn reach(&self, at_least: Zxid, deadline: Instant) -> Reached {
        if self.has_reached(at_least) {
            return Reached::Yes;
        }
        let mut progress = self.view().progress();
        let (mut awaited, mut pause, mut answered) = (None, None, false);
        loop {
            progress.catch_up();
            let look = self.look(at_least, awaited);
            let now = Instant::now();
            match look {
                Look::Reached => return Reached::Yes,
                Look::Behind(zxid) if now >= deadline && answered => return Reached::Never(zxid),
                _ if now >= deadline || !self.is_worth_waiting() => return Reached::NotInTime,
                Look::Unshown(arrived) => {
                    awaited = Some(arrived);
                    // Nothing is lost when nothing comes: then it is looked at the time.
                    drop(tokio::time::timeout_at(deadline, progress.changed()).await);
                }
                Look::Behind(_) | Look::Down => {
                    let sync = async {
                        tokio::time::sleep(pause.unwrap_or_default()).await;
                        self.hub().sync(&self.view().scope.path).await
                    };
                    tokio::select! {
                        is_answered = sync => {
                            answered = is_answered;
                            pause = Some(pause.map_or(FIRST_PAUSE, |pause| (2 * pause).min(LONGEST_PAUSE)));
                        }
                        () = progress.changed() => {}
                        () = tokio::time::sleep_until(deadline) => {}
                    }
                }
            }
        }
    }

    /// `awaited`: events that were found to have to be shown. If their connection stands, later ones need not be.
    fn look(&self, at_least: Zxid, awaited: Option<Arrived>) -> Look {
        let view = self.view();
        let known = view.known();
        if known.zxid >= at_least || known.refusal.is_some() {
            return Look::Reached;
        }
        let Some((connection, zxid)) = self.hub().horizon(&view.scope.path) else { return Look::Down };
        if zxid < at_least {
            return Look::Behind(zxid);
        }
        // Looked at after the horizon: what is behind that has arrived.
        let arrived = Arrived { connection, upto: view.mailbox.arrivals() };
        let arrived = awaited.filter(|awaited| awaited.connection == connection).unwrap_or(arrived);
        if known.includes(arrived) { Look::Reached } else { Look::Unshown(arrived) }
    }
}
