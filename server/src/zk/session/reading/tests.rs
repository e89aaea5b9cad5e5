use futures_util::FutureExt as _;
use rollcall_wire::{Encoder, Stat};
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::sync::oneshot;

use super::super::KeptUntilAnswer;
use super::*;
use crate::zk::watches::Mailbox;

const TIMEOUT: Duration = Duration::from_secs(20);
const SECOND: Duration = Duration::from_secs(1);

type Reply = oneshot::Receiver<Result<Answer, Error>>;

/// The state of one connection's reading side, and the server's end of that connection.
struct Test {
    pending: Mutex<VecDeque<Pending>>,
    watches: Watches,
    identity: Mutex<Identity>,
    evidence: watch::Sender<Instant>,
    config: Arc<Config>,
}

impl Test {
    fn new() -> Self {
        let config = Config::of(std::net::SocketAddr::from(([127, 0, 0, 1], 1)));
        let identity = Identity {
            id: 1,
            password: bytes::Bytes::new(),
            timeout: TIMEOUT,
            last_zxid: 0,
            last_heard: None,
            server: None,
            silence: Duration::ZERO,
        };
        Self {
            pending: Mutex::default(),
            watches: Watches::default(),
            identity: Mutex::new(identity),
            evidence: watch::channel(Instant::now()).0,
            config: Arc::new(config),
        }
    }

    async fn run(&self, stream: DuplexStream) -> String {
        let Self { pending, watches, identity, evidence, config } = self;
        ReadingSide { pending, watches, identity, evidence, config }.run(FrameReader::new(stream), TIMEOUT).await
    }

    /// Notes that a read of a node's data was written.
    fn ask(&self, xid: i32, held: Option<KeptUntilAnswer>) -> Reply {
        let (reply, answer) = oneshot::channel();
        let mailbox = Some(Arc::<Mailbox>::default());
        let sent_at = Instant::now();
        self.pending.lock().push_back(Pending { xid, op_code: OpCode::GetData, sent_at, mailbox, held, reply });
        answer
    }

    fn silence(&self) -> Duration {
        self.identity.lock().silence
    }
}

/// The answer to a read, with this many bytes of data.
fn answer(xid: i32, bytes: usize) -> bytes::Bytes {
    let mut encoder = Encoder::new();
    encoder.frame(|encoder| {
        ReplyHeader { xid, zxid: 7, error: 0 }.encode(encoder);
        encoder.bytes(&vec![b'x'; bytes]);
        Stat::default().encode(encoder);
    });
    encoder.take()
}

fn ping() -> bytes::Bytes {
    let mut encoder = Encoder::new();
    encoder.frame(|encoder| ReplyHeader { xid: xid::PING, zxid: 0, error: 0 }.encode(encoder));
    encoder.take()
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_on_its_way_is_no_silence_and_its_end_is() {
    let test = Test::new();
    let (mut server, client) = tokio::io::duplex(1 << 20);
    let mut asked = test.ask(1, None);
    let mut run = Box::pin(test.run(client));
    let bytes = answer(1, 1000);
    // In pieces, for longer than the whole time-out.
    for piece in bytes.chunks(10) {
        server.write_all(piece).await.unwrap();
        let waited = tokio::time::timeout(SECOND, &mut run).await;
        assert!(waited.is_err(), "{waited:?}");
        assert!(test.silence() < 2 * SECOND, "{:?}", test.silence());
    }
    assert!(matches!(asked.try_recv(), Ok(Ok(_))));
    // Only part of the next answer comes.
    let asked = test.ask(2, None);
    server.write_all(&answer(2, 1000)[..500]).await.unwrap();
    let waited = tokio::time::timeout(5 * SECOND, &mut run).await;
    assert!(waited.is_err(), "{waited:?}");
    assert!(test.silence() > 2 * SECOND, "{:?}", test.silence());
    assert_eq!(run.await, "nothing heard for 13333 ms");
    drop(asked);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_stopped_takes_its_own_lateness_for_nobodys_silence() {
    let test = Test::new();
    let (mut server, client) = tokio::io::duplex(1 << 20);
    let mut asked = test.ask(1, None);
    let mut run = Box::pin(test.run(client));
    assert!((&mut run).now_or_never().is_none());
    // Nobody polls it meanwhile.
    tokio::time::advance(10 * TIMEOUT).await;
    assert!(test.silence() < SECOND);
    assert!((&mut run).now_or_never().is_none(), "one look is not enough");
    assert!(test.silence() < SECOND);
    server.write_all(&answer(1, 10)).await.unwrap();
    assert!((&mut run).now_or_never().is_none());
    assert!(matches!(asked.try_recv(), Ok(Ok(_))));
    assert_eq!(test.silence(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_server_is_given_up_when_it_answers_nothing_and_not_when_it_is_slow() {
    let test = Test::new();
    let (mut server, client) = tokio::io::duplex(1 << 20);
    let mut run = Box::pin(test.run(client));
    let asked: Vec<_> = (1..=10).map(|xid| test.ask(xid, None)).collect();
    for xid in 1..=9 {
        let waited = tokio::time::timeout(4 * SECOND, &mut run).await;
        assert!(waited.is_err(), "the oldest has waited long, but others are answered: {waited:?}");
        server.write_all(&answer(xid, 10)).await.unwrap();
    }
    // The server answers pings, which says nothing about requests.
    let pings = async {
        loop {
            tokio::time::sleep(SECOND).await;
            server.write_all(&ping()).await.unwrap();
        }
    };
    let cause = tokio::select! {
        cause = &mut run => cause,
        never = pings => never,
    };
    assert_eq!(cause, "no answer for 6666 ms");
    drop(asked);
}

#[tokio::test]
async fn what_a_request_holds_goes_with_its_answer_though_nobody_waits_for_it() {
    let test = Test::new();
    let (mut server, client) = tokio::io::duplex(1 << 20);
    let token = Arc::new(());
    drop(test.ask(1, Some(Box::new(token.clone()))));
    let mut run = Box::pin(test.run(client));
    assert!((&mut run).now_or_never().is_none());
    assert_eq!(Arc::strong_count(&token), 2, "zookeeper still has it to answer");
    server.write_all(&answer(1, 10)).await.unwrap();
    assert!((&mut run).now_or_never().is_none());
    assert_eq!(Arc::strong_count(&token), 1);
}

#[tokio::test]
async fn a_long_answer_that_nobody_waits_for_is_not_decoded() {
    let test = Test::new();
    let (mut server, client) = tokio::io::duplex(1 << 20);
    let mut run = Box::pin(test.run(client));
    // An answer that can't be decoded would end the connection.
    let mut garbage = Encoder::new();
    garbage.frame(|encoder| {
        ReplyHeader { xid: 1, zxid: 7, error: 0 }.encode(encoder);
        (0..DECODED_AT_ONCE).for_each(|_| encoder.boolean(true));
    });
    drop(test.ask(1, None));
    let mut asked = test.ask(2, None);
    server.write_all(&garbage.take()).await.unwrap();
    server.write_all(&answer(2, 10)).await.unwrap();
    assert!((&mut run).now_or_never().is_none());
    assert!(matches!(asked.try_recv(), Ok(Ok(_))));
}

#[test]
fn a_request_whose_answer_is_being_decoded_is_not_taken_for_one_that_was_not_sent() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let (release, released) = std::sync::mpsc::channel::<()>();
        let occupied = tokio::task::spawn_blocking(move || released.recv());
        let test = Test::new();
        let (mut server, client) = tokio::io::duplex(1 << 20);
        let mut asked = test.ask(1, None);
        let mut run = Box::pin(test.run(client));
        server.write_all(&answer(1, 2 * DECODED_AT_ONCE)).await.unwrap();
        assert!((&mut run).now_or_never().is_none());
        // The connection ends.
        drop(run);
        assert_eq!(asked.try_recv().unwrap_err(), oneshot::error::TryRecvError::Empty);
        assert_eq!(test.pending.lock().len(), 1, "its caller will be told that the outcome is unknown");
        drop(release);
        drop(occupied.await);
    });
}

#[tokio::test]
async fn a_part_that_fails_because_of_the_session_is_no_refusal_of_the_part() {
    use rollcall_wire::server::{Part, Response as Answered};

    for (code, ends) in
        [(ErrorCode::SessionExpired, true), (ErrorCode::SessionMoved, true), (ErrorCode::Throttled, false)]
    {
        let test = Test::new();
        let (mut server, client) = tokio::io::duplex(1024);
        let reply = test.ask(1, None);
        test.pending.lock()[0].op_code = OpCode::Multi;
        let mut encoder = Encoder::new();
        encoder.frame(|encoder| {
            ReplyHeader { xid: 1, zxid: 7, error: 0 }.encode(encoder);
            let rest = [None, Some(code), Some(ErrorCode::RuntimeInconsistency)];
            Answered::Parts(rest.map(Part::Failed).into()).encode(encoder);
        });
        server.write_all(&encoder.take()).await.unwrap();
        // The end of the stream, or of the session.
        drop(server);
        let cause = test.run(client).await;
        assert_eq!(reply.await.unwrap().unwrap_err(), Error::NotSent, "{code:?}");
        assert_eq!(cause == code.to_string(), ends, "{code:?}: {cause}");
    }
}
