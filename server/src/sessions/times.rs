//! The time-outs, pauses and intervals of registrations.

use std::time::Duration;

/// Time between the beginnings of two readings of a session's nodes. With a longer one, a foreign delete that the watch
/// has missed is taken for a takeover for longer.
pub(super) const FIRST_CONFIRMATION_PAUSE: Duration = Duration::from_secs(1);
/// Longest such pause.
pub(super) const LONGEST_CONFIRMATION_PAUSE: Duration = Duration::from_secs(30);

/// Pause before data are put right for the first time. A shorter one makes two programs that disagree write more often.
pub(super) const FIRST_REWRITE_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause, and the quiet time after which the next one is [`FIRST_REWRITE_PAUSE`] again. A longer one leaves
/// wrong data for longer if another program overwrites them time and again.
pub(super) const LONGEST_REWRITE_PAUSE: Duration = Duration::from_secs(600);

/// Time for which a node that could not be read is left alone; it doubles with each failure.
pub(super) const FIRST_LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Longest such pause. With a shorter one an outage costs more, the more is registered. After most outages there is a
/// resync.
pub(super) const LONGEST_LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Pause before the second put-back of a registration that is deleted again and again; it doubles from there.
pub(super) const FIRST_PUT_BACK_PAUSE: Duration = Duration::from_millis(100);
/// Longest such pause.
pub(super) const LONGEST_PUT_BACK_PAUSE: Duration = Duration::from_secs(30);
/// Time after which a put-back is forgotten: a registration that existed this long after it was put back is put back at
/// once the next time.
pub(super) const SETTLED: Duration = Duration::from_secs(120);
/// Pause before the next try to delete a node that ZooKeeper refused to delete; it doubles from there.
pub(super) const FIRST_LEFTOVER_PAUSE: Duration = Duration::from_secs(1);
/// Longest such pause. With a shorter one ZooKeeper would refuse thousands of deletes all the time.
pub(super) const LONGEST_LEFTOVER_PAUSE: Duration = Duration::from_secs(600);

/// Pause after a round without any success; it doubles from there.
pub(super) const FIRST_RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause. With a longer one, a claim whose success no change announces would wait for too long.
pub(super) const LONGEST_RETRY_PAUSE: Duration = Duration::from_secs(5);
/// Time after which the next round may begin though more than half of the last is still under way.
pub(super) const LONGEST_ROUND: Duration = Duration::from_secs(1);

/// Time in which the ends of streams that have arrived may be read, before the registrations of a lost ZooKeeper
/// session are made again: a replica that was itself stopped finds such ends in its sockets.
pub(super) const RESTORE_DELAY: Duration = Duration::from_millis(200);
/// Time in which messages that have arrived may be read, before a claim replaces a node that is later than its client
/// knows of.
pub(super) const REPLACE_DELAY: Duration = Duration::from_millis(200);
/// Time after the end of a ttl in which messages that have already arrived may be read: a replica that was itself
/// stopped finds the messages of living clients in its sockets. A message that was read counts, however long it waits
/// after that.
pub(super) const EXPIRY_GRACE: Duration = Duration::from_millis(500);
/// Interval at which the state gets a tick while a ttl is in doubt.
pub(super) const DOUBT_INTERVAL: Duration = Duration::from_millis(50);

/// Interval at which the task checks which ZooKeeper sessions are connected, and whether a fence has moved.
pub(super) const POLL: Duration = Duration::from_millis(50);
/// Time for which inputs of one kind are taken before the others are looked at.
pub(super) const INPUT_TURN: Duration = Duration::from_millis(1);
/// Time after which the task lets other tasks run on its thread.
pub(super) const TIME_SLICE: Duration = Duration::from_millis(4);

/// Time after which a node is read again whose state this session's server does not know yet. It doubles each time that
/// this brings nothing.
pub(super) const FIRST_REREAD_PAUSE: Duration = Duration::from_millis(5);
/// Longest such pause.
pub(super) const LONGEST_REREAD_PAUSE: Duration = Duration::from_secs(5);
