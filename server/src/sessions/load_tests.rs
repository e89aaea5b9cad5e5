//! The costs of clients that ask much, or wait long, for others and for themselves; stepped by hand.

use std::time::Duration;

use super::claims::{Claimed, Policy};
use super::effects::{Effect, Input, StreamId};
use super::outbox::{Notice, RegistrationLostReason};
use super::stepped::*;
use crate::budget::{Account, Limits, Resource};
use crate::error::Error;
use crate::types::{Generation, NodePath, Zxid};

#[test]
fn a_connection_over_its_limit_is_rejected_and_goes_on() {
    let limits = [
        (Limits { registrations: 3, ..Limits::NONE }, "TOO_MANY_REGISTRATIONS"),
        (Limits { path_bytes: 3 * "/0".len(), ..Limits::NONE }, "TOO_MANY_PATH_BYTES"),
        (Limits { bytes: 4000, ..Limits::NONE }, "TOO_MANY_BYTES"),
    ];
    for (limits, expected) in limits {
        let mut replica = Replica::limited(limits);
        for stream in [ONE, TWO] {
            replica.open(stream, None);
        }
        for index in 0..5 {
            let stream = if index % 2 == 0 { ONE } else { TWO };
            let effects = replica.set_path(stream, NodePath::trusted(format!("/{index}")), None, false);
            let rejected = matches!(&notices(&effects)[..], [(to, Notice::Rejected { error, .. })]
                if *to == stream && error.reason() == expected);
            assert_eq!(rejected, index >= 3, "{effects:?}");
        }
    }
}

#[test]
fn a_stream_whose_connection_has_no_memory_left_is_given_one_more_ttl() {
    let mut replica = Replica::limited(Limits { bytes: 100_000, ..Limits::NONE });
    let generation = replica.register(ONE, Some(TTL));
    let mut others = replica.account.share(Resource::Bytes);
    others.set(200_000);
    assert!(replica.after(TTL * 19 / 10).is_empty(), "what it says may not come");
    replica.step(Input::KeepAlive { stream: ONE });
    let unread = replica.heard[&ONE].arriving();
    assert!(replica.after(5 * TTL).is_empty(), "something of it is unread");
    drop(unread);
    replica.heard[&ONE].note(replica.now);
    assert!(replica.after(TTL * 19 / 10).is_empty());
    assert!(is_removal(&replica.after(TTL), generation), "it hangs");
    drop(others);
    replica.step(Input::Removed { path: path() });
    let generation = replica.register(TWO, Some(TTL));
    let mut others = replica.account.share(Resource::Bytes);
    others.set(200_000);
    replica.step(Input::Gone { stream: TWO });
    assert!(is_removal(&replica.after(2 * TTL), generation), "who has hung up says nothing");
}

/// Number of times that a node is read while it can't be, in this number of seconds.
fn looks(replica: &mut Replica, seconds: u64) -> usize {
    let (end, mut count) = (replica.now + Duration::from_secs(seconds), 0);
    while let Some(due) = replica.state.next_tick().filter(|due| *due <= end) {
        let pause = due.saturating_duration_since(replica.now);
        if matches!(replica.after(pause)[..], [Effect::Verify { .. }]) {
            count += 1;
            replica.step(Input::Verified { path: path(), seen: None });
        }
    }
    count
}

#[test]
fn what_can_not_be_read_is_looked_at_ever_less_often_until_something_has_changed() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, None).0;
    let resync = || Input::Resync { parent: path().parent().unwrap() };
    replica.step(resync());
    replica.step(Input::Verified { path: path(), seen: None });
    assert!((2..=4).contains(&looks(&mut replica, 2)), "a passing refusal is soon over");
    let count = looks(&mut replica, 600);
    assert!((15..=30).contains(&count), "{count}");
    assert!(matches!(replica.step(resync())[..], [Effect::Verify { .. }]), "there is a connection again");
    replica.step(Input::Verified { path: path(), seen: None });
    assert!(looks(&mut replica, 2) >= 2, "and the next outage is another");
    let due = replica.state.next_tick().unwrap() - replica.now;
    assert!(matches!(replica.after(due)[..], [Effect::Verify { .. }]));
    replica.step(Input::Verified { path: path(), seen: standing(generation, generation, b"data") });
    assert!(replica.after(Duration::from_secs(600)).is_empty());
}

/// The amounts that a connection holds of each resource that registrations take.
fn used(account: &Account) -> [usize; 3] {
    [Resource::Registrations, Resource::PathBytes, Resource::Bytes].map(|resource| account.used(resource))
}

#[test]
fn a_registration_takes_of_the_account_until_its_node_is_gone() {
    for ttl in [None, Some(TTL)] {
        let mut replica = Replica::new();
        let generation = replica.register(ONE, ttl);
        let registered = used(&replica.account);
        assert_eq!(registered[..2], [1, path().as_str().len()]);
        assert!(registered[2] > path().as_str().len() + 4);
        // Another value for the path takes no more, once it is written.
        replica.set(ONE);
        assert!(used(&replica.account)[2] > registered[2], "both values are kept meanwhile");
        replica.claimed(held(generation.0));
        assert_eq!(used(&replica.account), registered);
        let mut effects = replica.step(Input::Gone { stream: ONE });
        if ttl.is_some() {
            assert_eq!(used(&replica.account), registered, "it outlives its stream");
            effects = replica.after(2 * TTL);
        }
        assert!(is_removal(&effects, generation));
        assert_eq!(used(&replica.account)[..2], registered[..2], "the node is not gone yet");
        replica.step(Input::Removed { path: path() });
        assert_eq!(used(&replica.account), [0, 0, 0]);
    }
}

#[test]
fn what_is_refused_or_lost_takes_nothing_of_the_account() {
    let mut replica = Replica::new();
    replica.open(ONE, None);
    replica.set_with(ONE, None, true);
    replica.claimed(Claimed::Refused(Error::NameTaken { path: path() }));
    assert_eq!(used(&replica.account), [0, 0, 0]);
    replica.set_with(ONE, Some(Generation(5)), false);
    replica.claimed(Claimed::TakenOver);
    assert_eq!(used(&replica.account), [0, 0, 0]);
}

#[test]
fn what_is_taken_over_while_it_gets_new_data_and_is_taken_back_counts_all_the_time() {
    let mut replica = Replica::new();
    let first = replica.register(ONE, None);
    let registered = used(&replica.account);
    replica.set(ONE);
    let effects = replica.claimed(Claimed::TakenOver);
    assert!(is_lost(&effects, ONE, RegistrationLostReason::TakenOver));
    assert_eq!(claims(&effects)[0].policy, Policy::TakeOver);
    assert_eq!(used(&replica.account)[..2], registered[..2]);
    let outcome = replica.held();
    replica.claimed(outcome);
    assert!(Generation(replica.zxid) > first);
    assert_eq!(used(&replica.account), registered);
    replica.set(ONE);
    replica.claimed(Claimed::TakenOver);
    replica.claimed(Claimed::Refused(Error::NoAuth { path: path() }));
    assert_eq!(used(&replica.account), [0, 0, 0]);
}

#[test]
fn at_the_limit_a_registration_can_be_given_back() {
    let mut replica = Replica::limited(Limits { bytes: 3000, ..Limits::NONE });
    replica.register(ONE, None);
    // The unset waits behind this set, which takes the rest of the account.
    replica.set(ONE);
    let effects = replica.step(Input::Unset { stream: ONE, path: path() });
    assert!(notices(&effects).is_empty(), "{effects:?}");
    let outcome = replica.held();
    let effects = replica.claimed(outcome);
    assert!(is_removal(&effects, Generation(replica.zxid)));
}

#[test]
fn requests_that_wait_are_bounded_in_count_and_in_bytes() {
    for (limits, least) in [(Limits::NONE, 2000 - 1025), (Limits { bytes: 300_000, ..Limits::NONE }, 1700)] {
        let mut replica = Replica::limited(limits);
        replica.open(ONE, None);
        let rejected = (0..2000).filter(|_| {
            let effects = replica.set(ONE);
            matches!(notices(&effects)[..], [(ONE, Notice::Rejected { error: Error::LimitExceeded { .. }, .. })])
        });
        assert!(rejected.count() >= least);
    }
}

#[test]
fn unsets_that_wait_are_bounded() {
    let mut replica = Replica::new();
    replica.register(ONE, None);
    let answers: Vec<_> = (0..1100).flat_map(|_| replica.step(Input::Unset { stream: ONE, path: path() })).collect();
    let told = notices(&answers);
    assert!(told.iter().all(|(_, notice)| matches!(notice, Notice::Rejected { .. })));
    assert_eq!(told.len(), 1100 - 1 - 1024, "one is under way");
}

/// However busy the replica is with others: nothing here depends on what else has arrived.
#[test]
fn a_ttl_ends_in_time_whatever_others_send() {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, Some(TTL));
    replica.open(TWO, None);
    let end = replica.now + TTL + Duration::from_secs(1);
    let mut effects = Vec::new();
    while replica.now < end {
        replica.step(Input::Unset { stream: TWO, path: NodePath::trusted("/flood") });
        effects.extend(replica.after(Duration::from_millis(1)));
    }
    assert!(is_lost(&effects, ONE, RegistrationLostReason::Expired) && is_removal(&effects, generation));
}

/// So many streams that one look at each takes longer than a ttl may be in doubt.
#[test]
fn the_ttls_of_many_end_however_long_it_takes_to_look_at_each() {
    const STREAMS: u64 = 20_000;
    let mut replica = Replica::new();
    for stream in 1..=STREAMS {
        replica.open(StreamId(stream), Some(TTL));
    }
    replica.now += TTL;
    let mut rounds = 0;
    while !replica.state.streams.is_empty() {
        // One step deals with 256 at most.
        replica.now += Duration::from_millis(10);
        replica.step(Input::Tick);
        rounds += 1;
        assert!(rounds < 1000, "{} streams never end", replica.state.streams.len());
    }
}

#[test]
fn the_ttls_of_many_streams_with_many_paths_end_in_slices() {
    const STREAMS: u64 = 300;
    const PATHS: usize = 20;
    let mut replica = Replica::new();
    for stream in 1..=STREAMS {
        replica.open(StreamId(stream), Some(TTL));
        for index in 0..PATHS {
            let path = NodePath::trusted(format!("/many/{stream}-{index}"));
            replica.set_path(StreamId(stream), path.clone(), None, false);
            let outcome = replica.held();
            replica.step(Input::Claimed { path, outcome });
        }
    }
    replica.now += TTL;
    let mut removals = 0;
    while removals < usize::try_from(STREAMS).unwrap() * PATHS {
        replica.now = replica.state.next_tick().unwrap_or(replica.now).max(replica.now);
        let input = if replica.state.has_chores() { Input::GoOn } else { Input::Tick };
        let effects = replica.state.step(input, replica.now);
        assert!(effects.len() < 3 * 256, "a step did too much: {}", effects.len());
        removals += effects.iter().filter(|effect| matches!(effect, Effect::Remove { .. })).count();
    }
}

#[test]
fn a_message_counts_from_when_it_was_read_however_long_it_waits() {
    let mut replica = Replica::new();
    replica.register(ONE, Some(TTL));
    // The message was read, and waited long for its place in the queue.
    replica.now += TTL / 2;
    replica.heard[&ONE].note(replica.now);
    assert!(replica.after(TTL * 9 / 10).is_empty());
    let heard = replica.heard[&ONE].clone();
    let arriving = heard.arriving();
    assert!(replica.after(3 * TTL).is_empty(), "it still waits for it");
    drop(arriving);
    replica.heard[&ONE].note(replica.now);
    assert!(replica.after(TTL * 9 / 10).is_empty());
    assert!(is_lost(&replica.after(TTL), ONE, RegistrationLostReason::Expired));
}

#[test]
fn a_replica_that_is_stopped_again_before_it_has_read_what_came_reads_it_first() {
    let mut replica = Replica::new();
    replica.register(ONE, Some(TTL));
    for _ in 0..5 {
        assert!(replica.stopped_for(TTL).is_empty());
    }
    assert!(replica.after(Duration::from_millis(400)).is_empty());
    replica.step(Input::KeepAlive { stream: ONE });
    assert!(replica.after(TTL / 2).is_empty());
}

/// A refusal in each of the two ways in which a path is registered again.
#[test]
fn a_registration_that_can_not_be_put_back_is_tried_again_and_never_lost() {
    let is_retried = |replica: &mut Replica, effects: &[Effect]| {
        assert!(notices(effects).is_empty(), "{effects:?}");
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let refused = Claimed::Refused(Error::NoAuth { path: path() });
            assert!(replica.claimed(refused).is_empty());
            let due = replica.state.next_tick().unwrap() - replica.now;
            assert_eq!(claims(&replica.after(due)).len(), 1);
            pauses.push(due);
        }
        assert!(pauses[5] > 4 * pauses[0], "{pauses:?}");
        let outcome = replica.held();
        let effects = replica.claimed(outcome);
        assert!(matches!(notices(&effects)[..], [(ONE, Notice::Registered { restored: true, .. })]));
    };
    let mut put_back = Replica::new();
    put_back.register(ONE, None);
    let effects = put_back.deleted();
    is_retried(&mut put_back, &effects);
    let mut restored = Replica::new();
    restored.register(ONE, None);
    restored.step(sessions([OTHER_SESSION]));
    let effects = restored.after(Duration::from_millis(300));
    is_retried(&mut restored, &effects);
}

#[test]
fn a_stream_with_many_registrations_ends_in_slices() {
    const COUNT: usize = 10_000;
    let endings = [Input::Gone { stream: ONE }, Input::Close { stream: ONE }, Input::Tick];
    for (ending, ttl) in endings.into_iter().zip([None, None, Some(TTL)]) {
        let mut replica = Replica::new();
        replica.open(ONE, ttl);
        for index in 0..COUNT {
            let path = NodePath::trusted(format!("/many/{index}"));
            replica.set_path(ONE, path.clone(), None, false);
            let outcome = replica.held();
            replica.step(Input::Claimed { path, outcome });
        }
        replica.open(TWO, None);
        replica.now += TTL;
        replica.state.step(Input::Tick, replica.now);
        replica.now += Duration::from_millis(499);
        replica.state.step(Input::Tick, replica.now);
        replica.now += Duration::from_millis(51);
        let mut effects = replica.state.step(ending, replica.now);
        assert!(effects.len() < 3 * 256, "a step did too much");
        while replica.state.has_chores() {
            // The request of another client is served between two slices.
            let asked = replica.state.step(Input::KeepAlive { stream: TWO }, replica.now);
            assert_eq!(notices(&asked), [(TWO, &Notice::KeptAlive)]);
            let step = replica.state.step(Input::GoOn, replica.now);
            assert!(step.len() < 3 * 256, "a step did too much");
            effects.extend(step);
        }
        let removals = effects.iter().filter(|effect| matches!(effect, Effect::Remove { .. })).count();
        assert_eq!(removals, COUNT);
        for index in 0..COUNT {
            replica.step(Input::Removed { path: NodePath::trusted(format!("/many/{index}")) });
        }
        assert!(replica.state.registrations.capacity() < COUNT / 4, "the map of the registrations keeps its size");
        assert!(replica.state.registrations.is_empty());
        assert_eq!(used(&replica.account), [0, 0, 0]);
    }
}

#[test]
fn what_is_deleted_by_a_stranger_while_its_stream_is_taken_down_is_not_seen_again() {
    let mut replica = Replica::new();
    replica.open(ONE, None);
    let paths: Vec<_> = (0..1000).map(|index| NodePath::trusted(format!("/many/{index}"))).collect();
    for path in &paths {
        replica.set_path(ONE, path.clone(), None, false);
        let outcome = replica.held();
        replica.step(Input::Claimed { path: path.clone(), outcome });
    }
    let mut effects = replica.state.step(Input::Gone { stream: ONE }, replica.now);
    for path in &paths {
        let seen = deleted(Some(Zxid(replica.zxid + 1)));
        effects.extend(replica.state.step(Input::Changed { path: path.clone(), seen }, replica.now));
    }
    effects.extend(replica.step(Input::GoOn));
    assert!(claims(&effects).is_empty());
    for path in paths {
        assert!(claims(&replica.step(Input::Removed { path })).is_empty());
    }
    assert!(replica.is_empty());
}

/// The first of two sets of one stream, with another stream's between them, is refused. The second must not be
/// forgotten when the stream says goodbye.
#[test]
fn a_set_that_waits_behind_one_that_is_refused_is_answered_and_taken_down_with_its_stream() {
    let mut replica = Replica::new();
    replica.open(ONE, None);
    replica.open(TWO, None);
    for stream in [ONE, TWO, ONE] {
        replica.set(stream);
    }
    let refused = || Claimed::Refused(Error::NoAuth { path: path() });
    replica.claimed(refused());
    assert!(replica.step(Input::Close { stream: ONE }).is_empty());
    replica.claimed(refused());
    let outcome = replica.held();
    let effects = replica.claimed(outcome);
    assert!(matches!(notices(&effects)[..], [(ONE, Notice::Registered { .. })]));
    assert!(is_removal(&effects, Generation(replica.zxid)), "{effects:?}");
    let effects = replica.step(Input::Removed { path: path() });
    assert!(effects.contains(&Effect::Close { stream: ONE, end: Ok(()) }));
}

#[test]
fn what_waits_in_vain_is_tried_ever_less_often_and_at_once_when_something_has_changed() {
    let mut replica = Replica::new();
    replica.open(ONE, None);
    for index in 0..3000 {
        let path = NodePath::trusted(format!("/waits/{index}"));
        replica.set_path(ONE, path.clone(), None, false);
        replica.step(Input::Claimed { path, outcome: Claimed::Unavailable { uncertain_create: None } });
    }
    let mut tried = 0;
    let end = replica.now + Duration::from_secs(60);
    while replica.now < end {
        for effect in replica.after(Duration::from_millis(10)) {
            let Effect::Claim { path, .. } = effect else { continue };
            tried += 1;
            replica.step(Input::Claimed { path, outcome: Claimed::Unavailable { uncertain_create: None } });
        }
    }
    assert!((3000..60_000).contains(&tried), "{tried}");
    let mut effects = replica.step(Input::BackendUp);
    let mut done = 0;
    while !effects.is_empty() {
        for effect in std::mem::take(&mut effects) {
            let Effect::Claim { path, .. } = effect else { continue };
            done += 1;
            let outcome = replica.held();
            replica.step(Input::Claimed { path, outcome });
        }
        effects = replica.after(Duration::ZERO);
    }
    assert_eq!(done, 3000);
}
