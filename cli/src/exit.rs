//! The end of the command: exit codes, and error messages with advice.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use rollcall::{Error, LostReason, Reason};

use super::escape::escaped;

/// The request was refused, or failed.
pub(crate) const FAILED: u8 = 1;
/// There is no such node.
pub(crate) const NO_NODE: u8 = 3;
/// No replica could be reached.
pub(crate) const UNREACHABLE: u8 = 69;
/// The lock was not acquired in the given time.
pub(crate) const NOT_ACQUIRED: u8 = 75;
/// The lock was lost, and COMMAND was ended.
pub(crate) const LOCK_LOST: u8 = 76;
/// The registration was lost.
pub(crate) const REGISTRATION_LOST: u8 = 77;
/// A replica can't be reached, is not ready, drains, or does not reach ZooKeeper.
pub(crate) const NOT_WELL: u8 = 78;
/// COMMAND could not be started.
pub(crate) const CANNOT_RUN: u8 = 126;
/// There is no such COMMAND.
pub(crate) const NOT_FOUND: u8 = 127;

/// The result of a subcommand.
pub(crate) type Outcome = Result<ExitCode, Failure>;

/// An exit code and a message for standard error. Text of others is escaped.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl fmt::Display) -> Self {
        Self { code, message: escaped(&message.to_string()).into_owned() }
    }

    /// Wrong arguments, found after they were parsed.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(2, message)
    }

    /// Prints the message, and returns the code. Prints nothing when the message is empty.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            // Nothing can be done when standard error is closed.
            let _ = writeln!(std::io::stderr(), "rollcall: {}", self.message);
        }
        ExitCode::from(self.code)
    }

    fn with_hint(code: u8, message: impl fmt::Display, hint: &str) -> Self {
        let mut failure = Self::new(code, message);
        if !hint.is_empty() {
            failure.message.push_str(&format!("\n  {hint}"));
        }
        failure
    }

    /// The loss of a registration.
    pub(crate) fn of_loss(path: &str, reason: &LostReason) -> Self {
        match reason {
            LostReason::Refused(refused, _) => {
                let (code, hint) = advice(refused);
                Self::with_hint(code, reason, hint)
            }
            other => Self::new(REGISTRATION_LOST, format!("{path}: {other}")),
        }
    }

    /// Like `From<Error>`, for the lock subcommand.
    pub(crate) fn of_lock(error: &Error) -> Self {
        match error {
            Error::Refused(refusal) if *refusal.reason() == Reason::LockBusy => Self::new(NOT_ACQUIRED, refusal),
            Error::Lost { .. } => Self::new(LOCK_LOST, error),
            other => Self::from(other.clone()),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (code, hint) = match &error {
            Error::Unreachable { .. } => {
                (UNREACHABLE, "is rollcall-server running there? name it with --server, or in ROLLCALL_SERVER")
            }
            Error::OutcomeUnknown { .. } => (FAILED, "look with «rollcall get --latest» before you try again"),
            Error::Refused(refusal) => advice(refusal.reason()),
            _ => (FAILED, ""),
        };
        Self::with_hint(code, error, hint)
    }
}

/// The exit code of a refusal, and advice.
fn advice(reason: &Reason) -> (u8, &'static str) {
    match reason {
        Reason::NoNode => (NO_NODE, ""),
        Reason::BackendUnavailable => (UNREACHABLE, "the replica runs, but without zookeeper; see «rollcall status»"),
        Reason::LockLimitDiffers => (FAILED, "every user of a lock must give the same -n"),
        Reason::VersionMismatch => (
            FAILED,
            "the version is under stat in «rollcall get --latest --data -o json PATH»: read it again, and give the new one",
        ),
        Reason::NotEmpty => (FAILED, "with -r the nodes below are deleted too"),
        Reason::NameTaken => (FAILED, "without --exclusive the registration is taken over"),
        Reason::Evicted => (FAILED, "«rollcall evict PATH --lift» lets it in again"),
        Reason::HasRegistrations => (FAILED, "registrations and locks end with their holders"),
        Reason::LockLost => (FAILED, "it was given back, or has run out"),
        Reason::ReadOnly => (FAILED, "name a replica that accepts writes with --server"),
        Reason::Other(name) if name == "Unauthenticated" => (FAILED, "give a token in ROLLCALL_TOKEN"),
        _ => (FAILED, ""),
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        // The reader of the output has closed it, which is no fault to report.
        let message = match error.kind() {
            std::io::ErrorKind::BrokenPipe => String::new(),
            _ => error.to_string(),
        };
        Self::new(FAILED, message)
    }
}
