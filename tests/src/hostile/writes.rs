//! Floods of Put and Delete.

use std::io::Result;

use rollcall_proto::v1;
use rollcall_proto::v1::value::Kind;

use super::peer::{Batch, Peer};
use super::requests::{DELETE, PUT, delete, put};
use super::wire::prefixed;
use super::{Load, Tally, Target, over_connections};
use crate::client::text;

/// Sends a call whose message may be large.
async fn large_call(peer: &Peer, method: &str, message: &[u8]) -> Result<()> {
    let (stream, mut batch) = (peer.stream(), Batch::default());
    batch.headers(stream, &peer.headers(method));
    peer.send(&mut batch).await?;
    peer.send_body(stream, &prefixed(message), true).await
}

pub(super) async fn puts(target: Target, load: Load, tally: &Tally) {
    let count = load.count(5_000, 8_000);
    over_connections(1, target, load, tally, move |peer, tally: Tally, _| async move {
        let value = v1::Value { kind: Some(Kind::Raw(vec![7; 256 * 1024].into())) };
        let request = put("/flood/put".to_owned(), value);
        for _ in 0..count {
            large_call(&peer, PUT, &request).await?;
            tally.sent(1);
        }
        peer.hold(load).await
    })
    .await;
}

pub(super) async fn deep_puts(target: Target, load: Load, tally: &Tally) {
    let count = load.count(200, 3_000);
    over_connections(1, target, load, tally, move |peer, tally: Tally, _| async move {
        for number in 0..count {
            let request = put(format!("/flood-{number}{}", "/a".repeat(2_000)), text("x"));
            large_call(&peer, PUT, &request).await?;
            tally.sent(1);
        }
        peer.hold(load).await
    })
    .await;
}

pub(super) async fn big_structs(target: Target, load: Load, tally: &Tally) {
    // The field `value` contains the field `data`, which contains a million map entries without key and value. A
    // library would keep one of them.
    let entries = [0x0a, 0x00].repeat(1_000_000);
    let request = put("/flood/struct".to_owned(), v1::Value::default());
    let value = [&[0x0a][..], &varint(entries.len()), &entries].concat();
    let request = [&request[..request.len() - 2], &[0x12], &varint(value.len()), &value].concat();
    let at_once = load.count(2, 4);
    over_connections(at_once, target, load, tally, move |peer, tally: Tally, _| {
        let request = request.clone();
        async move {
            let mut sent = 0;
            while load.goes_on() {
                large_call(&peer, PUT, &request).await?;
                sent += 1;
                tally.sent(1);
                peer.ended(sent).await?;
            }
            Ok(())
        }
    })
    .await;
}

/// A number as a protobuf varint.
fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(u8::try_from(number & 0x7f).expect("seven bits") | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).expect("seven bits"));
    bytes
}

pub(super) async fn recursive_deletes(target: Target, load: Load, tally: &Tally) {
    let nodes = load.count(100, 500);
    over_connections(4, target, load, tally, move |peer, tally: Tally, connection| async move {
        let (puts, deletes, mut sent) = (peer.headers(PUT), peer.headers(DELETE), 0);
        while load.goes_on() {
            let mut batch = Batch::default();
            for node in 0..nodes {
                let path = format!("/flood-tree-{connection}/{}/{node}", node % 10);
                batch.call(peer.stream(), &puts, &put(path, text("x")));
            }
            peer.send(&mut batch).await?;
            sent += nodes;
            peer.ended(sent).await?;
            batch.call(peer.stream(), &deletes, &delete(format!("/flood-tree-{connection}")));
            peer.send(&mut batch).await?;
            sent += 1;
            tally.sent(nodes + 1);
        }
        Ok(())
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_protobuf_has_them() {
        assert_eq!((varint(1), varint(300)), (vec![1], vec![0xac, 2]));
    }
}
