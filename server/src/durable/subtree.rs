//! The nodes below a node: kept in few bytes, for which the connection of the request pays, and freed in few steps.

use std::collections::VecDeque;

use tokio::runtime::Handle;

use crate::budget::{Account, Resource, Share};
use crate::error::Error;
use crate::turns::TurnPermit;
use crate::types::NodePath;

/// Number of nodes in a chunk. A larger chunk takes longer to copy as it grows; smaller chunks take longer to be freed.
const NODES_PER_CHUNK: usize = 1024;
/// Memory of a node besides its path, in bytes.
const NODE: usize = 24;
/// Memory of a child's name that was listed, in bytes.
const NAME: usize = 64;
/// Number of names above which they are freed on a blocking thread.
const LONG_NAME_LIST: usize = 1000;

/// The nodes below a node, parents before children.
#[derive(Debug)]
pub(super) struct Subtree {
    chunks: Vec<Chunk>,
    /// The indexes of nodes whose children have not been listed yet, the next one first.
    unlisted: VecDeque<usize>,
    len: usize,
    share: Share,
    /// The turn of a large subtree; only a few have one at a time.
    pub(super) turn: Option<TurnPermit<()>>,
}

/// The paths of some nodes, one after the other.
#[derive(Debug, Default)]
struct Chunk {
    paths: String,
    /// For each node, where its path ends, and its version.
    nodes: Vec<(usize, i32)>,
}

/// The names of a node's children, given out one by one.
#[derive(Debug)]
pub(super) struct ChildNames {
    names: std::vec::IntoIter<String>,
    _share: Share,
}

impl Subtree {
    /// An empty subtree, for which `account` will pay.
    pub(super) fn new(account: &Account) -> Self {
        let share = account.share(Resource::Bytes);
        Self { chunks: Vec::new(), unlisted: VecDeque::new(), len: 0, share, turn: None }
    }

    /// Number of nodes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a node.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when the connection has no room for it.
    pub(super) fn add(&mut self, path: &NodePath, version: i32, has_children: bool) -> Result<(), Error> {
        self.share.resize(self.share.amount() + path.as_str().len() + NODE)?;
        if self.len.is_multiple_of(NODES_PER_CHUNK) {
            self.chunks.push(Chunk::default());
        }
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.paths.push_str(path.as_str());
            chunk.nodes.push((chunk.paths.len(), version));
        }
        if has_children {
            self.unlisted.push_back(self.len);
        }
        self.len += 1;
        Ok(())
    }

    /// The next node whose children have to be listed.
    pub(super) fn next_unlisted(&mut self) -> Option<NodePath> {
        let index = self.unlisted.pop_front()?;
        let (chunk, index) = (self.chunks.get(index / NODES_PER_CHUNK)?, index % NODES_PER_CHUNK);
        let begin = if index == 0 { 0 } else { chunk.nodes.get(index - 1)?.0 };
        Some(NodePath::trusted(chunk.paths.get(begin..chunk.nodes.get(index)?.0)?))
    }

    /// Takes out the last node; returns its path and its version.
    pub(super) fn pop(&mut self) -> Option<(String, i32)> {
        while self.chunks.last().is_some_and(|chunk| chunk.nodes.is_empty()) {
            self.chunks.pop();
        }
        let chunk = self.chunks.last_mut()?;
        let (_, version) = chunk.nodes.pop()?;
        self.len -= 1;
        Some((chunk.paths.split_off(chunk.nodes.last().map_or(0, |(end, _)| *end)), version))
    }
}

impl ChildNames {
    /// # Errors
    /// [`Error::LimitExceeded`] when the connection has no room for them.
    pub(super) fn new(names: Vec<String>, account: &Account) -> Result<Self, Error> {
        let share = account.take(Resource::Bytes, names.len() * NAME);
        let mut names = Self { names: names.into_iter(), _share: account.share(Resource::Bytes) };
        names._share = share?;
        Ok(names)
    }

    /// The next names, at most `most`.
    pub(super) fn take(&mut self, most: usize) -> Vec<String> {
        self.names.by_ref().take(most).collect()
    }
}

impl Drop for ChildNames {
    fn drop(&mut self) {
        if self.names.len() > LONG_NAME_LIST
            && let Ok(runtime) = Handle::try_current()
        {
            let names = std::mem::take(&mut self.names);
            drop(runtime.spawn_blocking(move || drop(names)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, Limits};

    #[test]
    fn nodes_come_back_the_last_first_and_are_listed_the_first_first() {
        let mut subtree = Subtree::new(&Account::unlimited());
        let path = |number: usize| NodePath::trusted(format!("/a/{number}"));
        let count = 3 * NODES_PER_CHUNK + 1;
        for number in 0..count {
            subtree.add(&path(number), i32::try_from(number).unwrap(), number % 1000 == 0).unwrap();
        }
        for number in [0, 1000, 2000, 3000] {
            assert_eq!(subtree.next_unlisted(), Some(path(number)));
        }
        assert_eq!((subtree.next_unlisted(), subtree.len()), (None, count));
        for number in (0..count).rev() {
            let expected = (path(number).as_str().to_owned(), i32::try_from(number).unwrap());
            assert_eq!(subtree.pop(), Some(expected));
        }
        assert_eq!((subtree.pop(), subtree.len()), (None, 0));
    }

    #[test]
    fn the_connection_pays_for_nodes_and_names_until_they_are_gone() {
        let account = Budget::new(Limits { bytes: 1000, ..Limits::NONE }, Limits::NONE).account();
        let mut subtree = Subtree::new(&account);
        let path = NodePath::trusted("/a/b");
        let refused = (0..1000).find_map(|_| subtree.add(&path, 0, false).err());
        assert_eq!(refused.unwrap().reason(), "TOO_MANY_BYTES");
        assert_eq!(subtree.len(), 1000 / (NODE + 4));
        drop(subtree);
        let names = ChildNames::new(vec!["a".to_owned(); 10], &account).unwrap();
        assert_eq!(account.used(Resource::Bytes), 10 * NAME);
        assert!(ChildNames::new(vec!["a".to_owned(); 10], &account).is_err());
        drop(names);
        assert_eq!(account.used(Resource::Bytes), 0);
    }
}
