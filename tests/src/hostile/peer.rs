//! An HTTP/2 connection of a client that keeps to the protocol only as far as it must, so that the server does not end
//! the connection. It does not look into any answer.

use std::collections::HashMap;
use std::io::{Error, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::Load;
use super::wire::{FIRST_WINDOW, FRAME, Header, PREFACE, WINDOW, call_headers, flag, frame, kind, prefixed, split};

/// Number of bytes after which a connection's window is opened again.
const ACKNOWLEDGED: usize = 1 << 24;
/// Size of the input buffer.
const INPUT: usize = 256 * 1024;
/// The setting INITIAL_WINDOW_SIZE.
const INITIAL_WINDOW_SIZE: u16 = 4;

/// A connection. Dropping closes it.
#[derive(Debug)]
pub(super) struct Peer {
    shared: Arc<Shared>,
    authority: String,
    next: AtomicU32,
    _reader: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    socket: tokio::sync::Mutex<OwnedWriteHalf>,
    state: Mutex<State>,
    changed: Notify,
}

/// The server's windows and settings, and the answers so far.
#[derive(Debug)]
struct State {
    /// Bytes that may be sent on the connection.
    window: i64,
    /// The initial window of a stream.
    initial: i64,
    /// The windows of the streams on which much is sent, relative to their initial size.
    streams: HashMap<u32, i64>,
    /// Answers to the server's own frames. They are sent before anything else.
    pending: Vec<u8>,
    heard: Heard,
    over: bool,
}

/// Counts of the received frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Streams that have ended.
    pub(super) ended: usize,
    /// Bytes of bodies.
    pub(super) bytes: usize,
}

/// Frames that are sent together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// The bytes that count against the connection's window.
    data: usize,
}

impl Batch {
    /// Adds the headers of a call.
    pub(super) fn headers(&mut self, stream: u32, headers: &[u8]) {
        frame(&mut self.bytes, kind::HEADERS, flag::END_HEADERS, stream, headers);
    }

    /// Adds a part of a body.
    pub(super) fn data(&mut self, stream: u32, data: &[u8], flags: u8) {
        frame(&mut self.bytes, kind::DATA, flags, stream, data);
        self.data += data.len();
    }

    /// Adds a call with its one message, which must be small.
    pub(super) fn call(&mut self, stream: u32, headers: &[u8], message: &[u8]) {
        self.headers(stream, headers);
        self.data(stream, &prefixed(message), flag::END_STREAM);
    }

    /// Cancels a call.
    pub(super) fn cancel(&mut self, stream: u32) {
        self.frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    }

    /// Adds any other frame.
    pub(super) fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        frame(&mut self.bytes, kind, flags, stream, payload);
    }

    /// The size in bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl Peer {
    /// Connects. Each stream of the server has a window of this size, which is never opened again.
    pub(super) async fn open(address: SocketAddr, window: u32) -> Result<Peer> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let (read, mut write) = socket.into_split();
        let mut greeting = PREFACE.to_vec();
        let settings = [&INITIAL_WINDOW_SIZE.to_be_bytes()[..], &window.to_be_bytes()].concat();
        frame(&mut greeting, kind::SETTINGS, 0, 0, &settings);
        frame(&mut greeting, kind::WINDOW_UPDATE, 0, 0, &(WINDOW - FIRST_WINDOW).to_be_bytes());
        write.write_all(&greeting).await?;
        let state = State {
            window: FIRST_WINDOW.into(),
            initial: FIRST_WINDOW.into(),
            streams: HashMap::new(),
            pending: Vec::new(),
            heard: Heard::default(),
            over: false,
        };
        let shared = Arc::new(Shared {
            socket: tokio::sync::Mutex::new(write),
            state: Mutex::new(state),
            changed: Notify::new(),
        });
        let mut reader = JoinSet::new();
        reader.spawn(listen(shared.clone(), read));
        Ok(Peer { shared, authority: address.to_string(), next: AtomicU32::new(1), _reader: reader })
    }

    /// The headers of a call of this method.
    pub(super) fn headers(&self, method: &str) -> Vec<u8> {
        call_headers(method, &self.authority)
    }

    /// A new stream number.
    pub(super) fn stream(&self) -> u32 {
        self.next.fetch_add(2, Ordering::Relaxed)
    }

    /// Sends a batch as soon as the window of the connection allows it.
    pub(super) async fn send(&self, batch: &mut Batch) -> Result<()> {
        self.send_as(None, batch).await
    }

    /// Sends a batch whose data all belong to one stream, and may fill its window too.
    pub(super) async fn send_on(&self, stream: u32, batch: &mut Batch) -> Result<()> {
        self.send_as(Some(stream), batch).await
    }

    async fn send_as(&self, stream: Option<u32>, batch: &mut Batch) -> Result<()> {
        self.allowed(stream, batch.data).await?;
        self.write(&batch.bytes).await?;
        batch.bytes.clear();
        batch.data = 0;
        Ok(())
    }

    /// Sends a body, or a part of one, of any size.
    pub(super) async fn send_body(&self, stream: u32, body: &[u8], is_last: bool) -> Result<()> {
        let mut chunks = body.chunks(FRAME).peekable();
        while let Some(chunk) = chunks.next() {
            self.allowed(Some(stream), chunk.len()).await?;
            let flags = if is_last && chunks.peek().is_none() { flag::END_STREAM } else { 0 };
            let mut bytes = Vec::with_capacity(chunk.len() + 16);
            frame(&mut bytes, kind::DATA, flags, stream, chunk);
            self.write(&bytes).await?;
        }
        if is_last {
            self.shared.state.lock().unwrap().streams.remove(&stream);
        }
        Ok(())
    }

    /// The counts so far.
    pub(super) fn heard(&self) -> Heard {
        self.shared.state.lock().unwrap().heard
    }

    /// Waits until this number of streams has ended.
    pub(super) async fn ended(&self, streams: usize) -> Result<()> {
        self.shared.until(|state| (state.heard.ended >= streams).then_some(())).await
    }

    /// Waits until this number of bytes of bodies has arrived.
    pub(super) async fn told(&self, bytes: usize) -> Result<()> {
        self.shared.until(|state| (state.heard.bytes >= bytes).then_some(())).await
    }

    /// Keeps the connection until the time is over. An error when the connection ends first.
    pub(super) async fn hold(&self, load: Load) -> Result<()> {
        tokio::select! {
            () = load.rest() => Ok(()),
            over = self.shared.until(|_| None) => over,
        }
    }

    async fn allowed(&self, stream: Option<u32>, bytes: usize) -> Result<()> {
        let bytes = i64::try_from(bytes).expect("a batch is small");
        let allowed = |state: &mut State| {
            let initial = state.initial;
            let used = stream.map(|stream| state.streams.entry(stream).or_default());
            if state.window < bytes || used.as_ref().is_some_and(|used| initial + **used < bytes) {
                return None;
            }
            state.window -= bytes;
            if let Some(used) = used {
                *used -= bytes;
            }
            Some(())
        };
        if bytes == 0 { Ok(()) } else { self.shared.until(allowed).await }
    }

    async fn write(&self, bytes: &[u8]) -> Result<()> {
        let mut socket = self.shared.socket.lock().await;
        let pending = std::mem::take(&mut self.shared.state.lock().unwrap().pending);
        socket.write_all(&pending).await?;
        socket.write_all(bytes).await
    }
}

impl Shared {
    /// Waits until `probe` returns a value for the state. An error when the connection ends first.
    async fn until<T>(&self, mut probe: impl FnMut(&mut State) -> Option<T>) -> Result<T> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state.lock().unwrap();
                if let Some(found) = probe(&mut state) {
                    return Ok(found);
                }
                if state.over {
                    return Err(Error::other("the server has closed the connection"));
                }
            }
            changed.await;
        }
    }

    /// Sends pending answers, unless another task is sending and will do it. It never waits: a server that does not
    /// read must not keep this side from reading.
    fn flush(&self) {
        let Ok(socket) = self.socket.try_lock() else { return };
        let mut state = self.state.lock().unwrap();
        while !state.pending.is_empty() {
            match socket.try_write(&state.pending) {
                Ok(written) => drop(state.pending.drain(..written)),
                Err(_) => return,
            }
        }
    }
}

/// Reads the server's frames, answers those that need an answer, and counts the rest.
async fn listen(shared: Arc<Shared>, mut socket: OwnedReadHalf) {
    let (mut input, mut filled, mut unacknowledged) = (vec![0; INPUT], 0, 0);
    while let Ok(length) = socket.read(&mut input[filled..]).await
        && length > 0
    {
        filled += length;
        let mut rest = &input[..filled];
        let mut state = shared.state.lock().unwrap();
        while let Some((header, payload, after)) = split(rest) {
            rest = after;
            unacknowledged += state.take(header, payload);
        }
        if unacknowledged >= ACKNOWLEDGED {
            let bytes = u32::try_from(unacknowledged).expect("little more than that");
            frame(&mut state.pending, kind::WINDOW_UPDATE, 0, 0, &bytes.to_be_bytes());
            unacknowledged = 0;
        }
        drop(state);
        let left = rest.len();
        input.copy_within(filled - left..filled, 0);
        filled = left;
        shared.flush();
        shared.changed.notify_waiters();
    }
    shared.state.lock().unwrap().over = true;
    shared.changed.notify_waiters();
}

impl State {
    /// Applies a frame. Returns the number of bytes of the connection's window that it has used.
    fn take(&mut self, Header { kind, flags, stream }: Header, payload: &[u8]) -> usize {
        match kind {
            kind::SETTINGS if flags & flag::ACK == 0 => {
                for setting in payload.chunks_exact(6) {
                    if setting[..2] == INITIAL_WINDOW_SIZE.to_be_bytes() {
                        self.initial = number(&setting[2..]);
                    }
                }
                frame(&mut self.pending, kind::SETTINGS, flag::ACK, 0, &[]);
            }
            kind::PING if flags & flag::ACK == 0 => frame(&mut self.pending, kind::PING, flag::ACK, 0, payload),
            kind::WINDOW_UPDATE if stream == 0 => self.window += number(payload),
            kind::WINDOW_UPDATE => {
                if let Some(used) = self.streams.get_mut(&stream) {
                    *used += number(payload);
                }
            }
            _ => {}
        }
        if kind == kind::RST_STREAM || matches!(kind, kind::DATA | kind::HEADERS) && flags & flag::END_STREAM != 0 {
            self.heard.ended += 1;
        }
        if kind == kind::DATA {
            self.heard.bytes += payload.len();
            return payload.len();
        }
        0
    }
}

fn number(bytes: &[u8]) -> i64 {
    bytes.try_into().map_or(0, |bytes| u32::from_be_bytes(bytes).into())
}
