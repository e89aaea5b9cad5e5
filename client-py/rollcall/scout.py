"""When to look for another replica that has ZooKeeper, and what comes of it. Pure: the time is given.

A replica that has lost ZooKeeper keeps its streams: it goes on answering from memory, and keeps what waits. So a stream
stays where it is until another replica is known to have ZooKeeper; where none has, nothing is gained by moving, and what
the replica still holds for the stream would be put at risk.
"""

from typing import Optional

# The first and the longest pause, in seconds, before a stream whose replica has lost ZooKeeper looks for another replica.
# A shorter first one would move streams for a ZooKeeper server that is merely replaced; a longer last one leaves a stream
# without ZooKeeper for longer than it has to be.
PAUSES = (1.0, 10.0)


def _pause(looks: int) -> float:
    return min(PAUSES[0] * 2.0 ** min(looks, 16), PAUSES[1])


class Unease:
    """When one stream looks for another replica. Times are those of the loop's clock."""

    def __init__(self, spread: float = 0.0) -> None:
        """`spread` is from 0 to 1, and the same for all streams of a client, which share their rounds of questions."""
        # How much longer the first pause is: clients that lose ZooKeeper together don't move together.
        self._spread = spread
        # It stays where it is for as long as this trouble lasts.
        self._stays = False
        # Set while its replica has no ZooKeeper.
        self.look_at: Optional[float] = None
        # How often it has looked, or moved, in this trouble.
        self._looks = 0

    def set(self, is_without: bool, now: float) -> None:
        """Whether the stream's replica has lost ZooKeeper, or says so still."""
        if not is_without:
            self.look_at, self._looks, self._stays = None, 0, False
        elif self.look_at is None and not self._stays:
            self.look_at = now + self._pause()

    def looks(self, now: float) -> None:
        """It looks: the next time, at the replica where it then is, comes after a longer pause. So a stream does not hop
        for ever between replicas that promise more than they hold."""
        self._looks += 1
        self.look_at = now + self._pause()

    def moved(self) -> None:
        """Whether the new replica has ZooKeeper is not known yet."""
        self.look_at, self._stays = None, False

    def returned(self) -> None:
        """It has gone back: the other replica could not take it."""
        self.look_at, self._stays = None, True

    def _pause(self) -> float:
        return _pause(self._looks) * (1.0 + self._spread * (self._looks == 0))

    def left(self, now: float, longest: float) -> float:
        """Seconds until it looks, but no more than `longest`."""
        return longest if self.look_at is None else max(0.0, min(longest, self.look_at - now))


class Memory:
    """What the last round of questions came to. All streams of a client share it, so that a client with a thousand of
    them asks no more than one."""

    def __init__(self) -> None:
        self._at: Optional[float] = None
        self._found = False
        self._in_vain = 0

    def get(self, now: float) -> Optional[bool]:
        """What a round that was begun a moment ago has come to; None: it is time for another."""
        # A moment less than the streams wait, or each would come just too early.
        kept = (PAUSES[0] if self._found else _pause(max(self._in_vain - 1, 0))) / 2
        return self._found if self._at is not None and now < self._at + kept else None

    def put(self, found: bool, now: float) -> None:
        """What another round has come to."""
        is_old = self._at is None or now > self._at + 4 * PAUSES[1]
        self._in_vain = int(not found) if found or is_old else self._in_vain + 1
        self._at, self._found = now, found
