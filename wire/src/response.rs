//! Replies, as a client reads them.

use bytes::Bytes;

use crate::{Acl, Decoder, ErrorCode, Malformed, OpCode, Stat};

/// The body of a reply that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// The reply to a create: the path as it was created (the chroot included) and, outside a multi, a stat to rely on.
    Created {
        /// The path, with a sequential node's digits.
        path: String,
        /// The stat.
        stat: Stat,
    },
    /// The reply to an exists or a write of data.
    Stat(Stat),
    /// The reply to a read of data.
    Data {
        /// The data.
        data: Bytes,
        /// The stat.
        stat: Stat,
    },
    /// The reply to a list. Inside a multi read the stat is not sent, and is all zeros here.
    Children {
        /// The names.
        names: Vec<String>,
        /// The parent's stat.
        stat: Stat,
    },
    /// The reply to a read of an access control list.
    Acl {
        /// The list.
        acl: Vec<Acl>,
        /// The stat.
        stat: Stat,
    },
    /// The reply to a multi or multi read, part by part.
    Parts(Vec<Result<Response, ErrorCode>>),
    /// The reply to every operation that answers with a header alone.
    Done,
}

impl Response {
    /// Rewrites every path that the response names.
    pub fn map_paths(&mut self, rewrite: &impl Fn(&str) -> String) {
        match self {
            Self::Created { path, .. } => *path = rewrite(path),
            Self::Parts(parts) => parts.iter_mut().flatten().for_each(|part| part.map_paths(rewrite)),
            Self::Stat(_) | Self::Data { .. } | Self::Children { .. } | Self::Acl { .. } | Self::Done => {}
        }
    }

    /// Reads the body of the reply to `op_code`.
    pub fn decode(op_code: OpCode, decoder: &mut Decoder) -> Result<Self, Malformed> {
        Ok(match op_code {
            OpCode::Create2 | OpCode::CreateContainer => {
                Self::Created { path: decoder.string()?, stat: Stat::decode(decoder)? }
            }
            OpCode::Exists | OpCode::SetData => Self::Stat(Stat::decode(decoder)?),
            OpCode::GetData => Self::Data { data: decoder.bytes()?, stat: Stat::decode(decoder)? },
            OpCode::GetChildren2 => {
                Self::Children { names: decoder.vector(Decoder::string)?, stat: Stat::decode(decoder)? }
            }
            OpCode::GetAcl => Self::Acl { acl: decoder.vector(Acl::decode)?, stat: Stat::decode(decoder)? },
            OpCode::Multi | OpCode::MultiRead => Self::Parts(decode_parts(decoder)?),
            OpCode::Delete
            | OpCode::Sync
            | OpCode::Ping
            | OpCode::Check
            | OpCode::Auth
            | OpCode::AddWatch
            | OpCode::RemoveWatches
            | OpCode::SetWatches
            | OpCode::SetWatches2
            | OpCode::CheckWatches
            | OpCode::CloseSession => Self::Done,
            // The client half does not send these.
            OpCode::Create
            | OpCode::CreateTtl
            | OpCode::SetAcl
            | OpCode::GetChildren
            | OpCode::Reconfig
            | OpCode::Sasl
            | OpCode::GetEphemerals
            | OpCode::GetAllChildrenNumber
            | OpCode::WhoAmI => return Err(Malformed("a reply to what was not asked")),
        })
    }
}

fn decode_parts(decoder: &mut Decoder) -> Result<Vec<Result<Response, ErrorCode>>, Malformed> {
    const ERROR: i32 = -1;
    const CREATE: i32 = 1;
    const GET_CHILDREN: i32 = 8;
    let mut parts = Vec::new();
    loop {
        let kind = decoder.int()?;
        let done = decoder.boolean()?;
        let _error = decoder.int()?;
        if done {
            return Ok(parts);
        }
        parts.push(match kind {
            ERROR => match ErrorCode::from_wire(decoder.int()?) {
                Some(code) => Err(code),
                None => Ok(Response::Done),
            },
            CREATE => Ok(Response::Created { path: decoder.string()?, stat: Stat::default() }),
            GET_CHILDREN => Ok(Response::Children { names: decoder.vector(Decoder::string)?, stat: Stat::default() }),
            kind => Ok(Response::decode(part_op_code(kind)?, decoder)?),
        });
    }
}

fn part_op_code(kind: i32) -> Result<OpCode, Malformed> {
    [OpCode::Delete, OpCode::GetData, OpCode::SetData, OpCode::Check, OpCode::Create2]
        .into_iter()
        .find(|op_code| *op_code as i32 == kind)
        .ok_or(Malformed("unknown part of a multi"))
}
