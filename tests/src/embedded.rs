//! The embedded server inside the test program. Only there can it be given all settings of ZooKeeper's configuration
//! files in the tests; `rollcall-server --embedded` has no options for the bounds of its time-outs.

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use rollcall_embedded::{Config, Faults};
use tokio::runtime;
use tokio::sync::oneshot;

use crate::zookeeper::{Options, free_address};
use crate::zookeeper_witness::Witness;

/// An embedded server, as similar to a [`ZooKeeper`](crate::zookeeper::ZooKeeper) with the same options as its settings
/// allow. It runs on a thread of its own, since the runtime of a test ends with the test. Dropping stops it.
#[derive(Debug)]
pub struct Embedded {
    address: SocketAddr,
    options: Options,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    faults: Option<Faults>,
}

impl Embedded {
    /// Starts a server, and waits until it answers.
    pub async fn start(options: Options) -> Embedded {
        let mut embedded = Embedded { address: free_address(), options, running: None, faults: None };
        embedded.run().await;
        embedded
    }

    /// The address for clients.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes durable nodes (parents first), below which `children_created` children were created before.
    ///
    /// # Panics
    /// When one of them exists.
    pub async fn make_old(&self, paths: &[&str], children_created: i32) {
        let zk = Witness::connect(&self.address.to_string()).await;
        for path in paths {
            zk.create(path, b"").await;
            assert!(self.faults().make_old(path, children_created), "{path} exists");
        }
    }

    /// The faults that make it misbehave.
    ///
    /// # Panics
    /// When it does not run.
    pub fn faults(&self) -> &Faults {
        self.faults.as_ref().expect("it runs")
    }

    /// Stops it, and starts it again on the same address. All its data are lost.
    pub async fn restart(&mut self) {
        self.stop();
        self.run().await;
    }

    async fn run(&mut self) {
        let (address, config) = (self.address, config(self.options));
        let (stop, stopped) = oneshot::channel();
        let (tell, listening) = oneshot::channel();
        let serve = async move {
            let embedded = rollcall_embedded::Embedded::bind(address, config).await.expect("the address is free");
            tell.send(embedded.faults()).expect("the test waits for it");
            // Dropping the sender stops the server too.
            embedded.run(async { drop(stopped.await) }).await;
        };
        let thread = std::thread::Builder::new()
            .name("embedded".to_owned())
            .spawn(|| runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(serve))
            .expect("a thread");
        self.faults = Some(listening.await.expect("the embedded server starts"));
        self.running = Some((stop, thread));
    }

    fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            // A panic of the thread has been printed already.
            drop(thread.join());
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.stop();
    }
}

fn config(options: Options) -> Config {
    let config = Config {
        tick: options.tick,
        min_session_timeout: Some(Duration::from_millis(100)),
        max_session_timeout: Some(Duration::from_secs(600)),
        ttl_nodes: options.sweep.is_some(),
        super_digest: options.super_digest.map(str::to_owned),
        ..Config::default()
    };
    match options.sweep {
        Some(sweep_interval) => Config { sweep_interval, ..config },
        None => config,
    }
}
