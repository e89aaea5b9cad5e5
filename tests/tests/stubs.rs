//! The stubs that `buf.gen.yaml` generates, in every language, used against a server; and the programs of
//! docs/stubs.md, as the page shows them. `tests/setup.sh buf go-plugins grpc-plugins java node python` installs what
//! this needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rollcall_tests::arm::Arm;
use rollcall_tests::page;
use rollcall_tests::process::scratch;
use rollcall_tests::server::Server;
use tempfile::TempDir;

use crate::polyglot::{installed, path_with, pytest, root, succeed};

const RUNNING: Duration = Duration::from_secs(120);
/// Maven, tsc and buf take a few seconds to start, even on a quiet machine.
const COMPILING: Duration = Duration::from_secs(300);

/// All output of `buf generate` with the present `buf.gen.yaml`.
async fn generated() -> TempDir {
    for (plugin, part) in [("protoc-gen-go", "go-plugins"), ("protoc", "java"), ("grpc_python_plugin", "grpc-plugins")]
    {
        installed(&format!("bin/{plugin}"), part);
    }
    let of_node = installed("node/node_modules/.bin/protoc-gen-ts_proto", "node");
    let path = format!("{}:{}", of_node.parent().unwrap().display(), path_with(&root().join(".cache/bin")));
    let directory = scratch("stubs");
    let mut generate = Command::new(installed("npm/node_modules/.bin/buf", "buf"));
    generate.args(["generate", "--output"]).arg(directory.path()).current_dir(root()).env("PATH", path);
    succeed("buf", &mut generate, COMPILING).await;
    directory
}

fn files(folder: &Path) -> BTreeMap<PathBuf, String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let files = entries.map(|entry| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().into(), fs::read_to_string(path).unwrap())
    });
    files.collect()
}

fn page() -> String {
    fs::read_to_string(root().join("docs/stubs.md")).expect("there is a docs/stubs.md")
}

/// Each test has its own server on real ZooKeeper.
async fn server(name: &str) -> (Server, rollcall_tests::zookeeper::Sandbox) {
    let sandbox = Arm::ZooKeeper.sandbox(name).await;
    (Server::start(&sandbox.hosts).await, sandbox)
}

#[tokio::test]
async fn the_committed_stubs_of_go_are_what_the_protos_make() {
    let directory = generated().await;
    let made = files(&directory.path().join("client-go/rollcallv1"));
    let committed = files(&root().join("client-go/rollcallv1"));
    let names = |files: &BTreeMap<PathBuf, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&made), names(&committed));
    for (name, text) in made {
        let is_same = committed[&name] == text;
        assert!(is_same, "client-go/rollcallv1/{} is not what the protos make: run make stubs", name.display());
    }
}

#[tokio::test]
async fn python_makes_all_eight_calls_with_what_buf_generates() {
    let directory = generated().await;
    pytest("test_stubs.py", Some(&directory.path().join("gen/python"))).await;
}

/// Node, and the packages that the page names.
fn node(directory: &Path) -> Command {
    let found = Command::new("node").arg("--version").output();
    assert!(found.is_ok_and(|node| node.status.success()), "no node: install Node.js 18 or newer with npm");
    symlink(installed("node/node_modules", "node"), directory.join("node_modules")).unwrap();
    let mut command = Command::new("node");
    command.current_dir(directory);
    command
}

#[test]
fn the_page_installs_the_packages_that_are_tested() {
    let tested = fs::read_to_string(root().join("tests/node/package.json")).unwrap();
    let tested: serde_json::Value = serde_json::from_str(&tested).unwrap();
    let tested = |kind: &str| {
        let packages = tested[kind].as_object().unwrap().iter();
        packages.map(|(name, version)| format!("{name}@{}", version.as_str().unwrap())).collect::<BTreeSet<_>>()
    };
    let tested: BTreeSet<_> = tested("dependencies").union(&tested("devDependencies")).cloned().collect();
    let page = page();
    let lines = page.lines().filter(|line| line.starts_with("npm install "));
    let shown: BTreeSet<_> = lines.flat_map(str::split_whitespace).filter(|word| word.contains('@')).collect();
    assert!(!shown.is_empty());
    for package in shown {
        assert!(tested.contains(package), "the page installs {package}; tests/node/package.json has {tested:?}");
    }
}

/// grpc-js does not cancel a call whose loop is left: the program would take ten seconds to end.
#[test]
fn the_programs_for_node_cancel_the_watch_that_they_leave() {
    let page = page();
    for (section, language) in [("Node", "js"), ("TypeScript", "ts")] {
        let shown = page::blocks(&page, section);
        let program = page::only(&shown, language);
        let (_, after) = program.split_once("const watching = registry.watch(").expect("the program watches");
        assert!(after.contains("\n}\nwatching.cancel();"), "the program in {language} leaves its watch");
    }
}

#[tokio::test]
async fn the_node_program_of_the_page_prints_what_the_page_shows() {
    let (server, _sandbox) = server("page-node").await;
    let shown = page::blocks(&page(), "Node");
    let directory = scratch("page-node");
    symlink(root().join("proto"), directory.path().join("proto")).unwrap();
    fs::write(directory.path().join("registry.mjs"), page::only(&shown, "js")).unwrap();
    let mut run = node(directory.path());
    run.arg("registry.mjs").env("ROLLCALL_SERVER", server.grpc().to_string());
    assert_eq!(succeed("node", &mut run, RUNNING).await, page::only(&shown, "text"));
}

#[tokio::test]
async fn the_typescript_program_of_the_page_compiles_with_what_buf_generates() {
    let (server, _sandbox) = server("page-typescript").await;
    let shown = page::blocks(&page(), "TypeScript");
    let directory = generated().await;
    fs::write(directory.path().join("registry.ts"), page::only(&shown, "ts")).unwrap();
    fs::write(directory.path().join("tsconfig.json"), page::only(&shown, "json")).unwrap();
    fs::write(directory.path().join("package.json"), r#"{ "type": "module" }"#).unwrap();
    let mut run = node(directory.path());
    run.arg("out/registry.js").env("ROLLCALL_SERVER", server.grpc().to_string());
    let mut compile = Command::new(installed("node/node_modules/.bin/tsc", "node"));
    succeed("tsc", compile.current_dir(directory.path()), COMPILING).await;
    assert_eq!(succeed("node", &mut run, RUNNING).await, page::only(&shown, "text"));
}

/// Runs Maven, which resets the colours of a terminal even without one.
async fn said_under_maven(run: &mut Command) -> String {
    succeed("mvn", run, COMPILING).await.replace("\u{1b}[0m", "")
}

/// The page's project in `directory`, which Maven compiles and runs without a network.
fn maven(directory: &Path, server: &Server) -> (Command, String) {
    let shown = page::blocks(&page(), "Java");
    let pom = fs::read_to_string(root().join("tests/java/pom.xml")).unwrap();
    assert_eq!(page::only(&shown, "xml"), pom, "what is fetched is tests/java/pom.xml");
    let sources = directory.join("src/main/java");
    fs::create_dir_all(&sources).unwrap();
    fs::write(sources.join("Example.java"), page::only(&shown, "java")).unwrap();
    fs::write(directory.join("pom.xml"), pom).unwrap();
    symlink(root().join("proto"), directory.join("proto")).unwrap();
    installed("bin/protoc-gen-grpc-java", "java");
    let found = Command::new("mvn").arg("--version").output();
    assert!(found.is_ok_and(|mvn| mvn.status.success()), "no mvn: install Maven 3.6 or newer and a JDK");
    let (_, command) = page::only(&shown, "").trim_end().split_once(' ').unwrap();
    let mut run = Command::new("mvn");
    run.args(["--batch-mode", "--offline"])
        .arg(format!("-Dmaven.repo.local={}", installed("maven", "java").display()))
        .args(command.split(' '))
        .current_dir(directory)
        .env("ROLLCALL_SERVER", server.grpc().to_string())
        // Compiling takes less time than optimizing the compiler.
        .env("MAVEN_OPTS", "-XX:TieredStopAtLevel=1");
    (run, page::only(&shown, "text").to_owned())
}

#[tokio::test]
async fn the_java_program_of_the_page_prints_what_the_page_shows() {
    let (server, _sandbox) = server("page-java").await;
    let directory = scratch("page-java");
    let (mut run, shown) = maven(directory.path(), &server);
    assert_eq!(said_under_maven(&mut run).await, shown);
}

#[tokio::test]
async fn the_java_program_of_the_page_compiles_with_what_buf_generates() {
    let (server, _sandbox) = server("buf-java").await;
    let stubs = generated().await;
    let directory = scratch("buf-java");
    let (mut run, shown) = maven(directory.path(), &server);
    // The stubs are sources of the project, and Maven generates none.
    fs::rename(stubs.path().join("gen/java/io"), directory.path().join("src/main/java/io")).unwrap();
    assert_eq!(said_under_maven(run.arg("-Dprotoc.skip=true")).await, shown);
    assert!(!directory.path().join("target/generated-sources/protobuf").exists(), "Maven has generated stubs too");
}

/// There is no C# compiler here, so the test only checks that the stubs contain all of the API.
#[tokio::test]
async fn the_stubs_of_csharp_have_every_message_and_call() {
    let directory = generated().await;
    let made = files(&directory.path().join("gen/csharp"));
    let stub = &made[Path::new("RegistryGrpc.cs")];
    let mut messages = 0;
    let mut calls = 0;
    for (proto, text) in files(&root().join("proto/rollcall/v1")) {
        let stem = proto.file_stem().unwrap().to_str().unwrap();
        let file = &made[Path::new(&format!("{}{}.cs", stem[..1].to_uppercase(), &stem[1..]))];
        assert!(file.contains("namespace Rollcall.V1 {"), "{stem}");
        for line in text.lines() {
            if let Some(message) = line.strip_prefix("message ").and_then(|line| line.split_whitespace().next()) {
                assert!(
                    file.contains(&format!("public sealed partial class {message} : pb::IMessage<{message}>")),
                    "{message}"
                );
                messages += 1;
            } else if let Some((call, _)) = line.trim().strip_prefix("rpc ").and_then(|line| line.split_once('(')) {
                let mut methods = stub.lines().filter(|line| line.contains("public virtual grpc::Async"));
                let is_there = methods.any(|line| {
                    line.contains(&format!("Response> {call}(")) || line.contains(&format!("Response> {call}Async("))
                });
                assert!(is_there, "{call}");
                calls += 1;
            }
        }
    }
    assert!(calls == 10 && messages > 50, "{calls} calls, {messages} messages");
}
