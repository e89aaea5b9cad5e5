//! Registrations that are given back: at once, whatever is under way for them, and until they are gone; stepped by
//! hand.

use std::time::Duration;

use super::claims::{Claimed, Held, Observed, Policy};
use super::effects::{Effect, Input};
use super::outbox::{Notice, RegistrationLostReason};
use super::stepped::*;
use crate::budget::Resource;
use crate::error::Error;
use crate::types::{Generation, NodePath, Zxid};
use crate::zk::ErrorCode;

/// Each way of giving a path back, and whether it is answered.
fn goodbyes() -> [(Input, bool); 3] {
    [(Input::Unset { stream: ONE, path: path() }, true), (Input::Close { stream: ONE }, true), (gone(), false)]
}

fn gone() -> Input {
    Input::Gone { stream: ONE }
}

fn away() -> Claimed {
    Claimed::Unavailable { uncertain_create: None }
}

fn removal_refused(replica: &mut Replica) -> Vec<Effect> {
    replica.step(Input::RemovalRefused { path: path(), code: ErrorCode::NoAuth })
}

/// Something happens to the node, which is read.
fn begin_read(replica: &mut Replica) {
    replica.zxid += 1;
    let effects = replica.step(Input::Changed { path: path(), seen: deleted(Some(Zxid(replica.zxid))) });
    assert!(matches!(effects[..], [Effect::Verify { .. }]), "{effects:?}");
}

fn is_unregistered(effects: &[Effect]) -> bool {
    notices(effects).iter().any(|(to, notice)| *to == ONE && matches!(notice, Notice::Unregistered { .. }))
}

#[test]
fn a_goodbye_does_not_wait_for_a_read_of_the_node() {
    for (goodbye, is_answered) in goodbyes() {
        let mut replica = Replica::new();
        let generation = replica.register(ONE, None);
        begin_read(&mut replica);
        let effects = replica.step(goodbye);
        assert!(is_removal(&effects, generation), "{effects:?}");
        let late = replica.step(Input::Verified { path: path(), seen: Some(Observed::Absent) });
        assert!(late.is_empty(), "{late:?}");
        assert_eq!(is_unregistered(&replica.step(Input::Removed { path: path() })), is_answered);
        replica.step(gone());
        assert!(replica.is_empty());
    }
    let mut expired = Replica::new();
    let generation = expired.register(ONE, Some(TTL));
    begin_read(&mut expired);
    expired.step(gone());
    let effects: Vec<_> = (0..12).flat_map(|_| expired.after(TTL / 10)).collect();
    assert!(is_removal(&effects, generation));
}

#[test]
fn what_is_taken_over_when_its_ttl_has_just_ended_is_told_as_lost_once() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, Some(TTL));
    begin_read(&mut replica);
    replica.now += TTL;
    while !replica.state.streams.is_empty() {
        assert!(replica.state.step(Input::Tick, replica.now).is_empty());
        replica.now += TTL / 100;
    }
    let seen = standing(generation.0 + 5, generation.0 + 5, b"theirs");
    let mut effects = replica.state.step(Input::Verified { path: path(), seen }, replica.now);
    assert!(is_lost(&effects, ONE, RegistrationLostReason::TakenOver), "{effects:?}");
    effects.extend(replica.step(Input::GoOn));
    assert_eq!(notices(&effects).len(), 1, "{effects:?}");
    assert!(effects.contains(&Effect::Close { stream: ONE, end: Err(Error::SessionExpired { ttl: TTL }) }));
}

#[test]
fn a_goodbye_to_what_another_holds_does_not_stop_the_read_of_it() {
    let mut replica = Replica::new();
    replica.register(ONE, None);
    replica.open(TWO, None);
    begin_read(&mut replica);
    assert!(replica.step(Input::Unset { stream: TWO, path: path() }).is_empty());
    let effects = replica.step(Input::Verified { path: path(), seen: Some(Observed::Absent) });
    assert!(matches!(notices(&effects)[..], [(TWO, Notice::Unregistered { .. })]));
    assert_eq!(claims(&effects).len(), 1, "it is put back");
}

#[test]
fn who_comes_back_and_says_goodbye_before_zookeeper_can_be_asked_gives_back_what_exists() {
    for (goodbye, is_answered) in [
        (Input::Unset { stream: TWO, path: path() }, true),
        (Input::Close { stream: TWO }, true),
        (Input::Gone { stream: TWO }, false),
    ] {
        let mut replica = Replica::new();
        let generation = replica.register(ONE, Some(TTL));
        replica.step(gone());
        replica.open(TWO, None);
        replica.set_with(TWO, Some(generation), false);
        replica.claimed(away());
        let effects = replica.step(goodbye);
        assert!(is_removal(&effects, generation), "{effects:?}");
        assert!(notices(&effects).iter().all(|(_, notice)| !matches!(notice, Notice::Unregistered { .. })));
        assert!(claims(&replica.step(Input::BackendUp)).is_empty());
        let effects = replica.step(Input::Removed { path: path() });
        let told = notices(&effects);
        assert_eq!(matches!(told[..], [(TWO, Notice::Unregistered { .. })]), is_answered, "{effects:?}");
        replica.step(Input::Gone { stream: TWO });
        assert!(replica.is_empty(), "{:?}", replica.state);
    }
}

/// The client says goodbye, and is gone before its request has begun, which waits for the operation under way.
#[test]
fn who_comes_back_and_says_goodbye_before_its_request_has_begun_gives_back_what_exists() {
    let reading = || {
        let mut replica = Replica::new();
        let generation = replica.register(ONE, Some(TTL));
        begin_read(&mut replica);
        replica.step(gone());
        (replica, generation)
    };
    let coming_back = |(mut replica, generation): (Replica, Generation), asked, goodbye, ttl| {
        replica.open(TWO, ttl);
        replica.set_with(TWO, asked, false);
        replica.step(goodbye);
        replica.step(Input::Gone { stream: TWO });
        (replica, generation)
    };
    let unset = || Input::Unset { stream: TWO, path: path() };
    let close = || Input::Close { stream: TWO };
    for (goodbye, ttl) in [(unset(), Some(TTL)), (close(), Some(TTL)), (close(), None)] {
        let first = reading();
        let asked = Some(first.1);
        let (mut replica, generation) = coming_back(first, asked, goodbye, ttl);
        let seen = standing(generation.0, generation.0, b"data");
        let effects = replica.step(Input::Verified { path: path(), seen });
        assert!(is_removal(&effects, generation), "{effects:?}");
        replica.step(Input::Removed { path: path() });
        replica.after(2 * TTL);
        assert!(replica.is_empty(), "{:?}", replica.state);
    }
    // The node is another's, or no stream has said goodbye.
    for (asked, goodbye) in [(None, close()), (Some(Generation(50)), close()), (Some(Generation(101)), gone())] {
        let (mut replica, generation) = coming_back(reading(), asked, goodbye, Some(TTL));
        let seen = standing(generation.0, generation.0, b"data");
        let effects = replica.step(Input::Verified { path: path(), seen });
        assert!(effects.is_empty() && replica.state.registrations[&path()].holder == Some(ONE), "{effects:?}");
    }
    let mut replica = restoring(Some(TTL)).0;
    replica.step(gone());
    replica.claimed(away());
    let asked = Some(Generation(replica.zxid));
    let (mut replica, _) = coming_back((replica, Generation(0)), asked, close(), None);
    assert_eq!(claims(&replica.step(Input::BackendUp)).len(), 1);
    let Claimed::Held { held, stat, adopted } = replica.held() else { panic!("held") };
    let effects = replica.claimed(Claimed::Held { held: Held { session: OTHER_SESSION, ..held }, stat, adopted });
    assert!(is_removal(&effects, Generation(replica.zxid)), "{effects:?}");
}

#[test]
fn a_goodbye_to_many_paths_that_the_end_of_its_stream_overtakes_is_kept_for_each() {
    const COUNT: i64 = 200;
    let mut replica = Replica::new();
    let paths: Vec<_> = (0..COUNT).map(|index| NodePath::trusted(format!("/many/{index}"))).collect();
    replica.open(ONE, Some(TTL));
    for path in &paths {
        replica.set_path(ONE, path.clone(), None, false);
        let outcome = replica.held();
        replica.step(Input::Claimed { path: path.clone(), outcome });
    }
    replica.step(gone());
    replica.open(TWO, None);
    let first = replica.zxid + 1 - COUNT;
    for (path, generation) in paths.iter().zip(first..) {
        replica.set_path(TWO, path.clone(), Some(Generation(generation)), false);
    }
    for path in &paths {
        replica.step(Input::Claimed { path: path.clone(), outcome: away() });
    }
    // No slice in between.
    let mut effects = Vec::new();
    for input in [Input::Close { stream: TWO }, Input::Gone { stream: TWO }, Input::BackendUp] {
        effects.extend(replica.state.step(input, replica.now));
    }
    assert!(replica.state.has_chores());
    effects.extend(replica.step(Input::GoOn));
    for _ in 0..100 {
        effects.extend(replica.after(Duration::from_millis(10)));
    }
    assert!(claims(&effects).is_empty(), "{effects:?}");
    for (path, generation) in paths.iter().zip(first..) {
        assert!(is_removal(&effects, Generation(generation)), "{path} stands");
        replica.step(Input::Removed { path: path.clone() });
    }
    assert!(replica.is_empty(), "{:?}", replica.state);
}

/// A replica whose ZooKeeper session was lost, with the claim that registers the path again.
fn restoring(ttl: Option<Duration>) -> (Replica, Vec<Effect>) {
    let mut replica = Replica::new();
    replica.register(ONE, ttl);
    replica.step(sessions([OTHER_SESSION]));
    let effects = replica.after(Duration::from_millis(300));
    assert!(matches!(claims(&effects)[0].policy, Policy::Restore(_)));
    (replica, effects)
}

#[test]
fn what_waits_to_be_registered_again_is_given_back_at_once_and_never_appears() {
    for (goodbye, is_answered) in goodbyes() {
        let (mut replica, _) = restoring(None);
        replica.claimed(away());
        let effects = replica.step(goodbye);
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Remove { .. })), "{effects:?}");
        // Its session is gone, and so is the node.
        assert_eq!(is_unregistered(&replica.step(Input::Removed { path: path() })), is_answered);
        assert!(claims(&replica.step(Input::BackendUp)).is_empty());
        replica.step(gone());
        assert!(replica.is_empty());
    }
    let (mut expired, _) = restoring(Some(TTL));
    expired.claimed(away());
    expired.step(gone());
    let mut effects = Vec::new();
    for _ in 0..30 {
        effects.extend(expired.after(TTL / 10));
        for claim in claims(&std::mem::take(&mut effects)) {
            assert!(!claim.is_abandoned());
            expired.claimed(away());
        }
    }
    expired.step(Input::Removed { path: path() });
    assert!(expired.is_empty(), "{:?}", expired.state);
}

#[test]
fn a_claim_that_waits_for_its_turn_is_not_carried_out_after_the_goodbye() {
    for (goodbye, _) in goodbyes() {
        let (mut replica, queued) = restoring(None);
        assert!(!claims(&queued)[0].is_abandoned());
        replica.step(goodbye);
        assert!(claims(&queued)[0].is_abandoned());
        // The answer for a claim that is not carried out.
        let effects = replica.claimed(away());
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Remove { .. })), "{effects:?}");
    }
}

#[test]
fn a_node_that_may_have_been_registered_again_is_found_before_it_is_given_back() {
    let (mut replica, _) = restoring(None);
    replica.claimed(Claimed::Unavailable { uncertain_create: Some(OTHER_SESSION) });
    assert!(replica.step(gone()).is_empty());
    assert_eq!(claims(&replica.step(Input::BackendUp)).len(), 1);
    let Claimed::Held { held, stat, adopted } = replica.held() else { panic!("held") };
    let effects = replica.claimed(Claimed::Held { held: Held { session: OTHER_SESSION, ..held }, stat, adopted });
    assert!(is_removal(&effects, Generation(replica.zxid)));
}

#[test]
fn a_node_that_zookeeper_refuses_to_delete_is_given_back_and_tried_again_ever_less_often() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, None);
    assert!(is_removal(&replica.step(Input::Unset { stream: ONE, path: path() }), generation));
    let effects = removal_refused(&mut replica);
    assert!(is_unregistered(&effects));
    assert!(!replica.state.is_leaving(), "a drain does not wait for it");
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let due = replica.state.next_tick().unwrap() - replica.now;
        assert!(is_removal(&replica.after(due), generation));
        assert!(replica.state.is_leaving());
        let effects = removal_refused(&mut replica);
        assert!(effects.is_empty(), "it has room, and counts for its client: {effects:?}");
        assert_eq!(replica.account.used(Resource::Registrations), 1);
        pauses.push(due);
    }
    assert!(pauses[7] > 20 * pauses[0], "{pauses:?}");
    // Something happens to the node, which may be its end.
    replica.zxid += 1;
    let effects = replica.step(Input::Changed { path: path(), seen: deleted(Some(Zxid(replica.zxid))) });
    assert!(is_removal(&effects, generation));
    let effects = replica.step(Input::Removed { path: path() });
    assert!(effects.contains(&Effect::Release { path: path() }));
    assert_eq!(replica.account.used(Resource::Registrations), 0);
    replica.step(gone());
    assert!(replica.is_empty());
}

#[test]
fn a_node_that_zookeeper_refuses_to_delete_goes_with_its_session_or_is_registered_again() {
    let mut lost = Replica::new();
    lost.register(ONE, None);
    lost.step(gone());
    removal_refused(&mut lost);
    let effects = lost.step(sessions([OTHER_SESSION]));
    assert!(effects.contains(&Effect::Release { path: path() }), "{effects:?}");
    assert!(lost.is_empty());
    let mut again = Replica::new();
    let generation = again.register(ONE, None);
    again.step(gone());
    removal_refused(&mut again);
    again.open(TWO, None);
    let effects = again.set_with(TWO, Some(generation), false);
    assert_eq!(claims(&effects)[0].policy, Policy::Resume(generation));
    again.claimed(held(generation.0));
    assert!(again.after(Duration::from_secs(3600)).is_empty(), "it is held, and not to be removed");
    assert_eq!(again.account.used(Resource::Registrations), 1);
}
