//! How many may hold a lock: the number in its node, and what it means for a grant.

/// Whether the first contender may take a lease beside so many others. No other contender may.
pub(crate) fn may_take(limit: u32, leases: usize) -> bool {
    u32::try_from(leases).is_ok_and(|leases| leases < limit)
}

/// Whether the lease with czxid `mine`, just granted, is one too many: a kazoo of 2.1 or older took one without being
/// the first of the queue. The later grants give way, since clients hold the earlier ones already.
pub(crate) fn must_give_up(limit: u32, leases: &[i64], mine: i64) -> bool {
    let earlier = leases.iter().filter(|&&czxid| czxid < mine).count();
    !may_take(limit, earlier)
}

/// The number in a lock node's data, as kazoo reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Maximum number of holders; a number that is out of range counts as the nearest in range.
    Number(u32),
    /// No number yet: kazoo creates the node first and writes the number then.
    Empty,
    /// Data that are no number.
    Foreign,
}

impl Limit {
    /// Reads a lock node's data.
    pub(crate) fn of(data: &[u8]) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
