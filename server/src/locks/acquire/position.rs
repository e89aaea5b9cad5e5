//! The position that a waiter is told: the number of contenders ahead of it in the last reading of the queue, and one.
//!
//! The reading is shared by all that wait for the lock on this replica, and may be a second old (`recipe/queue_reader.rs`):
//! contenders that have left since still count. A waiter that is told to be the first was found so by a fresh read.

use std::sync::Arc;

use super::plan::QueuePlace;
use crate::locks::recipe::own_nodes::NodeState;
use crate::locks::recipe::queue_reader::{QueueReader, QueueSnapshot};
use crate::locks::stream::state::AcquisitionState;

/// The last reading and the number of contenders ahead in it, if it lists the contender.
pub(super) fn last_reading(reader: Option<&QueueReader>, contender: &NodeState) -> Option<(Arc<QueueSnapshot>, usize)> {
    let NodeState::Exists(contender) = contender else { return None };
    let reading = reader?.recent();
    let ahead = reading.queue.ahead_of(contender)?.len();
    Some((reading, ahead))
}

/// Tells a waiter its position.
pub(super) fn tell(state: &AcquisitionState, reader: Option<&QueueReader>, contender: &NodeState, place: &QueuePlace) {
    let Some((reading, ahead)) = last_reading(reader, contender) else { return };
    tell_behind(state, &reading, if *place == QueuePlace::First { 0 } else { ahead });
}

/// Tells a client its position behind so many contenders.
pub(super) fn tell_behind(state: &AcquisitionState, reading: &QueueSnapshot, ahead: usize) {
    let position = u32::try_from(ahead.saturating_add(1)).unwrap_or(u32::MAX);
    state.queued(position, reading.holders.clone());
}
