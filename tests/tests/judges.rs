//! The embedded server judged by others: kazoo's own tests run on it, with the results that `docs/embedded.md` lists.
//! `tests/setup.sh judges` installs them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::time::Duration;

use rollcall_tests::process::{Process, scratch};
use rollcall_tests::server::program;
use rollcall_tests::zookeeper::free_address;

use crate::polyglot::{installed, root};

/// Number of parallel tests. Most of these tests wait most of the time.
const WORKERS: usize = 6;
/// Number of workers that can replace others that hang in a test.
const SPARE_WORKERS: usize = 10;
/// Maximum number of tries of a test that races with itself. Any other test may fail once, since some measure time.
const TRIES: usize = 12;
/// The version of ZooKeeper that kazoo's tests compare with.
const VERSION: &str = "3.9.5";

/// The outcome of one of kazoo's tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passes,
    Fails,
    /// The test finds that it can't run.
    Skipped,
}

/// The page's entry for a test that does not simply pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    Always(Outcome),
    /// It passes, unless it loses a race that is in the test itself.
    Races,
}

/// A finished test, with its output if it did not pass.
#[derive(Debug)]
struct Judged {
    outcome: Outcome,
    said: String,
}

/// Rows of the page's table of tests that do not simply pass: `` | `FILE::CLASS::TEST` | OUTCOME | REASON | ``.
fn listed(page: &str) -> BTreeMap<String, Listed> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let tests = rows.filter(|(name, _)| name.contains("::")).map(|(name, rest)| {
        let (outcome, reason) = rest.split_once(" | ").unwrap_or_else(|| panic!("{name} has no reason"));
        assert!(reason.len() > " |".len(), "{name} has no reason");
        let outcome = match outcome {
            "fails" => Listed::Always(Outcome::Fails),
            "skipped" => Listed::Always(Outcome::Skipped),
            "races" => Listed::Races,
            other => panic!("{name} can't come out as {other:?}"),
        };
        (name.to_owned(), outcome)
    });
    tests.collect()
}

/// The number of passing tests of each file, as a table in the form of the page.
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

/// Runs these of kazoo's tests, on as many servers as workers. An empty name means all tests.
async fn run(tests: &[String], workers: usize) -> BTreeMap<String, Judged> {
    let directory = scratch("kazoo");
    let outcomes = directory.path().join("outcomes");
    let addresses: Vec<_> = (0..workers + SPARE_WORKERS).map(|_| free_address().to_string()).collect();
    let mut command = Command::new(installed("judges/kazoo-tests/bin/python", "judges"));
    command
        .args(["-m", "pytest", "--quiet", "-p", "embedded_cluster", "-p", "no:cacheprovider"])
        // kazoo's own settings print a log of everything. A test that hangs ends its worker.
        .args(["-o", "addopts=", "-o", "log_cli=false", "--timeout", "60", "--timeout-method", "thread"])
        .args(["--numprocesses", &workers.to_string(), "--dist", "load", "--maxschedchunk", "1"])
        .args(tests.iter().map(|test| format!("kazoo/tests/{test}")))
        .current_dir(installed("judges/kazoo", "judges"))
        .env("PYTHONPATH", root().join("tests/judges"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TMPDIR", directory.path())
        // With this setting kazoo's tests compare versions too.
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
    let all = String::new();
    let mut judged = run(&[all], WORKERS).await;
    for attempt in 0..TRIES {
        let has_another = |name: &String| match listed.get(name) {
            None => attempt == 0,
            Some(listed) => *listed == Listed::Races,
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
            None | Some(Listed::Races) => Outcome::Passes,
            Some(Listed::Always(outcome)) => *outcome,
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
