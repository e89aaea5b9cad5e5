//! What a Register stream has asked, and the task of the registrations has not taken yet.
//!
//! That task has one queue for all. While it is full a stream goes on reading all the same: what is not read stays in h2,
//! which counts it for nobody and ends the connection, other streams and all, when it is too much. What is read meanwhile
//! is taken from the account; over its limit this stream ends alone.

use std::collections::VecDeque;
use std::sync::Arc;

use prost::Message as _;
use rollcall_proto::server::v1::RegisterRequest;
use tonic::{Request, Status, Streaming};

use super::admission::account;
use super::call::Call;
use crate::budget::{Account, Resource, Share};
use crate::error::{Error, short};

/// Memory that a message takes besides its bytes.
const MESSAGE: usize = 256;

/// The requests of one stream, in order.
pub(super) struct Backlog {
    messages: Streaming<RegisterRequest>,
    account: Account,
    /// Whose body the messages are.
    call: Option<Arc<Call>>,
    waiting: VecDeque<Waiting>,
    /// Nothing is read after an error, or after the end.
    is_over: bool,
}

struct Waiting {
    next: Result<Option<RegisterRequest>, Error>,
    _share: Option<Share>,
}

impl Backlog {
    pub(super) fn new(request: Request<Streaming<RegisterRequest>>) -> Self {
        let (account, call) = (account(&request), request.extensions().get().cloned());
        Self { messages: request.into_inner(), account, call, waiting: VecDeque::new(), is_over: false }
    }

    /// The next request; `None` at the end.
    ///
    /// # Errors
    /// When it can't be read, or was over a limit. Nothing follows.
    pub(super) async fn next(&mut self) -> Result<Option<RegisterRequest>, Error> {
        match self.waiting.pop_front() {
            Some(waiting) => waiting.next,
            None if self.is_over => Ok(None),
            None => self.messages.message().await.map_err(|status| self.read_error(&status)),
        }
    }

    /// Waits for something else, and reads on meanwhile.
    pub(super) async fn meanwhile<T>(&mut self, other: impl Future<Output = T>) -> T {
        tokio::pin!(other);
        loop {
            tokio::select! {
                biased;
                result = &mut other => return result,
                message = self.messages.message(), if !self.is_over => {
                    let waiting = self.keep(message.map_err(|status| self.read_error(&status)));
                    self.is_over = !matches!(waiting.next, Ok(Some(_)));
                    self.waiting.push_back(waiting);
                }
            }
        }
    }

    fn keep(&self, next: Result<Option<RegisterRequest>, Error>) -> Waiting {
        let Ok(Some(message)) = &next else { return Waiting { next, _share: None } };
        match self.account.take(Resource::Bytes, MESSAGE + message.encoded_len()) {
            Ok(share) => Waiting { next, _share: Some(share) },
            Err(error) => Waiting { next: Err(error), _share: None },
        }
    }

    /// Why a message could not be read: a limit of ours, or a fault of the client's.
    fn read_error(&self, status: &Status) -> Error {
        let refusal = self.call.as_ref().and_then(|call| call.refusal());
        let other = || Error::Protocol { field: "request", cause: short(status.message()).into_owned() };
        refusal.or_else(|| super::status::fault(status)).unwrap_or_else(other)
    }
}
