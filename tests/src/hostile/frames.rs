//! Floods of HTTP/2 frames, below gRPC.

use super::peer::Batch;
use super::requests::{GET, REGISTER};
use super::wire::{FRAME, flag, kind, prefixed};
use super::{Load, Tally, Target, over_connections};

pub(super) async fn small_frames(target: Target, load: Load, tally: &Tally) {
    over_connections(2, target, load, tally, move |peer, tally: Tally, connection| async move {
        let (stream, mut batch) = (peer.stream(), Batch::default());
        batch.headers(stream, &peer.headers(REGISTER));
        // A keep-alive is a message of two bytes.
        let message = prefixed(&[0x22, 0x00]);
        while load.goes_on() {
            for byte in &message {
                let data = if connection == 0 { std::slice::from_ref(byte) } else { &[] };
                batch.data(stream, data, 0);
            }
            if batch.len() >= FRAME {
                tally.sent(batch.len() / 10);
                peer.send_on(stream, &mut batch).await?;
            }
        }
        Ok(())
    })
    .await;
}

pub(super) async fn control_frames(target: Target, load: Load, tally: &Tally) {
    over_connections(4, target, load, tally, move |peer, tally: Tally, connection| async move {
        let mut batch = Batch::default();
        while load.goes_on() {
            for _ in 0..500 {
                match connection {
                    0 => batch.frame(kind::PING, 0, 0, b"12345678"),
                    1 => batch.frame(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]),
                    2 => batch.frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 0, 16]),
                    // Sent instead of a window update, so as not to exceed the largest window: stream 1 does not exist,
                    // and never did.
                    _ => batch.frame(kind::SETTINGS, flag::ACK, 0, &[]),
                }
            }
            peer.send(&mut batch).await?;
            tally.sent(500);
        }
        Ok(())
    })
    .await;
}

/// A header block with one more field, with a value of `bytes` bytes.
fn with_field(mut headers: Vec<u8>, bytes: usize) -> Vec<u8> {
    headers.extend_from_slice(b"\x00\x01x");
    // An integer of HPACK with a prefix of seven bits, all of which are set.
    headers.push(0x7f);
    let mut rest = bytes - 127;
    while rest >= 0x80 {
        headers.push(u8::try_from(rest & 0x7f).expect("seven bits") | 0x80);
        rest >>= 7;
    }
    headers.push(u8::try_from(rest).expect("seven bits"));
    headers.resize(headers.len() + bytes, b'x');
    headers
}

pub(super) async fn large_headers(target: Target, load: Load, tally: &Tally) {
    let count = load.count(2_000, 20_000);
    over_connections(2, target, load, tally, move |peer, tally: Tally, _| async move {
        // The server allows at most 16 KiB, as HPACK counts them; and a frame is no larger.
        let headers = with_field(peer.headers(GET), FRAME - 512);
        let mut batch = Batch::default();
        for _ in 0..count {
            batch.headers(peer.stream(), &headers);
            peer.send(&mut batch).await?;
            tally.sent(1);
        }
        peer.hold(load).await
    })
    .await;
}

pub(super) async fn continuations(target: Target, load: Load, tally: &Tally) {
    over_connections(4, target, load, tally, move |peer, tally: Tally, _| async move {
        let (stream, mut batch) = (peer.stream(), Batch::default());
        batch.frame(kind::HEADERS, 0, stream, &peer.headers(GET));
        let more = with_field(Vec::new(), 1_000);
        while load.goes_on() {
            batch.frame(kind::CONTINUATION, 0, stream, &more);
            peer.send(&mut batch).await?;
            tally.sent(1);
        }
        Ok(())
    })
    .await;
}
