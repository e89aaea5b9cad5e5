//! The scope of a view, and the nodes in it that an event concerns. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use crate::types::{NodePath, RESERVED_ROOT};
use crate::zk::{Batch, NodeEvents};

/// Relative paths.
pub(super) type RelativePaths = HashSet<Arc<str>>;

/// A path, and how far down from it a view reaches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Scope {
    pub(super) path: NodePath,
    pub(super) recursive: bool,
}

impl Scope {
    /// The nodes to read again, by relative path. The path's own node is always read and never named.
    ///
    /// A node that is created or deleted changes its parent's stat without an event for the parent, so the parent is
    /// named too.
    pub(super) fn named(&self, batch: &Batch) -> RelativePaths {
        let mut names = RelativePaths::new();
        for (path, seen) in &batch.events {
            if let Some(name) = self.path.relative(path) {
                self.name(name, *seen, &mut names);
            }
        }
        names
    }

    fn name(&self, name: &str, seen: NodeEvents, names: &mut RelativePaths) {
        if self.hides(name) {
            return;
        }
        let parent = parent_of(name).filter(|_| seen.created || seen.deleted);
        if self.recursive || !name.contains('/') {
            names.insert(name.into());
        }
        if let Some(parent) = parent.filter(|parent| self.recursive || !parent.contains('/')) {
            names.insert(parent.into());
        }
    }

    /// Whether a relative path is reserved for Rollcall.
    pub(super) fn hides(&self, name: &str) -> bool {
        let reserved = &RESERVED_ROOT[1..];
        self.path.is_root() && name.strip_prefix(reserved).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The absolute path of a node below.
    pub(super) fn absolute(&self, name: &str) -> String {
        let prefix = if self.path.is_root() { "" } else { self.path.as_str() };
        format!("{prefix}/{name}")
    }

    /// The path's ancestors, the nearest first.
    pub(super) fn ancestors(&self) -> impl Iterator<Item = NodePath> + use<> {
        std::iter::successors(self.path.parent(), NodePath::parent)
    }
}

/// The relative path of a child of `parent`, which is empty for the path itself.
pub(super) fn child_of(parent: &str, name: &str) -> Arc<str> {
    if parent.is_empty() { name.into() } else { format!("{parent}/{name}").into() }
}

/// The relative path of the parent; `None` for a node directly below the path itself.
pub(super) fn parent_of(name: &str) -> Option<&str> {
    name.rsplit_once('/').map(|(parent, _)| parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITTEN: NodeEvents =
        NodeEvents { created: false, deleted: false, data_changed: true, created_by: None, zxid: None };
    const CREATED: NodeEvents =
        NodeEvents { created: true, deleted: false, data_changed: false, created_by: None, zxid: None };

    fn named(path: &str, recursive: bool, events: &[(&str, NodeEvents)]) -> Vec<String> {
        let mut batch = Batch::default();
        batch.events.extend(events.iter().map(|(path, seen)| (Arc::from(*path), *seen)));
        let names = Scope { path: NodePath::trusted(path), recursive }.named(&batch);
        let mut names: Vec<_> = names.iter().map(ToString::to_string).collect();
        names.sort();
        names
    }

    #[test]
    fn a_grandchild_that_comes_or_goes_concerns_the_child_above_it() {
        let events =
            [("/p", CREATED), ("/p/a", WRITTEN), ("/p/b/x", CREATED), ("/p/c/x", WRITTEN), ("/p/d/x/y", CREATED)];
        assert_eq!(named("/p", false, &events), ["a", "b"]);
    }

    #[test]
    fn a_tree_reads_what_happened_and_the_parents_whose_lists_changed() {
        let events = [("/p/a", CREATED), ("/p/b/x", CREATED), ("/p/c/x", WRITTEN), ("/p/d/x/y", CREATED)];
        assert_eq!(named("/p", true, &events), ["a", "b", "b/x", "c/x", "d/x", "d/x/y"]);
    }

    #[test]
    fn rollcalls_own_nodes_cause_no_reads() {
        let events = [("/.rollcall", CREATED), ("/.rollcall/fences/1", WRITTEN), ("/.rollcall2", CREATED)];
        assert_eq!(named("/", true, &events), [".rollcall2"]);
        assert_eq!(named("/", false, &events), [".rollcall2"]);
    }

    #[test]
    fn ancestors_end_at_the_root() {
        let ancestors = |path: &str| {
            let scope = Scope { path: NodePath::trusted(path), recursive: false };
            scope.ancestors().map(|path| path.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(ancestors("/a/b"), ["/a", "/"]);
        assert!(ancestors("/").is_empty());
    }
}
