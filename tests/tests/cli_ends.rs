//! The end of the command `rollcall`, and what remains: processes, locks, registrations.

use std::path::Path;

use rollcall_tests::client::{describe, release};
use rollcall_tests::follow::Locking;
use rollcall_tests::process::{Process, Signal, scratch};
use rollcall_tests::proxy::{Proxy, Traffic};
use rollcall_tests::shell::{Shell, built, done, runs, says, written};
use rollcall_tests::wait::{SOON, check, eventually};

#[tokio::test]
async fn nothing_that_a_check_has_started_outlives_it() {
    let shell = Shell::open().await;
    let hangs = "echo $$ >> pids; sleep 120 & echo $! >> pids; wait";
    let leaves = "sleep 120 & echo $! >> pids";
    for (check_command, pids) in [(hangs, 2), (leaves, 1)] {
        // Each command starts with an empty list.
        let list = shell.file("pids");
        drop(std::fs::remove_file(&list));
        let arguments = ["register", "/services/a:1", "--every", "300ms", "--check", check_command];
        let mut process = shell.start("check", &arguments);
        let known = || std::fs::read_to_string(&list).unwrap_or_default();
        eventually("three checks have run", SOON, async || check(known().lines().count() > 2 * pids, known)).await;
        let first: Vec<String> = known().lines().take(pids).map(str::to_owned).collect();
        let are_gone = |pids: &[String]| check(!pids.iter().any(|pid| runs(pid)), || format!("{pids:?}"));
        eventually("the first check is gone", SOON, async || are_gone(&first)).await;
        process.signal(Signal::TERM);
        assert_eq!(done(process).await.code, Some(0));
        let all: Vec<String> = known().lines().map(str::to_owned).collect();
        eventually("all checks are gone", SOON, async || are_gone(&all)).await;
    }
}

#[tokio::test]
async fn children_that_it_has_not_started_are_reaped() {
    let shell = Shell::open().await;
    let script = "sleep 0.3 & echo $! > orphan; exec \"$ROLLCALL\" register /services/a:1 -- \
                  sh -c 'while ! test -e end; do sleep 0.05; done; exit 7'";
    let process = Process::spawn("register", shell.directory.path(), &mut shell.script(script));
    let orphan = written(&shell.file("orphan")).await;
    // A zombie still has an entry.
    let entry = Path::new("/proc").join(orphan.trim());
    eventually("it is reaped", SOON, async || check(!entry.exists(), || orphan.clone())).await;
    std::fs::write(shell.file("end"), "").unwrap();
    assert_eq!(done(process).await.code, Some(7), "its own child is left to whoever waits for it");
}

#[tokio::test]
async fn signals_that_were_ignored_at_the_start_are_ignored() {
    let shell = Shell::open().await;
    let script = "trap '' HUP INT; exec \"$ROLLCALL\" register /services/a:1";
    let mut process = Process::spawn("register", shell.directory.path(), &mut shell.script(script));
    says(&process, "registered /services/a:1").await;
    process.signal(Signal::HUP);
    process.signal(Signal::INT);
    // It still runs, since it reports an event after the signals.
    shell.s.zk.set("/services/a:1", b"{\"n\":1}").await;
    says(&process, "somebody else has written into /services/a:1").await;
    process.signal(Signal::TERM);
    assert_eq!(done(process).await.code, Some(0));
}

#[tokio::test]
async fn a_job_runs_though_the_command_was_replaced_while_it_waited() {
    let shell = Shell::open().await;
    let (_holder, held) = Locking::take(&shell.s.client, "/jobs/a", "somebody").await;
    let program = shell.file("rollcall");
    std::fs::copy(built("rollcall"), &program).unwrap();
    let script = "exec ./rollcall lock /jobs/a --wait -- touch ran";
    let waiting = Process::spawn("waiting", shell.directory.path(), &mut shell.script(script));
    says(&waiting, "place 1 in the queue").await;
    std::fs::remove_file(&program).unwrap();
    std::fs::write(&program, "#!/bin/sh\nexit 9\n").unwrap();
    release(&shell.s.client, &held.lock_id).await.unwrap();
    let waited = done(waiting).await;
    assert_eq!(waited.code, Some(0), "{waited:?}");
    assert!(shell.file("ran").exists());
}

/// Checks that a lock has neither holders nor waiters.
async fn is_free(shell: &Shell, path: &str) {
    let lock = describe(&shell.s.client, path).await;
    assert!(lock.holders.is_empty() && lock.waiters.is_empty(), "{lock:?}");
}

#[tokio::test]
async fn a_lock_that_nobody_could_be_told_of_is_given_back() {
    let shell = Shell::open().await;
    for arguments in ["lock /jobs/a", "lock /jobs/a --leave"] {
        let script = format!("\"$ROLLCALL\" {arguments} > /dev/full");
        let full = done(Process::spawn("full", scratch("full").path(), &mut shell.script(&script))).await;
        assert_eq!(full.code, Some(1), "{full:?}");
        is_free(&shell, "/jobs/a").await;
    }
}

#[tokio::test]
async fn a_lock_that_is_granted_as_a_signal_comes_is_given_back() {
    let shell = Shell::open().await;
    let proxy = Proxy::start(shell.s.server.grpc()).await;
    let start = |name: &str, arguments: &[&str]| {
        let mut command = shell.command_at(&proxy.address().to_string(), arguments);
        Process::spawn(name, shell.directory.path(), &mut command)
    };
    let holds = async |path: &str| {
        eventually("the lock is granted", SOON, async || {
            let lock = describe(&shell.s.client, path).await;
            check(lock.holders.iter().any(|holder| holder.name == "me"), || format!("{lock:?}"))
        })
        .await;
    };
    // A waiting command knows its position, and does not receive the grant.
    let (_holder, held) = Locking::take(&shell.s.client, "/jobs/a", "somebody").await;
    let mut waiting = start("waiting", &["lock", "/jobs/a", "--name", "me", "--wait", "--timeout", "2s"]);
    says(&waiting, "place 1 in the queue").await;
    proxy.set_traffic(Traffic::StallAnswers);
    release(&shell.s.client, &held.lock_id).await.unwrap();
    holds("/jobs/a").await;
    waiting.signal(Signal::TERM);
    assert_eq!(done(waiting).await.code, Some(143));
    is_free(&shell, "/jobs/a").await;

    // A new command has received nothing at all.
    proxy.set_traffic(Traffic::Pass);
    proxy.stall_answers_after(b"/jobs/b");
    let mut coming = start("coming", &["lock", "/jobs/b", "--name", "me", "--timeout", "30s"]);
    holds("/jobs/b").await;
    says(&coming, "waiting for the lock /jobs/b").await;
    coming.signal(Signal::TERM);
    says(&coming, "waiting for the release of locks and registrations").await;
    proxy.set_traffic(Traffic::Pass);
    assert_eq!(done(coming).await.code, Some(143));
    is_free(&shell, "/jobs/b").await;
}
