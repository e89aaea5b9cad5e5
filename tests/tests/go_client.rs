//! The Go client, its stubs and its pages. `tests/setup.sh buf go-plugins staticcheck` fetches what they need.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rollcall_tests::arm::Arm;
use rollcall_tests::page;
use rollcall_tests::process::scratch;
use rollcall_tests::server::{Server, program};

use crate::polyglot::{installed, path_with, root, succeed};

/// The first run compiles gRPC, with the race detector once more.
pub(crate) const COMPILING: Duration = Duration::from_secs(900);

/// Go, in one of our modules.
pub(crate) fn go(module: &str) -> Command {
    let found = Command::new("go").arg("version").output();
    assert!(found.is_ok_and(|go| go.status.success()), "no go: install Go 1.26 or newer and put it on the PATH");
    let mut command = Command::new("go");
    command.current_dir(root().join(module));
    command
}

/// The plugins of `buf.gen.yaml` that are programs on this machine, and nothing else of them.
fn local_plugins() -> String {
    let template = fs::read_to_string(root().join("buf.gen.yaml")).expect("there is a buf.gen.yaml");
    let (head, plugins) = template.split_once("plugins:\n").expect("it has plugins");
    let is_local = |plugin: &&str| plugin.starts_with("local: ");
    let local: Vec<_> = plugins.split("  - ").filter(is_local).map(|plugin| format!("  - {plugin}")).collect();
    assert!(!local.is_empty(), "no plugin is local");
    format!("{head}plugins:\n{}", local.concat())
}

fn files(folder: &Path) -> BTreeMap<PathBuf, String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let files = entries.map(|entry| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().into(), fs::read_to_string(path).unwrap())
    });
    files.collect()
}

#[tokio::test]
async fn the_committed_stubs_are_what_the_protos_make() {
    let directory = scratch("stubs");
    let template = directory.path().join("buf.gen.yaml");
    fs::write(&template, local_plugins()).unwrap();
    let plugins = installed("bin/protoc-gen-go-grpc", "go-plugins");
    let mut generate = Command::new(installed("npm/node_modules/.bin/buf", "buf"));
    generate
        .args(["generate", "--template"])
        .arg(&template)
        .arg("--output")
        .arg(directory.path())
        .current_dir(root())
        .env("PATH", path_with(plugins.parent().unwrap()));
    succeed("buf", &mut generate, Duration::from_secs(120)).await;
    let made = files(&directory.path().join("client-go/rollcallv1"));
    let committed = files(&root().join("client-go/rollcallv1"));
    let names = |files: &BTreeMap<PathBuf, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&made), names(&committed));
    for (name, text) in made {
        let is_same = committed[&name] == text;
        assert!(is_same, "client-go/rollcallv1/{} is not what the protos make: run buf generate", name.display());
    }
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

#[tokio::test]
async fn the_go_program_of_the_readme_prints_what_the_readme_shows() {
    let sandbox = Arm::ZooKeeper.sandbox("readme-go").await;
    let server = Server::start(&sandbox.hosts).await;
    let shown = page::blocks(&fs::read_to_string(root().join("README.md")).unwrap(), "In Go");
    let directory = scratch("readme-go");
    let file = directory.path().join("main.go");
    // The page says where the server of `make run` is.
    let address = server.grpc().to_string();
    fs::write(&file, page::only(&shown, "go").replace("localhost:7700", &address)).unwrap();
    let said = succeed("go-run", go("client-go").arg("run").arg(&file), COMPILING).await;
    assert_eq!(said, page::only(&shown, "text"));
}

#[tokio::test]
async fn the_node_program_of_the_page_prints_what_the_page_shows() {
    let sandbox = Arm::ZooKeeper.sandbox("page-node").await;
    let server = Server::start(&sandbox.hosts).await;
    let text = fs::read_to_string(root().join("docs/stubs.md")).unwrap();
    let shown = page::blocks(&text, "Node");
    let modules = installed("node/node_modules", "node");
    let locked = fs::read_to_string(root().join("tests/node/package.json")).unwrap();
    let locked: serde_json::Value = serde_json::from_str(&locked).unwrap();
    let packages = locked["dependencies"].as_object().unwrap().iter();
    let packages: Vec<_> = packages.map(|(name, version)| format!("{name}@{}", version.as_str().unwrap())).collect();
    assert!(
        text.contains(&format!("npm install {}\n", packages.join(" "))),
        "the page installs other than {packages:?}"
    );
    let directory = scratch("page-node");
    std::os::unix::fs::symlink(modules, directory.path().join("node_modules")).unwrap();
    std::os::unix::fs::symlink(root().join("proto"), directory.path().join("proto")).unwrap();
    fs::write(directory.path().join("registry.mjs"), page::only(&shown, "js")).unwrap();
    let found = Command::new("node").arg("--version").output();
    assert!(found.is_ok_and(|node| node.status.success()), "no node: install Node.js 18 or newer with npm");
    let mut run = Command::new("node");
    run.arg("registry.mjs").current_dir(directory.path()).env("ROLLCALL_SERVER", server.grpc().to_string());
    let said = succeed("node", &mut run, Duration::from_secs(120)).await;
    assert_eq!(said, page::only(&shown, "text"));
}
