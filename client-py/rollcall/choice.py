"""Chooses the replica to talk to. The choice stays with one replica while that answers and moves to another at once
when it does not; the pause before the same replica is tried again grows. Pure: the time is given."""

import math
import random
from dataclasses import dataclass
from typing import List, NamedTuple, Optional, Union

# Shortest and longest pause, in seconds, before a failed replica is tried again. Jitter shortens a pause to as little
# as half.
PAUSES = (0.1, 5.0)
# Longest pause that a replica may ask for.
LONGEST_ASKED = 30.0


class Chosen(NamedTuple):
    """A replica that was chosen, and its era at that moment. The era rises with each failure, so that streams that
    break together count as one failure."""

    position: int
    era: int


@dataclass
class _Health:
    era: int = 0
    failures: int = 0
    # When the replica failed, and the time for which it is left alone after that.
    since: float = 0.0
    pause: float = 0.0
    # From a half to one: spreads clients that failed at the same moment.
    jitter: float = 1.0

    def free_at(self, longest: float) -> float:
        """The time from which the replica may be tried again, with its pause cut to `longest`."""
        return self.since + min(self.pause, longest * self.jitter)


class Choice:
    """The choice among several replicas. The failures and successes of all callers come together here."""

    def __init__(self, count: int, rng: Optional[random.Random] = None) -> None:
        self._rng = rng or random.Random()
        self._replicas: List[_Health] = [_Health() for _ in range(count)]
        # Clients that start together do not all begin with the first replica.
        self._current = self._rng.randrange(count)

    def choose(self, now: float, but: Optional[int] = None, longest: float = math.inf) -> Union[Chosen, float]:
        """Chooses a replica, `but` only while no other may be tried; or returns the time at which to choose again. A
        pause counts for no more than `longest`: a caller whose lock or registration runs out cannot wait longer."""

        def free(index: int) -> bool:
            return self._replicas[index].free_at(longest) <= now

        if self._current == but or not free(self._current):
            candidates = [index for index in range(len(self._replicas)) if free(index)]
            if len(candidates) > 1:
                candidates = [index for index in candidates if index != but]
            if not candidates:
                return min(replica.free_at(longest) for replica in self._replicas)
            # Not simply the next replica: the clients of a replica that died spread over all others.
            self._current = self._rng.choice(candidates)
        return Chosen(self._current, self._replicas[self._current].era)

    def succeeded(self, chosen: Chosen) -> None:
        health = self._replicas[chosen.position]
        if health.era == chosen.era:
            health.failures, health.pause = 0, 0.0

    @property
    def current(self) -> int:
        """The position of the replica that is used until it fails."""
        return self._current

    def prefer(self, position: int) -> None:
        """Records that the replica serves where the present one does not, so it is used next."""
        self._current = position
        self._replicas[position].failures, self._replicas[position].pause = 0, 0.0

    def failed(self, chosen: Chosen, asked: float, now: float) -> bool:
        """Records that the replica does not answer, or can't serve now; `asked` is the pause that it has asked for.
        Returns whether that is news."""
        health = self._replicas[chosen.position]
        if health.era != chosen.era:
            return False
        grown = min(PAUSES[0] * 2.0 ** min(health.failures, 16), PAUSES[1])
        health.jitter = self._rng.uniform(0.5, 1.0)
        health.since, health.pause = now, max(grown * health.jitter, min(asked, LONGEST_ASKED))
        health.era += 1
        health.failures += 1
        return True

    def have_all_failed(self) -> bool:
        """Whether no replica has answered since it last failed."""
        return all(health.failures for health in self._replicas)
