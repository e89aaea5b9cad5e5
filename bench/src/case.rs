//! The measured cases, systems and units.

/// A system under test, and how it was driven where there are several ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct System(pub(crate) &'static str);

/// Rollcall, through gRPC. Every other system is its peer.
pub(crate) const ROLLCALL: System = System("rollcall");

/// ZooKeeper, through the crate zookeeper-client on one session.
pub(crate) const ZOOKEEPER: System = System("zookeeper");

/// etcd, through its gRPC API.
pub(crate) const ETCD: System = System("etcd");

/// etcd with a stream for each watch, as in Rollcall.
pub(crate) const ETCD_STREAMS: System = System("etcd, a stream each");

/// kazoo, one request at a time.
pub(crate) const KAZOO: System = System("kazoo");

/// Rollcall without the flood beside the measured client, measured just before the flood.
pub(crate) const ALONE: System = System("rollcall, alone");

/// The unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Operations per second: more is better.
    PerSecond,
    /// Microseconds: less is better.
    Microseconds,
    /// Milliseconds: less is better.
    Milliseconds,
    /// Thousands of bytes: less is better.
    Kilobytes,
    /// Millions of bytes: less is better.
    Megabytes,
    /// Hundredths of one core: less is better.
    PercentOfCore,
    /// Seconds: less is better.
    Seconds,
    /// A count: less is better.
    Count,
}

impl Unit {
    /// The label printed beside the figure.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Unit::PerSecond => "/s",
            Unit::Microseconds => "µs",
            Unit::Milliseconds => "ms",
            Unit::Kilobytes => "KB",
            Unit::Megabytes => "MB",
            Unit::PercentOfCore => "% core",
            Unit::Seconds => "s",
            Unit::Count => "",
        }
    }

    /// Whether a larger figure is better.
    pub(crate) fn more_is_better(self) -> bool {
        self == Unit::PerSecond
    }

    /// Whether a figure, or a ratio of two figures, reaches the aim.
    pub(crate) fn reaches(self, figure: f64, aim: f64) -> bool {
        if self.more_is_better() { figure >= aim } else { figure <= aim }
    }
}

/// One thing that is measured for several systems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    /// The workload of this case.
    pub(crate) workload: &'static str,
    /// The operation.
    pub(crate) name: String,
    /// The unit of its figures.
    pub(crate) unit: Unit,
}
