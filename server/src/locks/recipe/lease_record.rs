//! The record of a lease that outlives its stream: which replica keeps the lease, and for how long.
//!
//! The record is `/.rollcall/leases/<name of the lease>`, a JSON object, made in one transaction with the lease. While
//! the fence of the session that it names exists, only that session's replica ends the lease. Every change of the
//! keeper writes the record and every end checks its version. So of two replicas that want to end the lease or to keep
//! it, one fails.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::commit::{as_zk, delete};
use crate::types::{NodePath, SessionId};
use crate::zk::layout::LEASES;
use crate::zk::{self, CommitError, CreateMode, EphemeralSession, ErrorCode, Request};

/// The content of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// The lock.
    pub(crate) path: NodePath,
    /// Time for which the lease outlives its stream, and its keeper's fence.
    pub(crate) ttl: Duration,
    /// The session whose replica keeps the lease.
    pub(crate) owner: SessionId,
}

/// The path of the record of the lease with this name.
pub(crate) fn record_path(lease_name: &str) -> NodePath {
    NodePath::trusted(format!("{LEASES}/{lease_name}"))
}

impl Record {
    /// Reads a record's data; `None` for any other data.
    pub(crate) fn parse(data: &[u8]) -> Option<Self> {
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

    /// The request that creates the record.
    pub(crate) fn create(&self, lease_name: &str) -> Request {
        zk::create(record_path(lease_name).as_str(), self.data(), CreateMode::Persistent)
    }

    /// The request that writes the record, if it still has this version.
    pub(crate) fn write(&self, lease_name: &str, version: i32) -> Request {
        zk::set_data(record_path(lease_name).as_str(), self.data(), version)
    }
}

/// The result of the removal of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Neither the lease nor its record exists any more.
    Gone,
    /// Another replica keeps the lease now.
    Taken,
}

/// Removes a lease and its record, if that still has this version.
pub(crate) async fn remove(
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
        // No replica would ever end a lease without a record.
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
