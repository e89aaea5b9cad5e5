//! Turns the messages of a Watch into updates. It joins parts, and the state never goes back. Pure.

use std::time::SystemTime;

use rollcall_proto::v1;
use rollcall_proto::v1::watch_response::Event;

use super::update::Update;
use crate::node::{Change, Node, time_from_proto};

/// The state of one watch, over any number of streams.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    /// The revision of the last whole state.
    revision: i64,
    parts: Option<Parts>,
    stale: bool,
}

/// The beginning of an update, while more parts are to come.
#[derive(Debug)]
enum Parts {
    Snapshot { node: Node, reset: bool },
    Delta(Vec<Change>),
}

/// The content of a message.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    /// Updates in order; there may be none.
    Updates(Vec<Update>),
    /// The replica is about to stop.
    Draining,
}

impl Assembler {
    pub(super) fn since(revision: i64) -> Self {
        Self { revision, ..Self::default() }
    }

    /// The revision from which the next stream goes on.
    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    pub(super) fn take(&mut self, message: v1::WatchResponse) -> Said {
        let v1::WatchResponse { revision, stale, event } = message;
        let mut as_of = None;
        let update = match event {
            Some(Event::Draining(_)) => return Said::Draining,
            Some(Event::Snapshot(snapshot)) => self.snapshot(snapshot, revision),
            Some(Event::Delta(delta)) => self.delta(delta, revision),
            Some(Event::Current(_)) => {
                self.revision = self.revision.max(revision);
                None
            }
            Some(Event::Backend(backend)) => {
                as_of = backend.as_of.and_then(time_from_proto);
                None
            }
            None => None,
        };
        let turned = (self.parts.is_none() && stale != self.stale).then(|| self.turn(stale, as_of));
        // A state that is current again comes before its updates; a state that turns stale was current until after
        // them.
        Said::Updates(if stale { [update, turned] } else { [turned, update] }.into_iter().flatten().collect())
    }

    /// The stream broke. An update that was begun is sent again as a whole.
    pub(super) fn broken(&mut self) {
        self.parts = None;
    }

    /// No replica can be reached. Returns an update, if that is news.
    pub(super) fn unreachable(&mut self) -> Option<Update> {
        (!self.stale).then(|| self.turn(true, None))
    }

    fn turn(&mut self, stale: bool, as_of: Option<SystemTime>) -> Update {
        self.stale = stale;
        if stale { Update::Stale { as_of } } else { Update::Current }
    }

    fn snapshot(&mut self, snapshot: v1::Snapshot, revision: i64) -> Option<Update> {
        let part = snapshot.node.map(Node::from_proto).unwrap_or_default();
        let (mut node, mut reset) = (part, snapshot.reset);
        if let Some(Parts::Snapshot { node: begun, reset: begun_reset }) = self.parts.take() {
            let rest = std::mem::replace(&mut node, begun);
            node.children.extend(rest.children);
            reset |= begun_reset;
        }
        if snapshot.more {
            self.parts = Some(Parts::Snapshot { node, reset });
            return None;
        }
        if revision < self.revision && !reset {
            return None;
        }
        self.revision = revision;
        Some(Update::Snapshot { node, revision, reset })
    }

    fn delta(&mut self, delta: v1::Delta, revision: i64) -> Option<Update> {
        let mut changes = match self.parts.take() {
            Some(Parts::Delta(begun)) => begun,
            _ => Vec::new(),
        };
        changes.extend(delta.changes.into_iter().filter_map(Change::from_proto));
        if delta.more {
            self.parts = Some(Parts::Delta(changes));
            return None;
        }
        if revision <= self.revision {
            return None;
        }
        self.revision = revision;
        Some(Update::Changes { changes, revision })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(revision: i64, event: Event) -> v1::WatchResponse {
        v1::WatchResponse { revision, stale: false, event: Some(event) }
    }

    fn snapshot(names: &[&str], more: bool) -> Event {
        let children = names.iter().map(|name| ((*name).to_owned(), v1::Child::default())).collect();
        let node = v1::Node { path: "/a".to_owned(), exists: true, children, ..Default::default() };
        Event::Snapshot(v1::Snapshot { node: Some(node), more, reset: false })
    }

    fn added(name: &str, more: bool) -> Event {
        let change = v1::Change { kind: v1::ChangeKind::Added.into(), name: name.to_owned(), child: None };
        Event::Delta(v1::Delta { changes: vec![change], more })
    }

    fn only(said: Said) -> Update {
        let Said::Updates(mut updates) = said else { panic!("draining") };
        assert_eq!(updates.len(), 1, "{updates:?}");
        updates.remove(0)
    }

    const NOTHING: Said = Said::Updates(Vec::new());

    #[test]
    fn parts_are_put_together() {
        let mut assembler = Assembler::default();
        assert_eq!(assembler.take(message(0, snapshot(&["x"], true))), NOTHING);
        let Update::Snapshot { node, revision: 7, reset: false } =
            only(assembler.take(message(7, snapshot(&["y"], false))))
        else {
            panic!("no snapshot")
        };
        assert_eq!(node.children.keys().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(assembler.take(message(0, added("p", true))), NOTHING);
        let Update::Changes { changes, revision: 8 } = only(assembler.take(message(8, added("q", false)))) else {
            panic!("no changes")
        };
        assert_eq!(changes.len(), 2);
        assert_eq!(assembler.revision(), 8);
    }

    #[test]
    fn what_was_begun_on_a_stream_that_broke_is_forgotten() {
        let mut assembler = Assembler::since(5);
        assert_eq!(assembler.take(message(0, snapshot(&["old"], true))), NOTHING);
        assembler.broken();
        let Update::Snapshot { node, .. } = only(assembler.take(message(9, snapshot(&["new"], false)))) else {
            panic!("no snapshot")
        };
        assert_eq!(node.children.keys().collect::<Vec<_>>(), ["new"]);
        assert_eq!(assembler.revision(), 9);
    }

    #[test]
    fn nothing_goes_back_but_by_a_reset() {
        let mut assembler = Assembler::since(10);
        assert_eq!(assembler.take(message(10, added("x", false))), NOTHING);
        assert_eq!(assembler.take(message(9, snapshot(&["x"], false))), NOTHING);
        assert_eq!(assembler.take(message(9, Event::Current(v1::Current {}))), NOTHING);
        assert_eq!(assembler.revision(), 10);
        let Event::Snapshot(mut reset) = snapshot(&["x"], false) else { panic!() };
        reset.reset = true;
        assert!(matches!(
            only(assembler.take(message(3, Event::Snapshot(reset)))),
            Update::Snapshot { revision: 3, reset: true, .. }
        ));
        assert_eq!(assembler.revision(), 3);
        assert_eq!(assembler.take(message(4, Event::Current(v1::Current {}))), NOTHING);
        assert_eq!(assembler.revision(), 4);
    }

    #[test]
    fn staleness_is_told_once_each_way() {
        let mut assembler = Assembler::default();
        let mut stale = message(7, snapshot(&[], false));
        stale.stale = true;
        let Said::Updates(updates) = assembler.take(stale) else { panic!("draining") };
        assert!(matches!(updates[..], [Update::Snapshot { .. }, Update::Stale { as_of: None }]), "{updates:?}");
        assert_eq!(assembler.unreachable(), None);
        let Said::Updates(updates) = assembler.take(message(8, added("x", false))) else { panic!("draining") };
        assert!(matches!(updates[..], [Update::Current, Update::Changes { .. }]), "{updates:?}");
        assert_eq!(assembler.unreachable(), Some(Update::Stale { as_of: None }));
        assert_eq!(only(assembler.take(message(8, Event::Current(v1::Current {})))), Update::Current);
    }
}
