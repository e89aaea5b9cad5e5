//! Events that come to a stream from outside: its deadline, which counts as a broken stream whether or not the client
//! keeps time itself, and the replica's drain.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use http::HeaderMap;
use rollcall_proto::server::v1;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tonic::Status;

use super::frames::Frame;
use super::{convert, status};
use crate::drain::DrainPhase;
use crate::error::Error;

/// The deadline of a call.
pub(super) fn of(headers: &HeaderMap) -> Option<Instant> {
    let header = headers.get("grpc-timeout")?.to_str().ok()?;
    Instant::now().checked_add(parse(header)?)
}

/// Parses `grpc-timeout`: up to eight digits and a unit.
///
/// Source: gRPC over HTTP2, «Requests».
fn parse(header: &str) -> Option<Duration> {
    let (unit_at, unit) = header.char_indices().next_back()?;
    let number: u64 = header[..unit_at].parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(number.checked_mul(3600)?),
        'M' => Duration::from_secs(number.checked_mul(60)?),
        'S' => Duration::from_secs(number),
        'm' => Duration::from_millis(number),
        'u' => Duration::from_micros(number),
        'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// A response that can say that the replica drains.
pub(super) trait Response: Send + 'static {
    /// The message that the stream may live for `remaining`.
    fn draining(remaining: Duration) -> Self;

    /// Whether the next response continues this one; no other message may come between the two.
    fn is_unfinished(&self) -> bool {
        false
    }
}

/// An event from outside.
enum Signal {
    Draining { deadline: Instant },
    End(Error),
}

/// The deadline of the call, and the phases of the replica's drain.
struct Signals {
    deadline: Option<Pin<Box<Sleep>>>,
    phase: NextPhase,
}

/// A phase other than the one before, and the source of the next.
type NextPhase = Pin<Box<dyn Future<Output = (DrainPhase, watch::Receiver<DrainPhase>)> + Send>>;

fn next_phase(mut phases: watch::Receiver<DrainPhase>, known: DrainPhase) -> NextPhase {
    Box::pin(async move {
        let phase = phases.wait_for(|phase| *phase != known).await.map_or(DrainPhase::Over, |phase| *phase);
        (phase, phases)
    })
}

impl Signals {
    /// Must not be polled after [`Signal::End`].
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Signal> {
        if self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(context).is_ready()) {
            return Poll::Ready(Signal::End(Error::DeadlineExceeded));
        }
        let (phase, phases) = ready!(self.phase.as_mut().poll(context));
        let DrainPhase::Draining { deadline } = phase else { return Poll::Ready(Signal::End(Error::Draining)) };
        self.phase = next_phase(phases, phase);
        Poll::Ready(Signal::Draining { deadline })
    }
}

/// A stream with its events from outside. Every event of every watcher passes through here, and every watcher keeps
/// one. So it is written by hand, and nothing in it is moved or boxed from one item to the next.
pub(crate) struct Bounded<S> {
    /// `None` once the stream is over.
    responses: Option<S>,
    signals: Signals,
    /// The deadline of a drain of which the client has not been told.
    untold: Option<Instant>,
    /// Whether a message may be inserted now: not before the first response, nor between the parts of one.
    is_between: bool,
}

/// Tells a stream of the drain, and ends it at its deadline or when the replica goes down. Everything that the stream
/// holds is dropped then.
pub(super) fn bound<S>(responses: S, deadline: Option<Instant>, phases: watch::Receiver<DrainPhase>) -> Bounded<S> {
    let deadline = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
    let signals = Signals { deadline, phase: next_phase(phases, DrainPhase::Serving) };
    Bounded { responses: Some(responses), signals, untold: None, is_between: false }
}

impl<T: Response, S: Stream<Item = Result<T, Status>> + Unpin> Stream for Bounded<S> {
    type Item = Result<T, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(responses) = &mut this.responses else { return Poll::Ready(None) };
        loop {
            if let Some(deadline) = this.untold.take_if(|_| this.is_between) {
                return Poll::Ready(Some(Ok(T::draining(deadline.saturating_duration_since(Instant::now())))));
            }
            match this.signals.poll(context) {
                Poll::Pending => break,
                Poll::Ready(Signal::Draining { deadline }) => this.untold = Some(deadline),
                Poll::Ready(Signal::End(error)) => {
                    this.responses = None;
                    return Poll::Ready(Some(Err(status::status(&error))));
                }
            }
        }
        let response = ready!(responses.poll_next_unpin(context));
        match &response {
            Some(response) => this.is_between = response.as_ref().is_ok_and(|response| !response.is_unfinished()),
            None => this.responses = None,
        }
        Poll::Ready(response)
    }
}

fn draining_to_proto(remaining: Duration) -> v1::Draining {
    v1::Draining { remaining: Some(convert::duration_to_proto(remaining)) }
}

impl Response for v1::RegisterResponse {
    fn draining(remaining: Duration) -> Self {
        Self { response: Some(v1::register_response::Response::Draining(draining_to_proto(remaining))) }
    }
}

impl Response for v1::AcquireLockResponse {
    fn draining(remaining: Duration) -> Self {
        Self { event: Some(v1::acquire_lock_response::Event::Draining(draining_to_proto(remaining))) }
    }
}

/// A message of a Watch.
impl Response for Frame {
    fn draining(remaining: Duration) -> Self {
        let event = Some(v1::watch_response::Event::Draining(draining_to_proto(remaining)));
        Self::of(&v1::WatchResponse { event, ..Default::default() })
    }

    fn is_unfinished(&self) -> bool {
        self.is_part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_has_them() {
        assert_eq!(parse("100m"), Some(Duration::from_millis(100)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "m", "1x", "-1S", "1é"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
