//! Watches: the connections that get each event.
//!
//! ZooKeeper keeps two tables, and so do we: `data` fires for a node's creation, deletion and data, `children` for its
//! deletion and the list of its children. A persistent watch is in both, a recursive one only in the first, so that it
//! never reports a list of children. On one path a connection may have watches of every kind at once; it gets each
//! event once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rollcall_wire::WatchMode;
use rollcall_wire::server::WatcherKind;

use crate::path;
use crate::types::ConnectionId;

/// The kinds of watches that one connection has on one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Kinds(u8);

impl Kinds {
    const ONE_SHOT: Self = Self(1);
    const PERSISTENT: Self = Self(2);
    const RECURSIVE: Self = Self(4);
    const ALL: Self = Self(7);

    fn has(self, kinds: Self) -> bool {
        self.0 & kinds.0 != 0
    }

    fn with(self, kinds: Self) -> Self {
        Self(self.0 | kinds.0)
    }

    fn without(self, kinds: Self) -> Self {
        Self(self.0 & !kinds.0)
    }

    fn of(mode: WatchMode) -> Self {
        match mode {
            WatchMode::Persistent => Self::PERSISTENT,
            WatchMode::PersistentRecursive => Self::RECURSIVE,
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    by_path: HashMap<Arc<str>, BTreeMap<ConnectionId, Kinds>>,
    by_connection: HashMap<ConnectionId, BTreeSet<Arc<str>>>,
    /// Number of recursive watches: without any, parents need not be looked at.
    recursive: usize,
}

impl Table {
    fn add(&mut self, path: &str, connection: ConnectionId, kinds: Kinds) {
        let path = match self.by_path.get_key_value(path) {
            Some((path, _)) => path.clone(),
            None => Arc::from(path),
        };
        let standing = self.by_path.entry(path.clone()).or_default().entry(connection).or_default();
        if kinds.has(Kinds::RECURSIVE) && !standing.has(Kinds::RECURSIVE) {
            self.recursive += 1;
        }
        *standing = standing.with(kinds);
        self.by_connection.entry(connection).or_default().insert(path);
    }

    /// Removes these kinds; returns whether there were any.
    fn remove(&mut self, path: &str, connection: ConnectionId, kinds: Kinds) -> bool {
        let Some(watchers) = self.by_path.get_mut(path) else { return false };
        let Some(standing) = watchers.get_mut(&connection) else { return false };
        let before = *standing;
        *standing = before.without(kinds);
        if before.has(Kinds::RECURSIVE) && !standing.has(Kinds::RECURSIVE) {
            self.recursive -= 1;
        }
        if *standing == Kinds::default() {
            watchers.remove(&connection);
            if watchers.is_empty() {
                self.by_path.remove(path);
            }
            if let Some(paths) = self.by_connection.get_mut(&connection) {
                paths.remove(path);
                if paths.is_empty() {
                    self.by_connection.remove(&connection);
                }
            }
        }
        before.has(kinds)
    }

    fn has(&self, path: &str, connection: ConnectionId, kinds: Kinds) -> bool {
        self.by_path.get(path).and_then(|watchers| watchers.get(&connection)).is_some_and(|kind| kind.has(kinds))
    }

    fn forget(&mut self, connection: ConnectionId) {
        let paths = self.by_connection.get(&connection).cloned().unwrap_or_default();
        for path in paths {
            self.remove(&path, connection, Kinds::ALL);
        }
    }

    /// The connections that get the event, each once. One-shot watches are used up.
    fn fire(&mut self, path: &str) -> BTreeSet<ConnectionId> {
        let mut told: BTreeSet<ConnectionId> =
            self.by_path.get(path).into_iter().flat_map(|watchers| watchers.keys()).copied().collect();
        for &connection in &told {
            self.remove(path, connection, Kinds::ONE_SHOT);
        }
        let mut below = path;
        while self.recursive > 0
            && let Some((parent, _)) = path::split(below)
        {
            let watchers = self.by_path.get(parent).into_iter().flatten();
            told.extend(watchers.filter(|(_, kinds)| kinds.has(Kinds::RECURSIVE)).map(|(connection, _)| *connection));
            below = parent;
        }
        told
    }
}

/// All watches of all connections.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    data: Table,
    children: Table,
}

/// Numbers of watches, as `wchs` shows them: only those of the table for data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) connections: usize,
    pub(crate) paths: usize,
    pub(crate) watches: usize,
}

impl Watches {
    /// A one-shot watch of a node's existence and data.
    pub(crate) fn add_data(&mut self, path: &str, connection: ConnectionId) {
        self.data.add(path, connection, Kinds::ONE_SHOT);
    }

    /// A one-shot watch of a node's children.
    pub(crate) fn add_children(&mut self, path: &str, connection: ConnectionId) {
        self.children.add(path, connection, Kinds::ONE_SHOT);
    }

    /// A persistent watch.
    pub(crate) fn add(&mut self, path: &str, connection: ConnectionId, mode: WatchMode) {
        self.data.add(path, connection, Kinds::of(mode));
        if mode == WatchMode::Persistent {
            self.children.add(path, connection, Kinds::PERSISTENT);
        }
    }

    /// Whether there is such a watch.
    pub(crate) fn has(&self, path: &str, connection: ConnectionId, kind: WatcherKind) -> bool {
        let (data, children) = tables(kind);
        self.data.has(path, connection, data) || self.children.has(path, connection, children)
    }

    /// Removes such watches; returns whether there were any.
    pub(crate) fn remove(&mut self, path: &str, connection: ConnectionId, kind: WatcherKind) -> bool {
        let (data, children) = tables(kind);
        let in_data = self.data.remove(path, connection, data);
        self.children.remove(path, connection, children) || in_data
    }

    /// The connection is gone, and its watches with it.
    pub(crate) fn forget(&mut self, connection: ConnectionId) {
        self.data.forget(connection);
        self.children.forget(connection);
    }

    /// The connections to tell that a node was created, or its data written.
    pub(crate) fn changed(&mut self, path: &str) -> BTreeSet<ConnectionId> {
        self.data.fire(path)
    }

    /// The connections to tell that a node was deleted: those that watch it in either table, once.
    pub(crate) fn deleted(&mut self, path: &str) -> BTreeSet<ConnectionId> {
        let mut told = self.data.fire(path);
        told.extend(self.children.fire(path));
        told
    }

    /// The connections to tell that a child of this node came or went.
    pub(crate) fn children_changed(&mut self, path: &str) -> BTreeSet<ConnectionId> {
        self.children.fire(path)
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            connections: self.data.by_connection.len(),
            paths: self.data.by_path.len(),
            watches: self.data.by_connection.values().map(BTreeSet::len).sum(),
        }
    }

    /// The watches of the table for data, by path.
    pub(crate) fn by_path(&self) -> impl Iterator<Item = (&Arc<str>, impl Iterator<Item = ConnectionId>)> {
        self.data.by_path.iter().map(|(path, watchers)| (path, watchers.keys().copied()))
    }

    /// The same, by connection.
    pub(crate) fn by_connection(&self) -> impl Iterator<Item = (ConnectionId, &BTreeSet<Arc<str>>)> {
        self.data.by_connection.iter().map(|(connection, paths)| (*connection, paths))
    }

    /// The watches in both tables.
    pub(crate) fn total(&self) -> usize {
        [&self.data, &self.children].iter().flat_map(|table| table.by_connection.values()).map(BTreeSet::len).sum()
    }
}

/// The kinds that are meant in each table.
fn tables(kind: WatcherKind) -> (Kinds, Kinds) {
    match kind {
        WatcherKind::Children => (Kinds::default(), Kinds::ONE_SHOT),
        WatcherKind::Data => (Kinds::ONE_SHOT, Kinds::default()),
        WatcherKind::Any => (Kinds::ALL, Kinds::ALL),
        WatcherKind::Persistent => (Kinds::PERSISTENT, Kinds::PERSISTENT),
        WatcherKind::PersistentRecursive => (Kinds::RECURSIVE, Kinds::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: ConnectionId = ConnectionId(1);

    fn told(set: &BTreeSet<ConnectionId>) -> bool {
        set.contains(&ME)
    }

    #[test]
    fn a_one_shot_watch_fires_once_and_leaves_the_persistent_one_on_its_path() {
        let mut watches = Watches::default();
        watches.add_data("/a", ME);
        watches.add("/a", ME, WatchMode::PersistentRecursive);
        assert!(told(&watches.changed("/a")));
        assert!(!watches.has("/a", ME, WatcherKind::Data));
        assert!(told(&watches.changed("/a/b/c")), "the recursive watch stands");
        assert!(watches.remove("/a", ME, WatcherKind::PersistentRecursive));
        assert!(!watches.remove("/a", ME, WatcherKind::Any));
        assert_eq!(watches.total(), 0);
    }

    #[test]
    fn a_recursive_watch_is_not_told_of_lists_of_children() {
        let mut watches = Watches::default();
        watches.add("/", ME, WatchMode::PersistentRecursive);
        assert!(!told(&watches.children_changed("/a")));
        assert!(!told(&watches.children_changed("/")));
        assert!(told(&watches.deleted("/a/b")));
    }

    #[test]
    fn a_persistent_watch_covers_its_node_and_the_list_of_its_children() {
        let mut watches = Watches::default();
        watches.add("/a", ME, WatchMode::Persistent);
        for _ in 0..2 {
            assert!(told(&watches.children_changed("/a")));
            assert!(told(&watches.changed("/a")));
            assert!(!told(&watches.changed("/a/b")));
        }
        watches.forget(ME);
        assert_eq!(watches.total(), 0);
    }

    #[test]
    fn a_deletion_uses_up_both_one_shot_watches() {
        let mut watches = Watches::default();
        watches.add_data("/a", ME);
        watches.add_children("/a", ME);
        assert!(told(&watches.deleted("/a")));
        assert_eq!(watches.total(), 0);
    }
}
