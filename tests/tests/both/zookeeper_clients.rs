//! ZooKeeper's own clients, in four languages, connect, create, watch and list. `tests/setup.sh judges` installs them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use rollcall_tests::process::{Process, scratch};
use rollcall_tests::wait::{SOON, check, eventually, soon};
use rollcall_tests::zookeeper::Sandbox;
use zookeeper_client::{Acls, CreateMode, Error, EventType, OneshotWatcher};

use super::ARM;
use crate::polyglot::{installed, root, succeed};

/// The output of `tests/judges/session.*`, which all do the same.
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

/// Runs one of `tests/judges/session.*`, with its client on `variable`.
async fn session(name: &str, interpreter: impl AsRef<Path>, variable: &str, client: impl AsRef<Path>) {
    let sandbox = ARM.sandbox("clients").await;
    let mut command = Command::new(interpreter.as_ref());
    command.arg(root().join("tests/judges").join(name)).arg(sandbox.hosts).env(variable, client.as_ref());
    assert_eq!(succeed(name, &mut command, 2 * SOON).await, TOLD);
}

#[tokio::test]
async fn kazoo_2_11_connects_creates_watches_and_lists() {
    let source = installed("judges/kazoo", "judges");
    session("session.py", installed("judges/kazoo-tests/bin/python", "judges"), "PYTHONPATH", source).await;
}

#[tokio::test]
async fn kazoo_2_6_connects_creates_watches_and_lists() {
    session("session.py", installed("judges/kazoo-2.6/bin/python", "judges"), "PYTHONPATH", "").await;
}

#[tokio::test]
async fn node_zookeeper_client_connects_creates_watches_and_lists() {
    session("session.js", "node", "NODE_PATH", installed("judges/node/node_modules", "judges")).await;
}

#[tokio::test]
async fn zookeeper_client_connects_creates_watches_and_lists() {
    let told = rust_session(&ARM.sandbox("clients").await).await.unwrap();
    assert_eq!(told, TOLD);
}

/// Does the same as `tests/judges/session.*`, with the crate zookeeper-client.
async fn rust_session(sandbox: &Sandbox) -> Result<String, Error> {
    let (zk, another) = (sandbox.zk().await, sandbox.zk().await);
    let (client, other) = (zk.client(), another.client());
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

/// Commands for zkCli, each with text that its output must contain before the next.
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
async fn zkcli_connects_creates_watches_and_lists() {
    let sandbox = ARM.sandbox("clients").await;
    let directory = scratch("zkcli");
    let mut java = Command::new("java");
    java.args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
        .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
        .arg("-cp")
        .arg(installed("zookeeper/3.9", "zookeeper").join("*"))
        .args(["org.apache.zookeeper.ZooKeeperMain", "-waitforconnection", "-server", &sandbox.hosts]);
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
