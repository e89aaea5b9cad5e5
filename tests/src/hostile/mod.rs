//! Clients that mean harm, each bounded in time and in number, and the good citizen beside them.
//!
//! A [`Flood`] is one way to ask too much of a replica. It runs as a process of its own ([`child`]), at the lowest priority,
//! so that it takes little of the processors that it shares with the server. The [`citizen`] measures what others notice
//! of it. The tests run every flood in a small size; `make bench` runs them in full.

mod calls;
pub mod child;
pub mod citizen;
mod connections;
mod frames;
mod lives;
mod locks;
mod paths;
mod peer;
mod reads;
mod requests;
mod setup;
pub mod wire;
mod writes;

use std::fmt;
use std::io::Result;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use self::peer::Peer;
use self::wire::WINDOW;
pub use setup::prepare;

/// Where a server listens.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// gRPC.
    pub grpc: SocketAddr,
    /// Metrics and health.
    pub http: SocketAddr,
}

/// How much a flood does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// As much as a test can wait for.
    Small,
    /// What the benchmark measures.
    Full,
}

/// How much a flood does, and until when.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    size: Size,
    /// A flood that repeats itself does so until then.
    repeats_until: Instant,
    end: Instant,
}

impl Load {
    /// A flood that begins now, and takes so long at most. A small one that repeats itself takes a quarter of it; one that
    /// has a number to reach has all of it, however busy the machine is, and ends soon after.
    pub fn new(size: Size, time: Duration) -> Load {
        let begin = Instant::now();
        let repeats = if size == Size::Small { time / 4 } else { time };
        Load { size, repeats_until: begin + repeats, end: begin + time }
    }

    /// The one number in a test, the other in the benchmark.
    pub(crate) fn count(&self, small: usize, full: usize) -> usize {
        match self.size {
            Size::Small => small,
            Size::Full => full,
        }
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.repeats_until
    }

    /// Waits until the flood is to end: what it holds stays until then.
    async fn rest(&self) {
        /// How long a small flood holds what it has.
        const BRIEFLY: Duration = Duration::from_secs(1);
        match self.size {
            Size::Small => sleep_until(self.repeats_until.max(Instant::now() + BRIEFLY)).await,
            Size::Full => sleep_until(self.end).await,
        }
    }
}

/// What a flood has done, to be shown.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicUsize,
    closed: AtomicUsize,
}

impl Tally {
    /// So much more of whatever the flood is made of has been sent.
    fn sent(&self, count: usize) {
        self.0.sent.fetch_add(count, Ordering::Relaxed);
    }

    /// The server has closed, or refused, a connection.
    fn closed(&self) {
        self.0.closed.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { sent, closed } = &*self.0;
        write!(
            formatter,
            "{} sent, {} connections closed",
            sent.load(Ordering::Relaxed),
            closed.load(Ordering::Relaxed)
        )
    }
}

macro_rules! floods {
    ($($(#[doc = $doc:literal])* $flood:ident = $name:literal by $run:path;)*) => {
        /// A way to ask too much of a replica.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Flood {
            $($(#[doc = $doc])* $flood,)*
        }

        impl Flood {
            /// All.
            pub const ALL: &[Flood] = &[$(Flood::$flood),*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Flood::$flood => $name,)*
                }
            }

            async fn done(self, target: Target, load: Load, tally: &Tally) {
                match self {
                    $(Flood::$flood => $run(target, load, tally).await,)*
                }
            }
        }
    };
}

floods! {
    /// No flood: two threads that spin, for comparison. They ask nothing of the server.
    Spin = "spin" by lives::spin;
    /// Four Register streams that take down, as fast as they may, what is not registered.
    Unset = "unset" by lives::unsets;
    /// One Register stream with registrations whose paths have 4 KB.
    LongPaths = "long-paths" by lives::long_paths;
    /// 260,000 registrations, made and dropped.
    MassRegistrations = "mass-registrations" by lives::mass_registrations;
    /// 200 Register streams whose client reads no answer, each with 4 KB of path in every request.
    UnreadAnswers = "unread-answers" by lives::unread_answers;
    /// 20,000 Register streams of one connection that all keep alive at the same moments, and one that sends 30,000
    /// requests at once: an honest client.
    ManyStreams = "many-streams" by lives::many_streams;
    /// 8,000 Puts of 256 KiB to one path, all at once.
    Puts = "puts" by writes::puts;
    /// Puts of 2,000 levels.
    DeepPuts = "deep-puts" by writes::deep_puts;
    /// Values with a million empty entries.
    BigStructs = "big-structs" by writes::big_structs;
    /// Trees that are made and deleted at once.
    RecursiveDeletes = "recursive-deletes" by writes::recursive_deletes;
    /// Unary calls that send their headers, and no body.
    HeadersOnly = "headers-only" by calls::headers_only;
    /// Unary calls whose body stops short of its end.
    PartialBodies = "partial-bodies" by calls::partial_bodies;
    /// Watch streams of the health service, and streams of the reflection service, by tens of thousands.
    HealthStreams = "health-streams" by calls::health_streams;
    /// Calls that are cancelled in the packet that begins them.
    RapidResets = "rapid-resets" by calls::rapid_resets;
    /// Eight connections that ask for 2 MiB in one page, and cancel after 3 ms.
    Pages = "pages" by reads::pages;
    /// Pages of one nested value of 180 KB, cancelled at once.
    NestedPages = "nested-pages" by reads::nested_pages;
    /// 1,000 pages that are asked for and not read.
    ClosedWindow = "closed-window" by reads::closed_window;
    /// Reads of the latest state, by thousands at once.
    LatestGets = "latest-gets" by reads::latest_gets;
    /// Watches that go on from a revision long past, and are cancelled.
    WatchChurn = "watch-churn" by reads::watch_churn;
    /// Recursive reads and watches of a tree of a million nodes.
    LargeView = "large-view" by reads::large_view;
    /// A client with 200 watches that is stopped.
    StoppedWatcher = "stopped-watcher" by reads::stopped_watcher;
    /// 10,000 absent paths that are watched.
    WatchedPaths = "watched-paths" by paths::watched_paths;
    /// 400,000 watches of fresh paths, cancelled at once.
    CancelledWatches = "cancelled-watches" by paths::cancelled_watches;
    /// 90,000 Gets of fresh paths over 40 connections, cancelled at once.
    CancelledGets = "cancelled-gets" by paths::cancelled_gets;
    /// DATA frames of one byte, and of none.
    SmallFrames = "small-frames" by frames::small_frames;
    /// PING, SETTINGS, PRIORITY and WINDOW_UPDATE frames.
    ControlFrames = "control-frames" by frames::control_frames;
    /// Calls with as many headers as are let through.
    LargeHeaders = "large-headers" by frames::large_headers;
    /// Headers that never end.
    Continuations = "continuations" by frames::continuations;
    /// Connections without a preface, with half of one, and with HTTP/1 heads that never end, on both ports.
    HalfOpen = "half-open" by connections::half_open;
    /// Connections that open, make one call, and close.
    Reconnects = "reconnects" by connections::reconnects;
    /// Releases of locks that do not exist.
    UnknownReleases = "unknown-releases" by locks::unknown_releases;
    /// Lock requests that are cancelled at once.
    CancelledLocks = "cancelled-locks" by locks::cancelled_locks;
    /// Descriptions of a lock with a long queue.
    DescribedQueue = "described-queue" by locks::described_queue;
}

impl Flood {
    /// The flood of this name.
    pub fn named(name: &str) -> Option<Flood> {
        Flood::ALL.iter().copied().find(|flood| flood.name() == name)
    }

    /// Runs it against a server that is prepared for it, until its time is over. Errors of connections belong to it.
    pub async fn run(self, target: Target, load: Load) -> Tally {
        let tally = Tally::default();
        // What hangs, because the server does not read, hangs no longer than this.
        drop(timeout_at(load.end, self.done(target, load, &tally)).await);
        tally
    }
}

impl fmt::Display for Flood {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Does the same on so many connections at once, each again and again on a new connection, until the time is over.
async fn over_connections<Attack, Call>(connections: usize, target: Target, load: Load, tally: &Tally, attack: Attack)
where
    Attack: Fn(Arc<Peer>, Tally, usize) -> Call + Clone + Send + 'static,
    Call: Future<Output = Result<()>> + Send,
{
    over_windows(connections, WINDOW, target, load, tally, attack).await;
}

/// The same, with a window for each stream of the server.
async fn over_windows<Attack, Call>(
    connections: usize,
    window: u32,
    target: Target,
    load: Load,
    tally: &Tally,
    attack: Attack,
) where
    Attack: Fn(Arc<Peer>, Tally, usize) -> Call + Clone + Send + 'static,
    Call: Future<Output = Result<()>> + Send,
{
    let mut tasks = JoinSet::new();
    for number in 0..connections {
        let (attack, tally) = (attack.clone(), tally.clone());
        tasks.spawn(async move {
            while load.goes_on() {
                let done = match Peer::open(target.grpc, window).await {
                    Ok(peer) => attack(Arc::new(peer), tally.clone(), number).await,
                    Err(error) => Err(error),
                };
                if done.is_err() {
                    tally.closed();
                    // Not to spin where nobody listens any more.
                    sleep(Duration::from_millis(10)).await;
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}
