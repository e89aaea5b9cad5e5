//! The recipe's znodes: their names, data and stats, and the requests that make, read and delete them. Nothing here
//! waits for a lock.
//!
//! ```text
//! /foo                                           the lock node; its data is the maximum number of holders; durable
//! /foo/<32 hex>                                  a lease; its data is the holder's name
//! /foo-__lock__                                  the queue; durable
//! /foo-__lock__/<32 hex>__lock__0000000001       a contender; ephemeral, sequential; its data is its name
//! /.rollcall/leases/<32 hex>                     the record of a lease with a ttl
//! ```

pub(super) mod commit;
pub(super) mod contenders;
pub(super) mod lease_observation;
pub(super) mod lease_record;
pub(super) mod limit;
pub(super) mod lock_id;
pub(super) mod lock_node;
pub(super) mod own_nodes;
pub(super) mod queue_reader;
pub(super) mod queue_readers;
