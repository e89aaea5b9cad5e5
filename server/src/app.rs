//! The composition root: binds the ports first, wires the handles, and supervises the tasks. The end of any task is the
//! end of the process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use futures_util::TryStreamExt as _;
use rollcall_embedded::Embedded;
use rollcall_proto::v1::registry_server::RegistryServer;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::durable::Durable;
use crate::grpc::{self, Admission, Corked, MAX_MESSAGE_BYTES, Service, StreamLimits};
use crate::locks::{self, Locks};
use crate::metrics::Metrics;
use crate::sessions::{Limits, Sessions};
use crate::views::{self, Views};
use crate::zk::{self, Zk};

/// The service's name in the health protocol.
const SERVICE: &str = "rollcall.v1.Registry";
/// What the registrations of one stream, and of this replica, may come to.
const REGISTRATIONS: Limits =
    Limits { registrations_per_stream: 65_536, bytes_per_stream: 64 * 1024 * 1024, registrations: 2_000_000 };
/// How many streams that were opened and cancelled may wait to be seen on one connection before it is taken for a flood
/// and ended.
const CANCELLED_STREAMS: usize = 100_000;
/// How long the end may take: telling all clients, and giving back the locks that go with this process.
const GOING_DOWN: Duration = Duration::from_secs(5);
/// How often gauges and health are brought up to date.
const REFRESH: Duration = Duration::from_millis(100);

/// What the server runs with: checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to serve the embedded backend, which then takes ZooKeeper's place.
    pub(crate) embedded: Option<SocketAddr>,
    pub(crate) zookeeper: zk::Config,
    pub(crate) listen: SocketAddr,
    pub(crate) http_listen: SocketAddr,
    /// How long a connection may be silent before it is pinged, and then how long the answer may take.
    pub(crate) keepalive: Duration,
    pub(crate) streams: StreamLimits,
    pub(crate) api: grpc::Settings,
}

/// A server whose ports are bound.
#[derive(Debug)]
pub struct App {
    settings: Settings,
    embedded: Option<Embedded>,
    grpc: TcpListener,
    http: TcpListener,
}

impl App {
    /// Binds the ports.
    ///
    /// # Errors
    /// When one can't be bound; it is named.
    pub async fn bind(mut settings: Settings) -> anyhow::Result<Self> {
        let bind = async |option: &str, address: SocketAddr| {
            TcpListener::bind(address).await.with_context(|| format!("can't listen on {address} ({option})"))
        };
        let grpc = bind("--listen", settings.listen).await?;
        let http = bind("--http-listen", settings.http_listen).await?;
        let embedded = match settings.embedded {
            Some(address) => Some(Embedded::bind(address, rollcall_embedded::Config::default()).await?),
            None => None,
        };
        if let Some(embedded) = &embedded {
            settings.zookeeper.hosts = vec![embedded.local_addr().to_string()];
        }
        Ok(Self { settings, embedded, grpc, http })
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

    /// Serves until `stop` is ready, then ends all streams. Registrations are left to their ZooKeeper sessions' time-out, for
    /// clients that come back elsewhere to take over; locks without a ttl are given back.
    ///
    /// # Errors
    /// When a part of the server ends by itself, which is a defect or a lost port.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
        let mut tasks = JoinSet::new();
        let metrics = Metrics::default();
        if let Some(embedded) = self.embedded {
            tasks.spawn(embedded.run(std::future::pending()));
        }
        let zk = Zk::start(self.settings.zookeeper.clone(), &mut tasks);
        let service = Service {
            sessions: Sessions::start(zk.clone(), REGISTRATIONS, &mut tasks),
            views: Views::start(zk.clone(), views::Settings::default(), &mut tasks),
            locks: Locks::start(zk.pool.clone(), locks::DEFAULT_LIMIT, &mut tasks),
            durable: Durable::new(zk.clone()),
            admission: Admission::new(self.settings.streams),
            metrics: metrics.clone(),
            settings: Arc::new(self.settings.api.clone()),
            going_down: Arc::default(),
        };
        let going = service.clone();
        let (reporter, health) = tonic_health::server::health_reporter();
        tasks.spawn(keep_current(zk, service.admission.clone(), service.views.clone(), metrics.clone(), reporter));
        let mut servers: JoinSet<anyhow::Result<()>> = JoinSet::new();
        let registry = RegistryServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let router = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(self.settings.keepalive))
            .http2_keepalive_timeout(Some(self.settings.keepalive))
            // Our own limit answers; this one would make clients wait.
            .max_concurrent_streams(u32::MAX)
            .http2_max_pending_accept_reset_streams(Some(CANCELLED_STREAMS))
            .http2_max_local_error_reset_streams(Some(CANCELLED_STREAMS))
            .initial_connection_window_size(8 * 1024 * 1024)
            .add_service(registry)
            .add_service(health)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        let incoming = TcpIncoming::from(self.grpc).with_nodelay(Some(true)).map_ok(Corked::new);
        let (go_away, going_away) = oneshot::channel::<()>();
        // Its sender's drop is the sign.
        let going_away = async { drop(going_away.await) };
        servers.spawn(async move {
            router.serve_with_incoming_shutdown(incoming, going_away).await.context("the grpc server failed")
        });
        let http = self.http;
        tasks.spawn(async move {
            if let Err(error) = axum::serve(http, http_router(metrics)).await {
                tracing::error!(%error, "the http server failed");
            }
        });
        tokio::select! {
            () = stop => {
                drop(go_away);
                let end = async {
                    going.go_down().await;
                    servers.join_next().await
                };
                if tokio::time::timeout(GOING_DOWN, end).await.is_err() {
                    tracing::warn!("stopped at the deadline: some clients or locks were left");
                }
                Ok(())
            }
            Some(ended) = servers.join_next() => {
                ended.context("the grpc server panicked")??;
                anyhow::bail!("the grpc server ended")
            }
            Some(ended) = tasks.join_next() => {
                ended.context("a task panicked")?;
                anyhow::bail!("a task ended that never should")
            }
        }
    }
}

fn reflection<'a>() -> tonic_reflection::server::Builder<'a> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(rollcall_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// Keeps health and gauges current. Health serves from the first contact with ZooKeeper on, whatever becomes of it later:
/// known paths are still answered then.
async fn keep_current(zk: Zk, admission: Admission, views: Views, metrics: Metrics, reporter: HealthReporter) {
    let mut met = false;
    for name in ["", SERVICE] {
        reporter.set_service_status(name, ServingStatus::NotServing).await;
    }
    let mut interval = tokio::time::interval(REFRESH);
    loop {
        interval.tick().await;
        let is_up = zk.is_up();
        metrics.zookeeper_up.set(i64::from(is_up));
        metrics.zookeeper_sessions.set(i64::try_from(zk.pool.owners().borrow().len()).unwrap_or(i64::MAX));
        metrics.streams.set(i64::try_from(admission.streams()).unwrap_or(i64::MAX));
        metrics.views.set(i64::try_from(views.count()).unwrap_or(i64::MAX));
        if is_up && !met {
            met = true;
            for name in ["", SERVICE] {
                reporter.set_service_status(name, ServingStatus::Serving).await;
            }
            tracing::info!("serving");
        }
    }
}

fn http_router(metrics: Metrics) -> axum::Router {
    axum::Router::new()
        .route("/metrics", get(async |State(metrics): State<Metrics>| metrics.render()))
        .route("/healthz", get(async || "ok\n"))
        .route(
            "/readyz",
            get(async |State(metrics): State<Metrics>| {
                let ready = metrics.zookeeper_up.get() == 1;
                let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                (code, if ready { "ready\n" } else { "zookeeper can't be reached\n" })
            }),
        )
        .with_state(metrics)
}
