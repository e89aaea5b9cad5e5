//! Watch: a path as it changes.

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

/// A watch to be made: from [`Client::watch`].
#[derive(Debug, Clone)]
#[must_use = "nothing is watched before `stream` or `view` is called"]
pub struct Watch {
    client: Client,
    request: v1::WatchRequest,
}

impl Client {
    /// Watches a path and its children; it need not exist.
    ///
    /// [`stream`](Watch::stream) gives every change, [`view`](Watch::view) the present state at any time. Both go on for
    /// ever: when a replica stops or dies they go on at another, from the last revision, so that nothing is missed or told
    /// twice, and the state never goes back.
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

    /// Begins after this revision, of an earlier lookup or update, and not with a snapshot. For [`stream`](Watch::stream).
    pub fn since(mut self, revision: i64) -> Self {
        self.request.since_revision = revision;
        self
    }

    /// Every update, in order. Nothing is sent before the stream is polled first.
    ///
    /// - Errors: only what can't be mended by going on, such as a path that is none or may not be read; it is the last item.
    /// - Ordering: revisions rise. The parts of large updates are put together.
    /// - Connection loss: see [`Client::watch`]. While no replica can be reached the stream tells [`Update::Stale`], and waits.
    /// - A reader that is slow gets fewer and larger updates.
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

    /// The present state at any time, kept current by a task of its own until the last clone of the view is dropped.
    ///
    /// It is there as soon as the first state is. If no replica answers in time, and the client has a
    /// [cache file](crate::Connect::cache_file) that knows the path, the view begins with that, `stale`.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when no replica answers in time; [`Error::Refused`] when the path is none or may not be read.
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
    /// What can't be mended by going on.
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
