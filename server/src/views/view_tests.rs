//! The rules of [`super::view`].

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::consistent_read::{Arrived, Cut};
use super::node::{NodeRead, Reads, ViewNode};
use super::purse::Purse;
use super::ring::Limits;
use super::scope::Scope;
use super::state::State;
use super::view::{BackendState, ReadPoint, Refusal, View};
use crate::budget::{Budget, Limits as Most, Resource};
use crate::error::Error;
use crate::types::{NodePath, Revision, Stat, Zxid};

const LIMITS: Limits = Limits { moments: 10, bytes: 10_000 };

fn scope() -> Scope {
    Scope { path: NodePath::trusted("/p"), recursive: false }
}

fn node(zxid: i64, num_children: i32) -> NodeRead {
    let stat = Stat { czxid: 1, mzxid: 1, pzxid: zxid, num_children, ..Stat::default() };
    NodeRead::Present(Arc::new(ViewNode::new(b"", stat)))
}

fn cut(node: NodeRead, reads: Reads, zxid: i64, barrier: u64) -> Cut {
    Cut { node, reads, zxid: Zxid(zxid), arrived: Arrived::default(), barrier }
}

fn children(count: usize, data: &[u8]) -> Reads {
    let entry = || Some(Arc::new(ViewNode::new(data, Stat { mzxid: 5, ..Stat::default() })));
    (0..count).map(|name| (format!("{name:06}").into(), entry())).collect()
}

#[test]
fn what_was_made_of_a_state_outlives_barriers_that_find_nothing_new() {
    let view = View::unbounded(scope(), LIMITS);
    let mut state = State::empty(scope().path, false);
    state.take_in(node(1, 0), Reads::new());
    view.show_whole_now(state, Zxid(1), 0);
    let read = || view.known().state.clone().unwrap();
    let first = read();
    for number in 1..10 {
        let barrier = view.ask();
        view.begin_barrier();
        assert!(view.show_now(cut(node(1, 0), Reads::new(), number, barrier)));
        assert!(view.known().is_done(barrier));
        assert!(Arc::ptr_eq(&first, &read()));
    }
    assert_eq!(view.known().zxid, Zxid(9));
    // The node has a child that the view does not know of.
    assert!(!view.show_now(cut(node(10, 1), Reads::new(), 10, 0)));
    let child = Some(Arc::new(ViewNode::new(b"", Stat::default())));
    assert!(view.show_now(cut(node(10, 1), HashMap::from([("a".into(), child)]), 10, 0)));
    assert!(!Arc::ptr_eq(&first, &read()));
}

#[test]
fn an_absence_that_is_read_again_is_the_same_until_its_date_moves() {
    let view = View::unbounded(scope(), LIMITS);
    view.show_whole_now(State::empty(scope().path, false), Zxid(3), 0);
    let mut known = Vec::new();
    for ancestor in [3, 3, 5] {
        assert!(view.show_now(cut(NodeRead::Absent(ancestor), Reads::new(), 6, 0)));
        known.push(view.known().state.clone().unwrap());
    }
    assert!(Arc::ptr_eq(&known[0], &known[1]));
    assert_eq!(known[2].revision, Revision(5));
}

#[test]
fn what_a_view_has_reached_stays_until_it_is_read_anew() {
    let view = View::unbounded(scope(), LIMITS);
    let read = |zxid| view.show_whole_now(State::empty(scope().path, false), Zxid(zxid), 0);
    let has_reached = |zxid| view.known().has_reached(Zxid(zxid));
    for (zxid, horizon) in [(5, 9), (7, 9), (2, 8)] {
        read(zxid);
        assert!(has_reached(zxid) && !has_reached(horizon), "whatever was known before");
        let elsewhere = Arrived { connection: 1, upto: 0 };
        assert!(!view.known().includes(elsewhere, Zxid(20)) && !has_reached(20));
        assert!(view.known().includes(Arrived::default(), Zxid(horizon)));
        view.suspend_now(BackendState::Suspended, None);
        assert!(has_reached(horizon) && !has_reached(horizon + 1));
    }
}

/// Polls a future once while no blocking thread is free, and then to its end. Before that the future must not have
/// ended, nor changed the known state.
async fn is_done_apart<T>(view: &View, work: impl Future<Output = T>) -> T {
    use futures_util::FutureExt as _;
    let (release, released) = std::sync::mpsc::channel::<()>();
    let occupied = tokio::task::spawn_blocking(move || released.recv());
    let (mut work, before) = (Box::pin(work), view.known().state.clone().unwrap());
    assert!((&mut work).now_or_never().is_none());
    assert!(Arc::ptr_eq(&before, view.known().state.as_ref().unwrap()), "no lock is held meanwhile, nothing is shown");
    drop(release);
    drop(occupied.await);
    work.await
}

#[test]
fn what_takes_long_leaves_the_thread_to_others() {
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let view = View::unbounded(scope(), LIMITS);
        let mut state = State::empty(scope().path, false);
        state.take_in(node(1, 0), Reads::new());
        view.show_whole_now(state.clone(), Zxid(1), 0);
        let count = || view.known().state.as_ref().unwrap().children.len();
        assert!(is_done_apart(&view, view.show(cut(node(5, 5000), children(5000, b"1"), 5, 0))).await.unwrap());
        assert_eq!(count(), 5000);
        is_done_apart(&view, view.show_whole(state, ReadPoint::at(Zxid(6), 0))).await.unwrap();
        assert_eq!(count(), 0);
        assert!(view.show(cut(node(7, 5000), children(5000, b"2"), 7, 0)).await.unwrap());
        assert!(is_done_apart(&view, view.show(cut(NodeRead::Absent(8), Reads::new(), 8, 0))).await.unwrap());
        assert_eq!(count(), 0);
    });
}

#[tokio::test]
async fn a_view_that_grows_beyond_its_share_is_refused_and_gives_everything_back() {
    let budget = Budget::new(Most { view_bytes: 100_000, ..Most::NONE }, Most::NONE);
    let view = View::new(scope(), LIMITS, Purse::new(&budget.account(), budget.common_account(), usize::MAX));
    let state = |count| {
        let mut state = State::empty(scope().path, false);
        state.take_in(node(1, count), children(usize::try_from(count).unwrap(), &[0; 800]));
        state
    };
    view.show_whole(state(10), ReadPoint::at(Zxid(5), 0)).await.unwrap();
    assert_eq!(budget.used(Resource::ViewBytes), 0, "small paths do not count");
    view.show_whole(state(100), ReadPoint::at(Zxid(5), 0)).await.unwrap();
    let held = budget.used(Resource::ViewBytes);
    assert!(held > 80_000, "{held}");
    let error = view.show(cut(node(5, 200), children(200, &[0; 800]), 6, 0)).await.unwrap_err();
    assert_eq!(error.reason(), "TOO_MANY_VIEW_BYTES");
    assert_eq!(budget.used(Resource::ViewBytes), held);
    view.refuse(Refusal { error, until: Some(Instant::now()) }).await;
    assert!(view.known().state.is_none());
    assert_eq!(budget.used(Resource::ViewBytes), 0);
    view.show_whole(state(10), ReadPoint::at(Zxid(7), 0)).await.unwrap();
    assert!(view.known().refusal.is_none());
}

#[tokio::test]
async fn a_reload_and_the_two_moments_of_the_ring_are_counted() {
    let budget = Budget::new(Most::NONE, Most::NONE);
    let view = View::new(scope(), LIMITS, Purse::new(&budget.account(), budget.common_account(), usize::MAX));
    let state = || {
        let mut state = State::empty(scope().path, false);
        state.take_in(node(1, 1), children(1, &[0; 1_000_000]));
        state
    };
    view.show_whole(state(), ReadPoint::at(Zxid(1), 0)).await.unwrap();
    let held = || budget.used(Resource::ViewBytes);
    let one = held();
    view.hold_for_load(state().bytes()).unwrap();
    assert!(held() > 2 * one, "both are there while one is loaded beside the other");
    assert!(view.show(cut(node(2, 1), children(1, &[1; 1_000_000]), 2, 0)).await.unwrap());
    assert!((2 * one..5 * one).contains(&held()), "{} for what was {one}: the ring keeps what was before", held());
    for zxid in 3..6 {
        assert!(view.show(cut(node(zxid, 1), children(1, &[u8::try_from(zxid).unwrap(); 9]), zxid, 0)).await.unwrap());
    }
    assert_eq!(held(), 0);
    // A view that is refused holds no memory.
    assert!(view.show(cut(node(7, 1), children(1, &[7; 1_000_000]), 7, 0)).await.unwrap());
    view.refuse(Refusal { error: Error::path_too_large(1), until: Some(Instant::now()) }).await;
    assert_eq!((held(), view.known().ring.excess(LIMITS.bytes)), (0, 0));
}

#[tokio::test]
async fn one_that_is_refused_for_want_of_room_is_looked_at_again_for_the_next_user() {
    let budget = Budget::new(Most::NONE, Most::NONE);
    let view = View::new(scope(), LIMITS, Purse::new(&budget.account(), budget.common_account(), 1000));
    let until = Instant::now() + std::time::Duration::from_secs(60);
    let is_refused = |view: &View| view.known().refusal.as_ref().unwrap().until.unwrap() > Instant::now();
    for (error, stays) in [(Error::path_too_large(1000), true), (Resource::ViewBytes.exceeded(5), false)] {
        let barrier = view.ask();
        view.refuse(Refusal { error, until: Some(until) }).await;
        assert!(view.known().is_done(barrier) && !view.owes_barrier(), "it is an answer to all who have asked");
        view.join(&budget.account()).unwrap();
        assert_eq!(is_refused(&view), stays);
    }
}
