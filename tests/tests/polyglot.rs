//! Programs in other languages against a server on real ZooKeeper: plain stubs in Python and Go, the original kazoo and
//! nd_service_registry beside Rollcall, and grpcurl as the README and docs/tour.md show it. `tests/setup.sh` installs what
//! they need.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rollcall_tests::arm::Arm;
use rollcall_tests::console;
use rollcall_tests::process::{Process, scratch};
use rollcall_tests::server::{Server, program};
use rollcall_tests::zookeeper::Sandbox;

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// A program that `tests/setup.sh` has put into `.cache`.
pub(crate) fn installed(program: &str, part: &str) -> PathBuf {
    let path = root().join(".cache").join(program);
    assert!(path.exists(), "no {}: run tests/setup.sh {part}", path.display());
    path
}

/// The PATH with `directory` in front.
pub(crate) fn path_with(directory: &Path) -> String {
    format!("{}:{}", directory.display(), std::env::var("PATH").unwrap_or_default())
}

/// Runs a command to its end, and shows its output if it fails. Returns its standard output.
pub(crate) async fn succeed(name: &str, command: &mut Command, deadline: Duration) -> String {
    let directory = scratch(name);
    let mut process = Process::spawn(name, directory.path(), command);
    let status = process.wait(deadline).await;
    assert!(status.success(), "{name}: {status}\n{}\n{}", process.stdout(), process.stderr());
    let said = process.stdout();
    println!("{said}");
    said
}

/// Runs a file of `tests/python`. Without `stubs`, a folder, the file generates its own stubs, with grpcio-tools.
pub(crate) async fn pytest(file: &str, stubs: Option<&Path>) {
    let sandbox = Arm::ZooKeeper.sandbox("python").await;
    let server = Server::start(&sandbox.hosts).await;
    let mut command = Command::new(installed("venv/bin/pytest", "python"));
    command
        .args(["--quiet", "--no-header", "-p", "no:cacheprovider", file])
        .current_dir(root().join("tests/python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("ROLLCALL_ADDR", server.grpc().to_string())
        .env("ZOOKEEPER_ADDR", &sandbox.hosts)
        .envs(stubs.map(|folder| ("ROLLCALL_STUBS", folder)));
    succeed("pytest", &mut command, Duration::from_secs(300)).await;
}

#[tokio::test]
async fn python_makes_all_eight_calls_with_generated_stubs() {
    pytest("test_stubs.py", None).await;
}

#[tokio::test]
async fn kazoo_and_nd_service_registry_live_beside_us() {
    pytest("test_interop.py", None).await;
}

/// Runs files of the Python client's own tests, which start their own replicas.
async fn pytest_of_the_client(files: &[&str]) {
    let sandbox = Arm::ZooKeeper.sandbox("client-py").await;
    let mut command = Command::new(installed("venv/bin/pytest", "python"));
    command
        .args(["--quiet", "--no-header", "-p", "no:cacheprovider"])
        .args(files)
        .current_dir(root().join("client-py/tests"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("ROLLCALL_SERVER_BIN", program())
        .env("ZOOKEEPER_ADDR", &sandbox.hosts);
    succeed("pytest", &mut command, Duration::from_secs(600)).await;
}

#[tokio::test]
async fn the_python_client_has_the_verbs_and_its_stubs_are_current() {
    pytest_of_the_client(&[
        "test_stubs.py",
        "test_pure.py",
        "test_documents.py",
        "test_registry.py",
        "test_aio.py",
        "test_django.py",
    ])
    .await;
}

#[tokio::test]
async fn the_python_client_survives_replicas_and_forks() {
    pytest_of_the_client(&["test_replicas.py", "test_fork.py", "test_greenlets.py"]).await;
}

#[tokio::test]
async fn the_python_client_locks_and_lives_beside_nd_service_registry() {
    pytest_of_the_client(&["test_locks.py", "test_interrupted.py", "test_beside_nd.py"]).await;
}

#[tokio::test]
async fn go_makes_all_eight_calls_with_generated_stubs() {
    let sandbox = Arm::ZooKeeper.sandbox("go").await;
    let server = Server::start(&sandbox.hosts).await;
    let here = root().join("tests/go");
    let plugins = installed("bin/protoc-gen-go-grpc", "go-plugins");
    // Always generated anew: stale stubs would test another API than the server's.
    let mut generate = Command::new(installed("npm/node_modules/.bin/buf", "buf"));
    generate
        .args(["generate", "../../proto", "--template", "buf.gen.yaml"])
        .current_dir(&here)
        .env("PATH", path_with(plugins.parent().unwrap()));
    succeed("buf", &mut generate, Duration::from_secs(120)).await;
    let mut test = Command::new("go");
    test.args(["test", "-count=1", "-timeout=180s", "./..."])
        .current_dir(&here)
        .env("ROLLCALL_ADDR", server.grpc().to_string());
    // The first run compiles grpc-go.
    succeed("go-test", &mut test, Duration::from_secs(600)).await;
}

async fn run_tour_of(file: &str) {
    let sandbox = Arm::ZooKeeper.sandbox("tour").await;
    let server = Server::start(&sandbox.hosts).await;
    let page = fs::read_to_string(root().join(file)).unwrap();
    run_tour(&console::parse(&page, "tour"), &server, &sandbox).await;
}

#[tokio::test]
async fn the_tour_of_the_readme_prints_what_the_readme_shows() {
    run_tour_of("README.md").await;
}

#[tokio::test]
async fn the_long_tour_prints_what_the_page_shows() {
    run_tour_of("docs/tour.md").await;
}

#[tokio::test]
async fn the_tours_runner_puts_the_servers_address_in_place() {
    let sandbox = Arm::ZooKeeper.sandbox("tour").await;
    let server = Server::start(&sandbox.hosts).await;
    let page = "# Tour\n```console\n$ grpcurl -plaintext localhost:7700 list\ngrpc.health.v1.Health\n…\n\
                rollcall.v1.Registry\n```\n";
    run_tour(&console::parse(page, "tour"), &server, &sandbox).await;
}

/// The page says `localhost:7700`, which is not the address of the test's server. A `grpcurl` that comes first on the
/// PATH replaces it, so that the commands stay as they are.
async fn run_tour(steps: &[console::Step], server: &Server, sandbox: &Sandbox) {
    let grpcurl = installed("bin/grpcurl", "grpcurl");
    let directory = scratch("tour");
    let shim = directory.path().join("grpcurl");
    let script = format!(
        "#!/bin/sh\nfor argument; do\n    shift\n    [ \"$argument\" = localhost:7700 ] && argument={}\n    \
         set -- \"$@\" \"$argument\"\ndone\nexec '{}' \"$@\"\n",
        server.grpc(),
        grpcurl.display()
    );
    fs::write(&shim, script).unwrap();
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
    let path = path_with(directory.path());
    console::run(steps, &[("PATH", &path), ("ZOOKEEPER_ADDR", &sandbox.hosts)]).await;
}
