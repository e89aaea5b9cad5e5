//! Converts between the messages of the API and the types of the domain. No other module does.

mod structs;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rollcall_proto::server::v1;

use super::status;
use crate::error::Error;
use crate::locks::{self, LockEvent};
use crate::sessions::{Notice, RegistrationLostReason};
use crate::types::{NodePath, PathError, Stat, Zxid};
use crate::value::{EncodedValue, Value};
use crate::views::{BackendState, Change, ChangeKind, ViewNode};

/// Maximum size of an object as a `Struct`, in bytes. A larger object is shown raw.
const MAX_STRUCT: usize = 1024 * 1024;

/// A path of a request; it may be the root.
pub(super) fn path(text: &str) -> Result<NodePath, Error> {
    NodePath::parse(text).map_err(|error| invalid_path(text, error))
}

/// A path of a request that creates or deletes.
pub(super) fn path_below_root(text: &str) -> Result<NodePath, Error> {
    NodePath::parse_below_root(text).map_err(|error| invalid_path(text, error))
}

/// The error for an invalid path of a request.
pub(super) fn invalid_path(text: &str, error: PathError) -> Error {
    Error::InvalidPath { path: crate::error::short(text).into_owned(), error }
}

/// A value of a request, of at most `limit` bytes; `None` if it is absent or empty. `path` is the node that it is for.
pub(super) fn value(path: &NodePath, value: Option<v1::Value>, limit: usize) -> Result<Option<EncodedValue>, Error> {
    let too_large = |bytes| Error::ValueTooLarge { path: path.clone(), bytes, limit };
    let plain = |bytes: &[u8]| match bytes.len() {
        length if length > limit => Err(too_large(length)),
        _ => Ok(EncodedValue::plain(bytes)),
    };
    value
        .and_then(|value| value.kind)
        .map(|kind| match kind {
            v1::value::Kind::Data(object) => structs::to_json(&object, limit).map_err(|fault| match fault {
                structs::Fault::TooLarge(bytes) => too_large(bytes),
                fault => Error::Protocol { field: "value", cause: fault.to_string() },
            }),
            v1::value::Kind::Text(text) => plain(text.as_bytes()),
            v1::value::Kind::Raw(bytes) => plain(&bytes),
        })
        .transpose()
}

/// The data of a znode, for a response; `None` if it is empty.
pub(super) fn value_to_proto(bytes: &Bytes) -> Option<v1::Value> {
    let kind = match Value::from_bytes(bytes)? {
        Value::Object(object) => match structs::from_json(&object, MAX_STRUCT) {
            Some(encoded) => v1::value::Kind::Data(encoded.into()),
            None => v1::value::Kind::Raw(bytes.clone()),
        },
        Value::Text(text) => v1::value::Kind::Text(text),
        Value::Raw(bytes) => v1::value::Kind::Raw(bytes),
    };
    Some(v1::Value { kind: Some(kind) })
}

/// A node's stat.
pub(super) fn stat_to_proto(stat: &Stat) -> v1::Stat {
    v1::Stat {
        czxid: stat.czxid,
        mzxid: stat.mzxid,
        ctime: stat.ctime,
        mtime: stat.mtime,
        version: stat.version,
        cversion: stat.cversion,
        aversion: stat.aversion,
        ephemeral_owner: stat.ephemeral_owner,
        data_length: stat.data_length,
        num_children: stat.num_children,
        pzxid: stat.pzxid,
    }
}

/// A child of a path that is read.
pub(super) fn entry_to_proto(entry: &ViewNode) -> v1::Child {
    v1::Child { value: value_to_proto(&entry.data), stat: entry.is_readable.then(|| stat_to_proto(&entry.stat)) }
}

/// A change of a watched path.
pub(super) fn change_to_proto(change: &Change) -> v1::Change {
    let kind = match change.kind {
        ChangeKind::Added => v1::ChangeKind::Added,
        ChangeKind::Updated => v1::ChangeKind::Updated,
        ChangeKind::Removed => v1::ChangeKind::Removed,
        ChangeKind::Created => v1::ChangeKind::Created,
        ChangeKind::DataChanged => v1::ChangeKind::DataChanged,
        ChangeKind::Deleted => v1::ChangeKind::Deleted,
    };
    v1::Change { kind: kind.into(), name: change.name.to_string(), child: change.entry.as_deref().map(entry_to_proto) }
}

/// The state of the replica's connection to ZooKeeper.
pub(super) fn backend_to_proto(state: BackendState, as_of: Option<SystemTime>) -> v1::Backend {
    let state = match state {
        BackendState::Connected => v1::BackendState::Connected,
        BackendState::Suspended => v1::BackendState::Suspended,
        BackendState::Lost => v1::BackendState::Lost,
    };
    v1::Backend { state: state.into(), as_of: as_of.map(timestamp_to_proto) }
}

/// A duration of a request; `None` if it is absent or zero.
pub(super) fn duration(
    field: &'static str,
    duration: Option<prost_types::Duration>,
) -> Result<Option<Duration>, Error> {
    let duration = duration_or_zero(field, duration)?;
    Ok(duration.filter(|duration| !duration.is_zero()))
}

/// A duration of a request in which zero has a meaning.
pub(super) fn duration_or_zero(
    field: &'static str,
    duration: Option<prost_types::Duration>,
) -> Result<Option<Duration>, Error> {
    let Some(duration) = duration else { return Ok(None) };
    Duration::try_from(duration)
        .map(Some)
        .map_err(|_| Error::Protocol { field, cause: "a duration can't be negative, or out of range".to_owned() })
}

/// A ttl of a request; `None` if it is absent or zero.
pub(super) fn ttl(ttl: Option<prost_types::Duration>) -> Result<Option<Duration>, Error> {
    const MIN: Duration = Duration::from_secs(1);
    const MAX: Duration = Duration::from_secs(600);
    let Some(given) = ttl else { return Ok(None) };
    match Duration::try_from(given) {
        Ok(ttl) if ttl.is_zero() => Ok(None),
        Ok(ttl) if (MIN..=MAX).contains(&ttl) => Ok(Some(ttl)),
        Ok(ttl) => Err(Error::InvalidTtl { ttl: format!("{ttl:?}"), min: MIN, max: MAX }),
        Err(_) => Err(Error::InvalidTtl { ttl: format!("{given}"), min: MIN, max: MAX }),
    }
}

/// The transaction that a `min_revision` asks for; zero asks for none.
pub(super) fn at_least(min_revision: i64) -> Result<Zxid, Error> {
    if min_revision < 0 {
        return Err(Error::Protocol { field: "min_revision", cause: "it can't be negative".to_owned() });
    }
    Ok(Zxid(min_revision))
}

/// A duration for a response.
pub(super) fn duration_to_proto(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).unwrap_or_default()
}

/// A point in time for a response.
pub(super) fn timestamp_to_proto(time: SystemTime) -> prost_types::Timestamp {
    prost_types::Timestamp::from(time)
}

/// An event of a lock's stream.
pub(super) fn lock_event_to_proto(event: LockEvent) -> v1::acquire_lock_response::Event {
    use v1::acquire_lock_response::Event;
    match event {
        LockEvent::Queued { lock_id, position, holders } => Event::Queued(v1::Queued { lock_id, position, holders }),
        LockEvent::Held { lock_id, fencing_token, ttl, horizon, .. } => Event::Held(v1::Held {
            lock_id,
            fencing_token: fencing_token.0,
            ttl: ttl.map(duration_to_proto),
            horizon: horizon.map(duration_to_proto),
        }),
        LockEvent::Suspended { remaining } => {
            Event::Suspended(v1::Suspended { remaining: Some(duration_to_proto(remaining)) })
        }
        LockEvent::Lost { reason } => {
            let reason = match reason {
                locks::LostReason::SessionLost => v1::LostReason::SessionLost,
                locks::LostReason::Removed => v1::LostReason::Removed,
                locks::LostReason::Expired => v1::LostReason::Expired,
            };
            Event::Lost(v1::LockLost { reason: reason.into() })
        }
    }
}

/// A notice of a Register stream.
pub(super) fn notice_to_proto(notice: Notice) -> v1::RegisterResponse {
    use v1::register_response::Response;
    let response = match notice {
        Notice::Opened { session_id, ttl } => Response::Opened(v1::Opened {
            session_id,
            ttl: ttl.map(duration_to_proto),
            keep_alive_interval: ttl.map(|ttl| duration_to_proto(ttl / 3)),
            horizon: None,
        }),
        Notice::Registered { path, generation, stat, restored, adopted } => Response::Registered(v1::Registered {
            path: path.as_str().to_owned(),
            generation: generation.0,
            stat: Some(stat_to_proto(&stat)),
            restored,
            adopted,
        }),
        Notice::Unregistered { path } => Response::Unregistered(v1::Unregistered { path: path.as_str().to_owned() }),
        Notice::Pending { path } => Response::Pending(v1::Pending {
            path: path.as_str().to_owned(),
            reason: Error::BackendUnavailable.reason().to_owned(),
        }),
        Notice::Overwritten { path, data, stat } => Response::Overwritten(v1::Overwritten {
            path: path.as_str().to_owned(),
            value: value_to_proto(&data),
            stat: Some(stat_to_proto(&stat)),
        }),
        Notice::Lost { path, generation, reason } => Response::Lost(v1::Lost {
            path: path.as_str().to_owned(),
            generation: generation.0,
            reason: lost_reason(reason).into(),
        }),
        Notice::Rejected { path, error } => Response::Rejected(v1::Rejected {
            path,
            code: status::code(&error).into(),
            reason: error.reason().to_owned(),
            message: status::message(&error),
        }),
        Notice::KeptAlive => Response::KeptAlive(v1::KeptAlive {}),
    };
    v1::RegisterResponse { response: Some(response) }
}

fn lost_reason(reason: RegistrationLostReason) -> v1::LostReason {
    match reason {
        RegistrationLostReason::TakenOver => v1::LostReason::TakenOver,
        RegistrationLostReason::Expired => v1::LostReason::Expired,
        RegistrationLostReason::Evicted => v1::LostReason::Evicted,
    }
}
