//! AcquireLock, ReleaseLock and DescribeLock.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream;
use prost::Message as _;
use rollcall_proto::server::v1;
use tonic::Request;

use super::acknowledged::Acknowledged;
use super::admission::{CallKind, CallPlace, account, acknowledged, contact};
use super::frames::{Frame, frame};
use super::heartbeat::{self, Heartbeat};
use super::message::MAX_MESSAGE_BYTES;
use super::{Responses, Service, convert, status};
use crate::error::Error;
use crate::locks::{AcquireRequest, Acquisition, Description, LOOK_AGAIN, LockEvent, Party};
use crate::views::Views;

/// Bytes of a response that are kept free for everything but the parties.
const DESCRIBE_MARGIN: usize = 8 * 1024;

/// State that lives as long as the RPC.
struct OpenAcquireLock {
    acquisition: Acquisition,
    acknowledged: Acknowledged,
    views: Views,
    heartbeat: Option<Heartbeat>,
    _place: CallPlace,
}

impl Service {
    pub(super) fn do_acquire_lock(
        &self,
        request: Request<v1::AcquireLockRequest>,
    ) -> Result<Responses<v1::AcquireLockResponse>, Error> {
        self.check_writable()?;
        let place = self.admit(CallKind::AcquireLock)?;
        let (account, contact) = (account(&request), contact(&request));
        let (acknowledged, views) = (acknowledged(&request), self.views.clone());
        let request = request.into_inner();
        let path = self.settings.path_to_write(&request.path)?;
        let heartbeat = Heartbeat::every(self.heartbeat(request.heartbeat)?);
        let request = AcquireRequest {
            path,
            simultaneous: request.simultaneous,
            wait: convert::duration_or_zero("wait", request.wait)?,
            ttl: convert::ttl(request.ttl)?,
            name: (!request.name.is_empty()).then_some(request.name),
            lock_id: (!request.lock_id.is_empty()).then_some(request.lock_id),
            contact,
        };
        let acquisition = self.locks.acquire(request, &account);
        let open = OpenAcquireLock { acquisition, acknowledged, views, heartbeat, _place: place };
        Ok(Box::pin(stream::unfold(open, next_response)))
    }

    pub(super) async fn do_release_lock(
        &self,
        request: Request<v1::ReleaseLockRequest>,
    ) -> Result<v1::ReleaseLockResponse, Error> {
        self.check_writable()?;
        let released = self.locks.release(&request.get_ref().lock_id).await?;
        acknowledged(&request).note(self.views.last_zxid());
        Ok(v1::ReleaseLockResponse { released })
    }

    pub(super) async fn do_describe_lock(&self, request: Request<v1::DescribeLockRequest>) -> Result<Frame, Error> {
        let path = convert::path_below_root(&request.get_ref().path)?;
        Ok(Frame::encoded(self.locks.describe(&path, &account(&request), description_to_frame).await?))
    }
}

/// The answer to all callers that ask for the same lock at the same time.
fn description_to_frame(description: &Description) -> Bytes {
    let mut room = MAX_MESSAGE_BYTES - DESCRIBE_MARGIN;
    frame(&v1::DescribeLockResponse {
        path: description.path.as_str().to_owned(),
        simultaneous: description.simultaneous,
        holders: parties_to_proto(&description.holders, &mut room),
        waiters: parties_to_proto(&description.waiters, &mut room),
    })
}

async fn next_response(
    mut open: OpenAcquireLock,
) -> Option<(Result<v1::AcquireLockResponse, tonic::Status>, OpenAcquireLock)> {
    /// Number of heartbeats that a holder gets within the time in which it must have heard one.
    const IN_HORIZON: u32 = 3;
    let answer = loop {
        let next = heartbeat::or_due(&mut open.heartbeat, open.acquisition.next()).await;
        match (next, &mut open.heartbeat) {
            (Some(event), heartbeat) => {
                let event = event?;
                // In doubt, the horizon is only the rest of an earlier one.
                if let (Ok(LockEvent::Held { horizon: Some(horizon), in_doubt: false, .. }), Some(heartbeat)) =
                    (&event, heartbeat)
                {
                    heartbeat.at_most(*horizon / IN_HORIZON);
                }
                break event.map(|event| {
                    open.acknowledged.note_lock_event(&event, &open.views);
                    response(convert::lock_event_to_proto(event))
                });
            }
            (None, Some(heartbeat)) if open.acquisition.is_held_back() => heartbeat.again_in(LOOK_AGAIN),
            (None, _) => break Ok(response(v1::acquire_lock_response::Event::Heartbeat(v1::Heartbeat {}))),
        }
    };
    Some((answer.map_err(|error| status::status(&error)), open))
}

fn response(event: v1::acquire_lock_response::Event) -> v1::AcquireLockResponse {
    v1::AcquireLockResponse { event: Some(event) }
}

/// The first parties, as many as fit.
fn parties_to_proto(parties: &[Party], room: &mut usize) -> Vec<v1::LockParty> {
    /// Bytes that a party takes besides itself: a tag and a length.
    const PARTY_OVERHEAD: usize = 8;
    let fitting = parties.iter().map(party_to_proto).take_while(|party| {
        let left = room.checked_sub(party.encoded_len() + PARTY_OVERHEAD);
        *room = left.unwrap_or_default();
        left.is_some()
    });
    fitting.collect()
}

fn party_to_proto(party: &Party) -> v1::LockParty {
    let since = Duration::from_millis(u64::try_from(party.since_ms).unwrap_or_default());
    v1::LockParty {
        name: party.name.clone(),
        fencing_token: party.fencing_token.map_or(0, |token| token.0),
        since_time: Some(convert::timestamp_to_proto(UNIX_EPOCH + since)),
        foreign: party.foreign,
        ttl: party.ttl.map(convert::duration_to_proto),
        replica: party.replica.clone(),
    }
}
