//! Requests, as a server reads them.

use bytes::Bytes;

use crate::{Acl, Decoder, Malformed, OpCode, WatchMode};

/// The operation by which a node is created. It decides what the reply holds, and what the node becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateKind {
    /// Answers with the path alone.
    Path,
    /// Answers with path and stat.
    PathAndStat,
    /// A container, whatever the flags say.
    Container,
    /// A node with a time to live, in milliseconds.
    Ttl(i64),
}

/// The watches of a path to which a request applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatcherKind {
    /// One-shot watches for children.
    Children,
    /// One-shot watches for data and existence.
    Data,
    /// All of them.
    Any,
    /// Persistent watches.
    Persistent,
    /// Persistent recursive watches.
    PersistentRecursive,
}

/// The watches that a client had before it reconnected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SetWatches {
    /// The last transaction that the client has seen: a later change is an event at once.
    pub relative_zxid: i64,
    /// Nodes that existed, watched for data.
    pub data: Vec<String>,
    /// Nodes that did not exist.
    pub exist: Vec<String>,
    /// Nodes whose children were watched.
    pub child: Vec<String>,
    /// Persistent watches.
    pub persistent: Vec<String>,
    /// Persistent recursive watches.
    pub persistent_recursive: Vec<String>,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are named as in zookeeper.jute")]
pub enum Request {
    /// `create`, `create2`, `createContainer`, `createTTL`.
    Create { path: String, data: Option<Bytes>, acl: Vec<Acl>, flags: i32, kind: CreateKind },
    /// Deletes a node without children.
    Delete { path: String, version: i32 },
    /// Reads a stat; the node need not exist for the watch.
    Exists { path: String, watch: bool },
    /// Reads data and stat.
    GetData { path: String, watch: bool },
    /// Writes data.
    SetData { path: String, data: Option<Bytes>, version: i32 },
    /// Reads the access control list.
    GetAcl { path: String },
    /// Writes the access control list.
    SetAcl { path: String, acl: Vec<Acl>, version: i32 },
    /// Reads the names of the children.
    GetChildren { path: String, watch: bool },
    /// Reads the names of the children and the stat.
    GetChildren2 { path: String, watch: bool },
    /// Counts everything below a node.
    GetAllChildrenNumber { path: String },
    /// Lists the session's own ephemerals.
    GetEphemerals { prefix: String },
    /// Answered when everything before it is applied.
    Sync { path: String },
    /// Inside a multi only: fails unless the version matches.
    Check { path: String, version: i32 },
    /// All of these, or none.
    Multi(Vec<Request>),
    /// These reads in one consistent state.
    MultiRead(Vec<Request>),
    /// Asks whether a watch exists.
    CheckWatches { path: String, kind: WatcherKind },
    /// Removes a watch.
    RemoveWatches { path: String, kind: WatcherKind },
    /// Sets watches again after a reconnect.
    SetWatches(Box<SetWatches>),
    /// Sets a persistent watch.
    AddWatch { path: String, mode: WatchMode },
    /// Lists the identities of the connection.
    WhoAmI,
    /// Adds an identity to the connection.
    Auth { scheme: String, auth: Bytes },
    /// One step of a login with SASL.
    Sasl,
    /// Changes the ensemble's members.
    Reconfig,
    /// Keeps the session alive.
    Ping,
    /// Ends the session.
    CloseSession,
}

/// Why a request can't be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There is no such operation, or a client may not send it by itself.
    Unknown,
    /// Its body is no record of the type that the operation takes.
    Malformed,
    /// The same for a proof of identity: ZooKeeper closes the connection.
    MalformedLogin,
    /// The same for a multi, to which ZooKeeper has given a transaction's number by then.
    MalformedMulti,
}

impl Request {
    /// Reads the body of the operation with that number.
    pub fn decode(op_code: i32, decoder: &mut Decoder) -> Result<Self, Refused> {
        match OpCode::from_wire(op_code) {
            None | Some(OpCode::Check) => Err(Refused::Unknown),
            Some(OpCode::Multi) => decode(OpCode::Multi, decoder).map_err(|_| Refused::MalformedMulti),
            Some(op_code @ (OpCode::Auth | OpCode::Sasl)) => {
                decode(op_code, decoder).map_err(|_| Refused::MalformedLogin)
            }
            Some(op_code) => decode(op_code, decoder).map_err(|_| Refused::Malformed),
        }
    }
}

fn decode(op_code: OpCode, decoder: &mut Decoder) -> Result<Request, Malformed> {
    Ok(match op_code {
        OpCode::Create | OpCode::Create2 | OpCode::CreateContainer | OpCode::CreateTtl => {
            let path = text(decoder)?;
            let data = decoder.optional_bytes()?;
            let acl = decoder.vector(acl_entry)?;
            let flags = decoder.int()?;
            let kind = match op_code {
                OpCode::Create => CreateKind::Path,
                OpCode::CreateContainer => CreateKind::Container,
                OpCode::CreateTtl => CreateKind::Ttl(decoder.long()?),
                _ => CreateKind::PathAndStat,
            };
            Request::Create { path, data, acl, flags, kind }
        }
        OpCode::Delete => Request::Delete { path: text(decoder)?, version: decoder.int()? },
        OpCode::Exists => Request::Exists { path: text(decoder)?, watch: decoder.boolean()? },
        OpCode::GetData => Request::GetData { path: text(decoder)?, watch: decoder.boolean()? },
        OpCode::SetData => {
            Request::SetData { path: text(decoder)?, data: decoder.optional_bytes()?, version: decoder.int()? }
        }
        OpCode::GetAcl => Request::GetAcl { path: text(decoder)? },
        OpCode::SetAcl => {
            Request::SetAcl { path: text(decoder)?, acl: decoder.vector(acl_entry)?, version: decoder.int()? }
        }
        OpCode::GetChildren => Request::GetChildren { path: text(decoder)?, watch: decoder.boolean()? },
        OpCode::GetChildren2 => Request::GetChildren2 { path: text(decoder)?, watch: decoder.boolean()? },
        OpCode::GetAllChildrenNumber => Request::GetAllChildrenNumber { path: text(decoder)? },
        OpCode::GetEphemerals => Request::GetEphemerals { prefix: optional_text(decoder)?.unwrap_or_default() },
        OpCode::Sync => Request::Sync { path: optional_text(decoder)?.unwrap_or_default() },
        OpCode::Check => Request::Check { path: text(decoder)?, version: decoder.int()? },
        OpCode::Multi => Request::Multi(parts(decoder, Parts::Writes)?),
        OpCode::MultiRead => Request::MultiRead(parts(decoder, Parts::Reads)?),
        OpCode::CheckWatches => Request::CheckWatches { path: text(decoder)?, kind: watcher_kind(decoder)? },
        OpCode::RemoveWatches => Request::RemoveWatches { path: text(decoder)?, kind: watcher_kind(decoder)? },
        OpCode::SetWatches | OpCode::SetWatches2 => {
            let mut watches = SetWatches {
                relative_zxid: decoder.long()?,
                data: decoder.vector(text)?,
                exist: decoder.vector(text)?,
                child: decoder.vector(text)?,
                ..SetWatches::default()
            };
            if op_code == OpCode::SetWatches2 {
                watches.persistent = decoder.vector(text)?;
                watches.persistent_recursive = decoder.vector(text)?;
            }
            Request::SetWatches(Box::new(watches))
        }
        OpCode::AddWatch => {
            let path = text(decoder)?;
            let mode = match decoder.int()? {
                0 => WatchMode::Persistent,
                1 => WatchMode::PersistentRecursive,
                _ => return Err(Malformed("unknown mode of a watch")),
            };
            Request::AddWatch { path, mode }
        }
        OpCode::WhoAmI => Request::WhoAmI,
        OpCode::Auth => {
            let _kind = decoder.int()?;
            Request::Auth { scheme: text(decoder)?, auth: decoder.optional_bytes()?.unwrap_or_default() }
        }
        OpCode::Sasl => {
            decoder.optional_bytes()?.ok_or(Malformed("token is null"))?;
            Request::Sasl
        }
        OpCode::Reconfig => Request::Reconfig,
        OpCode::Ping => Request::Ping,
        OpCode::CloseSession => Request::CloseSession,
    })
}

/// A string. Bytes that are not UTF-8 become replacement characters, as Java reads them.
fn optional_text(decoder: &mut Decoder) -> Result<Option<String>, Malformed> {
    Ok(decoder.optional_bytes()?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

fn text(decoder: &mut Decoder) -> Result<String, Malformed> {
    optional_text(decoder)?.ok_or(Malformed("string is null"))
}

/// An entry of an access control list. A scheme or an identity that is null matches nobody.
fn acl_entry(decoder: &mut Decoder) -> Result<Acl, Malformed> {
    Ok(Acl {
        permissions: decoder.int()?,
        scheme: optional_text(decoder)?.unwrap_or_default(),
        id: optional_text(decoder)?.unwrap_or_default(),
    })
}

fn watcher_kind(decoder: &mut Decoder) -> Result<WatcherKind, Malformed> {
    Ok(match decoder.int()? {
        1 => WatcherKind::Children,
        2 => WatcherKind::Data,
        3 => WatcherKind::Any,
        4 => WatcherKind::Persistent,
        5 => WatcherKind::PersistentRecursive,
        _ => return Err(Malformed("unknown kind of watch")),
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Parts {
    Writes,
    Reads,
}

/// The parts of a multi, which are all writes (and checks), or all reads. They do not nest.
fn parts(decoder: &mut Decoder, wanted: Parts) -> Result<Vec<Request>, Malformed> {
    let mut parts = Vec::new();
    loop {
        let number = decoder.int()?;
        let done = decoder.boolean()?;
        let _error = decoder.int()?;
        if done {
            return Ok(parts);
        }
        let op_code = OpCode::from_wire(number).ok_or(Malformed("unknown part of a multi"))?;
        let kind = match op_code {
            OpCode::Create
            | OpCode::Create2
            | OpCode::CreateContainer
            | OpCode::CreateTtl
            | OpCode::Delete
            | OpCode::SetData
            | OpCode::Check => Parts::Writes,
            OpCode::GetChildren | OpCode::GetData => Parts::Reads,
            _ => return Err(Malformed("a part that a multi can't have")),
        };
        if kind != wanted {
            return Err(Malformed("reads and writes in one multi"));
        }
        parts.push(as_part(decode(op_code, decoder)?)?);
    }
}

/// In a multi the mode of a create decides which operation it is: ZooKeeper checks the mode while it reads the part,
/// and drops a time to live for which the mode has no use.
fn as_part(part: Request) -> Result<Request, Malformed> {
    const CONTAINER: i32 = 4;
    let Request::Create { path, data, acl, flags, kind } = part else { return Ok(part) };
    let kind = match (kind, flags) {
        (CreateKind::Ttl(_), 5 | 6) => kind,
        (_, CONTAINER) => CreateKind::Container,
        (CreateKind::Ttl(_), _) => CreateKind::Path,
        (_, 0..=3) => kind,
        _ => return Err(Malformed("impossible mode of a create")),
    };
    Ok(Request::Create { path, data, acl, flags, kind })
}
