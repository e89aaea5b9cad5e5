//! The time-outs, pauses and intervals of ZooKeeper sessions.

use std::time::Duration;

/// Time within which a server must accept a connection, and its session.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause after a sync that did not reach the transaction that was asked for. It doubles each time.
pub(super) const FIRST_SYNC_PAUSE: Duration = Duration::from_millis(2);
/// Maximum pause. With a shorter one, calls that wait for a transaction that never comes cost ZooKeeper more; with a
/// longer one, other calls that wait beside them wait longer.
pub(super) const LONGEST_SYNC_PAUSE: Duration = Duration::from_millis(50);
/// Pause after requests that found the queue full.
pub(super) const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(20);

/// Time after the first call for which calls wait for sessions that are opened on demand. After it they are answered as
/// without ZooKeeper.
pub(super) const ACTIVATION: Duration = Duration::from_secs(5);
/// Interval at which it is checked meanwhile whether the sessions are open.
pub(super) const ACTIVATION_LOOK: Duration = Duration::from_millis(5);

/// Time without any answer after which a session is used only if there is no other. A request that is sent before then
/// may wait until the connection is given up; with a longer time, everything that a busy replica may have under way
/// waits there.
pub(super) const SESSION_SILENCE: Duration = Duration::from_millis(500);

/// Time after which the same server is reported again; it doubles each time.
pub(super) const FIRST_REPORT_PAUSE: Duration = Duration::from_secs(10);
/// Maximum time between two reports of one server.
pub(super) const LONGEST_REPORT_PAUSE: Duration = Duration::from_secs(600);

/// Time for which a list is current enough. With a shorter one, clients that ask in a loop cause more reads.
pub(super) const FRESH: Duration = Duration::from_secs(1);
/// Time that a caller waits for a list before it uses the last one. Status promises an answer in a second.
pub(super) const ROSTER_PATIENCE: Duration = Duration::from_millis(500);
/// Time after which a read of the list is given up.
pub(super) const READING: Duration = Duration::from_secs(2);

/// Time after which a connect goes on without the answer to a lookup.
pub(super) const LOOKUP_TIMEOUT: Duration = Duration::from_millis(500);

/// Time after which a fence that could not be read is read again.
pub(super) const FENCE_PAUSE: Duration = Duration::from_millis(100);

/// The pause after ZooKeeper has refused to prepare a session; each further refusal doubles it.
pub(super) const FIRST_PREPARE_PAUSE: Duration = Duration::from_millis(200);
/// Maximum pause of that kind: the replica serves nobody before an operator has fixed the cause.
pub(super) const LONGEST_PREPARE_PAUSE: Duration = Duration::from_secs(5);

/// Time within which a surplus session must be open; after that ZooKeeper counts as taking no more. Meanwhile callers
/// that need room wait; afterwards they are refused.
pub(super) const SURPLUS_OPENING_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after the first surplus session that ZooKeeper did not take; each further one doubles it.
pub(super) const FIRST_SURPLUS_PAUSE: Duration = Duration::from_secs(5);
/// Maximum pause of that kind.
pub(super) const LONGEST_SURPLUS_PAUSE: Duration = Duration::from_secs(60);

/// Maximum pause between two rounds of connection attempts.
pub(super) const RECONNECT_CAP: Duration = Duration::from_millis(400);
/// Pause after the first round; it doubles from there.
pub(super) const RECONNECT_FIRST: Duration = Duration::from_millis(20);
/// Time after which the next address is called if the ones before it have not answered.
pub(super) const STAGGER: Duration = Duration::from_millis(50);

/// Length of a step in which silence is counted. With longer steps a silent server is noticed later; with shorter ones
/// sessions that have nothing to do wake up more often.
pub(super) const STEP: Duration = Duration::from_millis(250);
