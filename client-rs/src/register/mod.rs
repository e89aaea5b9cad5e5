//! Register: holding registrations.
//!
//! All registrations of a client with the same ttl share one stream, so that 10,000 of them cost one call and one
//! keep-alive. `state.rs` is pure: the registrations that are wanted, the requests that were sent, and their answers.
//! `stream.rs` is one Register call. `session.rs` keeps a call going, over any number of replicas.

pub(crate) mod session;
mod standing;
mod state;
mod stream;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

pub use self::standing::RegistrationState;

use self::session::Session;
use self::state::{Key, Terms};
use crate::client::Client;
use crate::error::{Error, LostReason};
use crate::value::{Compact, Value};

/// Default ttl: time for which a registration outlives its client.
const TTL: Duration = Duration::from_secs(15);
/// Range of ttls that a replica accepts.
const TTLS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);

/// A builder of a registration: from [`Client::register`].
#[derive(Debug, Clone)]
#[must_use = "nothing is registered before it is started"]
pub struct Register {
    client: Client,
    path: String,
    value: Result<Value, Error>,
    ttl: Option<Duration>,
    exclusive: bool,
}

impl Client {
    /// Registers a path, for as long as the program lives and keeps the [`Registration`]. Missing parents are created.
    ///
    /// ```no_run
    /// # use serde_json::json;
    /// # async fn example(client: rollcall::Client) -> Result<(), rollcall::Error> {
    /// let registration = client.register("/services/ssh/server1:22").data(json!({"foo": "bar"})).start().await?;
    /// // … serve …
    /// registration.close().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The client keeps the registration up. When a replica stops or dies, the client resumes it at another by its
    /// generation, so that no watcher misses it for a moment. Registering a path that another client holds takes it
    /// over: a service that restarts on the same host and port needs that. The older registration is
    /// [`Lost`](RegistrationState::Lost) and does not fight back. See [`exclusive`](Register::exclusive) for the
    /// opposite.
    pub fn register(&self, path: impl Into<String>) -> Register {
        Register {
            client: self.clone(),
            path: path.into(),
            value: Ok(Value::Data(serde_json::Map::new())),
            ttl: Some(TTL),
            exclusive: false,
        }
    }
}

impl Register {
    /// The data of the node: anything that serializes to a JSON object. The keys `pid` and `created` (when it was first
    /// registered, UTC) are added where they are missing.
    pub fn data(mut self, data: impl Serialize) -> Self {
        self.value = Value::from_data(data);
        self
    }

    /// The value of the node: text, bytes or data.
    pub fn value(mut self, value: impl Into<Value>) -> Self {
        self.value = Ok(value.into());
        self
    }

    /// Time for which the registration stays after the program has died or lost every replica, from 1 second to 10
    /// minutes. Default: 15 seconds. Within that time a replica may be replaced unnoticed.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Removes the registration at once when the connection to the replica ends, for whatever reason.
    pub fn without_ttl(mut self) -> Self {
        self.ttl = None;
        self
    }

    /// Does not take over an existing registration: [`start`](Register::start) then fails, reason
    /// [`NameTaken`](crate::Reason::NameTaken).
    pub fn exclusive(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// Registers, and waits until the path is registered.
    ///
    /// # Errors
    /// [`Error::Invalid`]: the data or the ttl is not valid. [`Error::Refused`] with the reasons `NameTaken`,
    /// `NotEphemeral`, `ValueTooLarge`, `InvalidPath` and those of every call. [`Error::Unreachable`]: no replica or no
    /// ZooKeeper could be reached within the client's time-out; nothing is left then. Use
    /// [`in_background`](Register::in_background) to go on trying.
    ///
    /// # Cancellation
    /// Dropping the future takes the registration down again, if it was made.
    ///
    /// # Connection loss
    /// The client goes on at another replica, now and for as long as the registration is kept.
    ///
    /// # Ordering
    /// A later `latest` lookup sees the registration; other readers see it a moment later.
    pub async fn start(self) -> Result<Registration, Error> {
        let (sender, answer) = oneshot::channel();
        let registration = self.add(Some(sender))?;
        registration.answered(answer).await?;
        Ok(registration)
    }

    /// Registers without waiting. The [state](Registration::state) shows the outcome; the client tries until the path
    /// is registered or refused. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`Error::Invalid`]: the data or the ttl is not valid. [`Error::Refused`], reason `ValueTooLarge`: no message can
    /// carry the value.
    pub fn in_background(self) -> Result<Registration, Error> {
        self.add(None)
    }

    fn add(self, waiter: Option<state::Waiter>) -> Result<Registration, Error> {
        let Self { client, path, value, ttl, exclusive } = self;
        if ttl.is_some_and(|ttl| !TTLS.contains(&ttl)) {
            return Err(Error::invalid("ttl", "it must be from 1 second to 10 minutes"));
        }
        let created = SystemTime::now();
        let value = Compact::new(stamped(value?, created))?;
        value.check_size(&path)?;
        let terms = Terms { value, exclusive };
        let session = client.shared().sessions.of(ttl);
        let (key, state) = session.add(path.as_str().into(), terms, waiter)?;
        Ok(Registration { client, session, key, created, state, is_closed: false })
    }
}

/// Adds the keys that a replica would add, so that they are the same each time the value is sent. By them a
/// registration recognizes itself when an answer was lost.
fn stamped(value: Value, created: SystemTime) -> Value {
    let Value::Data(mut fields) = value else { return value };
    fields.entry("pid").or_insert_with(|| std::process::id().into());
    // nd_service_registry's format: to the second, without `T` and `Z`.
    let text = prost_types::Timestamp::from(created).to_string();
    let second = text.split(['.', 'Z']).next().unwrap_or(&text).replace('T', " ");
    fields.entry("created").or_insert_with(|| second.into());
    Value::Data(fields)
}

/// A path that is registered for as long as this is kept.
///
/// Dropping it takes the registration down in the background, for which [`Client::settled`] waits;
/// [`close`](Registration::close) waits until it is done.
pub struct Registration {
    client: Client,
    session: Arc<Session>,
    key: Key,
    created: SystemTime,
    state: watch::Receiver<RegistrationState>,
    /// Whether it was taken down already, or will be.
    is_closed: bool,
}

impl Registration {
    /// The registered path.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.key.path
    }

    /// The present state.
    #[must_use]
    pub fn state(&self) -> RegistrationState {
        self.state.borrow().clone()
    }

    /// The states, as they change: Tokio's watch channel. A state that is over at once may be skipped.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<RegistrationState> {
        self.state.clone()
    }

    /// Waits for a state other than the one that this method last returned, and returns it.
    ///
    /// # Cancellation
    /// Safe: no state that still holds is missed.
    pub async fn changed(&mut self) -> RegistrationState {
        if self.state.changed().await.is_err() {
            // No state follows the last one.
            return std::future::pending().await;
        }
        self.state.borrow_and_update().clone()
    }

    /// Waits until the registration is lost, and returns why; waits for ever if it never is.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn lost(&self) -> LostReason {
        let mut states = self.states();
        let lost = states.wait_for(|state| matches!(state, RegistrationState::Lost { .. })).await;
        let reason = match lost.as_deref() {
            Ok(RegistrationState::Lost { reason }) => Some(reason.clone()),
            _ => None,
        };
        drop(lost);
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// Changes the data, and waits until the change is made. Watchers see one change.
    ///
    /// # Errors
    /// Those of [`Register::start`]. After [`Error::Refused`] the node keeps the old data. After [`Error::Unreachable`]
    /// the client goes on trying to write the new data. [`Error::Lost`]: the registration no longer exists.
    ///
    /// # Cancellation
    /// The change is made all the same.
    ///
    /// # Connection loss
    /// It is made at another replica.
    ///
    /// # Ordering
    /// Of several changes the last one wins.
    pub async fn update(&self, data: impl Serialize) -> Result<(), Error> {
        self.update_value(Value::from_data(data)?).await
    }

    /// Like [`update`](Registration::update), with text, bytes or data.
    ///
    /// # Errors
    /// Those of [`update`](Registration::update).
    pub async fn update_value(&self, value: impl Into<Value>) -> Result<(), Error> {
        let (sender, answer) = oneshot::channel();
        let value = Compact::new(stamped(value.into(), self.created))?;
        value.check_size(self.path())?;
        self.session.update(&self.key, value, sender)?;
        self.answered(answer).await
    }

    /// Takes the registration down, and waits until it is gone.
    ///
    /// # Errors
    /// [`Error::Unreachable`]: no replica could be reached; the registration goes with its ttl.
    ///
    /// # Cancellation
    /// The registration is taken down all the same.
    ///
    /// # Connection loss
    /// Another replica is asked.
    pub async fn close(mut self) -> Result<(), Error> {
        let (sender, answer) = oneshot::channel();
        self.session.remove(&self.key, sender);
        self.is_closed = true;
        match self.answered(answer).await {
            Err(Error::Lost { .. }) => Ok(()),
            other => other,
        }
    }

    async fn answered(&self, answer: oneshot::Receiver<Result<(), Error>>) -> Result<(), Error> {
        match timeout(self.client.shared().patience, answer).await {
            Ok(Ok(answer)) => answer,
            // The sender is dropped when another registration of this client has taken the path over.
            Ok(Err(_)) => Err(Error::Lost { path: self.path().to_owned(), reason: LostReason::TakenOver }),
            Err(_) => {
                let replicas = self.client.replicas().names();
                Err(Error::Unreachable { replicas, source: Some(self.session.trouble()) })
            }
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Registration")
            .field("path", &self.path())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if !self.is_closed {
            self.session.remove_later(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn data_is_stamped_as_a_replica_would_and_the_same_each_time() {
        let created = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_340_318_250);
        let stamp = |data| stamped(Value::from_data(data).unwrap(), created).to_json();
        let pid = std::process::id();
        let expected = json!({"port": 22, "pid": pid, "created": "2026-11-22 09:38:38"});
        assert_eq!(stamp(json!({"port": 22})), expected);
        assert_eq!(stamp(json!({"pid": 1, "created": "then"})), json!({"pid": 1, "created": "then"}));
        assert_eq!(stamped("text".into(), created), "text".into());
    }
}
