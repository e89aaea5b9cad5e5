//! A proxy in front of ZooKeeper that keeps some of its notifications to itself: what no network does, but a server with a
//! bug may.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rollcall_wire::{Decoder, ReplyHeader, WatcherEvent, xid};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::wait::{SOON, check, eventually};

/// Between clients that connect to [`address`](Self::address) and one server. Dropping it cuts everything.
#[derive(Debug)]
pub struct Swallower {
    address: SocketAddr,
    paths: Paths,
    _accepting: JoinSet<()>,
}

/// The paths whose next notification does not pass.
type Paths = Arc<Mutex<BTreeSet<String>>>;

impl Swallower {
    /// A proxy in front of `server`. Everything passes.
    ///
    /// # Panics
    /// When it can't listen.
    pub async fn start(server: SocketAddr) -> Swallower {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("it listens");
        let (paths, mut accepting) = (Paths::default(), JoinSet::new());
        accepting.spawn(accept(listener, server, paths.clone()));
        Swallower { address, paths, _accepting: accepting }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Swallows the next notification of a path.
    pub fn swallow(&self, path: String) {
        self.paths.lock().unwrap().insert(path);
    }

    /// Waits until all is swallowed that is to be.
    pub async fn has_swallowed(&self) {
        eventually("the notifications are swallowed", SOON, async || {
            let left = self.paths.lock().unwrap().clone();
            check(left.is_empty(), || format!("{left:?}"))
        })
        .await;
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, paths: Paths) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let paths = paths.clone();
        connections.spawn(async move {
            let server = TcpStream::connect(server).await?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            let (mut from_client, to_client) = client.into_split();
            let (from_server, mut to_server) = server.into_split();
            // Whichever side ends first, the other is cut.
            tokio::select! {
                ended = tokio::io::copy(&mut from_client, &mut to_server) => ended.map(drop),
                ended = pass_answers(from_server, to_client, &paths) => ended,
            }
        });
    }
}

/// Passes whole frames.
async fn pass_answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, paths: &Paths) -> std::io::Result<()> {
    loop {
        let length = from.read_u32().await?;
        let mut frame = vec![0; usize::try_from(length).expect("a length")];
        from.read_exact(&mut frame).await?;
        let is_swallowed = notified(&frame).is_some_and(|path| paths.lock().unwrap().remove(&path));
        if !is_swallowed {
            to.write_all(&[&length.to_be_bytes()[..], &frame].concat()).await?;
        }
    }
}

/// The path of a notification.
fn notified(frame: &[u8]) -> Option<String> {
    let mut frame = Decoder::new(frame.to_vec().into());
    let header = ReplyHeader::decode(&mut frame).ok()?;
    (header.xid == xid::NOTIFICATION).then(|| WatcherEvent::decode(&mut frame).ok())?.map(|event| event.path)
}
