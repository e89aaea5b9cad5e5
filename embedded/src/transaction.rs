//! Writes: the checks whether each is allowed, and its changes to the tree.
//!
//! The order of the checks is ZooKeeper's, because it decides which error a client gets when several things are wrong.

use std::sync::Arc;

use bytes::Bytes;
use rollcall_wire::server::{CreateKind, Request, Response};
use rollcall_wire::{Acl, ErrorCode, OpCode, permission};

use crate::acl::{self, Identity};
use crate::path;
use crate::tree::{Lifetime, Node, Stamp, Tree, Undo};
use crate::types::SessionId;

/// The author of a write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Author<'a> {
    pub(crate) session: SessionId,
    pub(crate) identities: &'a [Identity],
    /// Whether nodes may have a time to live.
    pub(crate) ttl_nodes: bool,
}

/// A change that watches report. A watcher that may not read a node is not told of it, so the lists go along.
#[derive(Debug)]
pub(crate) enum Change {
    Created { path: String, acl: Arc<[Acl]>, parent_acl: Arc<[Acl]> },
    Deleted { path: String, acl: Arc<[Acl]>, parent_acl: Arc<[Acl]> },
    Written { path: String, acl: Arc<[Acl]> },
}

/// A write that was carried out.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) op_code: OpCode,
    pub(crate) response: Response,
    pub(crate) undo: Option<Undo>,
    pub(crate) change: Option<Change>,
}

/// Carries one write out. On an error nothing has changed.
pub(crate) fn apply(tree: &mut Tree, author: Author<'_>, write: Request, stamp: Stamp) -> Result<Done, ErrorCode> {
    match write {
        Request::Create { path, data, acl, flags, kind } => {
            let mode = Mode::new(flags, kind, author.ttl_nodes)?;
            create(tree, author, Create { path, data: data.as_ref(), acl, mode, kind }, stamp)
        }
        Request::Delete { path, version } => delete(tree, author, path, version, stamp),
        Request::SetData { path, data, version } => set_data(tree, author, path, data.as_ref(), version, stamp),
        Request::SetAcl { path, acl, version } => set_acl(tree, author, &path, acl, version),
        Request::Check { path, version } => check(tree, author, &path, version),
        // As ZooKeeper does by default.
        Request::Reconfig => Err(ErrorCode::ReconfigDisabled),
        _ => Err(ErrorCode::MarshallingError),
    }
}

/// Deletes a node without a check of permissions: its session has ended, or its time is over.
pub(crate) fn remove(tree: &mut Tree, path: &str, stamp: Stamp) -> Option<Change> {
    let acl = tree.get(path)?.acl.clone();
    let parent_acl = tree.get(path::split(path)?.0)?.acl.clone();
    tree.delete(path, stamp.zxid)?;
    Some(Change::Deleted { path: path.to_owned(), acl, parent_acl })
}

/// The meaning of a create's flags.
#[derive(Clone, Copy)]
struct Mode {
    is_ephemeral: bool,
    is_sequential: bool,
}

impl Mode {
    fn new(flags: i32, kind: CreateKind, ttl_nodes: bool) -> Result<Self, ErrorCode> {
        const MAX_TTL: i64 = (1 << 40) - 1;
        let (is_ephemeral, is_sequential, has_ttl) = match flags {
            0 | 4 => (false, false, false),
            1 => (true, false, false),
            2 => (false, true, false),
            3 => (true, true, false),
            5 => (false, false, true),
            6 => (false, true, true),
            _ => return Err(ErrorCode::BadArguments),
        };
        if has_ttl && !ttl_nodes {
            return Err(ErrorCode::Unimplemented);
        }
        match kind {
            CreateKind::Ttl(ttl) if has_ttl && (1..=MAX_TTL).contains(&ttl) => {}
            CreateKind::Ttl(_) => return Err(ErrorCode::BadArguments),
            _ if has_ttl => return Err(ErrorCode::BadArguments),
            _ => {}
        }
        Ok(Self { is_ephemeral, is_sequential })
    }
}

struct Create<'a> {
    path: String,
    data: Option<&'a Bytes>,
    acl: Vec<Acl>,
    mode: Mode,
    kind: CreateKind,
}

fn create(tree: &mut Tree, author: Author<'_>, create: Create<'_>, stamp: Stamp) -> Result<Done, ErrorCode> {
    let Create { mut path, data, acl, mode, kind } = create;
    let parent = path::parent_for_create(&path)?;
    let acl = acl::resolve(acl, author.identities)?;
    let parent = tree.get(parent).ok_or(ErrorCode::NoNode)?;
    acl::check(&parent.acl, permission::CREATE, author.identities)?;
    if mode.is_sequential {
        path.push_str(&format!("{:010}", parent.children_created));
    }
    path::validate(&path)?;
    if tree.get(&path).is_some() {
        return Err(ErrorCode::NodeExists);
    }
    if matches!(parent.lifetime, Lifetime::Ephemeral(_)) {
        return Err(ErrorCode::NoChildrenForEphemerals);
    }
    let parent_acl = parent.acl.clone();
    let lifetime = match kind {
        CreateKind::Container => Lifetime::Container,
        CreateKind::Ttl(ttl) => Lifetime::Ttl(ttl),
        CreateKind::Path | CreateKind::PathAndStat if mode.is_ephemeral => Lifetime::Ephemeral(author.session),
        CreateKind::Path | CreateKind::PathAndStat => Lifetime::Persistent,
    };
    let acl = tree.intern(acl);
    let node = Node::new(owned(data), acl.clone(), lifetime, stamp);
    let stat = node.stat();
    let undo = tree.create(&path, node).ok_or(ErrorCode::BadArguments)?;
    let change = Change::Created { path: path.clone(), acl, parent_acl };
    let (op_code, response) = match kind {
        CreateKind::Path => (OpCode::Create, Response::Path(path)),
        _ => (OpCode::Create2, Response::Created { path, stat }),
    };
    Ok(Done { op_code, response, undo: Some(undo), change: Some(change) })
}

/// Copies data out of a frame, which would otherwise keep everything that was read with it in memory.
fn owned(data: Option<&Bytes>) -> Option<Bytes> {
    data.map(|data| Bytes::copy_from_slice(data))
}

fn delete(tree: &mut Tree, author: Author<'_>, path: String, version: i32, stamp: Stamp) -> Result<Done, ErrorCode> {
    let parent = tree.get(path::parent_for_delete(&path)?).ok_or(ErrorCode::NoNode)?;
    acl::check(&parent.acl, permission::DELETE, author.identities)?;
    let node = tree.get(&path).ok_or(ErrorCode::NoNode)?;
    check_version(node.version, version)?;
    if !node.children.is_empty() {
        return Err(ErrorCode::NotEmpty);
    }
    let (acl, parent_acl) = (node.acl.clone(), parent.acl.clone());
    let undo = tree.delete(&path, stamp.zxid).ok_or(ErrorCode::NoNode)?;
    let change = Change::Deleted { path, acl, parent_acl };
    Ok(Done { op_code: OpCode::Delete, response: Response::Done, undo: Some(undo), change: Some(change) })
}

fn set_data(
    tree: &mut Tree,
    author: Author<'_>,
    path: String,
    data: Option<&Bytes>,
    version: i32,
    stamp: Stamp,
) -> Result<Done, ErrorCode> {
    path::validate(&path)?;
    let node = tree.get(&path).ok_or(ErrorCode::NoNode)?;
    acl::check(&node.acl, permission::WRITE, author.identities)?;
    check_version(node.version, version)?;
    let acl = node.acl.clone();
    let undo = tree.write(&path, owned(data), stamp).ok_or(ErrorCode::NoNode)?;
    let stat = tree.get(&path).ok_or(ErrorCode::NoNode)?.stat();
    let change = Change::Written { path, acl };
    Ok(Done { op_code: OpCode::SetData, response: Response::Stat(stat), undo: Some(undo), change: Some(change) })
}

fn set_acl(tree: &mut Tree, author: Author<'_>, path: &str, acl: Vec<Acl>, version: i32) -> Result<Done, ErrorCode> {
    path::validate(path)?;
    let acl = acl::resolve(acl, author.identities)?;
    let node = tree.get(path).ok_or(ErrorCode::NoNode)?;
    acl::check(&node.acl, permission::ADMIN, author.identities)?;
    check_version(node.acl_version, version)?;
    let acl = tree.intern(acl);
    let stat = tree.write_acl(path, acl).ok_or(ErrorCode::NoNode)?;
    Ok(Done { op_code: OpCode::SetAcl, response: Response::Stat(stat), undo: None, change: None })
}

fn check(tree: &Tree, author: Author<'_>, path: &str, version: i32) -> Result<Done, ErrorCode> {
    path::validate(path)?;
    let node = tree.get(path).ok_or(ErrorCode::NoNode)?;
    acl::check(&node.acl, permission::READ, author.identities)?;
    check_version(node.version, version)?;
    Ok(Done { op_code: OpCode::Check, response: Response::Done, undo: None, change: None })
}

fn check_version(actual: i32, expected: i32) -> Result<(), ErrorCode> {
    if expected == -1 || expected == actual { Ok(()) } else { Err(ErrorCode::BadVersion) }
}
