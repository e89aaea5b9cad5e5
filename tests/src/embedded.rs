//! The embedded server inside the test program: only there can it be told all that ZooKeeper is told in a test's
//! configuration file; `rollcall-server --embedded` has no options for the bounds of its time-outs.

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use rollcall_embedded::{Config, Faults};
use tokio::runtime;
use tokio::sync::oneshot;

use crate::bare::Bare;
use crate::zookeeper::{Options, free_address};

/// An embedded server, as much like a [`ZooKeeper`](crate::zookeeper::ZooKeeper) with the same options as its settings
/// make it. It runs on a thread of its own, since the runtime of a test ends with the test. Dropping stops it.
#[derive(Debug)]
pub struct Embedded {
    address: SocketAddr,
    options: Options,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    faults: Option<Faults>,
}

impl Embedded {
    /// A server that answers.
    pub async fn start(options: Options) -> Embedded {
        let mut embedded = Embedded { address: free_address(), options, running: None, faults: None };
        embedded.run().await;
        embedded
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes durable nodes, parents first, below which so many children were created.
    ///
    /// # Panics
    /// When one of them exists.
    pub async fn make_old(&self, paths: &[&str], children_created: i32) {
        let bare = Bare::connect(&self.address.to_string()).await;
        for path in paths {
            bare.create(path, b"").await;
            assert!(self.faults().make_old(path, children_created), "{path} exists");
        }
    }

    /// What makes it misbehave.
    ///
    /// # Panics
    /// When it does not run.
    pub fn faults(&self) -> &Faults {
        self.faults.as_ref().expect("it runs")
    }

    /// Stops it, and starts it again on the same address. It has forgotten everything.
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
            // Whoever drops the sender means the same.
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
            // A panic in there has been shown.
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
