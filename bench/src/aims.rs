//! What is to be reached. Which side of an aim is the good one is the unit's to say.

use crate::report::{Case, System, ZOOKEEPER};

/// A figure of Rollcall's that is to be reached, or a ratio of its figure to a peer's.
struct Aim {
    workload: &'static str,
    /// How the names of the cases begin that it is for.
    cases: &'static str,
    peer: Option<System>,
    value: f64,
}

const AIMS: &[Aim] = &[
    Aim { workload: "embedded", cases: "from exec to the first answer", peer: None, value: 150.0 },
    Aim { workload: "embedded", cases: "resident, nothing in it", peer: None, value: 25.0 },
    Aim { workload: "embedded", cases: "creates", peer: Some(ZOOKEEPER), value: 1.0 },
    Aim { workload: "embedded", cases: "gets", peer: Some(ZOOKEEPER), value: 1.0 },
    Aim { workload: "embedded", cases: "events", peer: Some(ZOOKEEPER), value: 1.0 },
];

/// What is to be reached in a case: by the figure itself where there is no peer, else by the ratio to the peer's.
pub(crate) fn aim(case: &Case, peer: Option<System>) -> Option<f64> {
    let is_it = |aim: &&Aim| aim.workload == case.workload && aim.peer == peer && case.name.starts_with(aim.cases);
    AIMS.iter().find(is_it).map(|aim| aim.value)
}
