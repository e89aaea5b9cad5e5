//! The ZooKeeper sessions in which a create was sent whose answer was lost: a node that one of them owns may be ours.

use crate::types::SessionId;

/// Maximum number of sessions that are remembered. A claim goes on in a session that it has tried for as long as the
/// session lives; an older session has ended, and ZooKeeper removes its nodes. A pool has four.
const REMEMBERED: usize = 4;

/// The last of these sessions, each once, the latest last.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct UncertainCreates(Vec<SessionId>);

impl UncertainCreates {
    pub(super) fn add(&mut self, session: SessionId) {
        self.0.retain(|known| *known != session);
        if self.0.len() == REMEMBERED {
            self.0.remove(0);
        }
        self.0.push(session);
    }

    pub(super) fn has(&self, session: SessionId) -> bool {
        self.0.contains(&session)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn last(&self) -> Option<SessionId> {
        self.0.last().copied()
    }

    pub(super) fn latest_first(&self) -> impl Iterator<Item = SessionId> {
        self.0.iter().rev().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_four_are_known_however_often_each_was_tried() {
        let mut uncertain_creates = UncertainCreates::default();
        for id in [1, 2, 3, 2, 4, 5, 5] {
            uncertain_creates.add(SessionId(id));
        }
        let known: Vec<_> = uncertain_creates.latest_first().map(|session| session.0).collect();
        assert_eq!(known, [5, 4, 2, 3]);
        assert_eq!(uncertain_creates.last(), Some(SessionId(5)));
    }
}
