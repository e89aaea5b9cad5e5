//! Spare capacity of collections, and when it is given back.
//!
//! A map or a queue keeps the capacity that it once needed. After a client has registered some hundred thousand paths and
//! has gone, that would be most of the replica's memory.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};

/// Capacity up to which nothing is given back. With a smaller one, small collections would shrink and grow all the time.
const ALWAYS_KEPT: usize = 1024;
/// A collection of which at most this part is in use is shrunk. With a larger part, shrinking moves more entries in one step:
/// at present at most a sixteenth of what the collection once had.
const USED: usize = 16;
/// Maximum number of entries that are moved in one step. 10,000 take some five milliseconds.
const MOVED: usize = 8192;

fn is_spare(length: usize, capacity: usize) -> bool {
    capacity > ALWAYS_KEPT && length < (capacity / USED).min(MOVED)
}

/// Gives spare capacity of a map back. To be called after a removal.
pub(crate) fn shrink<K: Eq + Hash, V, S: BuildHasher>(map: &mut HashMap<K, V, S>) {
    if is_spare(map.len(), map.capacity()) {
        map.shrink_to(2 * map.len());
    }
}

/// Gives spare capacity of a queue back. To be called after a removal.
pub(crate) fn shrink_queue<T>(queue: &mut VecDeque<T>) {
    if is_spare(queue.len(), queue.capacity()) {
        queue.shrink_to(2 * queue.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_that_was_large_gives_its_capacity_back_and_keeps_its_entries() {
        let mut map: HashMap<usize, usize> = (0..100_000).map(|number| (number, number)).collect();
        let mut queue: VecDeque<usize> = (0..100_000).collect();
        for number in 0..99_990 {
            map.remove(&number);
            shrink(&mut map);
            queue.pop_front();
            shrink_queue(&mut queue);
        }
        assert!(
            map.capacity() <= 2 * ALWAYS_KEPT && queue.capacity() <= 2 * ALWAYS_KEPT,
            "{} {}",
            map.capacity(),
            queue.capacity()
        );
        assert!((99_990..100_000).all(|number| map[&number] == number) && queue.iter().copied().eq(99_990..100_000));
    }

    #[test]
    fn a_small_collection_keeps_its_capacity() {
        let mut map: HashMap<usize, ()> = HashMap::with_capacity(ALWAYS_KEPT / 2);
        let capacity = map.capacity();
        shrink(&mut map);
        assert_eq!(map.capacity(), capacity);
    }
}
