//! Rollcall's Register streams, as clients use them.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rollcall_proto::v1::register_request::Request;
use rollcall_proto::v1::register_response::Response;
use rollcall_proto::v1::{CloseSession, KeepAlive, OpenSession, RegisterRequest, RegisterResponse, Registered};
use rollcall_tests::client::{Client, span};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Maximum number of requests that wait to be sent on one stream.
const QUEUE: usize = 128;

/// An open Register stream. Dropping it cancels the call.
#[derive(Debug)]
pub(crate) struct Stream {
    requests: mpsc::Sender<RegisterRequest>,
    responses: Streaming<RegisterResponse>,
}

impl Stream {
    /// Opens a stream, with the first requests in flight: at most 128.
    pub(crate) async fn open(client: &mut Client, first: impl IntoIterator<Item = Request>) -> anyhow::Result<Stream> {
        let (requests, receiver) = mpsc::channel(QUEUE);
        for request in first {
            requests.try_send(message(request)).context("too many first requests")?;
        }
        let responses = client.register(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Stream { requests, responses })
    }

    /// Sends a request.
    pub(crate) async fn send(&self, request: Request) -> anyhow::Result<()> {
        self.requests.send(message(request)).await.context("the stream ended")
    }

    /// Waits until one more path is registered.
    pub(crate) async fn registered(&mut self) -> anyhow::Result<Registered> {
        loop {
            match self.responses.message().await?.context("the stream ended")?.response {
                Some(Response::Registered(registered)) => return Ok(registered),
                Some(Response::Opened(_) | Response::Pending(_) | Response::KeptAlive(_)) => {}
                other => bail!("not registered: {other:?}"),
            }
        }
    }

    /// Waits until one path is unregistered.
    pub(crate) async fn unregistered(&mut self) -> anyhow::Result<()> {
        match self.responses.message().await?.context("the stream ended")?.response {
            Some(Response::Unregistered(_)) => Ok(()),
            other => bail!("not unregistered: {other:?}"),
        }
    }

    /// Ends all registrations with `close`, and waits until that is done.
    pub(crate) async fn close(mut self, registrations: usize) -> anyhow::Result<()> {
        self.send(Request::Close(CloseSession {})).await?;
        let mut gone = 0;
        while let Some(message) = self.responses.message().await? {
            gone += usize::from(matches!(message.response, Some(Response::Unregistered(_))));
        }
        ensure!(gone == registrations, "{gone} of {registrations} were taken down");
        Ok(())
    }

    /// The two sides of the stream: the sender of keep-alives, and the responses.
    pub(crate) fn split(self) -> (mpsc::Sender<RegisterRequest>, Streaming<RegisterResponse>) {
        (self.requests, self.responses)
    }
}

fn message(request: Request) -> RegisterRequest {
    RegisterRequest { request: Some(request) }
}

/// The `open` of a client whose registrations are to outlive a broken stream.
pub(crate) fn open_with_ttl(ttl: Duration) -> Request {
    Request::Open(OpenSession { ttl: Some(span(ttl)), ..Default::default() })
}

/// A keep-alive.
pub(crate) fn keep_alive() -> RegisterRequest {
    message(Request::KeepAlive(KeepAlive {}))
}

/// Runs `work` for each item, all at once, and waits until all is done. The results are in no order.
pub(crate) async fn together<T, Output, Work>(
    all: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> Work,
) -> anyhow::Result<Vec<Output>>
where
    Output: Send + 'static,
    Work: Future<Output = anyhow::Result<Output>> + Send + 'static,
{
    let mut working: JoinSet<_> = all.into_iter().map(work).collect();
    let mut done = Vec::with_capacity(working.len());
    while let Some(one) = working.join_next().await {
        done.push(one.context("a client panicked")??);
    }
    Ok(done)
}

/// Opens a stream for each of `requests`, all at once, over the connections in turn, and waits until each has its one
/// registration. The streams are returned in no order.
pub(crate) async fn open_all<Requests>(
    clients: &[Client],
    requests: impl IntoIterator<Item = Requests>,
) -> anyhow::Result<Vec<(Stream, Registered)>>
where
    Requests: IntoIterator<Item = Request, IntoIter: Send> + Send + 'static,
{
    together(requests.into_iter().zip(clients.iter().cycle().cloned()), |(requests, mut client)| async move {
        let mut stream = Stream::open(&mut client, requests).await?;
        let registered = stream.registered().await?;
        Ok((stream, registered))
    })
    .await
}

/// Closes streams with one registration each, all at once, and waits until nothing of them is left.
pub(crate) async fn close_all(streams: impl IntoIterator<Item = Stream>) -> anyhow::Result<()> {
    together(streams, |stream| stream.close(1)).await.map(|_| ())
}
