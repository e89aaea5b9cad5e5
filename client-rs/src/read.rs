//! Get: lookups.

use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rollcall_proto::v1;
use tokio::time::Instant;

use crate::choice::FOREVER;
use crate::client::{Attempt, Call, Client};
use crate::error::{Error, Failure};
use crate::node::{Lookup, Node, duration_to_proto};
use crate::seen::Seen;

/// A builder of a lookup: from [`Client::get`].
#[derive(Debug, Clone)]
#[must_use = "nothing is read before it is awaited"]
pub struct Get {
    client: Client,
    request: v1::GetRequest,
    wait: Duration,
}

impl Client {
    /// Reads a node and its children with their data. Await it:
    ///
    /// ```no_run
    /// # async fn example(client: rollcall::Client) -> Result<(), rollcall::Error> {
    /// let ssh = client.get("/services/ssh").await?;
    /// for (name, child) in &ssh.node.children {
    ///     println!("{name}: {:?}", child.value);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A path that does not exist is an answer too: `node.exists` is false. Long lists are read page by page, and show
    /// one revision.
    ///
    /// - Ordering: the answer comes from the replica's memory, which is at most a moment behind ZooKeeper while that
    ///   can be reached. It is never older than the answers that this client got before, of any call and any replica:
    ///   anything that it has just written or registered is there. Anything that it has just deleted, released or taken
    ///   down is gone, on the replica that did it. A replica that does not get there within about 2 seconds answers
    ///   with `stale`. A replica of an earlier version, during an upgrade, knows only its own answers. Ask for
    ///   [`latest`](Get::latest) to see the acknowledged writes of others.
    /// - Without ZooKeeper a replica answers from memory, and the answer is `stale`. Another replica is asked first, in
    ///   case it has ZooKeeper.
    /// - Connection loss: another replica is asked, for as long as the client's time-out allows.
    /// - Cancellation: dropping the future is safe.
    pub fn get(&self, path: impl Into<String>) -> Get {
        let request = v1::GetRequest { path: path.into(), ..Default::default() };
        Get { client: self.clone(), request, wait: Duration::ZERO }
    }
}

impl Get {
    /// Reads everything below the node; names are then relative paths such as `a/b`.
    pub fn recursive(mut self) -> Self {
        self.request.recursive = true;
        self
    }

    /// Sees every write that was acknowledged earlier, at the cost of a round trip to ZooKeeper.
    pub fn latest(mut self) -> Self {
        self.request.consistency = v1::Consistency::Latest.into();
        self
    }

    /// Waits until the node has a child, for at most this time; then the answer is the present state.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    async fn send(self) -> Result<Lookup, Error> {
        let Self { client, request, wait } = self;
        let patience = client.shared().patience;
        // The time counts from the first question, also when another replica is asked once more.
        let until = Instant::now() + wait.min(FOREVER);
        let left = || until.saturating_duration_since(Instant::now());
        let call = || Call::read(&request.path).held_for(left());
        let look = |attempt: Attempt| {
            let bound = attempt.deadline.saturating_duration_since(Instant::now());
            let wait = left().min(bound.saturating_sub(patience / 2));
            let wait = (!wait.is_zero()).then(|| duration_to_proto(wait));
            let seen = client.replicas().seen().clone();
            let (index, request) = (attempt.index(), v1::GetRequest { wait, ..request.clone() });
            async move {
                let (lookup, is_reset) = gather(attempt, seen, request).await?;
                // If ZooKeeper itself went back, no replica knows more.
                Ok((lookup, (!is_reset).then_some(index)))
            }
        };
        let mut answer = client.call(call(), look).await;
        if let Ok((Lookup { stale: true, .. }, Some(index))) = answer
            && client.replicas().found_better(index).await
            && let Ok(found) = client.call(call(), look).await
        {
            answer = Ok(found);
        }
        match answer {
            Ok((lookup, _)) => {
                if client.shared().cache.is_some() {
                    client.remember(request.recursive, Arc::new(lookup.clone())).await;
                }
                Ok(lookup)
            }
            // The last known answer is no answer to a `latest` lookup.
            Err(error) if error.is_unavailable() && request.consistency() != v1::Consistency::Latest => {
                client.cached(&request.path, request.recursive).ok_or(error)
            }
            Err(error) => Err(error),
        }
    }
}

/// Reads all pages from one replica, since they belong to one of its states. The second value is true if ZooKeeper has
/// lost transactions that were known before.
async fn gather(attempt: Attempt, seen: Seen, mut request: v1::GetRequest) -> Result<(Lookup, bool), Failure> {
    let (mut lookup, mut is_reset) = (None::<Lookup>, false);
    let known = seen.ask(&mut request);
    loop {
        let mut answer = attempt.bounded(attempt.stub().get(request.clone())).await?;
        seen.note_answer(known, &answer);
        is_reset |= answer.reset;
        let token = std::mem::take(&mut answer.next_page_token);
        match &mut lookup {
            None => lookup = Some(Lookup::from_proto(answer)),
            Some(lookup) => {
                let page = answer.node.map(Node::from_proto).unwrap_or_default();
                lookup.node.children.extend(page.children);
                lookup.stale |= answer.stale;
            }
        }
        match lookup {
            Some(lookup) if token.is_empty() => return Ok((lookup, is_reset)),
            _ => (request.page_token, request.wait) = (token, None),
        }
    }
}

impl IntoFuture for Get {
    type Output = Result<Lookup, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// # Errors
    /// [`Error::Unreachable`]. [`Error::Refused`]: the path is not valid, it may not be read, or ZooKeeper is away and
    /// no replica remembers the path.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}
