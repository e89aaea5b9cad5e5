//! Errors, and whether it helps to try again.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, ConnectError, Status};
use tonic_types::StatusExt as _;

/// The domain of every `google.rpc.ErrorInfo` that a replica sends.
const DOMAIN: &str = "rollcall";

/// Why a call failed, or why a lock or a registration is no longer held. Cheap to clone.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request is not valid; nothing was sent.
    #[error("{what}: {cause}")]
    Invalid {
        /// The argument at fault.
        what: &'static str,
        /// Why it is not valid.
        cause: String,
    },
    /// No replica answered within the client's time-out. Nothing was written.
    #[error("no replica answered ({replicas}){}", because(source.as_deref()))]
    Unreachable {
        /// The replicas that were asked: `host:port`, separated by commas.
        replicas: String,
        /// The answer of the last replica that was tried, or why there was none.
        source: Option<Arc<Status>>,
    },
    /// A replica refused the request.
    #[error("{0}")]
    Refused(Refusal),
    /// The connection broke after a write was sent, so the write may or may not have been made. Read before you try
    /// again.
    #[error("{path} may or may not have been written: {}", source.message())]
    OutcomeUnknown {
        /// The path that was to be written.
        path: String,
        /// How the call ended.
        source: Arc<Status>,
    },
    /// A lock or a registration is no longer held.
    #[error("{path} is lost: {reason}")]
    Lost {
        /// The path of the lock or the registration.
        path: String,
        /// Why.
        reason: LostReason,
    },
}

fn because(source: Option<&Status>) -> String {
    source.map_or_else(String::new, |status| format!(": {}", said(status)))
}

fn said(status: &Status) -> &str {
    if status.message().is_empty() { status.code().description() } else { status.message() }
}

/// A replica's refusal.
#[derive(Debug, Clone)]
pub struct Refusal {
    reason: Reason,
    metadata: HashMap<String, String>,
    retry_after: Option<Duration>,
    status: Arc<Status>,
}

impl Refusal {
    /// The stable reason, to decide by.
    #[must_use]
    pub fn reason(&self) -> &Reason {
        &self.reason
    }

    /// The cause, for people; its wording may change.
    #[must_use]
    pub fn message(&self) -> &str {
        self.status.message()
    }

    /// A detail by its key, such as `path`, `actual_version` or `holders`.
    #[must_use]
    pub fn detail(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message() {
            "" => self.reason.fmt(formatter),
            message => message.fmt(formatter),
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// The stable reason of a refusal. The table of all errors is in the proto files.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $name,)+
            /// A reason that this version of the client does not know. If the refusal did not come from a replica: the
            /// name of its status code.
            Other(String),
        }

        impl Reason {
            /// The reason as it is written on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$name => $text,)+
                    Self::Other(text) => text,
                }
            }
        }

        impl From<&str> for Reason {
            fn from(text: &str) -> Self {
                match text {
                    $($text => Self::$name,)+
                    other => Self::Other(other.to_owned()),
                }
            }
        }
    };
}

reasons! {
    /// The path is not a valid path, or can't be used for this call.
    InvalidPath = "INVALID_PATH",
    /// The value is larger than the replica's limit.
    ValueTooLarge = "VALUE_TOO_LARGE",
    /// The ttl is not between 1 second and 10 minutes.
    InvalidTtl = "INVALID_TTL",
    /// The request breaks the rules of the protocol.
    Protocol = "PROTOCOL",
    /// The node does not exist.
    NoNode = "NO_NODE",
    /// The lock is over, or was never held under this id.
    LockLost = "LOCK_LOST",
    /// The node has another version.
    VersionMismatch = "VERSION_MISMATCH",
    /// The lock was not granted in the time that the request allowed.
    LockBusy = "LOCK_BUSY",
    /// Another stream has taken over the same lock.
    Superseded = "SUPERSEDED",
    /// The replica heard nothing from the client for the ttl.
    SessionExpired = "SESSION_EXPIRED",
    /// The replica no longer has the state that the page belongs to.
    PageExpired = "PAGE_EXPIRED",
    /// Another client has registered the name, and the request was `exclusive`.
    NameTaken = "NAME_TAKEN",
    /// The node exists already, and the request was to create it.
    NodeExists = "NODE_EXISTS",
    /// The lock's `simultaneous` differs from the one that others use.
    LockLimitDiffers = "LOCK_LIMIT_DIFFERS",
    /// The path holds something other than a lock.
    NotALock = "NOT_A_LOCK",
    /// A durable node exists where the registration should go.
    NotEphemeral = "NOT_EPHEMERAL",
    /// The node has children.
    NotEmpty = "NOT_EMPTY",
    /// A registration, or a lock's node, is in the way.
    HasRegistrations = "HAS_REGISTRATIONS",
    /// An operator keeps the path from being registered for a time.
    Evicted = "EVICTED",
    /// ZooKeeper's access control forbids it.
    NoAuth = "NO_AUTH",
    /// A rule of the replica forbids it.
    Rule = "RULE",
    /// The replica takes no writes, locks or registrations.
    ReadOnly = "READ_ONLY",
    /// ZooKeeper can't be reached.
    BackendUnavailable = "BACKEND_UNAVAILABLE",
    /// The replica is about to stop.
    Draining = "DRAINING",
    /// Whether the write was made is unknown.
    OutcomeUnknown = "OUTCOME_UNKNOWN",
    /// A quota that is set in ZooKeeper forbids it.
    Quota = "QUOTA",
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Why a registration or a lock is no longer held.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LostReason {
    /// Somebody else has registered the path since.
    TakenOver,
    /// Its time ran out before any replica heard that it is still wanted.
    Expired,
    /// The ZooKeeper session that carried it is over, or may be.
    SessionLost,
    /// Somebody deleted it, and it is not created again.
    Removed,
    /// An operator removed it with Evict, and keeps the path from being registered for a time.
    Evicted,
    /// The connection that carried it broke, and it has no ttl.
    Disconnected,
    /// Somebody released the lock by its id.
    Released,
    /// Another stream has taken over the lock with the same id.
    Superseded,
    /// A replica refused to keep it: the reason and the message.
    Refused(Reason, String),
}

impl fmt::Display for LostReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::TakenOver => "somebody else has registered it since",
            Self::Expired => "no renewal reached a replica in time",
            Self::SessionLost => "the zookeeper session that held it has ended, or may have",
            Self::Removed => "somebody deleted it",
            Self::Evicted => "an operator has evicted it",
            Self::Disconnected => "the connection that carried it broke",
            Self::Released => "somebody gave it back by its id",
            Self::Superseded => "another stream has taken it over with the same id",
            Self::Refused(reason, message) if message.is_empty() => return reason.fmt(formatter),
            Self::Refused(_, message) => message,
        };
        formatter.write_str(text)
    }
}

impl Error {
    /// The reason of a refusal; `None` if no replica has refused.
    #[must_use]
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Refused(refusal) => Some(&refusal.reason),
            _ => None,
        }
    }

    /// Whether the same call may well succeed later. Never true when it is unknown whether a write was made.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused(refusal) => {
                refusal.retry_after.is_some()
                    || matches!(refusal.status.code(), Code::Unavailable | Code::ResourceExhausted)
                    || matches!(refusal.reason, Reason::LockBusy | Reason::PageExpired)
            }
            Self::Invalid { .. } | Self::OutcomeUnknown { .. } | Self::Lost { .. } => false,
        }
    }

    /// Time that the replica asks to wait before the call is tried again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after,
            _ => None,
        }
    }

    /// Whether no replica was able to serve the call.
    pub(crate) fn is_unavailable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused(refusal) => refusal.code() == Code::Unavailable,
            Self::Invalid { .. } | Self::OutcomeUnknown { .. } | Self::Lost { .. } => false,
        }
    }

    pub(crate) fn invalid(what: &'static str, cause: impl fmt::Display) -> Self {
        Self::Invalid { what, cause: cause.to_string() }
    }
}

impl Refusal {
    pub(crate) fn of(status: Status) -> Self {
        let (info, retry) = (status.get_details_error_info(), status.get_details_retry_info());
        let (reason, metadata) = match info {
            Some(info) => (Reason::from(info.reason.as_str()), info.metadata),
            None => (Reason::Other(format!("{:?}", status.code())), HashMap::new()),
        };
        let retry_after = retry.and_then(|retry| retry.retry_delay);
        Self { reason, metadata, retry_after, status: Arc::new(status) }
    }

    /// A refusal that came as a message of a stream: its reason counts, whatever its code is.
    pub(crate) fn in_stream(code: i32, reason: &str, message: String) -> Self {
        let status = Arc::new(Status::new(Code::from_i32(code), message));
        Self { reason: Reason::from(reason), metadata: HashMap::new(), retry_after: None, status }
    }

    pub(crate) fn code(&self) -> Code {
        self.status.code()
    }

    pub(crate) fn into_lost(self) -> LostReason {
        if self.reason == Reason::Evicted {
            return LostReason::Evicted;
        }
        let message = self.message().to_owned();
        LostReason::Refused(self.reason, message)
    }
}

/// How a call ended, as far as trying another replica is concerned.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The call never reached a replica.
    NotSent(Status),
    /// A replica can't serve the call now, and has done nothing.
    NotNow(Refusal),
    /// A replica refused the call.
    Refused(Refusal),
    /// The replica does not know the outcome, or the connection broke on the way.
    Broken(Status),
}

impl Failure {
    pub(crate) fn of(status: Status) -> Self {
        if is_connect_error(&status) {
            return Self::NotSent(status);
        }
        let from_replica = status.get_details_error_info().is_some_and(|info| info.domain == DOMAIN);
        if !from_replica {
            // An intermediary may refuse as well, such as a proxy that checks credentials.
            let refused = matches!(
                status.code(),
                Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented | Code::InvalidArgument
            );
            return if refused { Self::Refused(Refusal::of(status)) } else { Self::Broken(status) };
        }
        let refusal = Refusal::of(status);
        match refusal.status.code() {
            Code::Unavailable => Self::NotNow(refusal),
            Code::Unknown if refusal.reason == Reason::OutcomeUnknown => {
                Self::Broken(Arc::into_inner(refusal.status).unwrap_or_else(|| Status::unknown("")))
            }
            _ => Self::Refused(refusal),
        }
    }

    /// The replica ended a stream without an error, and without being asked to.
    pub(crate) fn ended() -> Self {
        Self::Broken(Status::unavailable("the replica ended the stream"))
    }

    /// A replica was silent for too long.
    pub(crate) fn silent() -> Self {
        Self::Broken(Status::deadline_exceeded("the replica does not answer"))
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NotNow(refusal) | Self::Refused(refusal) => refusal.retry_after,
            Self::NotSent(_) | Self::Broken(_) => None,
        }
    }

    /// The replica's answer, or why there is none, as text for a message.
    pub(crate) fn cause(&self) -> String {
        match self {
            Self::NotNow(refusal) | Self::Refused(refusal) => refusal.to_string(),
            Self::NotSent(status) | Self::Broken(status) => {
                causes(status).last().map_or_else(|| said(status).to_owned(), ToString::to_string)
            }
        }
    }

    /// The replica's refusal. A failure that did not come from a replica is shown as a refusal.
    pub(crate) fn into_refusal(self) -> Refusal {
        match self {
            Self::NotNow(refusal) | Self::Refused(refusal) => refusal,
            Self::NotSent(status) | Self::Broken(status) => Refusal::of(readable(status)),
        }
    }

    /// The replica's status, or why there is none.
    pub(crate) fn into_status(self) -> Arc<Status> {
        match self {
            Self::NotSent(status) | Self::Broken(status) => Arc::new(readable(status)),
            Self::NotNow(refusal) | Self::Refused(refusal) => refusal.status,
        }
    }
}

fn is_connect_error(status: &Status) -> bool {
    causes(status).any(|error| error.is::<ConnectError>())
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(status), |error| error.source())
}

/// Replaces the message by the innermost cause: the outer ones are «transport error» and the like.
fn readable(status: Status) -> Status {
    match causes(&status).last() {
        Some(innermost) => Status::new(status.code(), innermost.to_string()),
        None => status,
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn status(code: Code, reason: &str) -> Status {
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, [("path".to_owned(), "/a".to_owned())]);
        details.set_retry_info(Some(Duration::from_millis(500)));
        Status::with_error_details(code, "what happened", details)
    }

    #[test]
    fn a_refusal_tells_reason_details_and_when_to_come_back() {
        let error = Error::Refused(Refusal::of(status(Code::Unavailable, "BACKEND_UNAVAILABLE")));
        assert_eq!(error.reason(), Some(&Reason::BackendUnavailable));
        assert_eq!(error.retry_after(), Some(Duration::from_millis(500)));
        assert!(error.is_retryable());
        assert_eq!(error.to_string(), "what happened");
        let Error::Refused(refusal) = error else { panic!("not refused") };
        assert_eq!(refusal.detail("path"), Some("/a"));
    }

    #[test]
    fn reasons_that_are_not_known_are_kept() {
        let reason = Reason::from("NEW_ONE");
        assert_eq!(reason, Reason::Other("NEW_ONE".to_owned()));
        assert_eq!(reason.to_string(), "NEW_ONE");
        assert_eq!(Reason::from("LOCK_BUSY").as_str(), "LOCK_BUSY");
    }

    #[test]
    fn what_may_have_been_carried_out_is_told_from_what_was_not() {
        assert!(matches!(Failure::of(status(Code::Unavailable, "DRAINING")), Failure::NotNow(_)));
        assert!(matches!(Failure::of(status(Code::Unknown, "OUTCOME_UNKNOWN")), Failure::Broken(_)));
        assert!(matches!(Failure::of(status(Code::NotFound, "NO_NODE")), Failure::Refused(_)));
        assert!(matches!(Failure::of(Status::unknown("connection reset")), Failure::Broken(_)));
        assert!(matches!(Failure::of(Status::unavailable("keep-alive timed out")), Failure::Broken(_)));
        assert!(matches!(Failure::of(Status::unauthenticated("no token")), Failure::Refused(_)));
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert!(matches!(
            Failure::of(Status::from_error(Box::new(ConnectError(Box::new(refused))))),
            Failure::NotSent(_)
        ));
    }
}
