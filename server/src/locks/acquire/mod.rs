//! From the request to the lease. [`plan`] has the recipe's rules, and [`attempt`] carries them out.
//!
//! Three short cuts leave the rules as they are:
//!
//! - `fast_path` takes a free lock in one transaction.
//! - `handoff` passes a lease to the next contender of this replica in one transaction.
//! - `enqueue_batcher` creates a contender in the transaction of the next handoff, while a lock changes hands fast.
//!
//! So an acquire and a release cost two fsyncs for a free lock, and two as well for a lock that many clients want (the
//! contender, the handoff); one, where the lock changes hands fast. Short cuts that name digits beforehand end where
//! the queue runs out of numbers (`recipe/contenders.rs`).

pub(super) mod attempt;
mod enqueue;
pub(super) mod enqueue_batcher;
mod fast_path;
mod grant;
pub(super) mod handoff;
pub(super) mod hints;
mod plan;
#[cfg(test)]
mod plan_tests;
mod position;
mod wait;
