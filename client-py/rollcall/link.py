"""Whether a replica can be reached: one health watch that always stands."""

import asyncio
from typing import Callable, Optional

from rollcall.errors import Failure, Kind
from rollcall.replicas import OPENING, SERVICE, Replicas
from rollcall.waiting import News

_METHOD = "grpc.health.v1.Health/Watch"
# Longer than any program runs; what hangs is found by the pings of the connection.
_FOREVER = 10.0 * 365 * 86400


class _Request:
    """grpc.health.v1.HealthCheckRequest, which is one string."""

    @staticmethod
    def SerializeToString(_: "_Request") -> bytes:
        name = SERVICE.encode()
        return b"\x0a" + bytes([len(name)]) + name


class _Answer:
    """grpc.health.v1.HealthCheckResponse, which is one number; 1 is SERVING."""

    def __init__(self, is_serving: bool) -> None:
        self.is_serving = is_serving

    @staticmethod
    def FromString(message: bytes) -> "_Answer":
        return _Answer(message == b"\x08\x01")


class Link:
    """Belongs to the loop; `is_up` may be read by any thread."""

    def __init__(self, replicas: Replicas, tell: Callable[[bool], None]) -> None:
        self.is_up = False
        # Since when it has been down.
        self.down_since = asyncio.get_running_loop().time()
        self._replicas = replicas
        self._tell = tell
        self._news = News()

    async def run(self) -> None:
        leaves: Optional[int] = None
        while True:
            replica = await self._replicas.pick(leaves)
            leaves = None
            stream = replica.connection.stream(_METHOD, _Request, _Answer)
            try:
                await stream.opened(OPENING)
                while True:
                    answer = await stream.next(_FOREVER)
                    if answer is None:
                        raise Failure.ended()
                    if not answer.is_serving:
                        raise Failure(Kind.NOT_NOW, "the replica is not serving")
                    self._replicas.succeeded(replica)
                    self._turn(True)
            except Failure as failure:
                leaves = replica.index
                self._replicas.failed(replica, failure)
                if self._replicas.have_all_failed():
                    self._turn(False)
            finally:
                stream.cancel()

    def _turn(self, is_up: bool) -> None:
        if is_up == self.is_up:
            return
        self.is_up = is_up
        self.down_since = asyncio.get_running_loop().time()
        self._news.tell()
        self._tell(is_up)

    async def wait_up(self, patience: float) -> bool:
        """Waits until it is up, for so many seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while not self.is_up and loop.time() < deadline:
            await self._news.wait(deadline - loop.time())
        return self.is_up
