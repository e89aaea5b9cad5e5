//! The records that are neither a request's body nor a reply's.

use bytes::Bytes;

use crate::{Decoder, Encoder, Malformed};

/// The first frame of a connection, from the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectRequest {
    /// The highest transaction id that the client has seen: a server that is behind it refuses the connection.
    pub last_zxid_seen: i64,
    /// The session time-out asked for, in milliseconds.
    pub timeout_ms: i32,
    /// The session to take up again; zero asks for a new one.
    pub session_id: i64,
    /// The password of that session.
    pub password: Bytes,
}

impl ConnectRequest {
    /// Writes the record.
    pub fn encode(&self, encoder: &mut Encoder) {
        encoder.int(0);
        encoder.long(self.last_zxid_seen);
        encoder.int(self.timeout_ms);
        encoder.long(self.session_id);
        encoder.bytes(&self.password);
        encoder.boolean(false);
    }

    /// Reads the record, without the flag `readOnly` that may follow it. Clients before 3.4 do not send the flag, and
    /// expect none in the answer.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, Malformed> {
        let _protocol_version = decoder.int()?;
        Ok(Self {
            last_zxid_seen: decoder.long()?,
            timeout_ms: decoder.int()?,
            session_id: decoder.long()?,
            password: decoder.optional_bytes()?.unwrap_or_default(),
        })
    }
}

/// The server's answer to a [`ConnectRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectResponse {
    /// The session time-out that the server grants, in milliseconds; zero or less says that the session is over.
    pub timeout_ms: i32,
    /// The session's id.
    pub session_id: i64,
    /// The session's password.
    pub password: Bytes,
}

impl ConnectResponse {
    /// Reads the record.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, Malformed> {
        let _protocol_version = decoder.int()?;
        Ok(Self { timeout_ms: decoder.int()?, session_id: decoder.long()?, password: decoder.bytes()? })
    }

    /// Writes the record, without the flag `readOnly`.
    pub fn encode(&self, encoder: &mut Encoder) {
        encoder.int(0);
        encoder.int(self.timeout_ms);
        encoder.long(self.session_id);
        encoder.bytes(&self.password);
    }
}

/// The header of every request after the first frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// The client's number for this request, or one of [`crate::xid`].
    pub xid: i32,
    /// The operation.
    pub op_code: i32,
}

impl RequestHeader {
    /// Writes the record.
    pub fn encode(self, encoder: &mut Encoder) {
        encoder.int(self.xid);
        encoder.int(self.op_code);
    }

    /// Reads the record.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, Malformed> {
        Ok(Self { xid: decoder.int()?, op_code: decoder.int()? })
    }
}

/// The header of every reply and notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyHeader {
    /// The request's number, or one of [`crate::xid`].
    pub xid: i32,
    /// The transaction id: of the write itself, or of the last transaction that the server had applied at a read. In a
    /// notification, that of the change (3.9 and newer; -1 before).
    pub zxid: i64,
    /// Zero, or an [`crate::ErrorCode`].
    pub error: i32,
}

impl ReplyHeader {
    /// Reads the record.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, Malformed> {
        Ok(Self { xid: decoder.int()?, zxid: decoder.long()?, error: decoder.int()? })
    }

    /// Writes the record.
    pub fn encode(self, encoder: &mut Encoder) {
        encoder.int(self.xid);
        encoder.long(self.zxid);
        encoder.int(self.error);
    }
}

/// ZooKeeper's metadata of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    /// The transaction that created the node.
    pub czxid: i64,
    /// The transaction that last wrote its data.
    pub mzxid: i64,
    /// When it was created, in milliseconds since the epoch, by ZooKeeper's clock.
    pub ctime: i64,
    /// When its data was last written, likewise.
    pub mtime: i64,
    /// Number of times that its data was written.
    pub version: i32,
    /// Number of times that its children changed.
    pub cversion: i32,
    /// Number of times that its access control list changed.
    pub aversion: i32,
    /// The session that owns it, if it is ephemeral; zero otherwise. Container and TTL nodes have marks of their own.
    pub ephemeral_owner: i64,
    /// The length of its data, in bytes.
    pub data_length: i32,
    /// Number of its children.
    pub num_children: i32,
    /// The transaction that last added or removed a child.
    pub pzxid: i64,
}

impl Stat {
    /// Reads the record.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, Malformed> {
        Ok(Self {
            czxid: decoder.long()?,
            mzxid: decoder.long()?,
            ctime: decoder.long()?,
            mtime: decoder.long()?,
            version: decoder.int()?,
            cversion: decoder.int()?,
            aversion: decoder.int()?,
            ephemeral_owner: decoder.long()?,
            data_length: decoder.int()?,
            num_children: decoder.int()?,
            pzxid: decoder.long()?,
        })
    }

    /// Writes the record.
    pub fn encode(&self, encoder: &mut Encoder) {
        encoder.long(self.czxid);
        encoder.long(self.mzxid);
        encoder.long(self.ctime);
        encoder.long(self.mtime);
        encoder.int(self.version);
        encoder.int(self.cversion);
        encoder.int(self.aversion);
        encoder.long(self.ephemeral_owner);
        encoder.int(self.data_length);
        encoder.int(self.num_children);
        encoder.long(self.pzxid);
    }

    /// Whether a session owns the node. Containers (the lowest long) and TTL nodes (0xff in the top byte) are not
    /// owned.
    #[must_use]
    pub fn is_ephemeral(&self) -> bool {
        const TTL_MARK: i64 = 0xff;
        let mark = (self.ephemeral_owner >> 56) & 0xff;
        self.ephemeral_owner != 0 && self.ephemeral_owner != i64::MIN && mark != TTL_MARK
    }
}

/// The bits of an [`Acl`]'s permissions.
pub mod permission {
    /// Reading the data and the list of children.
    pub const READ: i32 = 1;
    /// Writing the data.
    pub const WRITE: i32 = 1 << 1;
    /// Creating children.
    pub const CREATE: i32 = 1 << 2;
    /// Deleting children.
    pub const DELETE: i32 = 1 << 3;
    /// Writing the access control list.
    pub const ADMIN: i32 = 1 << 4;
    /// Read, write, create, delete and admin.
    pub const ALL: i32 = 0x1f;
}

/// One entry of an access control list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Acl {
    /// The operations that are allowed, as bits of [`permission`].
    pub permissions: i32,
    /// How the identity is proven: `world`, `digest`, `ip`, …
    pub scheme: String,
    /// The identity.
    pub id: String,
}

impl Acl {
    /// Everybody may do everything.
    #[must_use]
    pub fn open() -> Self {
        Self { permissions: permission::ALL, scheme: "world".into(), id: "anyone".into() }
    }

    /// Writes the record.
    pub fn encode(&self, encoder: &mut Encoder) {
        encoder.int(self.permissions);
        encoder.string(&self.scheme);
        encoder.string(&self.id);
    }

    /// Reads the record.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, Malformed> {
        Ok(Self { permissions: decoder.int()?, scheme: decoder.string()?, id: decoder.string()? })
    }
}

/// The kind of change that a notification reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The node was created.
    Created,
    /// The node was deleted.
    Deleted,
    /// Its data was written.
    DataChanged,
    /// A child was added or removed.
    ChildrenChanged,
    /// A kind that concerns no node, or that is not known.
    Other(i32),
}

/// The body of a notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatcherEvent {
    /// The kind of change.
    pub kind: EventKind,
    /// The node, as the server names it (the chroot included).
    pub path: String,
}

impl WatcherEvent {
    /// Reads the record.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, Malformed> {
        let kind = match decoder.int()? {
            1 => EventKind::Created,
            2 => EventKind::Deleted,
            3 => EventKind::DataChanged,
            4 => EventKind::ChildrenChanged,
            other => EventKind::Other(other),
        };
        let _state = decoder.int()?;
        Ok(Self { kind, path: decoder.string()? })
    }

    /// Writes the record, with the state «connected», the only one that a server sends.
    pub fn encode(&self, encoder: &mut Encoder) {
        const CONNECTED: i32 = 3;
        encoder.int(match self.kind {
            EventKind::Created => 1,
            EventKind::Deleted => 2,
            EventKind::DataChanged => 3,
            EventKind::ChildrenChanged => 4,
            EventKind::Other(kind) => kind,
        });
        encoder.int(CONNECTED);
        encoder.string(&self.path);
    }
}
