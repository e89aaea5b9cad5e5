//! Watch: a path and its changes.

mod assemble;
mod follow;
mod update;
mod view;

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::stream::{self, Stream, StreamExt as _};
use rollcall_proto::v1;

pub use self::update::Update;
pub use self::view::View;

use self::follow::Following;
use crate::client::Client;
use crate::error::Error;

/// A builder of a watch: from [`Client::watch`].
#[derive(Debug, Clone)]
#[must_use = "nothing is watched before `stream` or `view` is called"]
pub struct Watch {
    client: Client,
    request: v1::WatchRequest,
}

impl Client {
    /// Watches a path and its children; the path need not exist.
    ///
    /// [`stream`](Watch::stream) gives every change, [`view`](Watch::view) the present state at any time. Both go on
    /// for ever. When a replica stops or dies, they go on at another from the last revision, so that no change is
    /// missed or repeated and the state never goes back.
    ///
    /// ```no_run
    /// # async fn example(client: rollcall::Client) -> Result<(), rollcall::Error> {
    /// let mut ssh = client.watch("/services/ssh").view().await?;
    /// loop {
    ///     println!("{:?}", ssh.current().node.children.keys());
    ///     ssh.changed().await?;
    /// }
    /// # }
    /// ```
    pub fn watch(&self, path: impl Into<String>) -> Watch {
        let request = v1::WatchRequest { path: path.into(), ..Default::default() };
        Watch { client: self.clone(), request }
    }
}

impl Watch {
    /// Watches everything below the node; names are then relative paths such as `a/b`.
    pub fn recursive(mut self) -> Self {
        self.request.recursive = true;
        self
    }

    /// Begins after this revision, of an earlier lookup or update, instead of with a snapshot. For
    /// [`stream`](Watch::stream).
    pub fn since(mut self, revision: i64) -> Self {
        self.request.since_revision = revision;
        self
    }

    /// Every update, in order. Nothing is sent before the stream is first polled.
    ///
    /// - Errors: only those that going on can't mend, such as a path that is not valid or may not be read. The error is
    ///   the last item.
    /// - Ordering: revisions rise. The parts of large updates are joined.
    /// - Connection loss: see [`Client::watch`]. While no replica can be reached, the stream yields [`Update::Stale`],
    ///   and waits.
    /// - A slow reader gets fewer and larger updates.
    /// - Cancellation: dropping the stream ends the watch.
    #[must_use]
    pub fn stream(self) -> Updates {
        let following = Following::new(self.client, self.request);
        let updates = stream::unfold(following, |mut following| async move {
            let next = following.next().await?;
            Some((next, following))
        });
        Updates(updates.boxed())
    }

    /// The present state at any time. A task of its own keeps it current until the last clone of the view is dropped.
    ///
    /// The view is ready as soon as the first state is known. If no replica answers in time, and the client has a
    /// [cache file](crate::Connect::cache_file) that knows the path, the view begins with that state, `stale`.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when no replica answers in time; [`Error::Refused`] when the path is not valid or may not
    /// be read.
    pub async fn view(self) -> Result<View, Error> {
        View::start(self.client, self.request).await
    }
}

/// The updates of a watch: a [`Stream`].
pub struct Updates(Pin<Box<dyn Stream<Item = Result<Update, Error>> + Send>>);

impl Updates {
    /// The next update; `None` after an error.
    ///
    /// # Errors
    /// Those that going on can't mend.
    ///
    /// # Cancellation
    /// Safe: nothing is lost.
    pub async fn next(&mut self) -> Option<Result<Update, Error>> {
        self.0.next().await
    }
}

impl Stream for Updates {
    type Item = Result<Update, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

impl std::fmt::Debug for Updates {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Updates").finish_non_exhaustive()
    }
}
