//! The time-outs and pauses of connections.

use std::time::Duration;

/// Time for the head of a request, from the end of the request before. A connection that asks nothing ends then.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after the kernel has refused a connection for lack of descriptors or memory. With a shorter one, the loop
/// takes a core while the shortage lasts; with a longer one, clients wait after it is over.
pub(super) const PAUSE: Duration = Duration::from_millis(200);
/// Time between two log lines about the same problem.
pub(super) const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Time within which the first bytes of a connection must arrive.
pub(super) const OPENING_TIMEOUT: Duration = Duration::from_secs(10);
