//! The command `rollcall`, as an operator uses it, and the examples of the Rust client.

use std::process::{Command, ExitStatus};

use rollcall_tests::client::{Registration, data, describe, release};
use rollcall_tests::follow::{Locking, Watching};
use rollcall_tests::page;
use rollcall_tests::process::{Process, Signal, scratch};
use rollcall_tests::proxy::{Proxy, Traffic};
use rollcall_tests::server::Server;
use rollcall_tests::shell::{Shell, built, done, object, runs, says, written};
use rollcall_tests::wait::{SOON, check, eventually};
use rustix::process::{Pid, kill_process};
use serde_json::{Value as Json, json};

const NOT_ACQUIRED: i32 = 75;
const LOCK_LOST: i32 = 76;
const REGISTRATION_LOST: i32 = 77;
const NOT_WELL: i32 = 78;

#[tokio::test]
async fn nodes_are_written_read_and_deleted() {
    let shell = Shell::open().await;
    assert_eq!(shell.ok(&["put", "/config/limits", "--data", "open=10", "--data", "name=x y"]).await, "version 0\n");
    assert_eq!(shell.ok(&["put", "/config/motd", "--text", "hello"]).await, "version 0\n");
    assert_eq!(
        shell.ok(&["get", "/config"]).await,
        "/config:\n  children:\n  - /config/limits: {}\n  - /config/motd: {}\n"
    );
    let shown = object(&shell.ok(&["get", "/config", "--data", "-o", "json"]).await);
    let limits = &shown["/config"]["children"][0]["/config/limits"]["data"];
    assert_eq!((&limits["open"], &limits["name"]), (&json!(10), &json!("x y")));
    assert_eq!(shown["/config"]["children"][1]["/config/motd"]["data"], json!({"string_value": "hello"}));
    assert_eq!(shell.ok(&["get", "-r", "/", "-o", "dir"]).await, "/\n/config\n/config/limits\n/config/motd\n");
    let table = shell.ok(&["get", "/config", "-d", "-o", "table"]).await;
    assert!(table.starts_with("NAME    KIND     VERSION  AGE"), "{table}");
    assert!(table.lines().nth(2).unwrap().ends_with("hello"), "{table}");
    assert_eq!(shell.ok(&["tree", "/"]).await, "/\n└── config\n    ├── limits\n    └── motd\n");

    let wrong = shell.run(&["put", "/config/motd", "--text", "x", "--version", "7"]).await;
    assert_eq!(wrong.code, Some(1));
    assert!(wrong.stderr.starts_with("rollcall: /config/motd has version 0, not 7\n"), "{wrong:?}");
    assert_eq!(shell.run(&["delete", "/config"]).await.code, Some(1));
    shell.ok(&["delete", "/config", "-r"]).await;
    let gone = shell.run(&["get", "/config"]).await;
    assert_eq!((gone.code, gone.stderr.as_str()), (Some(3), "rollcall: no node at /config\n"));
    assert_eq!(shell.run(&["delete", "/config"]).await.code, Some(3));
}

#[tokio::test]
async fn what_others_write_is_not_obeyed_by_the_terminal() {
    const HOSTILE: &str = "\x1b[2J\x07\u{9b}31m\u{202e}\nroot";
    const HARMLESS: &str = r"\u001b[2J\u0007\u009b31m\u202e\nroot";
    let shell = Shell::open().await;
    let name = ["lock", "/deploy", "--name", HOSTILE];
    let holder = shell.start("holder", &name);
    says(&holder, "held token=").await;
    let waiter = shell.start("waiter", &[&name[..], &["--wait"]].concat());
    says(&waiter, &format!("place 1 in the queue, held by {HARMLESS}\n")).await;
    shell.ok(&["put", "/config/motd", "--text", HOSTILE]).await;
    shell.ok(&["put", "/config/data", "--data", &format!("a={HOSTILE}")]).await;
    let busy = shell.run(&["lock", "/deploy"]).await;
    let mut printed = vec![busy.stdout + &busy.stderr];
    for shown in [
        &["locks", "/deploy"][..],
        &["locks", "/deploy", "--json"],
        &["get", "/config", "--data"],
        &["get", "/config", "--data", "-o", "json"],
        &["get", "/config", "--data", "-o", "table"],
        &["tree", "/config", "--data"],
    ] {
        printed.push(shell.ok(shown).await);
    }
    for watch in [&["watch", "/config"][..], &["watch", "/config", "-o", "json"]] {
        let watching = shell.start("watch", watch);
        says(&watching, "root").await;
        printed.push(watching.stdout());
    }
    for text in &printed {
        let is_obeyed = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(text.contains(HARMLESS) && !text.contains(is_obeyed), "{text:?}");
    }
    let locks = object(&printed[2]);
    assert_eq!(locks["holders"][0]["name"], HOSTILE, "JSON still says the same");
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let shell = Shell::open().await;
    let nobody = rollcall_tests::zookeeper::free_address().to_string();
    let directory = scratch("run");
    let mut command = shell.command_at(&nobody, &["get", "/", "--timeout", "200ms"]);
    let lost = done(Process::spawn("rollcall", directory.path(), &mut command)).await;
    assert_eq!(lost.code, Some(69));
    assert!(lost.stderr.contains(&nobody) && lost.stderr.contains("--server"), "{lost:?}");
    assert_eq!(shell.run(&["get", "--nonsense"]).await.code, Some(2));
    assert_eq!(shell.run(&["put", "/a", "--data", "nonsense"]).await.code, Some(2));
    assert_eq!(shell.run(&["lock", "/a", "--", "/does/not/exist"]).await.code, Some(127));
    std::fs::write(shell.file("data"), "").unwrap();
    assert_eq!(shell.run(&["lock", "/a", "--", "./data"]).await.code, Some(126), "and it was given back before");
    let help = shell.ok(&["lock", "--help"]).await;
    assert!(help.contains("Examples:") && help.contains("ROLLCALL_FENCING_TOKEN"), "{help}");
    assert!(shell.ok(&["completions", "bash"]).await.contains("_rollcall"));
    assert!(shell.ok(&["--help"]).await.contains("Exit codes:"));
}

#[tokio::test]
async fn the_status_tells_who_serves() {
    let shell = Shell::open().await;
    let status = object(&shell.ok(&["status", "--json"]).await);
    assert_eq!((&status[0]["state"], &status[0]["backend"]["connected"]), (&json!("serving"), &json!(true)));
    assert!(status[0]["streams"]["watch"].is_u64(), "{status}");
    assert_eq!(status[0]["version"], env!("CARGO_PKG_VERSION"), "the server is of this workspace");
    let name = status[0]["name"].as_str().unwrap();
    assert!(name.ends_with(&format!(":{}", shell.s.server.grpc().port())), "{name}");
    let nobody = rollcall_tests::zookeeper::free_address().to_string();
    let both = format!("{},{nobody}", shell.s.server.grpc());
    let some = shell.run(&["status", "--server", &both, "--timeout", "300ms"]).await;
    assert_eq!(some.code, Some(NOT_WELL), "{}", some.stderr);
    assert!(some.stdout.contains("serving") && some.stdout.contains("unreachable"), "{}", some.stdout);
    let alone = shell.run(&["status", "--server", &nobody, "--timeout", "300ms"]).await;
    assert_eq!(alone.code, Some(69), "a dead replica has no figures of another: {}", alone.stdout);
    assert!(!alone.stdout.contains("serving"), "{}", alone.stdout);
}

#[tokio::test]
async fn the_status_of_a_replica_that_is_not_well_is_a_code_of_its_own() {
    let shell = Shell::open().await;
    let zookeeper = rollcall_tests::zookeeper::free_address().to_string();
    let away = Server::launch(&zookeeper, &[]).await;
    let told = eventually("it tells why", SOON, async || {
        let told = shell.run(&["status", "--server", &away.grpc().to_string()]).await;
        check(told.stdout.contains("refused"), || told.stdout.clone()).map(|()| told)
    })
    .await;
    assert_eq!(told.code, Some(NOT_WELL), "{}", told.stderr);
    assert!(told.stdout.contains("not ready") && told.stdout.contains(&zookeeper), "{}", told.stdout);

    let mut draining = Server::start_with(&shell.s.sandbox.hosts, &["--drain", "500s", "--name", "leaving"]).await;
    let client = draining.client().await;
    let _watching = Watching::start(&client, "/").await;
    draining.process().signal(Signal::TERM);
    eventually("it drains, and says for how long", SOON, async || {
        let told = shell.run(&["status", "--server", &draining.grpc().to_string()]).await;
        let is_told = told.stdout.contains("draining") && told.stdout.contains("it drains, for ");
        check(told.code == Some(NOT_WELL) && is_told, || told.stdout.clone())
    })
    .await;
    let told = shell.ok(&["status"]).await;
    assert!(told.contains("not asked, but in zookeeper: leaving (sessions 0x"), "{told}");
}

#[tokio::test]
async fn tables_name_the_replica_of_each() {
    let shell = Shell::open().await;
    let other = Server::start_with(&shell.s.sandbox.hosts, &["--name", "other one"]).await;
    let client = other.client().await;
    let mut registration = Registration::open(&client).await;
    registration.set("/services/a", data(json!({}))).await;
    let (_holding, _) = Locking::take(&client, "/lock", "me").await;
    for table in [&["get", "/services", "-o", "table"][..], &["locks"]] {
        eventually("the replica is named", SOON, async || {
            let told = shell.ok(table).await;
            check(told.contains("REPLICA") && told.contains("AGE") && told.contains("other one"), || told)
        })
        .await;
    }
}

#[tokio::test]
async fn a_watch_prints_and_runs_what_it_is_told_to() {
    let shell = Shell::open().await;
    let zk = &shell.s.zk;
    zk.create("/w", b"").await;
    let text = shell.start("text", &["watch", "/w"]);
    let lines = shell.start("json", &["watch", "/w", "-o", "json"]);
    let exec = shell.start("exec", &["watch", "/w", "--exec", "cat >> seen; exit 3"]);
    says(&text, "= 0 children").await;
    says(&lines, "snapshot").await;
    says(&exec, "--exec: exit status: 3").await;
    zk.create("/w/a", b"{\"n\":1}").await;
    says(&text, "+ a {\"n\":1}").await;
    zk.set("/w/a", b"{\"n\":2}").await;
    says(&text, "~ a {\"n\":2}").await;
    zk.delete("/w/a").await;
    says(&text, "- a").await;
    says(&lines, "removed").await;
    let events: Vec<Json> = lines.stdout().lines().map(object).collect();
    assert_eq!(events[0]["children"], json!({}));
    let change = events[1]["changes"][0].clone();
    assert_eq!(change, json!({"kind": "added", "name": "a", "data": {"n": 1}}));
    eventually("the last state was told", SOON, async || {
        let seen = std::fs::read_to_string(shell.file("seen")).unwrap_or_default();
        let last = seen.lines().last().map(object).unwrap_or_default();
        let removed = last["changes"].as_array().is_some_and(|changes| changes.iter().any(|c| c["kind"] == "removed"));
        check(removed && last["children"] == json!({}), || seen)
    })
    .await;
}

#[tokio::test]
async fn a_registration_lasts_as_long_as_the_command() {
    let shell = Shell::open().await;
    let mut process = shell.start("register", &["register", "/services/a:1", "--data", "port=1"]);
    says(&process, "registered /services/a:1").await;
    assert_eq!(shell.s.zk.get("/services/a:1").await.unwrap().json()["port"], 1);
    process.signal(Signal::TERM);
    assert_eq!(done(process).await.code, Some(0));
    assert!(!shell.s.zk.exists("/services/a:1").await);

    let process = shell.start("again", &["register", "/services/a:1"]);
    says(&process, "registered /services/a:1").await;
    let refused = shell.run(&["register", "/services/a:1", "--exclusive"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.starts_with("rollcall: /services/a:1 is registered by another program\n  without --exclusive"),
        "{refused:?}"
    );
    let mut other = Registration::open(&shell.s.client).await;
    other.set("/services/a:1", data(json!({"other": 1}))).await;
    let lost = done(process).await;
    assert_eq!(lost.code, Some(REGISTRATION_LOST), "{lost:?}");
}

#[tokio::test]
async fn a_service_is_registered_while_it_runs() {
    let shell = Shell::open().await;
    let script = "trap 'echo told to end; exit 7' TERM; trap 'echo user signal' USR1; echo up; \
                  while :; do sleep 0.05; done";
    let mut process = shell.start("service", &["register", "/services/a:1", "--", "sh", "-c", script]);
    says(&process, "registered /services/a:1").await;
    says(&process, "up").await;
    process.signal(Signal::USR1);
    says(&process, "user signal").await;
    assert!(shell.s.zk.exists("/services/a:1").await);
    process.signal(Signal::TERM);
    let ended = done(process).await;
    assert_eq!(ended.code, Some(7), "{ended:?}");
    assert!(ended.stdout.contains("told to end"), "{ended:?}");
    assert!(!shell.s.zk.exists("/services/a:1").await);
    let by_itself = shell.run(&["register", "/services/b:1", "--", "sh", "-c", "exit 5"]).await;
    assert_eq!(by_itself.code, Some(5));
    let by_signal = shell.run(&["register", "/services/b:1", "--", "sh", "-c", "kill -9 $$"]).await;
    assert_eq!(by_signal.code, Some(137));
    assert!(!shell.s.zk.exists("/services/b:1").await);
}

#[tokio::test]
async fn a_check_decides_who_is_registered() {
    let shell = Shell::open().await;
    let check = ["--check", "test -e well", "--every", "100ms", "--rise", "2", "--fall", "2"];
    let mut process = shell.start("check", &[&["register", "/services/a:1"], &check[..]].concat());
    std::fs::write(shell.file("well"), "").unwrap();
    says(&process, "registered /services/a:1").await;
    std::fs::remove_file(shell.file("well")).unwrap();
    says(&process, "the check fails").await;
    shell.s.zk.wait_gone("/services/a:1").await;
    std::fs::write(shell.file("well"), "").unwrap();
    shell.s.zk.wait_for("/services/a:1", "the registration", |_| true).await;
    process.signal(Signal::TERM);
    assert_eq!(done(process).await.code, Some(0));
    assert!(!shell.s.zk.exists("/services/a:1").await);
}

#[tokio::test]
async fn a_job_runs_while_it_holds_the_lock() {
    let shell = Shell::open().await;
    let ran = shell.run(&[
        "lock",
        "/jobs/a",
        "--",
        "sh",
        "-c",
        "echo token $ROLLCALL_FENCING_TOKEN on $ROLLCALL_LOCK; exit 4",
    ]);
    let ran = ran.await;
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(ran.stdout.starts_with("token ") && ran.stdout.ends_with("on /jobs/a\n"), "{ran:?}");
    let (holder, held) = Locking::take(&shell.s.client, "/jobs/a", "somebody").await;
    let busy = shell.run(&["lock", "/jobs/a", "--", "touch", "ran"]).await;
    assert_eq!(busy.code, Some(NOT_ACQUIRED));
    assert!(busy.stderr.contains("held by somebody"), "{busy:?}");
    let late = shell.run(&["lock", "/jobs/a", "--wait=100ms", "--", "touch", "ran"]).await;
    assert_eq!(late.code, Some(NOT_ACQUIRED));
    let waiting = shell.start("waiting", &["lock", "/jobs/a", "--wait", "--name", "me", "--", "touch", "ran"]);
    says(&waiting, "place 1 in the queue, held by somebody").await;
    let locks = shell.ok(&["locks", "/jobs/a"]).await;
    assert!(locks.contains("holds") && locks.contains("waits 1") && locks.contains("me"), "{locks}");
    assert!(!shell.file("ran").exists());
    release(&shell.s.client, &held.lock_id).await.unwrap();
    drop(holder);
    assert_eq!(done(waiting).await.code, Some(0));
    assert!(shell.file("ran").exists());
    assert_eq!(shell.ok(&["locks", "/jobs/a"]).await, "/jobs/a: nobody holds it, nobody waits\n");

    let differs = shell.run(&["lock", "/jobs/a", "-n", "2", "--", "true"]).await;
    assert_eq!(differs.code, Some(1));
    assert!(differs.stderr.contains("-n"), "{differs:?}");
    let id = shell.ok(&["lock", "/jobs/a", "--leave"]).await;
    assert_eq!(shell.run(&["lock", "/jobs/a", "--", "true"]).await.code, Some(NOT_ACQUIRED));
    shell.ok(&["unlock", id.trim()]).await;
    assert_eq!(shell.run(&["unlock", id.trim()]).await.code, Some(1));
    shell.ok(&["lock", "/jobs/a", "--", "true"]).await;

    let mut holding = shell.start("holding", &["lock", "/jobs/a"]);
    says(&holding, "held token=").await;
    holding.signal(Signal::TERM);
    assert_eq!(done(holding).await.code, Some(0));
    shell.ok(&["lock", "/jobs/a", "--", "true"]).await;
}

/// A job that ignores SIGTERM, as does its child. It ends by itself if a test fails to end it.
const STUBBORN: &str = "trap '' TERM; echo $$ > leader; sh -c 'trap \"\" TERM; echo $$ > member; exec sleep 120' & \
                        for i in $(seq 2400); do sleep 0.05; done";

/// The process group of a stubborn job. Dropping kills the processes that are left.
struct Group {
    leader: String,
    member: String,
}

impl Group {
    fn is_alive(&self) -> bool {
        runs(&self.leader) || runs(&self.member)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for pid in [&self.leader, &self.member] {
            let pid = pid.trim().parse().ok().and_then(Pid::from_raw).filter(|_| runs(pid));
            if let Some(pid) = pid {
                // It may have ended meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// A job that ends at SIGTERM, and leaves behind a child that does not.
const CARELESS: &str = "sh -c 'trap \"\" TERM; echo $$ > member; exec sleep 120' & echo $$ > leader; wait";

/// Starts the stubborn job under a lock with a short ttl, at `server`.
async fn stubborn(shell: &Shell, server: &str) -> (Process, Group) {
    job(shell, server, STUBBORN).await
}

async fn job(shell: &Shell, server: &str, script: &str) -> (Process, Group) {
    let arguments = ["lock", "/jobs/a", "--ttl", "3s", "--", "sh", "-c", script];
    let process = Process::spawn("stubborn", shell.directory.path(), &mut shell.command_at(server, &arguments));
    let (leader, member) = (written(&shell.file("leader")).await, written(&shell.file("member")).await);
    (process, Group { leader, member })
}

/// Checks that none of the processes is left when the next client gets the lock.
async fn nobody_is_left(shell: &Shell, group: &Group) {
    let (_lock, _) = Locking::queue(&shell.s.client, "/jobs/a", "next").await;
    eventually("the next one has the lock", 3 * SOON, async || {
        let is_alive = group.is_alive();
        let description = describe(&shell.s.client, "/jobs/a").await;
        let is_next = description.holders.iter().any(|holder| holder.name == "next");
        assert!(!is_next || !group.is_alive(), "the next one holds the lock, and the job still runs");
        check(is_next, || format!("alive: {is_alive}; {description:?}"))
    })
    .await;
}

fn is_lost(status: ExitStatus, process: &Process) {
    assert_eq!(status.code(), Some(LOCK_LOST), "{}", process.stderr());
    assert!(process.stderr().contains("COMMAND was ended"), "{}", process.stderr());
}

#[tokio::test]
async fn a_job_is_killed_before_the_lock_of_a_stopped_replica_runs_out() {
    let mut shell = Shell::open().await;
    let other = shell.s.another_server().await;
    shell.s.client = other.client().await;
    let (mut process, group) = stubborn(&shell, &shell.s.server.grpc().to_string()).await;
    shell.s.server.pause();
    is_lost(process.wait(SOON).await, &process);
    assert!(!group.is_alive(), "killed, and all its group");
    shell.s.server.resume();
    nobody_is_left(&shell, &group).await;
}

#[tokio::test]
async fn a_job_is_killed_before_the_lock_of_a_dead_connection_runs_out() {
    let shell = Shell::open().await;
    let proxy = Proxy::start(shell.s.server.grpc()).await;
    let (process, group) = stubborn(&shell, &proxy.address().to_string()).await;
    proxy.set_traffic(Traffic::Stall);
    the_lock_outlasts(&shell, process, &group).await;
}

#[tokio::test]
async fn a_job_is_killed_before_the_lock_runs_out_whose_connection_is_cut_for_good() {
    let shell = Shell::open().await;
    let proxy = Proxy::start(shell.s.server.grpc()).await;
    let (process, group) = stubborn(&shell, &proxy.address().to_string()).await;
    proxy.refuse().await;
    proxy.cut();
    the_lock_outlasts(&shell, process, &group).await;
}

/// Checks that the job ends because its lock is lost, before another client gets the lock.
async fn the_lock_outlasts(shell: &Shell, mut process: Process, group: &Group) {
    let (status, ()) = tokio::join!(process.wait(SOON), nobody_is_left(shell, group));
    is_lost(status, &process);
}

#[tokio::test]
async fn a_job_survives_cut_connections() {
    let shell = Shell::open().await;
    let proxy = Proxy::start(shell.s.server.grpc()).await;
    let script = "touch begun; while ! test -e end; do sleep 0.05; done; exit 9";
    let arguments = ["lock", "/jobs/a", "--ttl", "4s", "--", "sh", "-c", script];
    let mut command = shell.command_at(&proxy.address().to_string(), &arguments);
    let process = Process::spawn("job", shell.directory.path(), &mut command);
    eventually("it runs", SOON, async || check(shell.file("begun").exists(), || "not yet".to_owned())).await;
    for round in 1..4 {
        proxy.cut();
        eventually("it is back", SOON, async || check(proxy.accepted() > round, || proxy.accepted().to_string())).await;
    }
    std::fs::write(shell.file("end"), "").unwrap();
    assert_eq!(done(process).await.code, Some(9));
    shell.ok(&["lock", "/jobs/a", "--", "true"]).await;
}

#[tokio::test]
async fn a_lock_that_somebody_takes_away_ends_the_job_and_all_of_its_group() {
    for script in [STUBBORN, CARELESS] {
        let shell = Shell::open().await;
        let (mut process, group) = job(&shell, &shell.s.server.grpc().to_string(), script).await;
        let lease = shell.s.zk.children("/jobs/a").await.unwrap().remove(0);
        shell.s.zk.delete(&format!("/jobs/a/{lease}")).await;
        is_lost(process.wait(SOON).await, &process);
        // The kernel may take a moment.
        eventually("all of it is gone", SOON, async || check(!group.is_alive(), || script.to_owned())).await;
    }
}

#[tokio::test]
async fn a_job_does_not_outlive_the_command_that_holds_its_lock() {
    for signal in [Signal::KILL, Signal::STOP] {
        let shell = Shell::open().await;
        let (mut process, group) = stubborn(&shell, &shell.s.server.grpc().to_string()).await;
        process.signal(signal);
        nobody_is_left(&shell, &group).await;
        eventually("the job is gone", SOON, async || check(!group.is_alive(), || "it runs".to_owned())).await;
    }
}

#[tokio::test]
async fn the_rust_program_of_the_tour_prints_what_the_tour_shows() {
    let shell = Shell::open().await;
    let shown = page::blocks(include_str!("../../docs/tour.md"), "In Rust");
    let program = include_str!("../../client-rs/examples/readme.rs");
    assert!(program.ends_with(&format!("\n\n{}", page::only(&shown, "rust"))), "examples/readme.rs is another");
    let mut command = Command::new(built("examples/readme"));
    command.env("ROLLCALL_SERVER", shell.s.server.grpc().to_string());
    let said = done(Process::spawn("readme", shell.directory.path(), &mut command)).await;
    assert_eq!((said.code, said.stdout.as_str()), (Some(0), page::only(&shown, "text")), "{said:?}");
}

/// The test above runs them.
#[test]
fn the_rust_lines_of_the_readme_are_those_of_the_program() {
    let shown = page::blocks(include_str!("../../README.md"), "In Rust");
    let lines = page::only(&shown, "rust").replace("\"localhost:7700\"", "server");
    let program = include_str!("../../client-rs/examples/readme.rs").lines().map(str::trim);
    let from_the_client_on = program.skip_while(|line| !line.starts_with("let client"));
    let body: Vec<_> = from_the_client_on.filter(|line| !line.is_empty() && *line != "}").collect();
    assert_eq!(lines.lines().collect::<Vec<_>>(), body);
}

#[tokio::test]
async fn the_examples_do_what_they_say() {
    let shell = Shell::open().await;
    let start = |name: &str| {
        let mut command = Command::new(built(&format!("examples/{name}")));
        command.env("ROLLCALL_SERVER", shell.s.server.grpc().to_string());
        Process::spawn(name, shell.directory.path(), &mut command)
    };
    let watch = start("watch");
    says(&watch, "[]").await;
    let mut register = start("register");
    says(&register, "registered /services/ssh/server1:22").await;
    says(&watch, "[\"server1:22\"]").await;
    register.signal(Signal::INT);
    let register = done(register).await;
    assert_eq!((register.code, register.stdout.lines().last()), (Some(0), Some("gone")));
    eventually("the watcher sees it go", SOON, async || check(watch.stdout().ends_with("[]\n"), || watch.stdout()))
        .await;
    let lock = done(start("lock")).await;
    assert!(lock.code == Some(0) && lock.stdout.contains("working with token"), "{lock:?}");
    let balanced = done(start("balanced_channel")).await;
    assert_eq!((balanced.code, balanced.stdout.as_str()), (Some(0), "both have answered\n"), "{balanced:?}");
}
