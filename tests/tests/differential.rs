//! The embedded server beside real ZooKeeper: both get the same long random sequence of operations from several
//! sessions, and every reply, stat and event is compared. The seed is printed; `ROLLCALL_SEED` repeats it.
//!
//! Some values are made equal before the comparison: transaction ids (relative to each server's begin), times, session
//! ids, and the order of entries that ZooKeeper keeps in hash tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rollcall_tests::arm::{Arm, Own};
use rollcall_tests::raw::{Frame, Raw, newcomer, resumption};
use rollcall_tests::zookeeper::Options;
use rollcall_wire::{Acl, ConnectRequest, Decoder, Encoder, OpCode, Stat, WatcherEvent, xid};

const STEPS: usize = 4_000;
const CLIENTS: usize = 4;
/// A session time-out so long that no session ends by itself during the comparison.
const LIFETIME: Duration = Duration::from_secs(60);
const PATHS: [&str; 14] = [
    "/",
    "/a",
    "/a/x",
    "/a/x/deep",
    "/a/y",
    "/b",
    "/b/q",
    "/b/q/r",
    "/c",
    "/missing/z",
    "/a/",
    "//",
    "relative",
    "/a/../b",
];

/// Both servers, new, with settings as similar as possible. Nothing ends by itself during the comparison.
async fn pair() -> ([Own; 2], Side, Side) {
    let options = Options { sweep: Some(Duration::from_secs(3600)), ..Options::default() };
    let servers = [Arm::ZooKeeper.own(options).await, Arm::Embedded.own(options).await];
    let (real, ours) = (Side::connect(servers[0].address()).await, Side::connect(servers[1].address()).await);
    (servers, real, ours)
}

#[tokio::test]
async fn answers_everything_as_zookeeper_does() {
    let seed = std::env::var("ROLLCALL_SEED").ok().map_or_else(rand::random, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let (_servers, mut real, mut ours) = pair().await;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut history = Vec::new();
    let (mut events, mut refusals) = (0, 0);
    for step in 0..STEPS {
        let (client, act) = (rng.random_range(0..CLIENTS), Act::random(&mut rng));
        history.push(format!("{step}: client {client} {act:?}"));
        let (expected, actual) = (real.carry_out(client, &act).await, ours.carry_out(client, &act).await);
        if expected != actual {
            let before = history[history.len().saturating_sub(12)..].join("\n");
            panic!("seed {seed}\n{before}\nzookeeper:\n{expected}\nembedded:\n{actual}");
        }
        events += expected.matches(" event ").count();
        refusals += expected.matches(" error -").count();
    }
    println!("{STEPS} acts, {events} events, {refusals} refusals");
    assert!(events > STEPS / 10 && refusals < STEPS * 3 / 4, "the sequence has little to compare");
}

#[tokio::test]
async fn a_session_expires_as_in_zookeeper() {
    let (_servers, mut real, mut ours) = pair().await;
    let mut heard = Vec::new();
    for side in [&mut real, &mut ours] {
        let mut told = String::new();
        let create = |path, flags| Call::Create {
            op_code: OpCode::Create2,
            path,
            data: Some(1),
            acl: vec![Acl::open()],
            flags,
            ttl: None,
        };
        side.call(0, &create("/a", 0), &mut told).await;
        for client in 1..CLIENTS {
            let watch = |path, kind| Call::Watch { op_code: OpCode::AddWatch, path, kind };
            let read = |op_code, path| Call::Read { op_code, path, watch: true };
            side.call(client, &watch("/", 1), &mut told).await;
            side.call(client, &watch("/a", 0), &mut told).await;
            side.call(client, &read(OpCode::GetChildren, "/a"), &mut told).await;
            side.call(client, &read(OpCode::Exists, "/a/x"), &mut told).await;
        }
        let mut mortal = side.new_session(Duration::from_millis(300)).await;
        std::mem::swap(&mut mortal, &mut side.clients[0]);
        for path in ["/a/x", "/a/y", "/b"] {
            side.call(0, &create(path, 1), &mut told).await;
        }
        // The client is silent until the server ends its session.
        assert!(side.clients[0].next().await.is_none());
        side.clients[0] = mortal;
        for client in 0..CLIENTS {
            side.call(client, &Call::Bare(OpCode::Ping), &mut told).await;
            side.call(client, &Call::Read { op_code: OpCode::GetChildren2, path: "/a", watch: false }, &mut told).await;
        }
        let mut lines: Vec<_> = told.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        heard.push(lines.join("\n"));
    }
    assert!(heard[0].contains("Deleted"), "{}", heard[0]);
    assert_eq!(heard[0], heard[1]);
}

/// An action of a client.
#[derive(Debug, Clone)]
enum Act {
    Call(Call),
    /// Drops the connection, resumes the session, and sets watches again as of `missed` transactions ago.
    Reconnect {
        missed: i64,
        paths: Vec<&'static str>,
    },
    /// Resumes the session on a second connection while the first is open.
    Move,
    /// Ends the session, and starts another.
    Renew,
}

#[derive(Debug, Clone)]
enum Call {
    Create {
        op_code: OpCode,
        path: &'static str,
        data: Option<u8>,
        acl: Vec<Acl>,
        flags: i32,
        ttl: Option<i64>,
    },
    Delete {
        path: &'static str,
        version: i32,
    },
    Read {
        op_code: OpCode,
        path: &'static str,
        watch: bool,
    },
    SetData {
        path: &'static str,
        data: Option<u8>,
        version: i32,
    },
    SetAcl {
        path: &'static str,
        acl: Vec<Acl>,
        version: i32,
    },
    Path {
        op_code: OpCode,
        path: &'static str,
    },
    Check {
        path: &'static str,
        version: i32,
    },
    Watch {
        op_code: OpCode,
        path: &'static str,
        kind: i32,
    },
    Multi(Vec<Call>),
    MultiRead(Vec<Call>),
    Auth(&'static str),
    Bare(OpCode),
    /// A request with an incomplete body.
    Cut(OpCode),
}

impl Act {
    fn random(rng: &mut StdRng) -> Self {
        match rng.random_range(0..100) {
            0 => Self::Renew,
            1 => Self::Move,
            2..4 => {
                let paths = (0..rng.random_range(0..10)).map(|_| path(rng)).collect();
                Self::Reconnect { missed: rng.random_range(0..40), paths }
            }
            _ => Self::Call(Call::random(rng)),
        }
    }
}

fn path(rng: &mut StdRng) -> &'static str {
    // Mostly a path that can exist.
    let known = if rng.random_bool(0.95) { &PATHS[..9] } else { &PATHS[..] };
    known.choose(rng).unwrap()
}

fn version(rng: &mut StdRng) -> i32 {
    if rng.random_bool(0.7) { -1 } else { rng.random_range(-2..3) }
}

fn acl(rng: &mut StdRng) -> Vec<Acl> {
    let entry = |permissions, scheme: &str, id: &str| Acl { permissions, scheme: scheme.into(), id: id.into() };
    if rng.random_bool(0.9) {
        return vec![Acl::open()];
    }
    let choices = [
        entry(1, "world", "anyone"),
        entry(31, "world", "nobody"),
        entry(31, "auth", ""),
        entry(rng.random_range(0..32), "digest", "u:Jq7wMyA/w2Vd5WIDAKdu4OIIFEQ="),
        entry(31, "digest", "broken"),
        entry(rng.random_range(0..32), "ip", "127.0.0.0/8"),
        entry(31, "ip", "10.0.0.1"),
        entry(31, "ip", "10.0.0.1/40"),
        entry(31, "what", "ever"),
    ];
    let mut list: Vec<_> = (0..rng.random_range(0..3)).map(|_| choices.choose(rng).unwrap().clone()).collect();
    // Without this, most of the tree would soon be closed to everybody.
    if rng.random_bool(0.7) {
        list.push(Acl::open());
    }
    list
}

impl Call {
    fn random(rng: &mut StdRng) -> Self {
        use OpCode::{
            CheckWatches, Exists, GetAcl, GetAllChildrenNumber, GetChildren, GetChildren2, GetData, GetEphemerals,
            RemoveWatches, Sync,
        };
        match rng.random_range(0..100) {
            0..50 => Self::write(rng),
            50..72 => Self::Read {
                op_code: *[Exists, GetData, GetChildren, GetChildren2].choose(rng).unwrap(),
                path: path(rng),
                watch: rng.random_bool(0.6),
            },
            72..77 => Self::Path {
                op_code: *[GetAcl, GetAllChildrenNumber, GetEphemerals, Sync].choose(rng).unwrap(),
                path: path(rng),
            },
            77..79 => Self::SetAcl { path: path(rng), acl: acl(rng), version: version(rng) },
            79..84 => Self::Watch { op_code: OpCode::AddWatch, path: path(rng), kind: rng.random_range(0..3) },
            84..87 => Self::Watch {
                op_code: *[CheckWatches, RemoveWatches].choose(rng).unwrap(),
                path: path(rng),
                kind: rng.random_range(1..7),
            },
            87..93 => Self::Multi((0..rng.random_range(0..6)).map(|_| Self::part(rng)).collect()),
            93..96 => {
                let part = |rng: &mut StdRng| Self::Read {
                    op_code: *[GetChildren, GetData].choose(rng).unwrap(),
                    path: path(rng),
                    watch: rng.random_bool(0.3),
                };
                Self::MultiRead((0..rng.random_range(0..5)).map(|_| part(rng)).collect())
            }
            96 => Self::Auth(["u:p", "other:secret"].choose(rng).unwrap()),
            97 => Self::Bare(OpCode::WhoAmI),
            98 => Self::Bare(OpCode::Ping),
            _ => Self::Cut(
                *[OpCode::Create2, OpCode::Delete, GetData, OpCode::Multi, OpCode::MultiRead, OpCode::SetWatches2]
                    .choose(rng)
                    .unwrap(),
            ),
        }
    }

    fn part(rng: &mut StdRng) -> Self {
        if rng.random_bool(0.15) { Self::Check { path: path(rng), version: version(rng) } } else { Self::write(rng) }
    }

    fn write(rng: &mut StdRng) -> Self {
        let data = rng.random_bool(0.9).then(|| rng.random());
        match rng.random_range(0..10) {
            0..5 => {
                let (op_code, modes): (_, &[i32]) = match rng.random_range(0..8) {
                    0..2 => (OpCode::Create, &[0, 0, 1, 1, 2, 3, 4, 5, 6, 7]),
                    2..6 => (OpCode::Create2, &[0, 0, 1, 1, 2, 3, 4, 5, 6, 7]),
                    6 => (OpCode::CreateContainer, &[4, 4, 4, 0, 5]),
                    _ => (OpCode::CreateTtl, &[5, 5, 5, 6, 6, 0, 4]),
                };
                let flags = *modes.choose(rng).unwrap();
                let ttl = (op_code == OpCode::CreateTtl).then(|| match flags {
                    // Mostly hours.
                    5 | 6 => *[10_000_000, 10_000_000, 0xff_ffff_ffff, 0x100_0000_0000, 0, -1].choose(rng).unwrap(),
                    // A negative one crashes ZooKeeper.
                    _ => 1,
                });
                Self::Create { op_code, path: path(rng), data, acl: acl(rng), flags, ttl }
            }
            5..8 => Self::Delete { path: path(rng), version: version(rng) },
            _ => Self::SetData { path: path(rng), data, version: version(rng) },
        }
    }

    fn op_code(&self) -> OpCode {
        match self {
            Self::Create { op_code, .. }
            | Self::Read { op_code, .. }
            | Self::Path { op_code, .. }
            | Self::Watch { op_code, .. }
            | Self::Bare(op_code)
            | Self::Cut(op_code) => *op_code,
            Self::Delete { .. } => OpCode::Delete,
            Self::SetData { .. } => OpCode::SetData,
            Self::SetAcl { .. } => OpCode::SetAcl,
            Self::Check { .. } => OpCode::Check,
            Self::Multi(_) => OpCode::Multi,
            Self::MultiRead(_) => OpCode::MultiRead,
            Self::Auth(_) => OpCode::Auth,
        }
    }

    fn encode(&self, encoder: &mut Encoder) {
        let acls = |encoder: &mut Encoder, acl: &[Acl]| {
            encoder.count(acl.len());
            acl.iter().for_each(|entry| entry.encode(encoder));
        };
        match self {
            Self::Create { path, data, acl, flags, ttl, .. } => {
                encoder.string(path);
                encoder.optional_bytes(data.as_ref().map(std::slice::from_ref));
                acls(encoder, acl);
                encoder.int(*flags);
                ttl.iter().for_each(|ttl| encoder.long(*ttl));
            }
            Self::Delete { path, version } | Self::Check { path, version } => {
                encoder.string(path);
                encoder.int(*version);
            }
            Self::Read { path, watch, .. } => {
                encoder.string(path);
                encoder.boolean(*watch);
            }
            Self::SetData { path, data, version } => {
                encoder.string(path);
                encoder.optional_bytes(data.as_ref().map(std::slice::from_ref));
                encoder.int(*version);
            }
            Self::SetAcl { path, acl, version } => {
                encoder.string(path);
                acls(encoder, acl);
                encoder.int(*version);
            }
            Self::Path { path, .. } => encoder.string(path),
            Self::Watch { path, kind, .. } => {
                encoder.string(path);
                encoder.int(*kind);
            }
            Self::Multi(parts) | Self::MultiRead(parts) => {
                for part in parts {
                    encoder.int(part.op_code() as i32);
                    encoder.boolean(false);
                    encoder.int(-1);
                    part.encode(encoder);
                }
                encoder.int(-1);
                encoder.boolean(true);
                encoder.int(-1);
            }
            Self::Auth(proof) => {
                encoder.int(0);
                encoder.string("digest");
                encoder.bytes(proof.as_bytes());
            }
            Self::Bare(_) => {}
            Self::Cut(_) => encoder.int(3),
        }
    }
}

/// One of the two servers, and its clients.
struct Side {
    address: SocketAddr,
    clients: Vec<Raw>,
    /// Session ids, by the order in which the sessions were made.
    sessions: BTreeMap<i64, usize>,
    /// The transaction from which both servers count alike.
    base: i64,
}

impl Side {
    async fn connect(address: SocketAddr) -> Self {
        let mut side = Self { address, clients: Vec::new(), sessions: BTreeMap::new(), base: 0 };
        for _ in 0..CLIENTS {
            let client = side.new_session(LIFETIME).await;
            side.clients.push(client);
        }
        let mut ignored = String::new();
        side.base = side.call(0, &Call::Bare(OpCode::Ping), &mut ignored).await;
        side
    }

    async fn new_session(&mut self, timeout: Duration) -> Raw {
        let client = self.open(&newcomer(timeout)).await;
        let count = self.sessions.len();
        self.sessions.insert(client.session.session_id, count + 1);
        client
    }

    async fn open(&self, request: &ConnectRequest) -> Raw {
        Raw::connect(self.address, request).await.expect("a handshake is answered")
    }

    /// Carries an act out. Returns everything that any client receives in response.
    async fn carry_out(&mut self, client: usize, act: &Act) -> String {
        let mut heard = String::new();
        // The messages about a session's end have no order.
        let mut is_ordered = true;
        match act {
            Act::Call(call) => drop(self.call(client, call, &mut heard).await),
            Act::Renew => {
                is_ordered = false;
                self.call(client, &Call::Bare(OpCode::CloseSession), &mut heard).await;
                assert!(self.clients[client].next().await.is_none(), "closed after its last reply");
                self.clients[client] = self.new_session(LIFETIME).await;
            }
            Act::Move => {
                let again = self.open(&resumption(&self.clients[client].session)).await;
                let mut before = std::mem::replace(&mut self.clients[client], again);
                assert!(before.next().await.is_none(), "the connection that had it is closed");
            }
            Act::Reconnect { missed, paths } => {
                // ZooKeeper forgets a connection by its session's id only when it closes it. If the next connection
                // exists by then, it is forgotten too, and is not closed when its session moves.
                self.clients[client].hang_up().await;
                while self.clients[client].next().await.is_some() {}
                self.clients[client] = self.open(&resumption(&self.clients[client].session)).await;
                self.set_watches(client, *missed, paths, &mut heard).await;
            }
        }
        for other in 0..CLIENTS {
            self.call(other, &Call::Bare(OpCode::Ping), &mut heard).await;
        }
        if !is_ordered {
            let mut lines: Vec<_> = heard.lines().collect();
            lines.sort_unstable();
            return lines.join("\n");
        }
        heard
    }

    async fn call(&mut self, client: usize, call: &Call, heard: &mut String) -> i64 {
        let mut encoder = Encoder::new();
        call.encode(&mut encoder);
        self.exchange(client, call.op_code(), &encoder.take(), heard).await
    }

    /// Sends `setWatches2`, with five lists of paths, one for each kind of watch.
    async fn set_watches(&mut self, client: usize, missed: i64, paths: &[&'static str], heard: &mut String) {
        let now = self.call(client, &Call::Bare(OpCode::Ping), heard).await;
        let mut encoder = Encoder::new();
        // Transactions before the base differ: there ZooKeeper's root is new, and the embedded server's is old.
        encoder.long((now - missed).max(self.base));
        for kind in 0..5 {
            let paths: Vec<_> = paths.iter().skip(kind).step_by(5).collect();
            encoder.count(paths.len());
            paths.into_iter().for_each(|path| encoder.string(path));
        }
        self.exchange(client, OpCode::SetWatches2, &encoder.take(), heard).await;
    }

    /// Sends a request, and reads everything up to its reply. Returns the reply's transaction id.
    async fn exchange(&mut self, client: usize, op_code: OpCode, body: &[u8], heard: &mut String) -> i64 {
        let xid = self.clients[client].send(op_code, body).await;
        loop {
            let frame = self.clients[client].next().await.expect("a request is answered");
            let Frame { header, body: mut decoder } = frame;
            let zxid = self.zxid(header.zxid);
            if header.xid == xid::NOTIFICATION {
                let event = WatcherEvent::decode(&mut decoder).unwrap();
                writeln!(heard, "client {client} event {zxid} {event:?}").unwrap();
                continue;
            }
            assert_eq!(header.xid, xid);
            let body = if header.error == 0 { self.body(op_code, &mut decoder) } else { String::new() };
            writeln!(heard, "client {client} {op_code:?} {zxid} error {} {body}", header.error).unwrap();
            assert!(decoder.is_empty(), "left over after {heard}");
            return header.zxid;
        }
    }

    fn zxid(&self, zxid: i64) -> i64 {
        if zxid <= 0 { zxid } else { zxid - self.base }
    }

    fn body(&self, op_code: OpCode, decoder: &mut Decoder) -> String {
        let names = |decoder: &mut Decoder| {
            let mut names = decoder.vector(Decoder::string).unwrap();
            names.sort_unstable();
            format!("{names:?}")
        };
        match op_code {
            OpCode::Create | OpCode::Sync => decoder.string().unwrap(),
            OpCode::Create2 | OpCode::CreateContainer | OpCode::CreateTtl => {
                let path = decoder.string().unwrap();
                format!("{path} {}", self.stat(decoder))
            }
            OpCode::Exists | OpCode::SetData | OpCode::SetAcl => self.stat(decoder),
            OpCode::GetData => {
                let data = decoder.optional_bytes().unwrap();
                format!("{data:?} {}", self.stat(decoder))
            }
            OpCode::GetChildren | OpCode::GetEphemerals => names(decoder),
            OpCode::GetChildren2 => {
                let names = names(decoder);
                format!("{names} {}", self.stat(decoder))
            }
            OpCode::GetAcl => {
                let acl = decoder.vector(Acl::decode).unwrap();
                format!("{acl:?} {}", self.stat(decoder))
            }
            OpCode::GetAllChildrenNumber | OpCode::AddWatch => decoder.int().unwrap().to_string(),
            OpCode::WhoAmI => {
                let mut who =
                    decoder.vector(|decoder| Ok(format!("{}:{}", decoder.string()?, decoder.string()?))).unwrap();
                who.sort_unstable();
                format!("{who:?}")
            }
            OpCode::Multi | OpCode::MultiRead => {
                let mut parts = String::new();
                loop {
                    let (kind, done, error) =
                        (decoder.int().unwrap(), decoder.boolean().unwrap(), decoder.int().unwrap());
                    if done {
                        assert_eq!((kind, error), (-1, -1));
                        return parts;
                    }
                    let body = match OpCode::from_wire(kind) {
                        Some(op_code) => self.body(op_code, decoder),
                        None => decoder.int().unwrap().to_string(),
                    };
                    write!(parts, "\n  {kind} {error} {body}").unwrap();
                }
            }
            _ => String::new(),
        }
    }

    fn stat(&self, decoder: &mut Decoder) -> String {
        let stat = Stat::decode(decoder).unwrap();
        assert!(stat.ctime <= stat.mtime, "{stat:?}");
        let equal = Stat {
            czxid: self.zxid(stat.czxid),
            mzxid: self.zxid(stat.mzxid),
            pzxid: self.zxid(stat.pzxid),
            ctime: stat.ctime.min(1),
            mtime: stat.mtime.min(1),
            ephemeral_owner: self
                .sessions
                .get(&stat.ephemeral_owner)
                .map_or(stat.ephemeral_owner, |&index| i64::try_from(index).unwrap()),
            ..stat
        };
        format!("{equal:?}")
    }
}
