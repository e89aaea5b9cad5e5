//! One ZooKeeper session, kept up over any number of connections.
//!
//! Promises:
//! - Requests are sent in the order of the calls, pipelined. Nothing is sent, or kept for later, while there is no
//!   connection: such a request is [`Error::NotSent`] at once.
//! - The session is over only when ZooKeeper says so; no clock of ours ends it. Reconnection is tried at least every
//!   0.4 s, on all addresses of all servers in turn: see `connect`.
//! - A server that is behind what this session has seen is refused (by its own check of our last zxid). When that is
//!   all of them, for longer than the session can have lived, they are asked whether it is over: ZooKeeper was restored
//!   from a backup, or lost its data.
//! - A server that leaves a request without an answer for a third of the session time-out, and gives none to any other
//!   meanwhile, is left for another one: well before what rests on the session's evidence is in doubt for too long.
//! - Watch events reach [`Watches`] before the answer of any later read of the session does.
//!
//! This speaks the protocol itself: the crate `zookeeper-client` can't cap its reconnection or stop a client that is
//! cut off, carries out requests whose caller has gone, and hides the zxid of a write (ARCHITECTURE.md, "ZooKeeper").

mod connect;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rollcall_wire::{
    Decoder, Encoder, ErrorCode, MAX_FRAME, Malformed, OpCode, ReplyHeader, Request, RequestHeader, Response,
    WatcherEvent, xid,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::connection::{Frame, FrameReader};
use super::names::Names;
use super::watches::{Batch, Event, Mailbox, Watches};
use super::{Config, Error};
use crate::mutex::lock;
use crate::types::{SessionId, Zxid};

/// How many requests may wait to be written; one more is [`Error::NotSent`].
const QUEUE: usize = 16_384;
/// How many bytes of requests are gathered for one write.
const WRITE_CHUNK: usize = 128 * 1024;
/// A longer answer is decoded on a blocking thread, in bytes: one of 64 MiB may name millions of children.
const DECODED_AT_ONCE: usize = 128 * 1024;

/// The state of a session's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// No connection. The session may or may not stand.
    Down,
    /// Connected; each connection has a larger number.
    Up(u64),
    /// ZooKeeper said that the session is over. Final.
    Expired,
}

/// What ZooKeeper answered.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Of a write: its transaction id. Of a read: the last transaction that the server had applied.
    pub(crate) zxid: Zxid,
    /// The body.
    pub(crate) response: Response,
    /// With [`Session::submit_on`] and a mailbox: the events that came before this answer. Empty otherwise.
    pub(crate) events: Batch,
}

/// A handle on one session; the last one's drop ends the connection, and leaves the session to ZooKeeper's time-out.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    commands: mpsc::Sender<Command>,
    link: watch::Receiver<Link>,
    evidence: watch::Receiver<Instant>,
    watches: Arc<Watches>,
    identity: Arc<Mutex<Identity>>,
    config: Arc<Config>,
}

#[derive(Debug, Clone)]
struct Identity {
    id: i64,
    password: Bytes,
    timeout: Duration,
    last_zxid: i64,
    last_heard: Option<Instant>,
    /// Since when a request waits for its answer, and nothing was heard.
    silent_since: Option<Instant>,
}

#[derive(Debug)]
struct Command {
    request: Request,
    /// The connection that the caller saw; the request is for no other.
    epoch: u64,
    /// Whose events to hand over with the answer.
    mailbox: Option<Arc<Mailbox>>,
    reply: oneshot::Sender<Result<Answer, Error>>,
}

#[derive(Debug)]
struct Pending {
    xid: i32,
    op_code: OpCode,
    sent_at: Instant,
    mailbox: Option<Arc<Mailbox>>,
    reply: oneshot::Sender<Result<Answer, Error>>,
}

impl Session {
    /// Starts a session; it connects in the background. The future is the session's life: it is over when the session
    /// has expired or all handles are gone.
    pub(super) fn start(
        config: Arc<Config>,
        watches: Arc<Watches>,
    ) -> (Self, impl Future<Output = ()> + Send + use<> + 'static) {
        let (commands, queue) = mpsc::channel(QUEUE);
        let (link_tx, link) = watch::channel(Link::Down);
        let (evidence_tx, evidence) = watch::channel(Instant::now());
        let identity = Arc::new(Mutex::new(Identity {
            id: 0,
            password: Bytes::new(),
            timeout: config.session_timeout,
            last_zxid: 0,
            last_heard: None,
            silent_since: None,
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
            names: Names::new(config.resolver.clone()),
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

    /// A session that counts as connected, and takes no request: its queue is full.
    #[cfg(test)]
    pub(super) fn full(connection: u64, watches: Arc<Watches>) -> Self {
        let (session, _) = Self::start(Arc::new(Config::of(SocketAddr::from(([127, 0, 0, 1], 1)))), watches);
        // Without its receiver a channel takes nothing.
        let (commands, _) = mpsc::channel(1);
        Self { commands, link: watch::channel(Link::Up(connection)).1, ..session }
    }

    /// Sends a request, now; the future gives the answer.
    ///
    /// # Errors
    /// Every class of [`Error`]; a refusal of a multi's part is an `Ok` answer, part by part.
    ///
    /// # Cancellation
    /// A request whose future was dropped before it was written is not sent; one that was written is carried out.
    pub(crate) fn submit(
        &self,
        mut request: Request,
    ) -> impl Future<Output = Result<Answer, Error>> + Send + use<> + 'static {
        if !self.config.chroot.is_empty() {
            request.map_paths(&|path| self.config.outer(path));
        }
        let queued = self.enqueue(request, None, None);
        async move { queued?.await.unwrap_or(Err(Error::NotSent)) }
    }

    /// Like [`Session::submit`], on this connection or not at all: [`Error::NotSent`] when it is gone. With a mailbox,
    /// the answer carries the events that reached it before: exactly what happened before a read, and no more. If
    /// nobody takes the answer, they go back.
    pub(crate) fn submit_on(
        &self,
        connection: u64,
        mut request: Request,
        mailbox: Option<&Arc<Mailbox>>,
    ) -> impl Future<Output = Result<Answer, Error>> + Send + use<> + 'static {
        if !self.config.chroot.is_empty() {
            request.map_paths(&|path| self.config.outer(path));
        }
        let queued = self.enqueue(request, Some(connection), mailbox.cloned());
        async move { queued?.await.unwrap_or(Err(Error::NotSent)) }
    }

    /// Like [`Session::submit`], with paths as the servers know them: for what lies above the chroot.
    pub(super) async fn submit_outer(&self, request: Request) -> Result<Answer, Error> {
        self.enqueue(request, None, None)?.await.unwrap_or(Err(Error::NotSent))
    }

    fn enqueue(
        &self,
        request: Request,
        connection: Option<u64>,
        mailbox: Option<Arc<Mailbox>>,
    ) -> Result<oneshot::Receiver<Result<Answer, Error>>, Error> {
        let epoch = match *self.link.borrow() {
            Link::Up(epoch) if connection.is_none_or(|connection| connection == epoch) => epoch,
            Link::Up(_) | Link::Down => return Err(Error::NotSent),
            Link::Expired => return Err(Error::SessionExpired),
        };
        // The chroot is in front of its paths by now.
        let size = request.encoded_len();
        if size > MAX_FRAME {
            return Err(Error::TooLarge(size));
        }
        let (reply, answer) = oneshot::channel();
        match self.commands.try_send(Command { request, epoch, mailbox, reply }) {
            Ok(()) => Ok(answer),
            Err(_) => Err(Error::NotSent),
        }
    }

    /// An upper bound of what a request takes on the wire, in bytes: with the chroot, which is put in front of its paths
    /// when it is submitted. What bounds the bytes of a multi counts by this.
    pub(crate) fn wire_len(&self, request: &Request) -> usize {
        request.encoded_len() + self.config.chroot.len() * request.path_count()
    }

    /// The connection's state, to read or to wait on.
    pub(crate) fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// Whether requests can be sent now.
    pub(crate) fn is_up(&self) -> bool {
        matches!(*self.link.borrow(), Link::Up(_))
    }

    /// Waits for a connection; `false` when the session is over.
    pub(crate) async fn connected(&self) -> bool {
        let mut link = self.link.clone();
        let state = link.wait_for(|link| *link != Link::Down).await.map(|link| *link);
        matches!(state, Ok(Link::Up(_)))
    }

    /// The session's id; zero before the first connection.
    pub(crate) fn id(&self) -> SessionId {
        SessionId(lock(&self.identity).id)
    }

    /// The session time-out that ZooKeeper granted; before the first connection, the one asked for.
    pub(crate) fn timeout(&self) -> Duration {
        lock(&self.identity).timeout
    }

    /// When the last write was sent that ZooKeeper has carried out; before the first, when the session was started. A
    /// ping or a read is no evidence of a session: a server that is cut off from the others answers them. Closed when
    /// the session is over.
    pub(crate) fn evidence(&self) -> watch::Receiver<Instant> {
        self.evidence.clone()
    }

    /// The last transaction that this session knows of.
    pub(super) fn last_zxid(&self) -> Zxid {
        Zxid(lock(&self.identity).last_zxid)
    }

    /// When the server was last heard of, on any connection.
    pub(crate) fn last_heard(&self) -> Option<Instant> {
        lock(&self.identity).last_heard
    }

    /// Whether the server has said nothing for so long, though it was asked.
    pub(crate) fn is_silent(&self, time: Duration) -> bool {
        lock(&self.identity).silent_since.is_some_and(|since| since.elapsed() >= time)
    }

    /// Where the session's watch events arrive.
    pub(crate) fn watches(&self) -> &Arc<Watches> {
        &self.watches
    }
}

struct Task {
    config: Arc<Config>,
    names: Names,
    /// The server of the last connection.
    server: Option<SocketAddr>,
    queue: mpsc::Receiver<Command>,
    link: watch::Sender<Link>,
    evidence: watch::Sender<Instant>,
    watches: Arc<Watches>,
    identity: Arc<Mutex<Identity>>,
    epoch: u64,
    next_xid: i32,
}

/// Why a connection is no more.
enum End {
    Broken(String),
    HandlesGone,
}

impl Task {
    async fn run(mut self) {
        loop {
            let Some((reader, writer)) = self.connect().await else {
                if !self.queue.is_closed() {
                    tracing::warn!(
                        session = format_args!("{:#x}", lock(&self.identity).id),
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
                    tracing::info!(session = format_args!("{:#x}", lock(&self.identity).id), cause, "connection lost");
                }
            }
        }
    }

    /// Answers what slipped into the queue while the connection went.
    fn refuse_queued(&mut self, error: Error) {
        while let Ok(command) = self.queue.try_recv() {
            drop(command.reply.send(Err(error)));
        }
    }

    async fn serve(&mut self, reader: FrameReader<OwnedReadHalf>, writer: OwnedWriteHalf) -> End {
        let timeout = lock(&self.identity).timeout;
        let pending = Mutex::new(VecDeque::new());
        let end = {
            let Self { watches, identity, evidence, config, queue, next_xid, epoch, .. } = self;
            let mut reading = pin!(read_frames(reader, &pending, watches, identity, evidence, config, timeout));
            let mut writing = pin!(write_requests(writer, &pending, identity, queue, next_xid, *epoch, timeout));
            tokio::select! {
                cause = &mut reading => End::Broken(cause),
                end = &mut writing => end,
            }
        };
        lock(&self.identity).silent_since = None;
        for request in lock(&pending).drain(..) {
            let Pending { reply, .. } = request;
            drop(reply.send(Err(Error::OutcomeUnknown)));
        }
        end
    }
}

/// Writes requests as they come, and a ping when none came for a third of the time-out.
async fn write_requests(
    mut writer: OwnedWriteHalf,
    pending: &Mutex<VecDeque<Pending>>,
    identity: &Mutex<Identity>,
    queue: &mut mpsc::Receiver<Command>,
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
                let pending = lock(pending);
                if !pending.is_empty() {
                    lock(identity).silent_since.get_or_insert_with(Instant::now);
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
    command: Command,
    encoder: &mut Encoder,
    pending: &Mutex<VecDeque<Pending>>,
    next_xid: &mut i32,
    epoch: u64,
) {
    let Command { request, epoch: meant_for, mailbox, reply } = command;
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
    lock(pending).push_back(Pending { xid, op_code, sent_at: Instant::now(), mailbox, reply });
}

/// Reads until the connection breaks, and says why it did. A server that leaves requests without an answer for a third
/// of the time-out counts as gone; so does one that is silent for two thirds, though it is pinged every third.
async fn read_frames(
    mut reader: FrameReader<OwnedReadHalf>,
    pending: &Mutex<VecDeque<Pending>>,
    watches: &Watches,
    identity: &Mutex<Identity>,
    evidence: &watch::Sender<Instant>,
    config: &Arc<Config>,
    timeout: Duration,
) -> String {
    let mut heard = Instant::now();
    let mut answered = heard;
    loop {
        let frame = tokio::select! {
            biased;
            read = tokio::time::timeout_at(heard + timeout * 2 / 3, reader.next()) => match read {
                Ok(Ok(frame)) => frame,
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return format!("nothing heard for {} ms", (timeout * 2 / 3).as_millis()),
            },
            // A long answer that is on its way may take its time.
            () = unanswered(pending, answered, timeout / 3), if !reader.is_amid_frame() => {
                if reader.is_amid_frame() {
                    continue;
                }
                return format!("no answer for {} ms", (timeout / 3).as_millis());
            }
        };
        heard = Instant::now();
        {
            let mut identity = lock(identity);
            identity.last_heard = Some(heard);
            identity.silent_since = identity.silent_since.map(|_| heard);
        }
        let too_large = match &frame {
            Frame::Whole(_) => None,
            Frame::TooLarge(_, length) => Some(Error::AnswerTooLarge(*length)),
        };
        let bytes = frame.into_bytes();
        let length = bytes.len();
        let mut decoder = Decoder::new(bytes);
        let header = match ReplyHeader::decode(&mut decoder) {
            Ok(header) => header,
            Err(error) => return error.to_string(),
        };
        match header.xid {
            xid::PING | xid::AUTH => {}
            xid::NOTIFICATION => match WatcherEvent::decode(&mut decoder) {
                Ok(event) => watches.dispatch(&Event {
                    kind: event.kind,
                    path: config.inner(&event.path).into(),
                    zxid: (header.zxid > 0).then_some(Zxid(header.zxid)),
                }),
                Err(error) => return error.to_string(),
            },
            _ => {
                if header.zxid > 0 {
                    let mut identity = lock(identity);
                    identity.last_zxid = identity.last_zxid.max(header.zxid);
                }
                answered = heard;
                let is_long = length > DECODED_AT_ONCE;
                if let Err(cause) = answer(header, too_large, decoder, is_long, pending, evidence, config).await {
                    return cause;
                }
                let pending = lock(pending);
                if pending.is_empty() {
                    lock(identity).silent_since = None;
                }
            }
        }
    }
}

/// Waits until the oldest request has had no answer for so long, and none other has since `answered`. However much is
/// under way: who answers one after the other is alive.
async fn unanswered(pending: &Mutex<VecDeque<Pending>>, answered: Instant, patience: Duration) {
    loop {
        let (now, oldest) = (Instant::now(), lock(pending).front().map(|request| request.sent_at));
        let overdue_at = oldest.map_or(now, |sent_at| sent_at.max(answered)) + patience;
        if now >= overdue_at {
            return;
        }
        tokio::time::sleep_until(overdue_at).await;
    }
}

/// Hands a reply to whoever waits for it; an error ends the connection.
async fn answer(
    header: ReplyHeader,
    too_large: Option<Error>,
    decoder: Decoder,
    is_long: bool,
    pending: &Mutex<VecDeque<Pending>>,
    evidence: &watch::Sender<Instant>,
    config: &Arc<Config>,
) -> Result<(), String> {
    let Some(request) = lock(pending).pop_front().filter(|request| request.xid == header.xid) else {
        return Err("a reply out of order".to_owned());
    };
    let Pending { op_code, sent_at, mailbox, reply, .. } = request;
    if let Some(error) = too_large {
        drop(reply.send(Err(error)));
        return Ok(());
    }
    if let Some(code) = ErrorCode::from_wire(header.error) {
        let error = Error::from_reply(code);
        drop(reply.send(Err(error)));
        let gone = matches!(code, ErrorCode::SessionExpired | ErrorCode::SessionMoved);
        return if gone { Err(code.to_string()) } else { Ok(()) };
    }
    match decode(op_code, decoder, is_long, config).await {
        Ok(response) => {
            if is_carried_out_write(op_code, &response) {
                evidence.send_replace(sent_at);
            }
            let events = mailbox.as_ref().map(|mailbox| mailbox.take()).unwrap_or_default();
            let answer = Answer { zxid: Zxid(header.zxid), response, events };
            if let (Err(Ok(answer)), Some(mailbox)) = (reply.send(Ok(answer)), mailbox) {
                mailbox.put_back(answer.events);
            }
            Ok(())
        }
        Err(error) => {
            drop(reply.send(Err(Error::OutcomeUnknown)));
            Err(error.to_string())
        }
    }
}

/// Reads an answer, with paths below the chroot.
async fn decode(
    op_code: OpCode,
    mut decoder: Decoder,
    is_long: bool,
    config: &Arc<Config>,
) -> Result<Response, Malformed> {
    let config = config.clone();
    let mut read = move || {
        let mut response = Response::decode(op_code, &mut decoder)?;
        if !config.chroot.is_empty() {
            response.map_paths(&|path| config.inner(path));
        }
        Ok(response)
    };
    if !is_long {
        return read();
    }
    tokio::task::spawn_blocking(read).await.unwrap_or(Err(Malformed("its reader failed")))
}

/// Whether an answer shows that the leader knew the session when it was asked.
fn is_carried_out_write(op_code: OpCode, response: &Response) -> bool {
    match (op_code, response) {
        (OpCode::Multi, Response::Parts(parts)) => parts.iter().all(Result::is_ok),
        (OpCode::Create | OpCode::Create2 | OpCode::Delete | OpCode::SetData, _) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
