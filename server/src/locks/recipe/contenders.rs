//! The rules of the queue: what a list of contenders and of leases implies, and what a lock node's data says. Pure.
//!
//! Contenders are ordered as kazoo orders them, by their digits as text. ZooKeeper's sequence numbers end at
//! 2147483647; every later contender gets that number again, so that its digits are no place in the queue ([`Digits`]).
//!
//! A contender of ours with such digits is given back at once. Contenders with digits of their own are served. When the
//! queue is empty, its node is replaced by [delete, create] in one transaction, and counts from zero. A replica that
//! finds a queue empty after 2,000,000,000 contenders replaces it then. Two processes of kazoo that wait in a queue
//! without numbers may both take the lock: that is kazoo's, and the replacement keeps it from coming to that. A queue
//! that is not open to everybody is left alone; at its end the lock is NOT_A_LOCK, and an operator has to replace the
//! node.

use crate::types::Stat;
use crate::zk::layout::LOCK_MARK;

/// Maximum length of a client's name in bytes. Of a longer name, which another program has written, as much is read.
pub(crate) const MAX_NAME: usize = 1024;
/// A queue whose sequence numbers have come this far is replaced when it is empty. After [`LAST_UNIQUE`] ZooKeeper
/// gives no number that is unique and rises: a larger value leaves less time to find the queue empty.
const WORN_OUT: i32 = 2_000_000_000;
/// The last number that ZooKeeper gives once; it gives the next one again and again.
const LAST_UNIQUE: i32 = i32::MAX - 1;

/// Maximum number of contenders ahead that are read one by one; if there are more, the list is read again.
pub(crate) const NEAR: usize = 32;

/// A contender, by the name of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contender {
    /// Its place among all contenders that ever existed, in the order in which kazoo compares the digits: as text.
    order: i64,
    /// The node's whole name.
    pub(crate) name: String,
}

/// All contenders, the first to come first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Queue(Vec<Contender>);

impl Contender {
    /// Reads a name as kazoo does: ten digits, perhaps with a minus, right after the last `__lock__`. Other nodes are
    /// no contenders, and keep no client waiting.
    fn parse(name: String) -> Option<Self> {
        /// Text that begins with a minus comes before all digits, and the smaller amount first.
        const NEGATIVE: i64 = -10_000_000_000;
        let digits = &name[name.rfind(LOCK_MARK)? + LOCK_MARK.len()..];
        let unsigned = digits.strip_prefix('-').unwrap_or(digits);
        if unsigned.len() != 10 || !unsigned.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let amount: i64 = unsigned.parse().ok()?;
        Some(Self { order: if unsigned == digits { amount } else { NEGATIVE + amount }, name })
    }

    /// The order in the queue: by the digits, and equal digits by the name.
    fn key(&self) -> (i64, &str) {
        (self.order, &self.name)
    }
}

/// Number of contenders that were ever created in the queue with this stat. ZooKeeper counts up to the largest `i32`.
///
/// ZooKeeper's digits count the children that were ever created; `cversion` counts the deleted ones as well, and runs
/// over.
fn created(queue: &Stat) -> i32 {
    let twice = queue.cversion.wrapping_add(queue.num_children).cast_unsigned();
    i32::try_from(twice / 2).unwrap_or(i32::MAX)
}

/// The digits of the next contender of the queue with this stat. `None`: they may not be unique.
pub(crate) fn next_digits(queue: &Stat) -> Option<i32> {
    Some(created(queue)).filter(|next| *next < WORN_OUT)
}

/// The digits after these; `None`: they may not be unique.
pub(crate) fn digits_after(digits: i32) -> Option<i32> {
    digits.checked_add(1).filter(|next| *next < WORN_OUT)
}

/// Whether the queue with this stat is to be replaced.
pub(crate) fn is_worn_out(queue: &Stat) -> bool {
    next_digits(queue).is_none()
}

/// The worth of a contender's digits as a place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Digits {
    /// No other contender has them, and none that comes later is ordered before them.
    Sure,
    /// No other contender has them. Once the numbers have run out, later contenders may be ordered before them.
    Late,
    /// Other contenders may have them too, and later ones may be ordered before them: they are no place in the queue.
    RunOut,
}

impl Digits {
    /// The digits of the contender with this name.
    pub(crate) fn of(name: &str) -> Self {
        match Contender::parse(name.to_owned()).and_then(|contender| i32::try_from(contender.order).ok()) {
            Some(0..WORN_OUT) => Self::Sure,
            Some(WORN_OUT..=LAST_UNIQUE) => Self::Late,
            Some(_) | None => Self::RunOut,
        }
    }
}

impl Queue {
    /// The queue in a `…-__lock__` node with these children.
    pub(crate) fn of(names: Vec<String>) -> Self {
        let mut contenders: Vec<_> = names.into_iter().filter_map(Contender::parse).collect();
        contenders.sort_unstable_by(|one, other| one.key().cmp(&other.key()));
        Self(contenders)
    }

    /// The contenders ahead of the one with this name; none for the first. `None`: it is not in the queue.
    pub(crate) fn ahead_of(&self, name: &str) -> Option<&[Contender]> {
        let me = Contender::parse(name.to_owned())?;
        let index = self.0.binary_search_by(|contender| contender.key().cmp(&me.key())).ok()?;
        Some(&self.0[..index])
    }

    /// The names, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|contender| contender.name.as_str())
    }

    /// Number of contenders.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// This queue with one more contender, whose create was just answered. `None`: other contenders may have come
    /// before it, with digits from `next` on.
    pub(crate) fn joined(&self, name: &str, next: i32) -> Option<Self> {
        let contender = Contender::parse(name.to_owned())?;
        (contender.order == i64::from(next)).then(|| Self(self.0.iter().cloned().chain([contender]).collect()))
    }

    /// This queue without one contender. `None`: it is not in the queue.
    pub(crate) fn left(&self, name: &str) -> Option<Self> {
        let others: Vec<_> = self.0.iter().filter(|contender| contender.name != name).cloned().collect();
        (others.len() < self.0.len()).then_some(Self(others))
    }
}

/// Whether a child of a lock node without a number can be a lease: the names of kazoo's and of ours are 32 hex digits.
pub(crate) fn looks_like_a_lease(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit))
}

/// The name in a lease's data. Another program may have written any amount.
pub(crate) fn lease_name(data: &[u8]) -> String {
    let text = String::from_utf8_lossy(&data[..data.len().min(MAX_NAME)]);
    text.into_owned()
}

/// The name in a contender's data. Kazoo's Semaphore writes its own as Python shows bytes: `b'name'`.
pub(crate) fn contender_name(data: &[u8]) -> String {
    let inner = data.strip_prefix(b"b'").and_then(|rest| rest.strip_suffix(b"'"));
    lease_name(inner.unwrap_or(data))
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
    fn digits_that_have_run_over_are_ordered_as_kazoo_orders_them() {
        let in_order = ["b__lock__-2147483600", "a__lock__-2147483648", "x__lock__0000000001", "c__lock__2147483647"];
        for names in [in_order, {
            let mut names = in_order;
            names.reverse();
            names
        }] {
            let queue = queue(&names);
            assert_eq!(queue.names().collect::<Vec<_>>(), in_order);
            for (index, name) in in_order.iter().enumerate() {
                assert_eq!(queue.ahead_of(name).unwrap().len(), index);
            }
        }
    }

    #[test]
    fn contenders_with_equal_digits_are_found_by_their_names() {
        let names: Vec<_> = ('a'..='j').map(|letter| format!("{letter}__lock__2147483647")).collect();
        let queue = Queue::of(names.iter().rev().cloned().collect());
        for (index, name) in names.iter().enumerate() {
            assert_eq!(queue.ahead_of(name).map(<[_]>::len), Some(index), "{name}");
        }
        assert_eq!(queue.ahead_of("k__lock__2147483647"), None);
    }

    #[test]
    fn only_digits_that_nobody_else_has_are_a_place() {
        for (digits, worth) in [
            ("0000000000", Digits::Sure),
            ("1999999999", Digits::Sure),
            ("2000000000", Digits::Late),
            ("2147483646", Digits::Late),
            ("2147483647", Digits::RunOut),
            ("-2147483648", Digits::RunOut),
            ("-0000000001", Digits::RunOut),
        ] {
            assert_eq!(Digits::of(&format!("a__lock__{digits}")), worth, "{digits}");
        }
    }

    #[test]
    fn the_next_digits_are_told_from_a_queues_stat_however_far_it_has_counted() {
        let stat = |created: i32, children: i32| Stat {
            cversion: created.wrapping_mul(2).wrapping_sub(children),
            num_children: children,
            ..Stat::default()
        };
        for (created, next) in [
            (0, Some(0)),
            (7, Some(7)),
            (1 << 30, Some(1 << 30)),
            (WORN_OUT - 1, Some(WORN_OUT - 1)),
            (WORN_OUT, None),
            (i32::MAX, None),
        ] {
            for children in [0, 1, 5] {
                let stat = stat(created, created.min(children));
                assert_eq!((next_digits(&stat), is_worn_out(&stat)), (next, next.is_none()), "{created} {children}");
            }
        }
        assert_eq!((digits_after(7), digits_after(WORN_OUT - 1), digits_after(i32::MAX)), (Some(8), None, None));
    }

    #[test]
    fn the_names_of_kazoos_contenders_are_read_without_pythons_marks() {
        for (data, name) in [("b'host-1'", "host-1"), ("host-1", "host-1"), ("b'", "b'"), ("", "")] {
            assert_eq!(contender_name(data.as_bytes()), name);
        }
        let long = "x".repeat(MAX_NAME + 1);
        for name in [lease_name(long.as_bytes()), contender_name(format!("b'{long}'").as_bytes())] {
            assert_eq!(name, long[1..], "what a stranger has written may have a megabyte");
        }
    }
}
