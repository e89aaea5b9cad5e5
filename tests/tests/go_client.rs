//! The Go client and its pages. `tests/setup.sh staticcheck` installs what they need.

use std::fs;
use std::process::Command;
use std::time::Duration;

use rollcall_tests::arm::Arm;
use rollcall_tests::page;
use rollcall_tests::process::scratch;
use rollcall_tests::server::{Server, program};

use crate::polyglot::{installed, root, succeed};

/// Time-out that includes compiling gRPC in the first run, and once more with the race detector.
pub(crate) const COMPILING: Duration = Duration::from_secs(900);

/// The command go, in one of our modules.
pub(crate) fn go(module: &str) -> Command {
    let found = Command::new("go").arg("version").output();
    assert!(found.is_ok_and(|go| go.status.success()), "no go: install Go 1.26 or newer and put it on the PATH");
    let mut command = Command::new("go");
    command.current_dir(root().join(module));
    command
}

#[tokio::test]
async fn the_go_client_is_formatted_and_passes_vet_and_staticcheck() {
    let mut format = go("client-go");
    let unformatted = succeed("gofmt", format.args(["run", "cmd/gofmt", "-l", "."]), COMPILING).await;
    assert_eq!(unformatted, "", "not formatted");
    let staticcheck = installed("bin/staticcheck", "staticcheck");
    for module in ["client-go", "client-go/bench"] {
        succeed("go-vet", go(module).args(["vet", "./..."]), COMPILING).await;
        let mut check = Command::new(&staticcheck);
        succeed("staticcheck", check.arg("./...").current_dir(root().join(module)), COMPILING).await;
        succeed("go-mod-tidy", go(module).args(["mod", "tidy", "-diff"]), COMPILING).await;
    }
}

/// The unit tests, the examples, and the client beside replicas that die, drain and hang.
#[tokio::test]
async fn the_go_client_passes_its_tests_under_the_race_detector() {
    let compiler = go("client-go").args(["env", "CC"]).output().expect("Go tells its settings");
    let compiler = Command::new(String::from_utf8_lossy(&compiler.stdout).trim()).arg("--version").output();
    assert!(compiler.is_ok(), "no C compiler, which Go's race detector needs: install gcc");
    let sandbox = Arm::ZooKeeper.sandbox("go-client").await;
    let mut test = go("client-go");
    test.args(["test", "-race", "-count=1", "-timeout=600s", "./..."])
        .env("CGO_ENABLED", "1")
        .env("ROLLCALL_SERVER_BIN", program())
        .env("ROLLCALL_TEST_ZOOKEEPER", &sandbox.hosts);
    succeed("go-test", &mut test, COMPILING).await;
}

/// Runs a program of a page, and answers with what it prints.
async fn run(program: &str) -> String {
    let sandbox = Arm::ZooKeeper.sandbox("page-go").await;
    let server = Server::start(&sandbox.hosts).await;
    let directory = scratch("page-go");
    let file = directory.path().join("main.go");
    // The pages have the address of `make run`'s server.
    fs::write(&file, program.replace("localhost:7700", &server.grpc().to_string())).unwrap();
    succeed("go-run", go("client-go").arg("run").arg(&file), COMPILING).await
}

fn blocks(file: &str) -> Vec<(String, String)> {
    page::blocks(&fs::read_to_string(root().join(file)).unwrap(), "In Go")
}

#[tokio::test]
async fn the_go_program_of_the_tour_prints_what_the_tour_shows() {
    let shown = blocks("docs/tour.md");
    assert_eq!(run(page::only(&shown, "go")).await, page::only(&shown, "text"));
}

/// The README leaves out what is around the calls.
#[tokio::test]
async fn the_go_lines_of_the_readme_print_what_they_say() {
    let shown = blocks("README.md");
    let lines = page::only(&shown, "go");
    let program = format!(
        "package main\nimport (\n\"context\"\n\"fmt\"\nrollcall \"github.com/rollcall/rollcall/client-go\"\n)\n\
         func work(ctx context.Context) {{ fmt.Println(\"working\", ctx.Err()) }}\n\
         func main() {{\nctx := context.Background()\n{lines}}}\n"
    );
    let printed: Vec<_> =
        lines.lines().filter_map(|line| line.split_once(" // prints ")).map(|(_, what)| what).collect();
    assert!(!printed.is_empty(), "the lines print nothing");
    assert_eq!(run(&program).await, format!("{}\nworking <nil>\n", printed.join("\n")));
}
