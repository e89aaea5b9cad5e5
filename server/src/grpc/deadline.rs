//! What comes to a stream from outside: its deadline, which counts as a broken stream whether or not the client keeps time
//! itself, and the replica's way down.

use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use rollcall_proto::v1;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::frames::Frame;
use super::{Responses, convert, status};
use crate::drain::Phase;
use crate::error::Error;

/// The deadline of a call.
pub(super) fn of<T>(request: &Request<T>) -> Option<Instant> {
    let header = timeout_header(request.metadata())?;
    Instant::now().checked_add(parse(header)?)
}

fn timeout_header(metadata: &MetadataMap) -> Option<&str> {
    metadata.get("grpc-timeout")?.to_str().ok()
}

/// `grpc-timeout` is up to eight digits and a unit.
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
    /// That the stream may live for so long still.
    fn draining(remaining: Duration) -> Self;

    /// Whether it is a part of something that the next one goes on with: nothing is told in between.
    fn is_unfinished(&self) -> bool {
        false
    }
}

/// What comes from outside.
enum Signal {
    Draining { deadline: Instant },
    End(Error),
}

/// The deadline of the call, and the phases of the replica's way down. Ends after [`Signal::End`].
fn signals(deadline: Option<Instant>, phases: watch::Receiver<Phase>) -> impl Stream<Item = Signal> + Send {
    stream::unfold(Some((phases, Phase::Serving)), move |open| async move {
        let (mut phases, known) = open?;
        let over = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let phase = tokio::select! {
            () = over => return Some((Signal::End(Error::DeadlineExceeded), None)),
            phase = phases.wait_for(|phase| *phase != known) => phase.map_or(Phase::Over, |phase| *phase),
        };
        Some(match phase {
            Phase::Draining { deadline } => (Signal::Draining { deadline }, Some((phases, phase))),
            Phase::Serving | Phase::Over => (Signal::End(Error::Draining), None),
        })
    })
}

/// A stream with what comes from outside.
struct Bounded<T, S> {
    responses: Responses<T>,
    signals: S,
    /// The end of a drain that the client has not been told of.
    untold: Option<Instant>,
    /// Whether something may be told now: not before the first response, nor in the middle of one.
    is_between: bool,
}

/// Tells a stream of the drain, and ends it at its deadline or when the replica goes down; everything that it holds is
/// dropped then.
pub(super) fn bound<T: Response>(
    responses: Responses<T>,
    deadline: Option<Instant>,
    phases: watch::Receiver<Phase>,
) -> Responses<T> {
    let signals = Box::pin(signals(deadline, phases));
    let bounded = Bounded { responses, signals, untold: None, is_between: false };
    Box::pin(stream::unfold(Some(bounded), async |open| open?.next().await))
}

impl<T: Response, S: Stream<Item = Signal> + Unpin> Bounded<T, S> {
    async fn next(mut self) -> Option<(Result<T, Status>, Option<Self>)> {
        loop {
            if let Some(deadline) = self.untold.take_if(|_| self.is_between) {
                return Some((Ok(T::draining(deadline.saturating_duration_since(Instant::now()))), Some(self)));
            }
            tokio::select! {
                biased;
                Some(signal) = self.signals.next() => match signal {
                    Signal::Draining { deadline } => self.untold = Some(deadline),
                    Signal::End(error) => return Some((Err(status::status(&error)), None)),
                },
                response = self.responses.next() => {
                    let response = response?;
                    self.is_between = response.as_ref().is_ok_and(|response| !response.is_unfinished());
                    return Some((response, Some(self)));
                }
            }
        }
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

/// Of a Watch.
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
