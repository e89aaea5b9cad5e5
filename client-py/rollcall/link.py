"""Whether a replica can be reached, and ZooKeeper through it: one watch that is always open."""

import asyncio
from typing import Callable

import grpc

from rollcall import v1
from rollcall.errors import Failure
from rollcall.replicas import OPENING, Replicas
from rollcall.waiting import News
from rollcall.watch import Watch

# ZooKeeper's own node, or nothing below a chroot: small, and the same for all clients of a replica.
_PATH = "/zookeeper"
# Time in seconds after which a replica that refuses to read the path is asked again.
_AGAIN = 10.0


class Link:
    """Belongs to the loop; `is_up` may be read by any thread."""

    def __init__(self, replicas: Replicas, tell: Callable[[bool], None]) -> None:
        # Whether a replica that has ZooKeeper can be reached.
        self.is_up = False
        # Whether any replica can be reached, and since when none can.
        self.is_reachable = False
        self.down_since = asyncio.get_running_loop().time()
        self._replicas = replicas
        self._tell = tell
        self._news = News()
        self._watch = Watch(_PATH, lambda: 0, self._hear, self._broke, is_impatient=True)

    async def run(self) -> None:
        """Keeps the watch open, at one replica after another."""
        while True:
            try:
                await self._watch.run(self._replicas)
            except Failure as failure:
                replica = self._watch.replica
                assert replica is not None
                if failure.code is grpc.StatusCode.PERMISSION_DENIED:
                    # Both the replica and ZooKeeper have answered.
                    self._replicas.succeeded(replica)
                    self._turn(is_reachable=True, is_up=True)
                    await asyncio.sleep(_AGAIN)
                else:
                    self._replicas.failed(replica, failure)
                    self._broke()

    def _hear(self, message: v1.WatchResponse) -> None:
        self._turn(is_reachable=True, is_up=not message.stale)

    def _broke(self) -> None:
        if self._replicas.have_all_failed():
            self._turn(is_reachable=False, is_up=False)

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
        """Waits until `is_up`, for at most `patience` seconds. It waits longer only if another replica than the present
        one is known to have ZooKeeper."""
        if await self._is_up_within(patience):
            return True
        replica = self._watch.replica
        if replica is not None and await self._replicas.found_better(replica.index):
            return await self._is_up_within(2 * OPENING)
        return self.is_up

    async def _is_up_within(self, seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not self.is_up and loop.time() < deadline:
            await self._news.wait(deadline - loop.time())
        return self.is_up
