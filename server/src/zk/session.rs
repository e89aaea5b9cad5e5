//! One ZooKeeper session, kept up over any number of connections.
//!
//! Promises:
//! - Requests are sent in the order of the calls, pipelined. Without a connection nothing is sent, or kept for later:
//!   such a request fails with [`Error::NotSent`] at once.
//! - The session ends only when ZooKeeper says so; no clock of ours ends it. At least every 0.4 s it tries to
//!   reconnect, to all addresses of all servers in turn: see `connect`.
//! - A server that is behind what this session has seen is refused (by its own check of our last zxid). When all
//!   servers are, for longer than the session can have lived, they are asked whether it has ended: ZooKeeper was
//!   restored from a backup, or lost its data.
//! - If a server leaves a request unanswered for a third of the session time-out, and answers no other meanwhile, the
//!   session moves to another server: well before anything that rests on the session's evidence is in doubt for too
//!   long.
//! - Watch events reach [`Watches`] before the answer of any later read of the session does.
//!
//! This speaks the protocol itself, because the crate `zookeeper-client`, which the tests and the benchmark use as an
//! independent witness, can't keep these promises:
//!
//! - Its reconnection backs off without a cap, and it gives a session up by its own clock.
//! - A client that is cut off can't be told to stop, and later evicts the client that took its session up.
//! - It carries out requests whose caller has gone: they wait while it is disconnected.
//! - It hides the transaction of a multi, which is the generation of every node that the multi created.

mod connect;
mod pending;
mod reading;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rollcall_wire::{Encoder, MAX_FRAME, OpCode, Request, RequestHeader, xid};
use tokio::io::AsyncWriteExt as _;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

pub(crate) use self::pending::{Answer, KeptUntilAnswer};
use self::pending::{Identity, Pending};
use self::reading::ReadingSide;
use super::connection::FrameReader;
use super::server_addresses::ServerAddresses;
use super::watches::{Mailbox, Watches};
use super::{Config, Error};
use crate::clock;
use crate::types::{SessionId, Zxid};

/// Maximum number of requests that wait to be written; one more fails with [`Error::NotSent`].
const REQUEST_QUEUE: usize = 16_384;
/// Number of bytes after which a write gathers no more requests.
const WRITE_CHUNK: usize = 128 * 1024;

/// The state of a session's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// No connection. The session may or may not exist.
    Down,
    /// Connected. Each connection has a larger number than the one before.
    Up(u64),
    /// ZooKeeper said that the session has ended. Final.
    Expired,
}

/// A handle to one session. When the last handle is dropped, the connection ends, and the session is left to
/// ZooKeeper's time-out.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    commands: mpsc::Sender<SessionCommand>,
    link: watch::Receiver<Link>,
    evidence: watch::Receiver<Instant>,
    watches: Arc<Watches>,
    identity: Arc<Mutex<Identity>>,
    config: Arc<Config>,
}

#[derive(Debug)]
struct SessionCommand {
    request: Request,
    /// The connection that the caller saw; the request is for no other.
    epoch: u64,
    /// The mailbox whose events are handed over with the answer.
    mailbox: Option<Arc<Mailbox>>,
    held: Option<KeptUntilAnswer>,
    reply: oneshot::Sender<Result<Answer, Error>>,
}

impl Session {
    /// Starts a session, which connects in the background. The future is the session's life: it ends when the session
    /// has expired or all handles are gone.
    pub(super) fn start(
        config: Arc<Config>,
        watches: Arc<Watches>,
    ) -> (Self, impl Future<Output = ()> + Send + use<> + 'static) {
        let (commands, queue) = mpsc::channel(REQUEST_QUEUE);
        let (link_tx, link) = watch::channel(Link::Down);
        let (evidence_tx, evidence) = watch::channel(clock::now());
        let identity = Arc::new(Mutex::new(Identity {
            id: 0,
            password: Bytes::new(),
            timeout: config.session_timeout,
            last_zxid: 0,
            last_heard: None,
            server: None,
            silence: Duration::ZERO,
        }));
        let session = Self {
            commands,
            link,
            evidence,
            watches: watches.clone(),
            identity: identity.clone(),
            config: config.clone(),
        };
        let task = Task {
            server_addresses: ServerAddresses::new(config.resolver.clone()),
            server: None,
            config,
            queue,
            link: link_tx,
            evidence: evidence_tx,
            watches,
            identity,
            epoch: 0,
            next_xid: 1,
        };
        (session, task.run())
    }

    /// A session that counts as connected but takes no request, since its queue is full.
    #[cfg(test)]
    pub(super) fn full(connection: u64, watches: Arc<Watches>) -> Self {
        let (session, _) = Self::start(Arc::new(Config::of(SocketAddr::from(([127, 0, 0, 1], 1)))), watches);
        // A channel without a receiver takes nothing.
        let (commands, _) = mpsc::channel(1);
        Self { commands, link: watch::channel(Link::Up(connection)).1, ..session }
    }

    /// Sends a request at once; the future returns the answer.
    ///
    /// # Errors
    /// Every class of [`Error`]. A refusal of a part of a multi is an `Ok` answer, part by part.
    ///
    /// # Cancellation
    /// A request whose future was dropped before it was written is not sent; a request that was written is carried out.
    pub(crate) fn submit(
        &self,
        mut request: Request,
    ) -> impl Future<Output = Result<Answer, Error>> + Send + use<> + 'static {
        if !self.config.chroot.is_empty() {
            request.map_paths(&|path| self.config.outer(path));
        }
        let queued = self.enqueue(request, None, None, None);
        async move { queued?.await.unwrap_or(Err(Error::NotSent)) }
    }

    /// Like [`Session::submit`], but only on this connection: [`Error::NotSent`] if it is gone. With a mailbox, the
    /// answer carries the events that reached the mailbox before: exactly those that happened before a read, and no
    /// others. If nobody takes the answer, the events go back. `held` is kept until ZooKeeper has answered, even if
    /// nobody waits for the answer.
    pub(crate) fn submit_on(
        &self,
        connection: u64,
        mut request: Request,
        mailbox: Option<&Arc<Mailbox>>,
        held: Option<KeptUntilAnswer>,
    ) -> impl Future<Output = Result<Answer, Error>> + Send + use<> + 'static {
        if !self.config.chroot.is_empty() {
            request.map_paths(&|path| self.config.outer(path));
        }
        let queued = self.enqueue(request, Some(connection), mailbox.cloned(), held);
        async move { queued?.await.unwrap_or(Err(Error::NotSent)) }
    }

    /// Like [`Session::submit`], with paths as the servers know them: for nodes above the chroot.
    pub(super) async fn submit_outer(&self, request: Request) -> Result<Answer, Error> {
        self.enqueue(request, None, None, None)?.await.unwrap_or(Err(Error::NotSent))
    }

    fn enqueue(
        &self,
        request: Request,
        connection: Option<u64>,
        mailbox: Option<Arc<Mailbox>>,
        held: Option<KeptUntilAnswer>,
    ) -> Result<oneshot::Receiver<Result<Answer, Error>>, Error> {
        let epoch = match *self.link.borrow() {
            Link::Up(epoch) if connection.is_none_or(|connection| connection == epoch) => epoch,
            Link::Up(_) | Link::Down => return Err(Error::NotSent),
            Link::Expired => return Err(Error::SessionExpired),
        };
        // The paths contain the chroot by now.
        let size = request.encoded_len();
        if size > MAX_FRAME {
            return Err(Error::TooLarge(size));
        }
        let (reply, answer) = oneshot::channel();
        match self.commands.try_send(SessionCommand { request, epoch, mailbox, held, reply }) {
            Ok(()) => Ok(answer),
            Err(_) => Err(Error::NotSent),
        }
    }

    /// An upper bound of a request's size on the wire, in bytes, with the chroot that is put in front of its paths when
    /// it is submitted. Limits on the bytes of a multi count by this.
    pub(crate) fn wire_len(&self, request: &Request) -> usize {
        request.encoded_len() + self.config.chroot.len() * request.path_count()
    }

    /// The state of the connection, to read or to wait on.
    pub(crate) fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// Whether requests can be sent now.
    pub(crate) fn is_up(&self) -> bool {
        matches!(*self.link.borrow(), Link::Up(_))
    }

    /// Waits for a connection; `false` when the session has ended.
    pub(crate) async fn connected(&self) -> bool {
        let mut link = self.link.clone();
        let state = link.wait_for(|link| *link != Link::Down).await.map(|link| *link);
        matches!(state, Ok(Link::Up(_)))
    }

    /// The session's id; zero before the first connection.
    pub(crate) fn id(&self) -> SessionId {
        SessionId(self.identity.lock().id)
    }

    /// The server of its last connection.
    pub(super) fn server(&self) -> Option<SocketAddr> {
        self.identity.lock().server
    }

    /// The session time-out that ZooKeeper granted; before the first connection, the one asked for.
    pub(crate) fn timeout(&self) -> Duration {
        self.identity.lock().timeout
    }

    /// The time at which the last write that ZooKeeper carried out was sent; before the first write, the time at which
    /// the session was started. A ping or a read is no evidence of a session: a server that is cut off from the others
    /// answers both. Closed when the session has ended.
    pub(crate) fn evidence(&self) -> watch::Receiver<Instant> {
        self.evidence.clone()
    }

    /// The last transaction that this session knows of.
    pub(super) fn last_zxid(&self) -> Zxid {
        Zxid(self.identity.lock().last_zxid)
    }

    /// The last time that anything was received from the server, on any connection.
    pub(crate) fn last_heard(&self) -> Option<Instant> {
        self.identity.lock().last_heard
    }

    /// Time for which the server has sent nothing although it was asked. It counts only time in which this process
    /// looked for an answer and found none: a replica that was stopped, or that waits for a processor, does not blame
    /// the server.
    pub(crate) fn silence(&self) -> Duration {
        self.identity.lock().silence
    }

    /// The destinations of the session's watch events.
    pub(crate) fn watches(&self) -> &Arc<Watches> {
        &self.watches
    }
}

struct Task {
    config: Arc<Config>,
    server_addresses: ServerAddresses,
    /// The server of the last connection.
    server: Option<SocketAddr>,
    queue: mpsc::Receiver<SessionCommand>,
    link: watch::Sender<Link>,
    evidence: watch::Sender<Instant>,
    watches: Arc<Watches>,
    identity: Arc<Mutex<Identity>>,
    epoch: u64,
    next_xid: i32,
}

/// The reason why a connection has ended.
enum End {
    Broken(String),
    HandlesGone,
}

impl Task {
    async fn run(mut self) {
        self.config.activation.requested().await;
        loop {
            let Some((reader, writer)) = self.connect().await else {
                if !self.queue.is_closed() {
                    tracing::warn!(
                        session = format_args!("{:#x}", self.identity.lock().id),
                        "zookeeper session expired"
                    );
                }
                self.link.send_replace(Link::Expired);
                self.refuse_queued(Error::SessionExpired);
                self.watches.connection_lost();
                return;
            };
            self.epoch = self.watches.connection_made();
            self.link.send_replace(Link::Up(self.epoch));
            let end = self.serve(reader, writer).await;
            self.link.send_replace(Link::Down);
            self.watches.connection_lost();
            match end {
                End::HandlesGone => return,
                End::Broken(cause) => {
                    tracing::info!(session = format_args!("{:#x}", self.identity.lock().id), cause, "connection lost");
                }
            }
        }
    }

    /// Answers the requests that got into the queue while the connection was lost.
    fn refuse_queued(&mut self, error: Error) {
        while let Ok(command) = self.queue.try_recv() {
            drop(command.reply.send(Err(error)));
        }
    }

    async fn serve(&mut self, reader: FrameReader<OwnedReadHalf>, writer: OwnedWriteHalf) -> End {
        let timeout = self.identity.lock().timeout;
        let pending = Mutex::new(VecDeque::new());
        let end = {
            let Self { watches, identity, evidence, config, queue, next_xid, epoch, .. } = self;
            let reading = ReadingSide { pending: &pending, watches, identity, evidence, config };
            let mut reading = pin!(reading.run(reader, timeout));
            let mut writing = pin!(write_requests(writer, &pending, queue, next_xid, *epoch, timeout));
            tokio::select! {
                cause = &mut reading => End::Broken(cause),
                end = &mut writing => end,
            }
        };
        self.identity.lock().silence = Duration::ZERO;
        for request in pending.lock().drain(..) {
            let Pending { reply, .. } = request;
            drop(reply.send(Err(Error::OutcomeUnknown)));
        }
        end
    }
}

/// Writes requests as they come, and a ping if none came for a third of the time-out.
async fn write_requests(
    mut writer: OwnedWriteHalf,
    pending: &Mutex<VecDeque<Pending>>,
    queue: &mut mpsc::Receiver<SessionCommand>,
    next_xid: &mut i32,
    epoch: u64,
    timeout: Duration,
) -> End {
    let mut encoder = Encoder::new();
    loop {
        match tokio::time::timeout(timeout / 3, queue.recv()).await {
            Ok(Some(command)) => {
                let mut next = Some(command);
                while let Some(command) = next {
                    write_request(command, &mut encoder, pending, next_xid, epoch);
                    next = if encoder.len() < WRITE_CHUNK { queue.try_recv().ok() } else { None };
                }
            }
            Ok(None) => return End::HandlesGone,
            Err(_) => encoder.frame(|encoder| {
                RequestHeader { xid: xid::PING, op_code: OpCode::Ping as i32 }.encode(encoder);
            }),
        }
        if !encoder.is_empty()
            && let Err(error) = writer.write_all(&encoder.take()).await
        {
            return End::Broken(error.to_string());
        }
    }
}

fn write_request(
    command: SessionCommand,
    encoder: &mut Encoder,
    pending: &Mutex<VecDeque<Pending>>,
    next_xid: &mut i32,
    epoch: u64,
) {
    let SessionCommand { request, epoch: meant_for, mailbox, held, reply } = command;
    if reply.is_closed() {
        return;
    }
    if meant_for != epoch {
        drop(reply.send(Err(Error::NotSent)));
        return;
    }
    let xid = *next_xid;
    *next_xid = next_xid.checked_add(1).unwrap_or(1);
    let op_code = request.op_code();
    encoder.frame(|encoder| {
        RequestHeader { xid, op_code: op_code as i32 }.encode(encoder);
        request.encode(encoder);
    });
    pending.lock().push_back(Pending { xid, op_code, sent_at: clock::now(), mailbox, held, reply });
}

#[cfg(test)]
mod tests;
