//! HTTP/2 frames by hand: for clients whose behaviour a library would prevent, and for clients that have to cost next
//! to nothing. Headers are sent without compression, so that they are the same for each call.

/// The first bytes of a client's connection.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest window.
pub const WINDOW: u32 = 0x7fff_ffff;
/// The initial window of connections and streams.
pub const FIRST_WINDOW: u32 = 65_535;
/// Size of a frame's header: length, type, flags and stream.
pub const HEADER: usize = 9;
/// Size of the prefix of a gRPC message: whether it is compressed, and its length.
pub const PREFIX: usize = 5;
/// The largest frame that a peer accepts by default.
pub const FRAME: usize = 16 * 1024;

/// Types of frames.
pub mod kind {
    /// A part of a body.
    pub const DATA: u8 = 0;
    /// Headers or trailers.
    pub const HEADERS: u8 = 1;
    /// A priority, which peers ignore.
    pub const PRIORITY: u8 = 2;
    /// Cancels a stream.
    pub const RST_STREAM: u8 = 3;
    /// Settings of the connection.
    pub const SETTINGS: u8 = 4;
    /// Asks whether the peer is alive.
    pub const PING: u8 = 6;
    /// Ends the connection.
    pub const GOAWAY: u8 = 7;
    /// Enlarges a window.
    pub const WINDOW_UPDATE: u8 = 8;
    /// More headers.
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub mod flag {
    /// On DATA and HEADERS: the last frame of this side of the stream.
    pub const END_STREAM: u8 = 1;
    /// On SETTINGS and PING: an acknowledgement.
    pub const ACK: u8 = 1;
    /// On HEADERS and CONTINUATION: the last of the headers.
    pub const END_HEADERS: u8 = 4;
    /// On DATA: the frame is padded.
    pub const PADDED: u8 = 8;
}

/// The header of a frame, without its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The type.
    pub kind: u8,
    /// The flags.
    pub flags: u8,
    /// The stream; 0 is the connection.
    pub stream: u32,
}

/// Appends a frame.
///
/// # Panics
/// When the payload has over 16 MiB.
pub fn frame(output: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("a frame is small").to_be_bytes();
    assert_eq!(length[0], 0, "a frame has a length of 24 bits");
    output.extend_from_slice(&length[1..]);
    output.extend_from_slice(&[kind, flags]);
    output.extend_from_slice(&stream.to_be_bytes());
    output.extend_from_slice(payload);
}

/// Splits off the first frame, if it is complete, from the bytes after it.
pub fn split(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    let [high, middle, low, kind, flags, stream @ ..] = header else { return None };
    let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
    let (payload, after) = rest.split_at_checked(length)?;
    let stream = u32::from_be_bytes(stream.try_into().ok()?);
    Some((Header { kind: *kind, flags: *flags, stream: stream & WINDOW }, payload, after))
}

/// The header block of a gRPC call, such as `/rollcall.v1.Registry/Get`. It is the same for each call.
///
/// # Panics
/// When a field has over 126 bytes.
pub fn call_headers(method: &str, authority: &str) -> Vec<u8> {
    // POST and http are in HPACK's table; the other fields are never to be added to it.
    let mut headers = vec![0x83, 0x86];
    field(&mut headers, &[0x04], method);
    field(&mut headers, &[0x01], authority);
    field(&mut headers, &[0x0f, 0x10], "application/grpc");
    field(&mut headers, b"\x00\x02te", "trailers");
    headers
}

/// Appends a header field. `name` is the encoded name.
fn field(headers: &mut Vec<u8>, name: &[u8], value: &str) {
    headers.extend_from_slice(name);
    headers.push(u8::try_from(value.len()).ok().filter(|length| *length < 127).expect("a value is short"));
    headers.extend_from_slice(value.as_bytes());
}

/// A message with its gRPC prefix.
///
/// # Panics
/// When it has over 4 GiB.
pub fn prefixed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a message is small");
    [&[0][..], &length.to_be_bytes(), message].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_taken_once_it_is_complete() {
        let mut bytes = Vec::new();
        frame(&mut bytes, kind::PING, flag::ACK, 5, b"12345678");
        let whole = bytes.len();
        bytes.push(1);
        assert_eq!(split(&bytes[..whole - 1]), None);
        let header = Header { kind: kind::PING, flags: flag::ACK, stream: 5 };
        assert_eq!(split(&bytes), Some((header, &b"12345678"[..], &[1][..])));
    }
}
