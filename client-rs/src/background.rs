//! What is given back in the background because it was dropped: locks, places in queues, registrations. It is counted, so that
//! a program can wait for it at its end.

use tokio::sync::watch;

/// Counts what is under way. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Background(watch::Sender<usize>);

impl Background {
    /// Something is under way until the returned value is dropped.
    pub(crate) fn begin(&self) -> UnderWay {
        self.0.send_modify(|count| *count += 1);
        UnderWay(self.0.clone())
    }

    /// Waits until nothing is under way.
    ///
    /// # Cancellation
    /// Safe.
    pub(crate) async fn settled(&self) {
        // There is a sender, so it ends by the count alone.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// From [`Background::begin`].
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
