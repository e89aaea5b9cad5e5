"""Which replica to talk to: sticky while it answers, another at once when it does not, with a growing pause before the
same is tried again. Pure: the time is given."""

import random
from dataclasses import dataclass
from typing import List, NamedTuple, Optional, Union

# The shortest and the longest pause, in seconds, before a replica that has failed is tried again. Each is jittered down
# to half.
PAUSES = (0.1, 5.0)
# The longest pause that a replica may ask for.
LONGEST_ASKED = 30.0


class Chosen(NamedTuple):
    """A replica at one moment. The era rises with each failure, so that streams that break together count as one."""

    position: int
    era: int


@dataclass
class _Health:
    era: int = 0
    failures: int = 0
    avoid_until: float = 0.0


class Choice:
    """Everybody's failures and successes come together here."""

    def __init__(self, count: int, rng: Optional[random.Random] = None) -> None:
        self._rng = rng or random.Random()
        self._replicas: List[_Health] = [_Health() for _ in range(count)]
        # Clients that start together do not all begin with the first.
        self._current = self._rng.randrange(count)

    def choose(self, now: float, but: Optional[int] = None) -> Union[Chosen, float]:
        """A replica, not `but` if there is another; or the time at which to choose again."""

        def wanted(index: int) -> bool:
            return index != but or len(self._replicas) == 1

        def free(index: int) -> bool:
            return self._replicas[index].avoid_until <= now

        if not (wanted(self._current) and free(self._current)):
            others = [index for index in range(len(self._replicas)) if wanted(index)]
            candidates = [index for index in others if free(index)]
            if not candidates:
                return min(self._replicas[index].avoid_until for index in others)
            # Not simply the next: the clients of a replica that died spread over all others.
            self._current = self._rng.choice(candidates)
        return Chosen(self._current, self._replicas[self._current].era)

    def succeeded(self, chosen: Chosen) -> None:
        health = self._replicas[chosen.position]
        if health.era == chosen.era:
            health.failures, health.avoid_until = 0, 0.0

    def failed(self, chosen: Chosen, asked: float, now: float) -> bool:
        """It does not answer, or not now; `asked` is the pause that it has asked for. Says whether that is news."""
        health = self._replicas[chosen.position]
        if health.era != chosen.era:
            return False
        grown = min(PAUSES[0] * 2.0 ** min(health.failures, 16), PAUSES[1])
        pause = max(grown * self._rng.uniform(0.5, 1.0), min(asked, LONGEST_ASKED))
        health.era += 1
        health.failures += 1
        health.avoid_until = now + pause
        return True

    def have_all_failed(self) -> bool:
        """Whether no replica has answered since it last failed."""
        return all(health.failures for health in self._replicas)
