//! Real ZooKeeper servers, alone or three together, as child processes on free loopback ports.
//!
//! The jars come from `tests/setup.sh`. Data is in scratch directories and is fsynced as ZooKeeper does it by default.
//! Its limits are ZooKeeper's defaults: 60 connections from one address, and all tests share one address. Most tests
//! share a few standalone servers a program, each in a chroot of its own: [`Arm`](crate::arm::Arm). Tests that kill or
//! stop servers start their own.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::arm::Place;
use crate::journal::Journal;
use crate::process::{Process, Signal, scratch};
use crate::proxy::Proxy;
use crate::wait::{SOON, eventually};
use crate::zookeeper_witness::Witness;

/// A release pinned in `tests/zookeeper/pom.xml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// The release for most tests: 3.9.
    Newest,
    /// The oldest that Rollcall supports: 3.6.
    Oldest,
}

impl Line {
    fn jars(self) -> PathBuf {
        let name = match self {
            Line::Newest => "3.9",
            Line::Oldest => "3.6",
        };
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.cache/zookeeper").join(name)
    }
}

/// Options of a ZooKeeper server.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The release.
    pub line: Line,
    /// ZooKeeper's unit of time. Sessions expire on its boundaries; an ensemble gives up a server that is silent for
    /// five ticks.
    pub tick: Duration,
    /// Interval of the sweeps over containers and nodes with a time to live; if set, such nodes are allowed. `None`
    /// keeps the defaults: one sweep a minute, and no nodes with a time to live.
    pub sweep: Option<Duration>,
    /// Whether it refuses writes over a quota, instead of only logging them.
    pub quotas: bool,
    /// The digest of the superuser.
    pub super_digest: Option<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Options { line: Line::Newest, tick: Duration::from_secs(1), sweep: None, quotas: false, super_digest: None }
    }
}

/// One or three ZooKeeper servers. Dropping kills them and removes their data.
#[derive(Debug)]
pub struct ZooKeeper {
    options: Options,
    nodes: Vec<Node>,
    directory: TempDir,
    /// The proxies from one server to the leader port of another; none if the servers are connected directly.
    links: HashMap<(usize, usize), Proxy>,
}

#[derive(Debug)]
struct Node {
    address: SocketAddr,
    process: Option<Process>,
}

impl ZooKeeper {
    /// Starts a standalone server, and waits until it answers.
    pub async fn standalone(options: Options) -> ZooKeeper {
        let mut zookeeper = ZooKeeper::prepared(options);
        zookeeper.start(0);
        zookeeper.ready().await;
        zookeeper
    }

    /// A standalone server that is not started yet: its address is known, and nothing listens there.
    pub fn prepared(options: Options) -> ZooKeeper {
        ZooKeeper::configured(options, 1)
    }

    /// Starts three servers, and waits until they have a leader.
    pub async fn ensemble(options: Options) -> ZooKeeper {
        let mut zookeeper = ZooKeeper::configured(options, 3);
        for node in 0..3 {
            zookeeper.start(node);
        }
        zookeeper.ready().await;
        zookeeper
    }

    /// Starts three servers that reach each other through proxies, and waits until they have a leader: see
    /// [`link`](Self::link).
    pub async fn linked_ensemble(options: Options) -> ZooKeeper {
        let mut links = HashMap::new();
        let ports = ports(3);
        for (from, to) in (0..3).flat_map(|from| (0..3).map(move |to| (from, to))).filter(|(from, to)| from != to) {
            links.insert((from, to), Proxy::start((Ipv4Addr::LOCALHOST, ports[to].0).into()).await);
        }
        let mut zookeeper = ZooKeeper::with_ports(options, &ports, links);
        zookeeper.start_all();
        zookeeper.ready().await;
        zookeeper
    }

    fn configured(options: Options, size: usize) -> ZooKeeper {
        ZooKeeper::with_ports(options, &ports(size), HashMap::new())
    }

    fn with_ports(options: Options, ports: &[(u16, u16)], links: HashMap<(usize, usize), Proxy>) -> ZooKeeper {
        let directory = scratch("zookeeper");
        let nodes: Vec<Node> = ports.iter().map(|_| Node { address: free_address(), process: None }).collect();
        for (index, node) in nodes.iter().enumerate() {
            let mut members = String::new();
            for (other, (peer, election)) in ports.iter().enumerate().filter(|_| ports.len() > 1) {
                let peer = links.get(&(index, other)).map_or(*peer, |link| link.address().port());
                writeln!(members, "server.{}=127.0.0.1:{peer}:{election}", other + 1).unwrap();
            }
            let data = directory.path().join(format!("data-{index}"));
            fs::create_dir(&data).unwrap();
            fs::write(data.join("myid"), format!("{}\n", index + 1)).unwrap();
            let configuration = format!(
                "dataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1\ntickTime={}\ninitLimit=10\nsyncLimit=5\n\
                 minSessionTimeout=100\nmaxSessionTimeout=600000\n\
                 4lw.commands.whitelist=*\nadmin.enableServer=false\n{members}",
                data.display(),
                node.address.port(),
                options.tick.as_millis(),
            );
            fs::write(directory.path().join(format!("zoo-{index}.cfg")), configuration).unwrap();
        }
        ZooKeeper { options, nodes, directory, links }
    }

    /// The addresses for clients: `host:port,…`, without a chroot.
    pub fn hosts(&self) -> String {
        let addresses: Vec<String> = self.nodes.iter().map(|node| node.address.to_string()).collect();
        addresses.join(",")
    }

    /// The address of one server for clients.
    pub fn address(&self, node: usize) -> SocketAddr {
        self.nodes[node].address
    }

    /// The number of servers, running or not.
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// Starts a server that is not running, on its data. Does not wait: see [`ready`](Self::ready).
    ///
    /// # Panics
    /// When the jars are missing.
    pub fn start(&mut self, node: usize) {
        let jars = self.options.line.jars();
        assert!(jars.is_dir(), "no ZooKeeper in {}: run tests/setup.sh zookeeper", jars.display());
        self.kill(node);
        let mut java = Command::new("java");
        java.args(["-Xms32m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
            .arg("-Dorg.slf4j.simpleLogger.showDateTime=true");
        if let Some(sweep) = self.options.sweep {
            java.arg("-Dzookeeper.extendedTypesEnabled=true");
            java.arg(format!("-Dznode.container.checkIntervalMs={}", sweep.as_millis()));
        }
        if let Some(digest) = self.options.super_digest {
            java.arg(format!("-Dzookeeper.DigestAuthenticationProvider.superDigest={digest}"));
        }
        if self.options.quotas {
            java.arg("-Dzookeeper.enforceQuota=true");
        }
        java.arg("-cp")
            .arg(jars.join("*"))
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(self.directory.path().join(format!("zoo-{node}.cfg")));
        let name = format!("zookeeper-{node}");
        self.nodes[node].process = Some(Process::spawn(&name, self.directory.path(), &mut java));
    }

    /// Gives a server that was never started durable nodes (parents first), below which `children_created` children
    /// were created before.
    ///
    /// # Panics
    /// When the jars are missing, or the server has data.
    pub fn make_old(&mut self, node: usize, paths: &[&str], children_created: i32) {
        let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("zookeeper/OldNodes.java");
        let mut java = Command::new("java");
        java.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn").arg("-cp").arg(self.options.line.jars().join("*"));
        java.arg(program).arg(self.directory.path().join(format!("data-{node}")));
        java.arg(children_created.to_string()).args(paths);
        let output = java.output().expect("java runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Kills a server, like a power cut. Its data stays.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].process = None;
    }

    /// Kills every server.
    pub fn kill_all(&mut self) {
        for node in 0..self.size() {
            self.kill(node);
        }
    }

    /// Starts every server that is not running. Does not wait.
    pub fn start_all(&mut self) {
        for node in 0..self.size() {
            if self.nodes[node].process.is_none() {
                self.start(node);
            }
        }
    }

    /// The proxy from a follower to the leader, in a [`linked_ensemble`](Self::linked_ensemble). When it stalls, the
    /// follower goes on answering from its own state, until five ticks are over.
    pub fn link(&self, follower: usize, leader: usize) -> &Proxy {
        &self.links[&(follower, leader)]
    }

    /// Kills every server, and copies their disks.
    pub fn back_up(&mut self) {
        self.kill_all();
        self.copy_all("data", "backup");
    }

    /// Kills every server, and restores each disk from its [back-up](Self::back_up).
    pub fn restore(&mut self) {
        for node in 0..self.size() {
            self.forget(node);
        }
        self.copy_all("backup", "data");
    }

    fn copy_all(&self, from: &str, to: &str) {
        for node in 0..self.size() {
            let folder = |name| self.directory.path().join(format!("{name}-{node}/version-2"));
            fs::create_dir_all(folder(to)).unwrap();
            for file in fs::read_dir(folder(from)).unwrap() {
                let file = file.unwrap();
                fs::copy(file.path(), folder(to).join(file.file_name())).unwrap();
            }
        }
    }

    /// Deletes the data of a server, which is killed if it runs: it starts as a new one.
    pub fn forget(&mut self, node: usize) {
        self.kill(node);
        let data = self.directory.path().join(format!("data-{node}/version-2"));
        fs::remove_dir_all(&data).expect("a server that ran has data");
    }

    /// Freezes a server: it keeps its connections and answers nothing.
    pub fn pause(&mut self, node: usize) {
        self.running(node).pause();
    }

    /// Resumes a frozen server.
    pub fn resume(&mut self, node: usize) {
        self.running(node).signal(Signal::CONT);
    }

    fn running(&mut self, node: usize) -> &mut Process {
        self.nodes[node].process.as_mut().expect("the server was started")
    }

    /// Waits until every started server answers clients.
    pub async fn ready(&mut self) {
        for node in 0..self.nodes.len() {
            let address = self.nodes[node].address;
            let Some(process) = &mut self.nodes[node].process else { continue };
            let what = format!("ZooKeeper {node} at {address} answers");
            eventually(&what, 3 * SOON, async || {
                if let Some(status) = process.exited() {
                    // Waiting is of no use; the panic shows the log.
                    panic!("ZooKeeper {node} ended at its start, {status}:\n{}", process.stderr());
                }
                mode(address).await.map(|_| ())
            })
            .await;
        }
    }

    /// The leader of the ensemble, once there is one.
    pub async fn leader(&self) -> usize {
        eventually("the ensemble has a leader", 3 * SOON, async || {
            let mut seen = Vec::new();
            for (index, node) in self.nodes.iter().enumerate() {
                match mode(node.address).await {
                    Ok(mode) if mode == "leader" => return Ok(index),
                    answer => seen.push(answer.unwrap_or_else(|error| error)),
                }
            }
            Err(seen.join(", "))
        })
        .await
    }

    /// The transactions below a chroot that these servers have agreed on so far. The servers need not run.
    pub fn journal(&self, chroot: &str) -> Journal {
        let directories: Vec<_> =
            (0..self.nodes.len()).map(|node| self.directory.path().join(format!("data-{node}"))).collect();
        Journal::read(&directories, chroot)
    }

    /// A new chroot in these servers.
    pub async fn sandbox(&self, name: &str) -> Sandbox {
        Sandbox::on(&self.hosts(), name).await
    }
}

/// Free ports for each server: for the leader, and for elections.
fn ports(servers: usize) -> Vec<(u16, u16)> {
    (0..servers).map(|_| (free_address().port(), free_address().port())).collect()
}

/// A chroot that no other test uses.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The value for `--zookeeper`: hosts and chroot.
    pub hosts: String,
    /// The hosts alone.
    pub servers: String,
    /// The chroot alone, beginning with a slash.
    pub chroot: String,
    /// The place on a shared server.
    pub place: Option<Arc<Place>>,
}

impl Sandbox {
    /// Creates a new chroot on `host:port,…`.
    pub async fn on(servers: &str, name: &str) -> Sandbox {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let chroot = format!("/{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Witness::connect(servers).await.create(&chroot, b"").await;
        Sandbox { hosts: format!("{servers}{chroot}"), servers: servers.to_owned(), chroot, place: None }
    }

    /// A ZooKeeper session inside the chroot.
    pub async fn zk(&self) -> Witness {
        Witness::connect(&self.hosts).await
    }
}

/// Sends a four-letter word to a server, and returns the answer.
///
/// # Errors
/// When it does not answer within two seconds.
pub async fn four_letter_word(address: SocketAddr, word: &str) -> Result<String, String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(word.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    match timeout(Duration::from_secs(2), ask).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("no answer within 2 s".to_owned()),
    }
}

/// The role that a server reports: `standalone`, `leader`, `follower`.
async fn mode(address: SocketAddr) -> Result<String, String> {
    let answer = four_letter_word(address, "srvr").await?;
    let mode = answer.lines().find_map(|line| line.strip_prefix("Mode: "));
    mode.map(str::to_owned).ok_or_else(|| format!("no mode in {answer:?}"))
}

/// A loopback address on which nothing listens, not even while its server is down: this program hands it out once, from
/// a range of ports that it has for itself for as long as it runs. The ranges are below the range from which the kernel
/// takes the ports of outgoing connections.
///
/// # Panics
/// When no port is left.
pub fn free_address() -> SocketAddr {
    const RANGE: u16 = 1_000;
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // The program that listens on the first port of a range owns the range.
    static RANGE_AND_NEXT: LazyLock<(TcpListener, AtomicU16)> = LazyLock::new(|| {
        let firsts = (11_000..32_000).step_by(usize::from(RANGE));
        let mut listeners = firsts.filter_map(|first| TcpListener::bind((Ipv4Addr::LOCALHOST, first)).ok());
        (listeners.next().expect("a range of ports that no other program has"), AtomicU16::new(1))
    });
    let (listener, next) = &*RANGE_AND_NEXT;
    let first = listener.local_addr().expect("it listens").port();
    loop {
        let offset = next.fetch_add(1, Ordering::Relaxed);
        assert!(offset < RANGE, "no free port from {first} on");
        if TcpListener::bind(local(first + offset)).is_ok() {
            return local(first + offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arm::Arm;

    #[tokio::test]
    async fn sandboxes_do_not_see_each_other() {
        let (one, two) = (Arm::ZooKeeper.sandbox("one").await, Arm::ZooKeeper.sandbox("two").await);
        one.zk().await.create("/here", b"").await;
        assert!(two.zk().await.children("/").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn the_oldest_supported_line_starts() {
        let zookeeper = ZooKeeper::standalone(Options { line: Line::Oldest, ..Options::default() }).await;
        let answer = four_letter_word(zookeeper.address(0), "srvr").await.unwrap();
        assert!(answer.contains("Zookeeper version: 3.6."), "{answer}");
    }

    #[tokio::test]
    async fn an_ensemble_outlives_its_leader_and_takes_it_back() {
        let mut zookeeper = ZooKeeper::ensemble(Options::default()).await;
        let sandbox = zookeeper.sandbox("ensemble").await;
        let zk = sandbox.zk().await;
        zk.create("/before", b"").await;
        let leader = zookeeper.leader().await;
        zookeeper.kill(leader);
        assert_ne!(zookeeper.leader().await, leader);
        eventually("a write after the loss of the leader", 3 * SOON, async || {
            zk.try_create("/after", b"").await.map_err(|error| error.to_string())
        })
        .await;
        zookeeper.start(leader);
        zookeeper.ready().await;
        let again = Witness::connect(&format!("{}{}", zookeeper.address(leader), sandbox.chroot)).await;
        again.sync("/").await;
        assert!(again.exists("/before").await && again.exists("/after").await);
    }

    #[tokio::test]
    async fn a_frozen_server_answers_again_when_it_goes_on() {
        let mut zookeeper = ZooKeeper::standalone(Options::default()).await;
        zookeeper.pause(0);
        four_letter_word(zookeeper.address(0), "srvr").await.unwrap_err();
        zookeeper.resume(0);
        zookeeper.ready().await;
    }
}
