//! The rules of registrations, stepped by hand.

use std::time::Duration;

use super::claims::{Claim, Claimed, Held, Observed, Policy};
use super::effects::{Effect, Input, StreamId};
use super::outbox::{Notice, RegistrationLostReason};
use super::stepped::*;
use crate::error::Error;
use crate::types::{Generation, SessionId, Zxid};
use crate::zk::{FenceEpoch, NodeEvents};

#[test]
fn a_registration_without_a_ttl_ends_with_its_stream() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, None);
    let effects = replica.step(Input::Gone { stream: ONE });
    assert!(is_removal(&effects, generation));
    let effects = replica.step(Input::Removed { path: path() });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Unwatch { .. })));
    assert!(replica.is_empty());
}

#[test]
fn a_stream_that_ends_while_it_registers_leaves_nothing() {
    let mut replica = Replica::new();
    replica.open(ONE, None);
    replica.set(ONE);
    assert!(replica.step(Input::Gone { stream: ONE }).is_empty());
    let outcome = replica.held();
    let effects = replica.claimed(outcome);
    assert!(is_removal(&effects, Generation(replica.zxid)));
    replica.step(Input::Removed { path: path() });
    assert!(replica.is_empty());
}

#[test]
fn with_a_ttl_it_outlives_the_stream_by_the_ttl_counted_from_the_last_message() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, Some(TTL));
    replica.after(TTL / 2);
    replica.step(Input::KeepAlive { stream: ONE });
    replica.step(Input::Gone { stream: ONE });
    assert!(replica.after(TTL - Duration::from_millis(1)).is_empty());
    let effects: Vec<_> = (0..4).flat_map(|_| replica.after(Duration::from_millis(300))).collect();
    assert!(is_removal(&effects, generation));
}

#[test]
fn a_silent_stream_is_told_that_it_expired() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, Some(TTL));
    let effects: Vec<_> = (0..12).flat_map(|_| replica.after(TTL / 10)).collect();
    assert!(is_lost(&effects, ONE, RegistrationLostReason::Expired));
    assert!(effects.contains(&Effect::Close { stream: ONE, end: Err(Error::SessionExpired { ttl: TTL }) }));
    assert!(is_removal(&effects, generation));
}

#[test]
fn a_replica_that_was_stopped_reads_what_has_arrived_before_a_ttl_expires() {
    let mut replica = Replica::new();
    replica.register(ONE, Some(TTL));
    assert!(replica.stopped_for(100 * TTL).is_empty());
    replica.step(Input::KeepAlive { stream: ONE });
    assert!(replica.after(Duration::from_secs(1)).is_empty());
}

#[test]
fn a_set_takes_over_and_the_older_holder_is_told_when_it_is_done() {
    let mut replica = Replica::new();
    replica.register(ONE, None);
    replica.open(TWO, None);
    let effects = replica.set(TWO);
    assert_eq!(claims(&effects)[0].policy, Policy::TakeOver);
    assert!(!is_lost(&effects, ONE, RegistrationLostReason::TakenOver));
    let outcome = replica.held();
    assert!(is_lost(&replica.claimed(outcome), ONE, RegistrationLostReason::TakenOver));
    assert!(notices(&replica.step(Input::Gone { stream: ONE })).is_empty());
    assert!(replica.state.registrations.contains_key(&path()));
}

#[test]
fn a_refused_takeover_leaves_the_older_holder_alone() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, None);
    replica.open(TWO, None);
    assert_eq!(claims(&replica.set_with(TWO, None, true))[0].policy, Policy::Exclusive);
    let effects = replica.claimed(Claimed::Refused(Error::NameTaken { path: path() }));
    assert!(matches!(notices(&effects)[..], [(TWO, Notice::Rejected { .. })]));
    replica.step(Input::Gone { stream: TWO });
    assert!(is_removal(&replica.step(Input::Gone { stream: ONE }), generation));
}

#[test]
fn new_data_from_the_holder_keeps_the_incarnation() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, None);
    assert_eq!(claims(&replica.set(ONE))[0].policy, Policy::Update(generation));
}

#[test]
fn a_resumed_registration_moves_to_the_new_stream() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, Some(TTL));
    replica.step(Input::Gone { stream: ONE });
    replica.open(TWO, Some(TTL));
    assert_eq!(claims(&replica.set_with(TWO, Some(generation), false))[0].policy, Policy::Resume(generation));
    replica.claimed(held(generation.0));
    // The old session's ttl takes nothing down any more.
    for _ in 0..30 {
        replica.step(Input::KeepAlive { stream: TWO });
        assert!(replica.after(TTL / 10).is_empty());
    }
}

#[test]
fn a_resume_of_what_was_taken_over_is_lost() {
    let mut replica = Replica::new();
    replica.open(ONE, None);
    replica.set_with(ONE, Some(Generation(5)), false);
    assert!(is_lost(&replica.claimed(Claimed::TakenOver), ONE, RegistrationLostReason::TakenOver));
    replica.step(Input::Gone { stream: ONE });
    assert!(replica.is_empty());
}

#[test]
fn what_another_takes_over_is_lost_and_not_fought_for() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, None);
    replica.step(Input::Changed { path: path(), seen: deleted(Some(Zxid(generation.0 + 5))) });
    let seen = standing(generation.0 + 5, generation.0 + 5, b"theirs");
    let effects = replica.step(Input::Verified { path: path(), seen });
    assert!(is_lost(&effects, ONE, RegistrationLostReason::TakenOver));
    assert!(claims(&effects).is_empty());
    assert!(!replica.step(Input::Gone { stream: ONE }).iter().any(|effect| matches!(effect, Effect::Remove { .. })));
    assert!(replica.is_empty());
}

#[test]
fn our_own_writes_are_no_news() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, None);
    assert!(replica.step(Input::Changed { path: path(), seen: deleted(Some(Zxid(generation.0))) }).is_empty());
}

#[test]
fn a_foreign_delete_is_undone_at_once_and_then_with_growing_pauses() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, None);
    let effects = replica.deleted();
    let expected = Policy::PutBack { generation, session: SESSION, fence_epoch: None };
    assert_eq!(claims(&effects)[0].policy, expected);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        let outcome = replica.held();
        let effects = replica.claimed(outcome);
        assert!(matches!(notices(&effects)[..], [(ONE, Notice::Registered { restored: true, .. })]));
        assert!(claims(&replica.deleted()).is_empty());
        let due = replica.state.next_tick().unwrap() - replica.now;
        assert_eq!(claims(&replica.after(due)).len(), 1);
        pauses.push(due);
    }
    assert!(pauses.windows(2).all(|pair| pair[1] > pair[0].mul_f64(0.9)), "{pauses:?}");
    assert!(pauses[5] > 8 * pauses[0], "{pauses:?}");
}

/// Whether the fence is doubted when a node is put back that is gone after these inputs.
fn doubted(inputs: impl IntoIterator<Item = Input>) -> bool {
    let mut replica = Replica::new();
    replica.register(ONE, None);
    for input in inputs {
        replica.step(input);
    }
    let effects = replica.deleted();
    match &claims(&effects)[0].policy {
        Policy::PutBack { fence_epoch, .. } => fence_epoch.is_some(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_watch_has_shown_tells_a_foreign_delete_from_a_takeover() {
    let generation = Replica::new().register(ONE, None).0;
    let created = |zxid: Option<i64>| {
        let created_by = zxid.map(Zxid);
        Input::Changed {
            path: path(),
            seen: NodeEvents { created: true, created_by, zxid: created_by, ..NodeEvents::default() },
        }
    };
    let resync = || Input::Resync { parent: path().parent().unwrap() };
    let verified = |generation| Input::Verified { path: path(), seen: standing(generation, generation, b"data") };
    assert!(!doubted([]));
    assert!(!doubted([created(Some(generation))]), "that was our own create");
    assert!(doubted([created(Some(generation + 3))]), "a takeover, and the end of who took it");
    assert!(doubted([created(Some(generation + 3)), created(Some(generation))]));
    assert!(!doubted([created(None), verified(generation)]), "before ZooKeeper 3.9 a look tells whose create that was");
    assert!(!doubted([resync(), verified(generation)]), "it was seen after the gap");
    assert!(doubted([resync(), verified(generation - 1)]), "that was an old one");
}

#[test]
fn what_is_gone_before_it_was_seen_after_a_gap_may_have_been_taken_over() {
    for gaps in [1, 2] {
        let mut replica = Replica::new();
        let generation = replica.register(ONE, None).0;
        for _ in 0..gaps {
            replica.step(Input::Resync { parent: path().parent().unwrap() });
        }
        for _ in 1..gaps {
            // The read before the second gap says nothing about that gap.
            replica.step(Input::Verified { path: path(), seen: standing(generation, generation, b"data") });
        }
        let effects = replica.step(Input::Verified { path: path(), seen: Some(Observed::Absent) });
        assert!(matches!(claims(&effects)[0].policy, Policy::PutBack { fence_epoch: Some(_), .. }));
    }
}

#[test]
fn a_put_back_that_meets_a_moved_fence_is_lost() {
    let mut replica = Replica::new();
    replica.register(ONE, None);
    replica.deleted();
    assert!(is_lost(&replica.claimed(Claimed::TakenOver), ONE, RegistrationLostReason::TakenOver));
}

#[test]
fn overwritten_data_are_told_once() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, None).0;
    for told in [1, 0] {
        replica.step(Input::Resync { parent: path().parent().unwrap() });
        let seen = standing(generation, generation + 3, b"theirs");
        let effects = replica.step(Input::Verified { path: path(), seen });
        assert_eq!(notices(&effects).len(), told);
        assert!(claims(&effects).is_empty(), "they are put right later: see `disputes`");
    }
}

#[test]
fn a_lagging_server_is_not_believed() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, None).0;
    replica.step(Input::Resync { parent: path().parent().unwrap() });
    let effects =
        replica.step(Input::Verified { path: path(), seen: standing(generation - 1, generation - 1, b"old") });
    assert!(effects.is_empty());
}

#[test]
fn what_a_stream_held_that_ended_is_not_registered_again_after_a_lost_zookeeper_session() {
    let mut replica = Replica::new();
    replica.register(ONE, None);
    replica.step(sessions([SessionId(8)]));
    assert!(claims(&replica.step(Input::Gone { stream: ONE })).is_empty());
    replica.step(Input::Removed { path: path() });
    assert!(claims(&replica.after(Duration::from_secs(1))).is_empty() && replica.is_empty());
}

#[test]
fn what_a_lost_zookeeper_session_held_for_a_ttl_that_is_over_is_not_seen_again() {
    // A replica that was itself stopped finds out about both at once.
    for attached in [false, true] {
        let mut replica = Replica::new();
        let generation = replica.register(ONE, Some(TTL));
        if !attached {
            replica.step(Input::Gone { stream: ONE });
        }
        replica.now += TTL;
        let mut effects = replica.step(sessions([OTHER_SESSION]));
        let mut steps = 0;
        while !is_removal(&effects, generation) {
            assert!(claims(&effects).is_empty(), "{effects:?}");
            effects = replica.after(Duration::from_millis(50));
            steps += 1;
            assert!(steps < 100, "it never goes");
        }
    }
    let mut heard = Replica::new();
    let generation = heard.register(ONE, Some(TTL));
    heard.now += TTL;
    heard.step(sessions([OTHER_SESSION]));
    heard.step(Input::KeepAlive { stream: ONE });
    let effects = heard.after(Duration::from_millis(300));
    assert!(matches!(claims(&effects)[..], [Claim { policy: Policy::Restore(before), .. }] if *before == generation));
}

#[test]
fn a_replica_that_slept_past_its_sessions_registers_again_for_those_alone_who_are_here() {
    for attached in [false, true] {
        let mut replica = Replica::new();
        replica.register(ONE, Some(TTL));
        replica.step(Input::Sessions { standing: [OTHER_SESSION].into(), expired_during_stall: true });
        if !attached {
            // The end of the stream is read after the loss was noticed.
            replica.step(Input::Gone { stream: ONE });
        }
        assert_eq!(claims(&replica.after(Duration::from_millis(300))).len(), usize::from(attached));
        assert_eq!(replica.is_empty(), !attached);
    }
}

#[test]
fn what_is_deleted_when_its_ttl_is_over_is_not_put_back() {
    let mut replica = Replica::new();
    replica.register(ONE, Some(TTL));
    replica.now += TTL;
    assert!(claims(&replica.deleted()).is_empty());
    replica.step(Input::KeepAlive { stream: ONE });
    assert_eq!(claims(&replica.after(Duration::from_millis(300))).len(), 1);
}

#[test]
fn after_a_lost_zookeeper_session_everything_is_registered_again_with_the_same_bytes() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, None);
    let other = SessionId(8);
    assert!(replica.step(sessions([other])).is_empty(), "ends of streams may be unread");
    let effects = replica.after(Duration::from_millis(200));
    assert_eq!(claims(&effects)[0].policy, Policy::Restore(generation));
    let Claimed::Held { held, stat, adopted } = replica.held() else { panic!("held") };
    let effects = replica.claimed(Claimed::Held { held: Held { session: other, ..held }, stat, adopted });
    assert!(matches!(notices(&effects)[..], [(ONE, Notice::Registered { restored: true, .. })]));
}

#[test]
fn a_set_without_zookeeper_is_pending_once_and_carried_out_later() {
    let mut replica = Replica::new();
    replica.open(ONE, None);
    replica.set(ONE);
    let away = || Claimed::Unavailable { uncertain_create: None };
    assert!(matches!(notices(&replica.claimed(away()))[..], [(ONE, Notice::Pending { .. })]));
    assert_eq!(claims(&replica.step(Input::BackendUp)).len(), 1);
    assert!(replica.state.is_waiting(), "what changes while it is tried counts");
    assert!(replica.claimed(away()).is_empty());
    assert_eq!(claims(&replica.step(Input::BackendUp)).len(), 1);
    let outcome = replica.held();
    assert!(matches!(notices(&replica.claimed(outcome))[..], [(ONE, Notice::Registered { restored: false, .. })]));
}

#[test]
fn a_pending_set_whose_client_is_gone_never_appears() {
    let mut replica = Replica::new();
    replica.open(ONE, None);
    replica.set(ONE);
    replica.claimed(Claimed::Unavailable { uncertain_create: None });
    replica.step(Input::Gone { stream: ONE });
    assert!(replica.step(Input::BackendUp).is_empty());
    assert!(replica.is_empty());
}

#[test]
fn a_create_whose_answer_was_lost_is_looked_for_even_when_its_client_is_gone() {
    let mut replica = Replica::new();
    replica.open(ONE, None);
    replica.set(ONE);
    replica.claimed(Claimed::Unavailable { uncertain_create: Some(SESSION) });
    replica.step(Input::Gone { stream: ONE });
    let effects = replica.step(Input::BackendUp);
    assert!(claims(&effects)[0].uncertain_creates.has(SESSION));
    let outcome = replica.held();
    assert!(is_removal(&replica.claimed(outcome), Generation(replica.zxid)));
}

#[test]
fn creates_whose_answers_were_lost_in_two_sessions_in_turn_are_both_looked_for() {
    let other = SessionId(8);
    let mut replica = Replica::new();
    replica.step(sessions([SESSION, other]));
    replica.open(ONE, None);
    replica.set(ONE);
    for session in [SESSION, other] {
        replica.claimed(Claimed::Unavailable { uncertain_create: Some(session) });
        let effects = replica.step(Input::BackendUp);
        assert!(claims(&effects)[0].uncertain_creates.has(session));
        assert!(claims(&effects)[0].uncertain_creates.has(SESSION));
    }
    replica.claimed(Claimed::Unavailable { uncertain_create: None });
    // The node of the second session goes with it; that of the first must not be left behind.
    replica.step(sessions([SESSION]));
    replica.step(Input::Gone { stream: ONE });
    let effects = replica.step(Input::BackendUp);
    assert!(claims(&effects)[0].uncertain_creates.has(SESSION));
    let outcome = replica.held();
    assert!(is_removal(&replica.claimed(outcome), Generation(replica.zxid)));
}

#[test]
fn close_answers_for_each_path_and_ends_the_stream() {
    let mut replica = Replica::new();
    replica.register(ONE, Some(TTL));
    replica.step(Input::Close { stream: ONE });
    let effects = replica.step(Input::Removed { path: path() });
    assert!(matches!(notices(&effects)[..], [(ONE, Notice::Unregistered { .. })]));
    assert!(effects.contains(&Effect::Close { stream: ONE, end: Ok(()) }));
    assert!(replica.is_empty());
}

#[test]
fn an_unset_of_what_is_not_held_is_answered() {
    let mut replica = Replica::new();
    replica.open(ONE, None);
    let effects = replica.step(Input::Unset { stream: ONE, path: path() });
    assert!(matches!(notices(&effects)[..], [(ONE, Notice::Unregistered { .. })]));
    assert!(replica.state.registrations.is_empty());
}

#[test]
fn a_set_that_crosses_its_own_restoration_is_no_resume_of_something_lost() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, None);
    replica.deleted();
    let outcome = replica.held();
    replica.claimed(outcome);
    let restored = Generation(replica.zxid);
    assert_eq!(claims(&replica.set_with(ONE, Some(generation), false))[0].policy, Policy::Resume(restored));
}

/// The client may have registered elsewhere meanwhile, and have said goodbye there.
#[test]
fn what_waits_for_zookeeper_is_not_done_for_a_client_that_has_gone_ttl_or_not() {
    for ttl in [None, Some(TTL)] {
        let mut replica = Replica::new();
        replica.open(ONE, ttl);
        replica.set(ONE);
        replica.set(ONE);
        replica.claimed(Claimed::Unavailable { uncertain_create: None });
        let effects = replica.step(Input::Gone { stream: ONE });
        assert!(claims(&effects).is_empty(), "{effects:?}");
        assert!(claims(&replica.step(Input::BackendUp)).is_empty());
        replica.after(2 * TTL);
        replica.after(TTL);
        assert!(replica.is_empty(), "{:?}", replica.state);
    }
}

#[test]
fn a_set_with_a_generation_takes_nothing_over_that_is_later_even_from_the_one_that_held_it() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, None);
    assert_eq!(claims(&replica.set_with(ONE, Some(generation), false))[0].policy, Policy::Resume(generation));
    // The path was taken over elsewhere, which this replica learns from the claim.
    let effects = replica.claimed(Claimed::TakenOver);
    assert!(claims(&effects).is_empty(), "{effects:?}");
    let lost = Notice::Lost { path: path(), generation, reason: RegistrationLostReason::TakenOver };
    assert_eq!(notices(&effects), [(ONE, &lost)]);
}

#[test]
fn a_resume_by_a_generation_of_the_same_line_is_adopted_though_its_answer_was_lost() {
    let mut replica = Replica::new();
    replica.open(ONE, Some(TTL));
    replica.set_with(ONE, Some(Generation(50)), false);
    let outcome = replica.held();
    replica.claimed(outcome);
    let taken_over = Generation(replica.zxid);
    replica.step(Input::Gone { stream: ONE });
    replica.open(TWO, Some(TTL));
    assert_eq!(claims(&replica.set_with(TWO, Some(Generation(50)), false))[0].policy, Policy::Resume(taken_over));
    assert_eq!(replica.state.registrations[&path()].holder, Some(ONE));
}

#[test]
fn close_waits_for_what_is_still_being_removed() {
    let mut replica = Replica::new();
    replica.register(ONE, None);
    replica.step(Input::Unset { stream: ONE, path: path() });
    assert!(replica.step(Input::Close { stream: ONE }).is_empty());
    let effects = replica.step(Input::Removed { path: path() });
    assert!(effects.contains(&Effect::Close { stream: ONE, end: Ok(()) }));
}

#[test]
fn an_unset_while_zookeeper_is_away_answers_both() {
    let mut replica = Replica::new();
    replica.open(ONE, None);
    replica.set(ONE);
    replica.claimed(Claimed::Unavailable { uncertain_create: None });
    let effects = replica.step(Input::Unset { stream: ONE, path: path() });
    assert!(matches!(notices(&effects)[..], [(ONE, Notice::Rejected { .. }), (ONE, Notice::Unregistered { .. })]));
    assert!(replica.step(Input::BackendUp).is_empty());
}

#[test]
fn a_session_whose_fence_moved_has_the_rest_of_its_paths_looked_at() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, None);
    let effects = replica.step(Input::FenceMoved { session: SESSION });
    assert_eq!(effects, [Effect::Confirm { session: SESSION, nodes: vec![(path(), 4)] }]);
    let fence_epoch = FenceEpoch::later();
    replica.step(Input::Confirmed { fence_epoch, standing: vec![(path(), generation)] });
    let created_by = Some(Zxid(generation.0 + 1));
    replica
        .step(Input::Changed { path: path(), seen: NodeEvents { created: true, created_by, ..NodeEvents::default() } });
    let expected = Policy::PutBack { generation, session: SESSION, fence_epoch: Some(fence_epoch) };
    assert_eq!(claims(&replica.deleted())[0].policy, expected);
}

#[test]
fn a_goodbye_is_answered_after_the_ttl_too() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, Some(TTL));
    assert!(is_removal(&replica.step(Input::Close { stream: ONE }), generation));
    assert!(replica.after(2 * TTL).is_empty() && replica.after(TTL).is_empty());
    let effects = replica.step(Input::Removed { path: path() });
    assert!(matches!(notices(&effects)[..], [(ONE, Notice::Unregistered { .. })]));
    assert!(effects.contains(&Effect::Close { stream: ONE, end: Ok(()) }));
}

#[test]
fn a_stream_that_ends_with_nothing_is_forgotten_at_once() {
    let mut replica = Replica::new();
    replica.open(ONE, Some(TTL));
    replica.step(Input::Gone { stream: ONE });
    assert!(replica.state.streams.is_empty() && replica.state.next_tick().is_none());
}

#[test]
fn one_whose_registration_was_taken_over_by_a_stranger_who_moved_here_does_not_get_it_back() {
    let mut replica = Replica::new();
    let first = replica.register(ONE, None);
    replica.open(TWO, None);
    // A stranger took it over elsewhere, and comes back here before this replica has noticed.
    replica.zxid += 10;
    let theirs = Generation(replica.zxid);
    replica.set_with(TWO, Some(theirs), false);
    let outcome = replica.held();
    replica.claimed(outcome);
    replica.open(StreamId(3), None);
    let effects = replica.set_with(StreamId(3), Some(first), false);
    assert_eq!(claims(&effects)[0].policy, Policy::Resume(first), "and not that of the stranger");
}
