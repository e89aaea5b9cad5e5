//! The recent past of a view: its changes by revision. Pure.
//!
//! All watchers share one ring; each of them has a cursor, which is a revision. A watcher that is behind gets the net
//! changes since its cursor or, if the ring does not remember that far back, a snapshot. So a slow reader costs nothing
//! while it is slow, and nobody waits for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::apart::{NODES_PER_STEP, discard};
use super::node::{ViewNode, weight};
use super::parts::Parts;
use crate::types::Revision;

/// A change of the data or the existence of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Edit {
    /// The node's name; empty for the watched path itself.
    pub(super) name: Arc<str>,
    before: Option<Arc<ViewNode>>,
    after: Option<Arc<ViewNode>>,
}

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ChangeKind {
    /// A child has appeared.
    Added,
    /// A child's data has changed.
    Updated,
    /// A child has disappeared.
    Removed,
    /// The watched path was created.
    Created,
    /// The watched path's own data has changed.
    DataChanged,
    /// The watched path was deleted, and every child with it.
    Deleted,
}

/// One change, as a watcher gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) kind: ChangeKind,
    /// The name of the child, or its relative path; empty for the watched path itself.
    pub(crate) name: Arc<str>,
    /// The node after the change; `None` if it is gone.
    pub(crate) entry: Option<Arc<ViewNode>>,
}

/// The changes that lead to one revision, shared by all watchers that are equally far behind.
#[derive(Debug)]
pub(crate) struct Delta {
    /// The revision that dates the state after the changes.
    pub(crate) revision: Revision,
    /// In the order in which they are applied: the watched path first, then by name. Never empty.
    pub(crate) changes: Vec<Change>,
    parts: Parts,
}

/// Edits, in the order of names once they are complete. Long lists are freed on a blocking thread.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Edits {
    list: Vec<Edit>,
    cost: usize,
}

/// Maximum number of edits that are merged for a watcher that is behind. With more, a step on a thread of the runtime
/// takes longer than 10 ms.
const MERGED: usize = 4 * NODES_PER_STEP;
/// Maximum number of edits between two moments. After more, the ring restarts, and watchers get the whole state.
const MAX_EDITS: usize = 250_000;

impl Edit {
    /// The edit that leads from one to the other, if names or data differ.
    pub(super) fn of(name: Arc<str>, before: Option<&Arc<ViewNode>>, after: Option<&Arc<ViewNode>>) -> Option<Self> {
        let differs = before.map(|entry| &entry.data) != after.map(|entry| &entry.data);
        differs.then(|| Self { name, before: before.cloned(), after: after.cloned() })
    }

    fn kind(&self) -> ChangeKind {
        match (self.name.is_empty(), self.before.is_some(), self.after.is_some()) {
            (true, _, false) => ChangeKind::Deleted,
            (true, false, true) => ChangeKind::Created,
            (true, true, true) => ChangeKind::DataChanged,
            (false, _, false) => ChangeKind::Removed,
            (false, false, true) => ChangeKind::Added,
            (false, true, true) => ChangeKind::Updated,
        }
    }

    /// Memory that the edit occupies, roughly. Data is counted wherever it may be the only copy.
    fn cost(&self) -> usize {
        const EDIT_OVERHEAD: usize = 256;
        let size = |entry: &Option<Arc<ViewNode>>| entry.as_ref().map_or(0, |entry| entry.data.len());
        EDIT_OVERHEAD + 2 * self.name.len() + size(&self.before) + 2 * size(&self.after)
    }
}

impl Delta {
    /// The changes that watchers get for these edits, which are in the order of names. The deletion of the path implies
    /// those of its children.
    fn new<'a>(revision: Revision, edits: impl IntoIterator<Item = &'a Edit>) -> Self {
        let mut changes: Vec<Change> = Vec::new();
        for edit in edits {
            let kind = edit.kind();
            if kind == ChangeKind::Removed && changes.first().is_some_and(|first| first.kind == ChangeKind::Deleted) {
                continue;
            }
            changes.push(Change { kind, name: edit.name.clone(), entry: edit.after.clone() });
        }
        Self { revision, changes, parts: Parts::default() }
    }

    /// The bytes of the messages that carry the delta.
    pub(super) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Number of bytes to convert for a part that begins with this change; counting stops once it exceeds `most`.
    pub(super) fn work(&self, first: usize, most: usize) -> usize {
        let mut sum = 0;
        for change in self.changes.iter().skip(first) {
            if sum > most {
                break;
            }
            sum += weight(&change.name, change.entry.as_deref().unwrap_or(&ViewNode::default()));
        }
        sum
    }
}

impl Drop for Delta {
    fn drop(&mut self) {
        discard_list(&mut self.changes);
    }
}

impl Edits {
    /// The delta of these edits, if they are so many that it takes long to make.
    pub(super) fn prepared(&self, revision: Revision) -> Option<Arc<Delta>> {
        (NODES_PER_STEP..MAX_EDITS).contains(&self.list.len()).then(|| Arc::new(Delta::new(revision, &self.list)))
    }

    /// Memory that the edits occupy, roughly.
    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    pub(super) fn sort(&mut self) {
        self.list.sort_by(|one, other| one.name.cmp(&other.name));
    }
}

impl std::ops::Deref for Edits {
    type Target = [Edit];

    fn deref(&self) -> &[Edit] {
        &self.list
    }
}

impl Extend<Edit> for Edits {
    fn extend<T: IntoIterator<Item = Edit>>(&mut self, edits: T) {
        for edit in edits {
            self.cost += edit.cost();
            self.list.push(edit);
        }
    }
}

impl FromIterator<Edit> for Edits {
    fn from_iter<T: IntoIterator<Item = Edit>>(edits: T) -> Self {
        let mut list = Self::default();
        list.extend(edits);
        list
    }
}

impl Drop for Edits {
    fn drop(&mut self) {
        discard_list(&mut self.list);
    }
}

fn discard_list<T: Send + 'static>(list: &mut Vec<T>) {
    if list.len() > NODES_PER_STEP {
        discard(list.len(), std::mem::take(list));
    }
}

/// One content of the view, and the revisions for which it lasted.
#[derive(Debug)]
struct Moment {
    /// The first revision with this content.
    from: Revision,
    /// The last revision that is known to have this content, with no other content between.
    until: Revision,
    /// The edits that led here from the moment before.
    edits: Edits,
    cost: usize,
}

/// The ring's knowledge of the time since a revision.
#[derive(Debug)]
pub(super) enum Since {
    /// The content is the same; any changes between have undone each other.
    Nothing,
    /// These are the net changes.
    Changes(Arc<Delta>),
    /// The ring does not reach back that far, or never knew the revision.
    Forgotten,
}

/// The ring. When full, it forgets its oldest moments; it always keeps the newest one, for watchers that are up to
/// date.
#[derive(Debug)]
pub(super) struct Ring {
    moments: VecDeque<Moment>,
    /// The deltas to the newest moment that were asked for, by the revision of the moment that they start from.
    deltas: VecDeque<(Revision, Arc<Delta>)>,
    cost: usize,
    limits: Limits,
}

/// The maximum size of a ring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) moments: usize,
    pub(super) bytes: usize,
}

impl Ring {
    /// An empty ring.
    pub(super) fn new(limits: Limits) -> Self {
        Self { moments: VecDeque::new(), deltas: VecDeque::new(), cost: 0, limits }
    }

    /// Number of bytes beyond its limit that the ring will occupy with this many bytes of edits more: it keeps two
    /// moments however large they are.
    pub(super) fn excess(&self, more: usize) -> usize {
        (self.cost + more).saturating_sub(self.limits.bytes)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.moments.clear();
        self.deltas.clear();
        self.cost = 0;
    }

    /// Forgets everything and starts from this revision.
    pub(super) fn restart(&mut self, revision: Revision) {
        self.clear();
        self.push(revision, Edits::default(), None);
    }

    /// Moves on to a revision that these edits lead to. If there are none, the content may have differed in between.
    /// `prepared`: the delta from the newest moment, if it takes long to make.
    pub(super) fn push(&mut self, revision: Revision, edits: Edits, prepared: Option<Arc<Delta>>) {
        const MOMENT: usize = 128;
        if edits.len() > MAX_EDITS {
            self.restart(revision);
            return;
        }
        self.deltas.clear();
        let newest = self.moments.back().map(|moment| moment.from);
        self.deltas.extend(newest.zip(prepared));
        let cost = MOMENT + edits.cost;
        self.moments.push_back(Moment { from: revision, until: revision, edits, cost });
        self.cost += cost;
        while self.moments.len() > 2 && (self.moments.len() > self.limits.moments || self.cost > self.limits.bytes) {
            self.cost -= self.moments.pop_front().map_or(0, |oldest| oldest.cost);
            // Nobody asks for the edits that led to the moment that is now the oldest.
            if let Some(oldest) = self.moments.front_mut() {
                self.cost -= oldest.cost - MOMENT;
                (oldest.edits, oldest.cost) = (Edits::default(), MOMENT);
            }
        }
    }

    /// Moves on to a revision with the same content, and with no other content between.
    pub(super) fn extend(&mut self, revision: Revision) {
        match self.moments.back_mut() {
            Some(last) => {
                last.until = revision;
                self.deltas.clear();
            }
            None => self.push(revision, Edits::default(), None),
        }
    }

    /// The changes since a revision.
    pub(super) fn since(&mut self, revision: Revision) -> Since {
        // The first moment that ends at or after the revision; moments are in the order of revisions.
        let index = self.moments.partition_point(|moment| moment.until < revision);
        let from = match self.moments.get(index) {
            Some(moment) if moment.from <= revision => moment.from,
            _ => return Since::Forgotten,
        };
        if index + 1 == self.moments.len() {
            return Since::Nothing;
        }
        let delta = match self.deltas.iter().find(|(known, _)| *known == from) {
            Some((_, delta)) => delta.clone(),
            None => match self.make_delta(index, from) {
                Some(delta) => delta,
                None => return Since::Forgotten,
            },
        };
        if delta.changes.is_empty() { Since::Nothing } else { Since::Changes(delta) }
    }

    /// Makes a delta once for all watchers that start from one moment: those that are not far behind start from few
    /// moments. Makes none if that takes long, since it would be made under the view's lock; the whole state is sent in
    /// parts that are made elsewhere.
    fn make_delta(&mut self, index: usize, from: Revision) -> Option<Arc<Delta>> {
        const MOST: usize = 16;
        let later = self.moments.range(index + 1..);
        if later.clone().map(|moment| moment.edits.len()).sum::<usize>() > MERGED {
            return None;
        }
        let delta = Arc::new(merge(self.revision(), later.flat_map(|moment| moment.edits.iter())));
        if self.deltas.len() >= MOST {
            self.deltas.pop_front();
        }
        self.deltas.push_back((from, delta.clone()));
        Some(delta)
    }

    fn revision(&self) -> Revision {
        self.moments.back().map_or(Revision(0), |moment| moment.until)
    }
}

/// A node before and after some edits.
type Net<'a> = (&'a Option<Arc<ViewNode>>, &'a Option<Arc<ViewNode>>);

/// The net change of consecutive edits.
fn merge<'a>(revision: Revision, edits: impl Iterator<Item = &'a Edit>) -> Delta {
    let mut net: BTreeMap<&Arc<str>, Net<'_>> = BTreeMap::new();
    for edit in edits {
        net.entry(&edit.name).and_modify(|(_, after)| *after = &edit.after).or_insert((&edit.before, &edit.after));
    }
    let edits: Vec<_> = net
        .into_iter()
        .filter_map(|(name, (before, after))| Edit::of(name.clone(), before.as_ref(), after.as_ref()))
        .collect();
    Delta::new(revision, &edits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Stat;

    const LIMITS: Limits = Limits { moments: 100, bytes: 100_000 };

    fn entry(data: &str) -> Option<Arc<ViewNode>> {
        Some(Arc::new(ViewNode::new(data.as_bytes(), Stat::default())))
    }

    fn edit(name: &str, before: Option<&str>, after: Option<&str>) -> Edit {
        let (before, after) = (before.and_then(entry), after.and_then(entry));
        Edit { name: name.into(), before, after }
    }

    fn push(ring: &mut Ring, revision: Revision, edits: Vec<Edit>) {
        let edits: Edits = edits.into_iter().collect();
        let prepared = edits.prepared(revision);
        ring.push(revision, edits, prepared);
    }

    fn told(ring: &mut Ring, since: i64) -> String {
        match ring.since(Revision(since)) {
            Since::Nothing => "nothing".into(),
            Since::Forgotten => "forgotten".into(),
            Since::Changes(delta) => {
                let changes = delta.changes.iter().map(|change| format!("{:?} {}", change.kind, change.name));
                format!("{}: {}", delta.revision.0, changes.collect::<Vec<_>>().join(", "))
            }
        }
    }

    fn ring() -> Ring {
        let mut ring = Ring::new(LIMITS);
        ring.restart(Revision(10));
        push(&mut ring, Revision(20), vec![edit("a", None, Some("1"))]);
        push(&mut ring, Revision(30), vec![edit("b", None, Some("1"))]);
        ring
    }

    #[test]
    fn changes_that_undo_each_other_are_not_told() {
        let mut ring = ring();
        push(&mut ring, Revision(40), vec![edit("a", Some("1"), None), edit("b", Some("1"), Some("2"))]);
        assert_eq!(told(&mut ring, 10), "40: Added b");
        assert_eq!(told(&mut ring, 20), "40: Removed a, Added b");
        assert_eq!(told(&mut ring, 30), "40: Removed a, Updated b");
        assert_eq!(told(&mut ring, 40), "nothing");
        push(&mut ring, Revision(50), vec![edit("b", Some("2"), None)]);
        assert_eq!(told(&mut ring, 10), "nothing");
    }

    #[test]
    fn a_revision_that_the_ring_never_had_is_answered_only_if_nothing_else_was_there() {
        let mut ring = ring();
        assert_eq!(told(&mut ring, 25), "forgotten");
        ring.extend(Revision(35));
        assert_eq!(told(&mut ring, 33), "nothing");
        push(&mut ring, Revision(40), Vec::new());
        assert_eq!(told(&mut ring, 33), "nothing");
        assert_eq!(told(&mut ring, 38), "forgotten");
        assert_eq!(told(&mut ring, 41), "forgotten");
    }

    #[test]
    fn a_path_that_goes_takes_its_children_along_and_comes_back_with_what_differs() {
        let mut ring = ring();
        let gone = vec![edit("", Some(""), None), edit("a", Some("1"), None), edit("b", Some("1"), None)];
        push(&mut ring, Revision(40), gone);
        assert_eq!(told(&mut ring, 30), "40: Deleted ");
        assert_eq!(told(&mut ring, 20), "40: Deleted ");
        let back = vec![edit("", None, Some("new")), edit("b", None, Some("1"))];
        push(&mut ring, Revision(50), back);
        assert_eq!(told(&mut ring, 40), "50: Created , Added b");
        assert_eq!(told(&mut ring, 30), "50: DataChanged , Removed a");
    }

    #[test]
    fn those_who_are_equally_far_share_a_delta() {
        let mut ring = ring();
        let delta = |ring: &mut Ring, since| match ring.since(Revision(since)) {
            Since::Changes(delta) => delta,
            other => panic!("{other:?}"),
        };
        for since in [10, 20] {
            assert!(Arc::ptr_eq(&delta(&mut ring, since), &delta(&mut ring, since)));
        }
        let before = delta(&mut ring, 20);
        ring.extend(Revision(35));
        assert_eq!((before.revision, delta(&mut ring, 20).revision), (Revision(30), Revision(35)));
        for moment in 4..50 {
            push(&mut ring, Revision(10 * moment), vec![edit("a", None, Some("1"))]);
        }
        for since in 1..49 {
            delta(&mut ring, 10 * since);
        }
        assert!(ring.deltas.len() <= 16);
    }

    #[test]
    fn a_full_ring_forgets_its_oldest_and_keeps_its_newest() {
        let mut ring = Ring::new(Limits { moments: 3, bytes: 100_000 });
        ring.restart(Revision(1));
        for revision in 2..=10 {
            push(&mut ring, Revision(revision), vec![edit("a", Some("x"), Some(&revision.to_string()))]);
        }
        assert_eq!(told(&mut ring, 7), "forgotten");
        assert_eq!(told(&mut ring, 8), "10: Updated a");
        let large = "x".repeat(200_000);
        push(&mut ring, Revision(11), vec![edit("a", Some("10"), Some(&large))]);
        assert_eq!(told(&mut ring, 9), "forgotten");
        assert_eq!(told(&mut ring, 10), "11: Updated a");
    }

    #[test]
    fn what_takes_long_to_merge_is_not_merged() {
        let mut ring = Ring::new(Limits { moments: 100, bytes: usize::MAX });
        ring.restart(Revision(1));
        let added = |count: usize| (0..count).map(|name| edit(&format!("{name:06}"), None, Some("1"))).collect();
        for revision in 2..10 {
            push(&mut ring, Revision(revision), added(MERGED / 4));
        }
        assert!(matches!(ring.since(Revision(6)), Since::Changes(_)));
        assert_eq!(told(&mut ring, 4), "forgotten");
        // A delta that was made beforehand is dropped at a later revision with the same content.
        push(&mut ring, Revision(10), added(MERGED + 1));
        assert!(matches!(ring.since(Revision(9)), Since::Changes(_)));
        ring.extend(Revision(11));
        assert_eq!((told(&mut ring, 9), told(&mut ring, 10)), ("forgotten".to_owned(), "nothing".to_owned()));
    }

    #[test]
    fn what_many_edits_come_to_is_made_beforehand_and_after_too_many_the_whole_is_told() {
        let mut ring = Ring::new(Limits { moments: 3, bytes: 100_000 });
        ring.restart(Revision(1));
        let added = |count: usize| (0..count).map(|name| edit(&format!("{name:06}"), None, Some("1"))).collect();
        push(&mut ring, Revision(2), added(NODES_PER_STEP + 1));
        assert_eq!(ring.deltas.len(), 1);
        let Since::Changes(delta) = ring.since(Revision(1)) else { panic!("it is known") };
        assert_eq!((delta.changes.len(), delta.revision, ring.deltas.len()), (NODES_PER_STEP + 1, Revision(2), 1));
        push(&mut ring, Revision(3), vec![edit("a", None, Some("1"))]);
        assert_eq!((told(&mut ring, 1), told(&mut ring, 2)), ("forgotten".into(), "3: Added a".into()));
        push(&mut ring, Revision(4), added(MAX_EDITS + 1));
        assert_eq!((told(&mut ring, 3), told(&mut ring, 4)), ("forgotten".into(), "nothing".into()));
    }
}
