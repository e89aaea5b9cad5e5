//! The content of a view: a path and the nodes below it at one consistent moment. Pure.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use super::apart::{NODES_PER_STEP, discard};
use super::by_name::ByName;
use super::node::{NODE_OVERHEAD, NodeRead, Reads, ViewNode, weight};
use super::parts::{Begin, PartKey, Parts};
use super::ring::{Edit, Edits};
use super::scope::{Scope, parent_of};
use crate::types::{NodePath, Revision, Stat, Zxid};

/// A path and the nodes below it, as of one revision. Readers share it and never see it change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// The path.
    pub(crate) path: NodePath,
    /// Whether `children` is the whole subtree.
    pub(crate) recursive: bool,
    /// The revision that dates the state.
    pub(crate) revision: Revision,
    /// The path's own node; `None` when it does not exist.
    pub(crate) node: Option<Arc<ViewNode>>,
    /// By name, or by relative path (`a/b`) if recursive, in the order of bytes.
    pub(crate) children: ByName<Arc<ViewNode>>,
    /// Number of direct children of each inner node, to compare with its stat. Kept for recursive states only.
    counts: ByName<usize>,
    /// Memory that the state occupies, roughly.
    bytes: usize,
    parts: Parts,
}

/// The difference between a moment and the one before.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Names and data that changed: the path itself first (its name is empty), then by name.
    pub(super) edits: Edits,
    /// Whether nothing but the records of nodes further down changed: there was no other content between the two
    /// revisions.
    pub(super) is_pure: bool,
}

impl State {
    /// A path of which nothing is known yet.
    pub(super) fn empty(path: NodePath, recursive: bool) -> Self {
        let (children, counts, parts) = (ByName::default(), ByName::default(), Parts::default());
        Self { path, recursive, revision: Revision(0), node: None, children, counts, bytes: 0, parts }
    }

    /// A state that was read as a whole, though not at one moment. Takes long if it is large.
    pub(super) fn loaded(scope: Scope, node: Arc<ViewNode>, mut reads: Vec<(Arc<str>, Arc<ViewNode>)>) -> Self {
        let mut state = Self::empty(scope.path, scope.recursive);
        // Parents come before their children.
        reads.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        reads.dedup_by(|(one, _), (other, _)| one == other);
        state.raise(node.zxid());
        state.weigh("", None, Some(&node));
        state.node = Some(node);
        let mut counts: HashMap<Arc<str>, usize> = HashMap::new();
        let mut children: Vec<(Arc<str>, Arc<ViewNode>)> = Vec::with_capacity(reads.len());
        for (name, entry) in reads {
            let parent = parent_of(&name);
            let known = parent.and_then(|parent| {
                let index = children.binary_search_by(|(other, _)| (**other).cmp(parent)).ok()?;
                children.get(index)
            });
            // Nodes below a node that can't be listed are not shown.
            if known.is_some_and(|(_, parent)| !parent.is_readable) {
                continue;
            }
            if state.recursive {
                match (counts.get_mut(parent.unwrap_or_default()), known) {
                    (Some(count), _) => *count += 1,
                    (None, Some((parent, _))) => drop(counts.insert(parent.clone(), 1)),
                    (None, None) => drop(counts.insert(parent.unwrap_or_default().into(), 1)),
                }
            }
            state.raise(entry.zxid());
            state.weigh(&name, None, Some(&entry));
            children.push((name, entry));
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        (state.children, state.counts) = (ByName::from_sorted(children), ByName::from_sorted(counts));
        state
    }

    /// A state as it was kept on disk.
    pub(super) fn restored(
        scope: Scope,
        revision: Revision,
        node: Option<Arc<ViewNode>>,
        reads: Vec<(Arc<str>, Arc<ViewNode>)>,
    ) -> Self {
        let mut state = match node {
            Some(node) => Self::loaded(scope, node, reads),
            None => Self::empty(scope.path, scope.recursive),
        };
        state.revision = revision;
        state
    }

    /// The scope of the state.
    pub(super) fn scope(&self) -> Scope {
        Scope { path: self.path.clone(), recursive: self.recursive }
    }

    /// The bytes that were made of this state.
    pub(super) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Number of bytes to convert for a part; counting stops once it exceeds `most`.
    pub(super) fn work(&self, key: &PartKey, most: usize) -> usize {
        let (own, after) = match &key.begin {
            Begin::First => (self.node.as_ref().map_or(0, |node| node.data.len()), ""),
            Begin::After(name) => (0, &**name),
            Begin::At(_) => (0, ""),
        };
        let count = if key.size == 0 { usize::MAX } else { key.size };
        let mut sum = own;
        for (name, entry) in self.children.after(after).take(count) {
            if sum > most {
                break;
            }
            sum += NODE_OVERHEAD + name.len() + entry.data.len();
        }
        sum
    }

    /// A later state exists: the parts made of this one live only for as long as a reader has them.
    pub(super) fn retire(&self) {
        self.parts.close();
    }

    /// Memory that the state occupies, roughly.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the path exists.
    pub(crate) fn exists(&self) -> bool {
        self.node.is_some()
    }

    /// Whether the path's own node was already known as it was read now.
    pub(super) fn is_as_read(&self, node: &NodeRead) -> bool {
        match (node, &self.node) {
            (NodeRead::Present(read), Some(known)) => read == known,
            (NodeRead::Absent(ancestor), None) => Revision(*ancestor) <= self.revision,
            _ => false,
        }
    }

    /// Moves on to a later moment; everything that differs was read.
    ///
    /// The revision never falls: a node that is deleted changes its parent's pzxid to one larger than any that the node
    /// had.
    pub(super) fn apply(&mut self, node: NodeRead, reads: Reads, moment: Zxid) -> Difference {
        let before = self.revision;
        let difference = self.take_in(node, reads);
        self.date_edits(&difference, before, moment);
        difference
    }

    /// Adds what was read to a state that is not complete yet. Watchers do not see these steps, so the steps need no
    /// revisions: what is added may be older than what is there.
    pub(super) fn take_in(&mut self, node: NodeRead, reads: Reads) -> Difference {
        self.parts = Parts::default();
        let mut difference = Difference { edits: Edits::default(), is_pure: true };
        match node {
            NodeRead::Present(entry) => {
                self.apply_node(&entry, &mut difference);
                let mut reads: Vec<_> = reads.into_iter().collect();
                // Parents come before their children.
                reads.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
                for (name, read) in reads {
                    self.apply_child(name, read, &mut difference);
                }
            }
            NodeRead::Absent(ancestor) => {
                self.raise(ancestor);
                self.remove_all(&mut difference);
                difference.is_pure = false;
            }
        }
        difference.edits.sort();
        difference
    }

    /// The later state, which was read as a whole, and its difference from this one. Takes long if either is large.
    pub(super) fn moved_to(&self, mut next: Self, moment: Zxid) -> (Self, Difference) {
        let difference = Difference { edits: self.edits_to(&next), is_pure: false };
        next.revision = next.revision.max(self.revision);
        next.date_edits(&difference, self.revision, moment);
        (next, difference)
    }

    fn edits_to(&self, next: &Self) -> Edits {
        let mut edits = Edits::default();
        edits.extend(Edit::of("".into(), self.node.as_ref(), next.node.as_ref()));
        let (mut old, mut new) = (self.children.iter().peekable(), next.children.iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return edits,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((before, _)), Some((after, _))) => before.cmp(after),
            };
            let before = old.next_if(|_| order.is_le());
            let after = new.next_if(|_| order.is_ge());
            if let Some((name, _)) = before.or(after) {
                let entry = |found: Option<(_, _)>| found.map(|(_, entry)| entry);
                edits.extend(Edit::of(name.clone(), entry(before), entry(after)));
            }
        }
    }

    /// Edits need a revision of their own. Only a change of an access control list makes edits without a trace in what
    /// is read; the moment of the read dates those.
    fn date_edits(&mut self, difference: &Difference, before: Revision, moment: Zxid) {
        if !difference.edits.is_empty() && self.revision == before {
            self.revision = Revision(moment.0.max(before.0 + 1));
        }
    }

    fn apply_node(&mut self, entry: &Arc<ViewNode>, difference: &mut Difference) {
        self.raise(entry.zxid());
        let before = self.node.replace(entry.clone());
        self.weigh("", before.as_ref(), Some(entry));
        difference.edits.extend(Edit::of("".into(), before.as_ref(), Some(entry)));
        difference.is_pure &= before.is_some_and(|before| is_same_record(&before.stat, &entry.stat, true));
    }

    fn apply_child(&mut self, name: Arc<str>, read: Option<Arc<ViewNode>>, difference: &mut Difference) {
        // Nodes below a node that can't be listed are not shown: a load would not find them either.
        let read = read.filter(|_| {
            let parent = parent_of(&name).and_then(|parent| self.children.get(parent));
            parent.is_none_or(|parent| parent.is_readable)
        });
        let Some(entry) = read else {
            difference.is_pure &= self.children.contains(&name);
            self.remove_below(&name, difference);
            self.remove(&name, difference);
            return;
        };
        self.raise(entry.zxid());
        let before = self.children.insert(name.clone(), entry.clone());
        self.weigh(&name, before.as_ref(), Some(&entry));
        if before.is_none() {
            self.count(&name, 1);
        }
        let same = before.as_ref().is_some_and(|before| is_same_record(&before.stat, &entry.stat, self.recursive));
        difference.is_pure &= same;
        difference.edits.extend(Edit::of(name, before.as_ref(), Some(&entry)));
    }

    fn remove(&mut self, name: &Arc<str>, difference: &mut Difference) {
        if let Some(before) = self.children.remove(name) {
            self.count(name, -1);
            self.weigh(name, Some(&before), None);
            difference.edits.extend(Edit::of(name.clone(), Some(&before), None));
        }
    }

    fn remove_below(&mut self, name: &str, difference: &mut Difference) {
        if !self.recursive {
            return;
        }
        let prefix = format!("{name}/");
        let below: Vec<_> = self
            .children
            .after(&prefix)
            .map(|(name, _)| name.clone())
            .take_while(|name| name.starts_with(&prefix))
            .collect();
        for name in below {
            self.remove(&name, difference);
        }
    }

    fn remove_all(&mut self, difference: &mut Difference) {
        difference.edits.extend(Edit::of("".into(), self.node.take().as_ref(), None));
        let children = std::mem::take(&mut self.children);
        difference.edits.extend(children.iter().filter_map(|(name, entry)| Edit::of(name.clone(), Some(entry), None)));
        (self.counts, self.bytes) = (ByName::default(), 0);
    }

    fn raise(&mut self, zxid: i64) {
        self.revision = self.revision.max(Revision(zxid));
    }

    fn weigh(&mut self, name: &str, before: Option<&Arc<ViewNode>>, after: Option<&Arc<ViewNode>>) {
        let weight = |entry: Option<&Arc<ViewNode>>| entry.map_or(0, |entry| weight(name, entry));
        self.bytes = self.bytes + weight(after) - weight(before);
    }

    fn count(&mut self, name: &str, change: isize) {
        if !self.recursive {
            return;
        }
        let parent = parent_of(name).unwrap_or_default();
        let count = self.counts.get(parent).copied().unwrap_or_default().saturating_add_signed(change);
        if count == 0 {
            self.counts.remove(parent);
        } else {
            self.counts.insert(parent.into(), count);
        }
    }

    /// Whether, after these reads, the path, the nodes that were read and their parents will have as many children as
    /// ZooKeeper says. If not, the view has missed something.
    pub(super) fn would_agree(&self, node: &NodeRead, reads: &Reads) -> bool {
        let NodeRead::Present(node) = node else { return true };
        let mut gained: HashMap<&str, isize> = HashMap::new();
        for (name, read) in reads {
            let parent = parent_of(name).unwrap_or_default();
            let gain = isize::from(read.is_some()) - isize::from(self.children.contains(name));
            *gained.entry(parent).or_default() += gain;
        }
        let count = |parent: &str| {
            let known = match (self.recursive, parent) {
                (false, "") => self.children.len(),
                _ => self.counts.get(parent).copied().unwrap_or_default(),
            };
            known.saturating_add_signed(gained.get(parent).copied().unwrap_or_default())
        };
        let told = usize::try_from(node.stat.num_children).unwrap_or_default();
        // The root has one hidden child, if that was ever created.
        let agrees = count("") == told || self.path.is_root() && count("") + 1 == told;
        if !agrees || !self.recursive {
            return agrees;
        }
        let inner_agrees = |name: &str| {
            let entry = reads.get(name).map_or_else(|| self.children.get(name), Option::as_ref);
            let entry = entry.filter(|entry| entry.is_readable);
            entry.is_none_or(|entry| usize::try_from(entry.stat.num_children) == Ok(count(name)))
        };
        reads.keys().all(|name| inner_agrees(name) && parent_of(name).is_none_or(inner_agrees))
    }

    /// Whether all nodes of the state have as many children as ZooKeeper says. Takes long if the state is large.
    pub(super) fn agrees(&self) -> bool {
        let Some(node) = &self.node else { return self.children.is_empty() };
        let has_count = |(name, entry): (&Arc<str>, &Arc<ViewNode>)| {
            let count = self.counts.get(name).copied().unwrap_or_default();
            !entry.is_readable || usize::try_from(entry.stat.num_children) == Ok(count)
        };
        let below = !self.recursive || self.children.iter().all(has_count);
        below && self.would_agree(&NodeRead::Present(node.clone()), &Reads::new())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let count = self.children.len();
        if count > NODES_PER_STEP {
            discard(count, (std::mem::take(&mut self.children), std::mem::take(&mut self.counts)));
        }
    }
}

/// Whether nothing happened to the node between the two records; with `children`, nor to the list of its children.
fn is_same_record(before: &Stat, after: &Stat, children: bool) -> bool {
    before.czxid == after.czxid && before.mzxid == after.mzxid && (!children || before.pzxid == after.pzxid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(czxid: i64, mzxid: i64, pzxid: i64, num_children: i32) -> Stat {
        Stat { czxid, mzxid, pzxid, num_children, ..Stat::default() }
    }

    fn node(data: &str, stat: Stat) -> Option<Arc<ViewNode>> {
        Some(Arc::new(ViewNode::new(data.as_bytes(), stat)))
    }

    fn present(data: &str, stat: Stat) -> NodeRead {
        NodeRead::Present(Arc::new(ViewNode::new(data.as_bytes(), stat)))
    }

    fn reads(reads: impl IntoIterator<Item = (&'static str, Option<Arc<ViewNode>>)>) -> Reads {
        reads.into_iter().map(|(name, read)| (name.into(), read)).collect()
    }

    fn names(difference: &Difference) -> Vec<&str> {
        difference.edits.iter().map(|edit| &*edit.name).collect()
    }

    fn state(recursive: bool) -> State {
        let mut state = State::empty(NodePath::trusted("/p"), recursive);
        let children = reads([("a", node("1", stat(2, 2, 2, 0))), ("b", node("1", stat(3, 3, 3, 0)))]);
        state.apply(present("", stat(1, 1, 3, 2)), children, Zxid(3));
        state
    }

    #[test]
    fn revision_is_the_largest_mzxid_or_pzxid() {
        let mut state = state(false);
        assert_eq!(state.revision, Revision(3));
        state.apply(present("", stat(1, 1, 3, 2)), reads([("a", node("2", stat(2, 9, 2, 0)))]), Zxid(12));
        assert_eq!(state.revision, Revision(9));
        // A grandchild was created.
        let difference =
            state.apply(present("", stat(1, 1, 3, 2)), reads([("b", node("1", stat(3, 3, 11, 1)))]), Zxid(12));
        assert_eq!((state.revision, difference.is_pure), (Revision(11), true));
        assert!(difference.edits.is_empty());
    }

    #[test]
    fn a_takeover_with_the_same_data_moves_the_revision_without_an_edit() {
        let mut state = state(false);
        let difference =
            state.apply(present("", stat(1, 1, 7, 2)), reads([("a", node("1", stat(7, 7, 7, 0)))]), Zxid(7));
        assert!(difference.edits.is_empty() && !difference.is_pure);
        assert_eq!((state.revision, state.children.get("a").unwrap().stat.czxid), (Revision(7), 7));
    }

    #[test]
    fn a_state_weighs_what_is_in_it() {
        let mut state = state(false);
        let before = state.bytes();
        let large = node(&"x".repeat(1000), stat(4, 4, 4, 0));
        state.apply(present("", stat(1, 1, 4, 3)), reads([("c", large.clone())]), Zxid(4));
        assert!(state.bytes() > before + 1000);
        state.apply(present("", stat(1, 1, 4, 3)), reads([("c", node("1", stat(4, 5, 4, 0)))]), Zxid(5));
        assert!(state.bytes() < before + 1000);
        state.apply(present("", stat(1, 1, 6, 2)), reads([("c", None)]), Zxid(6));
        assert_eq!(state.bytes(), before);
        state.apply(NodeRead::Absent(8), Reads::new(), Zxid(8));
        assert_eq!(state.bytes(), 0);
    }

    #[test]
    fn an_absent_path_takes_its_children_along_and_is_dated_by_its_ancestor() {
        let mut state = state(false);
        let difference = state.apply(NodeRead::Absent(8), Reads::new(), Zxid(8));
        assert_eq!(names(&difference), ["", "a", "b"]);
        assert_eq!((state.exists(), state.revision), (false, Revision(8)));
        assert!(state.agrees());
    }

    #[test]
    fn a_child_that_zookeeper_counts_and_the_view_lacks_is_noticed() {
        let state = state(false);
        assert!(state.agrees());
        assert!(!state.would_agree(&present("", stat(1, 1, 5, 3)), &Reads::new()));
        assert!(state.would_agree(&present("", stat(1, 1, 5, 3)), &reads([("c", node("", stat(5, 5, 5, 0)))])));
        assert!(state.would_agree(&present("", stat(1, 1, 5, 1)), &reads([("a", None), ("c", None)])));

        let tree = self::state(true);
        assert!(tree.agrees());
        let parent = ("a", node("1", stat(2, 2, 5, 1)));
        assert!(!tree.would_agree(&present("", stat(1, 1, 3, 2)), &reads([parent.clone()])));
        let child = ("a/x", node("", stat(5, 5, 5, 0)));
        assert!(tree.would_agree(&present("", stat(1, 1, 3, 2)), &reads([parent, child.clone()])));
        // Its parent's record is as it was.
        assert!(!tree.would_agree(&present("", stat(1, 1, 3, 2)), &reads([child])));
    }

    #[test]
    fn a_subtree_goes_as_a_whole_and_no_neighbour_with_it() {
        let mut tree = state(true);
        let more = reads([
            ("a", node("1", stat(2, 2, 5, 1))),
            ("a/x", node("", stat(5, 5, 6, 1))),
            ("a/x/y", node("", stat(6, 6, 6, 0))),
            ("a-b", node("", stat(7, 7, 7, 0))),
        ]);
        tree.apply(present("", stat(1, 1, 7, 3)), more, Zxid(7));
        assert!(tree.agrees());
        let difference = tree.apply(present("", stat(1, 1, 9, 2)), reads([("a", None)]), Zxid(9));
        assert_eq!(names(&difference), ["a", "a/x", "a/x/y"]);
        assert_eq!(tree.children.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["a-b", "b"]);
        assert!(tree.agrees());
    }

    #[test]
    fn a_changed_access_control_list_makes_an_edit_with_a_revision_of_its_own() {
        let mut state = state(false);
        let hidden = Some(Arc::new(ViewNode::default()));
        let difference = state.apply(present("", stat(1, 1, 3, 2)), reads([("a", hidden)]), Zxid(20));
        assert_eq!(names(&difference), ["a"]);
        assert_eq!(state.revision, Revision(20));
    }

    #[test]
    fn what_is_added_to_a_load_leaves_the_revision_as_it_is() {
        // The path changed during the load: «b» was read, and then «c», which is older but was created after the list
        // was read.
        let mut state = State::empty(NodePath::trusted("/p"), false);
        state.take_in(present("", stat(1, 1, 3, 2)), reads([("b", node("2", stat(3, 9, 3, 0)))]));
        state.take_in(present("", stat(1, 1, 7, 3)), reads([("c", node("", stat(7, 7, 7, 0)))]));
        assert_eq!(state.revision, Revision(9), "10 would promise what the tenth transaction did");
    }

    #[test]
    fn what_is_loaded_at_once_is_what_is_taken_in_step_by_step() {
        let hidden = Some(Arc::new(ViewNode::default()));
        let all = reads([
            ("a", node("1", stat(2, 2, 5, 1))),
            ("a/x", node("", stat(5, 5, 6, 1))),
            ("a/x/y", node("", stat(6, 6, 6, 0))),
            ("a-b", node("", stat(7, 7, 7, 0))),
            ("h", hidden),
            ("h/below", node("", stat(8, 8, 8, 0))),
        ]);
        for recursive in [false, true] {
            let own = present("own", stat(1, 1, 7, 3));
            let NodeRead::Present(entry) = own.clone() else { panic!("it is there") };
            let mut steps = State::empty(NodePath::trusted("/p"), recursive);
            steps.take_in(own, all.clone());
            let list = all.iter().map(|(name, read)| (name.clone(), read.clone().unwrap())).collect();
            let loaded = State::loaded(steps.scope(), entry, list);
            assert_eq!(loaded, steps);
            assert_eq!(loaded.agrees(), recursive);
        }
    }

    #[test]
    fn what_was_read_as_a_whole_is_compared() {
        let state = state(false);
        let mut next = State::empty(NodePath::trusted("/p"), false);
        let children = reads([("b", node("2", stat(3, 6, 3, 0))), ("c", node("", stat(8, 8, 8, 0)))]);
        next.apply(present("", stat(1, 1, 8, 2)), children, Zxid(8));
        let (state, difference) = state.moved_to(next, Zxid(8));
        assert_eq!(names(&difference), ["a", "b", "c"]);
        assert_eq!(state.revision, Revision(8));
    }
}
