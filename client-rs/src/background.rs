//! Counts the work that drops leave to the background: giving back locks, places in queues and registrations. A program
//! can wait for this work before it ends.

use tokio::sync::watch;

/// Counts the work under way. Clones share the count.
#[derive(Debug, Clone, Default)]
pub(crate) struct Background(watch::Sender<usize>);

impl Background {
    /// Counts as work under way until the returned value is dropped.
    pub(crate) fn begin(&self) -> UnderWay {
        self.0.send_modify(|count| *count += 1);
        UnderWay(self.0.clone())
    }

    /// Waits until no work is under way.
    ///
    /// # Cancellation
    /// Safe.
    pub(crate) async fn settled(&self) {
        // `self` is a sender, so the channel stays open and only the count ends the wait.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// Work under way: from [`Background::begin`].
#[derive(Debug)]
pub(crate) struct UnderWay(watch::Sender<usize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn it_is_settled_when_the_last_has_ended() {
        let background = Background::default();
        background.settled().await;
        let (one, other) = (background.begin(), background.clone().begin());
        drop(one);
        assert!(background.settled().now_or_never().is_none());
        drop(other);
        background.settled().await;
    }
}
