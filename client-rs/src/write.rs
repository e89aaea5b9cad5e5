//! Put and Delete: durable nodes.

use std::future::IntoFuture;
use std::pin::Pin;

use rollcall_proto::v1;
use serde::Serialize;

use crate::client::{Attempt, Call, Client};
use crate::error::Error;
use crate::node::Stat;
use crate::value::{Value, check_size};

/// A builder of a write: from [`Client::put`].
#[derive(Debug, Clone)]
#[must_use = "nothing is written before it is awaited"]
pub struct Put {
    client: Client,
    path: String,
    value: Result<Option<Value>, Error>,
    expected_version: Option<i32>,
    create_only: bool,
}

/// A builder of a deletion: from [`Client::delete`].
#[derive(Debug, Clone)]
#[must_use = "nothing is deleted before it is awaited"]
pub struct Delete {
    client: Client,
    request: v1::DeleteRequest,
}

impl Client {
    /// Writes a durable node, such as a service's configuration, and creates it and its parents where they are missing.
    /// Without a value the node is empty. Await it. The answer is the node's new [`Stat`], whose version a later
    /// [`if_version`](Put::if_version) expects.
    ///
    /// - Ordering: ZooKeeper has acknowledged the write before the answer. A later lookup of this client sees the
    ///   write, and so does a `latest` lookup of any client.
    /// - Connection loss: a write that was certainly not made is tried at another replica. One that may have been made
    ///   ends with [`Error::OutcomeUnknown`]: read before you write again.
    /// - Cancellation: dropping the future leaves the outcome unknown.
    pub fn put(&self, path: impl Into<String>) -> Put {
        Put { client: self.clone(), path: path.into(), value: Ok(None), expected_version: None, create_only: false }
    }

    /// Deletes a durable node. Await it.
    ///
    /// Ordering, connection loss and cancellation: as for [`Client::put`].
    pub fn delete(&self, path: impl Into<String>) -> Delete {
        let request = v1::DeleteRequest { path: path.into(), ..Default::default() };
        Delete { client: self.clone(), request }
    }
}

impl Put {
    /// The data of the node: anything that serializes to a JSON object. The server adds the key `created`.
    pub fn data(mut self, data: impl Serialize) -> Self {
        self.value = Value::from_data(data).map(Some);
        self
    }

    /// The value of the node: text, bytes or data.
    pub fn value(mut self, value: impl Into<Value>) -> Self {
        self.value = Ok(Some(value.into()));
        self
    }

    /// Writes only if the node exists and has this version.
    pub fn if_version(mut self, version: i32) -> Self {
        self.expected_version = Some(version);
        self
    }

    /// Writes only if there is no node yet.
    pub fn create_only(mut self) -> Self {
        self.create_only = true;
        self
    }

    async fn send(self) -> Result<Stat, Error> {
        let value = self.value?.map(Value::into_proto).transpose()?;
        check_size(&self.path, value.as_ref())?;
        let request = v1::PutRequest {
            path: self.path,
            value,
            expected_version: self.expected_version,
            create_only: self.create_only,
        };
        let put = |attempt: Attempt| {
            let request = request.clone();
            async move { attempt.bounded(attempt.stub().put(request)).await }
        };
        let answer = self.client.call(Call::write(&request.path), put).await?;
        self.client.replicas().seen().note_stat(answer.stat.as_ref());
        Ok(answer.stat.map(Stat::from_proto).unwrap_or_default())
    }
}

impl Delete {
    /// Deletes only if the node has this version.
    pub fn if_version(mut self, version: i32) -> Self {
        self.request.expected_version = Some(version);
        self
    }

    /// Deletes everything below the node too.
    pub fn recursive(mut self) -> Self {
        self.request.recursive = true;
        self
    }

    async fn send(self) -> Result<(), Error> {
        let Self { client, request } = self;
        let delete = |attempt: Attempt| {
            let request = request.clone();
            async move { attempt.bounded(attempt.stub().delete(request)).await }
        };
        client.call(Call::write(&request.path), delete).await.map(|_| ())
    }
}

impl IntoFuture for Put {
    type Output = Result<Stat, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// # Errors
    /// [`Error::Invalid`]: the data is not a JSON object. [`Error::Refused`] with the reasons `VersionMismatch`,
    /// `NodeExists`, `NoNode`, `ValueTooLarge`, `HasRegistrations` and those of every call. [`Error::OutcomeUnknown`].
    /// [`Error::Unreachable`]: nothing was written.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl IntoFuture for Delete {
    type Output = Result<(), Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// # Errors
    /// [`Error::Refused`] with the reasons `NoNode`, `VersionMismatch`, `NotEmpty`, `HasRegistrations` and those of
    /// every call. [`Error::OutcomeUnknown`]. [`Error::Unreachable`]: nothing was deleted.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}
