//! Turns: of the callers that want the same thing a few at a time get it, and connections take turns, however often one
//! of them asks.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

/// Gives turns, a bounded number for each key at a time. Cheap to clone.
#[derive(Debug)]
pub(crate) struct Turns<K: TurnKey>(Arc<Shared<K>>);

/// The thing that callers wait for; `()` if there is only one.
pub(crate) trait TurnKey: Clone + Eq + Hash {}

impl<K: Clone + Eq + Hash> TurnKey for K {}

#[derive(Debug)]
struct Shared<K: TurnKey> {
    /// Number of turns of each key at a time.
    count: usize,
    /// The keys of which a turn is taken.
    keys: Mutex<HashMap<K, TurnQueue<K>>>,
}

#[derive(Debug)]
struct TurnQueue<K: TurnKey> {
    /// Number of turns that are taken. Nobody waits while this is below [`Shared::count`].
    taken: usize,
    next_ticket: u64,
    /// The connection that got the last turn.
    last: u64,
    /// The waiting callers, by connection, in the order in which they came.
    waiting: BTreeMap<u64, BTreeMap<u64, oneshot::Sender<TurnPermit<K>>>>,
}

/// The right to do one thing, given back on drop.
#[derive(Debug)]
pub(crate) struct TurnPermit<K: TurnKey>(Option<(Turns<K>, K)>);

/// A place among the waiting callers, given up on drop.
struct WaitingPlace<'a, K: TurnKey> {
    turns: &'a Turns<K>,
    key: &'a K,
    connection: u64,
    ticket: u64,
}

impl<K: TurnKey> Turns<K> {
    pub(crate) fn new(count: usize) -> Self {
        Self(Arc::new(Shared { count, keys: Mutex::default() }))
    }

    /// A turn, if one is free.
    pub(crate) fn try_turn(&self, key: &K) -> Option<TurnPermit<K>> {
        let mut keys = self.lock();
        let queue = keys.entry(key.clone()).or_default();
        (queue.taken < self.0.count).then(|| {
            queue.taken += 1;
            TurnPermit(Some((self.clone(), key.clone())))
        })
    }

    /// Waits for a turn of this connection.
    ///
    /// # Cancellation
    /// Safe: a caller that no longer waits has no turn.
    pub(crate) async fn turn(&self, key: &K, connection: u64) -> TurnPermit<K> {
        let (place, turn) = {
            let mut keys = self.lock();
            let queue = keys.entry(key.clone()).or_default();
            if queue.taken < self.0.count {
                queue.taken += 1;
                return TurnPermit(Some((self.clone(), key.clone())));
            }
            let ticket = queue.next_ticket;
            queue.next_ticket += 1;
            let (sender, turn) = oneshot::channel();
            queue.waiting.entry(connection).or_default().insert(ticket, sender);
            (WaitingPlace { turns: self, key, connection, ticket }, turn)
        };
        let turn = turn.await;
        drop(place);
        // The sender is dropped only with the place, or it sends.
        turn.unwrap_or(TurnPermit(None))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, TurnQueue<K>>> {
        self.0.keys.lock()
    }

    /// Hands a turn to the next caller that waits for it.
    fn hand_on(&self, key: &K) {
        let mut keys = self.lock();
        let Some(queue) = keys.get_mut(key) else { return };
        let mut turn = TurnPermit(Some((self.clone(), key.clone())));
        while let Some(next) = queue.next() {
            match next.send(turn) {
                Ok(()) => return,
                Err(unwanted) => turn = unwanted,
            }
        }
        turn.0 = None;
        queue.taken -= 1;
        if queue.taken == 0 {
            keys.remove(key);
        }
    }
}

impl<K: TurnKey> Clone for Turns<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: TurnKey> TurnQueue<K> {
    /// The caller of the next connection that has waited longest.
    fn next(&mut self) -> Option<oneshot::Sender<TurnPermit<K>>> {
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

impl<K: TurnKey> Default for TurnQueue<K> {
    fn default() -> Self {
        Self { taken: 0, next_ticket: 0, last: 0, waiting: BTreeMap::new() }
    }
}

impl<K: TurnKey> Drop for TurnPermit<K> {
    fn drop(&mut self) {
        if let Some((turns, key)) = self.0.take() {
            turns.hand_on(&key);
        }
    }
}

impl<K: TurnKey> Drop for WaitingPlace<'_, K> {
    fn drop(&mut self) {
        let mut keys = self.turns.lock();
        if let Some(queue) = keys.get_mut(self.key)
            && let Some(own) = queue.waiting.get_mut(&self.connection)
        {
            own.remove(&self.ticket);
            if own.is_empty() {
                queue.waiting.remove(&self.connection);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn connections_take_turns_at_a_key_and_other_keys_wait_for_nobody() {
        let turns = Turns::new(1);
        let mut current = turns.turn(&"a", 1).await;
        assert!(turns.try_turn(&"a").is_none());
        let mut waiting: Vec<_> =
            [1, 1, 1, 1, 2, 3, 2].map(|connection| (connection, Box::pin(turns.turn(&"a", connection)))).into();
        assert!(waiting.iter_mut().all(|(_, turn)| turn.now_or_never().is_none()));
        assert!(turns.turn(&"b", 1).now_or_never().is_some() && turns.try_turn(&"b").is_some());
        let mut order = Vec::new();
        while !waiting.is_empty() {
            drop(current);
            let found =
                waiting.iter_mut().enumerate().find_map(|(index, (_, turn))| Some((index, turn.now_or_never()?)));
            let (index, turn) = found.expect("somebody has the turn");
            order.push(waiting.remove(index).0);
            current = turn;
        }
        assert_eq!(order, [1, 2, 3, 1, 2, 1, 1]);
        drop(current);
        assert!(turns.lock().is_empty());
    }

    #[tokio::test]
    async fn a_call_that_has_left_gets_no_turn_and_leaves_nothing_behind() {
        let turns = Turns::new(2);
        let (first, second) = (turns.turn(&(), 1).await, turns.turn(&(), 1).await);
        for connection in 0..1000 {
            assert!(turns.turn(&(), connection).now_or_never().is_none());
        }
        assert!(turns.lock()[&()].waiting.is_empty());
        let mut given = Box::pin(turns.turn(&(), 2));
        assert!((&mut given).now_or_never().is_none());
        drop(first);
        // This caller was given a turn, and leaves without having looked.
        drop(given);
        drop(second);
        assert!(turns.lock().is_empty());
    }
}
