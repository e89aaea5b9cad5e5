//! Services in several languages, beside each other: a Go program, and a Python application under a forking server.

use std::fs;
use std::path::Path;
use std::process::Command;

use rollcall_tests::arm::Arm;
use rollcall_tests::process::{Process, scratch};
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually};
use rollcall_tests::zookeeper::free_address;

use crate::go_client::{COMPILING, go};
use crate::polyglot::{installed, root, succeed};

/// Number of turns of each process.
const ROUNDS: usize = 40;
const GO: [&str; 2] = ["go0", "go1"];
/// Number of workers of the Python application, which is one service.
const WORKERS: usize = 2;
const PEERS: usize = GO.len() + 1;

fn python(replicas: &str, directory: &Path, file: &Path) -> Process {
    let mut command = Command::new(installed("venv/bin/python", "python"));
    command
        .arg(root().join("tests/python/prefork.py"))
        .args([replicas, "py", &PEERS.to_string(), &WORKERS.to_string(), &ROUNDS.to_string()])
        .arg(file)
        .env("PYTHONPATH", root().join("client-py"))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Process::spawn("py", directory, &mut command)
}

#[tokio::test]
async fn go_and_forked_python_find_each_other_and_take_turns_while_a_replica_is_killed() {
    let sandbox = Arm::ZooKeeper.sandbox("services").await;
    // A killed replica's place in the queue is free when its session has ended.
    let session = ["--session-timeout", "4s"];
    let doomed = Server::start_with(&sandbox.hosts, &session).await;
    let address = free_address();
    let replicas = format!("{},{address}", doomed.grpc());
    let directory = scratch("services");
    let (binary, file) = (directory.path().join("service"), directory.path().join("number"));
    let mut build = go("client-go");
    succeed("go-build", build.arg("build").arg("-o").arg(&binary).arg("./examples/service"), COMPILING).await;
    let mut services = vec![python(&replicas, directory.path(), &file)];
    for name in GO {
        let mut command = Command::new(&binary);
        command.arg(name).args([PEERS.to_string(), ROUNDS.to_string()]).arg(&file).env("ROLLCALL_SERVER", &replicas);
        services.push(Process::spawn(name, directory.path(), &mut command));
    }
    eventually("they take turns", 2 * SOON, async || {
        let number = number(&file);
        check(number >= 2 * PEERS, || format!("it is at {number}"))
    })
    .await;
    // Until now all services were connected to the replica that is killed.
    let _stays = Server::start_at(address, &sandbox.hosts, &session).await;
    drop(doomed);
    for service in &mut services {
        let status = service.wait(6 * SOON).await;
        assert!(status.success(), "{status}: {}", service.stderr());
    }
    let mut said: Vec<_> = services[0].stdout().lines().map(str::to_owned).collect();
    said.sort();
    assert_eq!(said, ["0 found ['go0', 'go1', 'py']", "1 found ['go0', 'go1', 'py']", "done"]);
    for service in &services[1..] {
        assert_eq!(service.stdout(), "found [\"go0\" \"go1\" \"py\"]\ndone\n");
    }
    assert_eq!(number(&file), (GO.len() + WORKERS) * ROUNDS, "two had their turn at once");
}

/// The number that they have counted up to.
fn number(file: &Path) -> usize {
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
