//! The time-outs, pauses and intervals of views.

use std::time::Duration;

/// Time for which the last answer counts, from a server that is asked again and again.
pub(super) const RECENT: Duration = Duration::from_secs(1);

/// Maximum time that a reader waits for a ZooKeeper that answers but does not finish.
pub(super) const PATIENCE_WITH_THE_SLOW: Duration = Duration::from_secs(30);

/// Time between two searches for views that have been idle for long enough, or for too much memory in use.
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum time between two checks whether ZooKeeper is away.
pub(super) const LEAST_WAIT: Duration = Duration::from_millis(50);

/// Time between two searches for views that have changed.
pub(super) const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// Time after a write during which a view is not written again, changed or not.
pub(super) const REST: Duration = Duration::from_secs(5);
/// Time after a failed write during which a view is not written again.
pub(super) const REST_AFTER_FAILURE: Duration = Duration::from_secs(30);
/// Time after which the time of an unchanged view is updated.
pub(super) const TOUCH: Duration = Duration::from_secs(60);

/// Half of the pause before the second try of a load that failed; it doubles from there.
pub(super) const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Longest such pause.
pub(super) const RETRY_CAP: Duration = Duration::from_secs(2);
/// Time for which a server that has answered a sync may be behind another server: behind what was shown before, or what
/// this process or a client knows of. A server that is behind for longer has lost its past.
pub(super) const FALLEN_BACK_AFTER: Duration = Duration::from_secs(1);
/// Time after which a server that is behind what this process knows of is asked again.
pub(super) const BEHIND_READ_PAUSE: Duration = Duration::from_millis(2);
/// Time after which the turn of a load ends, so that others begin as well: ZooKeeper may be out of reach of this load
/// alone.
pub(super) const LOAD_TURN: Duration = Duration::from_secs(1);
/// Time for which a path that is too large is refused without another attempt.
pub(super) const REFUSED: Duration = Duration::from_secs(10);

/// Time after which a server that is behind a watcher is asked again.
pub(super) const BEHIND_WATCH_PAUSE: Duration = Duration::from_millis(20);
