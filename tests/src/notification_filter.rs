//! A proxy in front of ZooKeeper that drops some of its notifications. No network does that, but a server with a bug
//! may.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rollcall_wire::{Decoder, ReplyHeader, WatcherEvent, xid};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::wait::{SOON, check, eventually};

/// A proxy between clients that connect to [`address`](Self::address) and one server. Dropping it cuts all connections.
#[derive(Debug)]
pub struct NotificationFilter {
    address: SocketAddr,
    paths: Paths,
    _accepting: JoinSet<()>,
}

/// The paths whose next notification is dropped.
type Paths = Arc<Mutex<BTreeSet<String>>>;

impl NotificationFilter {
    /// Starts a proxy in front of `server`. All frames pass.
    ///
    /// # Panics
    /// When it can't listen.
    pub async fn start(server: SocketAddr) -> NotificationFilter {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("it listens");
        let (paths, mut accepting) = (Paths::default(), JoinSet::new());
        accepting.spawn(accept(listener, server, paths.clone()));
        NotificationFilter { address, paths, _accepting: accepting }
    }

    /// The address for clients.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Drops the next notification of a path.
    pub fn drop_next(&self, path: String) {
        self.paths.lock().unwrap().insert(path);
    }

    /// Waits until all chosen notifications have been dropped.
    pub async fn has_dropped(&self) {
        eventually("the notifications are dropped", SOON, async || {
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
            // When one side ends, the other is cut.
            tokio::select! {
                ended = tokio::io::copy(&mut from_client, &mut to_server) => ended.map(drop),
                ended = pass_answers(from_server, to_client, &paths) => ended,
            }
        });
    }
}

/// Passes answers frame by frame.
async fn pass_answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, paths: &Paths) -> std::io::Result<()> {
    loop {
        let length = from.read_u32().await?;
        let mut frame = vec![0; usize::try_from(length).expect("a length")];
        from.read_exact(&mut frame).await?;
        let is_dropped = notified(&frame).is_some_and(|path| paths.lock().unwrap().remove(&path));
        if !is_dropped {
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
