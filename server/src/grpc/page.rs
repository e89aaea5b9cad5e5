//! Cuts a large answer into pages, and a large snapshot of a watch into parts: where one ends, and after which name the
//! next begins (`views/by_name.rs` finds it). `get.rs` has the token between two pages, and `views/pins.rs` keeps the state that they are of.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message as _;
use rollcall_proto::server::v1;

use super::convert;
use crate::views::{Begin, State};

/// A node with a part of its children: at most `most`, and no more than fit into `room` bytes, but at least one after
/// the first part. Only the first part has the value. Returns also the name after which the next part begins.
pub(super) fn node_part(state: &State, begin: &Begin, most: usize, room: usize) -> (v1::Node, Option<Arc<str>>) {
    /// Bytes that a child in a map takes besides its name and itself: tags and lengths.
    const CHILD_OVERHEAD: usize = 16;
    let (own, is_first) = (state.node.as_deref(), *begin == Begin::First);
    let mut node = v1::Node {
        path: state.path.as_str().to_owned(),
        exists: own.is_some(),
        value: own.filter(|_| is_first).and_then(|own| convert::value_to_proto(&own.data)),
        stat: own.map(|own| convert::stat_to_proto(&own.stat)),
        children: BTreeMap::new(),
    };
    let after = if let Begin::After(name) = begin { name } else { "" };
    let mut bytes = node.encoded_len();
    let mut last = None;
    for (name, entry) in state.children.after(after) {
        let child = convert::entry_to_proto(entry);
        bytes += name.len() + child.encoded_len() + CHILD_OVERHEAD;
        if node.children.len() >= most || (bytes > room && (last.is_some() || is_first)) {
            // If the node alone fills the first part, the next begins with the first child: after the empty name.
            return (node, Some(last.unwrap_or_default()));
        }
        node.children.insert(name.to_string(), child);
        last = Some(name.clone());
    }
    (node, None)
}
