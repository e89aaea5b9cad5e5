//! Jute: big-endian integers, length-prefixed buffers and strings, counted vectors.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes that are no record of the expected type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed record: {0}")]
pub struct Malformed(pub &'static str);

/// Writes records into a growing buffer.
#[derive(Debug, Default)]
pub struct Encoder {
    buffer: BytesMut,
}

impl Encoder {
    /// An empty encoder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes one frame: the length, then the bytes that `body` writes.
    pub fn frame(&mut self, body: impl FnOnce(&mut Self)) {
        let start = self.buffer.len();
        self.int(0);
        body(self);
        let length = i32::try_from(self.buffer.len() - start - 4).unwrap_or(i32::MAX);
        self.buffer[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }

    /// Writes an `int`.
    pub fn int(&mut self, value: i32) {
        self.buffer.put_i32(value);
    }

    /// Writes a `long`.
    pub fn long(&mut self, value: i64) {
        self.buffer.put_i64(value);
    }

    /// Writes a `boolean`.
    pub fn boolean(&mut self, value: bool) {
        self.buffer.put_u8(u8::from(value));
    }

    /// Writes a `buffer`.
    pub fn bytes(&mut self, value: &[u8]) {
        self.int(i32::try_from(value.len()).unwrap_or(i32::MAX));
        self.buffer.put_slice(value);
    }

    /// Writes a `ustring`.
    pub fn string(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    /// Writes a `buffer` that may be null.
    pub fn optional_bytes(&mut self, value: Option<&[u8]>) {
        match value {
            Some(value) => self.bytes(value),
            None => self.int(-1),
        }
    }

    /// Writes a vector's count; the elements follow.
    pub fn count(&mut self, count: usize) {
        self.int(i32::try_from(count).unwrap_or(i32::MAX));
    }

    /// Number of bytes that have been written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing has been written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Returns the bytes that have been written, and starts anew.
    pub fn take(&mut self) -> Bytes {
        self.buffer.split().freeze()
    }
}

/// Reads records out of one frame's bytes. Buffers share the frame's memory.
#[derive(Debug)]
pub struct Decoder {
    rest: Bytes,
}

impl Decoder {
    /// Reads from the body of a frame, without its length.
    #[must_use]
    pub fn new(frame: Bytes) -> Self {
        Self { rest: frame }
    }

    /// Reads an `int`.
    pub fn int(&mut self) -> Result<i32, Malformed> {
        self.rest.try_get_i32().map_err(|_| Malformed("int cut short"))
    }

    /// Reads a `long`.
    pub fn long(&mut self) -> Result<i64, Malformed> {
        self.rest.try_get_i64().map_err(|_| Malformed("long cut short"))
    }

    /// Reads a `boolean`.
    pub fn boolean(&mut self) -> Result<bool, Malformed> {
        self.rest.try_get_u8().map(|byte| byte != 0).map_err(|_| Malformed("boolean cut short"))
    }

    /// Reads a `buffer`; null, which jute writes as -1, reads as empty.
    pub fn bytes(&mut self) -> Result<Bytes, Malformed> {
        let length = usize::try_from(self.int()?).unwrap_or(0);
        if length > self.rest.len() {
            return Err(Malformed("buffer cut short"));
        }
        Ok(self.rest.split_to(length))
    }

    /// Reads a `ustring`.
    pub fn string(&mut self) -> Result<String, Malformed> {
        let bytes = self.bytes()?;
        std::str::from_utf8(&bytes).map(str::to_owned).map_err(|_| Malformed("string is not utf-8"))
    }

    /// Reads a `buffer`, and distinguishes null from empty. Any other negative length is refused.
    pub fn optional_bytes(&mut self) -> Result<Option<Bytes>, Malformed> {
        let length = match self.int()? {
            -1 => return Ok(None),
            length => usize::try_from(length).map_err(|_| Malformed("buffer with a negative length"))?,
        };
        if length > self.rest.len() {
            return Err(Malformed("buffer cut short"));
        }
        Ok(Some(self.rest.split_to(length)))
    }

    /// Reads a vector, element by element. The count is checked against the bytes left: no element is empty.
    pub fn vector<T>(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let count = usize::try_from(self.int()?).unwrap_or(0);
        if count > self.rest.len() {
            return Err(Malformed("vector cut short"));
        }
        (0..count).map(|_| element(self)).collect()
    }

    /// Whether everything has been read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}
