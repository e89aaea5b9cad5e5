//! A test for each rule of the recipe.

use std::time::Duration;

use tokio::time::Instant;

use super::plan::*;
use crate::locks::outcome::Outcome;
use crate::locks::recipe::contenders::{NEAR, Queue};
use crate::locks::recipe::lease_observation::ObservedLock;
use crate::locks::recipe::own_nodes::NodeState;
use crate::locks::request::Wait;
use crate::types::Zxid;
use crate::zk::ErrorCode;

const CHECKED: LockNodeCheck = LockNodeCheck::Fits(Zxid(3));

fn contender(digits: &str) -> NodeState {
    NodeState::Exists(format!("x__lock__{digits}"))
}

fn queue(names: &[&str]) -> Queue {
    Queue::of(names.iter().map(|&name| name.to_owned()).collect())
}

/// An attempt for a lock that one client may hold, with a contender whose place it does not know.
fn waiting<'a>(contender: &'a NodeState, place: &'a QueuePlace) -> Knowledge<'a> {
    Knowledge {
        is_wanted: true,
        wait: Wait::Forever,
        limit: 1,
        contender,
        lease: &NodeState::Absent,
        may_be_vacant: false,
        lock_node: CHECKED,
        has_strays: false,
        place,
        recent: None,
        leases: LeaseCount::Unknown,
        is_offered: false,
    }
}

fn step(known: &Knowledge<'_>) -> LockStep {
    next_step(known, Instant::now())
}

fn behind(name: &str, is_watched: bool) -> QueuePlace {
    QueuePlace::Behind { name: name.to_owned(), is_watched }
}

#[test]
fn clients_are_served_in_the_order_in_which_they_came() {
    let mine = contender("0000000007");
    let names = ["c__lock__0000000003", "x__lock__0000000007", "a__lock__0000000005", "b__lock__0000000009"];
    let place = place_in(&queue(&names), "x__lock__0000000007", None, false);
    assert_eq!(place, behind("a__lock__0000000005", false), "the next ahead is watched, and no other");
    assert_eq!(step(&waiting(&mine, &place)), LockStep::WatchAhead("a__lock__0000000005".to_owned()));
    let watched = behind("a__lock__0000000005", true);
    assert_eq!(step(&waiting(&mine, &watched)), LockStep::AwaitAhead("a__lock__0000000005".to_owned()));
    let first = place_in(&queue(&names[1..2]), "x__lock__0000000007", None, false);
    assert_eq!(first, QueuePlace::First);
    let known = Knowledge { leases: LeaseCount::Watched(0), ..waiting(&mine, &first) };
    assert_eq!(step(&known), LockStep::TakeLease);
    let many = Knowledge { limit: 9, leases: LeaseCount::Watched(0), ..waiting(&mine, &watched) };
    assert!(matches!(step(&many), LockStep::AwaitAhead(_)), "only the first takes a lease, whatever room there is");
}

#[test]
fn the_first_waits_while_as_many_leases_exist_as_the_limit_allows() {
    let mine = contender("0000000007");
    for (limit, leases, expected) in [
        (1, 0, LockStep::TakeLease),
        (1, 1, LockStep::AwaitLease),
        (3, 2, LockStep::TakeLease),
        (3, 3, LockStep::AwaitLease),
        (3, 4, LockStep::AwaitLease),
    ] {
        let known = Knowledge { limit, leases: LeaseCount::Watched(leases), ..waiting(&mine, &QueuePlace::First) };
        assert_eq!(step(&known), expected, "{limit} {leases}");
    }
}

#[test]
fn a_new_attempt_checks_the_limit_while_it_enqueues_unless_it_is_known() {
    let absent = NodeState::Absent;
    let unread = Knowledge { lock_node: LockNodeCheck::Unread, ..waiting(&absent, &QueuePlace::Unknown) };
    assert_eq!(step(&unread), LockStep::Enqueue { check_limit: true, may_join_handoff: false });
    let checked = waiting(&absent, &QueuePlace::Unknown);
    assert_eq!(step(&checked), LockStep::Enqueue { check_limit: false, may_join_handoff: true });
    assert_eq!(step(&Knowledge { may_be_vacant: true, ..unread }), LockStep::TakeIfVacant);
}

#[test]
fn a_limit_that_may_differ_by_now_is_read_before_anything_else_happens() {
    let mine = contender("0000000007");
    for place in [QueuePlace::First, behind("a__lock__0000000005", false), QueuePlace::Unknown] {
        for lock_node in [LockNodeCheck::Changed, LockNodeCheck::Unread] {
            let known = Knowledge { lock_node, is_offered: true, ..waiting(&mine, &place) };
            assert_eq!(step(&known), LockStep::CheckLimit);
        }
    }
    assert_eq!(lock_node_after_read(CHECKED, Some(Zxid(3))), CHECKED);
    assert_eq!(lock_node_after_read(CHECKED, Some(Zxid(4))), LockNodeCheck::Changed);
    assert_eq!(lock_node_after_read(CHECKED, None), LockNodeCheck::Changed, "it is gone");
    let observed = ObservedLock { leases: 1, written: Some(Zxid(4)) };
    assert_eq!(confirm(1, CHECKED, observed), Confirmation::LimitChanged);
    assert_eq!(confirm(1, CHECKED, ObservedLock { written: None, ..observed }), Confirmation::LimitChanged);
}

#[test]
fn a_node_with_durable_children_that_are_no_leases_is_no_lock() {
    let mine = contender("0000000007");
    for place in [QueuePlace::First, behind("a__lock__0000000005", false)] {
        assert_eq!(step(&Knowledge { has_strays: true, ..waiting(&mine, &place) }), LockStep::RefuseStrays);
    }
}

#[test]
fn own_nodes_whose_create_was_not_answered_are_looked_for_first() {
    let place = QueuePlace::Unknown;
    let known = Knowledge { may_be_vacant: true, ..waiting(&NodeState::Unknown, &place) };
    assert_eq!(
        step(&known),
        LockStep::FindContender,
        "a second contender would wait behind one that nobody waits with"
    );
    let known = Knowledge { lease: &NodeState::Unknown, ..known };
    assert_eq!(step(&known), LockStep::FindLease, "a lease that nobody holds would keep all others waiting");
    assert_eq!(step(&Knowledge { is_wanted: false, ..known }), LockStep::End(Outcome::Stopped));
}

#[test]
fn a_contender_with_equal_digits_is_found_by_its_name_and_gives_its_place_back() {
    let names = ["a__lock__2147483647", "x__lock__2147483647", "b__lock__2147483647"];
    for (name, ahead) in [(names[0], None), (names[2], Some(names[0])), (names[1], Some(names[2]))] {
        let place = place_in(&queue(&names), name, None, false);
        assert_eq!(place, ahead.map_or(QueuePlace::First, |ahead| behind(ahead, false)), "{name}");
    }
    let mine = contender("2147483647");
    let offered = Knowledge { is_offered: true, ..waiting(&mine, &QueuePlace::First) };
    assert_eq!(step(&offered), LockStep::AwaitNewDigits, "its digits are no place, not even the first");
}

#[test]
fn late_digits_are_looked_up_anew_each_time() {
    let recent = Some(RecentReading { ahead: 0, lock: Some(Zxid(3)), leases: Some(0) });
    let (sure, late) = (contender("0000000007"), contender("2000000000"));
    let step = |mine| step(&Knowledge { recent, ..waiting(mine, &QueuePlace::Unknown) });
    assert_eq!((step(&sure), step(&late)), (LockStep::UseRecentReading, LockStep::ReadQueue));
    assert_eq!(place_later(&QueuePlace::First, &sure), QueuePlace::First);
    assert_eq!(place_later(&QueuePlace::First, &late), QueuePlace::Unknown);
    assert_eq!(place_later(&behind("a__lock__0000000005", true), &sure), QueuePlace::Unknown);
}

#[test]
fn an_older_reading_bounds_which_contenders_are_ahead() {
    let (a, b, mine) = ("a__lock__0000000003", "b__lock__0000000005", "x__lock__0000000007");
    let queue = queue(&[a, b, mine]);
    let place = place_in(&queue, mine, None, true);
    assert_eq!(place, QueuePlace::AtMostBehind(vec![a.to_owned(), b.to_owned()]));
    let known = contender("0000000007");
    assert_eq!(step(&waiting(&known, &place)), LockStep::ReadAhead(vec![a.to_owned(), b.to_owned()]));
    assert_eq!(place_in(&queue, mine, Some(b), true), QueuePlace::AtMostBehind(vec![a.to_owned()]));
    assert_eq!(place_in(&queue, b, Some(a), true), QueuePlace::First, "its end was seen: nothing has to be read");
    let far = Some(RecentReading { ahead: NEAR + 1, lock: None, leases: None });
    let known = Knowledge { recent: far, ..waiting(&known, &QueuePlace::Unknown) };
    assert_eq!(step(&known), LockStep::ReadQueue, "one list is cheaper than so many reads");
}

#[test]
fn a_contender_that_a_new_list_does_not_have_was_deleted_by_somebody() {
    let place = place_in(&queue(&["a__lock__0000000003"]), "x__lock__0000000007", None, false);
    assert_eq!(place, QueuePlace::Missing);
    let older = place_in(&queue(&[]), "x__lock__0000000007", None, true);
    assert_eq!(older, QueuePlace::Unknown, "it may have been read before the contender was created");
    assert_eq!(step(&waiting(&contender("0000000007"), &place)), LockStep::FindDeleter);
}

#[test]
fn a_grant_that_was_lost_or_refused_is_told_by_the_operation() {
    let (lost, no_node) = (waiting(&NodeState::Absent, &QueuePlace::First), ErrorCode::NoNode);
    let lost = Knowledge { lease: &NodeState::Unknown, ..lost };
    assert_eq!(step(&lost), LockStep::FindLease, "the answer was lost");
    assert_eq!(grant_refusal(0, no_node, false, 2), GrantRefusal::NoContender);
    assert_eq!(grant_refusal(1, no_node, false, 2), GrantRefusal::NoLockNode);
    assert_eq!(grant_refusal(2, no_node, false, 3), GrantRefusal::NoRecords);
    assert_eq!(grant_refusal(0, no_node, true, 3), GrantRefusal::TryAgain, "the offered lease is gone");
    assert_eq!(grant_refusal(1, no_node, true, 3), GrantRefusal::NoContender);
    assert_eq!(grant_refusal(2, no_node, true, 3), GrantRefusal::NoLockNode);
    assert_eq!(grant_refusal(3, no_node, true, 3), GrantRefusal::TryAgain, "another contender could not be created");
    assert_eq!(grant_refusal(1, ErrorCode::NoAuth, false, 2), GrantRefusal::Other(ErrorCode::NoAuth));
}

#[test]
fn an_offered_lease_is_taken_whatever_the_number_of_leases_but_only_by_the_first() {
    let mine = contender("0000000007");
    for leases in [LeaseCount::Unknown, LeaseCount::NotHandedOff, LeaseCount::Watched(1)] {
        let known = Knowledge { is_offered: true, leases, ..waiting(&mine, &QueuePlace::First) };
        assert_eq!(step(&known), LockStep::TakeLease);
    }
    let place = behind("a__lock__0000000005", true);
    assert!(matches!(step(&Knowledge { is_offered: true, ..waiting(&mine, &place) }), LockStep::AwaitAhead(_)));
}

#[test]
fn a_handoff_is_awaited_before_the_leases_are_watched_where_one_client_may_hold_the_lock() {
    let mine = contender("0000000007");
    let known = waiting(&mine, &QueuePlace::First);
    assert_eq!(step(&known), LockStep::AwaitHandoff);
    assert_eq!(step(&Knowledge { leases: LeaseCount::NotHandedOff, ..known.clone() }), LockStep::WatchLeases);
    assert_eq!(step(&Knowledge { limit: 2, ..known.clone() }), LockStep::WatchLeases, "there may be room");
    assert_eq!(step(&Knowledge { wait: Wait::Try, ..known }), LockStep::WatchLeases);
}

#[test]
fn room_that_the_first_saw_is_still_there() {
    let mine = contender("0000000007");
    let seen = RecentReading { ahead: 0, lock: Some(Zxid(3)), leases: Some(0) };
    let step = |recent| step(&Knowledge { recent: Some(recent), limit: 2, ..waiting(&mine, &QueuePlace::First) });
    assert_eq!(step(seen), LockStep::TakeLease);
    for recent in [
        RecentReading { ahead: 1, ..seen },
        RecentReading { lock: Some(Zxid(4)), ..seen },
        RecentReading { lock: None, ..seen },
        RecentReading { leases: Some(2), ..seen },
        RecentReading { leases: None, ..seen },
    ] {
        assert_eq!(step(recent), LockStep::WatchLeases, "{recent:?}");
    }
}

#[test]
fn a_try_looks_at_all_and_waits_for_nothing() {
    let (absent, mine, place) = (NodeState::Absent, contender("0000000007"), behind("a__lock__0000000005", false));
    let known = Knowledge { wait: Wait::Try, ..waiting(&absent, &QueuePlace::Unknown) };
    assert_eq!(step(&known), LockStep::Enqueue { check_limit: false, may_join_handoff: false });
    let known = Knowledge { wait: Wait::Try, ..waiting(&mine, &place) };
    assert!(matches!(step(&known), LockStep::WatchAhead(_)), "it may have gone");
    let watched = behind("a__lock__0000000005", true);
    assert_eq!(step(&Knowledge { place: &watched, ..known.clone() }), LockStep::End(Outcome::Busy));
    let first = Knowledge { place: &QueuePlace::First, leases: LeaseCount::Watched(1), ..known };
    assert_eq!(step(&first), LockStep::End(Outcome::Busy));
}

#[test]
fn a_wait_that_is_over_ends_where_the_next_one_would_begin() {
    let (now, mine, place) = (Instant::now(), contender("0000000007"), behind("a__lock__0000000005", true));
    let wait = Wait::Until(now + Duration::from_secs(1));
    let behind = Knowledge { wait, ..waiting(&mine, &place) };
    let first = Knowledge { place: &QueuePlace::First, leases: LeaseCount::Watched(1), ..behind.clone() };
    let at = |known, seconds| next_step(known, now + Duration::from_secs(seconds));
    assert_eq!(
        (at(&behind, 0), at(&first, 0)),
        (LockStep::AwaitAhead("a__lock__0000000005".to_owned()), LockStep::AwaitLease)
    );
    assert_eq!((at(&behind, 1), at(&first, 1)), (LockStep::End(Outcome::Busy), LockStep::End(Outcome::Busy)));
    let free = Knowledge { leases: LeaseCount::Watched(0), ..first };
    assert_eq!(at(&free, 1), LockStep::TakeLease, "it does not have to wait");
}

#[test]
fn a_lease_beyond_the_limit_is_compared_with_the_others_before_it_is_told() {
    let confirm = |limit, leases| confirm(limit, CHECKED, ObservedLock { leases, written: Some(Zxid(3)) });
    assert_eq!((confirm(1, 1), confirm(1, 2)), (Confirmation::Hold, Confirmation::CompareGrants));
    assert_eq!((confirm(3, 3), confirm(3, 4)), (Confirmation::Hold, Confirmation::CompareGrants));
}

#[test]
fn an_attempt_that_is_not_wanted_ends_at_its_next_step() {
    let mine = contender("0000000007");
    for place in [QueuePlace::Unknown, QueuePlace::First, behind("a__lock__0000000005", true)] {
        let known = Knowledge { is_wanted: false, is_offered: true, ..waiting(&mine, &place) };
        assert_eq!(step(&known), LockStep::End(Outcome::Stopped));
    }
}
