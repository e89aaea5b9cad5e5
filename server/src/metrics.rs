//! The metrics of the replica, in Prometheus' text format.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
pub(crate) use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
pub(crate) use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: &'static str,
    reason: &'static str,
}

/// A port to which clients connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    Grpc,
    Http,
}

/// The label of metrics that are kept for each port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByPort {
    port: &'static str,
}

/// The label of metrics that are kept for each limited resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByResource {
    pub(crate) resource: &'static str,
}

/// The counters and gauges of this process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    calls: Family<CallLabels, Counter>,
    /// Whether the health service says SERVING: 1 or 0.
    pub(crate) serving: Gauge,
    /// Open streams.
    pub(crate) streams: Gauge,
    /// Connections of clients.
    pub(crate) connections: Family<ByPort, Gauge>,
    /// Connections that were closed at once, because there were too many.
    pub(crate) connections_refused: Family<ByPort, Counter>,
    /// Amounts that count towards limits, of all connections.
    pub(crate) in_use: Family<ByResource, Gauge>,
    /// Messages that were made for watchers. A watcher that does not read gets none.
    pub(crate) watch_messages: Counter,
    /// Whether ZooKeeper can be reached: 1 or 0.
    pub(crate) zookeeper_up: Gauge,
    /// ZooKeeper sessions that hold ephemerals.
    pub(crate) zookeeper_sessions: Gauge,
    /// Paths that are read or watched, or were lately.
    pub(crate) views: Gauge,
}

impl Port {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
        }
    }
}

impl From<Port> for ByPort {
    fn from(port: Port) -> Self {
        Self { port: port.name() }
    }
}

impl Metrics {
    /// Counts a call that was answered, or a stream that was opened; `reason` is empty for success.
    pub(crate) fn call(&self, method: &'static str, reason: &'static str) {
        self.calls.get_or_create(&CallLabels { method, reason }).inc();
    }

    /// All metrics as text.
    pub(crate) fn render(&self) -> String {
        let mut registry = Registry::with_prefix("rollcall");
        // Shown as `rollcall_build_info`.
        registry.register("build", "What runs here", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register("calls", "Calls answered and streams opened, by the reason of the error", self.calls.clone());
        registry.register("serving", "Whether the health service says SERVING", self.serving.clone());
        registry.register("streams", "Streams that stand", self.streams.clone());
        registry.register("connections", "Connections of clients", self.connections.clone());
        // Shown as `rollcall_connections_refused_total`.
        registry.register(
            "connections_refused",
            "Connections closed at once, since there were too many",
            self.connections_refused.clone(),
        );
        registry.register("in_use", "What counts towards the limits of this replica", self.in_use.clone());
        // Shown as `rollcall_watch_messages_total`.
        registry.register("watch_messages", "Messages to those who watch", self.watch_messages.clone());
        registry.register("zookeeper_up", "Whether ZooKeeper can be reached", self.zookeeper_up.clone());
        registry.register(
            "zookeeper_sessions",
            "ZooKeeper sessions that hold ephemerals",
            self.zookeeper_sessions.clone(),
        );
        registry.register("views", "Paths with a live copy", self.views.clone());
        let mut text = String::new();
        encode(&mut text, &registry).expect("writing to a string does not fail");
        text
    }
}
