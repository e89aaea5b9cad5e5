//! Where messages begin and end in the body of a call.

/// What gRPC puts before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Follows a body as it comes. It looks at lengths alone.
#[derive(Debug, Default)]
pub(super) struct Lengths {
    prefix: [u8; PREFIX],
    /// How much of the prefix has come.
    known: usize,
    /// The length of the present message, once its prefix has come.
    length: usize,
    /// How much of the present message has come.
    come: usize,
    /// How much has come of the message of which most has.
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

    /// How many bytes have come of a message that is not complete.
    pub(super) fn unfinished(&self) -> usize {
        self.known + self.come
    }

    /// How many bytes have come of the message of which most have.
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
