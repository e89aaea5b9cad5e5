//! The bodies of answers, counted until they are sent.
//!
//! HTTP/2 takes 400 KB of each stream ahead of what the client reads, and a small message takes far more memory in its
//! queue than its bytes. So each part of an answer counts for its call until HTTP/2 has sent it, and an answer waits
//! while much of it is unsent.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::call::Call;
use super::status;
use crate::error::Error;

/// Size up to which a shared part counts for each call that has it, in bytes. A larger part counts for its connection;
/// see `views/parts.rs` and `shared_bytes.rs`.
const SHARED: usize = 4 * 1024;

/// How the memory of an answer is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnswerCost {
    /// For its call only. An answer that does not fit ends the call.
    Own,
    /// For a Register stream, whose answers were counted while they waited.
    Open,
    /// For Get, Watch and DescribeLock, whose large parts are shared and counted elsewhere.
    Shared,
}

/// The body of an answer. The call is under way until the body is sent.
#[derive(Default)]
pub(crate) struct Download {
    body: Body,
    call: Option<(Arc<Call>, AnswerCost)>,
}

impl Download {
    pub(super) fn new(body: Body, call: Arc<Call>, answer: AnswerCost) -> Self {
        Self { body, call: Some((call, answer)) }
    }

    /// Ends an answer for which there is no memory.
    fn refuse(&mut self, error: &Error) -> Result<Frame<Bytes>, Status> {
        *self = Self::default();
        let mut trailers = HeaderMap::new();
        status::status(error).add_header(&mut trailers)?;
        Ok(Frame::trailers(trailers))
    }
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if this.call.as_ref().is_some_and(|(call, _)| call.is_full(context)) {
            return Poll::Pending;
        }
        let frame = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
            Some(Ok(frame)) => frame.into_data(),
            end => {
                this.call = None;
                return Poll::Ready(end);
            }
        };
        let (Ok(bytes), Some((call, answer))) = (&frame, &this.call) else {
            this.call = None;
            return Poll::Ready(Some(Ok(frame.map_or_else(|other| other, Frame::data))));
        };
        let counted = if *answer == AnswerCost::Shared { bytes.len().min(SHARED) } else { bytes.len() };
        let counted = call.hand_to_http2(bytes.clone(), counted, *answer != AnswerCost::Own);
        Poll::Ready(Some(match counted {
            Ok(bytes) => Ok(Frame::data(bytes)),
            Err(error) => this.refuse(&error),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt as _;
    use http_body::Body as _;

    use super::*;
    use crate::budget::{Budget, Limits, Resource};

    /// An endless answer of parts of this size.
    struct Endless(usize);

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(Some(Ok(Frame::data(vec![0; self.0].into()))))
        }
    }

    struct Test {
        budget: Budget,
        download: Download,
    }

    impl Test {
        fn new(part: usize, limit: usize, answer: AnswerCost) -> Self {
            let budget = Budget::new(Limits { bytes: limit, ..Limits::NONE }, Limits::NONE);
            let (head, ()) = http::Request::new(()).into_parts();
            let call = Call::begin(&budget.account(), &head).unwrap();
            Self { budget, download: Download::new(Body::new(Endless(part)), call, answer) }
        }

        async fn next(&mut self) -> Frame<Bytes> {
            poll_fn(|context| Pin::new(&mut self.download).poll_frame(context)).await.unwrap().unwrap()
        }

        /// All parts that HTTP/2 gets while it sends nothing, at most a thousand.
        fn all(&mut self) -> Vec<Bytes> {
            std::iter::from_fn(|| self.next().now_or_never()?.into_data().ok()).take(1000).collect()
        }

        fn used(&self) -> usize {
            self.budget.used(Resource::Bytes)
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_not_sent_is_counted_and_bounded_and_goes_on_when_it_is_sent() {
        for (part, answer) in [(7, AnswerCost::Open), (300, AnswerCost::Shared), (4_000, AnswerCost::Own)] {
            let mut test = Test::new(part, 1_000_000, answer);
            let idle = test.used();
            let held = test.all();
            assert!((10..=130).contains(&held.len()), "{} of {part}", held.len());
            let counted = test.used() - idle;
            assert!((50_000..70_000).contains(&counted), "{counted}");
            let (more, ()) = tokio::join!(test.next(), async { drop(held) });
            assert_eq!(more.into_data().unwrap().len(), part);
            assert_eq!(test.used(), idle);
        }
    }

    #[tokio::test]
    async fn a_call_is_under_way_until_its_answer_is_sent() {
        let mut test = Test::new(100, 1_000_000, AnswerCost::Own);
        let part = test.next().await;
        test.download = Download::default();
        assert_eq!(test.budget.used(Resource::Streams), 1);
        drop(part);
        assert_eq!((test.budget.used(Resource::Streams), test.used()), (0, 0));
    }

    #[tokio::test]
    async fn a_large_part_that_is_shared_counts_where_it_is_shared() {
        let mut test = Test::new(1_000_000, 100_000, AnswerCost::Shared);
        let idle = test.used();
        let part = test.next().await;
        assert!(test.used() - idle < 1_000);
        drop(part);
    }

    #[tokio::test]
    async fn at_the_limit_a_new_answer_is_refused_and_an_open_stream_waits() {
        let mut own = Test::new(200_000, 100_000, AnswerCost::Own);
        let end = own.next().await.into_trailers().unwrap();
        assert_eq!(Status::from_header_map(&end).unwrap().code(), status::code(&Resource::Bytes.exceeded(0)));
        let mut standing = Test::new(200_000, 100_000, AnswerCost::Open);
        let held = standing.all();
        assert_eq!((held.len(), standing.used() > 200_000), (1, true));
        let (more, ()) = tokio::join!(standing.next(), async { drop(held) });
        assert!(more.is_data());
    }
}
