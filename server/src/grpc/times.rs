//! The time-outs, pauses and intervals of calls.

use std::time::Duration;

/// Duration of an eviction if the request gives none.
pub(super) const DEFAULT_EVICTION: Duration = Duration::from_secs(600);

/// Maximum wait of a Get. A longer one is as good as for ever, and clocks can't go that far.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Shortest interval of heartbeats that no caller asked for. A shorter one keeps a connection busy with messages that say nothing.
pub(super) const SHORTEST: Duration = Duration::from_millis(100);

/// Time between two looks at a connection that waits. Calls that read at all have read something by then, unless the
/// process did not get the processor.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Time between two checks whether a ping is due. After a suspension of the machine a ping is late by at most this.
pub(super) const PING_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Time after which a call that failed because ZooKeeper could not be reached should be tried again.
pub(super) const BACKEND_RETRY: Duration = Duration::from_millis(500);
/// Time over which the clients of a replica that goes down spread their return.
pub(super) const DRAIN_SPREAD: Duration = Duration::from_secs(2);

/// Time after which a connection has all of `READ_WITHOUT_TURN` again.
pub(super) const REFILL: Duration = Duration::from_millis(100);

/// Time within which a request must make progress.
pub(super) const REQUEST_TIME: Duration = Duration::from_secs(10);
/// Time within which a request of one message must be complete, whatever its progress. A longer one lets a client that
/// sends byte by byte keep its calls for longer; a shorter one fails large requests over slow connections.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// Time for a last look before a request is given up, in which a replica that was stopped reads what arrived meanwhile.
pub(super) const LAST_LOOK: Duration = Duration::from_secs(1);
/// Time between two checks for free memory. A shorter one costs the processor more when all streams wait.
pub(super) const CROWDED: Duration = Duration::from_millis(500);

/// Pause before the second try to find memory for a part; it doubles from there. With a shorter one, thousands of
/// streams that wait cost the processor more; with a longer one, they go on later than they could.
pub(super) const FIRST_MEMORY_PAUSE: Duration = Duration::from_millis(50);
/// Longest such pause.
pub(super) const LONGEST_MEMORY_PAUSE: Duration = Duration::from_secs(2);
