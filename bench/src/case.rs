//! What is measured, and of whom.

/// A system under test, and the way in which it was driven where there are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct System(pub(crate) &'static str);

/// Rollcall, through gRPC. Every other system is its peer.
pub(crate) const ROLLCALL: System = System("rollcall");

/// ZooKeeper, through the crate zookeeper-client on one session.
pub(crate) const ZOOKEEPER: System = System("zookeeper");

/// etcd, through its gRPC API.
pub(crate) const ETCD: System = System("etcd");

/// etcd, each watch on a stream of its own, as Rollcall has them.
pub(crate) const ETCD_STREAMS: System = System("etcd, a stream each");

/// kazoo, one request after the other.
pub(crate) const KAZOO: System = System("kazoo");

/// Rollcall without a flood beside the client that is measured, just before it.
pub(crate) const ALONE: System = System("rollcall, alone");

/// What a figure counts.
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
    /// A number of things: less is better.
    Count,
}

impl Unit {
    /// What stands beside the figure.
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

    /// Whether more of it is better.
    pub(crate) fn more_is_better(self) -> bool {
        self == Unit::PerSecond
    }

    /// Whether a figure, or a ratio of two, reaches what is aimed at.
    pub(crate) fn reaches(self, figure: f64, aim: f64) -> bool {
        if self.more_is_better() { figure >= aim } else { figure <= aim }
    }
}

/// One thing that is measured of several systems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    /// The workload that it belongs to.
    pub(crate) workload: &'static str,
    /// What is done.
    pub(crate) name: String,
    /// What is counted.
    pub(crate) unit: Unit,
}
