//! Hints: facts about locks that were used on this replica, which spare a read. A hint may be out of date; the
//! transaction or the read that relies on it finds that out.

use std::collections::HashMap;

use crate::locks::recipe::contenders::digits_after;
use crate::types::{NodePath, Zxid};
use parking_lot::Mutex;

/// Maximum number of locks in a table; with one more all hints are forgotten. A larger value takes more memory.
const LOCKS: usize = 4096;

/// One hint for each lock.
#[derive(Debug)]
pub(crate) struct HintTable<T>(Mutex<HashMap<NodePath, T>>);

/// The hints that attempts use.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    vacancies: HintTable<VacancyHint>,
    limits: HintTable<LimitHint>,
}

/// A lock that had neither holder nor contender when this replica gave it back.
///
/// The digits of a contender count the contenders that ever existed. An attempt that has taken a lock in one
/// transaction and given it back knows the digits that the next contender gets if no other comes meanwhile; and without
/// a contender no program takes a lease. The transaction that takes the lock deletes its contender by these digits, and
/// so fails if another contender has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VacancyHint {
    /// The digits of the next contender.
    pub(crate) next: i32,
    pub(crate) rivals: Rivals,
}

/// Whether other clients take the lock as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rivals {
    /// They may. A transaction that fails costs more than a read.
    Perhaps,
    /// None came between the last two times.
    None,
}

impl VacancyHint {
    /// The hint after the lock was taken by this one and given back. `None`: the next digits may not be unique.
    pub(crate) fn after(self) -> Option<Self> {
        Some(Self { next: digits_after(self.next)?, ..self })
    }
}

/// The number in a lock node, as this transaction had written it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LimitHint {
    limit: u32,
    written: Zxid,
}

impl Hints {
    /// The lock was given back, and nobody waits for it here.
    pub(crate) fn set_vacancy(&self, path: &NodePath, vacancy: VacancyHint) {
        self.vacancies.set(path, vacancy);
    }

    /// Takes the vacancy of a lock: one attempt uses it.
    pub(crate) fn take_vacancy(&self, path: &NodePath) -> Option<VacancyHint> {
        self.vacancies.take(path)
    }

    pub(crate) fn set_limit(&self, path: &NodePath, limit: u32, written: Zxid) {
        self.limits.set(path, LimitHint { limit, written });
    }

    /// The transaction that wrote `limit` into the lock node, if the node held that number when it was last read. A
    /// later change is found before the client gets `held`.
    pub(crate) fn limit_written(&self, path: &NodePath, limit: u32) -> Option<Zxid> {
        self.limits.get(path).filter(|hint| hint.limit == limit).map(|hint| hint.written)
    }

    pub(crate) fn forget_limit(&self, path: &NodePath) {
        self.limits.take(path);
    }
}

impl<T> Default for HintTable<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Copy> HintTable<T> {
    pub(crate) fn set(&self, path: &NodePath, hint: T) {
        let mut locks = self.0.lock();
        if locks.len() >= LOCKS && !locks.contains_key(path) {
            locks.clear();
        }
        locks.insert(path.clone(), hint);
    }

    pub(crate) fn get(&self, path: &NodePath) -> Option<T> {
        self.0.lock().get(path).copied()
    }

    fn take(&self, path: &NodePath) -> Option<T> {
        self.0.lock().remove(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_bounded_and_can_be_taken_once() {
        let memory = HintTable::default();
        let path = |number: usize| NodePath::trusted(format!("/jobs/{number}"));
        memory.set(&path(0), 7);
        assert_eq!((memory.get(&path(0)), memory.take(&path(0)), memory.take(&path(0))), (Some(7), Some(7), None));
        for number in 0..3 * LOCKS {
            memory.set(&path(number), number);
            memory.set(&path(number), number);
            assert!(memory.0.lock().len() <= LOCKS);
            assert_eq!(memory.get(&path(number)), Some(number));
        }
    }

    #[test]
    fn there_are_no_digits_after_the_last() {
        let vacancy = VacancyHint { next: 7, rivals: Rivals::None };
        assert_eq!(vacancy.after(), Some(VacancyHint { next: 8, ..vacancy }));
        assert_eq!(VacancyHint { next: i32::MAX - 1, ..vacancy }.after(), None);
    }
}
