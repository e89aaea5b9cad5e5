//! Every error that a caller can get: one enum, each variant with a stable reason.
//!
//! `grpc/status.rs` turns it into a status; no other file names a status code. Messages name the object and the cause.

use std::time::Duration;

use crate::types::{NodePath, PathError};

/// Why a call, or one request of a stream, failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Error {
    /// A path is invalid, or can't be used for this.
    #[error("{error}: {:?}", short(path))]
    InvalidPath { path: String, error: PathError },
    /// A value is over the limit: it has `bytes` bytes, or more.
    #[error("value of {} has {bytes} bytes or more, over the limit of {limit}", short(path.as_str()))]
    ValueTooLarge { path: NodePath, bytes: usize, limit: usize },
    /// A message is over the limit.
    #[error("a message is over the limit of {limit} bytes")]
    MessageTooLarge { limit: usize },
    /// A ttl is out of bounds.
    #[error("ttl of {ttl} is not between {min:?} and {max:?}")]
    InvalidTtl { ttl: String, min: Duration, max: Duration },
    /// A field can't be understood, or comes at the wrong time.
    #[error("{field}: {cause}")]
    Protocol { field: &'static str, cause: String },
    /// The node does not exist.
    #[error("no node at {}", short(path.as_str()))]
    NoNode { path: NodePath },
    /// The lock id is unknown, or its lock is over.
    #[error("no lock has this id: the id was never given out, or its lock has ended")]
    UnknownLock,
    /// A lock that was held or waited for is gone.
    #[error("lock {} is lost: {cause}", short(path.as_str()))]
    LockLost { path: NodePath, cause: &'static str },
    /// The version differs.
    #[error("{} has version {actual}, not {expected}", short(path.as_str()))]
    VersionMismatch { path: NodePath, expected: i32, actual: i32 },
    /// A lock was not granted in time.
    #[error("lock {} is held by {}", short(path.as_str()), list(holders))]
    LockBusy { path: NodePath, holders: Vec<String> },
    /// A later stream took this one's place.
    #[error("lock {} was taken over by a later stream with the same lock id", short(path.as_str()))]
    Superseded { path: NodePath },
    /// The session of a Register stream is over.
    #[error("session expired: nothing was heard from its client for the ttl of {ttl:?}")]
    SessionExpired { ttl: Duration },
    /// The state that a page belongs to is gone.
    #[error("the state of {} that this page token belongs to is gone: start again without it", short(path.as_str()))]
    PageExpired { path: NodePath },
    /// The name is held by another.
    #[error("{} is registered by another program", short(path.as_str()))]
    NameTaken { path: NodePath },
    /// `create_only` met a node that exists.
    #[error("{} exists", short(path.as_str()))]
    NodeExists { path: NodePath },
    /// The lock has another limit.
    #[error("lock {} has the limit {actual}, and the request asks for {asked}", short(path.as_str()))]
    LockLimitDiffers { path: NodePath, asked: u32, actual: u32 },
    /// The path is used for something other than a lock.
    #[error("{} is not a lock: {cause}", short(path.as_str()))]
    NotALock { path: NodePath, cause: &'static str },
    /// A durable node is where a registration should go.
    #[error("{} is a durable node, which a registration never takes over", short(path.as_str()))]
    NotEphemeral { path: NodePath },
    /// An ephemeral node can't have children.
    #[error("{} can't have children: {} is a registration", short(path.as_str()), short(parent.as_str()))]
    ParentEphemeral { path: NodePath, parent: NodePath },
    /// The node has children.
    #[error("{} has children", short(path.as_str()))]
    NotEmpty { path: NodePath },
    /// A registration, or a lock's node, is in the way.
    #[error("{} is a registration or belongs to a lock", short(path.as_str()))]
    HasRegistrations { path: NodePath },
    /// An operator has evicted the registration.
    #[error("{} was evicted, and can't be registered for another {remaining:.0?}", short(path.as_str()))]
    Evicted { path: NodePath, remaining: Duration },
    /// ZooKeeper's access control list forbids the request.
    #[error("zookeeper's access control list forbids this on {}", short(path.as_str()))]
    NoAuth { path: NodePath },
    /// This replica was started with `--read-only`.
    #[error("this replica is read-only")]
    ReadOnly,
    /// ZooKeeper can't be reached.
    #[error("zookeeper can't be reached")]
    BackendUnavailable,
    /// This replica is going down.
    #[error("this replica is shutting down")]
    Draining,
    /// The client's own deadline for the call is over.
    #[error("the deadline of the call is over")]
    DeadlineExceeded,
    /// A request was not complete in time.
    #[error("the request was still incomplete {:.1} s after it began", after.as_secs_f64())]
    RequestUnfinished { after: Duration },
    /// It is not known whether a write was carried out.
    #[error(
        "the connection to zookeeper was lost during a write of {}: the write may or may not have been made",
        short(path.as_str())
    )]
    OutcomeUnknown { path: NodePath },
    /// A Delete took several transactions, of which only some were carried out.
    #[error("only a part of the nodes at and below {} was deleted: {cause}", short(path.as_str()))]
    PartlyDeleted { path: NodePath, cause: Box<Error> },
    /// A quota that is set in ZooKeeper forbids the request.
    #[error("zookeeper's quota forbids this on {}", short(path.as_str()))]
    Quota { path: NodePath },
    /// A limit of this replica is reached.
    #[error("{what} is at its limit of {limit}")]
    LimitExceeded { reason: &'static str, what: &'static str, limit: u64 },
    /// A defect of Rollcall or of ZooKeeper.
    #[error("{}: {cause}", short(path.as_str()))]
    Internal { path: NodePath, cause: String },
}

impl Error {
    /// A path is larger than any path may be, whichever connection reads it.
    pub(crate) fn path_too_large(limit: usize) -> Self {
        Self::too_many_view_bytes("the size of one path with all that is read of it, in bytes,", limit)
    }

    /// The names of a node's children are more than can be read at once.
    pub(crate) fn list_too_large(limit: usize) -> Self {
        Self::too_many_view_bytes("the size of the names of one node's children, in bytes,", limit)
    }

    fn too_many_view_bytes(what: &'static str, limit: usize) -> Self {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        Self::LimitExceeded { reason: "TOO_MANY_VIEW_BYTES", what, limit }
    }

    /// The stable reason, in upper snake case.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::InvalidPath { .. } => "INVALID_PATH",
            Self::ValueTooLarge { .. } | Self::MessageTooLarge { .. } => "VALUE_TOO_LARGE",
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
            Self::Evicted { .. } => "EVICTED",
            Self::NoAuth { .. } => "NO_AUTH",
            Self::ReadOnly => "READ_ONLY",
            Self::BackendUnavailable => "BACKEND_UNAVAILABLE",
            Self::Draining => "DRAINING",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::RequestUnfinished { .. } => "REQUEST_UNFINISHED",
            Self::OutcomeUnknown { .. } | Self::PartlyDeleted { .. } => "OUTCOME_UNKNOWN",
            Self::Quota { .. } => "QUOTA",
            Self::LimitExceeded { reason, .. } => reason,
            Self::Internal { .. } => "INTERNAL",
        }
    }
}

/// A name for a message. A name that is too long is cut, and ends with `…`.
pub(crate) fn short(name: &str) -> std::borrow::Cow<'_, str> {
    const LONGEST_NAME_SHOWN: usize = 160;
    if name.len() <= LONGEST_NAME_SHOWN {
        return name.into();
    }
    format!("{}…", &name[..name.floor_char_boundary(LONGEST_NAME_SHOWN)]).into()
}

/// A list for a message: the first few names, and the number of the others.
pub(crate) fn list(names: &[String]) -> String {
    const NAMES_SHOWN: usize = 5;
    let mut text = names.iter().take(NAMES_SHOWN).map(|name| short(name)).collect::<Vec<_>>().join(", ");
    if names.len() > NAMES_SHOWN {
        text.push_str(&format!(" and {} more", names.len() - NAMES_SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_stay_short_whatever_the_names_are() {
        let path = NodePath::trusted(format!("/{}", "é".repeat(2000)));
        let holders = vec!["x".repeat(1000); 1000];
        let message = Error::LockBusy { path, holders }.to_string();
        assert!(message.len() < 1200, "{message}");
        assert!(message.contains("… is held by") || message.contains('…'));
        assert!(message.ends_with("and 995 more"));
    }
}
