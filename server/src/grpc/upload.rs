//! The bodies of requests. Their bytes are counted as they arrive, and a request that has to be complete has to arrive
//! in time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;

use super::call::Call;
use super::message::Lengths;
use super::pace::Unread;
use super::times::{CROWDED, LAST_LOOK, REQUEST_TIME, REQUEST_TIMEOUT};
use crate::contact::Arriving;
use crate::error::Error;

/// Number of bytes that a connection must have sent for its requests to count as making progress.
const PROGRESS: usize = 4 * 1024;
/// Maximum number of bytes that a reflection stream may ask. Its server answers with the question, twice.
const REFLECTION_BYTES: usize = 64 * 1024;

/// How a call uses its request.
#[derive(Debug)]
pub(super) enum RequestForm {
    /// One message, kept as long as the call.
    Single,
    /// Register: any number of messages, at any time. Each is handed on.
    Many,
    /// Reflection: any number of messages, for a limited time.
    Reflection { _places: [OwnedSemaphorePermit; 2] },
}

/// The body of a request.
pub(super) struct Upload {
    body: Body,
    form: RequestForm,
    patience: UploadPatience,
    /// Set while there is no memory for bytes that have arrived on an open stream. Most streams never wait.
    wait: Option<HeldUpRead>,
    /// Number of bytes that are kept.
    kept: usize,
    lengths: Lengths,
    call: Arc<Call>,
    unread: Arc<Unread>,
}

/// An open stream that is not read, except for the frame that shows that something has arrived.
struct HeldUpRead {
    /// The frame that has arrived.
    frame: Frame<Bytes>,
    /// When memory is checked again.
    look: Pin<Box<Sleep>>,
    _held_back: Option<Arriving>,
}

/// The time that the server waits for a request.
struct UploadPatience {
    began: Instant,
    /// Set on the first wait; most requests never wait.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Number of bytes that the connection's calls had read at the last look.
    read: usize,
    is_last_look: bool,
}

impl Upload {
    pub(super) fn new(body: Body, form: RequestForm, call: Arc<Call>, unread: Arc<Unread>) -> Self {
        let patience = UploadPatience::new(&unread);
        Self { body, form, patience, wait: None, kept: 0, lengths: Lengths::default(), call, unread }
    }

    fn count(&mut self, data: &[u8]) -> Result<(), Error> {
        if !data.is_empty() {
            self.unread.is_read(data.len());
        }
        self.kept += data.len();
        match self.form {
            RequestForm::Single => self.call.keep(self.kept),
            RequestForm::Many => {
                self.lengths.pass(data);
                self.call.keep_open(self.kept);
                Ok(())
            }
            RequestForm::Reflection { .. } if self.kept > REFLECTION_BYTES => {
                let limit = REFLECTION_BYTES as u64;
                let what = "the size of a reflection stream's requests, in bytes,";
                Err(Error::LimitExceeded { reason: "TOO_MANY_BYTES", what, limit })
            }
            RequestForm::Reflection { .. } => {
                self.patience = UploadPatience::new(&self.unread);
                self.call.keep(self.kept)
            }
        }
    }

    /// Reads more of a Register stream: its reader has handed on every complete message.
    ///
    /// The reader keeps a buffer as large as the largest message, which counts as long as the stream lives. When no
    /// memory is left even for open streams, the stream is not read; its client then counts as heard only if there is
    /// something to read.
    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let kept = self.lengths.unfinished().max(self.lengths.largest());
        if kept != self.kept {
            self.kept = kept;
            self.call.keep_open(kept);
        }
        let mut wait = match self.wait.take() {
            Some(wait) => wait,
            None => match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) if self.call.is_exhausted() => {
                    HeldUpRead { frame, look: Box::pin(sleep(CROWDED)), _held_back: self.call.held_back() }
                }
                next => return Poll::Ready(next),
            },
        };
        while self.call.is_exhausted() {
            if wait.look.as_mut().poll(context).is_pending() {
                self.wait = Some(wait);
                return Poll::Pending;
            }
            wait.look.as_mut().reset(Instant::now() + CROWDED);
        }
        Poll::Ready(Some(Ok(wait.frame)))
    }
}

impl UploadPatience {
    fn new(unread: &Unread) -> Self {
        Self { began: Instant::now(), alarm: None, read: unread.bytes(), is_last_look: false }
    }

    /// Whether the wait is over: nothing has arrived on the connection for a while, or the request takes too long.
    fn is_over(&mut self, unread: &Unread, context: &mut Context<'_>) -> bool {
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(self.began + REQUEST_TIME)));
        while alarm.as_mut().poll(context).is_ready() {
            let (now, read) = (Instant::now(), unread.bytes());
            // The requests of a slow connection take turns: one may make no progress for long while others do.
            if read.wrapping_sub(self.read) >= PROGRESS && now < self.began + REQUEST_TIMEOUT {
                (self.read, self.is_last_look) = (read, false);
                alarm.as_mut().reset(self.began + REQUEST_TIMEOUT.min(now - self.began + REQUEST_TIME));
            } else if self.is_last_look {
                return true;
            } else {
                self.is_last_look = true;
                alarm.as_mut().reset(now + LAST_LOOK);
            }
        }
        false
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let polled = match this.form {
            RequestForm::Many => this.poll_open(context),
            RequestForm::Single | RequestForm::Reflection { .. } => Pin::new(&mut this.body).poll_frame(context),
        };
        let Poll::Ready(frame) = polled else {
            return match this.form {
                RequestForm::Single if this.patience.is_over(&this.unread, context) => {
                    let error = Error::RequestUnfinished { after: this.patience.began.elapsed() };
                    Poll::Ready(Some(Err(this.call.refuse(error))))
                }
                // This looks like a half-close by the client.
                RequestForm::Reflection { .. } if this.patience.is_over(&this.unread, context) => Poll::Ready(None),
                _ => Poll::Pending,
            };
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(error) = this.count(data)
        {
            return Poll::Ready(Some(Err(this.call.refuse(error))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.wait.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio::time::sleep;

    use super::*;
    use crate::budget::{Account, Budget, Limits, Resource};
    use crate::contact::Heard;

    /// A body that arrives when a test says so.
    struct Slow(mpsc::UnboundedReceiver<usize>);

    impl http_body::Body for Slow {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_recv(context).map(|next| next.map(|length| Ok(Frame::data(vec![1; length].into()))))
        }
    }

    struct Test {
        upload: Upload,
        sender: mpsc::UnboundedSender<usize>,
        unread: Arc<Unread>,
    }

    impl Test {
        fn new(form: RequestForm, account: &Account) -> Self {
            let (sender, receiver) = mpsc::unbounded_channel();
            let (head, ()) = http::Request::new(()).into_parts();
            let (call, unread) = (Call::begin(account, &head).unwrap(), Arc::<Unread>::default());
            Self { upload: Upload::new(Body::new(Slow(receiver)), form, call, unread.clone()), sender, unread }
        }

        async fn next(&mut self) -> Result<Frame<Bytes>, Status> {
            poll_fn(|context| Pin::new(&mut self.upload).poll_frame(context)).await.expect("it goes on")
        }

        /// Returns after how many seconds the request is given up if `bytes` of it arrive every three seconds.
        async fn ends_after(mut self, bytes: usize) -> u64 {
            let began = Instant::now();
            let sender = self.sender.clone();
            let sending = async {
                loop {
                    sleep(Duration::from_secs(3)).await;
                    sender.send(bytes).unwrap();
                }
            };
            let reading = async { while self.next().await.is_ok() {} };
            tokio::select! { () = sending => {}, () = reading => {} }
            assert!(matches!(self.upload.call.refusal(), Some(Error::RequestUnfinished { .. })));
            began.elapsed().as_secs()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_waited_for_as_long_as_it_goes_on_but_not_for_ever() {
        let single = || Test::new(RequestForm::Single, &Account::unlimited());
        assert_eq!(single().ends_after(0).await, 11);
        assert_eq!(single().ends_after(100).await, 11, "byte by byte is no progress");
        assert_eq!(single().ends_after(4096).await, 121);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_its_turn_while_others_of_its_connection_go_on() {
        let test = Test::new(RequestForm::Single, &Account::unlimited());
        let unread = test.unread.clone();
        let others = async move {
            for _ in 0..10 {
                sleep(Duration::from_secs(5)).await;
                unread.is_read(16 * 1024);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = others => {},
            after = test.ends_after(0) => assert!((55..=75).contains(&after), "{after}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_was_stopped_looks_once_more() {
        let mut test = Test::new(RequestForm::Single, &Account::unlimited());
        let sender = test.sender.clone();
        tokio::select! {
            frame = test.next() => panic!("{frame:?}"),
            () = sleep(Duration::from_secs(1)) => {}
        }
        // Nothing is polled meanwhile. Bytes that have arrived are read a little later.
        tokio::time::advance(Duration::from_secs(600)).await;
        tokio::spawn(async move {
            sleep(LAST_LOOK / 2).await;
            sender.send(7).unwrap();
        });
        assert_eq!(test.next().await.unwrap().into_data().unwrap().len(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_register_stream_is_not_read_while_nothing_is_left_and_counts_its_largest_message() {
        let budget = Budget::new(Limits { bytes: 80_000, ..Limits::NONE }, Limits::NONE);
        let account = budget.account();
        let mut test = Test::new(RequestForm::Many, &account);
        let (begun, full) = (Instant::now(), account.take(Resource::Bytes, 70_000).unwrap());
        let heard = Heard::new(begun);
        test.upload.call.is_heard_by(heard.clone());
        // Bytes that have arrived count, whether or not they fit.
        test.sender.send(30_000).unwrap();
        assert!(test.next().await.is_ok());
        assert!(account.is_exhausted(Resource::Bytes));
        tokio::select! {
            frame = test.next() => panic!("{frame:?}"),
            () = sleep(Duration::from_secs(60)) => {}
        }
        assert_eq!(heard.last(Instant::now()), begun, "nothing is unread");
        test.sender.send(7).unwrap();
        tokio::select! {
            frame = test.next() => panic!("{frame:?}"),
            () = sleep(Duration::from_secs(60)) => {}
        }
        let now = Instant::now();
        assert_eq!(heard.last(now), now, "what its client says is not read");
        drop(full);
        assert!(test.next().await.is_ok());
        let read = Instant::now();
        sleep(Duration::from_secs(60)).await;
        assert!(heard.last(Instant::now()) == read && read > begun, "and then it is");
    }
}
