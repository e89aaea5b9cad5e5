//! Everything that a caller can be told went wrong: one enum, each variant with a stable reason.
//!
//! `grpc/status.rs` turns it into a status; nothing else names a status code. Messages name the object and the cause.

use std::time::Duration;

use crate::types::{NodePath, PathError};

/// Why a call, or one request of a stream, failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Error {
    /// A path is none, or can't be used for this.
    #[error("{error}: {path:?}")]
    InvalidPath { path: String, error: PathError },
    /// A value is over the limit.
    #[error("value of {path} has {bytes} bytes, over the limit of {limit}")]
    ValueTooLarge { path: NodePath, bytes: usize, limit: usize },
    /// A ttl is out of bounds.
    #[error("ttl of {ttl:?} is not between {min:?} and {max:?}")]
    InvalidTtl { ttl: Duration, min: Duration, max: Duration },
    /// A field can't be understood, or comes at the wrong time.
    #[error("{field}: {cause}")]
    Protocol { field: &'static str, cause: String },
    /// The node does not exist.
    #[error("no node at {path}")]
    NoNode { path: NodePath },
    /// The lock id is unknown or over.
    #[error("no lock with this id: it was never given, or is over")]
    UnknownLock,
    /// A lock that was held or waited for is gone.
    #[error("lock {path} is lost: {cause}")]
    LockLost { path: NodePath, cause: &'static str },
    /// The version differs.
    #[error("{path} has version {actual}, not {expected}")]
    VersionMismatch { path: NodePath, expected: i32, actual: i32 },
    /// A lock was not granted in time.
    #[error("lock {path} is held by {}", holders.join(", "))]
    LockBusy { path: NodePath, holders: Vec<String> },
    /// A later stream took this one's place.
    #[error("lock {path} was taken over by a later stream with the same lock id")]
    Superseded { path: NodePath },
    /// The session of a Register stream is over.
    #[error("session expired: nothing was heard for its ttl of {ttl:?}")]
    SessionExpired { ttl: Duration },
    /// The state that a page belongs to is gone.
    #[error("the state of {path} that this page token belongs to is gone: start again without it")]
    PageExpired { path: NodePath },
    /// The name is held by another.
    #[error("{path} is registered by another")]
    NameTaken { path: NodePath },
    /// `create_only` met a node that exists.
    #[error("{path} exists")]
    NodeExists { path: NodePath },
    /// The lock has another limit.
    #[error("lock {path} may be held by {actual} at once, not {asked}")]
    LockLimitDiffers { path: NodePath, asked: u32, actual: u32 },
    /// The path is used for something else than a lock.
    #[error("{path} is no lock: {cause}")]
    NotALock { path: NodePath, cause: &'static str },
    /// A durable node stands where a registration should go.
    #[error("{path} is a durable node, which a registration never takes over")]
    NotEphemeral { path: NodePath },
    /// An ephemeral node has no children.
    #[error("{path} can't have children: {parent} is a registration")]
    ParentEphemeral { path: NodePath, parent: NodePath },
    /// The node has children.
    #[error("{path} has children")]
    NotEmpty { path: NodePath },
    /// A registration, or a lock's node, is in the way.
    #[error("{path} is a registration or belongs to a lock")]
    HasRegistrations { path: NodePath },
    /// ZooKeeper's access control list forbids it.
    #[error("zookeeper's access control list forbids this on {path}")]
    NoAuth { path: NodePath },
    /// This replica was started with `--read-only`.
    #[error("this replica is read-only")]
    ReadOnly,
    /// ZooKeeper can't be reached.
    #[error("zookeeper can't be reached")]
    BackendUnavailable,
    /// Whether a write was carried out is not known.
    #[error("the connection to zookeeper was lost while {path} was written: it may or may not have been")]
    OutcomeUnknown { path: NodePath },
    /// A limit of this replica.
    #[error("{what} is at its limit of {limit}")]
    LimitExceeded { reason: &'static str, what: &'static str, limit: u64 },
    /// A defect, ours or ZooKeeper's.
    #[error("{path}: {cause}")]
    Internal { path: NodePath, cause: String },
}

impl Error {
    /// The stable reason, in upper snake case.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::InvalidPath { .. } => "INVALID_PATH",
            Self::ValueTooLarge { .. } => "VALUE_TOO_LARGE",
            Self::InvalidTtl { .. } => "INVALID_TTL",
            Self::Protocol { .. } => "PROTOCOL",
            Self::NoNode { .. } => "NO_NODE",
            Self::UnknownLock | Self::LockLost { .. } => "LOCK_LOST",
            Self::VersionMismatch { .. } => "VERSION_MISMATCH",
            Self::LockBusy { .. } => "LOCK_BUSY",
            Self::Superseded { .. } => "SUPERSEDED",
            Self::SessionExpired { .. } => "SESSION_EXPIRED",
            Self::PageExpired { .. } => "PAGE_EXPIRED",
            Self::NameTaken { .. } => "NAME_TAKEN",
            Self::NodeExists { .. } => "NODE_EXISTS",
            Self::LockLimitDiffers { .. } => "LOCK_LIMIT_DIFFERS",
            Self::NotALock { .. } => "NOT_A_LOCK",
            Self::NotEphemeral { .. } => "NOT_EPHEMERAL",
            Self::NotEmpty { .. } => "NOT_EMPTY",
            Self::ParentEphemeral { .. } | Self::HasRegistrations { .. } => "HAS_REGISTRATIONS",
            Self::NoAuth { .. } => "NO_AUTH",
            Self::ReadOnly => "READ_ONLY",
            Self::BackendUnavailable => "BACKEND_UNAVAILABLE",
            Self::OutcomeUnknown { .. } => "OUTCOME_UNKNOWN",
            Self::LimitExceeded { reason, .. } => reason,
            Self::Internal { .. } => "INTERNAL",
        }
    }
}
