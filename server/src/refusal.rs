//! Errors for callers whose operation on a node ZooKeeper refuses.

use crate::error::Error;
use crate::types::NodePath;
use crate::zk::{self, ErrorCode};

/// The error of a refusal that the caller did not expect, and can't mend by looking again.
pub(crate) fn refused(path: &NodePath, code: ErrorCode) -> Error {
    let path = path.clone();
    match code {
        ErrorCode::NoAuth => Error::NoAuth { path },
        ErrorCode::NoChildrenForEphemerals => {
            let parent = path.parent().unwrap_or_else(|| path.clone());
            Error::ParentEphemeral { path, parent }
        }
        ErrorCode::QuotaExceeded => Error::Quota { path },
        ErrorCode::NotEmpty => Error::NotEmpty { path },
        code => Error::Internal { path, cause: code.to_string() },
    }
}

/// The error of a request that was not sent, because it has `bytes` bytes.
pub(crate) fn too_large(path: &NodePath, bytes: usize) -> Error {
    Error::ValueTooLarge { path: path.clone(), bytes, limit: zk::MAX_FRAME }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_by_what_the_caller_can_do_about_it() {
        let path = NodePath::trusted("/a/b");
        for (code, reason) in [
            (ErrorCode::NoAuth, "NO_AUTH"),
            (ErrorCode::QuotaExceeded, "QUOTA"),
            (ErrorCode::NoChildrenForEphemerals, "HAS_REGISTRATIONS"),
            (ErrorCode::NotEmpty, "NOT_EMPTY"),
            (ErrorCode::Unimplemented, "INTERNAL"),
        ] {
            assert_eq!(refused(&path, code).reason(), reason, "{code:?}");
        }
    }
}
