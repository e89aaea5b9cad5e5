//! What is measured: a ZooKeeper and a `rollcall-server` in front of it, as child processes on free loopback ports.
//!
//! ZooKeeper runs as its own scripts and its sample configuration run it: fsync on, the Java VM's own choice of
//! compilers and collector, 1000 MB of heap. (The helper that starts it for the tests saves start-up time with other flags,
//! which would slow it down here.)

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_tests::bare::Bare;
use rollcall_tests::client::{Client, latest};
use rollcall_tests::process::{Process, scratch};
use rollcall_tests::wait::eventually;
use rollcall_tests::zookeeper::{four_letter_word, free_address};
use tonic::transport::Endpoint;

use crate::stats::Latencies;

/// How long a system may take to start.
const START: Duration = Duration::from_secs(30);

/// The systems under test. Dropping ends them.
#[derive(Debug)]
pub(crate) struct Setup {
    // In the order in which they are to end: each before what it stands on.
    _server: Process,
    _zookeeper: Process,
    _directory: Box<dyn std::fmt::Debug>,
    grpc: SocketAddr,
    /// ZooKeeper's address with the chroot that everything shares.
    hosts: String,
    facts: Vec<(&'static str, String)>,
}

impl Setup {
    /// Starts ZooKeeper and the server, and waits until both answer.
    pub(crate) async fn start(server: Option<PathBuf>) -> anyhow::Result<Setup> {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let program = server_program(server)?;
        let directory = scratch("bench");
        let fsync = fsync_time(directory.path()).context("can't measure fsync")?;

        let (zookeeper, address) = start_zookeeper(directory.path()).await?;
        let version = four_letter_word(address, "srvr").await.map_err(anyhow::Error::msg)?;
        let hosts = format!("{address}/bench");
        Bare::connect(&address.to_string()).await.create("/bench", b"").await;
        let (server, grpc) = start_server(&program, &hosts, directory.path()).await?;
        let setup = Setup {
            _server: server,
            _zookeeper: zookeeper,
            _directory: Box::new(directory),
            grpc,
            hosts,
            facts: vec![
                ("rollcall-server", first_line(Command::new(&program).arg("--version"))),
                (
                    "build",
                    if cfg!(debug_assertions) { "DEBUG: these figures say nothing" } else { "release" }.to_owned(),
                ),
                ("zookeeper", version.lines().next().unwrap_or_default().replace("Zookeeper version: ", "")),
                ("zookeeper-client", locked_version("zookeeper-client", include_str!("../../Cargo.lock")).to_owned()),
                ("java", first_line(Command::new("java").arg("-version"))),
                ("cores", available_parallelism().map_or_else(|error| error.to_string(), |cores| cores.to_string())),
                ("load before", load.split(' ').next().unwrap_or_default().to_owned()),
                ("fsync", format!("{} µs, the median of 100 appends of 4 KiB", fsync.as_micros())),
            ],
        };
        setup.wait_until_serving().await?;
        Ok(setup)
    }

    /// What was measured on what.
    pub(crate) fn facts(&self) -> Vec<(&'static str, String)> {
        self.facts.clone()
    }

    /// A ZooKeeper session of its own.
    pub(crate) async fn bare(&self) -> Bare {
        Bare::connect(&self.hosts).await
    }

    /// A client of the server on a connection of its own.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc))?.tcp_nodelay(true);
        let channel = endpoint.connect().await.context("can't connect to rollcall-server")?;
        Ok(RegistryClient::new(channel))
    }

    async fn wait_until_serving(&self) -> anyhow::Result<()> {
        let client = self.client().await?;
        eventually("rollcall-server has ZooKeeper", START, async || {
            client.clone().get(latest("/")).await.map(|_| ()).map_err(|status| status.to_string())
        })
        .await;
        Ok(())
    }
}

/// The server that was named, or the one that was built beside this program.
fn server_program(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let program = match named {
        Some(program) => program,
        None => std::env::current_exe()?.with_file_name("rollcall-server"),
    };
    ensure!(
        program.is_file(),
        "no {}: run cargo build --release -p rollcall-server, or say --server FILE",
        program.display()
    );
    Ok(program)
}

async fn start_zookeeper(directory: &Path) -> anyhow::Result<(Process, SocketAddr)> {
    let jars = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/zookeeper/3.9");
    ensure!(jars.is_dir(), "no ZooKeeper in {}: run tests/setup.sh zookeeper", jars.display());
    let address = free_address();
    // ZooKeeper's zoo_sample.cfg, but for the address, and without the HTTP console, whose port may be taken.
    let configuration = format!(
        "tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={}\nclientPort={}\nclientPortAddress={}\n\
         admin.enableServer=false\n",
        directory.join("zookeeper").display(),
        address.port(),
        Ipv4Addr::LOCALHOST,
    );
    let file = directory.join("zoo.cfg");
    fs::write(&file, configuration)?;
    let mut java = Command::new("java");
    java.args(["-Xmx1000m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"])
        .arg(jars.join("*"))
        .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
        .arg(file);
    let mut process = Process::spawn("zookeeper", directory, &mut java);
    // An end at the start is an answer too: there is no use in waiting on.
    let ended = eventually("ZooKeeper answers", START, async || match process.exited() {
        Some(status) => Ok(Some(status)),
        None => four_letter_word(address, "srvr")
            .await
            .and_then(|said| if said.contains("Mode: ") { Ok(None) } else { Err(said) }),
    })
    .await;
    if let Some(status) = ended {
        bail!("ZooKeeper ended at its start, {status}:\n{}", process.stderr());
    }
    Ok((process, address))
}

async fn start_server(program: &Path, hosts: &str, directory: &Path) -> anyhow::Result<(Process, SocketAddr)> {
    let mut command = Command::new(program);
    command.args(["--zookeeper", hosts, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--log", "warn"]);
    let mut process = Process::spawn("rollcall-server", directory, &mut command);
    let grpc = eventually("rollcall-server says where it listens", START, async || {
        let said = process.stdout();
        match (listening(&said), process.exited()) {
            (Some(grpc), None) => Ok(Ok(grpc)),
            (_, Some(status)) => Ok(Err(status)),
            (None, None) => Err(said),
        }
    })
    .await;
    match grpc {
        Ok(grpc) => Ok((process, grpc)),
        Err(status) => bail!("rollcall-server ended at its start, {status}:\n{}", process.stderr()),
    }
}

/// Reads `listening grpc=ADDR http=ADDR`, once the line is complete.
fn listening(said: &str) -> Option<SocketAddr> {
    let (line, _) = said.split_once('\n')?;
    let (grpc, _) = line.strip_prefix("listening grpc=")?.split_once(' ')?;
    grpc.parse().ok()
}

/// What a commit costs at the least where ZooKeeper's log lies.
fn fsync_time(directory: &Path) -> std::io::Result<Duration> {
    let path = directory.join("fsync");
    let mut file = fs::File::create(&path)?;
    let mut times = Latencies::default();
    for _ in 0..100 {
        let begin = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(begin.elapsed());
    }
    fs::remove_file(path)?;
    Ok(times.percentile(50).unwrap_or_default())
}

/// The first line that a program says, on whichever stream.
fn first_line(command: &mut Command) -> String {
    match command.output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned()
        }
        Err(error) => error.to_string(),
    }
}

/// The version of a crate in Cargo.lock.
fn locked_version<'a>(name: &str, lock: &'a str) -> &'a str {
    let entry = lock.split_once(&format!("name = \"{name}\"\nversion = \""));
    entry.and_then(|(_, rest)| rest.split('"').next()).unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_the_lock_file() {
        let lock = "[[package]]\nname = \"tokio\"\nversion = \"1.2.3\"\n\n[[package]]\nname = \"tonic\"\nversion = \"4.5.6\"\n";
        assert_eq!(locked_version("tonic", lock), "4.5.6");
        assert_eq!(locked_version("axum", lock), "unknown");
    }

    #[test]
    fn half_a_line_says_nothing_yet() {
        assert_eq!(listening("listening grpc=127.0.0.1:7700 http=127.0"), None);
        assert_eq!(listening("listening grpc=127.0.0.1:7700 http=127.0.0.1:7701\n").unwrap().port(), 7700);
    }
}
