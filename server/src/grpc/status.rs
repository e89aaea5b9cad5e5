//! Converts errors to statuses. No other file names a status code.
//!
//! Every status has a `google.rpc.ErrorInfo` (domain `rollcall`, the error's reason, the object's name), a `BadRequest`
//! where a field is at fault, and a `RetryInfo` where a retry helps. A message has at most [`MAX_MESSAGE`] bytes, and
//! all details together stay under 4 KiB: names are cut, lists end with «and N more».

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::message::MAX_MESSAGE_BYTES;
use super::times::{BACKEND_RETRY, DRAIN_SPREAD};
use crate::error::{Error, list, short};

/// The domain of every `ErrorInfo`.
const DOMAIN: &str = "rollcall";
/// Maximum length of a message, in bytes.
const MAX_MESSAGE: usize = 512;

/// The code of an error, as in the design's table.
pub(super) fn code(error: &Error) -> Code {
    match error {
        Error::InvalidPath { .. }
        | Error::ValueTooLarge { .. }
        | Error::MessageTooLarge { .. }
        | Error::InvalidTtl { .. }
        | Error::Protocol { .. } => Code::InvalidArgument,
        Error::NoNode { .. } | Error::UnknownLock => Code::NotFound,
        Error::VersionMismatch { .. }
        | Error::LockBusy { .. }
        | Error::LockLost { .. }
        | Error::Superseded { .. }
        | Error::SessionExpired { .. }
        | Error::PageExpired { .. } => Code::Aborted,
        Error::NameTaken { .. } | Error::NodeExists { .. } => Code::AlreadyExists,
        Error::LockLimitDiffers { .. }
        | Error::NotALock { .. }
        | Error::NotEphemeral { .. }
        | Error::NotEmpty { .. }
        | Error::ParentEphemeral { .. }
        | Error::Evicted { .. }
        | Error::HasRegistrations { .. } => Code::FailedPrecondition,
        Error::NoAuth { .. } | Error::ReadOnly => Code::PermissionDenied,
        Error::BackendUnavailable | Error::Draining => Code::Unavailable,
        Error::DeadlineExceeded | Error::RequestUnfinished { .. } => Code::DeadlineExceeded,
        Error::OutcomeUnknown { .. } | Error::PartlyDeleted { .. } => Code::Unknown,
        Error::Quota { .. } | Error::LimitExceeded { .. } => Code::ResourceExhausted,
        Error::Internal { .. } => Code::Internal,
    }
}

/// The error for a request that tonic could not read. `None` if tonic's own answer is right, as when there is no such
/// method.
pub(super) fn fault(status: &Status) -> Option<Error> {
    match status.code() {
        Code::Ok | Code::Unimplemented => None,
        Code::OutOfRange => Some(Error::MessageTooLarge { limit: MAX_MESSAGE_BYTES }),
        _ => {
            let cause = if status.message().is_empty() { "it can't be read" } else { status.message() };
            Some(Error::Protocol { field: "request", cause: short(cause).into_owned() })
        }
    }
}

/// The message of an error, cut to [`MAX_MESSAGE`].
pub(super) fn message(error: &Error) -> String {
    let mut message = error.to_string();
    if message.len() > MAX_MESSAGE {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE - '…'.len_utf8()));
        message.push('…');
    }
    message
}

/// The whole status.
pub(super) fn status(error: &Error) -> Status {
    let mut details = ErrorDetails::with_error_info(error.reason(), DOMAIN, metadata(error));
    if let Some(field) = field(error) {
        details.add_bad_request_violation(field, message(error));
    }
    match error {
        Error::BackendUnavailable => drop(details.set_retry_info(Some(BACKEND_RETRY))),
        // So that the clients do not return all at once.
        Error::Draining => drop(details.set_retry_info(Some(DRAIN_SPREAD.mul_f64(rand::random())))),
        _ => {}
    }
    Status::with_error_details(code(error), message(error), details)
}

/// The field of the request that is at fault.
fn field(error: &Error) -> Option<&'static str> {
    match error {
        Error::InvalidPath { .. } => Some("path"),
        Error::ValueTooLarge { .. } => Some("value"),
        Error::MessageTooLarge { .. } => Some("request"),
        Error::InvalidTtl { .. } => Some("ttl"),
        Error::Protocol { field, .. } => Some(field),
        _ => None,
    }
}

fn metadata(error: &Error) -> HashMap<String, String> {
    let mut metadata = HashMap::new();
    let mut add = |key: &str, value: String| drop(metadata.insert(key.to_owned(), value));
    match error {
        Error::InvalidPath { path, .. } => add("path", short(path).into_owned()),
        Error::ValueTooLarge { path, bytes, limit } => {
            add("path", short(path.as_str()).into_owned());
            add("bytes", bytes.to_string());
            add("limit", limit.to_string());
        }
        Error::VersionMismatch { path, expected, actual } => {
            add("path", short(path.as_str()).into_owned());
            add("expected_version", expected.to_string());
            add("actual_version", actual.to_string());
        }
        Error::LockBusy { path, holders } => {
            add("path", short(path.as_str()).into_owned());
            add("holders", list(holders));
        }
        Error::LockLimitDiffers { path, asked, actual } => {
            add("path", short(path.as_str()).into_owned());
            add("asked", asked.to_string());
            add("actual", actual.to_string());
        }
        Error::LimitExceeded { limit, .. } => add("limit", limit.to_string()),
        Error::MessageTooLarge { limit } => add("limit", limit.to_string()),
        Error::NoNode { path }
        | Error::LockLost { path, .. }
        | Error::Superseded { path }
        | Error::PageExpired { path }
        | Error::NameTaken { path }
        | Error::NodeExists { path }
        | Error::NotALock { path, .. }
        | Error::NotEphemeral { path }
        | Error::ParentEphemeral { path, .. }
        | Error::NotEmpty { path }
        | Error::HasRegistrations { path }
        | Error::Evicted { path, .. }
        | Error::NoAuth { path }
        | Error::OutcomeUnknown { path }
        | Error::PartlyDeleted { path, .. }
        | Error::Quota { path }
        | Error::Internal { path, .. } => add("path", short(path.as_str()).into_owned()),
        Error::InvalidTtl { .. }
        | Error::Protocol { .. }
        | Error::UnknownLock
        | Error::SessionExpired { .. }
        | Error::ReadOnly
        | Error::BackendUnavailable
        | Error::Draining
        | Error::DeadlineExceeded
        | Error::RequestUnfinished { .. } => {}
    }
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{NodePath, PathError};

    #[test]
    fn every_status_is_bounded_whatever_the_names_are() {
        let path = NodePath::trusted(format!("/{}", "ü".repeat(2000)));
        for error in [
            Error::LockBusy { path: path.clone(), holders: vec!["ß".repeat(500); 100] },
            Error::InvalidPath { path: "x".repeat(10_000), error: PathError::Relative },
            Error::NoNode { path },
        ] {
            let status = status(&error);
            assert!(status.message().len() <= MAX_MESSAGE, "{}", status.message().len());
            assert!(status.details().len() <= 4096, "{}", status.details().len());
            let info = status.get_error_details().error_info().cloned().unwrap();
            assert_eq!((info.domain.as_str(), info.reason.as_str()), (DOMAIN, error.reason()));
        }
    }
}
