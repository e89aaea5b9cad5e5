//! Registrations that an operator evicts, stepped by hand.

use std::time::Duration;

use super::claims::{Claimed, Observed};
use super::effects::{Effect, Input};
use super::outbox::{Notice, RegistrationLostReason};
use super::stepped::*;
use crate::error::Error;
use crate::types::{Generation, Zxid};

fn evicted() -> Input {
    Input::Evicted { path: path() }
}

fn refused() -> Claimed {
    Claimed::Refused(Error::Evicted { path: path(), remaining: TTL })
}

fn is_evicted(effects: &[Effect]) -> bool {
    is_lost(effects, ONE, RegistrationLostReason::Evicted)
}

/// A registration whose node was deleted, read together with the record of an eviction.
fn deleted_with(record_written: impl Fn(Generation) -> Zxid) -> (Replica, Vec<Effect>) {
    let mut replica = Replica::new();
    let generation = replica.register(ONE, None);
    replica.step(Input::Changed { path: path(), seen: deleted(None) });
    let seen = Some(Observed::Evicted { written: record_written(generation) });
    let effects = replica.step(Input::Verified { path: path(), seen });
    (replica, effects)
}

#[test]
fn what_is_evicted_is_lost_and_taken_down() {
    for ttl in [None, Some(TTL)] {
        let mut replica = Replica::new();
        let generation = replica.register(ONE, ttl);
        let effects = replica.step(evicted());
        assert!(is_evicted(&effects) && is_removal(&effects, generation), "{effects:?}");
        assert!(replica.step(evicted()).is_empty(), "once");
        replica.step(Input::Removed { path: path() });
        replica.step(Input::Gone { stream: ONE });
        assert!(replica.is_empty(), "nothing of it is left");
    }
}

#[test]
fn what_is_evicted_while_it_is_claimed_is_lost_when_it_is_there() {
    let mut replica = Replica::new();
    replica.open(ONE, None);
    replica.set(ONE);
    assert!(replica.step(evicted()).is_empty(), "it is not there yet");
    let outcome = replica.held();
    let effects = replica.claimed(outcome);
    assert!(matches!(notices(&effects)[0], (ONE, Notice::Registered { .. })), "{effects:?}");
    assert!(is_evicted(&effects) && is_removal(&effects, Generation(replica.zxid)), "{effects:?}");
}

#[test]
fn the_holder_of_what_is_evicted_is_told_also_when_its_own_new_data_are_refused_first() {
    let mut replica = Replica::new();
    replica.register(ONE, None);
    replica.set(ONE);
    let effects = replica.claimed(refused());
    assert!(matches!(notices(&effects)[0], (ONE, Notice::Rejected { .. })), "{effects:?}");
    assert!(is_evicted(&effects), "{effects:?}");
}

#[test]
fn what_is_seen_deleted_with_the_record_is_not_put_back() {
    let (_, effects) = deleted_with(|generation| Zxid(generation.0 + 5));
    assert!(is_evicted(&effects) && claims(&effects).is_empty(), "{effects:?}");
}

#[test]
fn the_record_of_an_eviction_that_was_over_before_the_registration_is_none_of_it() {
    let (mut replica, effects) = deleted_with(|generation| Zxid(generation.0 - 5));
    assert!(!is_evicted(&effects) && claims(&effects).len() == 1, "it is put back: {effects:?}");
    // Unless another eviction is known by then.
    assert!(is_evicted(&replica.claimed(refused())));
}

#[test]
fn what_is_evicted_is_not_registered_again_when_its_session_is_lost() {
    let mut replica = Replica::new();
    replica.register(ONE, None);
    replica.step(sessions([OTHER_SESSION]));
    assert_eq!(claims(&replica.after(Duration::from_secs(1))).len(), 1);
    let effects = replica.claimed(refused());
    assert!(is_evicted(&effects), "{effects:?}");
}
