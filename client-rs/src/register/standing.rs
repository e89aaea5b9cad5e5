//! How a registration stands, as a program is told.

use std::sync::Arc;

use crate::error::LostReason;
use crate::value::Value;

/// How a registration stands.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RegistrationState {
    /// Not registered yet, or perhaps no more: no replica, or no ZooKeeper, can be reached. The client goes on trying.
    Pending,
    /// Registered.
    Registered {
        /// Which incarnation this is; later ones are larger.
        generation: i64,
    },
    /// Registered, but somebody else has written other data into the node. The server writes yours again after a second,
    /// and after twice as long each further time, up to 10 minutes; [`Registered`](Self::Registered) follows then. The next
    /// [`update`](crate::Registration::update) writes yours at once.
    Overwritten {
        /// Which incarnation this is.
        generation: i64,
        /// What the node holds now.
        value: Option<Arc<Value>>,
    },
    /// Gone for good, and the client does not bring it back.
    Lost {
        /// Why.
        reason: LostReason,
    },
    /// Taken down, as the program asked.
    Closed,
}

impl RegistrationState {
    /// Whether the path is registered, by all that is known.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        matches!(self, Self::Registered { .. } | Self::Overwritten { .. })
    }

    /// Whether nothing will change any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Closed)
    }
}
