//! The whole server as pure state: (state, request, now) → replies and events.
//!
//! One request is carried out at a time, from its check to its last event. This gives the order that clients rely on:
//! the events of a change come before the replies to it and to everything later, on every connection.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use rollcall_wire::server::{Part, Refused, Request, Response, SetWatches};
use rollcall_wire::{
    ConnectRequest, ConnectResponse, ErrorCode, EventKind, ReplyHeader, WatcherEvent, permission, xid,
};

use crate::Config;
use crate::acl::{self, Identity};
use crate::figures::{self, Figures};
use crate::occasional::Occasional;
use crate::path;
use crate::sessions::{Over, Sessions};
use crate::transaction::{self, Author, Change};
use crate::tree::{Stamp, Tree};
use crate::types::{ConnectionId, Now, SessionId, Zxid};
use crate::watches::Watches;

/// An action on a connection. Actions are carried out in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Answers the first frame.
    Handshake(ConnectResponse),
    /// Answers a request.
    Reply(ReplyHeader, Response),
    /// Reports a change.
    Event(Zxid, WatcherEvent),
    /// Closes the connection, once everything before is written.
    Close,
}

/// Effects, each with its connection.
pub(crate) type Effects = Vec<(ConnectionId, Effect)>;

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) peer: SocketAddr,
    pub(crate) session: Option<SessionId>,
    pub(super) identities: Vec<Identity>,
    pub(crate) figures: Figures,
}

/// The whole state of the server.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) tree: Tree,
    pub(crate) sessions: Sessions,
    pub(crate) watches: Watches,
    pub(crate) connections: BTreeMap<ConnectionId, Connection>,
    next_connection: u64,
    last_zxid: Zxid,
    /// Clients that had seen a later transaction than this server has.
    ahead: Occasional,
    config: Config,
}

impl State {
    /// An empty server. Its transactions are numbered from the wall clock, at 4096 a millisecond, which is more than it
    /// ever makes: a restarted server's numbers are higher than all before. A double also holds them exactly.
    pub(crate) fn new(config: Config, now: Now, secret: u128) -> Self {
        const PER_MILLISECOND: i64 = 4096;
        Self {
            tree: Tree::new(),
            sessions: Sessions::new(now.wall_ms, config.tick_ms(), secret),
            watches: Watches::default(),
            connections: BTreeMap::new(),
            next_connection: 0,
            last_zxid: Zxid(now.wall_ms.max(0).saturating_mul(PER_MILLISECOND)),
            ahead: Occasional::default(),
            config,
        }
    }

    /// The last transaction.
    pub(crate) fn last_zxid(&self) -> Zxid {
        self.last_zxid
    }

    /// Maximum number of bytes of all parts of one reply.
    pub(super) fn max_reply(&self) -> usize {
        self.config.max_unread
    }

    /// Number of connections.
    pub(crate) fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// A client has connected; it has no session yet.
    pub(crate) fn accept(&mut self, peer: SocketAddr, now: Now) -> ConnectionId {
        let id = ConnectionId(self.next_connection);
        self.next_connection += 1;
        let identities = vec![Identity::address(peer.ip())];
        self.connections.insert(id, Connection { peer, session: None, identities, figures: Figures::new(now) });
        id
    }

    /// Counts a frame that a connection has sent.
    pub(crate) fn count_received(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.figures.received += 1;
        }
    }

    /// Counts a frame that a connection gets.
    pub(crate) fn count_sent(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.figures.sent += 1;
        }
    }

    /// Sets the counts of every connection to zero.
    pub(crate) fn reset_figures(&mut self) {
        self.connections.values_mut().for_each(|connection| connection.figures.reset());
    }

    /// The connection is gone: its watches go, its session stays.
    pub(crate) fn disconnect(&mut self, id: ConnectionId) {
        self.watches.forget(id);
        if let Some(connection) = self.connections.remove(&id)
            && let Some(session) = connection.session
        {
            self.sessions.detach(session, id);
        }
    }

    /// A connection's first frame: a new session, or one that is taken up. Unlike ZooKeeper this checks the password
    /// before it cuts off the connection that has the session.
    pub(crate) fn connect(&mut self, id: ConnectionId, request: &ConnectRequest, now: Now, effects: &mut Effects) {
        if request.last_zxid_seen > self.last_zxid.0 {
            if let Some(times) = self.ahead.note(now.elapsed_ms) {
                let (seen, last) = (request.last_zxid_seen, self.last_zxid.0);
                tracing::info!(seen, last, times, "client has seen a later server");
            }
            effects.push((id, Effect::Close));
            return;
        }
        let timeout_ms = self.config.granted_timeout_ms(request.timeout_ms);
        let session = if request.session_id == 0 {
            self.last_zxid.0 += 1;
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.figures.answered("SESS", 0, self.last_zxid, now);
            }
            Ok(self.sessions.create(timeout_ms, id, now.elapsed_ms))
        } else {
            let session = SessionId(request.session_id);
            self.sessions.take_up(session, &request.password, timeout_ms, id, now.elapsed_ms).map(|before| {
                if let Some(before) = before.filter(|before| *before != id) {
                    self.disconnect(before);
                    effects.push((before, Effect::Close));
                }
                session
            })
        };
        match session {
            Ok(session) => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.session = Some(session);
                }
                effects.push((
                    id,
                    Effect::Handshake(ConnectResponse {
                        timeout_ms: i32::try_from(timeout_ms).unwrap_or(i32::MAX),
                        session_id: session.0,
                        password: self.sessions.password(session),
                    }),
                ));
            }
            Err(Over) => {
                let password = [0; 16].as_slice().into();
                let over = ConnectResponse { timeout_ms: 0, session_id: 0, password };
                effects.push((id, Effect::Handshake(over)));
                effects.push((id, Effect::Close));
            }
        }
    }

    /// A request on a connection with a session. Requests after the session's end are not answered.
    pub(crate) fn request(
        &mut self,
        id: ConnectionId,
        xid: i32,
        request: Result<Request, Refused>,
        now: Now,
        effects: &mut Effects,
    ) {
        let Some(session) = self.connections.get(&id).and_then(|connection| connection.session) else { return };
        let operation = request.as_ref().map_or(figures::NO_NAME, figures::name);
        if let Ok(Request::Auth { scheme, auth }) = &request {
            self.authenticate(id, xid, scheme, auth, effects);
            return;
        }
        if !self.sessions.touch(session, now.elapsed_ms) {
            return;
        }
        let answer = match request {
            Ok(Request::Ping) => {
                let header = ReplyHeader { xid: xid::PING, zxid: self.last_zxid.0, error: 0 };
                effects.push((id, Effect::Reply(header, Response::Done)));
                self.answered(id, operation, xid::PING, now);
                return;
            }
            Ok(Request::CloseSession) => {
                self.end(session, now, effects);
                self.reply(id, xid, Ok(Response::Done), effects);
                effects.push((id, Effect::Close));
                return;
            }
            Ok(Request::Multi(parts)) => Ok(self.multi(id, session, parts, now, effects)),
            Ok(Request::SetWatches(watches)) => {
                self.set_watches(id, &watches, effects);
                Ok(Response::Done)
            }
            Ok(
                write @ (Request::Create { .. }
                | Request::Delete { .. }
                | Request::SetData { .. }
                | Request::SetAcl { .. }
                | Request::Reconfig),
            ) => self.write(id, session, write, now, effects),
            // Nobody can log in with SASL. ZooKeeper without SASL answers with a null token.
            Ok(Request::Sasl) => {
                let header = ReplyHeader { xid, zxid: 0, error: 0 };
                effects.push((id, Effect::Reply(header, Response::NoToken)));
                return;
            }
            Err(Refused::MalformedLogin) => {
                effects.push((id, Effect::Close));
                return;
            }
            Ok(read) => self.read(id, read),
            Err(Refused::Malformed) => Err(ErrorCode::MarshallingError),
            Err(Refused::MalformedMulti) => {
                self.stamp(now);
                Err(ErrorCode::MarshallingError)
            }
            Err(Refused::Unknown) => return refuse(id, xid, Zxid(-1), ErrorCode::Unimplemented, effects),
        };
        self.answered(id, operation, xid, now);
        self.reply(id, xid, answer, effects);
    }

    fn answered(&mut self, id: ConnectionId, operation: &'static str, xid: i32, now: Now) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.figures.answered(operation, xid, self.last_zxid, now);
        }
    }

    /// Answers a write that is not carried out, as a fault. A transaction fails in its first part.
    pub(crate) fn refuse_write(
        &self,
        id: ConnectionId,
        xid: i32,
        write: &Request,
        code: ErrorCode,
        effects: &mut Effects,
    ) {
        let answer = match write {
            Request::Multi(parts) => Ok(failed_parts(parts.len(), 0, code)),
            _ => Err(code),
        };
        self.reply(id, xid, answer, effects);
    }

    /// Time has passed: ends the sessions whose clients were not heard.
    pub(crate) fn expire(&mut self, now: Now, effects: &mut Effects) {
        for session in self.sessions.overdue(now.elapsed_ms) {
            self.expire_session(session, now, effects);
        }
    }

    /// Ends a session as if its time were over. False when there is none.
    pub(crate) fn expire_session(&mut self, session: SessionId, now: Now, effects: &mut Effects) -> bool {
        let Some(connection) = self.end(session, now, effects) else { return false };
        tracing::info!(session = %session, "session expired");
        if let Some(connection) = connection {
            effects.push((connection, Effect::Close));
        }
        true
    }

    /// Deletes containers that have lost their last child, and nodes whose time to live is over.
    pub(crate) fn sweep(&mut self, now: Now, effects: &mut Effects) {
        for path in self.tree.overdue(now.wall_ms) {
            let stamp = self.stamp(now);
            let change = transaction::remove(&mut self.tree, &path, stamp);
            self.publish(change, stamp.zxid, effects);
        }
    }

    fn stamp(&mut self, now: Now) -> Stamp {
        self.last_zxid.0 += 1;
        Stamp { zxid: self.last_zxid, wall_ms: now.wall_ms }
    }

    fn reply(&self, id: ConnectionId, xid: i32, answer: Result<Response, ErrorCode>, effects: &mut Effects) {
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(code) => (code.to_wire(), Response::Done),
        };
        effects.push((id, Effect::Reply(ReplyHeader { xid, zxid: self.last_zxid.0, error }, body)));
    }

    fn authenticate(&mut self, id: ConnectionId, xid: i32, scheme: &str, auth: &[u8], effects: &mut Effects) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let proven = Identity::prove(scheme, auth, connection.peer.ip(), self.config.super_digest.as_deref());
        let error = if proven.is_empty() { ErrorCode::AuthFailed.to_wire() } else { 0 };
        effects.push((id, Effect::Reply(ReplyHeader { xid, zxid: 0, error }, Response::Done)));
        let new: Vec<_> = proven.iter().filter(|identity| !connection.identities.contains(identity)).cloned().collect();
        if proven.is_empty() || connection.identities.len() + new.len() > MAX_IDENTITIES {
            effects.push((id, Effect::Close));
        } else {
            connection.identities.extend(new);
        }
    }

    fn author<'a>(
        connections: &'a BTreeMap<ConnectionId, Connection>,
        id: ConnectionId,
        session: SessionId,
        config: &Config,
    ) -> Author<'a> {
        let identities = connections.get(&id).map_or(&[][..], |connection| &connection.identities);
        Author { session, identities, ttl_nodes: config.ttl_nodes }
    }

    /// A write that fails is a transaction too: it takes a number.
    fn write(
        &mut self,
        id: ConnectionId,
        session: SessionId,
        write: Request,
        now: Now,
        effects: &mut Effects,
    ) -> Result<Response, ErrorCode> {
        let stamp = self.stamp(now);
        let author = Self::author(&self.connections, id, session, &self.config);
        let done = transaction::apply(&mut self.tree, author, write, stamp)?;
        self.publish(done.change, stamp.zxid, effects);
        Ok(done.response)
    }

    fn multi(
        &mut self,
        id: ConnectionId,
        session: SessionId,
        parts: Vec<Request>,
        now: Now,
        effects: &mut Effects,
    ) -> Response {
        let stamp = self.stamp(now);
        let count = parts.len();
        let mut done = Vec::with_capacity(count);
        for part in parts {
            let author = Self::author(&self.connections, id, session, &self.config);
            match transaction::apply(&mut self.tree, author, part, stamp) {
                Ok(part) => done.push(part),
                Err(code) => {
                    let failed = done.len();
                    for part in done.into_iter().rev() {
                        if let Some(undo) = part.undo {
                            self.tree.undo(undo);
                        }
                    }
                    return failed_parts(count, failed, code);
                }
            }
        }
        let mut results = Vec::with_capacity(count);
        for part in done {
            self.publish(part.change, stamp.zxid, effects);
            results.push(Part::Done(part.op_code, part.response));
        }
        Response::Parts(results)
    }

    /// Ends a session and deletes its ephemerals, in one transaction. Returns its connection; `None` when there was no
    /// such session.
    fn end(&mut self, session: SessionId, now: Now, effects: &mut Effects) -> Option<Option<ConnectionId>> {
        let connection = self.sessions.remove(session)?;
        let stamp = self.stamp(now);
        let paths: Vec<_> = self.tree.ephemerals(session).cloned().collect();
        for path in paths {
            let change = transaction::remove(&mut self.tree, &path, stamp);
            self.publish(change, stamp.zxid, effects);
        }
        Some(connection)
    }

    fn publish(&mut self, change: Option<Change>, zxid: Zxid, effects: &mut Effects) {
        let Some(change) = change else { return };
        if let Change::Created { path, .. } = &change {
            self.tree.settle(path);
        }
        let (kind, path, acl, parent_acl) = match change {
            Change::Created { path, acl, parent_acl } => (EventKind::Created, path, acl, Some(parent_acl)),
            Change::Deleted { path, acl, parent_acl } => (EventKind::Deleted, path, acl, Some(parent_acl)),
            Change::Written { path, acl } => (EventKind::DataChanged, path, acl, None),
        };
        let told = match kind {
            EventKind::Deleted => self.watches.deleted(&path),
            _ => self.watches.changed(&path),
        };
        self.tell(&told, kind, &path, zxid, &acl, effects);
        if let (Some(parent_acl), Some((parent, _))) = (parent_acl, path::split(&path)) {
            let told = self.watches.children_changed(parent);
            self.tell(&told, EventKind::ChildrenChanged, parent, zxid, &parent_acl, effects);
        }
    }

    /// A connection that may not read the node is not told; its one-shot watch is used up all the same.
    fn tell(
        &self,
        told: &BTreeSet<ConnectionId>,
        kind: EventKind,
        path: &str,
        zxid: Zxid,
        acl: &[rollcall_wire::Acl],
        effects: &mut Effects,
    ) {
        for id in told {
            if let Some(connection) = self.connections.get(id)
                && acl::check(acl, permission::READ, &connection.identities).is_ok()
            {
                effects.push((*id, Effect::Event(zxid, WatcherEvent { kind, path: path.to_owned() })));
            }
        }
    }

    /// Sets the watches of a client that comes back. A change that it has missed is an event at once, which belongs to
    /// no transaction.
    fn set_watches(&mut self, id: ConnectionId, watches: &SetWatches, effects: &mut Effects) {
        let mut event = |kind, path: &str| {
            effects.push((id, Effect::Event(Zxid(-1), WatcherEvent { kind, path: path.to_owned() })));
        };
        let seen = Zxid(watches.relative_zxid);
        for path in &watches.data {
            match self.tree.get(path) {
                None => event(EventKind::Deleted, path),
                Some(node) if node.written_at() > seen => event(EventKind::DataChanged, path),
                Some(_) => self.watches.add_data(path, id),
            }
        }
        for path in &watches.exist {
            match self.tree.get(path) {
                Some(_) => event(EventKind::Created, path),
                None => self.watches.add_data(path, id),
            }
        }
        for path in &watches.child {
            match self.tree.get(path) {
                None => event(EventKind::Deleted, path),
                Some(node) if node.children_changed_at() > seen => event(EventKind::ChildrenChanged, path),
                Some(_) => self.watches.add_children(path, id),
            }
        }
        for path in &watches.persistent {
            self.watches.add(path, id, rollcall_wire::WatchMode::Persistent);
        }
        for path in &watches.persistent_recursive {
            self.watches.add(path, id, rollcall_wire::WatchMode::PersistentRecursive);
        }
    }
}

/// The answer to a transaction of `count` parts of which the part at `failed` failed.
fn failed_parts(count: usize, failed: usize, code: ErrorCode) -> Response {
    let result = |index: usize| match index.cmp(&failed) {
        std::cmp::Ordering::Less => None,
        std::cmp::Ordering::Equal => Some(code),
        std::cmp::Ordering::Greater => Some(ErrorCode::RuntimeInconsistency),
    };
    Response::Parts((0..count).map(|index| Part::Failed(result(index))).collect())
}

/// Answers with an error, and closes the connection.
fn refuse(id: ConnectionId, xid: i32, zxid: Zxid, code: ErrorCode, effects: &mut Effects) {
    let header = ReplyHeader { xid, zxid: zxid.0, error: code.to_wire() };
    effects.push((id, Effect::Reply(header, Response::Done)));
    effects.push((id, Effect::Close));
}

/// Maximum number of identities of a connection. Each one is a hash for every check, and no client has more than a few.
const MAX_IDENTITIES: usize = 128;
