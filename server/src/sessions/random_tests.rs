//! Random clients and random outcomes, against the rules that always hold.

use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::claims::{Claimed, Observed, Policy};
use super::effects::{Effect, Input, StreamId};
use super::outbox::Notice;
use super::stepped::*;
use crate::error::Error;
use crate::types::{Generation, Zxid};
use crate::zk::ErrorCode;

/// Random clients, random outcomes: each `set` gets one final answer while its stream is open, and when all streams are
/// gone nothing is left.
#[test]
fn every_set_is_answered_once_and_nothing_is_left_behind() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..300 {
        run_random_clients(&mut rng);
    }
}

fn run_random_clients(rng: &mut StdRng) {
    let mut replica = Replica::new();
    let mut owed: HashMap<StreamId, i64> = HashMap::new();
    let mut under_way: Vec<Effect> = Vec::new();
    let mut next_stream = 0;
    for round in 0..400 {
        let last_rounds = round > 300;
        let stream = StreamId(rng.random_range(0..=next_stream));
        let choice = if last_rounds { rng.random_range(5..9) } else { rng.random_range(0..9) };
        let effects = match choice {
            0 => {
                next_stream += 1;
                owed.insert(StreamId(next_stream), 0);
                replica.open(StreamId(next_stream), rng.random_bool(0.5).then_some(TTL));
                Vec::new()
            }
            1 | 2 if owed.contains_key(&stream) => {
                let generation = rng.random_bool(0.3).then(|| Generation(rng.random_range(100..=replica.zxid)));
                *owed.entry(stream).or_default() += 1;
                replica.set_with(stream, generation, rng.random_bool(0.2))
            }
            3 if owed.contains_key(&stream) => replica.step(Input::Unset { stream, path: path() }),
            4 => {
                replica.zxid += 1;
                replica.step(Input::Changed { path: path(), seen: deleted(Some(Zxid(replica.zxid))) })
            }
            5 if last_rounds || rng.random_bool(0.2) => {
                owed.remove(&stream);
                replica.step(Input::Gone { stream })
            }
            6 => replica.after(TTL / 4),
            7 => replica.step(Input::BackendUp),
            _ if under_way.is_empty() => Vec::new(),
            _ => {
                let effect = under_way.swap_remove(rng.random_range(0..under_way.len()));
                finish_randomly(&mut replica, effect, rng, last_rounds)
            }
        };
        settle(effects, &mut owed, &mut under_way);
    }
    while !under_way.is_empty() || replica.state.is_waiting() {
        let effects = replica.step(Input::BackendUp);
        settle(effects, &mut owed, &mut under_way);
        if let Some(effect) = under_way.pop() {
            let effects = finish_randomly(&mut replica, effect, rng, true);
            settle(effects, &mut owed, &mut under_way);
        }
    }
    assert!(owed.values().all(|owed| *owed == 0), "sets without an answer: {owed:?}");
    for stream in 0..=next_stream {
        owed.remove(&StreamId(stream));
        let effects = replica.step(Input::Gone { stream: StreamId(stream) });
        settle(effects, &mut owed, &mut under_way);
    }
    for _ in 0..100 {
        let effects = replica.after(TTL);
        settle(effects, &mut owed, &mut under_way);
        let effects = replica.step(Input::BackendUp);
        settle(effects, &mut owed, &mut under_way);
        while let Some(effect) = under_way.pop() {
            let effects = finish_randomly(&mut replica, effect, rng, true);
            settle(effects, &mut owed, &mut under_way);
        }
    }
    assert!(replica.is_empty(), "{:?}", replica.state);
}

/// Counts answers, and keeps operations.
fn settle(effects: Vec<Effect>, owed: &mut HashMap<StreamId, i64>, under_way: &mut Vec<Effect>) {
    for effect in effects {
        match &effect {
            Effect::Tell { stream, notice: Notice::Registered { restored: false, .. } | Notice::Rejected { .. } } => {
                if let Some(owed) = owed.get_mut(stream) {
                    *owed -= 1;
                    assert!(*owed >= 0, "an answer that nobody asked for");
                }
            }
            Effect::Claim { .. } | Effect::Remove { .. } | Effect::Verify { .. } => under_way.push(effect),
            Effect::Close { stream, .. } => drop(owed.remove(stream)),
            _ => {}
        }
        let busy = under_way.iter().filter(|effect| matches!(effect, Effect::Claim { .. } | Effect::Remove { .. }));
        assert!(busy.count() <= 1, "two operations on one path: {under_way:?}");
    }
}

fn finish_randomly(replica: &mut Replica, effect: Effect, rng: &mut StdRng, kindly: bool) -> Vec<Effect> {
    match effect {
        Effect::Claim { claim, .. } => {
            let outcome = match rng.random_range(0..10) {
                0 if !kindly => Claimed::Unavailable { uncertain_create: rng.random_bool(0.5).then_some(SESSION) },
                // A resume that finds a later incarnation is answered with `lost`, which is not counted here.
                1 if !matches!(claim.policy, Policy::TakeOver | Policy::Exclusive | Policy::Resume(_)) => {
                    Claimed::TakenOver
                }
                2 => Claimed::Refused(Error::NameTaken { path: path() }),
                _ => replica.held(),
            };
            replica.claimed(outcome)
        }
        Effect::Remove { .. } if !kindly && rng.random_bool(0.2) => {
            replica.step(Input::RemovalRefused { path: path(), code: ErrorCode::NoAuth })
        }
        Effect::Remove { .. } => replica.step(Input::Removed { path: path() }),
        Effect::Verify { .. } => {
            let seen = match rng.random_range(0..4) {
                0 => None,
                1 => Some(Observed::Absent),
                2 => standing(replica.zxid + 1, replica.zxid + 1, b"theirs"),
                _ => standing(100, 100, b"data"),
            };
            replica.step(Input::Verified { path: path(), seen })
        }
        other => panic!("no operation: {other:?}"),
    }
}
