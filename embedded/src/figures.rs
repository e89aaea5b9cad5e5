//! The figures of one connection, for the four-letter words `stat` and `cons`.

use rollcall_wire::server::Request;

use crate::types::{Now, Zxid};

/// The name of an operation for which ZooKeeper has none, and of a write that failed.
pub(crate) const NO_NAME: &str = "NA";

/// Counts of one connection.
#[derive(Debug)]
pub(crate) struct Figures {
    /// Frames that were read.
    pub(crate) received: u64,
    /// Frames that were handed out.
    pub(crate) sent: u64,
    /// When the connection was accepted, in milliseconds since the epoch.
    pub(crate) established_ms: i64,
    /// The operation that was answered last.
    pub(crate) last: Last,
}

/// The operation that was answered last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Last {
    pub(crate) operation: &'static str,
    /// The client's number of the last operation that has one.
    pub(crate) xid: Option<i32>,
    /// The server's last transaction at that time.
    pub(crate) zxid: Zxid,
    /// When it was answered, on the clock by which sessions are measured.
    pub(crate) at_ms: u64,
}

impl Figures {
    /// The figures of a new connection.
    pub(crate) fn new(now: Now) -> Self {
        Self { received: 0, sent: 0, established_ms: now.wall_ms, last: Last::NONE }
    }

    /// Counts from zero again.
    pub(crate) fn reset(&mut self) {
        *self = Self { received: 0, sent: 0, last: Last::NONE, ..*self };
    }

    /// Notes that an operation was answered.
    pub(crate) fn answered(&mut self, operation: &'static str, xid: i32, zxid: Zxid, now: Now) {
        // Pings and the like have no number of their own.
        let xid = if xid >= 0 { Some(xid) } else { self.last.xid };
        self.last = Last { operation, xid, zxid, at_ms: now.elapsed_ms };
    }
}

impl Last {
    const NONE: Self = Self { operation: NO_NAME, xid: None, zxid: Zxid(-1), at_ms: 0 };
}

/// ZooKeeper's name for an operation in `cons`.
pub(crate) fn name(request: &Request) -> &'static str {
    match request {
        Request::Create { .. } => "CREA",
        Request::Delete { .. } => "DELE",
        Request::Exists { .. } => "EXIS",
        Request::GetData { .. } => "GETD",
        Request::SetData { .. } => "SETD",
        Request::GetAcl { .. } => "GETA",
        Request::SetAcl { .. } => "SETA",
        Request::GetChildren { .. } | Request::GetChildren2 { .. } => "GETC",
        Request::GetAllChildrenNumber { .. } => "GETACN",
        Request::GetEphemerals { .. } => "GETE",
        Request::Sync { .. } => "SYNC",
        Request::Check { .. } => "CHEC",
        Request::Multi(_) => "MULT",
        Request::MultiRead(_) => "MLTR",
        Request::CheckWatches { .. } => "CHKW",
        Request::RemoveWatches { .. } => "REMW",
        Request::SetWatches(_) => "SETW",
        Request::AddWatch { .. } => "ADDW",
        Request::WhoAmI => "HOMI",
        Request::Ping => "PING",
        Request::CloseSession => "CLOS",
        Request::Auth { .. } | Request::Sasl | Request::Reconfig => NO_NAME,
    }
}
