//! The watchers: a task for each connection counts the messages of all its watchers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Way;
use super::target::Target;
use crate::http2::{Connection, Side};

/// Maximum number of watches begun before the first of them are answered: all requests have to fit into the window that
/// a server opens at first.
const AT_ONCE: usize = 500;
/// Maximum number of connections opened at the same time: fewer than a server's backlog holds.
const CONNECTING: usize = 64;
/// Time after which any step fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// The watchers. Dropping closes their connections.
pub(super) struct Crowd {
    tasks: JoinSet<anyhow::Result<Connection>>,
    shared: Arc<Shared>,
    reached: mpsc::Receiver<Instant>,
    way: Way,
    watchers: usize,
    connections: usize,
}

struct Shared {
    /// All messages that have arrived.
    heard: AtomicUsize,
    /// Number of messages once every watcher has received the change.
    expected: AtomicUsize,
    over: Notify,
    reached: mpsc::Sender<Instant>,
}

impl Crowd {
    /// Starts the watchers and waits until each has received the present state. A stream is sent no more than the
    /// window in total.
    pub(super) async fn gather(
        target: &Target,
        way: Way,
        watchers: usize,
        connections: usize,
        window: u32,
    ) -> anyhow::Result<Crowd> {
        let (sender, reached) = mpsc::channel(1);
        let (heard, expected) = (AtomicUsize::new(0), AtomicUsize::new(watchers));
        let shared = Arc::new(Shared { heard, expected, over: Notify::new(), reached: sender });
        let (method, request) = target.watch();
        let opening = stream::iter(0..connections).map(|_| async {
            let mut connection = Connection::open_with(target.address(), window).await?;
            begin(&mut connection, way, method, &request, watchers / connections, &shared).await?;
            anyhow::Ok(connection)
        });
        let opened: Vec<Connection> = opening.buffer_unordered(CONNECTING).try_collect().await?;
        let mut tasks = JoinSet::new();
        for connection in opened {
            let shared = shared.clone();
            tasks.spawn(async move { stay(connection, &shared).await });
        }
        let mut crowd = Crowd { tasks, shared, reached, way, watchers, connections };
        crowd.all_have_heard().await.context("not everyone was told what there is")?;
        Ok(crowd)
    }

    /// Expects one more change for each watcher.
    pub(super) fn expect_one_each(&self) {
        self.shared.expected.fetch_add(self.watchers, Ordering::SeqCst);
    }

    /// Waits until every watcher has received the last change, and returns when that was.
    pub(super) async fn all_have_heard(&mut self) -> anyhow::Result<Instant> {
        let waiting = async {
            tokio::select! {
                reached = self.reached.recv() => reached.context("nobody listens"),
                Some(ended) = self.tasks.join_next() => match ended.context("a reader panicked")? {
                    Ok(_) => bail!("a reader has gone"),
                    Err(error) => Err(error),
                },
            }
        };
        timeout(PATIENCE, waiting).await.with_context(|| {
            let (heard, expected) = (&self.shared.heard, &self.shared.expected);
            format!("{} messages instead of {}", heard.load(Ordering::SeqCst), expected.load(Ordering::SeqCst))
        })?
    }

    /// Checks that each watcher has received each of `changes` changes exactly once.
    pub(super) async fn leave(mut self, changes: usize) -> anyhow::Result<()> {
        self.shared.over.notify_waiters();
        let all_each = 1 + changes;
        let expected = match self.way {
            Way::Etcd => all_each * self.watchers / self.connections,
            Way::Rollcall | Way::EtcdStreams => all_each,
        };
        while let Some(ended) = self.tasks.join_next().await {
            let connection = ended.context("a reader panicked")??;
            let wrong = connection.told().find(|told| *told != expected);
            ensure!(wrong.is_none(), "a stream was told {wrong:?} messages instead of {expected}");
        }
        Ok(())
    }
}

/// Begins the watches of one connection, each of which is answered with one message.
async fn begin(
    connection: &mut Connection,
    way: Way,
    method: &str,
    request: &[u8],
    count: usize,
    shared: &Shared,
) -> anyhow::Result<()> {
    let (mut begun, mut answered, mut shared_stream) = (0, 0, None);
    while answered < count {
        while begun < count && begun - answered < AT_ONCE {
            match (way, shared_stream) {
                (Way::Rollcall, _) => drop(connection.call(method, request, Side::Closed)),
                (Way::EtcdStreams, _) => drop(connection.call(method, request, Side::Open)),
                (Way::Etcd, None) => shared_stream = Some(connection.call(method, request, Side::Open)),
                (Way::Etcd, Some(call)) => connection.say(call, request),
            }
            begun += 1;
        }
        connection.flush().await?;
        answered += hear(connection, shared).await?;
    }
    Ok(())
}

async fn stay(mut connection: Connection, shared: &Shared) -> anyhow::Result<Connection> {
    let mut over = std::pin::pin!(shared.over.notified());
    loop {
        tokio::select! {
            heard = hear(&mut connection, shared) => drop(heard?),
            () = &mut over => return Ok(connection),
        }
    }
}

async fn hear(connection: &mut Connection, shared: &Shared) -> anyhow::Result<usize> {
    let heard = connection.hear().await?;
    ensure!(heard.ended == 0, "a watch is over");
    let before = shared.heard.fetch_add(heard.messages, Ordering::SeqCst);
    let expected = shared.expected.load(Ordering::SeqCst);
    if (before..before + heard.messages).contains(&(expected - 1)) {
        // The channel has room: the last instant is taken from it before more is expected.
        shared.reached.try_send(Instant::now()).context("more was heard than was to be")?;
    }
    Ok(heard.messages)
}
