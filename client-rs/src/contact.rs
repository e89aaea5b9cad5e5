//! How the replicas answer, for a program that shows the cause of a wait.

use std::time::SystemTime;

use crate::error::Failure;

/// How the replicas of a client answer: from [`Client::contact`](crate::Client::contact).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Contact {
    /// Address of the replica that was asked last: `host:port`. Empty before the first call.
    pub replica: String,
    /// Time since which no replica has answered; `None`: the last call was answered.
    pub silent_since: Option<SystemTime>,
    /// The last failure since then: the replica, and the cause. `None`: none yet.
    pub trouble: Option<(String, String)>,
    /// Whether a replica answers, but only to say that it can't serve now, such as while it has lost ZooKeeper.
    pub is_refused: bool,
}

impl Contact {
    /// A call goes to a replica. Returns whether that is news.
    pub(crate) fn asked(&mut self, replica: &str) -> bool {
        let is_news = self.silent_since.is_none() || self.replica != replica;
        self.silent_since = self.silent_since.or_else(|| Some(SystemTime::now()));
        replica.clone_into(&mut self.replica);
        is_news
    }

    /// The call was answered. Returns whether that is news.
    pub(crate) fn answered(&mut self) -> bool {
        let is_news = self.silent_since.is_some();
        (self.silent_since, self.trouble, self.is_refused) = (None, None, false);
        is_news
    }

    /// The call was not answered. Returns whether that is news.
    pub(crate) fn failed(&mut self, replica: &str, failure: &Failure) -> bool {
        self.silent_since = self.silent_since.or_else(|| Some(SystemTime::now()));
        self.trouble = Some((replica.to_owned(), failure.cause()));
        self.is_refused = matches!(failure, Failure::NotNow(_) | Failure::Refused(_));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_begins_with_the_first_call_that_is_not_answered() {
        let mut contact = Contact::default();
        assert!(contact.asked("a:1") && !contact.asked("a:1"));
        let since = contact.silent_since;
        assert!(contact.failed("a:1", &Failure::silent()) && contact.asked("b:1"));
        assert_eq!((contact.silent_since, contact.replica.as_str()), (since, "b:1"));
        assert_eq!(contact.trouble, Some(("a:1".to_owned(), "the replica does not answer".to_owned())));
        assert!(contact.answered() && !contact.answered());
        assert_eq!(contact, Contact { replica: "b:1".to_owned(), ..Contact::default() });
    }
}
