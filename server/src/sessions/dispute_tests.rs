//! Registrations that another program overwrites, stepped by hand.

use std::time::Duration;

use super::claims::{Claimed, Held, Observed, Policy};
use super::effects::{Effect, Input};
use super::outbox::{Notice, RegistrationLostReason};
use super::stepped::*;
use super::times::{FIRST_REWRITE_PAUSE, LONGEST_REWRITE_PAUSE};
use crate::error::Error;
use crate::types::{Generation, SessionId, Zxid};

/// The registration of a stream, and another program that writes into it.
struct Scene {
    replica: Replica,
    generation: Generation,
}

impl Scene {
    fn new() -> Self {
        let mut replica = Replica::new();
        let generation = replica.register(ONE, None);
        Self { replica, generation }
    }

    /// The other program writes these data, and the node is read.
    fn written(&mut self, data: &'static [u8]) -> Vec<Effect> {
        self.replica.zxid += 1;
        let zxid = Some(Zxid(self.replica.zxid));
        let seen = crate::zk::NodeEvents { data_changed: true, zxid, ..Default::default() };
        self.replica.step(Input::Changed { path: path(), seen });
        let seen = standing(self.generation.0, self.replica.zxid, data);
        self.replica.step(Input::Verified { path: path(), seen })
    }

    /// Lets time pass until the data are put right; returns how long that was.
    fn waits(&mut self) -> Duration {
        let begun = self.replica.now;
        loop {
            let due = self.replica.state.next_tick().expect("they are put right once") - self.replica.now;
            let effects = self.replica.after(due);
            if let [claim] = claims(&effects)[..] {
                assert_eq!(claim.policy, Policy::PutRight(self.generation));
                assert_eq!(claim.content.bytes(), b"data".as_slice());
                return self.replica.now - begun;
            }
        }
    }

    /// ZooKeeper has written the holder's data.
    fn put_right(&mut self) -> Vec<Effect> {
        self.replica.zxid += 1;
        let Claimed::Held { held, stat, adopted } = held(self.generation.0) else { panic!("held") };
        let held = Held { written: Zxid(self.replica.zxid), ..held };
        self.replica.claimed(Claimed::Held { held, stat, adopted })
    }
}

fn is_overwritten(effects: &[Effect]) -> bool {
    matches!(notices(effects)[..], [(ONE, Notice::Overwritten { .. })])
}

fn is_restored(effects: &[Effect], by: Generation) -> bool {
    matches!(notices(effects)[..], [(ONE, Notice::Registered { generation, restored: true, .. })] if *generation == by)
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn what_another_overwrites_is_told_at_once_and_put_right_after_growing_pauses() {
    let mut scene = Scene::new();
    let mut waited = Vec::new();
    for _ in 0..12 {
        assert!(is_overwritten(&scene.written(b"theirs")));
        waited.push(scene.waits().as_secs());
        let effects = scene.put_right();
        assert!(is_restored(&effects, scene.generation), "{effects:?}");
    }
    assert_eq!(waited, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
    // Nothing more is done, and after a long quiet time the pauses begin anew.
    assert!(scene.replica.after(LONGEST_REWRITE_PAUSE - seconds(1)).is_empty());
    scene.written(b"theirs");
    assert_eq!(scene.waits(), LONGEST_REWRITE_PAUSE);
    scene.put_right();
    scene.replica.after(LONGEST_REWRITE_PAUSE);
    scene.written(b"theirs");
    assert_eq!(scene.waits(), FIRST_REWRITE_PAUSE);
}

#[test]
fn who_goes_on_writing_does_not_put_it_off_and_each_other_data_are_told() {
    let mut scene = Scene::new();
    scene.written(b"theirs");
    scene.replica.after(FIRST_REWRITE_PAUSE / 2);
    assert!(notices(&scene.written(b"theirs")).is_empty(), "the same again");
    assert!(is_overwritten(&scene.written(b"others")));
    assert_eq!(scene.waits(), FIRST_REWRITE_PAUSE / 2);
}

#[test]
fn data_that_another_puts_right_are_not_written() {
    let mut scene = Scene::new();
    scene.written(b"theirs");
    let effects = scene.written(b"data");
    assert!(is_restored(&effects, scene.generation), "{effects:?}");
    assert!(scene.replica.after(seconds(3600)).is_empty());
}

#[test]
fn what_zookeeper_refuses_is_tried_again_ever_less_often_and_told_to_nobody() {
    let mut scene = Scene::new();
    scene.written(b"theirs");
    let mut waited = Vec::new();
    for _ in 0..12 {
        waited.push(scene.waits().as_secs());
        let effects = scene.replica.claimed(Claimed::Refused(Error::NoAuth { path: path() }));
        assert!(notices(&effects).is_empty(), "{effects:?}");
        assert!(matches!(effects[..], [Effect::Verify { .. }]), "what stands is looked at: {effects:?}");
        let seen = standing(scene.generation.0, scene.replica.zxid, b"theirs");
        assert!(scene.replica.step(Input::Verified { path: path(), seen }).is_empty());
    }
    assert_eq!(waited[..3], [1, 2, 4]);
    assert_eq!(waited[10..], [600, 600]);
    scene.waits();
    assert!(is_restored(&scene.put_right(), scene.generation));
}

#[test]
fn an_outage_is_told_to_nobody_and_a_set_does_not_wait_for_it() {
    let mut scene = Scene::new();
    scene.written(b"theirs");
    scene.waits();
    let effects = scene.replica.claimed(Claimed::Unavailable { uncertain_create: None });
    assert!(notices(&effects).is_empty() && !scene.replica.state.is_waiting(), "{effects:?}");
    let seen = standing(scene.generation.0, scene.replica.zxid, b"theirs");
    scene.replica.step(Input::Verified { path: path(), seen });
    assert_eq!(scene.waits(), FIRST_REWRITE_PAUSE, "an outage is nobody's write");
    scene.replica.claimed(Claimed::Unavailable { uncertain_create: None });
    scene.replica.step(Input::Verified { path: path(), seen: None });
    // Data that the holder sets are written, with the data of before known, and then nothing is left to put right.
    let effects = scene.replica.set(ONE);
    assert_eq!(claims(&effects)[0].policy, Policy::Update(scene.generation));
    assert_eq!(claims(&effects)[0].first.as_deref(), Some(b"data".as_slice()));
    scene.replica.claimed(held(scene.generation.0));
    scene.replica.after(seconds(3600));
    assert!(scene.replica.state.next_tick().is_none());
}

/// Otherwise each of any number of such nodes would make a claim a second.
#[test]
fn what_can_not_be_read_is_not_put_right_before_it_can() {
    let mut scene = Scene::new();
    scene.written(b"theirs");
    scene.waits();
    let mut effects = scene.replica.claimed(Claimed::Unavailable { uncertain_create: None });
    let (mut looks, end) = (0, scene.replica.now + seconds(600));
    while scene.replica.now < end {
        assert!(claims(&effects).is_empty(), "after {looks} looks");
        if matches!(effects[..], [Effect::Verify { .. }]) {
            looks += 1;
            scene.replica.step(Input::Verified { path: path(), seen: None });
        }
        let due = scene.replica.state.next_tick().expect("it is looked at again") - scene.replica.now;
        effects = scene.replica.after(due);
    }
    assert!((15..40).contains(&looks), "{looks}");
    // ZooKeeper is back.
    assert!(matches!(effects[..], [Effect::Verify { .. }]), "{effects:?}");
    let seen = standing(scene.generation.0, scene.replica.zxid, b"theirs");
    let effects = scene.replica.step(Input::Verified { path: path(), seen });
    assert_eq!(claims(&effects).len(), 1, "{effects:?}");
}

#[test]
fn what_is_gone_or_taken_over_meanwhile_is_not_put_right() {
    let mut gone = Scene::new();
    gone.written(b"theirs");
    gone.waits();
    let effects = gone.replica.claimed(Claimed::Unavailable { uncertain_create: None });
    assert!(matches!(effects[..], [Effect::Verify { .. }]), "{effects:?}");
    let effects = gone.replica.step(Input::Verified { path: path(), seen: Some(Observed::Absent) });
    assert!(matches!(claims(&effects)[0].policy, Policy::PutBack { .. }));
    let outcome = gone.replica.held();
    assert!(is_restored(&gone.replica.claimed(outcome), Generation(gone.replica.zxid)));
    assert!(gone.replica.after(seconds(3600)).is_empty());

    let mut taken = Scene::new();
    taken.written(b"theirs");
    taken.waits();
    assert!(is_lost(&taken.replica.claimed(Claimed::TakenOver), ONE, RegistrationLostReason::TakenOver));
    assert!(taken.replica.after(seconds(3600)).is_empty());

    let mut given_back = Scene::new();
    given_back.written(b"theirs");
    assert!(is_removal(&given_back.replica.step(Input::Gone { stream: ONE }), given_back.generation));
    assert!(claims(&given_back.replica.after(seconds(3600))).is_empty());
}

#[test]
fn a_registration_that_was_overwritten_is_made_again_with_the_data_of_its_holder() {
    let mut scene = Scene::new();
    scene.written(b"theirs");
    scene.replica.step(sessions([SessionId(8)]));
    let effects = scene.replica.after(Duration::from_millis(300));
    assert_eq!(claims(&effects)[0].content.bytes(), b"data".as_slice());
}
