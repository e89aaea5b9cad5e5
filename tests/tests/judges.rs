//! The embedded server judged by others: kazoo's own tests run on it, and clients that know nothing of it connect,
//! create, watch and list, there and on real ZooKeeper. `tests/setup.sh judges` fetches them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rollcall_tests::bare::Bare;
use rollcall_tests::process::{Process, scratch};
use rollcall_tests::server::{Server, program};
use rollcall_tests::wait::{SOON, check, eventually, soon};
use rollcall_tests::zookeeper::{free_address, sandbox};
use zookeeper_client::{Acls, CreateMode, Error, EventType, OneshotWatcher};

use crate::polyglot::{installed, root, succeed};

/// At once. Most of these tests wait most of the time.
const WORKERS: usize = 6;
/// Workers that take the place of others that hang in a test.
const SPARE_WORKERS: usize = 10;
/// How often a test that races with itself may lose. Any other may fail once: some measure time.
const TRIES: usize = 12;
/// What kazoo's tests expect to be told by `srvr`.
const VERSION: &str = "3.9.5";

/// What becomes of one of kazoo's tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passes,
    Fails,
    /// It finds that it can't run.
    Skipped,
    /// It passes, unless it loses a race that is in the test itself. No test's outcome, but what the page may say.
    Races,
}

/// A test that came out, and what it said if it did not pass.
#[derive(Debug)]
struct Judged {
    outcome: Outcome,
    said: String,
}

/// Rows of the page's table of tests that do not simply pass: `` | `FILE::CLASS::TEST` | OUTCOME | REASON | ``.
fn listed(page: &str) -> BTreeMap<String, Outcome> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let tests = rows.filter(|(name, _)| name.contains("::")).map(|(name, rest)| {
        let (outcome, reason) = rest.split_once(" | ").unwrap_or_else(|| panic!("{name} has no reason"));
        assert!(reason.len() > " |".len(), "{name} has no reason");
        let outcome = match outcome {
            "fails" => Outcome::Fails,
            "skipped" => Outcome::Skipped,
            "races" => Outcome::Races,
            other => panic!("{name} can't come out as {other:?}"),
        };
        (name.to_owned(), outcome)
    });
    tests.collect()
}

/// How many tests of each file pass, as the page has it.
fn counts(judged: &BTreeMap<String, Judged>) -> String {
    let mut files = BTreeMap::<&str, (usize, usize)>::new();
    for (name, judged) in judged {
        let (passed, all) = files.entry(name.split("::").next().unwrap()).or_default();
        *passed += usize::from(judged.outcome == Outcome::Passes);
        *all += 1;
    }
    let mut table = "| kazoo's tests | pass | of |\n| --- | --: | --: |\n".to_owned();
    for (file, (passed, all)) in &files {
        writeln!(table, "| `{file}` | {passed} | {all} |").unwrap();
    }
    let sum = |count: fn(&(usize, usize)) -> usize| files.values().map(count).sum::<usize>();
    writeln!(table, "| all | {} | {} |", sum(|file| file.0), sum(|file| file.1)).unwrap();
    table
}

/// Runs kazoo's tests of these names on as many servers as there are workers.
async fn run(tests: &[String], workers: usize) -> BTreeMap<String, Judged> {
    let directory = scratch("kazoo");
    let outcomes = directory.path().join("outcomes");
    let addresses: Vec<_> = (0..workers + SPARE_WORKERS).map(|_| free_address().to_string()).collect();
    let mut command = Command::new(installed("judges/kazoo-tests/bin/python", "judges"));
    command
        .args(["-m", "pytest", "--quiet", "-p", "embedded_cluster", "-p", "no:cacheprovider"])
        // kazoo's own settings show the log of everything. A test that hangs takes its worker with it.
        .args(["-o", "addopts=", "-o", "log_cli=false", "--timeout", "60", "--timeout-method", "thread"])
        .args(["--numprocesses", &workers.to_string(), "--dist", "load", "--maxschedchunk", "1"])
        .args(tests.iter().map(|test| format!("kazoo/tests/{test}")))
        .current_dir(installed("judges/kazoo", "judges"))
        .env("PYTHONPATH", root().join("tests/judges"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TMPDIR", directory.path())
        // With this kazoo's tests compare versions too.
        .env("CI", "true")
        .env("ZOOKEEPER_VERSION", VERSION)
        .env("ROLLCALL_SERVER", program())
        .env("ROLLCALL_ADDRESSES", addresses.join(","))
        .env("ROLLCALL_OUTCOMES", &outcomes);
    let mut process = Process::spawn("pytest", directory.path(), &mut command);
    process.wait(Duration::from_secs(600)).await;
    let lines = fs::read_to_string(outcomes).unwrap_or_default();
    assert!(!lines.is_empty(), "no tests ran:\n{}\n{}", process.stdout(), process.stderr());
    lines.lines().map(judged).collect()
}

fn judged(line: &str) -> (String, Judged) {
    let test: serde_json::Value = serde_json::from_str(line).unwrap();
    let text = |key: &str| test[key].as_str().unwrap().to_owned();
    let outcome = match text("outcome").as_str() {
        "passed" => Outcome::Passes,
        "skipped" => Outcome::Skipped,
        _ => Outcome::Fails,
    };
    let name = text("name").trim_start_matches("kazoo/tests/").to_owned();
    (name, Judged { outcome, said: text("said") })
}

#[tokio::test]
async fn kazoos_own_tests_come_out_as_the_page_says() {
    let page = fs::read_to_string(root().join("docs/embedded.md")).unwrap();
    let listed = listed(&page);
    let mut judged = run(&[String::new()], WORKERS).await;
    for attempt in 0..TRIES {
        let has_another = |name: &String| match listed.get(name) {
            None => attempt == 0,
            Some(outcome) => *outcome == Outcome::Races,
        };
        let lost = judged.iter().filter(|(name, test)| test.outcome == Outcome::Fails && has_another(name));
        let lost: Vec<_> = lost.map(|(name, _)| name.clone()).collect();
        if lost.is_empty() {
            break;
        }
        println!("once more: {}", lost.join(", "));
        judged.extend(run(&lost, 1).await);
    }
    let mut surprises = String::new();
    for name in judged.keys().chain(listed.keys()).collect::<BTreeSet<_>>() {
        let expected = match listed.get(name) {
            None | Some(Outcome::Races) => Outcome::Passes,
            Some(outcome) => *outcome,
        };
        match judged.get(name) {
            Some(test) if test.outcome == expected => {}
            Some(test) => writeln!(surprises, "{name}: {:?}, not {expected:?}\n{}", test.outcome, test.said).unwrap(),
            None => writeln!(surprises, "{name}: there is no such test").unwrap(),
        }
    }
    let counts = counts(&judged);
    println!("{counts}");
    assert!(surprises.is_empty(), "{surprises}");
    assert!(page.contains(&counts), "docs/embedded.md should say:\n{counts}");
}

/// Where a server of either kind is.
struct Arms {
    hosts: [String; 2],
    _embedded: Server,
}

/// The embedded server, and real ZooKeeper: who is judged by a client, and what by.
async fn arms() -> Arms {
    let address = free_address();
    let embedded = Server::start_embedded(address).await;
    Arms { hosts: [address.to_string(), sandbox("judges").await.hosts], _embedded: embedded }
}

/// What a client is told in `tests/judges/session.*`, which all do the same.
const TOLD: &str = "\
created /judged
children
created /judged/a
event: children of /judged
data first
version 1
event: changed /judged
refused: version
created /judged/s-0000000001
children a s-0000000001
exists /judged/a
event: deleted /judged/a
no /judged/a
transaction /judged/a
event: created /judged/a
children a
";

/// Runs one of `tests/judges/session.*`, with its client on `variable`, on both arms.
async fn session(name: &str, interpreter: impl AsRef<Path>, variable: &str, client: impl AsRef<Path>) {
    let script = root().join("tests/judges").join(name);
    for hosts in arms().await.hosts {
        let mut command = Command::new(interpreter.as_ref());
        command.arg(&script).arg(&hosts).env(variable, client.as_ref());
        assert_eq!(succeed(name, &mut command, 2 * SOON).await, TOLD, "{hosts}");
    }
}

#[tokio::test]
async fn kazoo_2_11_is_served_as_by_zookeeper() {
    let source = installed("judges/kazoo", "judges");
    session("session.py", installed("judges/kazoo-tests/bin/python", "judges"), "PYTHONPATH", source).await;
}

#[tokio::test]
async fn kazoo_2_6_is_served_as_by_zookeeper() {
    session("session.py", installed("judges/kazoo-2.6/bin/python", "judges"), "PYTHONPATH", "").await;
}

#[tokio::test]
async fn node_zookeeper_client_is_served_as_by_zookeeper() {
    session("session.js", "node", "NODE_PATH", installed("judges/node/node_modules", "judges")).await;
}

#[tokio::test]
async fn zookeeper_client_is_served_as_by_zookeeper() {
    for hosts in arms().await.hosts {
        assert_eq!(rust_session(&hosts).await.unwrap(), TOLD, "{hosts}");
    }
}

/// The same as `tests/judges/session.*` do, with the crate zookeeper-client.
async fn rust_session(hosts: &str) -> Result<String, Error> {
    let (bare, another) = (Bare::connect(hosts).await, Bare::connect(hosts).await);
    let (client, other) = (bare.client(), another.client());
    let options = |mode: CreateMode| mode.with_acls(Acls::anyone_all());
    let mut told = String::new();
    let mut say = |line: String| writeln!(told, "{}", line.trim_end()).unwrap();

    client.create("/judged", b"first", &options(CreateMode::Persistent)).await?;
    say("created /judged".to_owned());
    let (children, watcher) = client.list_and_watch_children("/judged").await?;
    say(format!("children {}", children.join(" ")));
    other.create("/judged/a", b"", &options(CreateMode::Ephemeral)).await?;
    say("created /judged/a".to_owned());
    say(event(watcher).await);
    let (data, _, watcher) = client.get_and_watch_data("/judged").await?;
    say(format!("data {}", String::from_utf8_lossy(&data)));
    say(format!("version {}", other.set_data("/judged", b"second", None).await?.version));
    say(event(watcher).await);
    assert_eq!(client.set_data("/judged", b"third", Some(7)).await.unwrap_err(), Error::BadVersion);
    say("refused: version".to_owned());
    let (_, sequence) = client.create("/judged/s-", b"", &options(CreateMode::PersistentSequential)).await?;
    say(format!("created /judged/s-{sequence}"));
    let mut children = client.list_children("/judged").await?;
    children.sort();
    say(format!("children {}", children.join(" ")));
    let exists = |is_there| if is_there { "exists /judged/a" } else { "no /judged/a" };
    let (stat, watcher) = client.check_and_watch_stat("/judged/a").await?;
    say(exists(stat.is_some()).to_owned());
    drop(another);
    say(event(watcher).await);
    let (stat, watcher) = client.check_and_watch_stat("/judged/a").await?;
    say(exists(stat.is_some()).to_owned());
    let mut transaction = client.new_multi_writer();
    transaction.add_create("/judged/a", b"", &options(CreateMode::Persistent))?;
    transaction.add_delete("/judged/s-0000000001", None)?;
    transaction.commit().await.unwrap();
    say("transaction /judged/a".to_owned());
    say(event(watcher).await);
    say(format!("children {}", client.list_children("/judged").await?.join(" ")));
    Ok(told)
}

async fn event(watcher: OneshotWatcher) -> String {
    let event = soon("an event", watcher.changed()).await;
    let what = match event.event_type {
        EventType::NodeCreated => "created",
        EventType::NodeDeleted => "deleted",
        EventType::NodeDataChanged => "changed",
        EventType::NodeChildrenChanged => "children of",
        EventType::Session => panic!("the session stands: {event:?}"),
    };
    format!("event: {what} {}", event.path)
}

/// What is typed into zkCli, and what it says to that at the latest.
const TYPED: [(&str, &str); 9] = [
    ("create /judged first", "Created /judged\n"),
    ("ls -w /judged", "[]\n"),
    ("create -e /judged/a x", "type:NodeChildrenChanged path:/judged "),
    ("addWatch -m PERSISTENT_RECURSIVE /judged", ""),
    ("create -s /judged/s-", "type:NodeCreated path:/judged/s-0000000001 "),
    ("set /judged second", "type:NodeDataChanged path:/judged "),
    ("ls -R /judged", "/judged\n/judged/a\n/judged/s-0000000001\n"),
    ("deleteall /judged", "type:NodeDeleted path:/judged "),
    ("stat /judged", "Node does not exist: /judged\n"),
];

#[tokio::test]
async fn zkcli_is_served_as_by_zookeeper() {
    for hosts in arms().await.hosts {
        let directory = scratch("zkcli");
        let mut java = Command::new("java");
        java.args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
            .arg("-cp")
            .arg(installed("zookeeper/3.9", "zookeeper").join("*"))
            .args(["org.apache.zookeeper.ZooKeeperMain", "-waitforconnection", "-server", &hosts]);
        let (mut zkcli, mut input) = Process::spawn_with_input("zkcli", directory.path(), &mut java);
        for (command, answer) in TYPED {
            writeln!(input, "{command}").unwrap();
            eventually(command, SOON, async || {
                let said = zkcli.stdout() + &zkcli.stderr();
                check(said.contains(answer), || said)
            })
            .await;
        }
        writeln!(input, "quit").unwrap();
        zkcli.wait(SOON).await;
        println!("{}", zkcli.stdout());
    }
}
