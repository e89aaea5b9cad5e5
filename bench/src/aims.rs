//! The aims: targets for the measured figures. The unit says on which side of an aim a figure is good.

use crate::case::{ALONE, Case, ETCD, ETCD_STREAMS, KAZOO, System, Unit, ZOOKEEPER};

/// A target for one of Rollcall's figures, or for the ratio of its figure to a peer's.
struct Aim {
    workload: &'static str,
    /// The cases that the aim applies to: each case whose name begins with this text.
    cases: &'static str,
    unit: Unit,
    peer: Option<System>,
    value: f64,
}

const AIMS: &[Aim] = &[
    Aim {
        workload: "embedded",
        unit: Unit::Milliseconds,
        cases: "from exec to the first answer",
        peer: None,
        value: 150.0,
    },
    Aim { workload: "embedded", unit: Unit::Megabytes, cases: "resident, nothing in it", peer: None, value: 25.0 },
    Aim { workload: "embedded", unit: Unit::PerSecond, cases: "creates", peer: Some(ZOOKEEPER), value: 1.0 },
    Aim { workload: "embedded", unit: Unit::PerSecond, cases: "gets", peer: Some(ZOOKEEPER), value: 1.0 },
    Aim { workload: "embedded", unit: Unit::PerSecond, cases: "events", peer: Some(ZOOKEEPER), value: 1.0 },
    Aim { workload: "register", unit: Unit::PerSecond, cases: "", peer: Some(ZOOKEEPER), value: 1.5 },
    Aim { workload: "register", unit: Unit::PerSecond, cases: "", peer: Some(ETCD), value: 6.0 },
    Aim { workload: "hold", unit: Unit::Kilobytes, cases: "memory of a stream", peer: None, value: 12.0 },
    Aim { workload: "hold", unit: Unit::PercentOfCore, cases: "processor, idle", peer: None, value: 15.0 },
    Aim { workload: "get", unit: Unit::PerSecond, cases: "100 children", peer: Some(ETCD), value: 4.0 },
    Aim { workload: "get", unit: Unit::PerSecond, cases: "100 children", peer: Some(KAZOO), value: 50.0 },
    Aim { workload: "watch", unit: Unit::Microseconds, cases: "data set, p50", peer: Some(ZOOKEEPER), value: 1.3 },
    Aim { workload: "watch", unit: Unit::Microseconds, cases: "child created, p50", peer: Some(ZOOKEEPER), value: 1.3 },
    Aim { workload: "fanout", unit: Unit::PerSecond, cases: "events: 10,000", peer: Some(ETCD), value: 2.5 },
    Aim { workload: "fanout", unit: Unit::Milliseconds, cases: "p99: 10,000", peer: Some(ETCD), value: 0.333 },
    Aim { workload: "fanout", unit: Unit::Microseconds, cases: "processor: 1,000", peer: Some(ETCD), value: 0.333 },
    Aim { workload: "fanout", unit: Unit::Microseconds, cases: "processor: 10,000", peer: Some(ETCD), value: 0.333 },
    Aim { workload: "fanout", unit: Unit::Kilobytes, cases: "memory: 1,000", peer: Some(ETCD), value: 0.25 },
    Aim { workload: "fanout", unit: Unit::Kilobytes, cases: "memory: 10,000", peer: Some(ETCD), value: 0.25 },
    Aim { workload: "fanout", unit: Unit::PerSecond, cases: "events: 10,000", peer: Some(ETCD_STREAMS), value: 2.5 },
    Aim { workload: "fanout", unit: Unit::Milliseconds, cases: "p99: 10,000", peer: Some(ETCD_STREAMS), value: 0.333 },
    Aim {
        workload: "fanout",
        unit: Unit::Microseconds,
        cases: "processor: 1,000",
        peer: Some(ETCD_STREAMS),
        value: 0.333,
    },
    Aim {
        workload: "fanout",
        unit: Unit::Microseconds,
        cases: "processor: 10,000",
        peer: Some(ETCD_STREAMS),
        value: 0.333,
    },
    Aim { workload: "fanout", unit: Unit::Kilobytes, cases: "memory: 1,000", peer: Some(ETCD_STREAMS), value: 0.25 },
    Aim { workload: "fanout", unit: Unit::Kilobytes, cases: "memory: 10,000", peer: Some(ETCD_STREAMS), value: 0.25 },
    // On shared connections.
    Aim { workload: "fanout", unit: Unit::Kilobytes, cases: "memory: 1,000 over 10", peer: None, value: 6.0 },
    Aim { workload: "fanout", unit: Unit::Kilobytes, cases: "memory: 10,000", peer: None, value: 6.0 },
    Aim { workload: "lock", unit: Unit::PerSecond, cases: "", peer: Some(KAZOO), value: 3.0 },
    Aim { workload: "lock", unit: Unit::PerSecond, cases: "one client", peer: Some(ETCD), value: 2.5 },
    Aim { workload: "lock", unit: Unit::PerSecond, cases: "16 on one lock", peer: Some(ETCD), value: 8.0 },
    Aim { workload: "citizen", unit: Unit::Milliseconds, cases: "Get p99", peer: Some(ALONE), value: 3.0 },
    Aim { workload: "citizen", unit: Unit::Milliseconds, cases: "keep-alive", peer: None, value: 1_000.0 },
    Aim { workload: "citizen", unit: Unit::Milliseconds, cases: "expiry", peer: None, value: 2_000.0 },
    Aim { workload: "citizen", unit: Unit::Count, cases: "failed", peer: None, value: 0.0 },
    Aim { workload: "citizen", unit: Unit::Count, cases: "missed", peer: None, value: 0.0 },
    Aim { workload: "citizen", unit: Unit::Count, cases: "sessions lost", peer: None, value: 0.0 },
    Aim { workload: "citizen", unit: Unit::Megabytes, cases: "memory, after", peer: Some(ALONE), value: 1.1 },
    // The drain takes up to 10 s.
    Aim { workload: "citizen", unit: Unit::Seconds, cases: "end", peer: None, value: 11.0 },
];

/// The aim of a case: for the figure itself where `peer` is `None`, else for the ratio to that peer's figure.
pub(crate) fn aim(case: &Case, peer: Option<System>) -> Option<f64> {
    let is_it = |aim: &&Aim| {
        (aim.workload, aim.unit, aim.peer) == (case.workload, case.unit, peer) && case.name.starts_with(aim.cases)
    };
    AIMS.iter().find(is_it).map(|aim| aim.value)
}
