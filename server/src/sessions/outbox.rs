//! The messages of a Register stream that its client has still to read.
//!
//! Final answers are kept in order. Of unasked news of one path only the latest of each kind is kept, in their order.
//! So a client that reads nothing costs one answer for each request that it sent. The answers are taken from the
//! account of its connection. A client that also goes on sending is cut off when the account's reserve for open streams
//! is used up, or at [`Outbox::LIMIT`].

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::budget::{Account, Resource, Share};
use crate::error::Error;
use crate::types::{Generation, NodePath, Stat};

/// A message to the client of a Register stream.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Notice {
    /// The session is open.
    Opened { session_id: String, ttl: Option<Duration> },
    /// The path is registered. If nobody asked, `restored` is set.
    Registered { path: NodePath, generation: Generation, stat: Stat, restored: bool, adopted: bool },
    /// The path is not, or no longer, registered by this client.
    Unregistered { path: NodePath },
    /// The request is carried out as soon as ZooKeeper can be reached; the final answer follows.
    Pending { path: NodePath },
    /// Another program wrote into the registration, which has these data now.
    Overwritten { path: NodePath, data: Bytes, stat: Stat },
    /// The registration is gone for this client.
    Lost { path: NodePath, generation: Generation, reason: RegistrationLostReason },
    /// A request was refused. The path is as the client gave it.
    Rejected { path: String, error: Error },
    /// The answer to a keep-alive.
    KeptAlive,
}

/// Why a registration is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RegistrationLostReason {
    /// A later incarnation exists.
    TakenOver,
    /// The ttl passed without a message.
    Expired,
    /// An operator has evicted it.
    Evicted,
}

impl Notice {
    /// The path that the notice is about, and the kind of news of which only the latest counts, if it is news.
    fn subject(&self) -> Option<(&NodePath, Option<News>)> {
        match self {
            Self::Registered { path, restored: true, .. } => Some((path, Some(News::Restored))),
            Self::Overwritten { path, .. } => Some((path, Some(News::Overwritten))),
            Self::Registered { path, .. }
            | Self::Unregistered { path }
            | Self::Pending { path }
            | Self::Lost { path, .. } => Some((path, None)),
            Self::Opened { .. } | Self::Rejected { .. } | Self::KeptAlive => None,
        }
    }

    /// The approximate number of bytes that it keeps.
    fn bytes(&self) -> usize {
        const SELF: usize = 256;
        SELF + match self {
            Self::Overwritten { path, data, .. } => path.as_str().len() + data.len(),
            // The error names the path as well.
            Self::Rejected { path, .. } => 2 * path.len(),
            Self::Registered { path, .. }
            | Self::Unregistered { path }
            | Self::Pending { path }
            | Self::Lost { path, .. } => path.as_str().len(),
            Self::Opened { .. } | Self::KeptAlive => 0,
        }
    }
}

/// Unasked news, of which only the latest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum News {
    Restored,
    Overwritten,
}

impl News {
    fn other(self) -> Self {
        match self {
            Self::Restored => Self::Overwritten,
            Self::Overwritten => Self::Restored,
        }
    }
}

#[derive(Debug)]
struct Inner {
    queue: VecDeque<Notice>,
    /// Number of notices that have been read: the number of the queue's first.
    read: u64,
    /// The number of the last notice of a path, while that is unread and only its latest state counts.
    latest: HashMap<(NodePath, News), u64>,
    bytes: usize,
    /// The bytes that are taken from the account.
    share: Share,
    end: Option<Result<(), Error>>,
}

impl Inner {
    /// The place of the unread news of this kind, which the next news supersedes. It then comes after the news of the
    /// other kind: the last notice must give the state of the path.
    fn latest_place(&mut self, path: &NodePath, news: News) -> Option<usize> {
        let place = |news| {
            let number = *self.latest.get(&(path.clone(), news))?;
            Some((number, usize::try_from(number - self.read).ok()?))
        };
        let (number, index) = place(news)?;
        let Some((later, later_index)) = place(news.other()).filter(|(later, _)| *later > number) else {
            return Some(index);
        };
        self.queue.swap(index, later_index);
        self.latest.insert((path.clone(), news.other()), number);
        self.latest.insert((path.clone(), news), later);
        Some(later_index)
    }

    /// Brings the share up to date.
    fn charge(&mut self) -> Result<(), Error> {
        self.share.resize_open(self.bytes.saturating_sub(Outbox::FREE_BYTES))
    }
}

/// The queue of one stream: many writers, one reader.
#[derive(Debug)]
pub(crate) struct Outbox {
    inner: Mutex<Inner>,
    news: Notify,
    abandoned: AtomicBool,
}

impl Outbox {
    /// Maximum number of notices that wait. A stream with all the registrations that a connection may have, given back
    /// at once, stays below it.
    pub(crate) const LIMIT: usize = 262_144;

    /// Number of waiting notices from which on a `kept_alive` right behind another is dropped.
    const KEPT_ALIVE: usize = 64;

    /// Bytes of unread notices that are not taken from the account, so that a stream that reads its answers does not
    /// depend on what others of its connection have not read.
    const FREE_BYTES: usize = 2 * 1024;

    pub(super) fn new(account: &Account) -> Self {
        let inner = Inner {
            queue: VecDeque::new(),
            read: 0,
            latest: HashMap::new(),
            bytes: 0,
            share: account.share(Resource::Bytes),
            end: None,
        };
        Self { inner: Mutex::new(inner), news: Notify::new(), abandoned: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Adds a notice, in the place of the unread notice that it supersedes. At the limit the stream ends instead.
    pub(super) fn push(&self, notice: Notice) {
        let mut inner = self.lock();
        let is_no_news = notice == Notice::KeptAlive
            && inner.queue.len() >= Self::KEPT_ALIVE
            && inner.queue.back() == Some(&Notice::KeptAlive);
        if inner.end.is_some() || is_no_news {
            return;
        }
        let limit = u64::try_from(Self::LIMIT).unwrap_or(u64::MAX);
        let next = inner.read + u64::try_from(inner.queue.len()).unwrap_or(u64::MAX);
        match notice.subject() {
            Some((path, Some(news))) => {
                let key = (path.clone(), news);
                let earlier = inner.latest_place(path, news);
                if let Some(unread) = earlier.and_then(|index| inner.queue.get_mut(index)) {
                    let (before, after) = (unread.bytes(), notice.bytes());
                    *unread = notice;
                    inner.bytes = (inner.bytes + after).saturating_sub(before);
                    if let Err(error) = inner.charge() {
                        inner.end = Some(Err(error));
                    }
                    return;
                }
                inner.latest.insert(key, next);
            }
            // News that comes after an answer must not be sent before it.
            Some((path, None)) => {
                for news in [News::Restored, News::Overwritten] {
                    inner.latest.remove(&(path.clone(), news));
                }
            }
            None => {}
        }
        let bytes = notice.bytes();
        inner.bytes += bytes;
        if next - inner.read >= limit {
            let what = "the number of unread answers of a stream";
            inner.end = Some(Err(Error::LimitExceeded { reason: "TOO_MANY_UNREAD_ANSWERS", what, limit }));
            inner.bytes -= bytes;
        } else if let Err(error) = inner.charge() {
            inner.end = Some(Err(error));
            inner.bytes -= bytes;
        } else {
            inner.queue.push_back(notice);
        }
        drop(inner);
        self.news.notify_one();
    }

    /// Ends the stream once the queued notices have been read.
    pub(super) fn close(&self, end: Result<(), Error>) {
        self.lock().end.get_or_insert(end);
        self.news.notify_one();
    }

    /// The RPC is over: nobody reads any more.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// The next notice; `None` or an error at the end.
    ///
    /// # Cancellation
    /// Safe: nothing is taken before the future is ready.
    pub(crate) async fn next(&self) -> Option<Result<Notice, Error>> {
        loop {
            {
                let mut inner = self.lock();
                if let Some(notice) = inner.queue.pop_front() {
                    if inner.queue.is_empty() {
                        // Most streams are silent for most of their life: their queue keeps no memory meanwhile.
                        inner.queue = VecDeque::new();
                    }
                    if let Some((path, Some(news))) = notice.subject() {
                        let key = (path.clone(), news);
                        if inner.latest.get(&key) == Some(&inner.read) {
                            inner.latest.remove(&key);
                        }
                    }
                    inner.bytes = inner.bytes.saturating_sub(notice.bytes());
                    // The share gets smaller, which always fits.
                    drop(inner.charge());
                    inner.read += 1;
                    return Some(Ok(notice));
                }
                match inner.end.clone() {
                    Some(Ok(())) => return None,
                    Some(Err(error)) => {
                        inner.end = Some(Ok(()));
                        return Some(Err(error));
                    }
                    None => {}
                }
            }
            self.news.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, Limits};

    fn outbox() -> Outbox {
        Outbox::new(&Account::unlimited())
    }

    fn restored(path: &str, generation: i64) -> Notice {
        let (path, generation, stat) = (NodePath::trusted(path), Generation(generation), Stat::default());
        Notice::Registered { path, generation, stat, restored: true, adopted: false }
    }

    /// This holds whatever was read in between.
    #[tokio::test]
    async fn what_is_told_last_is_how_a_path_stands_and_costs_two_places() {
        for read in 0..3 {
            let outbox = outbox();
            outbox.push(Notice::KeptAlive);
            outbox.push(restored("/b", 1));
            let mut last = Vec::new();
            for round in 1..=5 {
                last = vec![overwritten("/a", "theirs"), restored("/a", round)];
                last.iter().for_each(|notice| outbox.push(notice.clone()));
                last = vec![last.remove(1), overwritten("/a", "again")];
                outbox.push(last[1].clone());
                if round == 3 {
                    for _ in 0..read {
                        outbox.next().await.unwrap().unwrap();
                    }
                }
            }
            outbox.close(Ok(()));
            let mut rest = Vec::new();
            while let Some(notice) = outbox.next().await {
                rest.push(notice.unwrap());
            }
            assert_eq!(rest.len(), 4 - read, "{rest:?}");
            assert_eq!(rest[rest.len() - 2..], last, "read {read}");
        }
    }

    fn overwritten(path: &str, data: &'static str) -> Notice {
        Notice::Overwritten { path: NodePath::trusted(path), data: data.into(), stat: Stat::default() }
    }

    #[tokio::test]
    async fn of_unasked_news_the_latest_is_kept() {
        let outbox = outbox();
        for data in ["1", "2", "3"] {
            outbox.push(overwritten("/a", data));
            outbox.push(overwritten("/b", data));
        }
        let gone = Notice::Unregistered { path: NodePath::trusted("/a") };
        outbox.push(gone.clone());
        outbox.push(overwritten("/a", "4"));
        outbox.close(Ok(()));
        for expected in [overwritten("/a", "3"), overwritten("/b", "3"), gone, overwritten("/a", "4")] {
            assert_eq!(outbox.next().await, Some(Ok(expected)));
        }
        assert_eq!(outbox.next().await, None);
    }

    #[tokio::test]
    async fn a_client_that_sends_and_never_reads_is_cut_off_at_the_limit() {
        let outbox = outbox();
        let answer = || Notice::Pending { path: NodePath::trusted("/a") };
        for _ in 0..=Outbox::LIMIT {
            outbox.push(answer());
        }
        for _ in 0..Outbox::LIMIT {
            assert_eq!(outbox.next().await, Some(Ok(answer())));
        }
        assert!(matches!(outbox.next().await, Some(Err(Error::LimitExceeded { .. }))));
        assert_eq!(outbox.next().await, None);
    }

    #[tokio::test]
    async fn keep_alives_that_nobody_reads_the_answers_of_are_answered_sixty_four_times() {
        let outbox = outbox();
        for _ in 0..1000 {
            outbox.push(Notice::KeptAlive);
        }
        outbox.close(Ok(()));
        let mut told = 0;
        while outbox.next().await.is_some() {
            told += 1;
        }
        assert_eq!(told, Outbox::KEPT_ALIVE);
    }

    #[tokio::test]
    async fn what_is_unread_is_taken_from_the_account_of_the_connection_and_given_back() {
        let budget = Budget::new(Limits { bytes: 100_000, ..Limits::NONE }, Limits::NONE);
        let account = budget.account();
        let (lazy, other, diligent) = (Outbox::new(&account), Outbox::new(&account), Outbox::new(&account));
        let answer = || Notice::Pending { path: NodePath::trusted("/a") };
        for outbox in [&lazy, &other] {
            (0..1000).for_each(|_| outbox.push(answer()));
            outbox.close(Ok(()));
        }
        assert!(account.used(Resource::Bytes) <= 112_500);
        diligent.push(answer());
        assert_eq!(diligent.next().await, Some(Ok(answer())), "who reads does not feel it");
        for outbox in [lazy, other] {
            let mut last = None;
            while let Some(next) = outbox.next().await {
                last = Some(next);
            }
            let error = last.and_then(Result::err).expect("both got too many");
            assert_eq!(error.reason(), "TOO_MANY_BYTES");
        }
        assert_eq!(account.used(Resource::Bytes), 0);
    }

    #[tokio::test]
    async fn a_stream_that_asks_much_at_once_goes_on_though_its_connection_is_at_its_limit() {
        let budget = Budget::new(Limits { bytes: 1_000_000, ..Limits::NONE }, Limits::NONE);
        let account = budget.account();
        let _full = account.take(Resource::Bytes, 1_000_000).unwrap();
        let outbox = Outbox::new(&account);
        let answer = || Notice::Pending { path: NodePath::trusted("/a") };
        (0..400).for_each(|_| outbox.push(answer()));
        for _ in 0..400 {
            assert_eq!(outbox.next().await, Some(Ok(answer())));
        }
        outbox.close(Ok(()));
        assert_eq!(outbox.next().await, None);
    }
}
