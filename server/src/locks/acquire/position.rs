//! The position that a client that waits is told.

use crate::locks::recipe::queue_reader::QueueSnapshot;
use crate::locks::stream::state::AcquisitionState;

/// Tells the client its position, as far as the reading goes: `ahead` contenders come before it. The reading may be older
/// than the contenders that have left since; the next one puts it right.
pub(super) fn tell(state: &AcquisitionState, reading: &QueueSnapshot, ahead: usize) {
    let position = u32::try_from(ahead.saturating_add(1)).unwrap_or(u32::MAX);
    state.queued(position, reading.holders.clone());
}
