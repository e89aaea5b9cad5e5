"""A watch over any number of streams. It goes on when a replica fails, drains, or loses ZooKeeper."""

import asyncio
from typing import Any, Callable, Optional

from google.protobuf import duration_pb2

from rollcall import v1
from rollcall.errors import Failure
from rollcall.replicas import OPENING, Replica, Replicas
from rollcall.scout import Unease
from rollcall.stream import Stream

# Interval, in seconds, of heartbeats that the client asks for on a quiet stream; and time without a word, in seconds,
# after which the replica is given up.
HEARTBEAT = 10
SILENCE = 25.0


class Watch:
    """Belongs to the loop. `since` returns the revision from which the next stream goes on, `hear` takes each message
    except `draining`, and `broke` is called after each stream. With `is_impatient`, another replica is also looked for
    while no message has come at all: for a path that every replica with ZooKeeper knows at once."""

    def __init__(
        self,
        path: str,
        since: Callable[[], int],
        hear: Callable[[Any], None],
        broke: Callable[[], None],
        is_impatient: bool = False,
    ) -> None:
        self._path = path
        self._since = since
        self._hear = hear
        self._broke = broke
        self._is_impatient = is_impatient
        self._unease = Unease()
        # The replica that was asked last.
        self.replica: Optional[Replica] = None

    async def run(self, replicas: Replicas) -> None:
        """Goes on for ever, at one replica after another. Raises Failure when the last replica asked refuses. The
        caller then has to tell `replicas` about it."""
        leaves: Optional[int] = None
        self._unease = Unease(replicas.spread)
        while True:
            replica = self.replica = await replicas.pick(leaves)
            leaves = None
            try:
                await self._follow(replicas, replica)
                leaves = replica.index
            except Failure as failure:
                if not failure.is_retryable():
                    raise
                replicas.failed(replica, failure)
            # Not reached on cancellation: the failures of others are no news then.
            self._unease.moved()
            self._broke()

    async def _follow(self, replicas: Replicas, replica: Replica) -> None:
        """Reads one stream, until its replica is about to stop, or has no ZooKeeper while another one has. Raises
        Failure."""
        request = v1.WatchRequest(path=self._path, since_revision=self._since())
        request.heartbeat.CopyFrom(duration_pb2.Duration(seconds=HEARTBEAT))
        if not self._is_impatient:
            # The first message may be held back until that revision.
            request.min_revision = replicas.seen.latest
        stream = replica.watch(request)
        loop = asyncio.get_running_loop()
        try:
            await stream.opened(OPENING)
            heard_at = loop.time()
            if self._is_impatient:
                self._unease.set(True, heard_at)
            while True:
                message = await self._next(stream, heard_at + SILENCE)
                if message is None:
                    self._unease.looks(loop.time())
                    if await replicas.found_better(replica.index):
                        return
                    continue
                heard_at = loop.time()
                replicas.succeeded(replica)
                replicas.seen.note_watch(message)
                if message.WhichOneof("event") == "draining":
                    replicas.drains(replica)
                    return
                self._unease.set(message.stale, heard_at)
                self._hear(message)
        finally:
            stream.cancel()

    async def _next(self, stream: Stream, silent_at: float) -> Any:
        """The next message; None: it is time to look for another replica. Raises Failure."""
        now = asyncio.get_running_loop().time()
        left = self._unease.left(now, max(0.0, silent_at - now))
        try:
            message = await stream.next(left)
        except Failure:
            look_at = self._unease.look_at
            if stream.ended() is None and look_at is not None and look_at < silent_at:
                return None
            raise
        if message is None:
            raise Failure.ended()
        return message
