//! The possible failures of a request to ZooKeeper.

pub(crate) use rollcall_wire::ErrorCode;

/// The reason why a request has no usable answer. Callers may decide by these classes only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// ZooKeeper answered, and did not carry out the request.
    #[error("{0}")]
    Refused(ErrorCode),
    /// The request was not sent, and never will be: there is no connection, or too much is under way. Or ZooKeeper has
    /// dropped it for a reason that does not concern the request.
    #[error("zookeeper can't be reached")]
    NotSent,
    /// The connection broke after the request was sent: it may or may not have been carried out.
    #[error("the connection to zookeeper was lost under way")]
    OutcomeUnknown,
    /// The session has ended: its ephemerals are gone, or will be in an instant. Whether the request was carried out
    /// before is not known.
    #[error("the zookeeper session expired")]
    SessionExpired,
    /// The request is over ZooKeeper's frame limit and was not sent.
    #[error("a request of {0} bytes is over zookeeper's frame limit")]
    TooLarge(usize),
    /// The answer is too large to be read; a request for less may succeed. The connection remains.
    #[error("an answer of {0} bytes is more than is read")]
    AnswerTooLarge(usize),
}

impl Error {
    /// Whether the request may or may not have been carried out.
    pub(crate) fn is_unknown(self) -> bool {
        matches!(self, Self::OutcomeUnknown | Self::SessionExpired)
    }

    /// Whether the error says nothing about the request, but that there was no connection for it.
    pub(crate) fn is_connection_lost(self) -> bool {
        matches!(self, Self::NotSent | Self::OutcomeUnknown | Self::SessionExpired)
    }

    /// The class of an error code in a reply's header. Only a handshake proves that a session has ended: a reply that
    /// says so may come from a server that is behind, or that the session has left. The request is not carried out.
    pub(super) fn from_reply(code: ErrorCode) -> Self {
        // -4 is CONNECTIONLOSS, which a server answers when it has lost its own leader.
        const CONNECTION_LOSS: ErrorCode = ErrorCode::Other(-4);
        match code {
            ErrorCode::SessionExpired | ErrorCode::SessionMoved | ErrorCode::Throttled => Self::NotSent,
            ErrorCode::OperationTimeout | ErrorCode::SystemError | CONNECTION_LOSS => Self::OutcomeUnknown,
            code => Self::Refused(code),
        }
    }
}
