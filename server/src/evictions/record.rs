//! The record of an eviction: `/.rollcall/evicted/<hash of the path>`, a durable node with a JSON object. The eviction
//! began when the record was written, by ZooKeeper's clock.

use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::types::NodePath;
use crate::zk::layout::EVICTED;

/// Number of bytes of the hash in a record's name.
const HASH_BYTES: usize = 16;

/// The content of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EvictionRecord {
    pub(super) path: NodePath,
    pub(super) duration: Duration,
}

/// The name of a path's record: a path may have more bytes than a name, and has slashes.
pub(super) fn name(path: &NodePath) -> String {
    HEXLOWER.encode(&Sha256::digest(path.as_str())[..HASH_BYTES])
}

/// The path of the record of `path`.
pub(crate) fn record_path(path: &NodePath) -> NodePath {
    named(&name(path))
}

/// The path of the record with this name.
pub(super) fn named(name: &str) -> NodePath {
    NodePath::trusted(format!("{EVICTED}/{name}"))
}

impl EvictionRecord {
    /// Reads the data of the record with this name; `None` if Rollcall did not write it.
    pub(super) fn parse(record_name: &str, data: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(data).ok()?;
        let path = NodePath::parse_below_root(value.get("path")?.as_str()?).ok()?;
        let duration = Duration::from_millis(value.get("duration_ms")?.as_u64()?);
        (name(&path) == record_name).then_some(Self { path, duration })
    }

    pub(super) fn data(&self) -> Bytes {
        let duration = u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX);
        json!({ "path": self.path.as_str(), "duration_ms": duration }).to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_nothing_else_is() {
        let record =
            EvictionRecord { path: NodePath::trusted("/services/\"ä\""), duration: Duration::from_millis(1500) };
        assert_eq!(EvictionRecord::parse(&name(&record.path), &record.data()), Some(record.clone()));
        assert_eq!(EvictionRecord::parse("0123", &record.data()), None, "it is of another path");
        for bad in ["", "{}", "[]", r#"{"path":"/services/a","duration_ms":-1}"#] {
            assert_eq!(EvictionRecord::parse(&name(&NodePath::trusted("/services/a")), bad.as_bytes()), None, "{bad}");
        }
    }
}
