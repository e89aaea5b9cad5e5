//! From the request to the lease. [`plan`] has the recipe's rules, and [`attempt`] carries them out.

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
mod wait;
