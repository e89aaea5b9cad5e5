//! The room of registrations in the budgets of ZooKeeper sessions.

use std::collections::HashMap;

use super::claims::Claimed;
use crate::types::NodePath;
use crate::zk::Room;

/// The room of each path's nodes: of the one that is held, and of those that may exist.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    held: HashMap<NodePath, Room>,
    /// The room of creates whose answers were lost, until their outcome is known: at most one in each session.
    doubtful: HashMap<NodePath, Vec<Room>>,
}

impl Rooms {
    /// A claim has this result. The room belongs to the node that it has made, or may have made.
    pub(super) fn claimed(&mut self, path: &NodePath, outcome: &Claimed, room: Option<Room>) {
        if !matches!(outcome, Claimed::Unavailable { .. }) {
            self.doubtful.remove(path);
            if let Some(room) = room {
                self.held.insert(path.clone(), room);
            }
        } else if let Some(room) = room {
            let doubtful = self.doubtful.entry(path.clone()).or_default();
            doubtful.retain(|earlier| earlier.owner().id() != room.owner().id());
            doubtful.push(room);
        }
    }

    /// The node that was held is gone.
    pub(super) fn removed(&mut self, path: &NodePath) {
        self.held.remove(path);
    }

    /// Nothing is held of the path any more, and no node can exist.
    pub(super) fn release(&mut self, path: &NodePath) {
        self.held.remove(path);
        self.doubtful.remove(path);
    }
}
