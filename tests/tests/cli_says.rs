//! The messages of the command `rollcall` and the server: while they wait, when they can't start, and about their
//! input.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::Command;

use rollcall_tests::arm::Arm;
use rollcall_tests::client::release;
use rollcall_tests::follow::Locking;
use rollcall_tests::process::{Process, Signal, scratch};
use rollcall_tests::proxy::Proxy;
use rollcall_tests::server::{self, Server};
use rollcall_tests::shell::{Done, Shell, done, object, says};
use rollcall_tests::zookeeper::free_address;
use serde_json::json;

/// A value too large for any message.
fn too_large() -> String {
    json!({ "x": "x".repeat(3 << 20) }).to_string()
}

#[tokio::test]
async fn who_waits_for_a_replica_is_told_for_which_and_why() {
    let shell = Shell::open().await;
    let nobody = free_address().to_string();
    let start = |name: &str, arguments: &[&str]| {
        Process::spawn(name, shell.directory.path(), &mut shell.command_at(&nobody, arguments))
    };
    let commands = [
        (&["get", "/a"][..], "waiting for /a"),
        (&["tree", "/a"], "waiting for the nodes below /a"),
        (&["put", "/a", "--text", "x"], "waiting for the write of /a"),
        (&["delete", "/a"], "waiting for the deletion of /a"),
        (&["lock", "/a"], "waiting for the lock /a"),
        (&["unlock", "id"], "waiting for the lock's release"),
        (&["locks", "/a"], "waiting for the lock /a"),
        (&["locks"], "waiting for the list of locks"),
        (&["status"], "waiting for the status of"),
    ];
    for (arguments, what) in commands {
        let said = done(start("call", arguments)).await;
        assert_eq!(said.code, Some(69), "{arguments:?}: {said:?}");
        let line = said.stderr.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{said:?}"));
        assert!(line.contains(" since 20") && line.contains(&format!("{nobody} can't be reached: ")), "{line}");
        assert_eq!(said.stderr.matches("waiting for").count(), 1, "once, since nothing changes: {said:?}");
        std::fs::remove_file(shell.file("call.err")).unwrap();
    }
    for arguments in [&["watch", "/a"][..], &["register", "/services/a:1"]] {
        let mut waiting = start(arguments[0], arguments);
        says(&waiting, "waiting for").await;
        says(&waiting, &format!("{nobody} can't be reached: ")).await;
        waiting.signal(Signal::TERM);
        let said = done(waiting).await;
        if arguments[0] == "register" {
            assert_eq!(said.code, Some(69), "{said:?}");
            assert!(said.stderr.contains("/services/a:1 was never registered"), "{said:?}");
            assert!(!said.stderr.contains("taken down"), "there was nothing: {said:?}");
        }
    }
}

#[tokio::test]
async fn a_replica_without_zookeeper_is_told_from_none_and_says_what_it_tried() {
    let shell = Shell::open().await;
    let zookeeper = free_address().to_string();
    let mut server = Server::launch(&zookeeper, &[]).await;
    let grpc = server.grpc().to_string();
    let start = |arguments: &[&str]| {
        Process::spawn(arguments[0], shell.directory.path(), &mut shell.command_at(&grpc, arguments))
    };
    for arguments in [&["lock", "/a", "--timeout", "3s"][..], &["put", "/a", "--text", "x", "--timeout", "3s"]] {
        let said = done(start(arguments)).await;
        assert_eq!(said.code, Some(69), "{said:?}");
        assert!(said.stderr.contains(&format!("{grpc} is there, but can't serve: ")), "{said:?}");
        assert!(said.stderr.contains("the replica runs, but without zookeeper"), "{said:?}");
    }
    let mut register = start(&["register", "/services/a:1", "--timeout", "1s"]);
    says(&register, &format!("{grpc} is there, but has no zookeeper")).await;
    register.signal(Signal::TERM);
    let said = done(register).await;
    assert!(said.code == Some(69) && !said.stderr.contains("taken down"), "{said:?}");
    let log = server.process().stderr();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("a zookeeper server can't be reached")).collect();
    assert!(lines.iter().any(|line| line.contains(&zookeeper) && line.contains("to connect")), "{log}");
}

#[tokio::test]
async fn a_watch_says_what_it_waits_for_and_nothing_of_what_it_never_showed() {
    let shell = Shell::open().await;
    let server = Server::launch(&free_address().to_string(), &[]).await;
    let grpc = server.grpc().to_string();
    for format in ["text", "json"] {
        let mut command = shell.command_at(&grpc, &["watch", "/a", "-o", format]);
        let mut watch = Process::spawn(format, shell.directory.path(), &mut command);
        says(&watch, "waiting for changes of /a since 20").await;
        says(&watch, &format!("{grpc} is there, but has no zookeeper")).await;
        watch.signal(Signal::TERM);
        let said = done(watch).await;
        assert_eq!(said.stdout, "", "{said:?}");
    }
}

#[tokio::test]
async fn a_registration_that_is_back_is_told_and_one_that_never_was_is_too() {
    let cut = Arm::Embedded.behind_a_proxy("register-says", &["--session-timeout", "4s"]).await;
    let shell = Shell::open().await;
    let grpc = cut.server.grpc().to_string();
    let start = |name: &str, arguments: &[&str]| {
        Process::spawn(name, shell.directory.path(), &mut shell.command_at(&grpc, arguments))
    };
    let front = Proxy::start(cut.server.grpc()).await;
    let through = front.address().to_string();
    let options = ["register", "/services/a:1", "--ttl", "1s"];
    let register = Process::spawn("register", shell.directory.path(), &mut shell.command_at(&through, &options));
    says(&register, "registered /services/a:1").await;
    front.refuse().await;
    front.cut();
    says(&register, "/services/a:1 may not be registered any more").await;
    front.accept().await;
    says(&register, "/services/a:1 is registered again").await;

    cut.cut_off().await;
    let in_vain =
        start("in-vain", &["register", "/services/b:1", "--timeout", "500ms", "--", "sh", "-c", "sleep 2; exit 7"]);
    let said = done(in_vain).await;
    assert_eq!(said.code, Some(7), "{said:?}");
    assert!(said.stderr.contains("COMMAND has ended, and /services/b:1 was never registered\n"), "{said:?}");
    let arguments = ["register", "/services/c:1", "--check", "false", "--", "true"];
    let said = done(start("check", &arguments)).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stderr.contains("/services/c:1 was never registered: its check has never passed"), "{said:?}");
}

#[tokio::test]
async fn a_lock_is_waited_for_as_long_as_was_asked_though_there_is_no_replica() {
    let shell = Shell::open().await;
    let front = Proxy::start(shell.s.server.grpc()).await;
    front.refuse().await;
    let address = front.address().to_string();
    let mut waiting = Vec::new();
    for (name, arguments) in [
        ("bounded", &["lock", "/a", "--wait", "5m", "--timeout", "100ms", "--", "true"][..]),
        ("for-ever", &["lock", "/b", "--wait", "--timeout", "100ms", "--", "true"]),
    ] {
        waiting.push(Process::spawn(name, shell.directory.path(), &mut shell.command_at(&address, arguments)));
    }
    for process in &waiting {
        // It prints this after a second, ten times the time-out of a call.
        says(process, "waiting for the lock").await;
    }
    front.accept().await;
    for process in waiting {
        let said = done(process).await;
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    front.refuse().await;
    let mut command = shell.command_at(&address, &["lock", "/a", "--wait", "2s", "--timeout", "100ms", "--", "true"]);
    let said = done(Process::spawn("over", shell.directory.path(), &mut command)).await;
    assert_eq!(said.code, Some(69), "{said:?}");
}

#[tokio::test]
async fn what_no_message_can_carry_is_refused_at_once() {
    let shell = Shell::open().await;
    std::fs::write(shell.file("big.json"), too_large()).unwrap();
    for arguments in [&["register", "/services/a:1", "--data", "@big.json"][..], &["put", "/a", "--data", "@big.json"]]
    {
        let mut command = shell.command(arguments);
        let said = done(Process::spawn("large", shell.directory.path(), &mut command)).await;
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.stderr.contains("a message has at most 2097152"), "{said:?}");
    }
}

/// Runs a command with input.
async fn with_input(shell: &Shell, arguments: &[&str], input: &[u8]) -> Done {
    let directory = scratch("input");
    let (process, mut pipe) = Process::spawn_with_input("input", directory.path(), &mut shell.command(arguments));
    pipe.write_all(input).unwrap();
    drop(pipe);
    done(process).await
}

#[tokio::test]
async fn a_write_says_what_it_writes() {
    let shell = Shell::open().await;
    let node = async || shell.s.zk.get("/config").await.unwrap();
    for (input, written) in [("hello", "hello"), ("{\"n\": 1}\n", "")] {
        let said = with_input(&shell, &["put", "/config"], input.as_bytes()).await;
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(written.is_empty() || node().await.text() == written);
    }
    assert_eq!(node().await.json()["n"], 1);
    // A cron job has /dev/null as its input.
    let nothing = shell.run(&["put", "/config"]).await;
    assert_eq!(nothing.code, Some(2), "{nothing:?}");
    assert!(nothing.stderr.contains("--empty"), "{nothing:?}");
    assert_eq!(node().await.json()["n"], 1);
    shell.ok(&["put", "/config", "--data", "{\"a\": {\"b\": [1]}}", "--data", "c=2"]).await;
    let json = node().await.json();
    assert_eq!((&json["a"], &json["c"]), (&json!({"b": [1]}), &json!(2)));

    let wrong = shell.run(&["put", "/config", "--text", "x", "--version", "9"]).await;
    assert!(wrong.code == Some(1) && wrong.stderr.contains("under stat in «rollcall get"), "{wrong:?}");
    let shown = object(&shell.ok(&["get", "--latest", "--data", "-o", "json", "/config"]).await);
    let version = shown["/config"]["stat"]["version"].to_string();
    shell.ok(&["put", "/config", "--text", "x", "--version", &version]).await;
    shell.ok(&["put", "/config", "--empty"]).await;
    assert_eq!(node().await.text(), "");
}

#[tokio::test]
async fn addresses_that_can_not_be_meant_get_a_hint() {
    let shell = Shell::open().await;
    let http = shell.s.server.http().to_string();
    let encrypted = format!("https://{}", shell.s.server.grpc());
    for (server, code, hint) in [
        (":7700", 2, "localhost:7700"),
        ("a:1 b:1", 2, "commas"),
        ("db", 2, "db:7700"),
        (&http, 69, "--http-listen"),
        (&encrypted, 69, "does not speak TLS"),
    ] {
        let directory = scratch("hint");
        let mut command = shell.command_at(server, &["get", "/", "--timeout", "500ms"]);
        let said = done(Process::spawn("hint", directory.path(), &mut command)).await;
        assert_eq!(said.code, Some(code), "{said:?}");
        assert!(said.stderr.contains(hint), "{said:?}");
    }
}

#[tokio::test]
async fn locks_are_listed_and_their_nodes_are_not() {
    let shell = Shell::open().await;
    assert_eq!(shell.ok(&["locks"]).await, "nobody holds a lock, nobody waits for one\n");
    let (_one, _) = Locking::take(&shell.s.client, "/jobs/a", "one").await;
    let (_two, _) = Locking::queue(&shell.s.client, "/jobs/a", "two").await;
    let (_idle, held) = Locking::take(&shell.s.client, "/jobs/idle", "three").await;
    release(&shell.s.client, &held.lock_id).await.unwrap();
    let (_other, _) = Locking::take(&shell.s.client, "/b", "four").await;
    shell.s.zk.create_many(["/jobs/plain".to_owned()], b"").await;
    let locks = object(&shell.ok(&["locks", "-o", "json"]).await);
    let locks = locks.as_array().unwrap();
    let paths: Vec<_> = locks.iter().map(|lock| lock["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/b", "/jobs/a"]);
    assert_eq!((&locks[1]["holders"][0]["name"], &locks[1]["waiters"][0]["name"]), (&json!("one"), &json!("two")));
    let table = shell.ok(&["locks"]).await;
    assert!(table.contains("waits 1") && table.contains("/jobs/a"), "{table}");

    assert_eq!(shell.ok(&["tree"]).await, "/\n├── b\n└── jobs\n    ├── a\n    ├── idle\n    └── plain\n");
    assert!(shell.ok(&["tree", "--all"]).await.contains("a-__lock__"));
    for options in [&["-o", "yaml"][..], &["-o", "json"], &["-o", "dir"], &["-o", "table"]] {
        let get = |more: &[&'static str]| [&["get", "-r", "/"], options, more].concat();
        let (shown, all) = (shell.ok(&get(&[])).await, shell.ok(&get(&["--all"])).await);
        assert!(shown.contains("plain") && !shown.contains("__lock__"), "{shown}");
        assert!(all.contains("a-__lock__"), "{all}");
        // The nodes of the three holders and waiters contain 32 hex digits.
        let has_lease = |text: &str| {
            let mut words = text.split(|c: char| !c.is_ascii_hexdigit());
            words.any(|word| word.len() == 32)
        };
        assert!(!has_lease(&shown) && has_lease(&all), "{shown}\n{all}");
    }

    for arguments in
        [&["get", "/jobs"][..], &["get", "/jobs", "-o", "table"], &["locks"], &["locks", "/b"], &["status"]]
    {
        assert!(shell.ok(&always(arguments)).await.contains("\x1b["), "{arguments:?}");
        assert!(!shell.ok(arguments).await.contains('\x1b'), "{arguments:?}");
    }
    let _registration = shell.start("register", &["register", "/services/a:1"]);
    shell.s.zk.wait_for("/services/a:1", "the registration", |_| true).await;
    for arguments in [&["tree", "/services"][..], &["get", "/services", "-o", "dir"]] {
        assert!(shell.ok(&always(arguments)).await.contains("\x1b[32m"), "{arguments:?}");
    }
    let table = shell.ok(&["get", "/services", "-o", "table"]).await;
    assert!(table.contains("HOLDER") && table.contains("AGE") && table.contains("pid "), "{table}");
}

fn always<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [arguments, &["--color", "always"]].concat()
}

/// The server's error message when it can't start.
async fn refused(options: &[&str]) -> String {
    let directory = scratch("refused");
    let mut command = Command::new(server::program());
    let said = done(Process::spawn("server", directory.path(), command.args(options).env("RUST_BACKTRACE", "1"))).await;
    assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""), "{said:?}");
    assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
    said.stderr
}

#[tokio::test]
async fn what_keeps_the_server_from_starting_is_one_line_with_what_to_change() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let free = ["--embedded", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    for option in ["--listen", "--http-listen", "--embedded-listen"] {
        let mut options: Vec<_> = free.to_vec();
        match options.iter().position(|given| *given == option) {
            Some(at) => options[at + 1] = &taken,
            None => options.extend([option, &taken]),
        }
        let said = refused(&options).await;
        assert!(said.contains(&format!("{option} {taken}: ")) && said.contains("name another port"), "{said}");
    }
    for (options, what) in [
        (&["--embedded", "--log", "x=y=z"][..], "--log"),
        (&["--zookeeper", "zk1:2181/prod,zk2:2181/prod"], "the chroot comes once"),
        (
            &[
                "--embedded",
                "--embedded-listen",
                "192.0.2.1:1",
                "--listen",
                "127.0.0.1:0",
                "--http-listen",
                "127.0.0.1:0",
            ],
            "--embedded-listen",
        ),
        (&["--embedded", "--sessions", "0"], "--sessions must be"),
    ] {
        let said = refused(options).await;
        assert!(said.contains(what), "{said}");
    }
}

#[tokio::test]
async fn wrong_arguments_of_the_server_say_what_is_meant() {
    for (options, hints) in [
        (&[][..], ["--embedded", "--zookeeper"]),
        (&["--embedded", "--zookeeper", "zk:2181"], ["--embedded", "--zookeeper"]),
        (&["--embedded", "--listen", "localhost:7700"], ["--listen", "not a host name"]),
    ] {
        let directory = scratch("wrong");
        let mut command = Command::new(server::program());
        let said = done(Process::spawn("server", directory.path(), command.args(options))).await;
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(hints.iter().all(|hint| said.stderr.contains(hint)), "{said:?}");
    }
}

#[tokio::test]
async fn make_finds_a_port_that_is_taken_before_it_builds() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    for target in ["run", "run-zookeeper"] {
        for option in ["--listen", "--http-listen"] {
            let directory = scratch("make");
            let mut command = Command::new("make");
            // With `CARGO=false` nothing is built.
            command.args(["--no-print-directory", target, "CARGO=false", &format!("RUN={option} {taken}")]);
            let said = done(Process::spawn("make", directory.path(), command.current_dir(root))).await;
            assert!(said.code != Some(0) && said.stdout.is_empty(), "{target}: {said:?}");
            assert!(
                said.stderr.contains(&format!("somebody listens on {taken}: name another address with {option}")),
                "{said:?}"
            );
        }
    }
}
