//! `--snapshot-dir`: the last known state is still served after a restart without ZooKeeper, and marked as stale.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rollcall_proto::v1::watch_response::Event;
use rollcall_proto::v1::{self, BackendState, GetRequest, WatchRequest};
use rollcall_tests::arm::Cut;
use rollcall_tests::client::{Client, get, latest, refused, shown};
use rollcall_tests::follow::{Known, Watching};
use rollcall_tests::process::{Process, Signal, scratch};
use rollcall_tests::server::{SERVICE, Server, program};
use rollcall_tests::wait::{SOON, check, eventually, soon};
use serde_json::json;
use tempfile::TempDir;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use super::ARM;

/// A server behind a proxy that stores its views in a directory.
struct Keeping {
    cut: Cut,
    directory: TempDir,
}

impl Keeping {
    async fn start() -> Keeping {
        let directory = scratch("kept");
        let cut = ARM.behind_a_proxy("snapshots", &["--snapshot-dir", text(directory.path())]).await;
        Keeping { cut, directory }
    }

    fn hosts(&self) -> String {
        format!("{}{}", self.cut.proxy.address(), self.cut.sandbox.chroot)
    }

    /// The files with views.
    fn files(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.directory.path()).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "view")).collect()
    }

    /// Waits until a file contains this child.
    async fn wait_until_kept(&self, name: &str) {
        eventually("it is on disk", SOON, async || {
            let holds = |file: &PathBuf| {
                let bytes = fs::read(file).unwrap_or_default();
                bytes.windows(name.len()).any(|window| window == name.as_bytes())
            };
            check(self.files().iter().any(holds), || format!("{:?}", self.files()))
        })
        .await;
    }

    /// Kills the replica, cuts it off from ZooKeeper, and starts it again.
    async fn restart_without_zookeeper(&mut self) {
        self.cut.server.process().kill();
        self.cut.proxy.refuse().await;
        self.cut.proxy.cut();
        self.cut.server = Server::launch(&self.hosts(), &["--snapshot-dir", text(self.directory.path())]).await;
        self.cut.client = self.cut.server.client().await;
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a scratch directory has a plain name")
}

fn cached(path: &str) -> GetRequest {
    GetRequest { path: path.to_owned(), ..Default::default() }
}

async fn read(client: &Client, request: GetRequest) -> Result<v1::GetResponse, tonic::Status> {
    Ok(soon("an answer to Get", client.clone().get(request)).await?.into_inner())
}

#[tokio::test]
async fn what_was_known_is_told_after_a_restart_without_zookeeper() {
    let mut s = Keeping::start().await;
    s.cut.zk.create("/kept/one", b"1").await;
    s.cut.zk.create("/kept/two", b"2").await;
    let before = read(&s.cut.client, latest("/kept")).await.unwrap();
    let tree = GetRequest { recursive: true, ..latest("/kept") };
    read(&s.cut.client, tree.clone()).await.unwrap();
    s.wait_until_kept("two").await;
    eventually("both are on disk", SOON, async || check(s.files().len() == 2, || format!("{:?}", s.files()))).await;

    s.restart_without_zookeeper().await;
    s.cut.server.wait_until_serving().await;
    let answer = read(&s.cut.client, cached("/kept")).await.unwrap();
    assert!(answer.stale && answer.as_of.is_some());
    assert_eq!((&answer.node, answer.revision), (&before.node, before.revision));
    let answer = read(&s.cut.client, GetRequest { recursive: true, ..cached("/kept") }).await.unwrap();
    assert!(answer.stale && answer.node.unwrap().children.len() == 2);
    refused(read(&s.cut.client, latest("/kept")).await, Code::Unavailable, "BACKEND_UNAVAILABLE");
    refused(read(&s.cut.client, cached("/never/read")).await, Code::Unavailable, "BACKEND_UNAVAILABLE");

    // Watches begin, and resume from a revision, as if nothing had happened.
    let request = |since_revision| WatchRequest { path: "/kept".into(), since_revision, ..Default::default() };
    let mut fresh = Watching::start_with(&s.cut.client, request(0)).await;
    assert_eq!((fresh.known.names(), fresh.revision), (vec!["one", "two"], before.revision));
    let message = fresh.step().await;
    let Some(Event::Backend(backend)) = message.event else { panic!("{message:?}") };
    assert_eq!(backend.state(), BackendState::Suspended);
    assert!(message.stale && backend.as_of.is_some());
    let mut resumed = Watching::start_with(&s.cut.client, request(before.revision)).await;
    assert_eq!((resumed.snapshots, resumed.revision), (0, before.revision), "current");

    s.cut.zk.create("/kept/three", b"3").await;
    s.cut.zk.delete("/kept/one").await;
    s.cut.proxy.accept().await;
    fresh.until("what came meanwhile", |known| known.names() == ["three", "two"]).await;
    assert_eq!((fresh.snapshots, fresh.known.child("two")), (1, json!({"text": "2"})));
    loop {
        let message = fresh.step().await;
        if let Some(Event::Backend(backend)) = message.event {
            assert_eq!((backend.state(), message.stale), (BackendState::Connected, false));
            break;
        }
    }
    // The watcher that resumed knew nothing but its revision.
    resumed.known = known_by_reading(&before);
    resumed.until("what came meanwhile", |known| known.names() == ["three", "two"]).await;
    assert_eq!(resumed.snapshots, 0);
    let answer = read(&s.cut.client, cached("/kept")).await.unwrap();
    assert!(!answer.stale && answer.as_of.is_none() && answer.revision > before.revision);
}

/// The state that a client knows from this answer.
fn known_by_reading(answer: &v1::GetResponse) -> Known {
    let node = answer.node.as_ref().unwrap();
    let children = node.children.iter().map(|(name, child)| (name.clone(), shown(child.value.as_ref())));
    Known { exists: node.exists, value: shown(node.value.as_ref()), children: children.collect() }
}

#[tokio::test]
async fn a_list_that_was_emptied_is_told_as_it_was_before() {
    let mut s = Keeping::start().await;
    s.cut.zk.create("/emptied/one", b"1").await;
    get(&s.cut.client, "/emptied").await;
    s.wait_until_kept("one").await;
    s.cut.zk.delete("/emptied/one").await;
    assert!(get(&s.cut.client, "/emptied").await.children.is_empty());
    // Stopped, not killed, so that it has written everything.
    s.cut.server.process().signal(Signal::TERM);
    s.cut.server.process().wait(SOON).await;
    s.restart_without_zookeeper().await;
    let answer = read(&s.cut.client, cached("/emptied")).await.unwrap();
    assert!(answer.stale && answer.node.unwrap().children.contains_key("one"));
    s.cut.proxy.accept().await;
    eventually("the truth", SOON, async || {
        let answer = read(&s.cut.client, cached("/emptied")).await.unwrap();
        check(!answer.stale && answer.node.unwrap().children.is_empty(), || "it is stale".to_owned())
    })
    .await;
}

#[tokio::test]
async fn a_broken_file_is_named_in_the_log_and_ignored() {
    let mut s = Keeping::start().await;
    s.cut.zk.create("/broken/one", b"1").await;
    get(&s.cut.client, "/broken").await;
    s.wait_until_kept("one").await;
    s.cut.server.process().kill();
    let file = s.files().remove(0);
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();

    s.restart_without_zookeeper().await;
    assert_eq!(s.cut.server.health(SERVICE).await.unwrap(), ServingStatus::NotServing, "there is nothing to tell");
    let log = s.cut.server.process().stderr();
    assert!(log.contains(text(&file)) && log.contains("checksum"), "{log}");
    refused(read(&s.cut.client, cached("/broken")).await, Code::Unavailable, "BACKEND_UNAVAILABLE");
    s.cut.proxy.accept().await;
    s.cut.server.wait_until_serving().await;
    assert!(get(&s.cut.client, "/broken").await.children.contains_key("one"));
}

#[tokio::test]
async fn a_directory_of_another_replica_or_another_tree_is_refused() {
    let mut s = Keeping::start().await;
    let refused_as = async |hosts: &str, why: &str| {
        let directory = scratch("refused");
        let mut command = Command::new(program());
        command.args(["--zookeeper", hosts, "--snapshot-dir", text(s.directory.path())]);
        command.args(["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
        let mut process = Process::spawn("rollcall-server", directory.path(), &mut command);
        assert!(!process.wait(SOON).await.success());
        assert!(process.stderr().contains(why), "{}", process.stderr());
        assert_eq!(process.stdout(), "");
    };
    refused_as(&s.hosts(), "is in use by another process").await;
    s.cut.server.process().kill();
    refused_as(&format!("{}/elsewhere", s.cut.proxy.address()), "keeps the views of").await;
    // The server that the directory belongs to can use it again.
    s.cut.server = Server::start_with(&s.hosts(), &["--snapshot-dir", text(s.directory.path())]).await;
}
