"""Whether a replica can be reached, and ZooKeeper through it: one watch that always stands."""

import asyncio
from typing import Callable, Optional

import grpc
from google.protobuf import duration_pb2

from rollcall import v1
from rollcall.errors import Failure
from rollcall.follow import HEARTBEAT, SILENCE
from rollcall.replicas import OPENING, Replica, Replicas
from rollcall.waiting import News

# ZooKeeper's own node, or nothing below a chroot: small, and the same for all clients of a replica.
_PATH = "/zookeeper"
# Time in seconds after which a replica that does not let us read the path is asked again.
_AGAIN = 10.0


class Link:
    """Belongs to the loop; `is_up` may be read by any thread."""

    def __init__(self, replicas: Replicas, tell: Callable[[bool], None]) -> None:
        # Whether a replica can be reached that has ZooKeeper.
        self.is_up = False
        # Whether a replica can be reached at all, and since when none can.
        self.is_reachable = False
        self.down_since = asyncio.get_running_loop().time()
        self._replicas = replicas
        self._tell = tell
        self._news = News()

    async def run(self) -> None:
        """Keeps the watch, at one replica after the other."""
        leaves: Optional[int] = None
        while True:
            replica = await self._replicas.pick(leaves)
            leaves = replica.index
            try:
                await self._follow(replica)
                self._replicas.drains(replica)
            except Failure as failure:
                if failure.code is grpc.StatusCode.PERMISSION_DENIED:
                    # Both have answered.
                    self._replicas.succeeded(replica)
                    self._turn(is_reachable=True, is_up=True)
                    await asyncio.sleep(_AGAIN)
                    continue
                self._replicas.failed(replica, failure)
            if self._replicas.have_all_failed():
                self._turn(is_reachable=False, is_up=False)

    async def _follow(self, replica: Replica) -> None:
        """Reads one stream, until its replica is about to stop. Raises Failure."""
        heartbeat = duration_pb2.Duration(seconds=HEARTBEAT)
        stream = replica.watch(v1.WatchRequest(path=_PATH, heartbeat=heartbeat))
        try:
            await stream.opened(OPENING)
            while True:
                message = await stream.next(SILENCE)
                if message is None:
                    raise Failure.ended()
                if message.WhichOneof("event") == "draining":
                    return
                self._replicas.succeeded(replica)
                self._turn(is_reachable=True, is_up=not message.stale)
        finally:
            stream.cancel()

    def _turn(self, is_reachable: bool, is_up: bool) -> None:
        if self.is_reachable and not is_reachable:
            self.down_since = asyncio.get_running_loop().time()
        self.is_reachable = is_reachable
        if is_up == self.is_up:
            return
        self.is_up = is_up
        self._news.tell()
        self._tell(is_up)

    async def wait_up(self, patience: float) -> bool:
        """Waits until it is up, for so many seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while not self.is_up and loop.time() < deadline:
            await self._news.wait(deadline - loop.time())
        return self.is_up
