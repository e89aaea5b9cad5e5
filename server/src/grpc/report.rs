//! Status: the state of this replica.

use std::collections::BTreeMap;

use rollcall_proto::server::v1;
use tokio::time::Instant;

use super::admission::CallKind;
use super::{Service, convert};
use crate::budget::Resource;
use crate::drain::DrainPhase;
use crate::metrics::Port;
use crate::standing::{Backend, ReplicaReport};

/// Why a replica does not serve, unless it drains.
const NOT_REACHED: &str = "zookeeper has not been reached yet";

impl Service {
    pub(super) async fn do_status(&self) -> v1::StatusResponse {
        let report = self.standing.report().await;
        // Read after the wait, so that the state of the replica itself is current.
        let (state, cause, remaining) = match *self.drain.phases().borrow() {
            DrainPhase::Serving if self.metrics.serving.get() == 1 => (v1::ReplicaState::Serving, "", None),
            DrainPhase::Serving => (v1::ReplicaState::NotServing, NOT_REACHED, None),
            DrainPhase::Draining { deadline } => {
                let remaining = deadline.saturating_duration_since(Instant::now());
                (v1::ReplicaState::Draining, "draining", Some(convert::duration_to_proto(remaining)))
            }
            DrainPhase::Over => (v1::ReplicaState::Draining, "stopping", Some(prost_types::Duration::default())),
        };
        v1::StatusResponse {
            replica: report.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            start_time: Some(convert::timestamp_to_proto(report.started)),
            state: state.into(),
            state_cause: cause.to_owned(),
            remaining,
            backend: Some(backend(&report)),
            sessions: sessions(&report),
            counts: Some(self.counts()),
            memory: Some(self.usage(Resource::Bytes)),
            view_memory: Some(self.usage(Resource::ViewBytes)),
            replicas: replicas(&report),
            replicas_time: report.replicas.at.map(|(_, time)| convert::timestamp_to_proto(time)),
        }
    }

    fn counts(&self) -> v1::ReplicaCounts {
        let used = |resource| to_u64(self.budget.used(resource));
        let streams = |kind| to_u64(self.admission.of_kind(kind));
        let connections = self.metrics.connections.get_or_create(&Port::Grpc.into()).get();
        v1::ReplicaCounts {
            connections: u64::try_from(connections).unwrap_or_default(),
            calls: used(Resource::Streams),
            register_streams: streams(CallKind::Register),
            watch_streams: streams(CallKind::Watch),
            lock_streams: streams(CallKind::AcquireLock),
            waiting_gets: streams(CallKind::Get),
            registrations: used(Resource::Registrations),
            locks: used(Resource::Locks),
            views: to_u64(self.views.count()),
        }
    }

    fn usage(&self, resource: Resource) -> v1::Usage {
        v1::Usage { used: to_u64(self.budget.used(resource)), limit: to_u64(self.budget.limit(resource)) }
    }
}

fn backend(report: &ReplicaReport) -> v1::BackendStatus {
    let kind = match report.backend {
        Backend::ZooKeeper => v1::BackendKind::Zookeeper,
        Backend::Embedded => v1::BackendKind::Embedded,
    };
    let state = if report.is_up { v1::BackendState::Connected } else { v1::BackendState::Suspended };
    let connected = report.sessions.iter().filter(|session| session.is_connected);
    let mut servers: Vec<_> = connected.filter_map(|session| session.server).collect();
    servers.sort_unstable();
    servers.dedup();
    v1::BackendStatus {
        kind: kind.into(),
        state: state.into(),
        since_time: Some(convert::timestamp_to_proto(report.since)),
        servers: servers.iter().map(ToString::to_string).collect(),
        last_error: report.last_failure.clone().unwrap_or_default(),
    }
}

fn sessions(report: &ReplicaReport) -> Vec<v1::SessionStatus> {
    let limit = to_u64(report.session_path_bytes);
    let sessions = report.sessions.iter().map(|session| v1::SessionStatus {
        id: session.id.0,
        connected: session.is_connected,
        server: session.server.map(|server| server.to_string()).unwrap_or_default(),
        watching: session.path_bytes.is_none(),
        path_bytes: session.path_bytes.map(|used| v1::Usage { used: to_u64(used), limit }),
    });
    sessions.collect()
}

fn replicas(report: &ReplicaReport) -> Vec<v1::ReplicaSessions> {
    let mut by_name: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for (session, name) in &*report.replicas.names {
        by_name.entry(name).or_default().push(session.0);
    }
    let replicas = by_name.into_iter();
    replicas.map(|(name, sessions)| v1::ReplicaSessions { replica: name.to_owned(), sessions }).collect()
}

fn to_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
