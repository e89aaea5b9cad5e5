//! A TCP proxy that fails on command, like a broken network between two programs, and otherwise passes all bytes
//! unchanged.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::wait::{SOON, check, eventually, soon};
use crate::zookeeper::free_address;

/// How bytes pass, on open connections and on new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// All bytes pass.
    Pass,
    /// No bytes pass, in either direction, and nothing closes. Bytes on their way arrive later.
    Stall,
    /// The client's bytes pass; the answers do not.
    StallAnswers,
    /// At most this many bytes a second pass, in each direction of each connection.
    Slow(u32),
}

/// Number of times a second that a slow connection lets bytes pass.
const SIPS: u32 = 20;

/// A proxy between clients that connect to [`address`](Proxy::address) and one server. Dropping it cuts all
/// connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    doors: mpsc::Sender<(Door, oneshot::Sender<()>)>,
    _accepting: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    server: SocketAddr,
    traffic: watch::Sender<Traffic>,
    /// The bytes of a client after which answers stall.
    trap: Mutex<Option<Vec<u8>>>,
    /// The bytes of a client that mark its connection.
    mark: Mutex<Option<Vec<u8>>>,
    /// Whether the answers on marked connections are held back.
    holds: watch::Sender<bool>,
    /// Counts the cuts. Every connection ends when it rises.
    cuts: watch::Sender<u64>,
    /// Counts the calls of [`half_open`](Proxy::half_open). Every open connection is silenced when it rises.
    silenced: watch::Sender<u64>,
    accepted: AtomicUsize,
    open: AtomicUsize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Open,
    Closed,
}

impl Proxy {
    /// Starts a proxy in front of `server`, which need not run yet. All bytes pass.
    ///
    /// # Panics
    /// When it can't listen.
    pub async fn start(server: SocketAddr) -> Proxy {
        let address = free_address();
        let listener = TcpListener::bind(address).await.expect("the address was free a moment ago");
        let shared = Arc::new(Shared {
            server,
            traffic: watch::Sender::new(Traffic::Pass),
            trap: Mutex::new(None),
            mark: Mutex::new(None),
            holds: watch::Sender::new(false),
            cuts: watch::Sender::new(0),
            silenced: watch::Sender::new(0),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        });
        let (doors, orders) = mpsc::channel(1);
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, address, orders, Arc::clone(&shared)));
        Proxy { address, shared, doors, _accepting: accepting }
    }

    /// The address for clients.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets how bytes pass from now on.
    pub fn set_traffic(&self, traffic: Traffic) {
        self.shared.traffic.send_replace(traffic);
    }

    /// Lets all bytes pass until a client sends `bytes`. These pass as well, but no later answer, as with
    /// [`Traffic::StallAnswers`].
    pub fn stall_answers_after(&self, bytes: &[u8]) {
        *self.shared.trap.lock().unwrap() = Some(bytes.to_vec());
    }

    /// From now on marks each connection on which a client sends `bytes`, until the connection ends.
    pub fn mark(&self, bytes: &[u8]) {
        *self.shared.mark.lock().unwrap() = Some(bytes.to_vec());
    }

    /// Holds back the answers on marked connections, or lets them pass again, in order.
    pub fn hold_marked(&self, holds: bool) {
        self.shared.holds.send_replace(holds);
    }

    /// Waits until answers stall.
    ///
    /// # Panics
    /// When they still pass after some time.
    pub async fn stalled(&self) {
        let mut traffic = self.shared.traffic.subscribe();
        let stalled = traffic.wait_for(|traffic| *traffic != Traffic::Pass);
        soon("the traffic stalls", stalled).await.expect("the proxy runs as long as its handle");
    }

    /// Closes every open connection. New ones are accepted.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Makes every open connection half-open: nothing passes on it any more, and neither side learns of the other's
    /// end, as when a machine has lost its power. New connections are accepted. [`cut`](Self::cut) ends the half-open
    /// ones.
    pub fn half_open(&self) {
        self.shared.silenced.send_modify(|silenced| *silenced += 1);
    }

    /// Refuses new connections, as if nothing listened. Open ones stay.
    pub async fn refuse(&self) {
        self.order(Door::Closed).await;
    }

    /// Accepts new connections again.
    pub async fn accept(&self) {
        self.order(Door::Open).await;
    }

    async fn order(&self, door: Door) {
        let (done, wait) = oneshot::channel();
        self.doors.send((door, done)).await.expect("the proxy runs as long as its handle");
        wait.await.expect("the proxy runs as long as its handle");
    }

    /// The number of connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// The number of open connections.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }
}

/// Moves `connections` connections, which may go through any of several proxies, to one of them.
///
/// # Panics
/// When they do not move in time.
pub async fn gather(ways: &[Proxy], onto: usize, connections: usize) {
    let others = || ways.iter().enumerate().filter(|(index, _)| *index != onto).map(|(_, way)| way);
    for way in others() {
        way.refuse().await;
        way.cut();
    }
    eventually("all connections go one way", 2 * SOON, async || {
        let open = ways[onto].open();
        check(open == connections, || format!("{open} of {connections} do"))
    })
    .await;
    for way in others() {
        way.accept().await;
    }
}

/// Binds the port again. An outgoing connection of another program may have the port for a while.
async fn bound_again(address: SocketAddr) -> TcpListener {
    let bound = async {
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => return listener,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => sleep(Duration::from_millis(50)).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    soon("the port is free again", bound).await
}

async fn accept(
    listener: TcpListener,
    address: SocketAddr,
    mut orders: mpsc::Receiver<(Door, oneshot::Sender<()>)>,
    shared: Arc<Shared>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let arrival = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            order = orders.recv() => {
                let Some((door, done)) = order else { return };
                if door == Door::Closed {
                    listener = None;
                } else if listener.is_none() {
                    listener = Some(bound_again(address).await);
                }
                // Nothing waits for it when the test has given up.
                let _ = done.send(());
            }
            Ok((client, _)) = arrival => {
                shared.accepted.fetch_add(1, Ordering::Relaxed);
                // Subscribed here, so that a cut just after the connect is not missed.
                let (cuts, silenced) = (shared.cuts.subscribe(), shared.silenced.subscribe());
                connections.spawn(serve(client, cuts, silenced, Arc::clone(&shared)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

impl Shared {
    /// Looks at a client's bytes before they pass.
    fn hear(&self, bytes: &[u8], is_marked: &AtomicBool) {
        let says = |words: &[u8]| bytes.windows(words.len()).any(|window| window == words);
        if self.mark.lock().unwrap().as_deref().is_some_and(says) {
            is_marked.store(true, Ordering::Relaxed);
        }
        let mut trap = self.trap.lock().unwrap();
        if trap.as_deref().is_some_and(says) {
            *trap = None;
            self.traffic.send_replace(Traffic::StallAnswers);
        }
    }
}

/// Counts a connection for as long as it lives.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve(
    client: TcpStream,
    mut cuts: watch::Receiver<u64>,
    mut silenced: watch::Receiver<u64>,
    shared: Arc<Shared>,
) {
    shared.open.fetch_add(1, Ordering::Relaxed);
    let _open = Open(Arc::clone(&shared));
    let relay = async {
        // An absent server looks like one that closes at once.
        let server = TcpStream::connect(shared.server).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let traffic = || shared.traffic.subscribe();
        let is_marked = AtomicBool::new(false);
        let hear = |bytes: &[u8]| shared.hear(bytes, &is_marked);
        let requests = pump(from_client, to_server, traffic(), hear, |traffic| traffic != Traffic::Stall, None);
        let held = Some((&is_marked, shared.holds.subscribe()));
        let answers = pump(
            from_server,
            to_client,
            traffic(),
            |_| {},
            |traffic| !matches!(traffic, Traffic::Stall | Traffic::StallAnswers),
            held,
        );
        tokio::try_join!(requests, answers)
    };
    let mut relay = std::pin::pin!(relay);
    tokio::select! {
        // Checked first, so that nothing passes after a cut, even if bytes are allowed to pass at the same moment.
        biased;
        _ = cuts.changed() => {}
        _ = silenced.changed() => {
            // The relay keeps both sockets, but moves no more bytes.
            let _ = cuts.changed().await;
        }
        _ = &mut relay => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut traffic: watch::Receiver<Traffic>,
    hear: impl Fn(&[u8]),
    passes: impl Fn(Traffic) -> bool,
    mut held: Option<(&AtomicBool, watch::Receiver<bool>)>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        hear(&buffer[..length]);
        if let Some((is_marked, holds)) = &mut held
            && is_marked.load(Ordering::Relaxed)
        {
            // The sender exists for as long as the proxy runs.
            drop(holds.wait_for(|holds| !holds).await);
        }
        let mut rest = &buffer[..length];
        loop {
            // The end of the stream is held back like bytes.
            let Ok(traffic) = traffic.wait_for(|traffic| passes(*traffic)).await.map(|traffic| *traffic) else {
                return Ok(());
            };
            if length == 0 {
                return to.shutdown().await;
            }
            let sip = match traffic {
                Traffic::Slow(bytes) => {
                    tokio::time::sleep(Duration::from_secs(1) / SIPS).await;
                    rest.len().min(usize::try_from(bytes / SIPS).unwrap_or(usize::MAX).max(1))
                }
                _ => rest.len(),
            };
            to.write_all(&rest[..sip]).await?;
            rest = &rest[sip..];
            if rest.is_empty() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    /// A server that sends back all that it receives.
    async fn echo() -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        (address, tasks)
    }

    async fn say(stream: &mut TcpStream, word: &str) -> std::io::Result<String> {
        stream.write_all(word.as_bytes()).await?;
        hear(stream, word.len()).await
    }

    async fn hear(stream: &mut TcpStream, length: usize) -> std::io::Result<String> {
        let mut answer = vec![0; length];
        soon("an echo", stream.read_exact(&mut answer)).await?;
        Ok(String::from_utf8(answer).unwrap())
    }

    #[tokio::test]
    async fn bytes_pass_until_the_connection_is_cut_and_again_on_the_next() {
        let (server, _tasks) = echo().await;
        let proxy = Proxy::start(server).await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(say(&mut stream, "one").await.unwrap(), "one");
        assert_eq!((proxy.accepted(), proxy.open()), (1, 1));
        proxy.cut();
        say(&mut stream, "two").await.unwrap_err();
        eventually("the connection is counted out", SOON, async || check(proxy.open() == 0, || "open".into())).await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(say(&mut stream, "three").await.unwrap(), "three");
        assert_eq!(proxy.accepted(), 2);
    }

    #[tokio::test]
    async fn refused_means_refused_until_it_accepts_again() {
        let (server, _tasks) = echo().await;
        let proxy = Proxy::start(server).await;
        let mut standing = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(say(&mut standing, "up").await.unwrap(), "up");
        proxy.refuse().await;
        TcpStream::connect(proxy.address()).await.unwrap_err();
        assert_eq!(say(&mut standing, "still").await.unwrap(), "still");
        proxy.accept().await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(say(&mut stream, "again").await.unwrap(), "again");
    }

    #[tokio::test]
    async fn stalled_bytes_arrive_when_the_stall_ends() {
        let (server, _tasks) = echo().await;
        let proxy = Proxy::start(server).await;
        for stall in [Traffic::Stall, Traffic::StallAnswers] {
            let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
            assert_eq!(say(&mut stream, "before").await.unwrap(), "before");
            proxy.set_traffic(stall);
            stream.write_all(b"late").await.unwrap();
            // To see that nothing arrives, the test can only wait a little.
            timeout(Duration::from_millis(100), stream.read_u8()).await.unwrap_err();
            proxy.set_traffic(Traffic::Pass);
            assert_eq!(hear(&mut stream, 4).await.unwrap(), "late");
        }
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        proxy.stall_answers_after(b"rap");
        assert_eq!(say(&mut stream, "before").await.unwrap(), "before");
        stream.write_all(b"a trap").await.unwrap();
        timeout(Duration::from_millis(100), stream.read_u8()).await.unwrap_err();
    }

    #[tokio::test]
    async fn marked_connections_are_held_back_and_others_are_not() {
        let (server, _tasks) = echo().await;
        let proxy = Proxy::start(server).await;
        let (mut marked, mut other) =
            (TcpStream::connect(proxy.address()).await.unwrap(), TcpStream::connect(proxy.address()).await.unwrap());
        proxy.mark(b"watch");
        assert_eq!(say(&mut marked, "a watch").await.unwrap(), "a watch");
        proxy.hold_marked(true);
        marked.write_all(b"late").await.unwrap();
        assert_eq!(say(&mut other, "at once").await.unwrap(), "at once");
        timeout(Duration::from_millis(100), marked.read_u8()).await.unwrap_err();
        proxy.hold_marked(false);
        assert_eq!(hear(&mut marked, 4).await.unwrap(), "late");
    }

    #[tokio::test]
    async fn a_half_open_connection_is_silent_and_new_ones_are_not() {
        let (server, _tasks) = echo().await;
        let proxy = Proxy::start(server).await;
        let mut dead = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(say(&mut dead, "before").await.unwrap(), "before");
        proxy.half_open();
        dead.write_all(b"nobody hears").await.unwrap();
        let mut alive = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(say(&mut alive, "alive").await.unwrap(), "alive");
        timeout(Duration::from_millis(100), dead.read_u8()).await.unwrap_err();
        drop(dead);
        assert_eq!(say(&mut alive, "still").await.unwrap(), "still");
        assert_eq!(proxy.open(), 2, "the server does not hear of the end");
        proxy.cut();
        eventually("both are cut", SOON, async || check(proxy.open() == 0, || "open".into())).await;
    }

    #[tokio::test]
    async fn a_slow_connection_takes_its_time() {
        let (server, _tasks) = echo().await;
        let proxy = Proxy::start(server).await;
        proxy.set_traffic(Traffic::Slow(2000));
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        let begun = Instant::now();
        let word = "x".repeat(1000);
        assert_eq!(say(&mut stream, &word).await.unwrap(), word);
        assert!(begun.elapsed() > Duration::from_millis(400), "{:?}", begun.elapsed());
    }
}
