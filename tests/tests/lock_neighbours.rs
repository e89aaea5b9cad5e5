//! Other programs with locks from before Rollcall, each in a process of its own: kazoo's Semaphore, in the version that
//! nd_service_registry was written for and in today's, and nd_service_registry. Tested in both directions: waiting in
//! order, the remains of a death, and different limits of holders.

use std::io::Write as _;
use std::path::Path;
use std::process::{ChildStdin, Command};
use std::time::Duration;

use rollcall_proto::v1::AcquireLockRequest;
use rollcall_tests::arm::{Arm, Setting};
use rollcall_tests::client::{describe, refused, span, zero};
use rollcall_tests::follow::{Locking, lock};
use rollcall_tests::process::{Process, scratch};
use rollcall_tests::wait::{SOON, check, eventually};
use tempfile::TempDir;
use tonic::Code;

/// A program that takes the same locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Neighbour {
    /// 2.6.1.
    OldKazoo,
    /// 2.11.
    Kazoo,
    NdServiceRegistry,
}

use Neighbour::{Kazoo, NdServiceRegistry, OldKazoo};

/// A process that takes a lock. Dropping kills it: its ZooKeeper session ends 4 s later.
struct Holder {
    process: Process,
    input: ChildStdin,
    _directory: TempDir,
}

impl Holder {
    fn start(s: &Setting, neighbour: Neighbour, path: &str, name: &str, limit: u32, seconds: Option<&str>) -> Holder {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let venv = if neighbour == OldKazoo { "judges/kazoo-2.6" } else { "venv" };
        let python = root.join("../.cache").join(venv).join("bin/python");
        assert!(python.exists(), "no {}: run tests/setup.sh python judges", python.display());
        let directory = scratch("neighbour");
        let mut command = Command::new(python);
        let program = if neighbour == NdServiceRegistry { "nd" } else { "kazoo" };
        command.arg("-u").arg(root.join("python/hold_lock.py")).args([&s.sandbox.hosts, path, name]);
        command.arg(limit.to_string()).arg(program).args(seconds).env("PYTHONDONTWRITEBYTECODE", "1");
        let (process, input) = Process::spawn_with_input(name, directory.path(), &mut command);
        Holder { process, input, _directory: directory }
    }

    /// Waits until its last output line begins with `word`.
    async fn says(&mut self, word: &str) -> String {
        eventually(&format!("a neighbour says {word}"), 2 * SOON, async || {
            let said = self.process.stdout();
            let last = said.lines().last().unwrap_or_default().to_owned();
            check(last.starts_with(word), || format!("{said:?} {}", self.process.stderr())).map(|()| last)
        })
        .await
    }

    async fn release(mut self) {
        self.input.write_all(b"\n").expect("it reads");
        self.says("released").await;
        assert!(self.process.wait(SOON).await.success());
    }
}

/// A neighbour that waits in the queue.
async fn waiter(s: &Setting, neighbour: Neighbour, path: &str, name: &str, limit: u32) -> Holder {
    let before = describe(&s.client, path).await.waiters.len();
    let mut waiter = Holder::start(s, neighbour, path, name, limit, None);
    waiter.says("waiting").await;
    eventually("the neighbour stands in the queue", SOON, async || {
        let waiters = describe(&s.client, path).await.waiters;
        check(waiters.len() == before + 1, || format!("{waiters:?}"))
    })
    .await;
    waiter
}

async fn waits_its_turn(neighbour: Neighbour) {
    let s = Arm::ZooKeeper.setting("neighbours").await;
    let (first, held) = Locking::take(&s.client, "/turn", "first").await;
    let mut second = waiter(&s, neighbour, "/turn", "second", 1).await;
    let (mut third, queued) = Locking::queue(&s.client, "/turn", "third").await;
    assert_eq!((queued.position, &queued.holders[..]), (2, &["first".to_owned()][..]));
    let mut fourth = waiter(&s, neighbour, "/turn", "fourth", 1).await;
    let described = describe(&s.client, "/turn").await;
    let waiters: Vec<_> = described.waiters.iter().map(|party| (party.name.as_str(), party.foreign)).collect();
    assert_eq!(waiters, [("second", true), ("third", false), ("fourth", true)]);
    drop(first);
    second.says("held").await;
    second.release().await;
    let third_held = third.held().await.unwrap();
    assert!(third_held.fencing_token > held.fencing_token);
    assert_eq!(fourth.says("waiting").await, "waiting");
    drop(third);
    fourth.says("held").await;
    fourth.release().await;
}

async fn leaves_nothing_when_killed(neighbour: Neighbour) {
    let s = Arm::ZooKeeper.setting("neighbours").await;
    let mut holder = Holder::start(&s, neighbour, "/killed", "holder", 1, None);
    holder.says("held").await;
    let dies_too = waiter(&s, neighbour, "/killed", "dies too", 1).await;
    let (mut ours, queued) = Locking::queue(&s.client, "/killed", "ours").await;
    assert_eq!((queued.position, &queued.holders[..]), (2, &["holder".to_owned()][..]));
    let mut last = waiter(&s, neighbour, "/killed", "last", 1).await;
    drop(dies_too);
    drop(holder);
    // The order holds when ZooKeeper has ended their sessions.
    ours.held().await.unwrap();
    assert_eq!(last.says("waiting").await, "waiting");
    drop(ours);
    last.says("held").await;
    last.release().await;
}

async fn is_told_that_the_limit_differs(neighbour: Neighbour) {
    let s = Arm::ZooKeeper.setting("neighbours").await;
    let limited = |path: &str, simultaneous| AcquireLockRequest { simultaneous, wait: zero(), ..lock(path, "ours") };
    let mut ours = Locking::start(&s.client, limited("/ours", 2)).await.unwrap();
    ours.held().await.unwrap();
    let mut differs = Holder::start(&s, neighbour, "/ours", "differs", 1, Some("5"));
    differs.says("refused").await;
    let mut agrees = Holder::start(&s, neighbour, "/ours", "agrees", 2, Some("20"));
    agrees.says("held").await;
    let busy = match Locking::start(&s.client, limited("/ours", 2)).await {
        Ok(mut stream) => stream.held().await,
        Err(status) => Err(status),
    };
    refused(busy, Code::Aborted, "LOCK_BUSY");
    agrees.release().await;
    let mut third = Locking::start(&s.client, limited("/ours", 2)).await.unwrap();
    third.held().await.unwrap();

    let mut theirs = Holder::start(&s, neighbour, "/theirs", "theirs", 3, None);
    theirs.says("held").await;
    let differs = match Locking::start(&s.client, limited("/theirs", 2)).await {
        Ok(mut stream) => stream.held().await,
        Err(status) => Err(status),
    };
    refused(differs, Code::FailedPrecondition, "LOCK_LIMIT_DIFFERS");
    Locking::start(&s.client, limited("/theirs", 3)).await.unwrap().held().await.unwrap();
    theirs.release().await;
}

async fn gives_up_in_time(neighbour: Neighbour) {
    let s = Arm::ZooKeeper.setting("neighbours").await;
    let (ours, _) = Locking::take(&s.client, "/busy", "ours").await;
    let mut theirs = Holder::start(&s, neighbour, "/busy", "theirs", 1, Some("0.5"));
    theirs.says("busy").await;
    drop(theirs);
    // None of its nodes may block the next client, at the latest once its session is over.
    let (mut next, _) = Locking::queue(&s.client, "/busy", "next").await;
    drop(ours);
    next.held().await.unwrap();
}

#[tokio::test]
async fn kazoo_waits_its_turn_among_us() {
    waits_its_turn(Kazoo).await;
}

#[tokio::test]
async fn old_kazoo_waits_its_turn_among_us() {
    waits_its_turn(OldKazoo).await;
}

#[tokio::test]
async fn kazoo_leaves_nothing_when_it_is_killed() {
    leaves_nothing_when_killed(Kazoo).await;
}

#[tokio::test]
async fn old_kazoo_leaves_nothing_when_it_is_killed() {
    leaves_nothing_when_killed(OldKazoo).await;
}

#[tokio::test]
async fn kazoo_and_we_agree_on_how_many_may_hold_a_lock() {
    is_told_that_the_limit_differs(Kazoo).await;
}

#[tokio::test]
async fn old_kazoo_and_we_agree_on_how_many_may_hold_a_lock() {
    is_told_that_the_limit_differs(OldKazoo).await;
}

#[tokio::test]
async fn nd_service_registry_and_we_agree_on_how_many_may_hold_a_lock() {
    is_told_that_the_limit_differs(NdServiceRegistry).await;
}

#[tokio::test]
async fn kazoo_that_has_waited_in_vain_is_in_nobodys_way() {
    gives_up_in_time(Kazoo).await;
}

#[tokio::test]
async fn old_kazoo_that_has_waited_in_vain_is_in_nobodys_way() {
    gives_up_in_time(OldKazoo).await;
}

#[tokio::test]
async fn nd_service_registry_that_has_tried_in_vain_is_in_nobodys_way() {
    gives_up_in_time(NdServiceRegistry).await;
}

#[tokio::test]
async fn nd_service_registry_gets_a_lock_that_is_free_and_we_wait_for_it() {
    let s = Arm::ZooKeeper.setting("neighbours").await;
    let (ours, held) = Locking::take(&s.client, "/nd", "ours").await;
    // It tries repeatedly, and does not wait in the queue.
    let mut theirs = Holder::start(&s, NdServiceRegistry, "/nd", "nd", 1, Some("40"));
    theirs.says("waiting").await;
    drop(ours);
    theirs.says("held").await;
    let (mut next, queued) = Locking::queue(&s.client, "/nd", "next").await;
    assert_eq!(queued.holders, ["nd"]);
    assert!(describe(&s.client, "/nd").await.holders[0].foreign);
    theirs.release().await;
    assert!(next.held().await.unwrap().fencing_token > held.fencing_token);
}

#[tokio::test]
async fn nd_service_registry_that_is_killed_leaves_the_lock_to_the_next() {
    let s = Arm::ZooKeeper.setting("neighbours").await;
    let mut theirs = Holder::start(&s, NdServiceRegistry, "/nd", "nd", 2, Some("20"));
    theirs.says("held").await;
    let request = || AcquireLockRequest { simultaneous: 2, ..lock("/nd", "ours") };
    let mut second = Locking::start(&s.client, request()).await.unwrap();
    second.held().await.unwrap();
    let mut third = Locking::start(&s.client, request()).await.unwrap();
    third.next().await.unwrap();
    drop(theirs);
    third.held().await.unwrap();
    assert_eq!(describe(&s.client, "/nd").await.holders.len(), 2);
}

#[tokio::test]
async fn a_dead_replicas_lock_with_a_ttl_is_freed_for_kazoo_though_nobody_else_waits() {
    let mut s = Arm::ZooKeeper.setting_with("neighbours", &["--session-timeout", "3s"]).await;
    // This replica gets no requests.
    let _other = s.another_server().await;
    let lasting = AcquireLockRequest { ttl: Some(span(Duration::from_secs(2))), ..lock("/kept", "ours") };
    let mut ours = Locking::start(&s.client, lasting).await.unwrap();
    ours.held().await.unwrap();
    let mut theirs = waiter(&s, Kazoo, "/kept", "theirs", 1).await;
    // Hung up first, so that nothing is connected when the replica dies.
    drop(ours);
    s.server.process().kill();
    theirs.says("held").await;
    assert_eq!(s.zk.children("/.rollcall/leases").await.unwrap(), Vec::<String>::new());
    theirs.release().await;
}
