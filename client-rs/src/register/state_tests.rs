use std::pin::Pin;
use std::task::Context;

use serde_json::json;

use super::*;
use crate::background::Background;

/// A state and the replica at the other end, advanced one step at a time.
#[derive(Default)]
struct Scene {
    state: State,
}

struct Held {
    key: Key,
    states: watch::Receiver<RegistrationState>,
}

impl Held {
    fn state(&self) -> RegistrationState {
        self.states.borrow().clone()
    }
}

fn terms(number: u32) -> Terms {
    let value = Compact::new(Value::from_data(json!({ "n": number })).unwrap()).unwrap();
    Terms { value, exclusive: false }
}

fn answer() -> (Waiter, oneshot::Receiver<Result<(), Error>>) {
    oneshot::channel()
}

impl Scene {
    fn add(&mut self, path: &str, number: u32) -> Held {
        let (key, states) = self.state.add(path.into(), terms(number), None).unwrap();
        Held { key, states }
    }

    /// All requests that are due, as `set PATH n=N [@GENERATION]` and `unset PATH`.
    fn said(&mut self) -> Vec<String> {
        let requests = std::iter::from_fn(|| self.state.next_request());
        requests
            .map(|request| match request.request.unwrap() {
                Request::Set(set) => {
                    let value = Value::from_proto(set.value).unwrap().to_json();
                    let at = set.generation.map(|generation| format!(" @{generation}")).unwrap_or_default();
                    format!("set {} n={}{at}", set.path, value["n"])
                }
                Request::Unset(unset) => format!("unset {}", unset.path),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn registered(&mut self, path: &str, generation: i64) {
        let registered = v1::Registered { path: path.to_owned(), generation, ..Default::default() };
        self.state.take(Response::Registered(registered));
    }

    fn unregistered(&mut self, path: &str) {
        self.state.take(Response::Unregistered(v1::Unregistered { path: path.to_owned() }));
    }

    fn lost(&mut self, path: &str, generation: i64, reason: v1::LostReason) {
        let lost = v1::Lost { path: path.to_owned(), generation, reason: reason.into() };
        self.state.take(Response::Lost(lost));
    }

    fn rejected(&mut self, path: &str, code: Code, reason: &str) {
        let (path, reason) = (path.to_owned(), reason.to_owned());
        self.state.take(Response::Rejected(v1::Rejected { path, code: code.into(), reason, message: String::new() }));
    }

    /// Adds a registration that is held on the present stream.
    fn standing(&mut self, path: &str, generation: i64) -> Held {
        let held = self.add(path, 1);
        assert_eq!(self.said(), [format!("set {path} n=1")]);
        self.registered(path, generation);
        held
    }
}

fn registered(generation: i64) -> RegistrationState {
    RegistrationState::Registered { generation }
}

#[test]
fn what_a_new_stream_has_not_taken_over_is_in_doubt_and_the_rest_is_not() {
    let mut scene = Scene::default();
    let (taken, left) = (scene.standing("/a", 1), scene.standing("/b", 2));
    scene.state.begin();
    let mut said = scene.said();
    said.sort();
    assert_eq!(said, ["set /a n=1 @1", "set /b n=1 @2"]);
    scene.registered("/a", 1);
    scene.state.doubt_the_rest();
    assert_eq!((taken.state(), left.state()), (registered(1), RegistrationState::WAITING));
    scene.registered("/b", 2);
    assert_eq!(left.state(), registered(2));
    scene.state.doubt();
    assert_eq!((taken.state(), left.state()), (RegistrationState::WAITING, RegistrationState::WAITING));
}

#[test]
fn a_registration_is_said_once_and_stands_when_it_is_answered() {
    let mut scene = Scene::default();
    let held = scene.standing("/a", 5);
    assert_eq!(held.state(), registered(5));
    assert!(scene.said().is_empty() && scene.state.is_settled());
}

#[test]
fn on_a_new_stream_everything_is_resumed_by_its_last_generation() {
    let mut scene = Scene::default();
    let (_a, _b) = (scene.standing("/a", 5), scene.standing("/b", 6));
    let restored = v1::Registered { path: "/a".to_owned(), generation: 9, restored: true, ..Default::default() };
    scene.state.take(Response::Registered(restored));
    let new = scene.add("/new", 3);
    scene.state.begin();
    let mut said = scene.said();
    said.sort_unstable();
    assert_eq!(said, ["set /a n=1 @9", "set /b n=1 @6", "set /new n=3"]);
    assert!(!scene.state.is_settled());
    for path in ["/a", "/b", "/new"] {
        scene.registered(path, 10);
    }
    assert!(scene.state.is_settled());
    assert_eq!(new.state(), registered(10));
}

#[test]
fn updates_go_one_at_a_time_and_the_last_one_stands() {
    let mut scene = Scene::default();
    let held = scene.standing("/a", 5);
    let mut answers = Vec::new();
    for number in [2, 3, 4] {
        let (waiter, answer) = answer();
        scene.state.update(&held.key, terms(number).value, waiter).unwrap();
        answers.push(answer);
        if number == 2 {
            assert_eq!(scene.said(), ["set /a n=2 @5"]);
        }
    }
    assert!(scene.said().is_empty(), "the first is not answered yet");
    scene.registered("/a", 5);
    assert!(answers[0].try_recv().is_err(), "what was answered is not what is wished now");
    assert_eq!(scene.said(), ["set /a n=4 @5"]);
    scene.registered("/a", 5);
    assert!(answers.iter_mut().all(|answer| answer.try_recv().unwrap().is_ok()));
}

#[test]
fn data_that_is_refused_leaves_what_stood() {
    let mut scene = Scene::default();
    let held = scene.standing("/a", 5);
    let (waiter, mut answer) = answer();
    scene.state.update(&held.key, terms(2).value, waiter).unwrap();
    scene.said();
    scene.rejected("/a", Code::InvalidArgument, "VALUE_TOO_LARGE");
    let error = answer.try_recv().unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(&crate::Reason::ValueTooLarge));
    assert_eq!(held.state(), registered(5));
    assert_eq!(scene.said(), ["set /a n=1 @5"]);
    scene.registered("/a", 5);
    scene.state.begin();
    assert_eq!(scene.said(), ["set /a n=1 @5"]);
}

#[test]
fn a_first_set_that_is_refused_is_over() {
    let mut scene = Scene::default();
    let (waiter, mut answer) = answer();
    let (_, states) = scene.state.add("/a".into(), terms(1), Some(waiter)).unwrap();
    scene.said();
    scene.rejected("/a", Code::AlreadyExists, "NAME_TAKEN");
    assert_eq!(answer.try_recv().unwrap().unwrap_err().reason(), Some(&crate::Reason::NameTaken));
    assert!(states.borrow().is_over() && scene.state.is_empty() && scene.state.is_settled());
}

#[test]
fn a_resume_that_a_replica_has_no_room_for_is_tried_again() {
    let mut scene = Scene::default();
    let held = scene.standing("/a", 5);
    scene.state.begin();
    scene.said();
    scene.rejected("/a", Code::ResourceExhausted, "TOO_MANY_REGISTRATIONS");
    let reason = Some(Reason::from("TOO_MANY_REGISTRATIONS"));
    assert_eq!(held.state(), RegistrationState::Pending { reason });
    assert!(scene.said().is_empty());
    scene.state.try_again();
    assert_eq!(scene.said(), ["set /a n=1 @5"]);
    scene.registered("/a", 5);
    assert_eq!(held.state(), registered(5));
}

#[test]
fn what_each_earlier_stream_may_have_taken_over_late_is_asked_for_once() {
    let mut scene = Scene::default();
    let held = scene.standing("/a", 5);
    // Two streams break before they have answered. The next answers at a replica where the first registration still
    // exists.
    for _ in 0..3 {
        scene.state.begin();
        assert_eq!(scene.said(), ["set /a n=1 @5"]);
    }
    scene.registered("/a", 5);
    let mut standing = 5;
    for later in [7, 9] {
        scene.lost("/a", standing, v1::LostReason::TakenOver);
        assert_eq!(held.state(), RegistrationState::WAITING);
        assert_eq!(scene.said(), [format!("set /a n=1 @{standing}")]);
        scene.registered("/a", later);
        assert_eq!(held.state(), registered(later));
        standing = later;
    }
    scene.lost("/a", standing, v1::LostReason::TakenOver);
    assert_eq!(held.state(), RegistrationState::Lost { reason: LostReason::TakenOver });
}

#[test]
fn what_was_taken_over_is_lost_and_not_fought_for() {
    let mut scene = Scene::default();
    let held = scene.standing("/a", 5);
    scene.lost("/a", 4, v1::LostReason::TakenOver);
    assert_eq!(held.state(), registered(5), "that was an earlier one");
    scene.lost("/a", 5, v1::LostReason::TakenOver);
    assert_eq!(held.state(), RegistrationState::Lost { reason: LostReason::TakenOver });
    scene.state.begin();
    assert!(scene.said().is_empty());
    let (waiter, _) = answer();
    assert!(matches!(scene.state.update(&held.key, terms(2).value, waiter), Err(Error::Lost { .. })));
}

#[test]
fn what_is_evicted_is_lost_and_does_not_come_back_by_itself() {
    let mut scene = Scene::default();
    let held = scene.standing("/a", 5);
    scene.lost("/a", 5, v1::LostReason::Evicted);
    assert_eq!(held.state(), RegistrationState::Lost { reason: LostReason::Evicted });
    // Evicted while its stream was broken: the request to resume it is refused.
    let resumed = scene.standing("/b", 5);
    scene.state.begin();
    assert_eq!(scene.said(), ["set /b n=1 @5"]);
    scene.rejected("/b", Code::FailedPrecondition, "EVICTED");
    assert_eq!(resumed.state(), RegistrationState::Lost { reason: LostReason::Evicted });
    assert!(scene.said().is_empty());
}

#[test]
fn what_expired_is_registered_again() {
    let mut scene = Scene::default();
    let held = scene.standing("/a", 5);
    scene.lost("/a", 5, v1::LostReason::Expired);
    assert_eq!(held.state(), RegistrationState::WAITING);
    scene.state.begin();
    assert_eq!(scene.said(), ["set /a n=1 @5"]);
    scene.registered("/a", 8);
    assert_eq!(held.state(), registered(8));
}

#[test]
fn removal_is_said_and_done_when_it_is_answered() {
    let mut scene = Scene::default();
    let held = scene.standing("/a", 5);
    let (waiter, mut gone) = answer();
    scene.state.remove(&held.key, Leaving::Awaited(waiter));
    assert_eq!(scene.said(), ["unset /a"]);
    assert!(gone.try_recv().is_err() && !scene.state.is_empty());
    scene.unregistered("/a");
    assert!(gone.try_recv().unwrap().is_ok() && scene.state.is_empty() && scene.state.is_settled());
    assert_eq!(held.state(), RegistrationState::Closed);
    let (waiter, mut gone) = answer();
    scene.state.remove(&held.key, Leaving::Awaited(waiter));
    assert!(gone.try_recv().unwrap().is_ok(), "twice is once");
}

#[test]
fn what_is_removed_while_it_is_set_is_unset_after_that() {
    let mut scene = Scene::default();
    let held = scene.add("/a", 1);
    assert_eq!(scene.said(), ["set /a n=1"]);
    scene.state.remove(&held.key, Leaving::Later(Background::default().begin()));
    assert!(scene.said().is_empty());
    scene.registered("/a", 5);
    assert_eq!(scene.said(), ["unset /a"]);
    assert!(!held.state().is_registered());
    scene.unregistered("/a");
    assert!(scene.state.is_empty());
}

#[test]
fn what_another_replica_still_holds_is_taken_from_it_before_it_is_removed() {
    let mut scene = Scene::default();
    let held = scene.standing("/a", 5);
    scene.state.remove(&held.key, Leaving::Later(Background::default().begin()));
    scene.state.begin();
    assert_eq!(scene.said(), ["set /a n=1 @5"]);
    scene.registered("/a", 6);
    assert_eq!(scene.said(), ["unset /a"]);
    scene.unregistered("/a");
    assert!(scene.state.is_empty());
}

#[test]
fn a_later_registration_of_the_path_takes_it_over() {
    let mut scene = Scene::default();
    let first = scene.standing("/a", 5);
    let second = scene.add("/a", 2);
    assert_eq!(first.state(), RegistrationState::Lost { reason: LostReason::TakenOver });
    // Dropping the first registration does not concern the second.
    scene.state.remove(&first.key, Leaving::Later(Background::default().begin()));
    assert_eq!(scene.said(), ["set /a n=2"]);
    scene.registered("/a", 5);
    assert_eq!(second.state(), registered(5));
}

#[test]
fn a_later_registration_waits_for_what_the_earlier_has_said() {
    let mut scene = Scene::default();
    let first = scene.add("/a", 1);
    scene.said();
    let second = scene.add("/a", 2);
    assert!(scene.said().is_empty());
    scene.registered("/a", 5);
    assert_eq!(second.state(), RegistrationState::WAITING);
    assert_eq!(scene.said(), ["set /a n=2 @5"]);
    scene.registered("/a", 5);
    assert_eq!(second.state(), registered(5));
    scene.state.remove(&second.key, Leaving::Later(Background::default().begin()));
    assert_eq!(scene.said(), ["unset /a"]);
    let third = scene.add("/a", 3);
    assert_eq!(second.state(), RegistrationState::Closed);
    scene.unregistered("/a");
    assert_eq!(scene.said(), ["set /a n=3"]);
    scene.registered("/a", 7);
    assert_eq!((third.state(), first.state().is_over()), (registered(7), true));
}

#[test]
fn what_waits_for_zookeeper_is_known_until_it_is_answered_or_said_elsewhere() {
    let mut scene = Scene::default();
    let held = scene.standing("/a", 1);
    let waits = scene.add("/b", 2);
    assert_eq!(scene.said(), ["set /b n=2"]);
    let pending = |scene: &mut Scene, path: &str, reason: &str| {
        scene.state.take(Response::Pending(v1::Pending { path: path.to_owned(), reason: reason.to_owned() }));
    };
    pending(&mut scene, "/b", "OTHER");
    assert!(!scene.state.is_without_zookeeper());
    pending(&mut scene, "/b", "BACKEND_UNAVAILABLE");
    assert!(scene.state.is_without_zookeeper() && held.state() == registered(1));
    assert_eq!(waits.state(), RegistrationState::Pending { reason: Some(Reason::BackendUnavailable) });
    scene.state.begin();
    assert!(!scene.state.is_without_zookeeper(), "the next replica has not said so");
    assert_eq!(scene.said().len(), 2);
    pending(&mut scene, "/b", "BACKEND_UNAVAILABLE");
    scene.registered("/a", 1);
    assert!(scene.state.is_without_zookeeper());
    scene.registered("/b", 2);
    assert!(!scene.state.is_without_zookeeper() && waits.state() == registered(2));
}

#[test]
fn doubt_is_told_and_so_is_what_others_have_written() {
    let mut scene = Scene::default();
    let held = scene.standing("/a", 5);
    let value = Some(Value::from("theirs").into_proto().unwrap());
    let overwritten = v1::Overwritten { path: "/a".to_owned(), value, stat: None };
    scene.state.take(Response::Overwritten(overwritten));
    let RegistrationState::Overwritten { generation: 5, value: Some(value) } = held.state() else { panic!("untold") };
    assert_eq!(*value, Value::from("theirs"));
    // The server has written the data again: the same generation, and no answer to a set.
    let right = v1::Registered { path: "/a".to_owned(), generation: 5, restored: true, ..Default::default() };
    scene.state.take(Response::Registered(right));
    assert_eq!(held.state(), RegistrationState::Registered { generation: 5 });
    scene.state.doubt();
    assert_eq!(held.state(), RegistrationState::WAITING);
}

#[test]
fn a_replica_that_refuses_the_stream_ends_only_what_never_stood() {
    let mut scene = Scene::default();
    let held = scene.standing("/a", 5);
    let (waiter, mut refused) = answer();
    let (_, new) = scene.state.add("/b".into(), terms(1), Some(waiter)).unwrap();
    scene.state.refuse(&Refusal::of(tonic::Status::unauthenticated("no token")));
    assert!(matches!(refused.try_recv().unwrap(), Err(Error::Refused(_))));
    assert!(new.borrow().is_over() && !held.state().is_over());
}

/// Records the state of a registration at the moment when a waiter is woken.
struct AtWake {
    states: watch::Receiver<RegistrationState>,
    seen: std::sync::OnceLock<RegistrationState>,
}

impl std::task::Wake for AtWake {
    fn wake(self: Arc<Self>) {
        let _ = self.seen.set(self.states.borrow().clone());
    }
}

/// The state that a waiter finds at the earliest moment after its answer.
fn state_at_answer(answers: impl FnOnce(&mut Scene)) -> RegistrationState {
    let mut scene = Scene::default();
    let (waiter, mut answer) = answer();
    let (_key, states) = scene.state.add("/a".into(), terms(1), Some(waiter)).unwrap();
    assert_eq!(scene.said(), ["set /a n=1"]);
    let wake = Arc::new(AtWake { states, seen: std::sync::OnceLock::new() });
    let waker = wake.clone().into();
    assert!(Pin::new(&mut answer).poll(&mut Context::from_waker(&waker)).is_pending());
    answers(&mut scene);
    wake.seen.get().expect("nobody was woken").clone()
}

#[test]
fn whoever_has_an_answer_finds_the_state_that_goes_with_it() {
    assert_eq!(state_at_answer(|scene| scene.registered("/a", 5)), registered(5));
    let state = state_at_answer(|scene| scene.rejected("/a", Code::AlreadyExists, "NAME_TAKEN"));
    assert!(matches!(state, RegistrationState::Lost { .. }), "{state:?}");
}
