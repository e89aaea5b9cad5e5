//! The record of a lease that outlives its stream: who keeps it, and for how long.
//!
//! `/.rollcall/leases/<lease's name>`, a JSON object, made in one transaction with the lease. While the fence of the
//! session that it names stands, only that session's replica ends the lease; every change of hands is a write of the
//! record, and every end checks its version: so of two that want to end it or take it, one fails.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::seat::delete;
use crate::types::{NodePath, SessionId};
use crate::zk::layout::LEASES;
use crate::zk::{self, CommitError, CreateMode, EphemeralSession, ErrorCode, Request};

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// The lock.
    pub(super) path: NodePath,
    /// How long the lease outlives its stream, and its keeper's fence.
    pub(super) ttl: Duration,
    /// The session whose replica keeps the lease.
    pub(super) owner: SessionId,
}

/// Where the record of the lease with this name is.
pub(super) fn record_path(lease_name: &str) -> NodePath {
    NodePath::trusted(format!("{LEASES}/{lease_name}"))
}

impl Record {
    /// Reads a record's data; `None` for what we did not write.
    pub(super) fn parse(data: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(data).ok()?;
        let owner = u64::from_str_radix(value.get("owner")?.as_str()?, 16).ok()?;
        Some(Self {
            path: NodePath::parse_below_root(value.get("path")?.as_str()?).ok()?,
            ttl: Duration::from_millis(value.get("ttl_ms")?.as_u64()?),
            owner: SessionId(i64::from_be_bytes(owner.to_be_bytes())),
        })
    }

    fn data(&self) -> Bytes {
        let ttl = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        json!({ "path": self.path.as_str(), "ttl_ms": ttl, "owner": format!("{:016x}", self.owner.0) })
            .to_string()
            .into()
    }

    /// Makes the record.
    pub(super) fn create(&self, lease_name: &str) -> Request {
        zk::create(record_path(lease_name).as_str(), self.data(), CreateMode::Persistent)
    }

    /// Writes the record, if it still has this version.
    pub(super) fn write(&self, lease_name: &str, version: i32) -> Request {
        zk::set_data(record_path(lease_name).as_str(), self.data(), version)
    }
}

/// What came of the removal of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removal {
    /// Neither it nor its record stands any more.
    Gone,
    /// Somebody has taken it over: it is theirs.
    Taken,
}

/// Removes a lease and its record, if that still has this version.
pub(super) async fn remove(
    owner: &EphemeralSession,
    path: &NodePath,
    lease_name: &str,
    version: i32,
) -> Result<Removal, zk::Error> {
    let (lease, record) = (path.join(lease_name), record_path(lease_name));
    let remove_record = zk::delete(record.as_str(), version);
    match owner.commit(vec![remove_record.clone(), zk::delete(lease.as_str(), -1)]).await {
        Ok(_) => Ok(Removal::Gone),
        Err(CommitError::Part { code: ErrorCode::BadVersion, .. }) => Ok(Removal::Taken),
        // Without a record a lease is nobody's, and would be in the way for ever.
        Err(CommitError::Part { index: 0, code: ErrorCode::NoNode }) => {
            delete(owner, &lease).await.map(|()| Removal::Gone)
        }
        Err(CommitError::Part { code: ErrorCode::NoNode, .. }) => match owner.commit(vec![remove_record]).await {
            Ok(_) | Err(CommitError::Part { code: ErrorCode::NoNode, .. }) => Ok(Removal::Gone),
            Err(CommitError::Part { code: ErrorCode::BadVersion, .. }) => Ok(Removal::Taken),
            Err(error) => Err(as_zk(error)),
        },
        Err(error) => Err(as_zk(error)),
    }
}

/// The class of a failed unit that was not told apart.
pub(super) fn as_zk(error: CommitError) -> zk::Error {
    match error {
        CommitError::Part { code, .. } => zk::Error::Refused(code),
        CommitError::FenceMoved => zk::Error::NotSent,
        CommitError::Zk(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_nothing_else_is() {
        let path = NodePath::trusted("/jobs/\"ä\"");
        let record = Record { path, ttl: Duration::from_millis(1500), owner: SessionId(-2) };
        assert_eq!(Record::parse(&record.data()), Some(record));
        for bad in ["", "{}", "[]", r#"{"path":"/.rollcall/x","ttl_ms":1,"owner":"1"}"#] {
            assert_eq!(Record::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
