//! What is remembered of locks that were used here, to spare a look. It may be out of date: whoever goes by it finds that
//! out from what comes of it.

use std::collections::HashMap;
use std::sync::Mutex;

use super::lock;
use super::queue::digits_after;
use crate::types::{NodePath, Zxid};

/// Of how many locks something is known, before all is forgotten.
const LOCKS: usize = 4096;

/// One thing that is known of each lock.
#[derive(Debug)]
pub(super) struct Memory<T>(Mutex<HashMap<NodePath, T>>);

/// A lock that nobody held or waited for when it was given back here.
///
/// A contender's digits count the contenders that there ever were. Who has taken a lock at once and given it back knows
/// which digits the next contender gets if nobody comes meanwhile; and without a contender nobody takes a lease. The
/// transaction that takes the lock has to delete its contender by these digits, and so fails if anybody came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Vacancy {
    /// The digits of the next contender.
    pub(super) next: i32,
    pub(super) company: Company,
}

/// Who else takes the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Company {
    /// Others may: a transaction that fails costs more than a look.
    Perhaps,
    /// Nobody, between the last two times.
    None,
}

impl Vacancy {
    /// What who takes the lock leaves behind. `None`: the digits that come are not sure to be unique.
    pub(super) fn after(self) -> Option<Self> {
        Some(Self { next: digits_after(self.next)?, ..self })
    }
}

/// How many may hold a lock, as its node said when this transaction had written it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) limit: u32,
    pub(super) written: Zxid,
}

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Copy> Memory<T> {
    pub(super) fn set(&self, path: &NodePath, known: T) {
        let mut locks = lock(&self.0);
        if locks.len() >= LOCKS && !locks.contains_key(path) {
            locks.clear();
        }
        locks.insert(path.clone(), known);
    }

    pub(super) fn get(&self, path: &NodePath) -> Option<T> {
        lock(&self.0).get(path).copied()
    }

    /// For one to know, and nobody else.
    pub(super) fn take(&self, path: &NodePath) -> Option<T> {
        lock(&self.0).remove(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_bounded_and_can_be_for_one() {
        let memory = Memory::default();
        let path = |number: usize| NodePath::trusted(format!("/jobs/{number}"));
        memory.set(&path(0), 7);
        assert_eq!((memory.get(&path(0)), memory.take(&path(0)), memory.take(&path(0))), (Some(7), Some(7), None));
        for number in 0..3 * LOCKS {
            memory.set(&path(number), number);
            memory.set(&path(number), number);
            assert!(lock(&memory.0).len() <= LOCKS);
            assert_eq!(memory.get(&path(number)), Some(number));
        }
    }

    #[test]
    fn there_are_no_digits_after_the_last() {
        let vacancy = Vacancy { next: 7, company: Company::None };
        assert_eq!(vacancy.after(), Some(Vacancy { next: 8, ..vacancy }));
        assert_eq!(Vacancy { next: i32::MAX - 1, ..vacancy }.after(), None);
    }
}
