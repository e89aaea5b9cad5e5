//! Turns: a bounded number of pieces of work under way at once, fair between connections.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

use crate::mutex::lock;

/// Gives turns to connections in rotation, however many one of them asks for. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Turns(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    /// While there are free turns nobody waits.
    free: usize,
    next_ticket: u64,
    /// The connection that had the last turn.
    last: u64,
    /// By connection, and in the order in which they came.
    waiting: BTreeMap<u64, BTreeMap<u64, oneshot::Sender<Turn>>>,
}

/// The right to do one piece of work, given back on drop.
#[derive(Debug)]
pub(super) struct Turn(Option<Turns>);

/// A place among those that wait, given up on drop.
struct Place<'a> {
    turns: &'a Turns,
    connection: u64,
    ticket: u64,
}

impl Turns {
    pub(super) fn new(count: usize) -> Self {
        Self(Arc::new(Mutex::new(Inner { free: count, next_ticket: 0, last: 0, waiting: BTreeMap::new() })))
    }

    /// A turn, if one is free.
    pub(super) fn try_turn(&self) -> Option<Turn> {
        let mut inner = self.lock();
        inner.free = inner.free.checked_sub(1)?;
        Some(Turn(Some(self.clone())))
    }

    /// Waits for a turn of this connection.
    ///
    /// # Cancellation
    /// Safe: who no longer waits has no turn.
    pub(super) async fn turn(&self, connection: u64) -> Turn {
        let (place, turn) = {
            let mut inner = self.lock();
            if inner.free > 0 {
                inner.free -= 1;
                return Turn(Some(self.clone()));
            }
            let ticket = inner.next_ticket;
            inner.next_ticket += 1;
            let (sender, turn) = oneshot::channel();
            inner.waiting.entry(connection).or_default().insert(ticket, sender);
            (Place { turns: self, connection, ticket }, turn)
        };
        let turn = turn.await;
        drop(place);
        // The sender goes with the place, or sends.
        turn.unwrap_or(Turn(None))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }
}

impl Inner {
    /// Hands a turn to the next that waits.
    fn hand_on(&mut self, mut turn: Turn) {
        while let Some(next) = self.next() {
            match next.send(turn) {
                Ok(()) => return,
                Err(unwanted) => turn = unwanted,
            }
        }
        turn.0 = None;
        self.free += 1;
    }

    /// The one that has waited longest of the next connection.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let after = self.waiting.range(self.last.saturating_add(1)..).next();
        let connection = *after.or_else(|| self.waiting.iter().next())?.0;
        self.last = connection;
        let own = self.waiting.get_mut(&connection)?;
        let (_, sender) = own.pop_first()?;
        if own.is_empty() {
            self.waiting.remove(&connection);
        }
        Some(sender)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            let turn = Turn(Some(turns.clone()));
            turns.lock().hand_on(turn);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut inner = self.turns.lock();
        if let Some(own) = inner.waiting.get_mut(&self.connection) {
            own.remove(&self.ticket);
            if own.is_empty() {
                inner.waiting.remove(&self.connection);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn connections_take_turns_however_many_one_of_them_asks_for() {
        let turns = Turns::new(1);
        let mut current = turns.turn(1).await;
        assert!(turns.try_turn().is_none());
        let mut waiting: Vec<_> =
            [1, 1, 1, 1, 2, 3, 2].map(|connection| (connection, Box::pin(turns.turn(connection)))).into();
        assert!(waiting.iter_mut().all(|(_, turn)| turn.now_or_never().is_none()));
        let mut order = Vec::new();
        while !waiting.is_empty() {
            drop(current);
            let mut found = None;
            waiting.retain_mut(|(connection, turn)| match turn.now_or_never() {
                Some(turn) => {
                    order.push(*connection);
                    found = Some(turn);
                    false
                }
                None => true,
            });
            current = found.expect("somebody has the turn");
        }
        assert_eq!(order, [1, 2, 3, 1, 2, 1, 1]);
        drop(current);
        assert!(turns.try_turn().is_some());
    }

    #[tokio::test]
    async fn who_has_left_gets_no_turn_and_leaves_nothing_behind() {
        let turns = Turns::new(1);
        let current = turns.turn(1).await;
        for connection in 0..1000 {
            assert!(turns.turn(connection).now_or_never().is_none());
        }
        assert!(turns.lock().waiting.is_empty());
        let mut given = Box::pin(turns.turn(2));
        assert!((&mut given).now_or_never().is_none());
        drop(current);
        // It was given a turn, and leaves without having looked.
        drop(given);
        assert!(turns.try_turn().is_some());
    }
}
