//! What a view knows: one consistent moment of a path and what is below it. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::by_name::ByName;
use super::ready::{Form, Made, Ready};
use super::ring::Edit;
use super::scope::{Scope, parent_of};
use crate::types::{NodePath, Revision, Stat, Zxid};

/// A node: what it holds, and ZooKeeper's record of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    /// Its data.
    pub(crate) data: Bytes,
    /// Its stat.
    pub(crate) stat: Stat,
    /// False when ZooKeeper's access control list hides the node: its data is then empty, and its stat is all zeros.
    pub(crate) is_readable: bool,
}

impl Entry {
    /// A node as it was read. The data is copied, since it is a slice of a reply that it would keep in memory.
    pub(super) fn new(data: &[u8], stat: Stat) -> Self {
        Self { data: Bytes::copy_from_slice(data), stat, is_readable: true }
    }

    fn zxid(&self) -> i64 {
        self.stat.mzxid.max(self.stat.pzxid)
    }
}

/// A path and what is below it, as of one revision. Readers share it and never see it change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// The path.
    pub(crate) path: NodePath,
    /// Whether `children` is the whole subtree.
    pub(crate) recursive: bool,
    /// What dates it.
    pub(crate) revision: Revision,
    /// The path's own node; `None` when it does not exist.
    pub(crate) node: Option<Arc<Entry>>,
    /// By name, or by relative path (`a/b`) if recursive; in the order of bytes.
    pub(crate) children: ByName<Arc<Entry>>,
    /// How many direct children each inner node has, to compare with its stat. Kept for recursive states alone.
    counts: ByName<usize>,
    /// What it occupies in memory, roughly.
    bytes: usize,
    ready: Ready,
}

/// What was read of the path's own node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NodeRead {
    /// It exists.
    Present(Arc<Entry>),
    /// It does not. With it the pzxid of its nearest existing ancestor, which dates its absence.
    Absent(i64),
}

/// What was read of nodes below; `None` for those that do not exist.
pub(super) type Reads = HashMap<Arc<str>, Option<Arc<Entry>>>;

/// How a moment differs from the one before.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Names and data that changed: the path itself first (its name is empty), then by name.
    pub(super) edits: Vec<Edit>,
    /// That nothing but records of nodes further down moved: between the two revisions there was no other content.
    pub(super) is_pure: bool,
}

impl State {
    /// A path of which nothing is known yet.
    pub(super) fn empty(path: NodePath, recursive: bool) -> Self {
        let (children, counts, ready) = (ByName::default(), ByName::default(), Ready::default());
        Self { path, recursive, revision: Revision(0), node: None, children, counts, bytes: 0, ready }
    }

    /// A state as it was kept.
    pub(super) fn restored(scope: Scope, revision: Revision, node: Option<Arc<Entry>>, reads: Reads) -> Self {
        let mut state = Self::empty(scope.path, scope.recursive);
        if let Some(node) = node {
            state.take_in(NodeRead::Present(node), reads);
        }
        Self { revision, ..state }
    }

    /// What it is a state of.
    pub(super) fn scope(&self) -> Scope {
        Scope { path: self.path.clone(), recursive: self.recursive }
    }

    /// Bytes made of this state: the part of that form that begins after a name. Made once for all, for as long as it is
    /// the present state of its view.
    pub(crate) fn part(&self, form: Form, after: Option<&Arc<str>>, make: impl FnOnce() -> Made) -> Made {
        self.ready.part(form, after, make)
    }

    /// There is a later state: what was made of this one is kept for those alone who have it.
    pub(super) fn retire(&self) {
        self.ready.close();
    }

    /// What it occupies in memory, roughly.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the path exists.
    pub(crate) fn exists(&self) -> bool {
        self.node.is_some()
    }

    /// Whether this was read of the path's own node before, and nothing else.
    pub(super) fn is_as_read(&self, node: &NodeRead) -> bool {
        match (node, &self.node) {
            (NodeRead::Present(read), Some(known)) => read == known,
            (NodeRead::Absent(ancestor), None) => Revision(*ancestor) <= self.revision,
            _ => false,
        }
    }

    /// Moves on to a later moment, of which everything that differs was read.
    ///
    /// The revision never falls: what goes away leaves its mark in a parent's pzxid, which is larger than all it had.
    pub(super) fn apply(&mut self, node: NodeRead, reads: Reads, moment: Zxid) -> Difference {
        let before = self.revision;
        let difference = self.take_in(node, reads);
        self.date_edits(&difference, before, moment);
        difference
    }

    /// Adds what was read to a state that is not whole yet. Nobody is told the steps, so they need no revisions: what is
    /// added may be older than what is there.
    pub(super) fn take_in(&mut self, node: NodeRead, reads: Reads) -> Difference {
        self.ready = Ready::default();
        let mut difference = Difference { edits: Vec::new(), is_pure: true };
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
        difference.edits.sort_by(|one, other| one.name.cmp(&other.name));
        difference
    }

    /// Moves on to a state that was read as a whole.
    pub(super) fn replace(&mut self, next: Self, moment: Zxid) -> Difference {
        let before = self.revision;
        let mut edits = Vec::new();
        edits.extend(Edit::of("".into(), self.node.as_ref(), next.node.as_ref()));
        for (name, entry) in self.children.iter() {
            edits.extend(Edit::of(name.clone(), Some(entry), next.children.get(name)));
        }
        let added = next.children.iter().filter(|(name, _)| !self.children.contains(name));
        edits.extend(added.filter_map(|(name, entry)| Edit::of(name.clone(), None, Some(entry))));
        edits.sort_by(|one, other| one.name.cmp(&other.name));
        *self = next;
        self.revision = self.revision.max(before);
        let difference = Difference { edits, is_pure: false };
        self.date_edits(&difference, before, moment);
        difference
    }

    /// Edits need a revision of their own. Only a changed access control list makes some without a trace in what is
    /// read; the moment of the read dates them.
    fn date_edits(&mut self, difference: &Difference, before: Revision, moment: Zxid) {
        if !difference.edits.is_empty() && self.revision == before {
            self.revision = Revision(moment.0.max(before.0 + 1));
        }
    }

    fn apply_node(&mut self, entry: &Arc<Entry>, difference: &mut Difference) {
        self.raise(entry.zxid());
        let before = self.node.replace(entry.clone());
        self.weigh("", before.as_ref(), Some(entry));
        difference.edits.extend(Edit::of("".into(), before.as_ref(), Some(entry)));
        difference.is_pure &= before.is_some_and(|before| is_same_record(&before.stat, &entry.stat, true));
    }

    fn apply_child(&mut self, name: Arc<str>, read: Option<Arc<Entry>>, difference: &mut Difference) {
        // What lies below a node that can't be listed is not shown: a load would not find it either.
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

    fn weigh(&mut self, name: &str, before: Option<&Arc<Entry>>, after: Option<&Arc<Entry>>) {
        const RECORD: usize = 256;
        let weight = |entry: Option<&Arc<Entry>>| entry.map_or(0, |entry| RECORD + name.len() + entry.data.len());
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

    /// Whether, with these reads, the path, what was read and the parents of that will have as many children as
    /// ZooKeeper says. If not, something was missed.
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
        // The root has one child that is hidden, unless it was never made.
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

    /// Whether the whole state has as many children everywhere as ZooKeeper says.
    pub(super) fn agrees(&self) -> bool {
        let Some(node) = &self.node else { return self.children.is_empty() };
        let mut reads = Reads::new();
        if self.recursive {
            reads.extend(self.children.iter().map(|(name, entry)| (name.clone(), Some(entry.clone()))));
        }
        self.would_agree(&NodeRead::Present(node.clone()), &reads)
    }
}

/// Whether nothing happened between the two to the node or, if `children` counts, to the list of its children.
fn is_same_record(before: &Stat, after: &Stat, children: bool) -> bool {
    before.czxid == after.czxid && before.mzxid == after.mzxid && (!children || before.pzxid == after.pzxid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(czxid: i64, mzxid: i64, pzxid: i64, num_children: i32) -> Stat {
        Stat { czxid, mzxid, pzxid, num_children, ..Stat::default() }
    }

    fn node(data: &str, stat: Stat) -> Option<Arc<Entry>> {
        Some(Arc::new(Entry::new(data.as_bytes(), stat)))
    }

    fn present(data: &str, stat: Stat) -> NodeRead {
        NodeRead::Present(Arc::new(Entry::new(data.as_bytes(), stat)))
    }

    fn reads(reads: impl IntoIterator<Item = (&'static str, Option<Arc<Entry>>)>) -> Reads {
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
        // A grandchild came.
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
        let hidden = Some(Arc::new(Entry::default()));
        let difference = state.apply(present("", stat(1, 1, 3, 2)), reads([("a", hidden)]), Zxid(20));
        assert_eq!(names(&difference), ["a"]);
        assert_eq!(state.revision, Revision(20));
    }

    #[test]
    fn what_is_added_to_a_load_leaves_the_revision_as_it_is() {
        // It was loaded while it changed: «b» was seen, and «c», which is older, came to be after the list was read.
        let mut state = State::empty(NodePath::trusted("/p"), false);
        state.take_in(present("", stat(1, 1, 3, 2)), reads([("b", node("2", stat(3, 9, 3, 0)))]));
        state.take_in(present("", stat(1, 1, 7, 3)), reads([("c", node("", stat(7, 7, 7, 0)))]));
        assert_eq!(state.revision, Revision(9), "10 would promise what the tenth transaction did");
    }

    #[test]
    fn what_was_read_as_a_whole_is_compared() {
        let mut state = state(false);
        let mut next = State::empty(NodePath::trusted("/p"), false);
        let children = reads([("b", node("2", stat(3, 6, 3, 0))), ("c", node("", stat(8, 8, 8, 0)))]);
        next.apply(present("", stat(1, 1, 8, 2)), children, Zxid(8));
        let difference = state.replace(next, Zxid(8));
        assert_eq!(names(&difference), ["a", "b", "c"]);
        assert_eq!(state.revision, Revision(8));
    }
}
