//! A map by name whose copies share what they have in common. Pure.
//!
//! A view moves on while readers hold earlier states, so both a copy and a change of one of many copies must be cheap.
//! The names are held in order, in chunks: a copy copies the list of chunks, a change copies the one chunk that it
//! concerns. For 50,000 names that is 800 pointers and at most 128 entries, where a plain map would copy all.

use std::sync::Arc;

/// Maximum number of entries of a chunk.
const MAX_CHUNK: usize = 128;
/// Neighbouring chunks with no more entries than this together are joined.
const JOIN_UP_TO: usize = 48;
/// Number of entries of a chunk that is made from a sorted list: less than the maximum, which leaves room for more.
const FILLED_CHUNK: usize = 96;

type Named<V> = (Arc<str>, V);

/// The map, in the order of the names' bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ByName<V> {
    /// No chunk is empty, and each begins after the end of the one before.
    chunks: Vec<Arc<Vec<Named<V>>>>,
    len: usize,
}

impl<V> Default for ByName<V> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }
}

impl<V: Clone> ByName<V> {
    /// A map of entries that are sorted by name; no name may occur twice.
    pub(super) fn from_sorted(entries: Vec<Named<V>>) -> Self {
        let (len, mut chunks) = (entries.len(), Vec::with_capacity(entries.len().div_ceil(FILLED_CHUNK)));
        let mut entries = entries.into_iter().peekable();
        while entries.peek().is_some() {
            chunks.push(Arc::new(entries.by_ref().take(FILLED_CHUNK).collect()));
        }
        Self { chunks, len }
    }

    /// Number of names.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&V> {
        let chunk = self.chunks.get(self.chunk_of(name)?)?;
        let index = find(chunk, name).ok()?;
        chunk.get(index).map(|(_, value)| value)
    }

    /// Whether the name exists.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// All entries, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &V)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).map(|(name, value)| (name, value))
    }

    /// The entries after a name, in order, whether or not the name itself exists.
    pub(crate) fn after(&self, name: &str) -> impl Iterator<Item = (&Arc<str>, &V)> {
        let first = self.chunk_of(name).unwrap_or_default();
        let skipped = self.chunks.get(first).map_or(0, |chunk| chunk.partition_point(|(other, _)| **other <= *name));
        let chunks = self.chunks.get(first..).unwrap_or_default();
        chunks.iter().flat_map(|chunk| chunk.iter()).skip(skipped).map(|(name, value)| (name, value))
    }

    /// Sets the value of a name; returns the one before.
    pub(super) fn insert(&mut self, name: Arc<str>, value: V) -> Option<V> {
        let Some(at) = self.chunk_of(&name) else {
            self.chunks.push(Arc::new(vec![(name, value)]));
            self.len += 1;
            return None;
        };
        let chunk = Arc::make_mut(&mut self.chunks[at]);
        match find(chunk, &name) {
            Ok(index) => return Some(std::mem::replace(&mut chunk[index].1, value)),
            Err(index) => chunk.insert(index, (name, value)),
        }
        self.len += 1;
        if chunk.len() > MAX_CHUNK {
            let rest = chunk.split_off(chunk.len() / 2);
            self.chunks.insert(at + 1, Arc::new(rest));
        }
        None
    }

    /// Removes a name; returns its value.
    pub(super) fn remove(&mut self, name: &str) -> Option<V> {
        let at = self.chunk_of(name)?;
        let index = find(&self.chunks[at], name).ok()?;
        let (_, value) = Arc::make_mut(&mut self.chunks[at]).remove(index);
        self.len -= 1;
        if self.chunks[at].is_empty() {
            self.chunks.remove(at);
        } else {
            self.join(at);
        }
        Some(value)
    }

    /// Joins a chunk with a neighbour, if the two have become small together.
    fn join(&mut self, at: usize) {
        let small = |first: usize| self.chunks[first].len() + self.chunks[first + 1].len() <= JOIN_UP_TO;
        let first = [Some(at), at.checked_sub(1)].into_iter().flatten();
        let mut first = first.filter(|first| first + 1 < self.chunks.len());
        if let Some(first) = first.find(|first| small(*first)) {
            let second = self.chunks.remove(first + 1);
            Arc::make_mut(&mut self.chunks[first]).extend(second.iter().cloned());
        }
    }

    /// The chunk that a name belongs to, whether or not it is there; `None` if there is no chunk.
    fn chunk_of(&self, name: &str) -> Option<usize> {
        let after = self.chunks.partition_point(|chunk| chunk.first().is_some_and(|(first, _)| **first <= *name));
        (!self.chunks.is_empty()).then(|| after.saturating_sub(1))
    }
}

fn find<V>(chunk: &[Named<V>], name: &str) -> Result<usize, usize> {
    chunk.binary_search_by(|(other, _)| (**other).cmp(name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    fn check(map: &ByName<u32>, truth: &BTreeMap<Arc<str>, u32>) {
        assert_eq!((map.len(), map.is_empty()), (truth.len(), truth.is_empty()));
        assert!(map.iter().eq(truth.iter()));
        assert!(map.chunks.iter().all(|chunk| (1..=MAX_CHUNK).contains(&chunk.len())));
    }

    #[test]
    fn it_is_a_map_and_its_copies_stay_as_they_are() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut map, mut truth) = (ByName::default(), BTreeMap::new());
        let mut copies = Vec::new();
        for step in 0..20_000_u32 {
            // It grows to thousands, and shrinks again.
            let grows = if step < 12_000 { 0.7 } else { 0.2 };
            let name: Arc<str> = rng.random_range(0..4000).to_string().into();
            if rng.random_bool(grows) {
                assert_eq!(map.insert(name.clone(), step), truth.insert(name.clone(), step));
            } else {
                assert_eq!(map.remove(&name), truth.remove(&name));
            }
            assert_eq!((map.get(&name), map.contains(&name)), (truth.get(&name), truth.contains_key(&name)));
            if step % 1000 == 0 {
                copies.push((map.clone(), truth.clone()));
                let from: Arc<str> = rng.random_range(0..5000).to_string().into();
                let bounds = (std::ops::Bound::Excluded(&*from), std::ops::Bound::Unbounded);
                assert!(map.after(&from).eq(truth.range::<str, _>(bounds)));
                assert!(map.after("").eq(truth.iter()));
            }
        }
        copies.push((map, truth));
        for (map, truth) in &copies {
            check(map, truth);
        }
    }

    #[test]
    fn what_is_made_at_once_is_the_same_map() {
        for count in [0, 1, FILLED_CHUNK, FILLED_CHUNK + 1, 1000] {
            let names = (0..u32::try_from(count).unwrap()).map(|number| (format!("{number:05}").into(), number));
            let truth: BTreeMap<Arc<str>, u32> = names.collect();
            let mut map = ByName::from_sorted(truth.clone().into_iter().collect());
            check(&map, &truth);
            map.insert("x".into(), 7);
            assert_eq!((map.len(), map.get("x")), (count + 1, Some(&7)));
        }
    }

    #[test]
    fn a_change_leaves_most_of_a_copy_shared() {
        let mut map = ByName::default();
        for number in 0..50_000 {
            map.insert(format!("{number:05}").into(), ());
        }
        let copy = map.clone();
        map.insert("31415x".into(), ());
        let is_shared = |chunk: &Arc<_>| copy.chunks.iter().any(|other| Arc::ptr_eq(chunk, other));
        let own = map.chunks.iter().filter(|chunk| !is_shared(chunk)).count();
        assert!(own <= 2, "{own} of {}", map.chunks.len());
        assert!(map.contains("31415x") && !copy.contains("31415x"));
    }

    #[test]
    fn an_empty_map_has_nothing() {
        let mut map = ByName::<u8>::default();
        assert!(map.is_empty() && map.remove("a").is_none() && map.get("").is_none());
        assert_eq!((map.iter().count(), map.after("").count()), (0, 0));
    }
}
