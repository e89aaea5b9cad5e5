//! Replies, as a server writes them.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Acl, Encoder, ErrorCode, OpCode, Stat};

/// The body of a reply that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// The reply to `create` and `sync`.
    Path(String),
    /// The reply to the newer creates.
    Created {
        /// The path, with a sequential node's digits.
        path: String,
        /// The stat.
        stat: Stat,
    },
    /// The reply to `exists`, `setData` and `setACL`.
    Stat(Stat),
    /// The reply to `getData`.
    Data {
        /// The data; null if null was written.
        data: Option<Bytes>,
        /// The stat.
        stat: Stat,
    },
    /// The reply to `getChildren` and `getEphemerals`.
    Names(Vec<Arc<str>>),
    /// The reply to `getChildren2`.
    Children {
        /// The names.
        names: Vec<Arc<str>>,
        /// The parent's stat.
        stat: Stat,
    },
    /// The reply to `getACL`.
    Acl {
        /// The list.
        acl: Vec<Acl>,
        /// The stat.
        stat: Stat,
    },
    /// The reply to `getAllChildrenNumber`.
    Count(i32),
    /// The reply to `whoAmI`: scheme and user.
    Identities(Vec<(String, String)>),
    /// The reply to a multi or multi read.
    Parts(Vec<Part>),
    /// The reply to `addWatch`, which holds a second error code, always zero.
    WatchAdded,
    /// The reply to a step of a login with SASL, where nobody can log in.
    NoToken,
    /// The reply to an operation that answers with a header alone.
    Done,
}

/// The result of one part of a multi.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The part was carried out.
    Done(OpCode, Response),
    /// The part failed. Without a code, it would have been carried out if a later part had not failed.
    Failed(Option<ErrorCode>),
}

impl Response {
    /// Writes the body, without the header.
    pub fn encode(&self, encoder: &mut Encoder) {
        match self {
            Self::Path(path) => encoder.string(path),
            Self::Created { path, stat } => {
                encoder.string(path);
                stat.encode(encoder);
            }
            Self::Stat(stat) => stat.encode(encoder),
            Self::Data { data, stat } => {
                encoder.optional_bytes(data.as_deref());
                stat.encode(encoder);
            }
            Self::Names(names) => encode_names(names, encoder),
            Self::Children { names, stat } => {
                encode_names(names, encoder);
                stat.encode(encoder);
            }
            Self::Acl { acl, stat } => {
                encoder.count(acl.len());
                acl.iter().for_each(|entry| entry.encode(encoder));
                stat.encode(encoder);
            }
            Self::Count(count) => encoder.int(*count),
            Self::Identities(identities) => {
                encoder.count(identities.len());
                for (scheme, user) in identities {
                    encoder.string(scheme);
                    encoder.string(user);
                }
            }
            Self::Parts(parts) => {
                parts.iter().for_each(|part| part.encode(encoder));
                header(encoder, -1, true, -1);
            }
            Self::WatchAdded => encoder.int(0),
            Self::NoToken => encoder.optional_bytes(None),
            Self::Done => {}
        }
    }
}

impl Part {
    fn encode(&self, encoder: &mut Encoder) {
        match self {
            Self::Done(op_code, response) => {
                // Every create that answers with a stat does so as `create2`.
                let op_code = match op_code {
                    OpCode::CreateContainer | OpCode::CreateTtl => OpCode::Create2,
                    op_code => *op_code,
                };
                header(encoder, op_code as i32, false, 0);
                response.encode(encoder);
            }
            Self::Failed(code) => {
                let code = code.map_or(0, ErrorCode::to_wire);
                header(encoder, -1, false, code);
                encoder.int(code);
            }
        }
    }
}

fn header(encoder: &mut Encoder, kind: i32, done: bool, error: i32) {
    encoder.int(kind);
    encoder.boolean(done);
    encoder.int(error);
}

fn encode_names(names: &[Arc<str>], encoder: &mut Encoder) {
    encoder.count(names.len());
    names.iter().for_each(|name| encoder.string(name));
}
