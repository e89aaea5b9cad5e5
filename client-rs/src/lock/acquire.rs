//! From the first request for a lock to the grant, or to the end of the time that the caller waits.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use rollcall_proto::v1::acquire_lock_response::Event;
use tokio::time::{Instant, timeout, timeout_at};

use super::guard::LockGuard;
use super::keep::{self, Grant};
use super::release::release_later;
use super::stream::{Stream, Terms, lost_reason};
use crate::choice::FOREVER;
use crate::client::Client;
use crate::error::{Error, Failure, Reason, Refusal};
use crate::replicas::Replica;

/// A place in the queue for a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// Counted from 1.
    pub position: u32,
    /// Names of the holders of the lock.
    pub holders: Vec<String>,
}

/// The callback that gets each place.
pub(super) type Tell = Arc<dyn Fn(&Place) + Send + Sync>;

/// A place in the queue. Dropping it leaves the queue, even when the replica has granted a lock with a ttl of which the
/// caller has not heard yet.
struct Seat {
    client: Client,
    /// The request whose place is not known yet.
    opening: Option<Opening>,
    lock_id: Option<String>,
    /// The previous place, kept until this one is certain.
    left: Option<(Stream, String)>,
}

impl Seat {
    /// The replica has given a new place, or confirmed the old one.
    fn take(&mut self, lock_id: String) {
        if self.lock_id.as_ref() != Some(&lock_id) {
            self.give_up();
            self.lock_id = Some(lock_id);
        }
        if let Some((stream, lock_id)) = self.left.take() {
            drop(stream);
            release_later(&self.client, lock_id);
        }
    }

    /// Releases the place: a place that a replica still knows must not block our own next request.
    fn give_up(&mut self) {
        if let Some(lock_id) = self.lock_id.take() {
            release_later(&self.client, lock_id);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(opening) = self.opening.take() {
            give_up_unseen(&self.client, opening);
        }
        self.give_up();
        if let Some((_, lock_id)) = self.left.take() {
            release_later(&self.client, lock_id);
        }
    }
}

/// A stream that is being opened, up to its first event.
type Opening = BoxFuture<'static, Result<(Stream, Option<Event>), (Replica, Failure)>>;

/// How reading a stream has ended.
enum Ended {
    Granted(Box<Stream>, Grant),
    /// Queue again, or resume the place, at another replica.
    Left,
}

pub(super) async fn acquire(
    terms: Terms,
    ttl: Option<Duration>,
    wait: Option<Duration>,
    tell: Option<Tell>,
) -> Result<LockGuard, Error> {
    let (client, replicas) = (&terms.client, terms.client.replicas());
    let deadline = wait.map(|wait| Instant::now() + wait.min(FOREVER));
    let mut seat = Seat { client: client.clone(), opening: None, lock_id: None, left: None };
    let mut last: Option<Failure> = None;
    let mut give_up_at = Instant::now() + client.shared().patience;
    loop {
        let but = seat.left.as_ref().map(|(stream, _)| stream.replica.index());
        let Ok(replica) = timeout_at(give_up_at, replicas.pick_but(but, client.shared().patience / 6)).await else {
            return Err(replicas.given_up(last));
        };
        let wait = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let opening = open(terms.clone(), replica, seat.lock_id.clone(), wait);
        let opened = seat.opening.insert(opening.boxed()).await;
        seat.opening = None;
        let ended = match opened {
            Ok((stream, first)) => {
                let ended = queue(&terms, ttl, tell.as_ref(), &mut seat, stream, first).await;
                give_up_at = Instant::now() + client.shared().patience;
                ended
            }
            Err(failed) => Err(failed),
        };
        match ended {
            Ok(Ended::Granted(stream, grant)) => {
                seat.lock_id = None;
                return Ok(LockGuard::new(terms, ttl, *stream, grant));
            }
            Ok(Ended::Left) => {}
            Err((replica, failure)) => {
                let place_is_gone =
                    matches!(&failure, Failure::Refused(refusal) if *refusal.reason() == Reason::LockLost);
                match failure {
                    Failure::Refused(_) if place_is_gone && seat.lock_id.is_some() => seat.give_up(),
                    Failure::Refused(refusal) => {
                        replicas.succeeded(&replica);
                        // The replica has already ended the place.
                        seat.lock_id = None;
                        return Err(Error::Refused(refusal));
                    }
                    failure => {
                        replicas.failed(&replica, &failure);
                        last = Some(failure);
                    }
                }
            }
        }
    }
}

/// Opens a stream and awaits its first event; `None`: the stream ended without an event.
async fn open(
    terms: Terms,
    replica: Replica,
    lock_id: Option<String>,
    wait: Option<Duration>,
) -> Result<(Stream, Option<Event>), (Replica, Failure)> {
    let mut stream = terms.open(replica, lock_id.as_deref(), wait).await?;
    match stream.next().await {
        Ok(event) => Ok((stream, event)),
        Err(failure) => Err((stream.replica, failure)),
    }
}

/// Gives up, in the background, a request that has not been answered yet. The lock may be granted before the replica
/// notices that the caller is gone, and would then be held unused for its ttl.
fn give_up_unseen(client: &Client, opening: Opening) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let client = client.clone();
        let under_way = client.shared().background.begin();
        runtime.spawn(async move {
            let opened = timeout(client.shared().patience, opening).await;
            if let Ok(Ok((stream, Some(Event::Queued(queued))))) = opened {
                drop(stream);
                // An error means that the place is gone already, which is just as good.
                let _ = client.release_lock(queued.lock_id).await;
            }
            drop(under_way);
        });
    }
}

/// Follows a place in the queue until the lock is granted or the place is left.
async fn queue(
    terms: &Terms,
    ttl: Option<Duration>,
    tell: Option<&Tell>,
    seat: &mut Seat,
    mut stream: Stream,
    mut first: Option<Event>,
) -> Result<Ended, (Replica, Failure)> {
    let replicas = terms.client.replicas();
    loop {
        let event = match first.take() {
            Some(first) => first,
            None => match stream.next().await {
                Ok(Some(event)) => event,
                Ok(None) => return Err((stream.replica, released(seat))),
                Err(failure) => return Err((stream.replica, failure)),
            },
        };
        replicas.succeeded(&stream.replica);
        match event {
            Event::Queued(queued) => {
                seat.take(queued.lock_id);
                if let Some(tell) = tell {
                    tell(&Place { position: queued.position, holders: queued.holders });
                }
            }
            Event::Held(held) => {
                let sent_at = stream.sent_at;
                replicas.seen().note(held.fencing_token);
                let grant = Grant::of(held, sent_at);
                // The lock's certainty counts from the request, which is long ago after a long wait, so the lock is
                // renewed first.
                let is_old = |ttl: &Duration| sent_at.elapsed() > *ttl / 3;
                let Some(ttl) = ttl.filter(is_old) else { return Ok(Ended::Granted(Box::new(stream), grant)) };
                let renewed = keep::renew(terms, ttl, &grant, &stream.replica).await;
                let (stream, grant) = renewed.map_err(|failure| (stream.replica, failure))?;
                return Ok(Ended::Granted(Box::new(stream), grant));
            }
            Event::Lost(lost) => {
                let reason = lost_reason(lost);
                tracing::info!(path = terms.path(), %reason, "a lock was lost before it was used");
                return Ok(Ended::Left);
            }
            Event::Draining(_) => {
                replicas.drains(&stream.replica);
                // The place can't be moved, so it is kept until there is another.
                if let Some(lock_id) = seat.lock_id.take() {
                    seat.left = Some((stream, lock_id));
                }
                return Ok(Ended::Left);
            }
            // Without ZooKeeper there is no place. The replica goes on waiting for ZooKeeper, though another replica
            // may have it.
            Event::Heartbeat(_) if seat.lock_id.is_none() => {
                if replicas.found_better(stream.replica.index()).await {
                    give_up_unseen(&terms.client, placed(stream).boxed());
                    return Ok(Ended::Left);
                }
            }
            Event::Suspended(_) | Event::Heartbeat(_) => {}
        }
    }
}

/// Reads a stream up to the event that gives its place.
async fn placed(mut stream: Stream) -> Result<(Stream, Option<Event>), (Replica, Failure)> {
    loop {
        match stream.next().await {
            Ok(Some(Event::Heartbeat(_))) => {}
            Ok(event) => return Ok((stream, event)),
            Err(failure) => return Err((stream.replica, failure)),
        }
    }
}

/// The place was given back by its id.
fn released(seat: &mut Seat) -> Failure {
    seat.lock_id = None;
    let refusal = Refusal::in_stream(
        tonic::Code::Aborted.into(),
        Reason::LockLost.as_str(),
        "the place in the queue was given back by its id".to_owned(),
    );
    Failure::Refused(refusal)
}
