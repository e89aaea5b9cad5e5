//! Work that waits for its turn. Connections take turns, so that a connection with much work does not delay the others.
//! Only a bounded amount is under way, so that new work is begun soon.

use std::collections::{HashMap, VecDeque};

/// One kind of work.
#[derive(Debug)]
pub(super) struct Lane<T> {
    /// The waiting work, by connection; no queue is empty.
    queues: HashMap<u64, VecDeque<T>>,
    /// The connections with work, in the order of their turns.
    turns: VecDeque<u64>,
    under_way: usize,
    most: usize,
}

impl<T> Lane<T> {
    /// `most` is the maximum number of batches under way.
    pub(super) fn new(most: usize) -> Self {
        Self { queues: HashMap::new(), turns: VecDeque::new(), under_way: 0, most }
    }

    /// Adds work for a connection.
    pub(super) fn push(&mut self, connection: u64, work: T) {
        let queue = self.queues.entry(connection).or_default();
        if queue.is_empty() {
            self.turns.push_back(connection);
        }
        queue.push_back(work);
    }

    /// Takes the next batch of at most `size` pieces of work, one of each connection at a time. It is under way until
    /// [`Lane::done`]. Empty if nothing waits, or enough is under way.
    pub(super) fn next(&mut self, size: usize) -> Vec<T> {
        let mut batch = Vec::new();
        while self.under_way < self.most
            && batch.len() < size
            && let Some(connection) = self.turns.pop_front()
        {
            let Some(queue) = self.queues.get_mut(&connection) else { continue };
            batch.extend(queue.pop_front());
            if queue.is_empty() {
                self.queues.remove(&connection);
            } else {
                self.turns.push_back(connection);
            }
        }
        self.under_way += usize::from(!batch.is_empty());
        batch
    }

    /// Whether [`Lane::next`] has a batch.
    pub(super) fn has_next(&self) -> bool {
        self.under_way < self.most && !self.turns.is_empty()
    }

    /// A batch is over.
    pub(super) fn done(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// Whether nothing waits or is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.under_way == 0 && self.turns.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_turns_and_a_bounded_number_of_batches_is_under_way() {
        let mut lane = Lane::new(2);
        for work in 0..1000 {
            lane.push(1, work);
        }
        lane.push(2, 5000);
        lane.push(3, 6000);
        assert_eq!(lane.next(4), [0, 5000, 6000, 1], "the flood of one delays nobody else");
        lane.push(2, 5001);
        assert_eq!(lane.next(2), [2, 5001]);
        assert!(lane.next(2).is_empty(), "two are under way");
        lane.done();
        assert_eq!(lane.next(3), [3, 4, 5]);
    }

    #[test]
    fn all_that_was_added_is_taken_and_nothing_is_kept() {
        let mut lane = Lane::new(1);
        for connection in 0..10 {
            for work in 0..connection {
                lane.push(connection, work);
            }
        }
        let mut taken = 0;
        while !lane.is_idle() {
            taken += lane.next(7).len();
            lane.done();
        }
        assert_eq!(taken, 45);
        assert!(lane.queues.is_empty());
    }
}
