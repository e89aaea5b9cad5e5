//! The composition root: binds the ports first, wires the handles, and supervises the tasks. The end of any task is the
//! end of the process.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use futures_util::TryStreamExt as _;
use rollcall_embedded::{BindError, Embedded};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::budget::{self, Budget, Resource};
use crate::contact::{Contact, StallDetector};
use crate::drain::{Drain, DrainPhase};
use crate::durable::Durable;
use crate::evictions::Evictions;
use crate::grpc::{self, Admission, Gate, Service, Turnstile, WriteCoalescer};
use crate::listen::{self, Bounds, Listener, Socket};
use crate::locks::Locks;
use crate::metrics::{ByResource, Metrics, Port};
use crate::sessions::Sessions;
use crate::standing::{Backend, Standing};
use crate::views::{self, Owner, Store, Views};
use crate::zk::{self, Zk};

/// The service's name in the health protocol.
const SERVICE: &str = "rollcall.v1.Registry";
/// HTTP/2 window of a connection, in bytes: the data that a client may have sent and no call has read. It is also twice the
/// room that h2 gives to unread small frames, of which `grpc/pace.rs` lets far fewer come. With a larger window a
/// connection can hold more memory, which its account does not count; with a smaller one requests of 2 MiB delay each
/// other.
const WINDOW: u32 = 8 * 1024 * 1024;
/// Maximum size of the headers of a call, in bytes, 32 more for each header: a token of 8 KiB fits.
const MAX_HEADERS: u32 = 16 * 1024;
/// Maximum number of cancelled streams of a connection that the server has not seen yet. A connection with more is a flood,
/// and is ended.
const CANCELLED_STREAMS: usize = 100_000;
/// Time between the message that the replica drains and the GOAWAY of each connection.
const BEFORE_GO_AWAY: Duration = Duration::from_millis(200);
/// Maximum time for the end, in which the replica gives back the locks that end with its process.
const GOING_DOWN: Duration = Duration::from_secs(5);
/// Maximum time for the last answers.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Interval at which gauges and health are updated.
const REFRESH: Duration = Duration::from_millis(100);

/// The checked options of the server.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address and options of the embedded backend, which then replaces ZooKeeper.
    pub(crate) embedded: Option<(SocketAddr, rollcall_embedded::Config)>,
    pub(crate) zookeeper: zk::Config,
    /// Name of the replica, if the operator has given one.
    pub(crate) name: Option<String>,
    pub(crate) listen: SocketAddr,
    pub(crate) http_listen: SocketAddr,
    /// Time after which a silent connection is pinged, and the time that it has to answer.
    pub(crate) keepalive: Duration,
    /// Maximum time for clients to move when the replica stops.
    pub(crate) drain: Duration,
    /// Limits of clients' connections, for each port.
    pub(crate) connections: Bounds,
    /// Limits of one connection.
    pub(crate) per_connection: budget::Limits,
    /// Limits of all connections together.
    pub(crate) in_all: budget::Limits,
    pub(crate) api: grpc::Settings,
    /// Time after which a lock that nobody uses is removed; zero: never.
    pub(crate) lock_idle: Duration,
    /// Time for which an unused view is kept.
    pub(crate) view_idle: Duration,
    /// Directory of the last known states, for a restart without ZooKeeper.
    pub(crate) snapshot_dir: Option<PathBuf>,
}

/// A server whose ports are bound.
#[derive(Debug)]
pub struct App {
    settings: Settings,
    store: Option<Store>,
    embedded: Option<Embedded>,
    grpc: TcpListener,
    http: TcpListener,
}

impl App {
    /// Binds the ports, and takes the directory of `--snapshot-dir`.
    ///
    /// # Errors
    /// When one can't be bound, or the directory can't be used; it is named.
    pub async fn bind(mut settings: Settings) -> anyhow::Result<Self> {
        let bind = async |option: &str, address: SocketAddr| {
            TcpListener::bind(address).await.map_err(|error| cannot_listen(option, address, &error))
        };
        let grpc = bind("--listen", settings.listen).await?;
        let http = bind("--http-listen", settings.http_listen).await?;
        let embedded = match settings.embedded.take() {
            Some((address, config)) => Some(bind_embedded(address, config).await?),
            None => None,
        };
        settings.zookeeper.name = match settings.name.take() {
            Some(name) => name,
            None => default_name(grpc.local_addr()?.port()),
        };
        if let Some(embedded) = &embedded {
            settings.zookeeper.hosts = vec![embedded.local_addr().to_string()];
        }
        let store = match settings.snapshot_dir.clone() {
            Some(directory) => Some(open_store(directory, &settings.zookeeper).await.context("--snapshot-dir")?),
            None => None,
        };
        // Kept views are read again at once, and those who ask for them are answered meanwhile.
        if embedded.is_some() && store.as_ref().is_none_or(Store::is_empty) {
            settings.zookeeper.activation = zk::Activation::on_demand();
        }
        Ok(Self { settings, store, embedded, grpc, http })
    }

    /// Where gRPC and HTTP are served.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn addresses(&self) -> std::io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.grpc.local_addr()?, self.http.local_addr()?))
    }

    /// Where the embedded backend serves ZooKeeper's protocol, if it is used.
    #[must_use]
    pub fn embedded_address(&self) -> Option<SocketAddr> {
        self.embedded.as_ref().map(Embedded::local_addr)
    }

    /// Serves until `drain` or `stop` is ready. A drain tells all clients to move, and waits until they have, for as long
    /// as it may take; then, and at `stop` at once, all streams end. Registrations are left to their ZooKeeper sessions'
    /// time-out, for clients that come back elsewhere to take over; locks without a ttl are given back.
    ///
    /// # Errors
    /// When a part of the server ends by itself, which is a defect or a lost port.
    pub async fn run(
        self,
        drain: impl Future<Output = ()> + Send,
        stop: impl Future<Output = ()> + Send,
    ) -> anyhow::Result<()> {
        let mut tasks = JoinSet::new();
        let metrics = Metrics::default();
        let backend = if self.embedded.is_some() { Backend::Embedded } else { Backend::ZooKeeper };
        if let Some(embedded) = self.embedded {
            tasks.spawn(embedded.run(std::future::pending()));
        }
        let has_kept_views = self.store.as_ref().is_some_and(|store| !store.is_empty());
        let service = start(&self.settings, self.store, backend, &metrics, &mut tasks);
        let (going, budget) = (service.clone(), service.budget.clone());
        let (reporter, health) = tonic_health::server::health_reporter();
        tasks.spawn(keep_current(service.clone(), reporter, has_kept_views));
        let [grpc_bounds, http_bounds] = self.settings.connections.within(listen::descriptors());
        let silence = 2 * self.settings.keepalive;
        let mut servers: JoinSet<anyhow::Result<()>> = JoinSet::new();
        let routes = Routes::new(grpc::serve(service))
            .add_service(health)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        let gate = Gate::new(routes.prepare(), metrics.clone(), going.standing.clone());
        let server = http2(self.settings.keepalive, self.settings.per_connection.streams);
        let listener = Listener::new(self.grpc, Port::Grpc, grpc_bounds, silence, metrics.clone());
        let (incoming, returned) = listener.lend();
        let (turnstile, keepalive) = (Turnstile::new(), self.settings.keepalive);
        let coalescer =
            move |socket| WriteCoalescer::new(socket, budget.account(), Contact::new(keepalive), &turnstile);
        let (go_away, going_away) = oneshot::channel::<()>();
        // Its sender's drop is the sign.
        let going_away = async { drop(going_away.await) };
        tasks.spawn(serve_while_draining(server.clone(), gate.clone(), returned, coalescer.clone()));
        let incoming = incoming.map_ok(coalescer);
        servers.spawn(async move {
            server.serve_with_incoming_shutdown(gate, incoming, going_away).await.context("the grpc server failed")
        });
        let listener = Listener::new(self.http, Port::Http, http_bounds, silence, metrics.clone());
        tasks.spawn(listen::serve_http1(listener, http_router(metrics, going.drain.clone())));
        let stopped = async {
            tokio::pin!(stop);
            // In this order: whoever counts signals to tell the two apart has then seen the one that begins the drain.
            tokio::select! {
                biased;
                () = &mut stop => drop(go_away),
                () = drain => tokio::select! {
                    biased;
                    () = stop => {}
                    () = let_clients_move(&going, self.settings.drain, go_away) => {}
                },
            }
        };
        tokio::pin!(stopped);
        loop {
            tokio::select! {
                () = &mut stopped => break,
                Some(ended) = servers.join_next() => {
                    ended.context("the grpc server panicked")??;
                    // Once the connections have been told to go, it ends with the last of them.
                    anyhow::ensure!(!going.drain.is_serving(), "the grpc server ended");
                }
                Some(ended) = tasks.join_next() => {
                    ended.context("a task panicked")?;
                    anyhow::bail!("a task ended before the server was told to stop")
                }
            }
        }
        tracing::info!(streams = going.admission.streams(), "stopping");
        if tokio::time::timeout(GOING_DOWN, going.go_down()).await.is_err() {
            tracing::warn!("stopped at the deadline: some locks or registrations were not given back");
        }
        // Answers that are under way; connections may be kept open by streams that are not ours to end.
        drop(tokio::time::timeout(LAST_ANSWERS, servers.join_next()).await);
        Ok(())
    }
}

/// Starts everything that the API calls, as tasks of `tasks`.
fn start(
    settings: &Settings,
    store: Option<Store>,
    backend: Backend,
    metrics: &Metrics,
    tasks: &mut JoinSet<()>,
) -> Service {
    let zk = Zk::start(settings.zookeeper.clone(), tasks);
    let views = views::Settings { idle: settings.view_idle, ..views::Settings::default() };
    let path_overhead = settings.zookeeper.chroot.len() + zk::PATH_LENGTH;
    let budget = Budget::new(settings.per_connection, settings.in_all).with_path_overhead(path_overhead);
    let evictions = Evictions::start(zk.clone(), tasks);
    let stall_detector = Arc::new(StallDetector::default());
    Service {
        sessions: Sessions::start(zk.clone(), evictions.clone(), stall_detector.clone(), tasks),
        views: Views::start(zk.clone(), views, store, &budget, tasks),
        locks: Locks::start(&zk, stall_detector, settings.in_all.locks, settings.lock_idle, &budget, tasks),
        durable: Durable::new(zk.clone()),
        evictions,
        admission: Admission::default(),
        metrics: metrics.clone(),
        settings: Arc::new(settings.api.clone()),
        drain: Drain::default(),
        standing: Standing::new(settings.zookeeper.name.clone(), backend, zk),
        budget,
    }
}

/// Serves those who connect after the others have been told to go: they are told that the replica drains, until its end.
/// Nothing waits for them.
async fn serve_while_draining(
    server: tonic::transport::Server,
    gate: Gate,
    returned: oneshot::Receiver<Listener>,
    coalescer: impl Fn(Socket) -> WriteCoalescer<Socket> + Clone,
) {
    // It comes back when the first server takes no more connections.
    if let Ok(listener) = returned.await {
        let incoming = listener.into_stream().map_ok(coalescer);
        if let Err(error) = server.serve_with_incoming(gate.of_a_drain(), incoming).await {
            tracing::warn!(%error, "connections made during the drain are not answered");
        }
    }
    // The end of a task would be the end of the process.
    std::future::pending::<()>().await;
}

/// The host's name and the port: what tells replicas apart for people.
fn default_name(port: u16) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host = if host.is_empty() { "localhost" } else { &host };
    format!("{}:{port}", host.replace(char::is_control, "?"))
}

async fn bind_embedded(address: SocketAddr, config: rollcall_embedded::Config) -> anyhow::Result<Embedded> {
    const OPTION: &str = "--embedded-listen";
    Embedded::bind(address, config).await.map_err(|error| match error {
        BindError::Listen { address, source } => cannot_listen(OPTION, address, &source),
        error @ BindError::NotLoopback(_) => anyhow::Error::new(error).context(OPTION),
    })
}

/// The error of an address that can't be listened on, with what to change.
fn cannot_listen(option: &str, address: SocketAddr, error: &io::Error) -> anyhow::Error {
    let change = match error.kind() {
        io::ErrorKind::AddrInUse => "end the program that listens there, or name another port",
        io::ErrorKind::AddrNotAvailable => "name an address of this machine, or 0.0.0.0 for all of them",
        io::ErrorKind::PermissionDenied => "name a port from 1024 on",
        _ => "name another address",
    };
    anyhow::anyhow!("{option} {address}: can't listen there: {error}: {change}")
}

/// HTTP/2 as it is spoken to clients. `streams`: the calls that the gate lets one connection have under way.
fn http2(keepalive: Duration, streams: usize) -> tonic::transport::Server {
    // Our own limit answers; this one makes clients wait, and is out of their way. It also counts calls whose answers
    // the client has not read, refusals included, which our own does not: without it they would have no bound.
    let most = streams + (streams / 4).max(1024);
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(keepalive))
        .http2_keepalive_timeout(Some(keepalive))
        .max_concurrent_streams(u32::try_from(most).unwrap_or(u32::MAX))
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_max_pending_accept_reset_streams(Some(CANCELLED_STREAMS))
        .http2_max_local_error_reset_streams(Some(CANCELLED_STREAMS))
        .initial_connection_window_size(WINDOW)
}

fn reflection<'a>() -> tonic_reflection::server::Builder<'a> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(rollcall_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

async fn open_store(directory: PathBuf, zookeeper: &zk::Config) -> anyhow::Result<Store> {
    let owner = Owner { hosts: zookeeper.hosts.clone(), chroot: zookeeper.chroot.clone() };
    Ok(tokio::task::spawn_blocking(move || Store::open(&directory, &owner)).await??)
}

/// Tells all clients to move, and waits until they have, or until the time is over.
async fn let_clients_move(service: &Service, time: Duration, go_away: oneshot::Sender<()>) {
    let deadline = Instant::now() + time;
    tracing::info!(streams = service.admission.streams(), "draining for at most {time:?}");
    service.drain.go_to(DrainPhase::Draining { deadline });
    let moved = async {
        tokio::time::sleep(BEFORE_GO_AWAY).await;
        drop(go_away);
        while service.admission.streams() > 0 {
            tokio::time::sleep(REFRESH).await;
        }
        // The registrations that clients did not take to another replica are removed.
        service.sessions.settled().await;
    };
    if tokio::time::timeout_at(deadline, moved).await.is_err() {
        tracing::info!(streams = service.admission.streams(), "the drain time is over");
    }
}

/// Keeps health and gauges current. Health serves from the first contact with ZooKeeper on, or at once when there are
/// views from before, until the drain, whatever becomes of ZooKeeper later: known paths are still answered then.
async fn keep_current(service: Service, reporter: HealthReporter, has_kept_views: bool) {
    let Service { admission, views, metrics, drain, budget, standing, .. } = service;
    let (mut met, mut shown) = (has_kept_views, None);
    let mut interval = tokio::time::interval(REFRESH);
    loop {
        interval.tick().await;
        let is_up = standing.look();
        metrics.zookeeper_up.set(i64::from(is_up));
        metrics.zookeeper_sessions.set(i64::try_from(standing.owners()).unwrap_or(i64::MAX));
        metrics.streams.set(i64::try_from(admission.streams()).unwrap_or(i64::MAX));
        for (of, resource) in Resource::ALL {
            let used = i64::try_from(budget.used(of)).unwrap_or(i64::MAX);
            metrics.in_use.get_or_create(&ByResource { resource }).set(used);
        }
        metrics.views.set(i64::try_from(views.count()).unwrap_or(i64::MAX));
        met |= is_up && standing.is_active();
        let is_ready = met || !standing.is_active();
        let status = if is_ready && drain.is_serving() { ServingStatus::Serving } else { ServingStatus::NotServing };
        if shown != Some(status) {
            for name in ["", SERVICE] {
                reporter.set_service_status(name, status).await;
            }
            metrics.serving.set(i64::from(status == ServingStatus::Serving));
            tracing::info!("health: {status}");
            shown = Some(status);
        }
    }
}

fn http_router(metrics: Metrics, drain: Drain) -> axum::Router {
    let ready = async move |State(metrics): State<Metrics>| match (drain.is_serving(), metrics.serving.get()) {
        (true, 1) => (StatusCode::OK, "ready\n"),
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "zookeeper has not been reached yet\n"),
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    };
    axum::Router::new()
        .route("/metrics", get(async |State(metrics): State<Metrics>| metrics.render()))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(metrics)
}
