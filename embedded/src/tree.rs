//! The nodes: what ZooKeeper calls the data tree.
//!
//! The tree carries single changes out and can take them back; `transaction` decides whether they are allowed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use rollcall_wire::{Acl, Stat, permission};

use crate::path;
use crate::types::{SessionId, Zxid};

/// The event that ends a node's life, besides a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// Nothing.
    Persistent,
    /// The end of a session.
    Ephemeral(SessionId),
    /// The end of its last child.
    Container,
    /// This number of milliseconds without a write or a child.
    Ttl(i64),
}

/// A node.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) data: Option<Bytes>,
    pub(crate) acl: Arc<[Acl]>,
    pub(crate) lifetime: Lifetime,
    pub(crate) children: BTreeSet<Arc<str>>,
    created: Stamp,
    written: Stamp,
    children_changed: Zxid,
    pub(crate) version: i32,
    /// Number of children that were ever created, by which sequential nodes are numbered. Clients see the number of
    /// changes instead. It stays at its largest value, as ZooKeeper's does. Only within one transaction it goes on
    /// below zero, until [`Tree::settle`].
    pub(crate) children_created: i32,
    pub(crate) acl_version: i32,
}

/// A transaction, and its time by the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stamp {
    pub(crate) zxid: Zxid,
    pub(crate) wall_ms: i64,
}

impl Node {
    pub(crate) fn new(data: Option<Bytes>, acl: Arc<[Acl]>, lifetime: Lifetime, stamp: Stamp) -> Self {
        Self {
            data,
            acl,
            lifetime,
            children: BTreeSet::new(),
            created: stamp,
            written: stamp,
            children_changed: stamp.zxid,
            version: 0,
            children_created: 0,
            acl_version: 0,
        }
    }

    /// The stat that clients get.
    pub(crate) fn stat(&self) -> Stat {
        let children = length(self.children.len());
        Stat {
            czxid: self.created.zxid.0,
            mzxid: self.written.zxid.0,
            ctime: self.created.wall_ms,
            mtime: self.written.wall_ms,
            version: self.version,
            // Each child that is gone was created and deleted: two changes.
            cversion: self.settled_count().wrapping_mul(2).wrapping_sub(children),
            aversion: self.acl_version,
            ephemeral_owner: match self.lifetime {
                Lifetime::Ephemeral(session) => session.0,
                Lifetime::Persistent | Lifetime::Container | Lifetime::Ttl(_) => 0,
            },
            data_length: length(self.data.as_ref().map_or(0, Bytes::len)),
            num_children: children,
            pzxid: self.children_changed.0,
        }
    }

    fn settled_count(&self) -> i32 {
        if self.children_created < 0 { i32::MAX } else { self.children_created }
    }

    /// The transaction that last wrote the data.
    pub(crate) fn written_at(&self) -> Zxid {
        self.written.zxid
    }

    /// The transaction that last added or removed a child.
    pub(crate) fn children_changed_at(&self) -> Zxid {
        self.children_changed
    }
}

fn length(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}

/// How to take a change back.
#[derive(Debug)]
pub(crate) enum Undo {
    Create { path: Arc<str>, parent_created: i32, parent_changed: Zxid },
    Delete { path: Arc<str>, node: Box<Node>, parent_changed: Zxid },
    Write { path: Arc<str>, data: Option<Bytes>, version: i32, written: Stamp },
}

/// All nodes.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: HashMap<Arc<str>, Node>,
    ephemerals: BTreeMap<SessionId, BTreeSet<Arc<str>>>,
    ephemeral_count: usize,
    /// Containers and nodes with a time to live.
    mortal: BTreeSet<Arc<str>>,
    /// The bytes of all paths and data.
    bytes: usize,
    open: Arc<[Acl]>,
}

impl Tree {
    /// The tree of a new server: the root, and the nodes that ZooKeeper keeps for itself.
    pub(crate) fn new() -> Self {
        let open: Arc<[Acl]> = Arc::new([Acl::open()]);
        let mut tree = Self {
            nodes: HashMap::new(),
            ephemerals: BTreeMap::new(),
            ephemeral_count: 0,
            mortal: BTreeSet::new(),
            bytes: 0,
            open: open.clone(),
        };
        let first = |acl| Node::new(Some(Bytes::new()), acl, Lifetime::Persistent, Stamp::default());
        for path in ["/", "/zookeeper", "/zookeeper/quota"] {
            tree.nodes.insert(path.into(), first(open.clone()));
        }
        let read = Acl { permissions: permission::READ, ..Acl::open() };
        tree.nodes.insert("/zookeeper/config".into(), Node { acl_version: -1, ..first(Arc::new([read])) });
        for (parent, name) in [("/", "zookeeper"), ("/zookeeper", "config"), ("/zookeeper", "quota")] {
            if let Some(parent) = tree.nodes.get_mut(parent) {
                parent.children.insert(name.into());
            }
        }
        tree
    }

    /// The node; the root is also known as `""`.
    pub(crate) fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(if path.is_empty() { "/" } else { path })
    }

    fn get_mut(&mut self, path: &str) -> Option<&mut Node> {
        self.nodes.get_mut(if path.is_empty() { "/" } else { path })
    }

    /// Number of nodes, the root included.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Number of ephemeral nodes.
    pub(crate) fn ephemeral_count(&self) -> usize {
        self.ephemeral_count
    }

    /// The bytes of all paths and data.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of nodes below this one.
    pub(crate) fn count_below(&self, path: &str) -> usize {
        match path {
            // ZooKeeper counts the root under one of its two names.
            "/" => self.nodes.len() - 1,
            path => {
                let is_below = |other: &&Arc<str>| other.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
                self.nodes.keys().filter(is_below).count()
            }
        }
    }

    /// A session's ephemerals, by name.
    pub(crate) fn ephemerals(&self, session: SessionId) -> impl Iterator<Item = &Arc<str>> {
        self.ephemerals.get(&session).into_iter().flatten()
    }

    /// All ephemerals, by session.
    pub(crate) fn all_ephemerals(&self) -> impl ExactSizeIterator<Item = (SessionId, &BTreeSet<Arc<str>>)> {
        self.ephemerals.iter().map(|(session, paths)| (*session, paths))
    }

    /// The list as it is stored: all nodes share the usual one.
    pub(crate) fn intern(&self, acl: Vec<Acl>) -> Arc<[Acl]> {
        if acl[..] == *self.open { self.open.clone() } else { acl.into() }
    }

    /// Containers that have lost their last child, and nodes whose time is over.
    pub(crate) fn overdue(&self, wall_ms: i64) -> Vec<Arc<str>> {
        let is_overdue = |path: &&Arc<str>| {
            self.nodes.get(*path).filter(|node| node.children.is_empty()).is_some_and(|node| match node.lifetime {
                Lifetime::Container => node.children_created > 0,
                Lifetime::Ttl(ttl) => wall_ms.saturating_sub(node.written.wall_ms) > ttl,
                Lifetime::Persistent | Lifetime::Ephemeral(_) => false,
            })
        };
        self.mortal.iter().filter(is_overdue).cloned().collect()
    }

    /// Adds a node below a parent that exists. `None` when the parent does not exist.
    pub(crate) fn create(&mut self, path: &str, node: Node) -> Option<Undo> {
        let (parent, name) = path::split(path)?;
        let zxid = node.created.zxid;
        let parent = self.get_mut(parent)?;
        let (parent_created, parent_changed) = (parent.children_created, parent.children_changed);
        parent.children_created = parent_created.wrapping_add(1);
        // ZooKeeper takes a create that does not raise the count for a transaction that it has seen before.
        if (0..i32::MAX).contains(&parent_created) {
            parent.children_changed = zxid;
        }
        parent.children.insert(name.into());
        let path: Arc<str> = path.into();
        self.insert(&path, node);
        Some(Undo::Create { path, parent_created, parent_changed })
    }

    /// Ends a transaction that created a node: a count of its parent's children that has overflowed becomes the
    /// largest.
    pub(crate) fn settle(&mut self, path: &str) {
        if let Some((parent, _)) = path::split(path)
            && let Some(parent) = self.get_mut(parent)
        {
            parent.children_created = parent.settled_count();
        }
    }

    /// Makes a node count its children as if this many had been created. False when there is no node.
    #[cfg(feature = "faults")]
    pub(crate) fn make_old(&mut self, path: &str, children_created: i32) -> bool {
        self.get_mut(path).map(|node| node.children_created = children_created).is_some()
    }

    /// Removes a node. `None` when there is none.
    pub(crate) fn delete(&mut self, path: &str, zxid: Zxid) -> Option<Undo> {
        let (parent, name) = path::split(path)?;
        let (path, node) = self.remove(path)?;
        let parent = self.get_mut(parent)?;
        parent.children.remove(name);
        let parent_changed = parent.children_changed;
        parent.children_changed = zxid;
        Some(Undo::Delete { path, node: Box::new(node), parent_changed })
    }

    /// Writes a node's data. `None` when there is none.
    pub(crate) fn write(&mut self, path: &str, data: Option<Bytes>, stamp: Stamp) -> Option<Undo> {
        let path = self.nodes.get_key_value(path)?.0.clone();
        let node = self.nodes.get_mut(&path)?;
        let undo = Undo::Write { path, data: node.data.take(), version: node.version, written: node.written };
        self.bytes += data.as_ref().map_or(0, Bytes::len);
        if let Undo::Write { data: Some(before), .. } = &undo {
            self.bytes -= before.len();
        }
        node.data = data;
        node.version = node.version.wrapping_add(1);
        node.written = stamp;
        Some(undo)
    }

    /// Writes a node's access control list. `None` when there is none.
    pub(crate) fn write_acl(&mut self, path: &str, acl: Arc<[Acl]>) -> Option<Stat> {
        let node = self.get_mut(path)?;
        node.acl = acl;
        node.acl_version = node.acl_version.wrapping_add(1);
        Some(node.stat())
    }

    /// Takes a change back. Changes are taken back in the reverse of their order.
    pub(crate) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Create { path, parent_created, parent_changed } => {
                self.remove(&path);
                if let Some((parent, name)) = path::split(&path)
                    && let Some(parent) = self.get_mut(parent)
                {
                    parent.children.remove(name);
                    parent.children_created = parent_created;
                    parent.children_changed = parent_changed;
                }
            }
            Undo::Delete { path, node, parent_changed } => {
                if let Some((parent, name)) = path::split(&path)
                    && let Some(parent) = self.get_mut(parent)
                {
                    parent.children.insert(name.into());
                    parent.children_changed = parent_changed;
                }
                self.insert(&path, *node);
            }
            Undo::Write { path, data, version, written } => {
                self.bytes += data.as_ref().map_or(0, Bytes::len);
                if let Some(node) = self.nodes.get_mut(&path) {
                    self.bytes -= node.data.as_ref().map_or(0, Bytes::len);
                    node.data = data;
                    node.version = version;
                    node.written = written;
                }
            }
        }
    }

    fn insert(&mut self, path: &Arc<str>, node: Node) {
        match node.lifetime {
            Lifetime::Persistent => {}
            Lifetime::Ephemeral(session) => {
                self.ephemerals.entry(session).or_default().insert(path.clone());
                self.ephemeral_count += 1;
            }
            Lifetime::Container | Lifetime::Ttl(_) => drop(self.mortal.insert(path.clone())),
        }
        self.bytes += path.len() + node.data.as_ref().map_or(0, Bytes::len);
        self.nodes.insert(path.clone(), node);
    }

    fn remove(&mut self, path: &str) -> Option<(Arc<str>, Node)> {
        let (path, node) = self.nodes.remove_entry(path)?;
        match node.lifetime {
            Lifetime::Persistent => {}
            Lifetime::Ephemeral(session) => {
                if let Some(paths) = self.ephemerals.get_mut(&session) {
                    paths.remove(&path);
                    if paths.is_empty() {
                        self.ephemerals.remove(&session);
                    }
                }
                self.ephemeral_count -= 1;
            }
            Lifetime::Container | Lifetime::Ttl(_) => drop(self.mortal.remove(&path)),
        }
        self.bytes -= path.len() + node.data.as_ref().map_or(0, Bytes::len);
        Some((path, node))
    }
}
