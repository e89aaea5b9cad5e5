//! The state of a registration, as a program sees it.

use std::sync::Arc;

use crate::error::{LostReason, Reason};
use crate::value::Value;

/// The state of a registration.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RegistrationState {
    /// Not registered yet, or perhaps no longer: no replica, or no ZooKeeper, can be reached. The client goes on
    /// trying.
    Pending {
        /// The cause, as a replica gives it, such as [`BackendUnavailable`](Reason::BackendUnavailable); `None`: no
        /// replica has given one yet.
        reason: Option<Reason>,
    },
    /// Registered.
    Registered {
        /// The generation of the registration; later ones are larger.
        generation: i64,
    },
    /// Registered, but somebody else has written other data into the node. The server writes yours again after a
    /// second, and after twice as long each further time, up to 10 minutes; then [`Registered`](Self::Registered)
    /// follows. The next [`update`](crate::Registration::update) writes yours at once.
    Overwritten {
        /// The generation of the registration.
        generation: i64,
        /// The present value of the node.
        value: Option<Arc<Value>>,
    },
    /// Gone for good; the client does not bring it back.
    Lost {
        /// Why.
        reason: LostReason,
    },
    /// Taken down at the program's request.
    Closed,
}

impl RegistrationState {
    /// Pending, without a cause from a replica.
    pub(super) const WAITING: Self = Self::Pending { reason: None };

    /// Whether the path is registered, as far as is known.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        matches!(self, Self::Registered { .. } | Self::Overwritten { .. })
    }

    /// Whether the state is final.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Closed)
    }
}
