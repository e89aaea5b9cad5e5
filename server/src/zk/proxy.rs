//! A proxy to a ZooKeeper server, with which tests spoil answers.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
pub(crate) use rollcall_wire::OpCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::types::{NodePath, SessionId};

/// The answers that are spoiled.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// The connection is closed once, in place of the answer to one of these.
    pub(crate) lost: Vec<OpCode>,
    /// These are answered with an error code.
    pub(crate) refused: HashMap<OpCode, i32>,
    /// Reads of this node's data do not find it until the next sync.
    pub(crate) unseen: Option<NodePath>,
    /// These sessions get no answers.
    pub(crate) silent: HashSet<SessionId>,
}

/// A proxy that knows the frames of ZooKeeper's protocol.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    address: SocketAddr,
    faults: Arc<Mutex<Faults>>,
}

/// The fate of an answer.
enum AnswerFate {
    Passes,
    IsLost,
    HasCode(i32),
}

impl Proxy {
    pub(crate) async fn start(server: SocketAddr, tasks: &mut JoinSet<()>) -> Self {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let proxy = Self { address: listener.local_addr().unwrap(), faults: Arc::default() };
        let accepting = proxy.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                connections.spawn(accepting.clone().serve(client, server));
            }
        });
        proxy
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock()
    }

    /// Serves one connection until it ends.
    async fn serve(self, client: TcpStream, server: SocketAddr) {
        let Ok(server) = TcpStream::connect(server).await else { return };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let answers = Mutex::new(HashMap::new());
        tokio::select! {
            _ = self.requests(from_client, to_server, &answers) => {}
            _ = self.replies(from_server, to_client, &answers) => {}
        }
    }

    /// `answers`: the fate of the answers that are changed, by the number of the request.
    async fn requests(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        answers: &Mutex<HashMap<i32, AnswerFate>>,
    ) -> Option<()> {
        let handshake = frame(&mut from).await?;
        to.write_all(&handshake).await.ok()?;
        loop {
            let request = frame(&mut from).await?;
            let answer = self.answer(number(&request, 8), &request);
            if !matches!(answer, AnswerFate::Passes) {
                answers.lock().insert(number(&request, 4), answer);
            }
            to.write_all(&request).await.ok()?;
        }
    }

    fn answer(&self, op_code: i32, request: &[u8]) -> AnswerFate {
        const NO_NODE: i32 = -101;
        let mut faults = self.faults();
        let Some(op_code) = OpCode::from_wire(op_code) else { return AnswerFate::Passes };
        if faults.lost.contains(&op_code) {
            faults.lost.clear();
            return AnswerFate::IsLost;
        }
        if op_code == OpCode::Sync {
            faults.unseen = None;
        }
        let is_unseen =
            |path: &NodePath| request.get(16..).is_some_and(|rest| rest.starts_with(path.as_str().as_bytes()));
        if op_code == OpCode::GetData && faults.unseen.as_ref().is_some_and(is_unseen) {
            return AnswerFate::HasCode(NO_NODE);
        }
        faults.refused.get(&op_code).map_or(AnswerFate::Passes, |code| AnswerFate::HasCode(*code))
    }

    async fn replies(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        answers: &Mutex<HashMap<i32, AnswerFate>>,
    ) -> Option<()> {
        let handshake = frame(&mut from).await?;
        let session = SessionId(i64::from_be_bytes(handshake.get(12..20)?.try_into().ok()?));
        to.write_all(&handshake).await.ok()?;
        loop {
            let mut reply = frame(&mut from).await?;
            let answer = answers.lock().remove(&number(&reply, 4));
            match answer {
                Some(AnswerFate::IsLost) => return None,
                Some(AnswerFate::HasCode(code)) => {
                    // The header alone: the request's number, the transaction, the code.
                    reply.truncate(16);
                    reply.extend(code.to_be_bytes());
                    reply[..4].copy_from_slice(&16_u32.to_be_bytes());
                }
                Some(AnswerFate::Passes) | None => {}
            }
            if !self.faults().silent.contains(&session) {
                to.write_all(&reply).await.ok()?;
            }
        }
    }
}

/// The next frame, with its length.
async fn frame(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let length = from.read_u32().await.ok()?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.resize(4 + usize::try_from(length).ok()?, 0);
    from.read_exact(&mut frame[4..]).await.ok()?;
    Some(frame)
}

/// The number at this offset of a frame.
fn number(frame: &[u8], at: usize) -> i32 {
    frame.get(at..at + 4).map_or(0, |bytes| i32::from_be_bytes(bytes.try_into().unwrap()))
}
