//! Messages while a command waits. They begin after a second with the object and the cause of the wait, and follow when
//! that changes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use rollcall::{Client, Contact, Reason};
use tokio::sync::watch;
use tokio::time::sleep;

use super::term::{say, time};

/// Time without a message.
const SILENCE: Duration = Duration::from_secs(1);

/// Awaits a future. When that takes longer, prints the object and the cause of the wait.
pub(crate) async fn patiently<F: Future>(client: &Client, what: &str, future: F) -> F::Output {
    let (mut waiting, mut future) = (Waiting::new(client, what), pin!(future));
    tokio::select! {
        biased;
        output = &mut future => output,
        never = waiting.tell() => match never {},
    }
}

/// A wait in progress.
#[derive(Debug)]
pub(crate) struct Waiting {
    what: String,
    contact: watch::Receiver<Contact>,
    /// Time since which an answering replica has not done the work, and the reason that it gives.
    pending: Option<(SystemTime, Option<Reason>)>,
    /// The message about each replica since the last answer.
    told: BTreeMap<String, String>,
}

impl Waiting {
    pub(crate) fn new(client: &Client, what: &str) -> Self {
        Self { what: what.to_owned(), contact: client.contact(), pending: None, told: BTreeMap::new() }
    }

    /// A replica answers, but has not done the awaited work yet.
    pub(crate) fn set_pending(&mut self, reason: Option<Reason>) {
        let since = self.pending.take().map_or_else(SystemTime::now, |(since, _)| since);
        self.pending = Some((since, reason));
    }

    /// The work is done, or no longer wanted.
    pub(crate) fn set_done(&mut self) {
        self.pending = None;
        self.told.clear();
    }

    /// Prints messages when they are due. Never returns.
    ///
    /// # Cancellation
    /// Safe: the next call goes on.
    pub(crate) async fn tell(&mut self) -> Infallible {
        loop {
            let contact = self.contact.borrow_and_update().clone();
            let since = contact.silent_since.or(self.pending.as_ref().map(|(since, _)| *since));
            if since.is_none() {
                self.told.clear();
            }
            let left = since.map(|since| SILENCE.saturating_sub(since.elapsed().unwrap_or_default()));
            if let Some(since) = since.filter(|_| left == Some(Duration::ZERO)) {
                self.tell_once(since, &contact);
            }
            let due = async {
                match left {
                    Some(left) if !left.is_zero() => sleep(left).await,
                    _ => pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                changed = self.contact.changed() => if changed.is_err() {
                    return pending().await;
                },
            }
        }
    }

    fn tell_once(&mut self, since: SystemTime, contact: &Contact) {
        let (replica, why) = why(contact, self.pending.as_ref().and_then(|(_, reason)| reason.as_ref()));
        if self.told.get(&replica) != Some(&why) {
            say(&format!("waiting for {} since {}: {replica} {why}", self.what, time(since)));
            self.told.insert(replica, why);
        }
    }
}

/// The replica at fault, and the fault.
fn why(contact: &Contact, pending: Option<&Reason>) -> (String, String) {
    match (&contact.trouble, contact.silent_since) {
        (Some((replica, cause)), Some(_)) if contact.is_refused => {
            (replica.clone(), format!("is there, but can't serve: {cause}"))
        }
        (Some((replica, cause)), Some(_)) => (replica.clone(), format!("can't be reached: {cause}")),
        (None, Some(_)) => (contact.replica.clone(), "was asked, and has not answered yet".to_owned()),
        (_, None) => {
            let cause = match pending {
                Some(Reason::BackendUnavailable) => "is there, but has no zookeeper".to_owned(),
                // The reasons of limits have this form.
                Some(reason) if reason.as_str().starts_with("TOO_MANY_") => {
                    format!("is there, but has no room: {reason}")
                }
                Some(reason) => format!("is there, but can't do it now: {reason}"),
                None => "is there, and has not done it yet".to_owned(),
            };
            (contact.replica.clone(), cause)
        }
    }
}
