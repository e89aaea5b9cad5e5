//! Each half reads the frames that the other writes.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use bytes::Bytes;
use rollcall_wire::server::{self, CreateKind, Part, Refused, WatcherKind};
use rollcall_wire::{
    Acl, ConnectRequest, ConnectResponse, CreateMode, Decoder, Encoder, ErrorCode, EventKind, Malformed, OpCode,
    ReplyHeader, Request, RequestHeader, Response, Stat, WatchMode, WatcherEvent,
};

fn written(write: impl FnOnce(&mut Encoder)) -> Decoder {
    let mut encoder = Encoder::new();
    write(&mut encoder);
    Decoder::new(encoder.take())
}

fn received(request: &Request) -> Result<server::Request, Refused> {
    let mut decoder = written(|encoder| request.encode(encoder));
    let received = server::Request::decode(request.op_code() as i32, &mut decoder);
    assert!(received.is_err() || decoder.is_empty(), "left over of {request:?}");
    received
}

fn answered(op_code: OpCode, response: &server::Response) -> Result<Response, Malformed> {
    let mut decoder = written(|encoder| response.encode(encoder));
    let answered = Response::decode(op_code, &mut decoder)?;
    assert!(decoder.is_empty() || op_code == OpCode::AddWatch, "left over of {response:?}");
    Ok(answered)
}

const STAT: Stat = Stat {
    czxid: 1,
    mzxid: 2,
    ctime: 3,
    mtime: 4,
    version: 5,
    cversion: -6,
    aversion: 7,
    ephemeral_owner: 8,
    data_length: 9,
    num_children: 10,
    pzxid: i64::MAX,
};

#[test]
fn requests_arrive_as_they_were_sent() {
    let path = || "/ü".to_owned();
    let data = Bytes::from_static(b"data");
    let create = Request::Create {
        path: path(),
        data: data.clone(),
        acl: vec![Acl::open()],
        mode: CreateMode::EphemeralSequential,
    };
    let created = server::Request::Create {
        path: path(),
        data: Some(data.clone()),
        acl: vec![Acl::open()],
        flags: 3,
        kind: CreateKind::PathAndStat,
    };
    let set = Request::SetData { path: path(), data: data.clone(), version: 7 };
    let written = server::Request::SetData { path: path(), data: Some(data), version: 7 };
    let (get, got) =
        (Request::GetData { path: path(), watch: true }, server::Request::GetData { path: path(), watch: true });
    let pairs = [
        (create.clone(), created.clone()),
        (set.clone(), written.clone()),
        (get.clone(), got.clone()),
        (
            Request::GetChildren { path: path(), watch: false },
            server::Request::GetChildren2 { path: path(), watch: false },
        ),
        (
            Request::AddWatch { path: path(), mode: WatchMode::PersistentRecursive },
            server::Request::AddWatch { path: path(), mode: WatchMode::PersistentRecursive },
        ),
        (
            Request::RemoveWatches { path: path() },
            server::Request::RemoveWatches { path: path(), kind: WatcherKind::Any },
        ),
        (Request::Multi(vec![create, set]), server::Request::Multi(vec![created, written])),
        (
            Request::MultiRead(vec![get, Request::GetChildren { path: path(), watch: false }]),
            server::Request::MultiRead(vec![got, server::Request::GetChildren { path: path(), watch: false }]),
        ),
        (Request::Ping, server::Request::Ping),
        (Request::CloseSession, server::Request::CloseSession),
    ];
    for (sent, expected) in pairs {
        assert_eq!(received(&sent), Ok(expected));
    }
}

#[test]
fn a_check_is_no_request_of_its_own_and_multis_do_not_mix() {
    assert_eq!(received(&Request::Check { path: "/".into(), version: 1 }), Err(Refused::Unknown));
    let read = Request::GetData { path: "/".into(), watch: false };
    assert_eq!(received(&Request::Multi(vec![read.clone()])), Err(Refused::MalformedMulti));
    let write = Request::Delete { path: "/".into(), version: 1 };
    assert_eq!(received(&Request::MultiRead(vec![read, write])), Err(Refused::Malformed));
}

#[test]
fn in_a_multi_the_mode_of_a_create_says_which_one_it_is() {
    let part = |op_code: OpCode, flags: i32, ttl: Option<i64>| {
        let mut multi = written(|encoder| {
            for (number, done) in [(op_code as i32, false), (-1, true)] {
                encoder.int(number);
                encoder.boolean(done);
                encoder.int(-1);
                if !done {
                    encoder.string("/a");
                    encoder.bytes(b"");
                    encoder.count(0);
                    encoder.int(flags);
                    ttl.iter().for_each(|ttl| encoder.long(*ttl));
                }
            }
        });
        match server::Request::decode(OpCode::Multi as i32, &mut multi)? {
            server::Request::Multi(mut parts) => match parts.remove(0) {
                server::Request::Create { kind, flags, .. } => Ok((kind, flags)),
                _ => Err(Refused::Unknown),
            },
            _ => Err(Refused::Unknown),
        }
    };
    for op_code in [OpCode::Create, OpCode::Create2, OpCode::CreateContainer] {
        assert_eq!(part(op_code, 4, None), Ok((CreateKind::Container, 4)));
        assert_eq!(part(op_code, 5, None), Err(Refused::MalformedMulti));
    }
    assert_eq!(part(OpCode::Create2, 3, None), Ok((CreateKind::PathAndStat, 3)));
    assert_eq!(part(OpCode::CreateTtl, 4, Some(1)), Ok((CreateKind::Container, 4)));
    assert_eq!(part(OpCode::CreateTtl, 1, Some(1)), Ok((CreateKind::Path, 1)));
    // Whether the time to live is possible is checked when the node is created, like everything else about it.
    assert_eq!(part(OpCode::CreateTtl, 5, Some(-1)), Ok((CreateKind::Ttl(-1), 5)));
    assert_eq!(part(OpCode::CreateTtl, 7, Some(1)), Ok((CreateKind::Path, 7)));
}

#[test]
fn replies_arrive_as_they_were_sent() {
    let created = server::Response::Created { path: "/a".into(), stat: STAT };
    let data = server::Response::Data { data: None, stat: STAT };
    let children = server::Response::Children { names: vec!["b".into(), "c".into()], stat: STAT };
    assert_eq!(answered(OpCode::Create2, &created), Ok(Response::Created { path: "/a".into(), stat: STAT }));
    assert_eq!(answered(OpCode::SetData, &server::Response::Stat(STAT)), Ok(Response::Stat(STAT)));
    assert_eq!(answered(OpCode::GetData, &data), Ok(Response::Data { data: Bytes::new(), stat: STAT }));
    let names = || vec!["b".to_owned(), "c".to_owned()];
    assert_eq!(answered(OpCode::GetChildren2, &children), Ok(Response::Children { names: names(), stat: STAT }));
    assert_eq!(answered(OpCode::AddWatch, &server::Response::WatchAdded), Ok(Response::Done));
    let parts = server::Response::Parts(vec![
        Part::Done(OpCode::CreateContainer, created),
        Part::Done(OpCode::Delete, server::Response::Done),
        Part::Done(OpCode::GetChildren, server::Response::Names(vec!["b".into(), "c".into()])),
        Part::Failed(None),
        Part::Failed(Some(ErrorCode::NoNode)),
    ]);
    let expected = vec![
        Ok(Response::Created { path: "/a".into(), stat: STAT }),
        Ok(Response::Done),
        Ok(Response::Children { names: names(), stat: Stat::default() }),
        Ok(Response::Done),
        Err(ErrorCode::NoNode),
    ];
    assert_eq!(answered(OpCode::Multi, &parts), Ok(Response::Parts(expected)));
}

#[test]
fn handshakes_headers_and_events_arrive_as_they_were_sent() {
    let password = Bytes::from_static(&[7; 16]);
    let request = ConnectRequest { last_zxid_seen: 1, timeout_ms: 2, session_id: -3, password: password.clone() };
    let mut decoder = written(|encoder| request.encode(encoder));
    assert_eq!(ConnectRequest::decode(&mut decoder), Ok(request));
    assert_eq!(decoder.boolean(), Ok(false), "the flag readOnly is left");
    let response = ConnectResponse { timeout_ms: 2, session_id: -3, password };
    assert_eq!(ConnectResponse::decode(&mut written(|encoder| response.encode(encoder))), Ok(response));
    let header = RequestHeader { xid: -2, op_code: 11 };
    assert_eq!(RequestHeader::decode(&mut written(|encoder| header.encode(encoder))), Ok(header));
    let header = ReplyHeader { xid: 1, zxid: 2, error: -3 };
    assert_eq!(ReplyHeader::decode(&mut written(|encoder| header.encode(encoder))), Ok(header));
    for kind in [EventKind::Created, EventKind::Deleted, EventKind::DataChanged, EventKind::ChildrenChanged] {
        let event = WatcherEvent { kind, path: "/a".into() };
        assert_eq!(WatcherEvent::decode(&mut written(|encoder| event.encode(encoder))), Ok(event));
    }
}

#[test]
fn numbers_of_operations_and_errors_are_their_own_inverse() {
    let known = (-200..200).filter_map(|number| OpCode::from_wire(number).map(|op_code| (number, op_code as i32)));
    known.for_each(|(number, again)| assert_eq!(number, again));
    let errors = (-200..0).filter_map(|number| ErrorCode::from_wire(number).map(|code| (number, code.to_wire())));
    errors.for_each(|(number, again)| assert_eq!(number, again));
}
