//! Requests that change nothing but watches.

use std::sync::Arc;

use rollcall_wire::server::{Part, Request, Response};
use rollcall_wire::{ErrorCode, OpCode, permission};

use crate::acl::{self, Identity};
use crate::state::State;
use crate::tree::Node;
use crate::types::ConnectionId;

impl State {
    pub(super) fn read(&mut self, id: ConnectionId, read: Request) -> Result<Response, ErrorCode> {
        match read {
            Request::Exists { path, watch } => {
                if path.contains('\0') {
                    return Err(ErrorCode::BadArguments);
                }
                if let Some(node) = self.tree.get(&path) {
                    acl::check(&node.acl, permission::READ, self.identities(id))?;
                }
                if watch {
                    self.watches.add_data(&path, id);
                }
                self.tree.get(&path).map(|node| Response::Stat(node.stat())).ok_or(ErrorCode::NoNode)
            }
            Request::GetData { path, watch } => {
                let node = self.readable(id, &path, permission::READ)?;
                let response = Response::Data { data: node.data.clone(), stat: node.stat() };
                if watch {
                    self.watches.add_data(&path, id);
                }
                Ok(response)
            }
            Request::GetChildren { path, watch } => {
                let response = Response::Names(names(self.readable(id, &path, permission::READ)?));
                if watch {
                    self.watches.add_children(&path, id);
                }
                Ok(response)
            }
            Request::GetChildren2 { path, watch } => {
                let node = self.readable(id, &path, permission::READ)?;
                let response = Response::Children { names: names(node), stat: node.stat() };
                if watch {
                    self.watches.add_children(&path, id);
                }
                Ok(response)
            }
            Request::GetAcl { path } => {
                let node = self.readable(id, &path, permission::READ | permission::ADMIN)?;
                let acl = match acl::check(&node.acl, permission::ADMIN, self.identities(id)) {
                    Ok(()) => node.acl.to_vec(),
                    Err(_) => acl::masked(&node.acl),
                };
                Ok(Response::Acl { acl, stat: node.stat() })
            }
            Request::GetAllChildrenNumber { path } => {
                self.readable(id, &path, permission::READ)?;
                Ok(Response::Count(i32::try_from(self.tree.count_below(&path)).unwrap_or(i32::MAX)))
            }
            Request::GetEphemerals { prefix } => {
                let session = self.connections.get(&id).and_then(|connection| connection.session);
                let all = session.into_iter().flat_map(|session| self.tree.ephemerals(session)).cloned();
                Ok(Response::Names(match prefix.trim() {
                    "" | "/" => all.collect(),
                    _ => all.filter(|path| path.starts_with(&prefix)).collect(),
                }))
            }
            // There is one server, and it has applied everything.
            Request::Sync { path } => Ok(Response::Path(path)),
            Request::MultiRead(parts) => self.read_parts(id, parts),
            Request::CheckWatches { path, kind } => found(self.watches.has(&path, id, kind)),
            Request::RemoveWatches { path, kind } => found(self.watches.remove(&path, id, kind)),
            Request::AddWatch { path, mode } => {
                self.watches.add(&path, id, mode);
                Ok(Response::WatchAdded)
            }
            Request::WhoAmI => {
                let identities = self.identities(id).iter();
                Ok(Response::Identities(
                    identities.map(|identity| (identity.scheme.to_owned(), identity.user().to_owned())).collect(),
                ))
            }
            _ => Err(ErrorCode::MarshallingError),
        }
    }

    /// Many small requests for one large node could ask for more than fits anywhere. If the answer exceeds the maximum
    /// that may wait for a reader, nothing is answered.
    fn read_parts(&mut self, id: ConnectionId, parts: Vec<Request>) -> Result<Response, ErrorCode> {
        let mut results = Vec::with_capacity(parts.len());
        let mut size = 0;
        for part in parts {
            // A part never sets a watch, whatever it says.
            let (op_code, part) = match part {
                Request::GetData { path, .. } => (OpCode::GetData, Request::GetData { path, watch: false }),
                Request::GetChildren { path, .. } => (OpCode::GetChildren, Request::GetChildren { path, watch: false }),
                _ => return Err(ErrorCode::MarshallingError),
            };
            let result = self.read(id, part);
            size += match &result {
                Ok(Response::Data { data, .. }) => data.as_ref().map_or(0, bytes::Bytes::len),
                Ok(Response::Names(names)) => names.iter().map(|name| 4 + name.len()).sum(),
                _ => 0,
            };
            if size > self.max_reply() {
                return Err(ErrorCode::MarshallingError);
            }
            results.push(match result {
                Ok(response) => Part::Done(op_code, response),
                Err(code) => Part::Failed(Some(code)),
            });
        }
        Ok(Response::Parts(results))
    }

    fn readable(&self, id: ConnectionId, path: &str, permission: i32) -> Result<&Node, ErrorCode> {
        let node = self.tree.get(path).ok_or(ErrorCode::NoNode)?;
        acl::check(&node.acl, permission, self.identities(id))?;
        Ok(node)
    }

    fn identities(&self, id: ConnectionId) -> &[Identity] {
        self.connections.get(&id).map_or(&[], |connection| &connection.identities)
    }
}

fn names(node: &Node) -> Vec<Arc<str>> {
    node.children.iter().cloned().collect()
}

fn found(found: bool) -> Result<Response, ErrorCode> {
    if found { Ok(Response::Done) } else { Err(ErrorCode::NoWatcher) }
}
