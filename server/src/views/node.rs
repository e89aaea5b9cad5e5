//! The nodes of a view, as they are shown and as they were read.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::types::Stat;

/// A node: its data, and ZooKeeper's record of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ViewNode {
    pub(crate) data: Bytes,
    pub(crate) stat: Stat,
    /// False when ZooKeeper's access control list hides the node: its data is then empty, and its stat is all zeros.
    pub(crate) is_readable: bool,
}

impl ViewNode {
    /// A node as it was read. The data is copied: as a slice of a reply it would keep the whole reply in memory.
    pub(super) fn new(data: &[u8], stat: Stat) -> Self {
        Self { data: Bytes::copy_from_slice(data), stat, is_readable: true }
    }

    /// The last transaction that changed the node or its list of children.
    pub(super) fn zxid(&self) -> i64 {
        self.stat.mzxid.max(self.stat.pzxid)
    }
}

/// The path's own node, as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NodeRead {
    /// The node exists.
    Present(Arc<ViewNode>),
    /// The node does not exist. The pzxid of its nearest existing ancestor dates its absence.
    Absent(i64),
}

/// The nodes below, as they were read; `None` for a node that does not exist.
pub(super) type Reads = HashMap<Arc<str>, Option<Arc<ViewNode>>>;

/// Memory that a node occupies beside its name and its data, roughly.
pub(super) const NODE_OVERHEAD: usize = 192;

/// Memory that a node occupies, roughly.
pub(super) fn weight(name: &str, entry: &ViewNode) -> usize {
    NODE_OVERHEAD + name.len() + entry.data.len()
}
