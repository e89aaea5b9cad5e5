"""When to look for another replica that has ZooKeeper, and the results of looking. Pure: the time is given.

A replica that has lost ZooKeeper keeps its streams: it goes on answering from memory, and holds waiting requests. So a
stream stays where it is until another replica is known to have ZooKeeper. If none has it, moving gains nothing, and
puts at risk the state that the replica still holds for the stream.
"""

from typing import Optional

# First and longest pause, in seconds, before a stream whose replica has lost ZooKeeper looks for another replica. If
# the first pause is shorter, streams move for a ZooKeeper server that is merely replaced; if the last is longer, a
# stream stays without ZooKeeper for longer than it has to.
PAUSES = (1.0, 10.0)


def _pause(looks: int) -> float:
    return min(PAUSES[0] * 2.0 ** min(looks, 16), PAUSES[1])


class Unease:
    """Decides when a stream looks for another replica. Times are those of the loop's clock."""

    def __init__(self, spread: float = 0.0) -> None:
        """`spread` is from 0 to 1, and the same for all streams of a client, which share their rounds of questions."""
        # How much longer the first pause is, so that clients that lose ZooKeeper together do not move together.
        self._spread = spread
        # Whether the stream stays where it is for the rest of this outage.
        self._stays = False
        # When to look next. Set while the replica has no ZooKeeper.
        self.look_at: Optional[float] = None
        # Number of times that the stream has looked, or moved, in this outage.
        self._looks = 0

    def set(self, is_without: bool, now: float) -> None:
        """Records whether the stream's replica is without ZooKeeper."""
        if not is_without:
            self.look_at, self._looks, self._stays = None, 0, False
        elif self.look_at is None and not self._stays:
            self.look_at = now + self._pause()

    def looks(self, now: float) -> None:
        """The stream looks. The next look, at whichever replica it then is, comes after a longer pause, so that a
        stream does not hop for ever between replicas that promise more than they can do."""
        self._looks += 1
        self.look_at = now + self._pause()

    def moved(self) -> None:
        """The stream has moved. Whether the new replica has ZooKeeper is not known yet."""
        self.look_at, self._stays = None, False

    def returned(self) -> None:
        """The stream has gone back: the other replica could not take it."""
        self.look_at, self._stays = None, True

    def _pause(self) -> float:
        return _pause(self._looks) * (1.0 + self._spread * (self._looks == 0))

    def left(self, now: float, longest: float) -> float:
        """Seconds until the stream looks, but no more than `longest`."""
        return longest if self.look_at is None else max(0.0, min(longest, self.look_at - now))


class Memory:
    """The result of the last round of questions. All streams of a client share it, so that a client with a thousand
    streams asks no more than a client with one."""

    def __init__(self) -> None:
        self._at: Optional[float] = None
        self._found = False
        self._in_vain = 0

    def get(self, now: float) -> Optional[bool]:
        """The result of a round that was made a moment ago; None: it is time for another."""
        # Kept for less time than a stream waits, or each stream would come just too early.
        kept = (PAUSES[0] if self._found else _pause(max(self._in_vain - 1, 0))) / 2
        return self._found if self._at is not None and now < self._at + kept else None

    def put(self, found: bool, now: float) -> None:
        """Records the result of a round."""
        is_old = self._at is None or now > self._at + 4 * PAUSES[1]
        self._in_vain = int(not found) if found or is_old else self._in_vain + 1
        self._at, self._found = now, found
