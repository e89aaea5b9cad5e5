//! Hostile clients, each bounded in time and in number, and the good citizen beside them.
//!
//! A [`Flood`] is one way to ask too much of a replica. It runs in a process of its own ([`child`]), at the lowest
//! priority, so that it takes little of the processors that it shares with the server. The [`citizen`] measures how a
//! flood affects other clients. The tests run every flood in a small size; `make bench` runs them in full.

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

/// The addresses of a server.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The gRPC address.
    pub grpc: SocketAddr,
    /// The address of metrics and health.
    pub http: SocketAddr,
}

/// The size of a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// A size that a test can wait for.
    Small,
    /// The size that the benchmark measures.
    Full,
}

/// The size and the duration of a flood.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    size: Size,
    /// The end of the repetitions of a flood that repeats itself.
    repeats_until: Instant,
    end: Instant,
}

impl Load {
    /// A flood that begins now, and takes at most `time`. A small flood that repeats itself takes a quarter of it. A
    /// flood that has to reach a number may take all of it, however busy the machine is, and ends soon after.
    pub fn new(size: Size, time: Duration) -> Load {
        let begin = Instant::now();
        let repeats = if size == Size::Small { time / 4 } else { time };
        Load { size, repeats_until: begin + repeats, end: begin + time }
    }

    /// Returns `small` in a test, `full` in the benchmark.
    pub(crate) fn count(&self, small: usize, full: usize) -> usize {
        match self.size {
            Size::Small => small,
            Size::Full => full,
        }
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.repeats_until
    }

    /// Holds the resources of the flood until its end.
    async fn rest(&self) {
        /// Time for which a small flood holds its resources.
        const BRIEFLY: Duration = Duration::from_secs(1);
        match self.size {
            Size::Small => sleep_until(self.repeats_until.max(Instant::now() + BRIEFLY)).await,
            Size::Full => sleep_until(self.end).await,
        }
    }
}

/// The statistics of a flood, for display.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicUsize,
    closed: AtomicUsize,
}

impl Tally {
    /// Counts `count` more requests or frames, depending on the flood.
    fn sent(&self, count: usize) {
        self.0.sent.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts a connection that the server has closed or refused.
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
            /// All floods.
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
    /// No flood, for comparison: two threads that spin. They send nothing to the server.
    Spin = "spin" by lives::spin;
    /// Four Register streams that unset unregistered paths, as fast as they may.
    Unset = "unset" by lives::unsets;
    /// One Register stream with registrations whose paths are 4 KB long.
    LongPaths = "long-paths" by lives::long_paths;
    /// 260,000 registrations, made and dropped.
    MassRegistrations = "mass-registrations" by lives::mass_registrations;
    /// 200 Register streams whose client reads no answer, with a path of 4 KB in every request.
    UnreadAnswers = "unread-answers" by lives::unread_answers;
    /// 20,000 Register streams of one connection that all send their keep-alives at the same moments, and one stream
    /// that sends 30,000 requests at once: an honest client.
    ManyStreams = "many-streams" by lives::many_streams;
    /// 8,000 Puts of 256 KiB to one path, all at once.
    Puts = "puts" by writes::puts;
    /// Puts of paths with 2,000 levels.
    DeepPuts = "deep-puts" by writes::deep_puts;
    /// Values with a million empty entries.
    BigStructs = "big-structs" by writes::big_structs;
    /// Trees that are created and at once deleted.
    RecursiveDeletes = "recursive-deletes" by writes::recursive_deletes;
    /// Unary calls that send headers, and no body.
    HeadersOnly = "headers-only" by calls::headers_only;
    /// Unary calls whose body is incomplete.
    PartialBodies = "partial-bodies" by calls::partial_bodies;
    /// Watch streams of the health service, and streams of the reflection service, by the tens of thousands.
    HealthStreams = "health-streams" by calls::health_streams;
    /// Calls that are cancelled in the packet that starts them.
    RapidResets = "rapid-resets" by calls::rapid_resets;
    /// Eight connections that ask for 2 MiB in one page, and cancel after 3 ms.
    Pages = "pages" by reads::pages;
    /// Pages of one nested value of 180 KB, cancelled at once.
    NestedPages = "nested-pages" by reads::nested_pages;
    /// 1,000 pages that are asked for and not read.
    ClosedWindow = "closed-window" by reads::closed_window;
    /// 1,000 requested pages that are not read.
    LatestGets = "latest-gets" by reads::latest_gets;
    /// Thousands of concurrent LATEST Gets.
    WatchChurn = "watch-churn" by reads::watch_churn;
    /// Watches that resume from a revision long past, and are cancelled.
    LargeView = "large-view" by reads::large_view;
    /// A client with 200 watches that is stopped.
    StoppedWatcher = "stopped-watcher" by reads::stopped_watcher;
    /// A client with 200 watches that is stopped.
    WatchedPaths = "watched-paths" by paths::watched_paths;
    /// 10,000 watched paths that do not exist.
    CancelledWatches = "cancelled-watches" by paths::cancelled_watches;
    /// 90,000 Gets of fresh paths over 40 connections, cancelled at once.
    CancelledGets = "cancelled-gets" by paths::cancelled_gets;
    /// DATA frames of one byte, and of none.
    SmallFrames = "small-frames" by frames::small_frames;
    /// PING, SETTINGS, SETTINGS ACK and PRIORITY frames.
    ControlFrames = "control-frames" by frames::control_frames;
    /// Calls with as many headers as the server allows.
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
    /// The flood with this name.
    pub fn named(name: &str) -> Option<Flood> {
        Flood::ALL.iter().copied().find(|flood| flood.name() == name)
    }

    /// Runs the flood until its time is over, against a server that is prepared for it. Errors of connections are part
    /// of it.
    pub async fn run(self, target: Target, load: Load) -> Tally {
        let tally = Tally::default();
        // The time limit also ends calls that hang because the server does not read.
        drop(timeout_at(load.end, self.done(target, load, &tally)).await);
        tally
    }
}

impl fmt::Display for Flood {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Runs the attack on `connections` connections at once, each repeatedly on a new connection, until the time is over.
async fn over_connections<Attack, Call>(connections: usize, target: Target, load: Load, tally: &Tally, attack: Attack)
where
    Attack: Fn(Arc<Peer>, Tally, usize) -> Call + Clone + Send + 'static,
    Call: Future<Output = Result<()>> + Send,
{
    over_windows(connections, WINDOW, target, load, tally, attack).await;
}

/// Like [`over_connections`], with a receive window of `window` for each stream.
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
                    // Avoids spinning when nothing listens any more.
                    sleep(Duration::from_millis(10)).await;
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}
