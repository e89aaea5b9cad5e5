//! Log lines that clients can cause as often as they like.

/// Pause between two such lines, in milliseconds.
const PAUSE_MS: u64 = 60_000;

/// One kind of event: logged at once when it begins, and at most once a minute as long as it goes on.
#[derive(Debug, Default)]
pub(crate) struct Occasional {
    /// When the next line may be written; `None` before the first.
    next_ms: Option<u64>,
    untold: u64,
}

impl Occasional {
    /// Notes an event. If a line is to be written, returns the number of events since the last line.
    pub(crate) fn note(&mut self, now_ms: u64) -> Option<u64> {
        self.untold += 1;
        if self.next_ms.is_some_and(|next| now_ms < next) {
            return None;
        }
        self.next_ms = Some(now_ms.saturating_add(PAUSE_MS));
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_again_and_again_is_told_at_first_and_then_once_a_minute() {
        let mut event = Occasional::default();
        assert_eq!(event.note(5), Some(1));
        assert!((0..1000).all(|_| event.note(5 + PAUSE_MS - 1).is_none()));
        assert_eq!(event.note(5 + PAUSE_MS), Some(1001));
        assert_eq!(event.note(5 + PAUSE_MS), None);
        assert_eq!(event.note(5 + 3 * PAUSE_MS), Some(2));
    }
}
