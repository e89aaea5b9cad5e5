//! The latest transaction that any answer has shown. Later reads, on any replica, are not older.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rollcall_proto::v1;

/// The transaction. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen(Arc<AtomicI64>);

impl Seen {
    /// Takes in a revision, a generation or a fencing token: all of them are ZooKeeper transactions.
    pub(crate) fn note(&self, transaction: i64) {
        self.0.fetch_max(transaction, Ordering::Relaxed);
    }

    pub(crate) fn note_stat(&self, stat: Option<&v1::Stat>) {
        self.note(stat.map_or(0, |stat| stat.mzxid.max(stat.czxid)));
    }

    /// Takes in a response of a Register stream.
    pub(crate) fn note_registration(&self, response: &v1::register_response::Response) {
        use v1::register_response::Response;
        match response {
            Response::Registered(registered) => {
                self.note(registered.generation);
                self.note_stat(registered.stat.as_ref());
            }
            Response::Overwritten(overwritten) => self.note_stat(overwritten.stat.as_ref()),
            _ => {}
        }
    }

    /// Takes in a message of a watch.
    pub(crate) fn note_watch(&self, message: &v1::WatchResponse) {
        match &message.event {
            // ZooKeeper went back: the transactions known before mean nothing now.
            Some(v1::watch_response::Event::Snapshot(snapshot)) if snapshot.reset && message.revision > 0 => {
                self.0.store(message.revision, Ordering::Relaxed);
            }
            _ => self.note(message.revision),
        }
    }

    /// Has a Get ask for the latest known transaction, and returns that. A `latest` lookup needs no such request.
    pub(crate) fn ask(&self, request: &mut v1::GetRequest) -> i64 {
        let known = self.latest();
        if request.consistency() != v1::Consistency::Latest {
            request.min_revision = known;
        }
        known
    }

    /// Takes in an answer to a Get; `known` is the result of [`Seen::ask`] for it.
    pub(crate) fn note_answer(&self, known: i64, answer: &v1::GetResponse) {
        if answer.reset {
            // ZooKeeper has lost that transaction. If the value has changed meanwhile, there is a newer one.
            let _ = self.0.compare_exchange(known, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        self.note(answer.revision);
    }

    /// The transaction to ask for; zero: none.
    pub(crate) fn latest(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use v1::watch_response::Event;

    use super::*;

    #[test]
    fn the_largest_is_kept_until_zookeeper_has_lost_it() {
        let seen = Seen::default();
        let answer = |revision, reset| v1::GetResponse { revision, reset, ..Default::default() };
        for revision in [7, 5] {
            seen.note_answer(0, &answer(revision, false));
        }
        seen.note_registration(&v1::register_response::Response::Registered(v1::Registered {
            generation: 8,
            stat: Some(v1::Stat { czxid: 8, mzxid: 9, ..Default::default() }),
            ..Default::default()
        }));
        assert_eq!(seen.latest(), 9);
        seen.note_answer(8, &answer(3, true));
        assert_eq!(seen.latest(), 9, "there was something newer by then");
        seen.note_answer(9, &answer(3, true));
        assert_eq!(seen.latest(), 3);
        for (consistency, asked) in [(v1::Consistency::Cached, 9), (v1::Consistency::Latest, 0)] {
            seen.note(9);
            let mut request = v1::GetRequest { consistency: consistency.into(), ..Default::default() };
            let known = seen.ask(&mut request);
            assert_eq!(request.min_revision, asked);
            seen.note_answer(known, &answer(3, true));
            assert_eq!(seen.latest(), 3);
        }
        let snapshot = |revision, reset| v1::WatchResponse {
            revision,
            event: Some(Event::Snapshot(v1::Snapshot { reset, ..Default::default() })),
            ..Default::default()
        };
        for (revision, reset, latest) in [(6, false, 6), (0, true, 6), (2, true, 2)] {
            seen.note_watch(&snapshot(revision, reset));
            assert_eq!(seen.latest(), latest);
        }
    }
}
