"""A watch over any number of streams."""

import logging
from typing import Callable, List, Optional

from rollcall import v1
from rollcall.assemble import Assembler
from rollcall.errors import Failure, ServiceRegistryException
from rollcall.replicas import Replicas
from rollcall.values import State
from rollcall.waiting import News
from rollcall.watch import Watch

log = logging.getLogger(__name__)

Listener = Callable[["Watched"], None]


class Watched:
    """A path and its last known state. Only the loop writes it; any thread may read `state` and `version`."""

    def __init__(self, path: str, known: "Optional[Watched]" = None) -> None:
        self.path = path
        # The last known state; None: nothing is known yet.
        self.state: Optional[State] = known.state if known else None
        # Rises with each state that a program can tell from the one before.
        self.version: int = known.version if known else 0
        # Whether the state came from a replica, and not from the cache file or the process that has forked this one.
        self.is_live = False
        # Why the path can't be watched, if a replica has refused it.
        self.refusal: Optional[ServiceRegistryException] = None
        self._assembler = Assembler()
        self._listeners: List[Listener] = []
        self.news = News()

    @property
    def revision(self) -> int:
        """The revision of the last state that a replica sent; 0: none."""
        return self._assembler.revision

    def listen(self, listener: Listener) -> None:
        """Calls the listener, on the loop, with each new state."""
        self._listeners.append(listener)

    def show(self, state: State, is_live: bool) -> None:
        """Takes in a state from a replica, or from the cache file."""
        is_news = not state.same(self.state)
        self.is_live = self.is_live or is_live
        self.state = state
        if is_news:
            self.version += 1
            for listener in self._listeners:
                listener(self)
        self.news.tell()

    async def run(self, replicas: Replicas) -> None:
        """Follows the path for ever, or until a replica refuses."""
        watch = Watch(self.path, lambda: self._assembler.revision, self._hear, self._broke)
        try:
            await watch.run(replicas)
        except Failure as failure:
            assert watch.replica is not None
            replicas.succeeded(watch.replica)
            self.refusal = failure.to_exception()
            self.news.tell()
            log.warning("%s can't be watched: %s", self.path, failure.message)

    def _hear(self, message: v1.WatchResponse) -> None:
        state = self._assembler.take(message)
        if state is not None:
            self.show(state, is_live=True)

    def _broke(self) -> None:
        self._assembler.broken()
        self.news.tell()
