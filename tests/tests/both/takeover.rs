//! Register, rules 6 and 7: who gets a path when several clients want it, on one replica and across replicas.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rollcall_proto::v1;
use rollcall_proto::v1::LostReason;
use rollcall_proto::v1::register_request::Request;
use rollcall_proto::v1::register_response::Response;
use rollcall_tests::arm::Setting;
use rollcall_tests::client::{Client, Registration, data, plain, resume, set, span, text, unset};
use rollcall_tests::process::Signal;
use rollcall_tests::wait::{SOON, check, eventually};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tonic::Code;

use super::ARM;

const SHORTEST: Duration = Duration::from_secs(1);
/// A ttl that ends during a takeover.
const RACED: Duration = Duration::from_secs(3);

fn exclusive(path: &str, value: v1::Value) -> Request {
    Request::Set(v1::SetRegistration {
        path: path.to_owned(),
        value: Some(value),
        exclusive: true,
        ..Default::default()
    })
}

/// The older holder loses the path for good, and its later requests do not affect the newer holder.
async fn the_newer_one_wins(s: &Setting, old_client: &Client, new_client: &Client) {
    let mut old = Registration::open(old_client).await;
    let mut new = Registration::open(new_client).await;
    let first = old.set("/taken", data(json!({"by": "old"}))).await;
    old.set("/kept", text("x")).await;
    let second = new.set("/taken", data(json!({"by": "new"}))).await;
    assert!(second.generation > first.generation);
    let lost = old.lost().await;
    assert_eq!((lost.path.as_str(), lost.generation), ("/taken", first.generation));
    assert_eq!(lost.reason(), LostReason::TakenOver);

    let unchanged = async || {
        let node = s.zk.get("/taken").await.unwrap();
        assert_eq!((node.stat.czxid, plain(node.json())), (second.generation, json!({"by": "new"})));
    };
    unchanged().await;
    old.send(unset("/taken")).await;
    assert_eq!(old.unregistered().await, "/taken");
    unchanged().await;
    drop(old);
    // When the stream's other registration is gone, the server has handled the end of the stream.
    s.zk.wait_gone("/kept").await;
    unchanged().await;
    drop(new);
    s.zk.wait_gone("/taken").await;
}

#[tokio::test]
async fn a_set_takes_over_from_another_stream() {
    let s = ARM.setting("takeover").await;
    the_newer_one_wins(&s, &s.client, &s.client).await;
}

#[tokio::test]
async fn a_set_takes_over_from_another_replica() {
    let s = ARM.setting("takeover").await;
    let other = s.another_server().await;
    the_newer_one_wins(&s, &s.client, &other.client().await).await;
}

#[tokio::test]
async fn a_set_takes_over_from_kazoo() {
    let s = ARM.setting("takeover").await;
    let owner = s.sandbox.zk().await;
    owner.create_ephemeral("/foreign", b"{}").await;
    let mut stream = Registration::open(&s.client).await;
    let answer = stream.set("/foreign", text("ours")).await;
    let node = s.zk.get("/foreign").await.unwrap();
    assert_ne!(node.stat.ephemeral_owner, owner.session());
    assert_eq!((node.text(), node.stat.czxid), ("ours", answer.generation));
    // The end of the older session does not remove the node, which has another owner.
    owner.create_ephemeral("/witness", b"").await;
    drop(owner);
    s.zk.wait_gone("/witness").await;
    assert_eq!(s.zk.get("/foreign").await.unwrap().stat.czxid, answer.generation);
}

#[tokio::test]
async fn nobody_who_watches_zookeeper_finds_a_moment_without_the_node() {
    let s = ARM.setting("takeover").await;
    let other = s.another_server().await;
    let clients = [s.client.clone(), other.client().await];
    let mut holder = Registration::open(&s.client).await;
    holder.set("/services/always", text("0")).await;
    let poll = async {
        loop {
            assert_eq!(s.zk.children("/services").await.unwrap(), ["always"]);
        }
    };
    let take_over = async {
        for turn in 1..=40 {
            let mut next = Registration::open(&clients[turn % 2]).await;
            next.set("/services/always", text(&turn.to_string())).await;
            assert_eq!(holder.lost().await.reason(), LostReason::TakenOver);
            holder = next;
        }
        holder
    };
    tokio::select! {
        _holder = take_over => {}
        () = poll => {}
    }
}

#[tokio::test]
async fn exclusive_is_rejected_for_as_long_as_the_other_lives() {
    let s = ARM.setting("takeover").await;
    let other = s.another_server().await;
    let mut old = Registration::open(&s.client).await;
    let first = old.set("/name", text("old")).await;
    for client in [s.client.clone(), other.client().await] {
        let mut new = Registration::open(&client).await;
        new.send(exclusive("/name", text("new"))).await;
        let rejected = new.rejected().await;
        assert_eq!((Code::from(rejected.code), rejected.reason.as_str()), (Code::AlreadyExists, "NAME_TAKEN"));
    }
    assert_eq!(s.zk.get("/name").await.unwrap().stat.czxid, first.generation);
    drop(old);
    s.zk.wait_gone("/name").await;
    let mut new = Registration::open(&s.client).await;
    new.send(exclusive("/name", text("new"))).await;
    new.registered().await;
}

#[tokio::test]
async fn exclusive_is_rejected_by_what_kazoo_registered_too() {
    let s = ARM.setting("takeover").await;
    let owner = s.sandbox.zk().await;
    owner.create_ephemeral("/name", b"theirs").await;
    let mut new = Registration::open(&s.client).await;
    new.send(exclusive("/name", text("new"))).await;
    assert_eq!(new.rejected().await.reason, "NAME_TAKEN");
    assert_eq!(s.zk.get("/name").await.unwrap().text(), "theirs");
}

#[tokio::test]
async fn a_durable_node_is_never_taken_over() {
    let s = ARM.setting("takeover").await;
    s.zk.create("/durable", b"x").await;
    let mut stream = Registration::open(&s.client).await;
    for request in [set("/durable", text("new")), exclusive("/durable", text("new"))] {
        stream.send(request).await;
        let rejected = stream.rejected().await;
        // With `exclusive` the answer may be that the name is taken.
        assert!(matches!(rejected.reason.as_str(), "NOT_EPHEMERAL" | "NAME_TAKEN"), "{rejected:?}");
    }
    assert_eq!(s.zk.get("/durable").await.unwrap().text(), "x");
}

#[tokio::test]
async fn many_streams_that_fight_for_one_path_leave_one_holder() {
    let s = ARM.setting("takeover").await;
    let other = s.another_server().await;
    let clients = [s.client.clone(), other.client().await];
    let mut streams = Vec::new();
    for number in 0..16 {
        let stream = Registration::open(&clients[number % 2]).await;
        streams.push(stream);
    }
    // All at once: every request is sent before any answer is read.
    for (number, stream) in streams.iter().enumerate() {
        stream.send(set("/fight", text(&number.to_string()))).await;
    }
    let mut generations = Vec::new();
    for stream in &mut streams {
        generations.push(stream.registered().await.generation);
    }
    let winner = *generations.iter().max().unwrap();
    let node = s.zk.get("/fight").await.unwrap();
    assert_eq!(node.stat.czxid, winner);
    let holder = generations.iter().position(|generation| *generation == winner).unwrap();
    assert_eq!(node.text(), holder.to_string());
    let holder = streams.remove(holder);
    for mut stream in streams {
        assert_eq!(stream.lost().await.reason(), LostReason::TakenOver);
    }
    // All other streams have ended, and have removed nothing.
    assert_eq!(s.zk.get("/fight").await.unwrap().stat.czxid, winner);
    drop(holder);
    s.zk.wait_gone("/fight").await;
}

#[tokio::test]
async fn a_replica_that_slept_through_a_takeover_does_not_remove_the_newer_one() {
    let mut s = ARM.setting("takeover").await;
    let other = s.another_server().await;
    let mut old = Registration::open(&s.client).await;
    old.set("/sleep", text("old")).await;
    old.set("/witness", text("x")).await;
    s.server.pause();
    let other_client = other.client().await;
    let mut new = Registration::open(&other_client).await;
    let second = new.set("/sleep", text("new")).await;
    // When it wakes up, it finds the end of the old stream.
    drop(old);
    s.server.resume();
    s.zk.wait_gone("/witness").await;
    let node = s.zk.get("/sleep").await.unwrap();
    assert_eq!((node.stat.czxid, node.text()), (second.generation, "new"));
}

#[tokio::test]
async fn the_end_of_the_older_replica_does_not_remove_the_newer_registration() {
    let mut s = ARM.setting_with("takeover", &["--drain", "0s"]).await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    let (mut old, mut new) = (Registration::open(&s.client).await, Registration::open(&other_client).await);
    old.set("/end", text("old")).await;
    let second = new.set("/end", text("new")).await;
    s.server.process().signal(Signal::TERM);
    eventually("the older replica ends", 3 * SOON, async || {
        check(s.server.process().exited().is_some(), || "it runs".to_owned())
    })
    .await;
    let node = s.zk.get("/end").await.unwrap();
    assert_eq!((node.stat.czxid, node.text()), (second.generation, "new"));
}

/// A fence that was moved for one path does not concern the other paths of its session: they are still put back.
#[tokio::test]
async fn what_was_not_taken_over_is_put_back_though_its_session_has_just_lost_others() {
    const PATHS: usize = 16;
    let s = ARM.setting("takeover").await;
    let other = s.another_server().await;
    let mut stream = Registration::open(&s.client).await;
    let mut sessions: HashMap<i64, Vec<String>> = HashMap::new();
    for index in 0..PATHS {
        let path = format!("/some/{index}");
        stream.set(&path, text("x")).await;
        sessions.entry(s.zk.get(&path).await.unwrap().stat.ephemeral_owner).or_default().push(path);
    }
    let mut taker = Registration::open(&other.client().await).await;
    for paths in sessions.values() {
        let [taken, deleted, ..] = paths.as_slice() else { panic!("one session has hardly anything: {sessions:?}") };
        taker.set(taken, text("y")).await;
        let before = s.zk.get(deleted).await.unwrap().stat.czxid;
        s.zk.delete(deleted).await;
        // In either order: one watch reports both changes, and each is looked at by itself.
        for _ in 0..2 {
            match stream.next().await.unwrap().expect("the stream stands") {
                Response::Lost(lost) => assert_eq!(&lost.path, taken),
                Response::Registered(back) => {
                    assert!(back.restored && &back.path == deleted && back.generation > before, "{back:?}");
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(s.zk.get(taken).await.unwrap().text(), "y");
    }
}

/// Rule 7 as a race: a stream ends on one replica just when another replica takes its paths over. Whichever comes
/// first, nothing of the newer stream is removed. Otherwise it would be told `restored`, or have lost its generation.
#[tokio::test]
async fn an_end_and_a_takeover_at_once_leave_the_newer_one_alone() {
    const ROUNDS: usize = 4;
    // So many that the end of the older stream takes a while: each node is read first, then deleted.
    const PATHS: usize = 1500;
    let s = ARM.setting("takeover").await;
    let other = s.another_server().await;
    let far = other.client().await;
    let paths: Vec<_> = (0..PATHS).map(|index| format!("/race/{index}")).collect();
    for _ in 0..ROUNDS {
        let mut old = Registration::open(&s.client).await;
        for path in &paths {
            old.send(set(path, text("old"))).await;
        }
        for _ in &paths {
            old.registered().await;
        }
        let mut new = Registration::open(&far).await;
        let mut old = Some(old);
        for (index, path) in paths.iter().enumerate() {
            if index == PATHS / 10 {
                old.take();
            }
            new.send(set(path, text("new"))).await;
        }
        let mut generations = HashMap::new();
        while generations.len() < PATHS {
            let registered = new.registered().await;
            assert!(!registered.restored, "the older end removed {}", registered.path);
            generations.insert(registered.path, registered.generation);
        }
        // When the replica has no streams, it has handled the end of the older one.
        s.server.wait_for_streams(0).await;
        for (path, generation) in &generations {
            assert_eq!(s.zk.get(path).await.map(|node| node.stat.czxid), Some(*generation), "{path}");
        }
        new.send(Request::Close(v1::CloseSession {})).await;
        for _ in 0..PATHS {
            new.unregistered().await;
        }
    }
}

/// The time at which a silent stream's path is taken over. It moves a little later after each takeover that came before
/// the end of the ttl, and a little earlier after each that did not. The steps grow when the same result repeats. So
/// both results occur again and again, however late the machine is.
#[derive(Debug)]
struct Aim(Mutex<Aimed>);

#[derive(Debug)]
struct Aimed {
    /// Time after the last message of the stream.
    after: Duration,
    came_first: Option<LostReason>,
    /// Number of times in a row that this came first.
    times: u32,
}

impl Aim {
    const STEP: Duration = Duration::from_micros(250);
    /// Number of equal results after which a step is twice as long.
    const MANY: u32 = 16;
    const LONGEST_STEP: Duration = Duration::from_millis(10);
    /// Time before the takeover from which the aim is not updated any more.
    const LAST: Duration = Duration::from_millis(3);

    fn new(after: Duration) -> Arc<Aim> {
        Arc::new(Aim(Mutex::new(Aimed { after, came_first: None, times: 0 })))
    }

    /// Waits until the time of the takeover.
    async fn wait(&self, last_message: Instant) {
        loop {
            let (at, now) = (last_message + self.0.lock().unwrap().after, Instant::now());
            if at <= now + Aim::LAST {
                return sleep_until(at).await;
            }
            sleep_until(now + (at - now) / 2).await;
        }
    }

    fn learn(&self, came_first: LostReason) {
        let mut aimed = self.0.lock().unwrap();
        aimed.times = if aimed.came_first.replace(came_first) == Some(came_first) { aimed.times + 1 } else { 0 };
        let step = (Aim::STEP + Aim::STEP * aimed.times / Aim::MANY).min(Aim::LONGEST_STEP);
        aimed.after = match came_first {
            LostReason::Expired => aimed.after.saturating_sub(step),
            _ => aimed.after + step,
        };
    }
}

/// Rule 7 as a race against the clock: a ttl ends on one replica just when another takes the path over. Each result
/// occurs in at least a fiftieth of all races, however busy the machine is.
#[tokio::test]
async fn a_ttl_that_ends_and_a_takeover_at_once_leave_the_newer_one_alone() {
    /// Number of concurrent races, and of races in each task. A busy machine has no more races at a time than any
    /// other.
    const AT_ONCE: u32 = 250;
    const EACH: u32 = 4;
    const RACES: usize = (AT_ONCE * EACH) as usize;
    let s = ARM.setting("takeover").await;
    let other = s.another_server().await;
    let after = life_of_a_silent_one(&s).await;
    let (takeovers, mut due) = mpsc::channel(RACES);
    let mut older = JoinSet::new();
    let (begun, aim) = (Instant::now(), Aim::new(after));
    for number in 0..AT_ONCE {
        let (client, takeovers, aim) = (s.client.clone(), takeovers.clone(), Arc::clone(&aim));
        older.spawn(async move {
            sleep_until(begun + RACED * number / AT_ONCE).await;
            let mut reasons = Vec::new();
            for race in 0..EACH {
                reasons.extend(lose(&client, &format!("/race/{number}-{race}"), &aim, &takeovers).await);
            }
            reasons
        });
    }
    drop(takeovers);
    let mut new = Registration::open(&other.client().await).await;
    let mut older_generations = HashMap::new();
    while let Some((path, generation)) = due.recv().await {
        new.send(set(&path, text("new"))).await;
        older_generations.insert(path, generation);
    }
    let reasons = older.join_all().await.concat();
    for came_first in [LostReason::Expired, LostReason::TakenOver] {
        let count = reasons.iter().filter(|reason| **reason == came_first).count();
        println!("{count} of {RACES} older ones were told {came_first:?}; expected after {after:?}, at last {aim:?}");
        assert!(count >= RACES / 50, "it is no race: {count} of {RACES} older ones were told {came_first:?}");
    }
    s.server.wait_for_streams(0).await;
    for _ in 0..older_generations.len() {
        let registered = new.registered().await;
        assert!(!registered.restored, "the older end removed {}", registered.path);
        assert!(registered.generation > older_generations[&registered.path], "{registered:?}");
        let standing = s.zk.get(&registered.path).await.map(|node| node.stat.czxid);
        assert_eq!(standing, Some(registered.generation), "{}", registered.path);
    }
}

/// The older client of a race: it registers, falls silent, has its path taken over at the right time, and returns the
/// result. On a machine that freezes for a while the ttl may end before the path is registered: that is no race.
async fn lose(client: &Client, path: &str, aim: &Aim, takeovers: &mpsc::Sender<(String, i64)>) -> Option<LostReason> {
    let mut old = Registration::open_with_ttl(client, RACED).await;
    let last_message = Instant::now();
    old.send(set(path, text("old"))).await;
    let Ok(Some(Response::Registered(first))) = old.next().await else { return None };
    aim.wait(last_message).await;
    takeovers.send((path.to_owned(), first.generation)).await.unwrap();
    let came_first = old.lost().await.reason();
    aim.learn(came_first);
    Some(came_first)
}

/// Time from the last message of a client with a ttl of [`RACED`] to the end of its registration, when the machine is
/// least late.
async fn life_of_a_silent_one(s: &Setting) -> Duration {
    let mut silent = JoinSet::new();
    for index in 0..9 {
        let (client, zk) = (s.client.clone(), s.zk.clone());
        silent.spawn(async move {
            let path = format!("/silent/{index}");
            let mut stream = Registration::open_with_ttl(&client, RACED).await;
            let last_message = Instant::now();
            stream.set(&path, text("x")).await;
            zk.ending(&path).await.at().await - last_message
        });
    }
    silent.join_all().await.into_iter().min().expect("there are some")
}

/// A replica that was stopped finds waiting requests of clients that have long moved to another. They keep their
/// registrations there.
#[tokio::test]
async fn what_waits_for_a_stopped_replica_takes_nothing_from_clients_that_went_on() {
    const PATHS: usize = 100;
    let mut s = ARM.setting("takeover").await;
    let other = s.another_server().await;
    let value = data(json!({ "created": "once", "by": "the same" }));
    let paths: Vec<_> = (0..PATHS).map(|index| format!("/gone-on/{index}")).collect();
    let mut first = Registration::open_with_ttl(&s.client, SHORTEST).await;
    let mut generations = Vec::new();
    for path in &paths {
        generations.push(first.set(path, value.clone()).await.generation);
    }
    s.server.pause();
    // Half of the requests come on the open stream, the others each on a stream opened while the replica is stopped.
    let mut waiting = JoinSet::new();
    for (index, (path, generation)) in paths.iter().zip(&generations).enumerate() {
        let request = if index % 3 == 0 { set(path, value.clone()) } else { resume(path, value.clone(), *generation) };
        if index % 2 == 0 {
            first.send(request).await;
        } else {
            let open = Request::Open(v1::OpenSession { ttl: Some(span(SHORTEST)), ..Default::default() });
            let client = s.client.clone();
            waiting.spawn(async move { Registration::open_with(&client, [open, request]).await });
        }
    }
    let mut new = Registration::open_with_ttl(&other.client().await, 60 * SHORTEST).await;
    let mut told = HashMap::new();
    for (path, generation) in paths.iter().zip(&generations) {
        let again = new.resume(path, value.clone(), *generation).await;
        assert!(again.adopted, "{again:?}");
        told.insert(path, again.generation);
    }
    waiting.shutdown().await;
    drop(first);
    s.server.resume();
    // A request sent after the replica wakes up is handled after those that waited.
    let mut witness = Registration::open_with_ttl(&s.server.client().await, SHORTEST).await;
    witness.set("/witness", text("x")).await;
    s.zk.wait_gone("/witness").await;
    new.set("/last", text("x")).await;
    for (path, generation) in told {
        assert_eq!(s.zk.get(path).await.map(|node| node.stat.czxid), Some(generation), "{path}");
    }
}
