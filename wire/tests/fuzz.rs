//! Fuzz targets: any bytes are decoded without a panic, and each half reads the frames that the other half writes.
//!
//! Each target runs for a second, or for the time that CONTRIBUTING.md says how to set.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use bolero::{TypeGenerator, check};
use bytes::Bytes;
use rollcall_wire::server::{self, CreateKind, Part, WatcherKind};
use rollcall_wire::{
    Acl, ConnectRequest, ConnectResponse, CreateMode, Decoder, Encoder, ErrorCode, EventKind, OpCode, ReplyHeader,
    Request, RequestHeader, Response, Stat, WatchMode, WatcherEvent,
};

/// Values for the fields of a record.
#[derive(Debug, TypeGenerator)]
struct Fields {
    path: String,
    name: String,
    data: Vec<u8>,
    acl: Vec<(i32, String, String)>,
    number: i32,
    flag: bool,
    longs: [i64; 6],
    ints: [i32; 5],
}

impl Fields {
    fn path(&self) -> String {
        self.path.clone()
    }

    fn data(&self) -> Bytes {
        Bytes::copy_from_slice(&self.data)
    }

    fn acl(&self) -> Vec<Acl> {
        let entry = |(permissions, scheme, id): &(i32, String, String)| Acl {
            permissions: *permissions,
            scheme: scheme.clone(),
            id: id.clone(),
        };
        self.acl.iter().map(entry).collect()
    }

    fn names(&self) -> Vec<String> {
        self.acl.iter().map(|(_, name, _)| name.clone()).chain([self.name.clone()]).collect()
    }

    fn stat(&self) -> Stat {
        let (
            [czxid, mzxid, ctime, mtime, ephemeral_owner, pzxid],
            [version, cversion, aversion, data_length, children],
        ) = (self.longs, self.ints);
        Stat {
            czxid,
            mzxid,
            ctime,
            mtime,
            version,
            cversion,
            aversion,
            ephemeral_owner,
            data_length,
            num_children: children,
            pzxid,
        }
    }
}

/// A request that writes, and the same as a server reads it. A multi may hold it.
fn write(kind: u8, fields: &Fields) -> (Request, server::Request) {
    let (path, data, version) = (fields.path(), fields.data(), fields.number);
    match kind % 4 {
        0 => {
            let (mode, flags) =
                [(CreateMode::Persistent, 0), (CreateMode::Ephemeral, 1), (CreateMode::EphemeralSequential, 3)]
                    [usize::from(kind / 4 % 3)];
            let (acl, some, kind) = (fields.acl(), Some(data.clone()), CreateKind::PathAndStat);
            (
                Request::Create { path: path.clone(), data, acl: acl.clone(), mode },
                server::Request::Create { path, data: some, acl, flags, kind },
            )
        }
        1 => (Request::Delete { path: path.clone(), version }, server::Request::Delete { path, version }),
        2 => (
            Request::SetData { path: path.clone(), data: data.clone(), version },
            server::Request::SetData { path, data: Some(data), version },
        ),
        _ => (Request::Check { path: path.clone(), version }, server::Request::Check { path, version }),
    }
}

/// A request that reads, and the same as a server reads it in a multi read.
fn read(kind: u8, fields: &Fields) -> (Request, server::Request) {
    let (path, watch) = (fields.path(), fields.flag);
    match kind % 2 {
        0 => (Request::GetData { path: path.clone(), watch }, server::Request::GetData { path, watch }),
        _ => (Request::GetChildren { path: path.clone(), watch }, server::Request::GetChildren { path, watch }),
    }
}

/// A request that no multi may hold, and the same as a server reads it.
fn other(kind: u8, fields: &Fields) -> (Request, server::Request) {
    let (path, watch) = (fields.path(), fields.flag);
    match kind % 9 {
        0 => (Request::Exists { path: path.clone(), watch }, server::Request::Exists { path, watch }),
        1 => (Request::GetAcl { path: path.clone() }, server::Request::GetAcl { path }),
        2 => (Request::Sync { path: path.clone() }, server::Request::Sync { path }),
        3 => {
            let mode = if fields.flag { WatchMode::PersistentRecursive } else { WatchMode::Persistent };
            (Request::AddWatch { path: path.clone(), mode }, server::Request::AddWatch { path, mode })
        }
        4 => (
            Request::RemoveWatches { path: path.clone() },
            server::Request::RemoveWatches { path, kind: WatcherKind::Any },
        ),
        5 => (
            Request::Auth { scheme: path.clone(), auth: fields.data() },
            server::Request::Auth { scheme: path, auth: fields.data() },
        ),
        6 => (Request::GetChildren { path: path.clone(), watch }, server::Request::GetChildren2 { path, watch }),
        7 => (Request::Ping, server::Request::Ping),
        _ => (Request::CloseSession, server::Request::CloseSession),
    }
}

/// Asserts that a server reads a request as expected, that it needs every byte of it, and that the bound of its size
/// holds.
fn assert_arrives(sent: &Request, expected: &server::Request) {
    let op_code = sent.op_code() as i32;
    let bytes = written(|encoder| sent.encode(encoder));
    assert!(bytes.len() <= sent.encoded_len(), "{} bytes: {sent:?}", bytes.len());
    let mut decoder = Decoder::new(bytes.clone());
    assert_eq!(server::Request::decode(op_code, &mut decoder).as_ref(), Ok(expected));
    assert!(decoder.is_empty(), "left over of {sent:?}");
    if let Some(last) = bytes.len().checked_sub(1) {
        for length in [last, last / 2, last / 3] {
            let received = server::Request::decode(op_code, &mut Decoder::new(bytes.slice(..length)));
            assert!(received.is_err(), "{length} bytes of {}: {sent:?}", bytes.len());
        }
    }
}

fn written(write: impl FnOnce(&mut Encoder)) -> Bytes {
    let mut encoder = Encoder::new();
    write(&mut encoder);
    encoder.take()
}

#[test]
fn fuzz_requests_arrive_as_they_were_sent() {
    check!().with_type::<Vec<(u8, Fields)>>().for_each(|drawn| {
        let all = |request: fn(u8, &Fields) -> (Request, server::Request)| -> Vec<_> {
            drawn.iter().map(|(kind, fields)| request(*kind, fields)).collect()
        };
        let (writes, reads) = (all(write), all(read));
        let alone = writes.iter().filter(|(sent, _)| !matches!(sent, Request::Check { .. }));
        let alone = alone.chain(reads.iter().filter(|(sent, _)| matches!(sent, Request::GetData { .. })));
        alone.chain(&all(other)).for_each(|(sent, expected)| assert_arrives(sent, expected));
        let (sent, expected) = writes.into_iter().unzip();
        assert_arrives(&Request::Multi(sent), &server::Request::Multi(expected));
        let (sent, expected) = reads.into_iter().unzip();
        assert_arrives(&Request::MultiRead(sent), &server::Request::MultiRead(expected));
    });
}

/// A reply to an operation, and the same as a client reads it.
fn reply(kind: u8, fields: &Fields) -> (OpCode, server::Response, Response) {
    let (path, stat) = (fields.path(), fields.stat());
    let names = || fields.names().into_iter().map(Into::into).collect();
    match kind % 7 {
        0 => {
            (OpCode::Create2, server::Response::Created { path: path.clone(), stat }, Response::Created { path, stat })
        }
        1 => (OpCode::SetData, server::Response::Stat(stat), Response::Stat(stat)),
        2 => {
            let data = fields.flag.then(|| fields.data());
            let read = data.clone().unwrap_or_default();
            (OpCode::GetData, server::Response::Data { data, stat }, Response::Data { data: read, stat })
        }
        3 => (OpCode::Exists, server::Response::Stat(stat), Response::Stat(stat)),
        4 => (
            OpCode::GetChildren2,
            server::Response::Children { names: names(), stat },
            Response::Children { names: fields.names(), stat },
        ),
        5 => (
            OpCode::GetAcl,
            server::Response::Acl { acl: fields.acl(), stat },
            Response::Acl { acl: fields.acl(), stat },
        ),
        _ => (OpCode::Delete, server::Response::Done, Response::Done),
    }
}

/// A part of the reply to a multi, and the same as a client reads it.
fn part(kind: u8, fields: &Fields) -> (Part, Result<Response, ErrorCode>) {
    let stat = Stat::default();
    let names = || fields.names().into_iter().map(Into::into).collect();
    match kind % 8 {
        4 => (
            Part::Done(OpCode::Create, server::Response::Path(fields.path())),
            Ok(Response::Created { path: fields.path(), stat }),
        ),
        5 => (
            Part::Done(OpCode::GetChildren, server::Response::Names(names())),
            Ok(Response::Children { names: fields.names(), stat }),
        ),
        6 => {
            let code = ErrorCode::from_wire(fields.number);
            (Part::Failed(code), code.map_or(Ok(Response::Done), Err))
        }
        7 => (Part::Done(OpCode::Check, server::Response::Done), Ok(Response::Done)),
        kind => {
            // Of the replies above those that a multi may hold.
            let (op_code, sent, expected) = reply(if kind == 3 { 6 } else { kind }, fields);
            (Part::Done(op_code, sent), Ok(expected))
        }
    }
}

fn assert_answers(op_code: OpCode, sent: &server::Response, expected: &Response) {
    let mut decoder = Decoder::new(written(|encoder| sent.encode(encoder)));
    assert_eq!(Response::decode(op_code, &mut decoder).as_ref(), Ok(expected));
    assert!(decoder.is_empty(), "left over of {sent:?}");
}

#[test]
fn fuzz_replies_arrive_as_they_were_sent() {
    check!().with_type::<Vec<(u8, Fields)>>().for_each(|drawn| {
        for (kind, fields) in drawn {
            let (op_code, sent, expected) = reply(*kind, fields);
            assert_answers(op_code, &sent, &expected);
        }
        let (sent, expected) = drawn.iter().map(|(kind, fields)| part(*kind, fields)).unzip();
        assert_answers(OpCode::Multi, &server::Response::Parts(sent), &Response::Parts(expected));
    });
}

#[test]
fn fuzz_handshakes_headers_and_events_arrive_as_they_were_sent() {
    check!().with_type::<Fields>().for_each(|fields| {
        let ([last_zxid_seen, session_id, zxid, ..], [timeout_ms, xid, op_code, error, kind]) =
            (fields.longs, fields.ints);
        let password = fields.data();
        let request = ConnectRequest { last_zxid_seen, timeout_ms, session_id, password: password.clone() };
        let mut decoder = Decoder::new(written(|encoder| request.encode(encoder)));
        assert_eq!(ConnectRequest::decode(&mut decoder), Ok(request));
        let response = ConnectResponse { timeout_ms, session_id, password };
        let mut decoder = Decoder::new(written(|encoder| response.encode(encoder)));
        assert_eq!(ConnectResponse::decode(&mut decoder), Ok(response));
        let header = RequestHeader { xid, op_code };
        assert_eq!(RequestHeader::decode(&mut Decoder::new(written(|encoder| header.encode(encoder)))), Ok(header));
        let header = ReplyHeader { xid, zxid, error };
        assert_eq!(ReplyHeader::decode(&mut Decoder::new(written(|encoder| header.encode(encoder)))), Ok(header));
        let kinds = [EventKind::Created, EventKind::Deleted, EventKind::DataChanged, EventKind::ChildrenChanged];
        for kind in kinds.into_iter().chain((!(1..=4).contains(&kind)).then_some(EventKind::Other(kind))) {
            let event = WatcherEvent { kind, path: fields.path() };
            let mut decoder = Decoder::new(written(|encoder| event.encode(encoder)));
            assert_eq!(WatcherEvent::decode(&mut decoder), Ok(event));
        }
    });
}

/// A piece of a frame. Frames of pieces reach further into the decoder than frames of single bytes do.
#[derive(Debug, TypeGenerator)]
enum Piece {
    Flag(bool),
    Int(i32),
    Count(u8),
    Long(i64),
    Null,
    Text(String),
    Data(Vec<u8>),
    /// The header of a part of a multi.
    Header(u8, bool),
}

impl Piece {
    fn encode(&self, encoder: &mut Encoder) {
        match self {
            Self::Flag(flag) => encoder.boolean(*flag),
            Self::Int(number) => encoder.int(*number),
            Self::Count(count) => encoder.count(usize::from(count % 8)),
            Self::Long(number) => encoder.long(*number),
            Self::Null => encoder.optional_bytes(None),
            Self::Text(text) => encoder.string(text),
            Self::Data(data) => encoder.bytes(data),
            Self::Header(op_code, done) => {
                encoder.int(i32::from(op_code % 24));
                encoder.boolean(*done);
                encoder.int(-1);
            }
        }
    }
}

fn decode_as_everything(bytes: &Bytes) {
    let decoder = || Decoder::new(bytes.clone());
    for number in -12..108 {
        drop(server::Request::decode(number, &mut decoder()));
        if let Some(op_code) = OpCode::from_wire(number) {
            drop(Response::decode(op_code, &mut decoder()));
        }
    }
    drop(ConnectRequest::decode(&mut decoder()));
    drop(ConnectResponse::decode(&mut decoder()));
    drop(WatcherEvent::decode(&mut decoder()));
    assert_eq!(RequestHeader::decode(&mut decoder()).is_ok(), bytes.len() >= 8);
    assert_eq!(ReplyHeader::decode(&mut decoder()).is_ok(), bytes.len() >= 16);
    assert_eq!(Stat::decode(&mut decoder()).is_ok(), bytes.len() >= 68);
}

#[test]
fn fuzz_any_bytes_are_decoded_without_a_panic() {
    check!().for_each(|bytes: &[u8]| decode_as_everything(&Bytes::copy_from_slice(bytes)));
}

#[test]
fn fuzz_any_records_are_decoded_without_a_panic() {
    check!().with_type::<Vec<Piece>>().for_each(|pieces| {
        decode_as_everything(&written(|encoder| pieces.iter().for_each(|piece| piece.encode(encoder))));
    });
}
