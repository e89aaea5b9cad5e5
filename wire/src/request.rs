//! Requests, as a client sends them.

use bytes::Bytes;

use crate::{Acl, Encoder};

/// The numbers of the operations.
///
/// Source: `org.apache.zookeeper.ZooDefs.OpCode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
#[allow(missing_docs, reason = "named as in ZooKeeper's source")]
pub enum OpCode {
    Create = 1,
    Delete = 2,
    Exists = 3,
    GetData = 4,
    SetData = 5,
    GetAcl = 6,
    SetAcl = 7,
    GetChildren = 8,
    Sync = 9,
    Ping = 11,
    GetChildren2 = 12,
    Check = 13,
    Multi = 14,
    Create2 = 15,
    Reconfig = 16,
    CheckWatches = 17,
    RemoveWatches = 18,
    CreateContainer = 19,
    CreateTtl = 21,
    MultiRead = 22,
    Auth = 100,
    SetWatches = 101,
    Sasl = 102,
    GetEphemerals = 103,
    GetAllChildrenNumber = 104,
    SetWatches2 = 105,
    AddWatch = 106,
    WhoAmI = 107,
    CloseSession = -11,
}

impl OpCode {
    /// The operation for the number on the wire, if there is one that a client may send.
    #[must_use]
    pub fn from_wire(number: i32) -> Option<Self> {
        Some(match number {
            1 => Self::Create,
            2 => Self::Delete,
            3 => Self::Exists,
            4 => Self::GetData,
            5 => Self::SetData,
            6 => Self::GetAcl,
            7 => Self::SetAcl,
            8 => Self::GetChildren,
            9 => Self::Sync,
            11 => Self::Ping,
            12 => Self::GetChildren2,
            13 => Self::Check,
            14 => Self::Multi,
            15 => Self::Create2,
            16 => Self::Reconfig,
            17 => Self::CheckWatches,
            18 => Self::RemoveWatches,
            19 => Self::CreateContainer,
            21 => Self::CreateTtl,
            22 => Self::MultiRead,
            100 => Self::Auth,
            101 => Self::SetWatches,
            102 => Self::Sasl,
            103 => Self::GetEphemerals,
            104 => Self::GetAllChildrenNumber,
            105 => Self::SetWatches2,
            106 => Self::AddWatch,
            107 => Self::WhoAmI,
            -11 => Self::CloseSession,
            _ => return None,
        })
    }
}

/// The lifetime of a created node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateMode {
    /// Until it is deleted.
    Persistent,
    /// As long as the session.
    Ephemeral,
    /// As long as the session, with ten digits appended that rise with each child that the parent ever had.
    EphemeralSequential,
}

/// The nodes that a persistent watch covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchMode {
    /// The node and the list of its children.
    Persistent,
    /// The node and everything below it, without events for lists of children.
    PersistentRecursive,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Creates a node, and answers with its path and stat (`create2`).
    Create {
        /// The node; a sequential one gets its digits appended.
        path: String,
        /// Its data.
        data: Bytes,
        /// Its access control list.
        acl: Vec<Acl>,
        /// Its lifetime.
        mode: CreateMode,
    },
    /// Deletes a node without children.
    Delete {
        /// The node.
        path: String,
        /// The version that it must have; -1 for any.
        version: i32,
    },
    /// Reads a node's stat.
    Exists {
        /// The node.
        path: String,
        /// Whether to set a one-shot watch.
        watch: bool,
    },
    /// Reads a node's data and stat.
    GetData {
        /// The node.
        path: String,
        /// Whether to set a one-shot watch.
        watch: bool,
    },
    /// Writes a node's data.
    SetData {
        /// The node.
        path: String,
        /// The new data.
        data: Bytes,
        /// The version that it must have; -1 for any.
        version: i32,
    },
    /// Reads the names of a node's children and its stat.
    GetChildren {
        /// The node.
        path: String,
        /// Whether to set a one-shot watch.
        watch: bool,
    },
    /// Reads a node's access control list and stat.
    GetAcl {
        /// The node.
        path: String,
    },
    /// Waits until the server has applied everything that its leader had committed when the leader got this.
    Sync {
        /// Any path.
        path: String,
    },
    /// Inside a multi: fails unless the version matches.
    Check {
        /// The node.
        path: String,
        /// The version that it must have; -1 for any.
        version: i32,
    },
    /// All of these, or none.
    Multi(Vec<Request>),
    /// These reads ([`Request::GetData`], [`Request::GetChildren`]) in one consistent state; each may fail by itself.
    MultiRead(Vec<Request>),
    /// Sets a persistent watch; the node need not exist.
    AddWatch {
        /// The node.
        path: String,
        /// The nodes that it covers.
        mode: WatchMode,
    },
    /// Removes every watch of the session on a path.
    RemoveWatches {
        /// The node.
        path: String,
    },
    /// Adds an identity to the connection.
    Auth {
        /// The scheme by which it is proven.
        scheme: String,
        /// The proof, for example `user:password`.
        auth: Bytes,
    },
    /// Keeps the session alive.
    Ping,
    /// Ends the session, and with it its ephemerals.
    CloseSession,
}

impl Request {
    /// The operation's number.
    #[must_use]
    pub fn op_code(&self) -> OpCode {
        match self {
            Self::Create { .. } => OpCode::Create2,
            Self::Delete { .. } => OpCode::Delete,
            Self::Exists { .. } => OpCode::Exists,
            Self::GetData { .. } => OpCode::GetData,
            Self::SetData { .. } => OpCode::SetData,
            Self::GetChildren { .. } => OpCode::GetChildren2,
            Self::GetAcl { .. } => OpCode::GetAcl,
            Self::Sync { .. } => OpCode::Sync,
            Self::Check { .. } => OpCode::Check,
            Self::Multi(_) => OpCode::Multi,
            Self::MultiRead(_) => OpCode::MultiRead,
            Self::AddWatch { .. } => OpCode::AddWatch,
            Self::RemoveWatches { .. } => OpCode::RemoveWatches,
            Self::Auth { .. } => OpCode::Auth,
            Self::Ping => OpCode::Ping,
            Self::CloseSession => OpCode::CloseSession,
        }
    }

    /// Number of the paths that the request names, the parts of a multi included.
    #[must_use]
    pub fn path_count(&self) -> usize {
        match self {
            Self::Multi(parts) | Self::MultiRead(parts) => parts.iter().map(Self::path_count).sum(),
            Self::Auth { .. } | Self::Ping | Self::CloseSession => 0,
            _ => 1,
        }
    }

    /// Rewrites every path that the request names, the parts of a multi included, as a chroot needs.
    pub fn map_paths(&mut self, rewrite: &impl Fn(&str) -> String) {
        match self {
            Self::Create { path, .. }
            | Self::SetData { path, .. }
            | Self::Delete { path, .. }
            | Self::Check { path, .. }
            | Self::Exists { path, .. }
            | Self::GetData { path, .. }
            | Self::GetChildren { path, .. }
            | Self::GetAcl { path }
            | Self::Sync { path }
            | Self::AddWatch { path, .. }
            | Self::RemoveWatches { path } => *path = rewrite(path),
            Self::Multi(parts) | Self::MultiRead(parts) => parts.iter_mut().for_each(|part| part.map_paths(rewrite)),
            Self::Auth { .. } | Self::Ping | Self::CloseSession => {}
        }
    }

    /// Writes the body, without the header.
    pub fn encode(&self, encoder: &mut Encoder) {
        match self {
            Self::Create { path, data, acl, mode } => {
                encoder.string(path);
                encoder.bytes(data);
                encoder.int(i32::try_from(acl.len()).unwrap_or(i32::MAX));
                for entry in acl {
                    entry.encode(encoder);
                }
                encoder.int(match mode {
                    CreateMode::Persistent => 0,
                    CreateMode::Ephemeral => 1,
                    CreateMode::EphemeralSequential => 3,
                });
            }
            Self::Delete { path, version } | Self::Check { path, version } => {
                encoder.string(path);
                encoder.int(*version);
            }
            Self::Exists { path, watch } | Self::GetData { path, watch } | Self::GetChildren { path, watch } => {
                encoder.string(path);
                encoder.boolean(*watch);
            }
            Self::SetData { path, data, version } => {
                encoder.string(path);
                encoder.bytes(data);
                encoder.int(*version);
            }
            Self::GetAcl { path } | Self::Sync { path } => encoder.string(path),
            Self::Multi(parts) | Self::MultiRead(parts) => encode_parts(parts, encoder),
            Self::AddWatch { path, mode } => {
                encoder.string(path);
                encoder.int(match mode {
                    WatchMode::Persistent => 0,
                    WatchMode::PersistentRecursive => 1,
                });
            }
            Self::RemoveWatches { path } => {
                const ANY: i32 = 3;
                encoder.string(path);
                encoder.int(ANY);
            }
            Self::Auth { scheme, auth } => {
                encoder.int(0);
                encoder.string(scheme);
                encoder.bytes(auth);
            }
            Self::Ping | Self::CloseSession => {}
        }
    }

    /// An upper bound of the size of the encoded body, in bytes, by which batches are cut.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        const FIXED: usize = 64;
        const PART_HEADER: usize = 9;
        match self {
            Self::Create { path, data, acl, .. } => {
                let acl: usize = acl.iter().map(|entry| 12 + entry.scheme.len() + entry.id.len()).sum();
                FIXED + path.len() + data.len() + acl
            }
            Self::SetData { path, data, .. } => FIXED + path.len() + data.len(),
            Self::Multi(parts) | Self::MultiRead(parts) => {
                FIXED + parts.iter().map(|part| PART_HEADER + part.encoded_len()).sum::<usize>()
            }
            Self::Delete { path, .. }
            | Self::Check { path, .. }
            | Self::Exists { path, .. }
            | Self::GetData { path, .. }
            | Self::GetChildren { path, .. }
            | Self::GetAcl { path }
            | Self::Sync { path }
            | Self::AddWatch { path, .. }
            | Self::RemoveWatches { path } => FIXED + path.len(),
            Self::Auth { scheme, auth } => FIXED + scheme.len() + auth.len(),
            Self::Ping | Self::CloseSession => FIXED,
        }
    }
}

/// Multi requests and replies are records between headers (type, done, error), with a last header that says done.
fn encode_parts(parts: &[Request], encoder: &mut Encoder) {
    for part in parts {
        // Inside a multi read, a list of children has the number of the older operation.
        const GET_CHILDREN: i32 = 8;
        let op_code = match part {
            Request::GetChildren { .. } => GET_CHILDREN,
            other => other.op_code() as i32,
        };
        encoder.int(op_code);
        encoder.boolean(false);
        encoder.int(-1);
        part.encode(encoder);
    }
    encoder.int(-1);
    encoder.boolean(true);
    encoder.int(-1);
}
