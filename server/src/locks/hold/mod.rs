//! From the lease to its end: leases that end with their stream, leases with a ttl, and the removal of leases
//! without a keeper and of idle locks.

pub(super) mod asked_contact;
pub(super) mod certainty;
pub(super) mod idle;
pub(super) mod reaper;
pub(super) mod stream_lease;
pub(super) mod ttl_lease;
