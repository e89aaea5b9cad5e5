//! The connection of a lock's latest stream, which is asked for signs of life.

use std::time::Duration;

use crate::contact::{Asking, Contact};
use crate::locks::stream::state::AcquisitionState;

/// The connection of a lock's latest stream, which is asked for signs of life.
#[derive(Debug, Default)]
pub(crate) struct AskedContact {
    stream: u64,
    contact: Option<(Contact, Asking)>,
}

impl AskedContact {
    /// The connection of this stream, which is asked from now on whenever it was silent for the time that `after`
    /// returns.
    pub(crate) fn contact(
        &mut self,
        state: &AcquisitionState,
        stream: u64,
        after: impl Fn(&Contact) -> Duration,
    ) -> Option<&Contact> {
        if self.stream != stream {
            let ask = |contact: Contact| (contact.clone(), contact.ask_every(after(&contact)));
            (self.stream, self.contact) = (stream, state.contact().map(ask));
        }
        self.contact.as_ref().map(|(contact, _)| contact)
    }

    /// The silence after which the connection is asked, if there is a connection.
    pub(crate) fn interval(&self) -> Option<Duration> {
        self.contact.as_ref().map(|(_, asking)| asking.interval())
    }
}
