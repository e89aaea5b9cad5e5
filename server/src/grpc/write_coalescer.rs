//! Joins what many streams of a connection send at the same moment into one write.
//!
//! A change wakes every stream that watches. Left alone, HTTP/2 writes to the socket as soon as the first of them has
//! something to send, and again after the next: one system call an event, which costs more than everything else about
//! an event. So a flush waits here until the connection's task has its next turn. Until then the streams that were
//! woken with it have added their messages. If no other stream was woken, the next turn is at once.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;
use tokio::task::coop;
use tonic::transport::server::Connected;

use super::acknowledged::Acknowledged;
use super::pace::{ReadPacer, Unread};
use super::pings::Pings;
use super::turnstile::{Turnstile, Visitor};
use crate::budget::Account;
use crate::clock;
use crate::contact::Contact;

/// Maximum number of bytes that wait. Later bytes wait for the socket. A turn of the connection's task writes at most
/// this many bytes, and those of one flush: a socket whose peer reads as fast as it is written to would otherwise occupy
/// a thread for all that the peer's HTTP/2 window allows, 4 MiB in some 20 ms.
const MAX_WAITING_BYTES: usize = 64 * 1024;
/// Number of units that a turn of the connection's task on its thread has. A unit is one of tokio's cooperative
/// scheduling.
const TURN: usize = 128;
/// Number of units that a read takes of a turn. HTTP/2 reads for as long as there is something, before it begins any of
/// the calls, and 1 MiB has tens of thousands of calls without a body, or of calls that are cancelled at once. So a turn
/// reads at most twice, some KiB each time (see [`Turnstile`]).
const READ: usize = TURN / 2;
/// Maximum number of reflection streams of a connection: grpcurl has one at a time, a user interface a few.
pub(super) const CONNECTION_REFLECTIONS: usize = 4;

/// A connection that joins its writes.
#[derive(Debug)]
pub(crate) struct WriteCoalescer<S> {
    socket: S,
    peer: Peer,
    pace: ReadPacer,
    visitor: Visitor,
    pings: Pings,
    /// Whether bytes that have arrived stay unread for a while.
    is_held_up: bool,
    /// Bytes that wait to be written. The buffer takes no memory when it is empty.
    waiting: Vec<u8>,
    /// Number of those bytes that the socket has taken.
    taken: usize,
    /// Whether [`MAX_WAITING_BYTES`] were written in this turn.
    has_written_much: bool,
    turn: FlushTurn,
}

/// State that the calls of a connection share. Every request carries it as an extension.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(super) account: Account,
    pub(super) contact: Contact,
    pub(super) acknowledged: Acknowledged,
    pub(super) unread: Arc<Unread>,
    /// Places for the connection's reflection streams.
    pub(super) reflections: Arc<Semaphore>,
}

impl Peer {
    pub(super) fn new(account: Account, contact: Contact) -> Self {
        Self {
            account,
            contact,
            acknowledged: Acknowledged::default(),
            unread: Arc::default(),
            reflections: Arc::new(Semaphore::new(CONNECTION_REFLECTIONS)),
        }
    }
}

/// The side that has its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlushTurn {
    /// The streams that have something to send.
    Theirs,
    /// The same, and the connection's task has been woken for its next turn.
    Awaited,
    /// The socket.
    Ours,
}

impl<S> WriteCoalescer<S> {
    /// `account` bounds what the connection may hold. `contact` records its signs of life, for everything that depends
    /// on them.
    pub(crate) fn new(socket: S, account: Account, contact: Contact, turnstile: &Turnstile) -> Self {
        Self {
            socket,
            peer: Peer::new(account, contact),
            pace: ReadPacer::default(),
            visitor: turnstile.visitor(),
            pings: Pings::new(),
            is_held_up: false,
            waiting: Vec::new(),
            taken: 0,
            has_written_much: false,
            turn: FlushTurn::Theirs,
        }
    }
}

impl<S: AsyncWrite + Unpin> WriteCoalescer<S> {
    /// Writes all bytes that wait.
    fn poll_empty(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.taken < self.waiting.len() {
            let rest = &self.waiting[self.taken..];
            // Reading may have used the turn up, and would do so again in the next.
            let writing = coop::unconstrained(poll_fn(|context| Pin::new(&mut self.socket).poll_write(context, rest)));
            let Poll::Ready(written) = pin!(writing).poll(context) else {
                // HTTP/2 might not read again before it has written.
                self.visitor.pass(context);
                return Poll::Pending;
            };
            match written? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.taken += count,
            }
        }
        self.has_written_much = self.taken >= MAX_WAITING_BYTES;
        if self.has_written_much {
            // More follows. HTTP/2 reads and writes several times in one turn: that it is the same one shows in its
            // units, which are used up from here on.
            self.waiting.clear();
            take_units(context, TURN);
        } else {
            self.waiting = Vec::new();
        }
        (self.taken, self.turn) = (0, FlushTurn::Theirs);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteCoalescer<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.waiting.len() >= MAX_WAITING_BYTES {
            if this.has_written_much && !coop::has_budget_remaining() {
                this.visitor.pass(context);
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(this.poll_empty(context))?;
        }
        let before = this.waiting.len();
        for slice in slices {
            let room = MAX_WAITING_BYTES.saturating_sub(this.waiting.len());
            let taken = &slice[..slice.len().min(room)];
            this.pings.has_written(taken);
            this.waiting.extend_from_slice(taken);
        }
        Poll::Ready(Ok(this.waiting.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.waiting.extend(this.pings.take().into_iter().flatten());
        match this.turn {
            _ if this.waiting.is_empty() => {}
            FlushTurn::Ours => {
                ready!(this.poll_empty(context))?;
                this.waiting = Vec::new();
            }
            FlushTurn::Awaited => return Poll::Ready(Ok(())),
            FlushTurn::Theirs => {
                this.turn = FlushTurn::Awaited;
                context.waker().wake_by_ref();
                return Poll::Ready(Ok(()));
            }
        }
        Pin::new(&mut this.socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_empty(context))?;
        Pin::new(&mut this.socket).poll_shutdown(context)
    }
}

impl<S> WriteCoalescer<S> {
    /// Waits until the connection may read; returns the number of bytes that it may read.
    fn poll_may_read(&mut self, context: &mut Context<'_>) -> Poll<usize> {
        let may = match self.pace.poll(context, &self.peer.unread) {
            Poll::Ready(()) => self.visitor.poll(context),
            Poll::Pending => {
                self.visitor.pass(context);
                Poll::Pending
            }
        };
        if may.is_pending() && !self.is_held_up {
            self.is_held_up = true;
            self.peer.contact.wait();
        } else if may.is_ready() {
            self.may_read_again();
        }
        may
    }

    fn may_read_again(&mut self) {
        if std::mem::take(&mut self.is_held_up) {
            self.peer.contact.note(clock::now());
        }
    }
}

/// Takes units of the turn, as far as it has them.
fn take_units(context: &mut Context<'_>, count: usize) {
    for _ in 0..count {
        match coop::poll_proceed(context) {
            Poll::Ready(unit) => unit.made_progress(),
            Poll::Pending => break,
        }
    }
}

impl<S> Drop for WriteCoalescer<S> {
    fn drop(&mut self) {
        self.may_read_again();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteCoalescer<S> {
    /// HTTP/2 reads at the beginning of every turn of its task.
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.turn == FlushTurn::Awaited {
            this.turn = FlushTurn::Ours;
        }
        if coop::has_budget_remaining() {
            this.has_written_much = false;
        }
        this.pings.poll(context, &this.peer.contact);
        let most = ready!(this.poll_may_read(context)).min(buffer.remaining());
        let mut new = ReadBuf::new(buffer.initialize_unfilled_to(most));
        let read = Pin::new(&mut this.socket).poll_read(context, &mut new);
        let count = new.filled().len();
        // The end of a connection is a sign of life too: its peer has ended it just now.
        if read.is_ready() {
            this.peer.contact.note(clock::now());
        }
        this.visitor.has_read(count);
        if count > 0 {
            this.pace.has_read(new.filled(), &this.peer.unread);
            // The socket has taken one unit itself.
            take_units(context, READ - 1);
        }
        buffer.advance(count);
        read
    }
}

impl<S> Connected for WriteCoalescer<S> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A socket that records each write, and takes at most `takes` bytes at once.
    #[derive(Debug, Default)]
    struct Socket {
        writes: Vec<Vec<u8>>,
        takes: usize,
        is_down: bool,
    }

    impl AsyncWrite for Socket {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.takes);
            if taken == 0 {
                return Poll::Pending;
            }
            self.writes.push(bytes[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.is_down = true;
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncRead for Socket {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Test {
        coalescer: WriteCoalescer<Socket>,
        wakes: Arc<Wakes>,
    }

    impl Test {
        fn new(takes: usize) -> Self {
            Self {
                coalescer: WriteCoalescer::new(
                    Socket { takes, ..Socket::default() },
                    Account::unlimited(),
                    Contact::new(Duration::MAX),
                    &Turnstile::new(),
                ),
                wakes: Arc::default(),
            }
        }

        fn poll<T>(
            &mut self,
            poll: impl FnOnce(Pin<&mut WriteCoalescer<Socket>>, &mut Context<'_>) -> Poll<T>,
        ) -> Poll<T> {
            let waker = Waker::from(self.wakes.clone());
            poll(Pin::new(&mut self.coalescer), &mut Context::from_waker(&waker))
        }

        fn write(&mut self, bytes: &[u8]) -> Option<usize> {
            match self.poll(|coalescer, context| coalescer.poll_write(context, bytes)) {
                Poll::Ready(count) => Some(count.unwrap()),
                Poll::Pending => None,
            }
        }

        fn flush(&mut self) -> bool {
            self.poll(|coalescer, context| coalescer.poll_flush(context)).is_ready()
        }

        /// The read that begins every turn of a connection's task.
        fn turn(&mut self) {
            let read = self.poll(|coalescer, context| coalescer.poll_read(context, &mut ReadBuf::new(&mut [0; 8])));
            assert!(read.is_pending());
        }

        fn writes(&self) -> Vec<&[u8]> {
            self.coalescer.socket.writes.iter().map(Vec::as_slice).collect()
        }
    }

    #[test]
    fn what_comes_before_the_next_turn_is_written_at_once() {
        let mut test = Test::new(1000);
        for bytes in [b"one ", b"two ", b"six "] {
            assert_eq!(test.write(bytes), Some(4));
            assert!(test.flush() && test.writes().is_empty());
        }
        assert_eq!(test.wakes.0.load(Ordering::Relaxed), 1, "the task has its next turn without being asked");
        test.turn();
        assert_eq!(test.write(b"late"), Some(4));
        assert!(test.flush());
        assert_eq!(test.writes(), [b"one two six late"]);
        test.turn();
        assert!(test.flush() && test.writes().len() == 1);
        assert_eq!(test.wakes.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_slow_socket_holds_up_who_writes_more_than_may_wait() {
        let mut test = Test::new(0);
        assert_eq!(test.write(&vec![b'x'; MAX_WAITING_BYTES + 5]), Some(MAX_WAITING_BYTES));
        assert_eq!(test.write(b"y"), None);
        assert!(test.flush());
        test.turn();
        assert!(!test.flush(), "there is no more than what the socket takes");
        test.coalescer.socket.takes = MAX_WAITING_BYTES - 1;
        assert_eq!(test.write(b"y"), Some(1));
        assert_eq!(test.writes().iter().map(|write| write.len()).collect::<Vec<_>>(), [MAX_WAITING_BYTES - 1, 1]);
    }

    #[tokio::test]
    async fn a_turn_writes_little_however_much_the_socket_takes_and_however_often_it_reads() {
        let mut test = Test::new(usize::MAX);
        let much = vec![b'x'; 100 * MAX_WAITING_BYTES];
        let mut one_turn = async |begins_with_a_read: bool| {
            tokio::task::yield_now().await;
            let (before, wakes) = (test.writes().len(), test.wakes.0.load(Ordering::Relaxed));
            for round in 0..10 {
                if round > 0 || begins_with_a_read {
                    test.turn();
                }
                while test.write(&much).is_some() {}
            }
            let wakes = test.wakes.0.load(Ordering::Relaxed) - wakes;
            assert!(wakes > 0, "the task has its next turn without being asked");
            test.writes().len() - before
        };
        assert_eq!(one_turn(true).await, 1);
        assert_eq!(one_turn(false).await, 1, "a turn that begins with a write writes as much");
        assert_eq!(one_turn(true).await, 1);
    }

    #[tokio::test]
    async fn a_turn_reads_little_however_much_there_is_and_writes_all_the_same() {
        let (ours, mut theirs) = tokio::io::duplex(1024 * 1024);
        theirs.write_all(&vec![0; 512 * 1024]).await.unwrap();
        let mut coalescer =
            WriteCoalescer::new(ours, Account::unlimited(), Contact::new(Duration::MAX), &Turnstile::new());
        tokio::task::yield_now().await;
        poll_fn(|context| {
            let (mut bytes, mut reads) = ([0; 8192], 0);
            while Pin::new(&mut coalescer).poll_read(context, &mut ReadBuf::new(&mut bytes)).is_ready() {
                reads += 1;
            }
            assert_eq!(reads, 2);
            assert!(Pin::new(&mut coalescer).poll_write(context, b"said").is_ready());
            Pin::new(&mut coalescer).poll_shutdown(context)
        })
        .await
        .unwrap();
        let mut said = [0; 4];
        theirs.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"said");
    }

    #[test]
    fn nothing_is_left_behind_at_the_end() {
        let mut test = Test::new(1000);
        test.write(b"goodbye");
        assert!(test.flush());
        assert!(test.poll(|coalescer, context| coalescer.poll_shutdown(context)).is_ready());
        assert_eq!((test.writes(), test.coalescer.socket.is_down), (vec![b"goodbye".as_slice()], true));
    }
}
