//! Waits until a view is as new as a transaction that its reader knows of.
//!
//! Usually it is, which is seen without a wait: either the state was read later; or a later answer has come on the
//! connection that holds the watch, and every event before that answer is shown. Otherwise a sync makes the server of
//! that connection catch up. All readers that wait on one session share it, whatever they read; a view is read for it
//! only if an event says so.
//!
//! The wait ends after 2 s, or at once while the view has lost its connection: the answer is then stale. ZooKeeper was
//! restored from a backup if syncs that began after the call were answered twice on one connection, and its history
//! ends before the transaction. The answer is then `reset`, and the connection forgets the transaction.

use tokio::time::Instant;

use super::consistent_read::Arrived;
use super::reader::Reader;
use super::times::RECENT;
use super::view::BackendState;
use crate::types::Zxid;
use crate::zk::Synced;

/// Whether a view has reached a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reached {
    /// Every state shown from now on is as new as the transaction.
    Yes,
    /// ZooKeeper can't be reached, or did not get there in time.
    NotInTime,
    /// ZooKeeper has answered again and again, and its history ends here, before the transaction.
    Never(Zxid),
}

/// The result of one look at a view.
enum ReachCheck {
    Reached,
    /// These events have to be shown first.
    Unshown(Arrived),
    /// The server at the other end of this connection may know no more than this.
    Behind(u64, Zxid),
    /// There is no connection.
    Down,
    /// The view has lost its connection and is not loaded again yet.
    Suspended,
}

/// The answers, on one connection, to syncs that began after the call.
#[derive(Debug)]
struct Answers {
    since: Instant,
    connection: u64,
    count: u32,
    last: Instant,
}

impl Answers {
    fn since(since: Instant) -> Self {
        Self { since, connection: 0, count: 0, last: since }
    }

    fn take(&mut self, synced: Synced) {
        let Some(connection) = synced.connection.filter(|_| synced.began >= self.since) else { return };
        let before = if connection == self.connection { self.count } else { 0 };
        (self.connection, self.count, self.last) = (connection, before + 1, synced.ended);
    }

    /// Whether a server that is still behind has nothing more to send. Two recent answers are needed: the leader itself
    /// can answer a sync before it shows what its followers show already, and a server that is silent may have learned
    /// more.
    fn are_proof(&self, connection: u64, now: Instant) -> bool {
        self.connection == connection && self.count >= 2 && now < self.last + RECENT
    }
}

impl Reader {
    /// Whether every state shown from now on is as new as this transaction. Costs nothing but a look.
    pub(crate) fn has_reached(&self, at_least: Zxid) -> bool {
        matches!(self.look(at_least, None), ReachCheck::Reached)
    }

    /// Waits until the view is as new as this transaction, but not beyond the deadline. It does not wait while the view
    /// is suspended, or once ZooKeeper has been silent for as long as a reader has patience. For a path that can't be
    /// shown, see [`Reader::cached`].
    ///
    /// # Cancellation
    /// Safe.
    pub(crate) async fn reach(&self, at_least: Zxid, deadline: Instant) -> Reached {
        if self.has_reached(at_least) {
            return Reached::Yes;
        }
        let mut progress = self.view().progress();
        let (mut awaited, mut answers) = (None, Answers::since(Instant::now()));
        loop {
            progress.catch_up();
            let look = self.look(at_least, awaited);
            let now = Instant::now();
            match look {
                ReachCheck::Reached => return Reached::Yes,
                ReachCheck::Behind(connection, zxid) if now >= deadline && answers.are_proof(connection, now) => {
                    return Reached::Never(zxid);
                }
                ReachCheck::Suspended => return Reached::NotInTime,
                _ if now >= deadline || !self.is_worth_waiting() => return Reached::NotInTime,
                ReachCheck::Unshown(arrived) => {
                    awaited = Some(arrived);
                    // If nothing comes, nothing is lost: the next look sees that the time is over.
                    drop(tokio::time::timeout_at(deadline, progress.changed()).await);
                }
                ReachCheck::Behind(..) | ReachCheck::Down => tokio::select! {
                    synced = self.hub().sync(&self.view().scope.path, at_least) => answers.take(synced),
                    () = progress.changed() => {}
                    () = tokio::time::sleep_until(deadline) => {}
                },
            }
        }
    }

    /// `awaited`: the events that an earlier look found missing. While their connection lasts, later events need not be
    /// shown.
    fn look(&self, at_least: Zxid, awaited: Option<Arrived>) -> ReachCheck {
        let view = self.view();
        let mut known = view.known();
        if known.has_reached(at_least) || known.refusal.is_some() {
            return ReachCheck::Reached;
        }
        if known.backend != BackendState::Connected {
            return ReachCheck::Suspended;
        }
        let Some((connection, zxid)) = self.hub().horizon(&view.scope.path) else { return ReachCheck::Down };
        if zxid < at_least {
            return ReachCheck::Behind(connection, zxid);
        }
        // Read after the horizon, so that all events up to the horizon have arrived.
        let arrived = Arrived { connection, upto: view.mailbox.arrivals() };
        let (arrived, reached) = match awaited.filter(|awaited| awaited.connection == connection) {
            Some(awaited) => (awaited, at_least),
            None => (arrived, zxid),
        };
        if known.includes(arrived, reached) { ReachCheck::Reached } else { ReachCheck::Unshown(arrived) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// This many milliseconds after the origin.
    fn at(origin: Instant, millis: u64) -> Instant {
        origin + Duration::from_millis(millis)
    }

    #[test]
    fn only_answers_of_one_connection_that_were_asked_for_in_time_and_go_on_say_that_there_is_no_more() {
        let origin = Instant::now();
        let proof = |answers: &[(u64, u64, Option<u64>)]| {
            let mut all = Answers::since(at(origin, 10));
            for (began, ended, connection) in answers {
                let (began, ended) = (at(origin, *began), at(origin, *ended));
                all.take(Synced { began, ended, connection: *connection });
            }
            all.are_proof(7, at(origin, 2010))
        };
        assert!(proof(&[(10, 20, Some(7)), (1900, 1910, Some(7))]));
        assert!(proof(&[(10, 20, Some(7)), (30, 30, None), (1900, 1910, Some(7))]));
        assert!(!proof(&[(9, 1900, Some(7)), (1900, 1910, Some(7))]), "one was sent before the call");
        assert!(!proof(&[(9, 20, Some(7))]));
        assert!(!proof(&[(1900, 1910, Some(7))]), "there is but one");
        assert!(!proof(&[(10, 20, Some(7)), (20, 30, Some(7))]), "it has been silent since");
        assert!(!proof(&[(10, 1900, Some(6)), (1900, 1910, Some(7))]), "one is of another connection");
        assert!(!proof(&[(10, 1900, Some(6)), (1900, 1910, Some(6))]), "nothing was answered on this one");
    }
}
