//! The rules, stepped by hand with a clock of the test's.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rollcall_wire::server::{CreateKind, Part, Refused, Request, Response, SetWatches, WatcherKind};
use rollcall_wire::{
    Acl, ConnectRequest, ConnectResponse, Decoder, ErrorCode, EventKind, OpCode, ReplyHeader, Stat, WatchMode,
};

use crate::Config;
use crate::state::{Effect, State};
use crate::types::{ConnectionId, Now};

const PEER: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 1);
const PERSISTENT: i32 = 0;
const EPHEMERAL: i32 = 1;
const SEQUENTIAL: i32 = 2;

struct Server {
    state: State,
    now: Now,
    /// Everything that any connection got besides its replies.
    told: Vec<(ConnectionId, Effect)>,
}

impl Server {
    fn new() -> Self {
        let now = Now { elapsed_ms: 0, wall_ms: 1_000_000 };
        let config = Config { tick: std::time::Duration::from_secs(1), ..Config::default() };
        Self { state: State::new(config, now, 7), now, told: Vec::new() }
    }

    fn connect(&mut self, session_id: i64, password: &Bytes) -> (ConnectionId, Option<ConnectResponse>) {
        let id = self.state.accept(SocketAddr::from(PEER), self.now);
        let request = ConnectRequest { last_zxid_seen: 0, timeout_ms: 4000, session_id, password: password.clone() };
        let mut effects = Vec::new();
        self.state.connect(id, &request, self.now, &mut effects);
        let mut response = None;
        for effect in effects {
            match effect {
                (to, Effect::Handshake(handshake)) if to == id => response = Some(handshake),
                other => self.told.push(other),
            }
        }
        (id, response)
    }

    fn client(&mut self) -> ConnectionId {
        self.connect(0, &Bytes::new()).0
    }

    fn ask(&mut self, id: ConnectionId, request: Request) -> Result<Response, ErrorCode> {
        let (header, response) = self.ask_raw(id, Ok(request)).expect("every request is answered");
        ErrorCode::from_wire(header.error).map_or(Ok(response), Err)
    }

    fn ask_raw(&mut self, id: ConnectionId, request: Result<Request, Refused>) -> Option<(ReplyHeader, Response)> {
        let mut effects = Vec::new();
        self.state.request(id, 5, request, self.now, &mut effects);
        let mut reply = None;
        for effect in effects {
            match effect {
                (to, Effect::Reply(header, body)) if to == id => reply = Some((header, body)),
                (to, effect @ Effect::Event(..)) => {
                    assert!(reply.is_none(), "events come before the reply");
                    self.told.push((to, effect));
                }
                other => self.told.push(other),
            }
        }
        reply
    }

    fn create(&mut self, id: ConnectionId, path: &str, flags: i32) -> Result<String, ErrorCode> {
        match self.ask(id, create(path, flags))? {
            Response::Created { path, .. } => Ok(path),
            other => panic!("not a create's answer: {other:?}"),
        }
    }

    fn stat(&mut self, id: ConnectionId, path: &str) -> Option<Stat> {
        match self.ask(id, Request::Exists { path: path.into(), watch: false }) {
            Ok(Response::Stat(stat)) => Some(stat),
            Err(ErrorCode::NoNode) => None,
            other => panic!("not a stat: {other:?}"),
        }
    }

    fn pass(&mut self, ms: u64) {
        self.now.elapsed_ms += ms;
        self.now.wall_ms += i64::try_from(ms).unwrap();
        let mut effects = Vec::new();
        self.state.expire(self.now, &mut effects);
        self.state.sweep(self.now, &mut effects);
        self.told.extend(effects);
    }

    /// The events since the last look, as a connection got them.
    fn events(&mut self, id: ConnectionId) -> Vec<(EventKind, String)> {
        let event = |(to, effect): (ConnectionId, Effect)| match effect {
            Effect::Event(_, event) if to == id => Some((event.kind, event.path)),
            _ => None,
        };
        std::mem::take(&mut self.told).into_iter().filter_map(event).collect()
    }
}

fn create(path: &str, flags: i32) -> Request {
    create_with(path, flags, CreateKind::PathAndStat)
}

fn create_with(path: &str, flags: i32, kind: CreateKind) -> Request {
    Request::Create { path: path.into(), data: Some(Bytes::from_static(b"x")), acl: vec![Acl::open()], flags, kind }
}

fn set(path: &str, version: i32) -> Request {
    Request::SetData { path: path.into(), data: None, version }
}

fn delete(path: &str) -> Request {
    Request::Delete { path: path.into(), version: -1 }
}

#[test]
fn every_part_of_a_multi_has_the_same_transaction() {
    let mut server = Server::new();
    let me = server.client();
    server.create(me, "/a", PERSISTENT).unwrap();
    let parts = vec![create("/a/b", PERSISTENT), create("/a/c", PERSISTENT), set("/a", 0), delete("/a/b")];
    let Ok(Response::Parts(results)) = server.ask(me, Request::Multi(parts)) else { panic!("no parts") };
    assert!(matches!(results[3], Part::Done(OpCode::Delete, Response::Done)));
    let (a, c) = (server.stat(me, "/a").unwrap(), server.stat(me, "/a/c").unwrap());
    assert_eq!((a.mzxid, a.pzxid), (c.czxid, c.czxid));
    assert_eq!((a.version, a.cversion, a.num_children, a.data_length), (1, 3, 1, 0));
}

#[test]
fn a_multi_that_fails_leaves_nothing_but_its_number() {
    let mut server = Server::new();
    let me = server.client();
    server.create(me, "/a", PERSISTENT).unwrap();
    server.create(me, "/a/old", EPHEMERAL).unwrap();
    server.ask(me, Request::AddWatch { path: "/".into(), mode: WatchMode::PersistentRecursive }).unwrap();
    let before =
        (server.stat(me, "/a"), server.stat(me, "/a/old"), server.state.last_zxid().0, server.state.tree.bytes());
    let parts = vec![
        delete("/a/old"),
        create("/a/old", SEQUENTIAL),
        create("/a/old", PERSISTENT),
        set("/a", 0),
        set("/a", 1),
        delete("/a/old"),
        set("/a", 9),
        delete("/a"),
    ];
    let Ok(Response::Parts(results)) = server.ask(me, Request::Multi(parts)) else { panic!("no parts") };
    assert_eq!(results[..6], vec![Part::Failed(None); 6]);
    assert_eq!(results[6], Part::Failed(Some(ErrorCode::BadVersion)));
    assert_eq!(results[7], Part::Failed(Some(ErrorCode::RuntimeInconsistency)));
    let after =
        (server.stat(me, "/a"), server.stat(me, "/a/old"), server.state.last_zxid().0 - 1, server.state.tree.bytes());
    assert_eq!(before, after);
    assert_eq!(server.events(me), []);
    let Ok(Response::Names(names)) = server.ask(me, Request::GetEphemerals { prefix: String::new() }) else { panic!() };
    assert_eq!(names, ["/a/old".into()]);
}

#[test]
fn sequential_nodes_count_creates() {
    let mut server = Server::new();
    let me = server.client();
    server.create(me, "/q", PERSISTENT).unwrap();
    assert_eq!(server.create(me, "/q/n-", SEQUENTIAL).unwrap(), "/q/n-0000000000");
    server.ask(me, delete("/q/n-0000000000")).unwrap();
    assert_eq!(server.create(me, "/q/", SEQUENTIAL).unwrap(), "/q/0000000001");
    assert_eq!(server.stat(me, "/q").unwrap().cversion, 3);
}

#[cfg(feature = "faults")]
#[test]
fn sequential_nodes_count_to_the_largest_number_and_no_further() {
    let mut server = Server::new();
    let me = server.client();
    server.create(me, "/q", PERSISTENT).unwrap();
    assert!(server.state.tree.make_old("/q", i32::MAX - 1) && !server.state.tree.make_old("/none", 1));
    assert_eq!(server.create(me, "/q/n-", SEQUENTIAL).unwrap(), "/q/n-2147483646");
    let before = server.stat(me, "/q").unwrap();
    for name in ["a", "b"] {
        assert_eq!(server.create(me, &format!("/q/{name}"), SEQUENTIAL).unwrap(), format!("/q/{name}2147483647"));
    }
    let after = server.stat(me, "/q").unwrap();
    assert_eq!((after.pzxid, after.cversion), (before.pzxid, before.cversion - 2));
}

#[test]
fn ephemerals_go_with_their_session_in_one_transaction() {
    let mut server = Server::new();
    let (me, other) = (server.client(), server.client());
    server.create(me, "/a", PERSISTENT).unwrap();
    for path in ["/a/x", "/a/y"] {
        server.create(other, path, EPHEMERAL).unwrap();
    }
    assert_eq!(server.create(me, "/a/x/below", PERSISTENT), Err(ErrorCode::NoChildrenForEphemerals));
    server.ask(me, Request::AddWatch { path: "/a".into(), mode: WatchMode::Persistent }).unwrap();
    server.ask(me, Request::GetData { path: "/a/x".into(), watch: true }).unwrap();
    let zxid = server.state.last_zxid().0;
    server.pass(3000);
    server.ask(me, Request::Ping).unwrap();
    server.pass(2000);
    assert!(server.told.contains(&(other, Effect::Close)));
    assert_eq!(server.state.last_zxid().0, zxid + 1);
    assert_eq!(server.stat(me, "/a").unwrap().pzxid, zxid + 1);
    assert_eq!(
        server.events(me),
        [
            (EventKind::Deleted, "/a/x".to_owned()),
            (EventKind::ChildrenChanged, "/a".to_owned()),
            (EventKind::ChildrenChanged, "/a".to_owned()),
        ]
    );
    assert_eq!(server.ask_raw(other, Ok(Request::Ping)), None, "who is over is not answered");
}

#[test]
fn a_session_moves_and_the_connection_that_had_it_goes() {
    let mut server = Server::new();
    let (first, handshake) = server.connect(0, &Bytes::new());
    let handshake = handshake.unwrap();
    server.create(first, "/e", EPHEMERAL).unwrap();
    let (guess, over) = server.connect(handshake.session_id, &Bytes::from_static(b"guess"));
    assert_eq!(over.unwrap().timeout_ms, 0);
    assert_eq!(server.told, [(guess, Effect::Close)]);
    let (second, again) = server.connect(handshake.session_id, &handshake.password);
    assert_eq!(again.unwrap().session_id, handshake.session_id);
    assert!(server.told.contains(&(first, Effect::Close)));
    server.state.disconnect(first);
    server.pass(3900);
    assert_eq!(server.stat(second, "/e").unwrap().ephemeral_owner, handshake.session_id);
    server.ask(second, Request::CloseSession).unwrap();
    let (_, over) = server.connect(handshake.session_id, &handshake.password);
    assert_eq!(over.unwrap().timeout_ms, 0);
}

#[test]
fn who_has_seen_a_later_server_is_sent_away() {
    let mut server = Server::new();
    let id = server.state.accept(SocketAddr::from(PEER), server.now);
    let last_zxid_seen = server.state.last_zxid().0 + 1;
    let request = ConnectRequest { last_zxid_seen, timeout_ms: 1, session_id: 0, password: Bytes::new() };
    let mut effects = Vec::new();
    server.state.connect(id, &request, server.now, &mut effects);
    assert_eq!(effects, [(id, Effect::Close)]);
}

#[test]
fn watches_set_again_tell_what_was_missed() {
    let mut server = Server::new();
    let me = server.client();
    for path in ["/kept", "/written", "/parent"] {
        server.create(me, path, PERSISTENT).unwrap();
    }
    let relative_zxid = server.state.last_zxid().0;
    server.ask(me, set("/written", -1)).unwrap();
    server.create(me, "/parent/child", PERSISTENT).unwrap();
    let watches = SetWatches {
        relative_zxid,
        data: vec!["/kept".into(), "/written".into(), "/gone".into()],
        exist: vec!["/kept".into(), "/never".into()],
        child: vec!["/kept".into(), "/parent".into()],
        ..SetWatches::default()
    };
    server.ask(me, Request::SetWatches(Box::new(watches))).unwrap();
    let expected = [
        (EventKind::DataChanged, "/written"),
        (EventKind::Deleted, "/gone"),
        (EventKind::Created, "/kept"),
        (EventKind::ChildrenChanged, "/parent"),
    ];
    assert_eq!(server.events(me), expected.map(|(kind, path)| (kind, path.to_owned())));
    server.ask(me, set("/kept", -1)).unwrap();
    server.create(me, "/never", PERSISTENT).unwrap();
    server.create(me, "/kept/child", PERSISTENT).unwrap();
    let expected =
        [(EventKind::DataChanged, "/kept"), (EventKind::Created, "/never"), (EventKind::ChildrenChanged, "/kept")];
    assert_eq!(server.events(me), expected.map(|(kind, path)| (kind, path.to_owned())));
}

#[test]
fn containers_and_nodes_with_a_time_to_live_go_by_themselves() {
    let mut server = Server::new();
    let me = server.client();
    server.ask(me, create_with("/container", 4, CreateKind::Container)).unwrap();
    server.ask(me, create_with("/ttl", 5, CreateKind::Ttl(1500))).unwrap();
    assert_eq!(server.stat(me, "/ttl").unwrap().ephemeral_owner, 0);
    server.pass(1000);
    assert!(server.stat(me, "/container").is_some(), "never used");
    server.create(me, "/container/child", PERSISTENT).unwrap();
    server.ask(me, delete("/container/child")).unwrap();
    server.pass(1000);
    assert_eq!(server.stat(me, "/container"), None);
    assert_eq!(server.stat(me, "/ttl"), None);
    for (flags, kind) in
        [(5, CreateKind::Ttl(0)), (5, CreateKind::Path), (0, CreateKind::Ttl(5)), (7, CreateKind::Path)]
    {
        assert_eq!(server.ask(me, create_with("/bad", flags, kind)), Err(ErrorCode::BadArguments));
    }
}

#[test]
fn who_may_not_read_a_node_is_not_told_of_it() {
    let mut server = Server::new();
    let (me, other) = (server.client(), server.client());
    let auth = Request::Auth { scheme: "digest".into(), auth: Bytes::from_static(b"u:p") };
    server.ask(me, auth).unwrap();
    for id in [me, other] {
        server.ask(id, Request::AddWatch { path: "/".into(), mode: WatchMode::PersistentRecursive }).unwrap();
    }
    let acl = vec![Acl { permissions: 31, scheme: "auth".into(), id: String::new() }];
    let secret = Request::Create { path: "/secret".into(), data: None, acl, flags: 0, kind: CreateKind::PathAndStat };
    server.ask(me, secret).unwrap();
    let told = server.told.clone();
    assert_eq!(server.events(me), [(EventKind::Created, "/secret".to_owned())]);
    server.told = told;
    assert_eq!(server.events(other), []);
    assert_eq!(server.ask(other, set("/secret", -1)), Err(ErrorCode::NoAuth));
    assert_eq!(server.ask(other, Request::GetAcl { path: "/secret".into() }), Err(ErrorCode::NoAuth));
    server.ask(other, delete("/secret")).expect("deleting is the parent's to allow");
}

#[test]
fn a_failed_write_takes_a_number_and_a_read_takes_none() {
    let mut server = Server::new();
    let me = server.client();
    let zxid = server.state.last_zxid().0;
    let (header, _) = server.ask_raw(me, Ok(delete("/absent"))).unwrap();
    assert_eq!((header.zxid, header.error), (zxid + 1, -101));
    let (header, _) = server.ask_raw(me, Ok(Request::Sync { path: "/".into() })).unwrap();
    assert_eq!(header.zxid, zxid + 1);
    let (header, _) = server.ask_raw(me, Err(Refused::Unknown)).unwrap();
    assert_eq!((header.zxid, header.error), (-1, -6));
    assert_eq!(server.told, [(me, Effect::Close)]);
}

#[test]
fn a_login_with_sasl_gets_a_null_token_and_one_that_can_not_be_read_is_hung_up_on() {
    let mut server = Server::new();
    let me = server.client();
    let (header, body) = server.ask_raw(me, Ok(Request::Sasl)).unwrap();
    assert_eq!((header.zxid, header.error, body), (0, 0, Response::NoToken));
    assert!(server.told.is_empty());
    assert!(server.ask_raw(me, Err(Refused::MalformedLogin)).is_none());
    assert_eq!(server.told, [(me, Effect::Close)]);
}

#[test]
fn a_new_tree_is_as_zookeepers() {
    let mut server = Server::new();
    let me = server.client();
    let root = server.stat(me, "/").unwrap();
    assert_eq!((root.cversion, root.num_children, root.pzxid), (-1, 1, 0));
    assert_eq!(server.ask(me, delete("/zookeeper/quota")), Err(ErrorCode::BadArguments));
    assert_eq!(server.ask(me, set("/zookeeper/config", -1)), Err(ErrorCode::NoAuth));
    let below = |path: &str| Request::GetAllChildrenNumber { path: path.into() };
    assert_eq!(server.ask(me, below("/")), Ok(Response::Count(3)));
    assert_eq!(server.ask(me, below("/zookeeper")), Ok(Response::Count(2)));
}

/// Random and mutated bodies of every operation: no panic, and the server's counts still add up.
#[test]
fn no_bytes_break_the_state() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut server = Server::new();
    let mut clients: Vec<_> = (0..4).map(|_| server.client()).collect();
    for round in 0..60_000 {
        let mut body = body(&mut rng);
        for _ in 0..rng.random_range(0..3) {
            mutate(&mut rng, &mut body);
        }
        let number = if rng.random_bool(0.9) { rng.random_range(1..=22) } else { rng.random_range(-12..110) };
        let request = Request::decode(number, &mut Decoder::new(body.into()));
        let index = rng.random_range(0..clients.len());
        if matches!(request, Ok(Request::CloseSession)) {
            continue;
        }
        server.ask_raw(clients[index], request);
        if server.told.contains(&(clients[index], Effect::Close)) || round % 997 == 0 {
            server.state.disconnect(clients[index]);
            clients[index] = server.client();
        }
        server.told.clear();
        if round % 100 == 0 {
            server.pass(rng.random_range(0..400));
        }
    }
    for client in clients {
        server.state.disconnect(client);
    }
    server.pass(100_000);
    assert_eq!((server.state.sessions.len(), server.state.watches.total()), (0, 0));
    assert_eq!(server.state.tree.ephemeral_count(), 0);
}

/// A body that many operations can read: a path, and fields that may follow it.
fn body(rng: &mut StdRng) -> Vec<u8> {
    const PATHS: [&str; 8] = ["/", "/a", "/a/b", "/a/b/", "", "/a//", "/ü", "/a/b/c-"];
    let mut encoder = rollcall_wire::Encoder::new();
    let is_multi = rng.random_bool(0.2);
    for _ in 0..if is_multi { rng.random_range(0..5) } else { 1 } {
        if is_multi {
            encoder.int(rng.random_range(1..22));
            encoder.boolean(false);
            encoder.int(-1);
        }
        encoder.string(PATHS[rng.random_range(0..PATHS.len())]);
        if rng.random_bool(0.7) {
            encoder.bytes(&vec![b'x'; rng.random_range(0..20)]);
            encoder.count(1);
            Acl { permissions: rng.random_range(0..32), ..Acl::open() }.encode(&mut encoder);
            encoder.int(rng.random_range(0..7));
        } else {
            encoder.int(rng.random_range(-1..4));
        }
    }
    encoder.int(-1);
    encoder.boolean(true);
    encoder.int(-1);
    encoder.take().to_vec()
}

fn mutate(rng: &mut StdRng, bytes: &mut Vec<u8>) {
    let at = rng.random_range(0..=bytes.len());
    match rng.random_range(0..4) {
        0 => bytes.truncate(at),
        1 => bytes.insert(at, rng.random()),
        2 => bytes.extend((0..rng.random_range(0..30)).map(|_| rng.random::<u8>())),
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = if rng.random_bool(0.5) { rng.random() } else { 0xff };
            }
        }
    }
}

#[test]
fn removing_a_watch_that_is_not_there_is_an_error() {
    let mut server = Server::new();
    let me = server.client();
    let remove = |kind| Request::RemoveWatches { path: "/a".into(), kind };
    assert_eq!(server.ask(me, Request::Exists { path: "/a".into(), watch: true }), Err(ErrorCode::NoNode));
    assert_eq!(server.ask(me, remove(WatcherKind::Children)), Err(ErrorCode::NoWatcher));
    assert_eq!(
        server.ask(me, Request::CheckWatches { path: "/a".into(), kind: WatcherKind::Data }),
        Ok(Response::Done)
    );
    assert_eq!(server.ask(me, remove(WatcherKind::Any)), Ok(Response::Done));
    assert_eq!(server.ask(me, remove(WatcherKind::Any)), Err(ErrorCode::NoWatcher));
}
