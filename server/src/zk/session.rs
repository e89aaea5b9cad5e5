//! One ZooKeeper session, kept up over any number of connections.
//!
//! Promises:
//! - Requests are sent in the order of the calls, pipelined. Nothing is sent, or kept for later, while there is no
//!   connection: such a request is [`Error::NotSent`] at once.
//! - The session is over only when ZooKeeper says so; no clock of ours ends it. Reconnection is tried at least every
//!   [`RECONNECT_CAP`], on all servers in turn.
//! - A server that is behind what this session has seen is refused (by its own check of our last zxid). When that is
//!   all of them, for longer than the session can have lived, they are asked whether it is over: ZooKeeper was restored
//!   from a backup, or lost its data.
//! - A server that leaves a request without an answer for a third of the session time-out, and gives none to any other
//!   meanwhile, is left for another one: well before what rests on the session's evidence is in doubt for too long.
//! - Watch events reach [`Watches`] before the answer of any later read of the session does.
//!
//! This speaks the protocol itself: the crate `zookeeper-client` can't cap its reconnection or stop a client that is
//! cut off, carries out requests whose caller has gone, and hides the zxid of a write (ARCHITECTURE.md, "ZooKeeper").

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rand::RngExt as _;
use rollcall_wire::{
    ConnectRequest, Decoder, Encoder, ErrorCode, MAX_FRAME, Malformed, OpCode, ReplyHeader, Request, RequestHeader,
    Response, WatcherEvent, xid,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::connection::{self, Frame, FrameReader};
use super::watches::{Batch, Event, Mailbox, Watches};
use super::{Config, Error};
use crate::types::{SessionId, Zxid};

/// How many requests may wait to be written; one more is [`Error::NotSent`].
const QUEUE: usize = 16_384;
/// The longest pause between two rounds of connection attempts.
const RECONNECT_CAP: Duration = Duration::from_millis(400);
const RECONNECT_FIRST: Duration = Duration::from_millis(20);
/// How long after one server the next is called.
const STAGGER: Duration = Duration::from_millis(50);
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
        }));
        let session = Self {
            commands,
            link,
            evidence,
            watches: watches.clone(),
            identity: identity.clone(),
            config: config.clone(),
        };
        let task =
            Task { config, queue, link: link_tx, evidence: evidence_tx, watches, identity, epoch: 0, next_xid: 1 };
        (session, task.run())
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

    /// Where the session's watch events arrive.
    pub(crate) fn watches(&self) -> &Arc<Watches> {
        &self.watches
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Task {
    config: Arc<Config>,
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
                tracing::warn!(session = format_args!("{:#x}", lock(&self.identity).id), "zookeeper session expired");
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

    /// Tries all servers in turn until one takes the session; `None` when it is over.
    async fn connect(&mut self) -> Option<(FrameReader<OwnedReadHalf>, OwnedWriteHalf)> {
        let mut pause = RECONNECT_FIRST;
        let (mut is_probe, mut no_probe_until) = (false, Instant::now());
        loop {
            let mut is_refused = false;
            // All are called, a little after each other: one that swallows packets must not hold up the others.
            let hosts = self.config.shuffled_hosts();
            let patience = connection::handshake_timeout(self.config.session_timeout, hosts.len());
            let mut calls: FuturesUnordered<_> = (0..)
                .zip(hosts)
                .map(|(nth, host)| async move {
                    tokio::time::sleep(STAGGER * nth).await;
                    (connection::dial(&host).await, host)
                })
                .collect();
            while let Some((called, host)) = calls.next().await {
                self.refuse_queued(Error::NotSent);
                let request = self.connect_request(is_probe);
                let opened = match called {
                    Ok(stream) => connection::open(stream, &request, patience).await,
                    Err(error) => Err(error),
                };
                match opened {
                    // The session stands; but this server may be behind, and is not read from. It is left alone for as
                    // long as the session can live now, which would never end otherwise.
                    Ok((response, ..)) if response.timeout_ms > 0 && is_probe => {
                        no_probe_until = Instant::now() + 2 * lock(&self.identity).timeout;
                    }
                    Ok((response, reader, writer)) if response.timeout_ms > 0 => {
                        let mut identity = lock(&self.identity);
                        identity.id = response.session_id;
                        identity.password = response.password;
                        identity.last_heard = Some(Instant::now());
                        identity.timeout =
                            Duration::from_millis(u64::try_from(response.timeout_ms).unwrap_or_default());
                        tracing::info!(session = format_args!("{:#x}", identity.id), host, "connected to zookeeper");
                        return Some((reader, writer));
                    }
                    Ok(_) => return None,
                    Err(error) => {
                        // What a server does that is behind, and also one that is just starting.
                        is_refused |= error.kind() == io::ErrorKind::UnexpectedEof;
                        tracing::debug!(host, error = %error, "zookeeper can't be reached");
                    }
                }
            }
            let identity = lock(&self.identity).clone();
            let is_overdue = identity.last_heard.is_some_and(|heard| heard.elapsed() > identity.timeout);
            is_probe = is_refused && is_overdue && !is_probe && Instant::now() >= no_probe_until;
            let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
            tokio::time::sleep(jittered).await;
            pause = (pause * 2).min(RECONNECT_CAP);
        }
    }

    /// What to ask a server with; a probe asks as one who has seen nothing.
    fn connect_request(&self, is_probe: bool) -> ConnectRequest {
        let identity = lock(&self.identity);
        ConnectRequest {
            last_zxid_seen: if is_probe { 0 } else { identity.last_zxid },
            timeout_ms: i32::try_from(self.config.session_timeout.as_millis()).unwrap_or(i32::MAX),
            session_id: identity.id,
            password: identity.password.clone(),
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
            let mut writing = pin!(write_requests(writer, &pending, queue, next_xid, *epoch, timeout));
            tokio::select! {
                cause = &mut reading => End::Broken(cause),
                end = &mut writing => end,
            }
        };
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
        lock(identity).last_heard = Some(heard);
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
mod tests {
    use futures_util::FutureExt as _;
    use rollcall_embedded::Embedded;
    use rollcall_wire::CreateMode;

    use super::super::calls::{create, delete};
    use super::*;

    #[tokio::test]
    async fn a_write_that_is_carried_out_is_evidence_and_no_read_or_refusal_is() {
        let embedded = Embedded::bind("127.0.0.1:0".parse().unwrap(), rollcall_embedded::Config::default());
        let embedded = embedded.await.unwrap();
        let hosts = vec![embedded.local_addr().to_string()];
        let config = Config { hosts, chroot: String::new(), session_timeout: Duration::from_secs(20), sessions: 1 };
        let (session, life) = Session::start(Arc::new(config), Arc::default());
        let evidence = session.evidence();
        let steps = async {
            assert!(session.connected().await);
            let make = |path: &str| create(path, Bytes::new(), CreateMode::Persistent);
            let moves = |before: Instant| *evidence.borrow() > before;
            for write in [make("/a"), Request::Multi(vec![make("/b"), make("/c")]), delete("/c", -1)] {
                let before = *evidence.borrow();
                session.submit(write).await.unwrap();
                assert!(moves(before));
            }
            let before = *evidence.borrow();
            session.submit(Request::Exists { path: "/a".to_owned(), watch: false }).await.unwrap();
            session.submit(Request::Sync { path: "/a".to_owned() }).await.unwrap();
            session.submit(make("/a")).await.unwrap_err();
            session.submit(Request::Multi(vec![make("/d"), make("/a")])).await.unwrap();
            assert!(!moves(before));
        };
        tokio::select! {
            () = steps => {}
            () = life => panic!("the session stands"),
            () = embedded.run(std::future::pending()) => panic!("the server runs"),
        }
    }

    #[tokio::test]
    async fn a_server_is_given_up_when_it_answers_nothing_and_not_when_it_is_slow() {
        const HOUR: Duration = Duration::from_secs(3600);
        let pending = Mutex::new(VecDeque::new());
        let is_given_up = |answered, patience| unanswered(&pending, answered, patience).now_or_never().is_some();
        let now = Instant::now();
        assert!(!is_given_up(now, HOUR), "nothing was asked");
        let reply = oneshot::channel().0;
        lock(&pending).push_back(Pending { xid: 1, op_code: OpCode::Exists, sent_at: now, mailbox: None, reply });
        assert!(!is_given_up(now, HOUR), "it has just been asked");
        assert!(is_given_up(now, Duration::ZERO));
        assert!(!is_given_up(now + HOUR, Duration::ZERO), "it has answered another request since");
    }
}
