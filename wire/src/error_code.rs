//! ZooKeeper's error codes.

/// A code in a reply header or in a failed part of a multi.
///
/// Source: `org.apache.zookeeper.KeeperException.Code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// Another part of the same multi failed, and this one came after it.
    RuntimeInconsistency,
    /// The server lost its quorum or had an internal failure.
    SystemError,
    /// The operation is not supported by this server.
    Unimplemented,
    /// The request's bytes could not be read.
    MarshallingError,
    /// The arguments were refused.
    BadArguments,
    /// The server could not finish in time.
    OperationTimeout,
    /// The node does not exist.
    NoNode,
    /// The access control list forbids the operation.
    NoAuth,
    /// The version differs.
    BadVersion,
    /// Ephemeral nodes can't have children.
    NoChildrenForEphemerals,
    /// The node exists already.
    NodeExists,
    /// The node has children.
    NotEmpty,
    /// The session is over.
    SessionExpired,
    /// The access control list is invalid.
    InvalidAcl,
    /// Authentication failed.
    AuthFailed,
    /// The session moved to another server.
    SessionMoved,
    /// The server is read-only.
    NotReadOnly,
    /// No such watch.
    NoWatcher,
    /// The server does not let its members be changed.
    ReconfigDisabled,
    /// A quota is exceeded.
    QuotaExceeded,
    /// The server throttles requests.
    Throttled,
    /// Any other code, as it came.
    Other(i32),
}

impl ErrorCode {
    /// The code for the number on the wire; zero, which means «ok», is no error.
    #[must_use]
    pub fn from_wire(code: i32) -> Option<Self> {
        Some(match code {
            0 => return None,
            -1 => Self::SystemError,
            -2 => Self::RuntimeInconsistency,
            -5 => Self::MarshallingError,
            -6 => Self::Unimplemented,
            -7 => Self::OperationTimeout,
            -8 => Self::BadArguments,
            -101 => Self::NoNode,
            -102 => Self::NoAuth,
            -103 => Self::BadVersion,
            -108 => Self::NoChildrenForEphemerals,
            -110 => Self::NodeExists,
            -111 => Self::NotEmpty,
            -112 => Self::SessionExpired,
            -114 => Self::InvalidAcl,
            -115 => Self::AuthFailed,
            -118 => Self::SessionMoved,
            -119 => Self::NotReadOnly,
            -121 => Self::NoWatcher,
            -123 => Self::ReconfigDisabled,
            -125 => Self::QuotaExceeded,
            -127 => Self::Throttled,
            other => Self::Other(other),
        })
    }

    /// The number on the wire.
    #[must_use]
    pub fn to_wire(self) -> i32 {
        match self {
            Self::SystemError => -1,
            Self::RuntimeInconsistency => -2,
            Self::MarshallingError => -5,
            Self::Unimplemented => -6,
            Self::OperationTimeout => -7,
            Self::BadArguments => -8,
            Self::NoNode => -101,
            Self::NoAuth => -102,
            Self::BadVersion => -103,
            Self::NoChildrenForEphemerals => -108,
            Self::NodeExists => -110,
            Self::NotEmpty => -111,
            Self::SessionExpired => -112,
            Self::InvalidAcl => -114,
            Self::AuthFailed => -115,
            Self::SessionMoved => -118,
            Self::NotReadOnly => -119,
            Self::NoWatcher => -121,
            Self::ReconfigDisabled => -123,
            Self::QuotaExceeded => -125,
            Self::Throttled => -127,
            Self::Other(code) => code,
        }
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            Self::RuntimeInconsistency => "another part of the transaction failed",
            Self::SystemError => "zookeeper failed inside",
            Self::Unimplemented => "not supported by this zookeeper",
            Self::MarshallingError => "request could not be read",
            Self::BadArguments => "arguments refused",
            Self::OperationTimeout => "zookeeper timed out",
            Self::NoNode => "no such node",
            Self::NoAuth => "not allowed by the access control list",
            Self::BadVersion => "version differs",
            Self::NoChildrenForEphemerals => "ephemeral nodes have no children",
            Self::NodeExists => "node exists",
            Self::NotEmpty => "node has children",
            Self::SessionExpired => "session expired",
            Self::InvalidAcl => "invalid access control list",
            Self::AuthFailed => "authentication failed",
            Self::SessionMoved => "session moved",
            Self::NotReadOnly => "server is read-only",
            Self::NoWatcher => "no such watch",
            Self::ReconfigDisabled => "members can't be changed",
            Self::QuotaExceeded => "quota exceeded",
            Self::Throttled => "throttled",
            Self::Other(code) => return write!(formatter, "zookeeper error {code}"),
        };
        formatter.write_str(text)
    }
}
