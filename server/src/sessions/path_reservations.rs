//! The reservations of registrations in the path budgets of ZooKeeper sessions.

use std::collections::HashMap;

use super::claims::Claimed;
use crate::spare;
use crate::types::NodePath;
use crate::zk::PathReservation;

/// The reservations of each path's nodes: of the one that is held, and of those that may exist.
#[derive(Debug, Default)]
pub(super) struct PathReservations {
    held: HashMap<NodePath, PathReservation>,
    /// The reservations of creates whose answers were lost, until their outcome is known: at most one in each session.
    doubtful: HashMap<NodePath, Vec<PathReservation>>,
}

impl PathReservations {
    /// A claim has this result. The reservation belongs to the node that it has made, or may have made.
    pub(super) fn claimed(&mut self, path: &NodePath, outcome: &Claimed, reservation: Option<PathReservation>) {
        if !matches!(outcome, Claimed::Unavailable { .. }) {
            self.doubtful.remove(path);
            if let Some(reservation) = reservation {
                self.held.insert(path.clone(), reservation);
            }
        } else if let Some(reservation) = reservation {
            let doubtful = self.doubtful.entry(path.clone()).or_default();
            doubtful.retain(|earlier| earlier.owner().id() != reservation.owner().id());
            doubtful.push(reservation);
        }
    }

    /// The node that was held is gone.
    pub(super) fn removed(&mut self, path: &NodePath) {
        self.held.remove(path);
        spare::shrink(&mut self.held);
    }

    /// Nothing is held of the path any more, and no node can exist.
    pub(super) fn release(&mut self, path: &NodePath) {
        self.removed(path);
        self.doubtful.remove(path);
        spare::shrink(&mut self.doubtful);
    }
}
