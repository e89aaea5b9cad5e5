//! What a list of contenders and of leases implies. Pure.

use crate::zk::layout::LOCK_MARK;

/// More contenders ahead than this are looked up with a new list rather than one by one.
pub(super) const NEAR: usize = 32;

/// One that waits, as the name of its node tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contender {
    /// Its place among all that ever came.
    number: i64,
    /// The node's whole name.
    pub(super) name: String,
}

/// All that wait, first come first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Queue(Vec<Contender>);

impl Contender {
    /// Reads a name as kazoo does: ten digits, perhaps negative, right after the last `__lock__`. Other nodes are no
    /// contenders, and keep nobody waiting.
    fn parse(name: String) -> Option<Self> {
        let digits = &name[name.rfind(LOCK_MARK)? + LOCK_MARK.len()..];
        let unsigned = digits.strip_prefix('-').unwrap_or(digits);
        if unsigned.len() != 10 || !unsigned.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        Some(Self { number: digits.parse().ok()?, name })
    }
}

impl Queue {
    /// The queue that these children of a `…-__lock__` node make.
    pub(super) fn of(names: Vec<String>) -> Self {
        let mut contenders: Vec<_> = names.into_iter().filter_map(Contender::parse).collect();
        contenders.sort_unstable_by(|one, other| (one.number, &one.name).cmp(&(other.number, &other.name)));
        Self(contenders)
    }

    /// Those ahead of the contender with this name; none for the first. `None`: it is not in the queue.
    pub(super) fn ahead_of(&self, name: &str) -> Option<&[Contender]> {
        let me = Contender::parse(name.to_owned())?;
        let index = self.0.binary_search_by_key(&me.number, |contender| contender.number).ok()?;
        (self.0[index].name == name).then(|| &self.0[..index])
    }

    /// The names, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|contender| contender.name.as_str())
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// This queue with one more, who has just come. `None`: others may have come before, whose digits begin with `next`.
    pub(super) fn joined(&self, name: &str, next: i32) -> Option<Self> {
        let contender = Contender::parse(name.to_owned())?;
        (contender.number == i64::from(next)).then(|| Self(self.0.iter().cloned().chain([contender]).collect()))
    }

    /// This queue without one of those who wait. `None`: it is not among them.
    pub(super) fn left(&self, name: &str) -> Option<Self> {
        let others: Vec<_> = self.0.iter().filter(|contender| contender.name != name).cloned().collect();
        (others.len() < self.0.len()).then_some(Self(others))
    }

    /// The whole name of the contender whose node was created with this prefix.
    pub(super) fn find(&self, prefix: &str) -> Option<&str> {
        self.names().find(|name| name.starts_with(prefix))
    }
}

/// Whether one more lease fits. Only for the first of the queue: nobody else may take one.
pub(super) fn may_take(limit: u32, leases: usize) -> bool {
    u32::try_from(leases).is_ok_and(|leases| leases < limit)
}

/// Whether the lease with czxid `mine`, just granted, is one too many: a kazoo of 2.1 or older took one without being
/// the first of the queue. The later grants give way; the earlier ones are held already.
pub(super) fn must_give_up(limit: u32, leases: &[i64], mine: i64) -> bool {
    let earlier = leases.iter().filter(|&&czxid| czxid < mine).count();
    !may_take(limit, earlier)
}

/// The number in a lock node's data, as kazoo reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// This many may hold the lock; a number that is out of range counts as the nearest that is not.
    Number(u32),
    /// None yet: who made the node has not come to write it.
    Empty,
    /// Something else.
    Foreign,
}

impl Limit {
    /// Reads a lock node's data.
    pub(super) fn of(data: &[u8]) -> Self {
        let text = match std::str::from_utf8(data) {
            Ok(text) => text.trim(),
            Err(_) => return Self::Foreign,
        };
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        if data.is_empty() {
            Self::Empty
        } else if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            Self::Foreign
        } else if text.starts_with('-') {
            Self::Number(0)
        } else {
            Self::Number(digits.parse().unwrap_or(u32::MAX))
        }
    }
}

/// Whether a child of a lock node without a number can be a lease: kazoo's are 32 hex digits, and so are ours.
pub(super) fn looks_like_a_lease(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit))
}

/// The name in a contender's data. Kazoo's Semaphore writes its own as Python shows bytes: `b'name'`.
pub(super) fn contender_name(data: &[u8]) -> String {
    let text = String::from_utf8_lossy(data);
    let inner = text.strip_prefix("b'").and_then(|rest| rest.strip_suffix('\''));
    inner.unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(names: &[&str]) -> Queue {
        Queue::of(names.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn contenders_are_served_by_their_digits_whatever_their_prefix() {
        let queue = queue(&["b__lock__0000000010", "a__lock__0000000011", "c__lock__0000000002"]);
        let names: Vec<_> = queue.names().collect();
        assert_eq!(names, ["c__lock__0000000002", "b__lock__0000000010", "a__lock__0000000011"]);
        let ahead = queue.ahead_of("a__lock__0000000011").unwrap();
        assert_eq!(ahead.last().unwrap().name, "b__lock__0000000010");
        assert_eq!(queue.ahead_of("c__lock__0000000002").unwrap().len(), 0);
        assert_eq!(queue.ahead_of("d__lock__0000000002"), None);
        assert_eq!(queue.ahead_of("d__lock__0000000003"), None);
        assert_eq!(queue.find("b__lock__"), Some("b__lock__0000000010"));
        assert_eq!(queue.find("x"), None);
    }

    #[test]
    fn a_queue_is_joined_by_the_next_and_nobody_else() {
        let two = queue(&["a__lock__0000000003", "b__lock__0000000007"]);
        let three = two.joined("c__lock__0000000009", 9).unwrap();
        assert_eq!(
            three.names().collect::<Vec<_>>(),
            ["a__lock__0000000003", "b__lock__0000000007", "c__lock__0000000009"]
        );
        assert_eq!(two.joined("c__lock__0000000009", 8), None, "somebody else has come, who may be ahead");
        assert_eq!(two.joined("c", 8), None);
        assert_eq!(three.left("c__lock__0000000009"), Some(two.clone()));
        assert_eq!(two.left("c__lock__0000000009"), None);
    }

    #[test]
    fn nodes_that_kazoo_does_not_take_for_contenders_keep_nobody_waiting() {
        let strays =
            ["x", "x__lock__", "x__lock__1", "x__lock__00000000001", "x__lock__000000000a", "x__rlock__0000000000"];
        let mut names = strays.to_vec();
        names.push("__lock____lock__0000000007");
        assert_eq!(queue(&names).names().collect::<Vec<_>>(), ["__lock____lock__0000000007"]);
    }

    #[test]
    fn digits_that_have_overflowed_come_first_as_in_kazoo() {
        let queue = queue(&["a__lock__0000000001", "b__lock__-2147483648"]);
        assert_eq!(queue.ahead_of("a__lock__0000000001").unwrap().len(), 1);
    }

    #[test]
    fn a_lease_is_taken_only_below_the_limit() {
        assert!(may_take(1, 0) && may_take(3, 2));
        assert!(!may_take(1, 1) && !may_take(3, 4) && !may_take(0, 0) && !may_take(u32::MAX, usize::MAX));
    }

    #[test]
    fn the_latest_grants_give_way_when_there_are_too_many() {
        assert!(!must_give_up(1, &[7], 7));
        assert!(must_give_up(1, &[5, 7], 7));
        assert!(!must_give_up(1, &[7, 9], 7));
        assert!(must_give_up(2, &[9, 1, 3], 9));
        assert!(!must_give_up(2, &[9, 1, 3], 3));
    }

    #[test]
    fn a_lock_nodes_number_is_read_as_kazoo_reads_it() {
        for (data, limit) in [
            (&b"1"[..], Limit::Number(1)),
            (b" 12\n", Limit::Number(12)),
            (b"007", Limit::Number(7)),
            (b"-3", Limit::Number(0)),
            (b"99999999999999999999", Limit::Number(u32::MAX)),
            (b"", Limit::Empty),
            (b" ", Limit::Foreign),
            (b"-", Limit::Foreign),
            (b"{}", Limit::Foreign),
            (b"1.5", Limit::Foreign),
            (b"\xff", Limit::Foreign),
        ] {
            assert_eq!(Limit::of(data), limit, "{data:?}");
        }
    }

    #[test]
    fn the_names_of_kazoos_contenders_are_read_without_pythons_marks() {
        for (data, name) in [("b'host-1'", "host-1"), ("host-1", "host-1"), ("b'", "b'"), ("", "")] {
            assert_eq!(contender_name(data.as_bytes()), name);
        }
    }
}
