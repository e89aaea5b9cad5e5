//! Messages in the body of a call: how large they may be, and where they begin and end.

/// Maximum size of a message that is accepted or sent, in bytes.
pub(super) const MAX_MESSAGE_BYTES: usize = 2 * 1024 * 1024;
/// Length of the prefix that gRPC puts before a message: whether the message is compressed, and its length.
pub(super) const PREFIX: usize = 5;

/// Follows a body as it arrives. It looks at lengths only.
#[derive(Debug, Default)]
pub(super) struct Lengths {
    prefix: [u8; PREFIX],
    /// Number of bytes of the prefix that have arrived.
    known: usize,
    /// Length of the current message, once its prefix has arrived.
    length: usize,
    /// Number of bytes of the current message that have arrived.
    come: usize,
    /// Number of bytes that have arrived of the largest message so far.
    largest: usize,
}

impl Lengths {
    /// Takes the next bytes of the body.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.known < PREFIX {
                let taken = bytes.len().min(PREFIX - self.known);
                self.prefix[self.known..self.known + taken].copy_from_slice(&bytes[..taken]);
                self.known += taken;
                bytes = &bytes[taken..];
                if self.known == PREFIX {
                    let [_, length @ ..] = self.prefix;
                    self.length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                }
            } else {
                let taken = bytes.len().min(self.length - self.come);
                self.come += taken;
                bytes = &bytes[taken..];
            }
            self.largest = self.largest.max(self.unfinished());
            if self.known == PREFIX && self.come == self.length {
                *self = Self { largest: self.largest, ..Self::default() };
            }
        }
    }

    /// Number of bytes that have arrived of a message that is not complete.
    pub(super) fn unfinished(&self) -> usize {
        self.known + self.come
    }

    /// Number of bytes that have arrived of the largest message so far.
    pub(super) fn largest(&self) -> usize {
        self.largest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_end_where_their_lengths_say_however_they_come() {
        let message = |length: u8| [&[0, 0, 0, 0, length][..], &vec![9; usize::from(length)]].concat();
        let body = [message(0), message(3), message(200), message(0)].concat();
        let ends: Vec<_> = [0, 5, 13, 218, 223].into();
        for piece in [1, 2, 7, 64, 1000] {
            let (mut lengths, mut passed) = (Lengths::default(), 0);
            for bytes in body.chunks(piece) {
                lengths.pass(bytes);
                passed += bytes.len();
                let begun = ends.iter().rfind(|end| **end <= passed).unwrap();
                assert_eq!(lengths.unfinished(), passed - begun, "{passed} of {} by {piece}", body.len());
            }
            assert_eq!(lengths.largest(), 205);
        }
    }
}
