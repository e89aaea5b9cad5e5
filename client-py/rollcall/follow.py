"""A watch over any number of streams."""

import logging
from typing import Callable, List, Optional

from google.protobuf import duration_pb2

from rollcall import v1
from rollcall.assemble import Assembler
from rollcall.errors import Failure, ServiceRegistryException
from rollcall.replicas import OPENING, Replica, Replicas
from rollcall.values import State
from rollcall.waiting import News

log = logging.getLogger(__name__)

# How long, in seconds, a stream may be quiet before the replica says something, and after what time without a word the
# replica is given up.
HEARTBEAT = 10
SILENCE = 25.0

Listener = Callable[["Watched"], None]


class Watched:
    """A path as it was last known. Written on the loop alone; `state` and `version` may be read by any thread."""

    def __init__(self, path: str, known: "Optional[Watched]" = None) -> None:
        self.path = path
        # What is known; None: nothing yet.
        self.state: Optional[State] = known.state if known else None
        # Rises with each state that a program can tell from the one before.
        self.version: int = known.version if known else 0
        # Whether a replica has told the state, and not the cache file or the process that we were forked from.
        self.is_live = False
        # Why it can't be watched, if a replica has refused it.
        self.refusal: Optional[ServiceRegistryException] = None
        self._assembler = Assembler()
        self._listeners: List[Listener] = []
        self.news = News()

    @property
    def revision(self) -> int:
        """Of the state that a replica has told last; 0: of none."""
        return self._assembler.revision

    def listen(self, listener: Listener) -> None:
        """Calls it, on the loop, with each new state."""
        self._listeners.append(listener)

    def show(self, state: State, is_live: bool) -> None:
        """A state from a replica, or from the cache file."""
        is_news = not state.same(self.state)
        self.is_live = self.is_live or is_live
        self.state = state
        if is_news:
            self.version += 1
            for listener in self._listeners:
                listener(self)
        self.news.tell()

    async def run(self, replicas: Replicas) -> None:
        """Follows it for good, or until a replica refuses."""
        drains: Optional[int] = None
        while True:
            replica = await replicas.pick(drains)
            drains = None
            try:
                if await self._follow(replicas, replica):
                    replicas.drains(replica)
                    drains = replica.index
            except Failure as failure:
                if not failure.is_retryable():
                    replicas.succeeded(replica)
                    self.refusal = failure.to_exception()
                    self.news.tell()
                    log.warning("%s can't be watched: %s", self.path, failure.message)
                    return
                replicas.failed(replica, failure)
                self.news.tell()
            finally:
                self._assembler.broken()

    async def _follow(self, replicas: Replicas, replica: Replica) -> bool:
        """Reads one stream. Ends with True when its replica is about to stop. Raises Failure."""
        request = v1.WatchRequest(path=self.path, since_revision=self.revision, min_revision=replicas.seen.latest)
        request.heartbeat.CopyFrom(duration_pb2.Duration(seconds=HEARTBEAT))
        stream = replica.watch(request)
        try:
            await stream.opened(OPENING)
            while True:
                message = await stream.next(SILENCE)
                if message is None:
                    raise Failure.ended()
                replicas.succeeded(replica)
                replicas.seen.note_watch(message)
                if message.WhichOneof("event") == "draining":
                    return True
                state = self._assembler.take(message)
                if state is not None:
                    self.show(state, is_live=True)
        finally:
            stream.cancel()
