//! ZooKeeper, as its own scripts and its sample configuration run it: the Java VM's own choice of compilers and
//! collector, 1000 MB of heap. (The tests start it with other flags that save start-up time, which would slow it down
//! here.)

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use rollcall_tests::process::{Process, scratch};
use rollcall_tests::wait::eventually;
use rollcall_tests::zookeeper::{four_letter_word, free_address};

use super::{Directory, START};

/// Whether a write is on disk before it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fsync {
    /// The default.
    On,
    /// `forceSync=no`.
    Off,
}

/// One server. Dropping kills it.
#[derive(Debug)]
pub(crate) struct ZooKeeper {
    process: Process,
    address: SocketAddr,
    _directory: Directory,
}

impl ZooKeeper {
    /// Starts a server, and waits until it answers.
    pub(crate) async fn start(fsync: Fsync) -> anyhow::Result<ZooKeeper> {
        let jars = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/zookeeper/3.9");
        ensure!(jars.is_dir(), "no ZooKeeper in {}: run tests/setup.sh zookeeper", jars.display());
        let (directory, address) = (scratch("zookeeper"), free_address());
        // The settings of zoo_sample.cfg, except for the address and the HTTP console, whose port may be taken; and
        // with more four-letter words enabled.
        let configuration = format!(
            "tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={}\nclientPort={}\nclientPortAddress={}\n\
             admin.enableServer=false\n4lw.commands.whitelist=srvr,mntr\n",
            directory.path().join("data").display(),
            address.port(),
            Ipv4Addr::LOCALHOST,
        );
        let file = directory.path().join("zoo.cfg");
        fs::write(&file, configuration)?;
        let mut java = Command::new("java");
        java.args(["-Xmx1000m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]);
        if fsync == Fsync::Off {
            java.arg("-Dzookeeper.forceSync=no");
        }
        java.arg("-cp").arg(jars.join("*")).arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(file);
        let mut process = Process::spawn("zookeeper", directory.path(), &mut java);
        // Stop waiting when the process ends during the start.
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
        Ok(ZooKeeper { process, address, _directory: Box::new(directory) })
    }

    /// The address for clients.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The value of this line of `srvr`.
    pub(crate) async fn says(&self, word: &str) -> anyhow::Result<String> {
        self.answers("srvr", &format!("{word}: ")).await
    }

    /// The value of this figure in `mntr`.
    pub(crate) async fn counts(&self, name: &str) -> anyhow::Result<u64> {
        Ok(self.answers("mntr", &format!("{name}\t")).await?.trim().parse()?)
    }

    async fn answers(&self, question: &str, prefix: &str) -> anyhow::Result<String> {
        let said = four_letter_word(self.address, question).await.map_err(anyhow::Error::msg)?;
        let line = said.lines().find_map(|line| line.strip_prefix(prefix));
        Ok(line.with_context(|| format!("no {prefix:?} in {question}: {said:?}"))?.to_owned())
    }
}
