//! Messages as bytes: made once, sent to many.
//!
//! Tonic encodes each message for each call, into a buffer of the call, which a stream keeps as large as its largest
//! message. A message that goes to many calls at once (a change to all watchers, a state to all readers) is encoded
//! once instead, and its bytes are shared up to the socket. Other messages of streams take only the bytes that they
//! need. The rpc hands a body of [`Frame`]s over beside its answer, and [`take_over`] puts it in the place of the empty
//! body that tonic made.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use parking_lot::Mutex;
use prost::Message;
use tonic::body::Body;
use tonic::{Response, Status};

use super::message::PREFIX;

/// One message, ready to be sent.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    bytes: Bytes,
    /// Bytes that follow, if any. They are shared; `bytes` are not.
    rest: Bytes,
    /// Whether the next frame continues this one.
    pub(super) is_part: bool,
}

impl Frame {
    /// The frame of a message for one call.
    pub(super) fn of(message: &impl Message) -> Self {
        Self::encoded(frame(message))
    }

    /// The frame of bytes that [`frame`] has made.
    pub(super) fn encoded(bytes: Bytes) -> Self {
        Self { bytes, rest: Bytes::new(), is_part: false }
    }

    /// The same, with the fields of `more` added: encoded messages that follow each other are one message.
    pub(super) fn with(encoded: &Bytes, more: &impl Message) -> Self {
        if more.encoded_len() == 0 {
            return Self::encoded(encoded.clone());
        }
        let rest = encoded.slice(PREFIX..);
        Self { bytes: prefixed(more, rest.len()), rest, is_part: false }
    }
}

/// A message with gRPC's prefix.
pub(super) fn frame(message: &impl Message) -> Bytes {
    prefixed(message, 0)
}

/// The same, for a message that goes on for `more` bytes.
fn prefixed(message: &impl Message, more: usize) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    // All messages are far smaller; see `MAX_MESSAGE_BYTES`.
    bytes.put_u32(u32::try_from(length + more).unwrap_or(u32::MAX));
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

/// The body of an answer: frames, and then the status.
struct FramedBody<S> {
    source: S,
    rest: Bytes,
    has_ended: bool,
}

impl<S: Stream<Item = Result<Frame, Status>> + Unpin> http_body::Body for FramedBody<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(http_body::Frame::data(std::mem::take(&mut self.rest)))));
        }
        if self.has_ended {
            return Poll::Ready(None);
        }
        let status = match ready!(self.source.poll_next_unpin(context)) {
            Some(Ok(frame)) => {
                self.rest = frame.rest;
                return Poll::Ready(Some(Ok(http_body::Frame::data(frame.bytes))));
            }
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.has_ended = true;
        let mut trailers = http::HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| http_body::Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended && self.rest.is_empty()
    }
}

/// A body on its way through tonic. Extensions have to be `Clone`; the body is taken once.
#[derive(Clone)]
struct Handover(Arc<Mutex<Option<Body>>>);

/// An answer whose body is these frames. `stand_in` is for tonic, and never sent.
pub(super) fn hand_over<T>(
    stand_in: T,
    frames: impl Stream<Item = Result<Frame, Status>> + Send + Unpin + 'static,
) -> Response<T> {
    let body = Body::new(FramedBody { source: frames, rest: Bytes::new(), has_ended: false });
    let mut response = Response::new(stand_in);
    response.extensions_mut().insert(Handover(Arc::new(Mutex::new(Some(body)))));
    response
}

/// The answer with the body that was handed over, if one was.
pub(super) fn take_over(mut response: http::Response<Body>) -> http::Response<Body> {
    if let Some(Handover(body)) = response.extensions_mut().remove()
        && let Some(body) = body.lock().take()
    {
        *response.body_mut() = body;
    }
    response
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use rollcall_proto::server::v1;

    use super::*;

    fn sent(frame: &Frame) -> Vec<u8> {
        [&frame.bytes[..], &frame.rest[..]].concat()
    }

    #[test]
    fn more_fields_make_the_message_that_has_them_all() {
        let message = |stale| v1::WatchResponse {
            revision: 7,
            stale,
            event: Some(v1::watch_response::Event::Current(v1::Current {})),
        };
        let encoded = frame(&message(false));
        for stale in [false, true] {
            let bytes = sent(&Frame::with(&encoded, &v1::WatchResponse { stale, ..Default::default() }));
            assert_eq!(bytes[0], 0);
            assert_eq!(u32::from_be_bytes(bytes[1..PREFIX].try_into().unwrap()) as usize, bytes.len() - PREFIX);
            assert_eq!(v1::WatchResponse::decode(&bytes[PREFIX..]).unwrap(), message(stale));
        }
    }

    #[tokio::test]
    async fn a_body_is_its_frames_and_then_how_it_ended() {
        for (end, code) in [(None, "0"), (Some(Err(Status::aborted("gone"))), "10")] {
            let encoded = frame(&v1::WatchResponse { revision: 7, ..Default::default() });
            let stale = v1::WatchResponse { stale: true, ..Default::default() };
            let frames = [Ok(Frame::encoded(encoded.clone())), Ok(Frame::with(&encoded, &stale))];
            let source = stream::iter(frames.into_iter().chain(end));
            let mut body = FramedBody { source, rest: Bytes::new(), has_ended: false };
            let mut next = async || {
                std::future::poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut body), context)).await
            };
            for _ in 0..3 {
                assert!(next().await.unwrap().unwrap().is_data());
            }
            let trailers = next().await.unwrap().unwrap().into_trailers().unwrap();
            assert_eq!(trailers["grpc-status"], code);
            assert!(next().await.is_none());
        }
    }
}
