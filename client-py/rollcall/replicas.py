"""The replicas that a client may use, and the calls that it makes there."""

import asyncio
import logging
import math
import random
from typing import Any, Callable, Dict, List, Optional, Protocol, Sequence, Set, Tuple, Union

import grpc

from rollcall import v1
from rollcall.choice import Choice, Chosen
from rollcall.errors import Failure, Kind, NoConnection, OutcomeUnknown, Refused
from rollcall.scout import Memory
from rollcall.seen import Seen
from rollcall.stream import Stream
from rollcall.transport import Metadata
from rollcall.waiting import News

log = logging.getLogger(__name__)

SERVICE = "rollcall.v1.Registry"
# Time, in seconds, that a replica may take to open a stream, or to answer a read.
OPENING = 4.0
# Time that the others have to say that they have ZooKeeper. A replica that has lost it answers later than that.
_QUESTION = 1.0
# Time for which a draining replica is left alone.
_DRAINING = 0.5
# Time for which a draining replica counts as no better than one without ZooKeeper. It is longer than most drains take.
_STOPPING = 15.0
# The largest message, in bytes, that a replica reads.
_LARGEST = 2 * 1024 * 1024


class Connection(Protocol):
    """A channel to one replica, of any transport."""

    def stream(self, method: str, request: Any, answer: Any) -> Stream: ...

    def duplex(self, method: str, request_type: Any, answer: Any) -> Stream: ...

    async def unary(self, method: str, request: Any, answer: Any, bound: float, settles: bool = False) -> Any: ...

    async def close(self) -> None: ...

    def close_when_idle(self) -> bool: ...


Connect = Callable[[str, Optional[grpc.ChannelCredentials], Metadata], Connection]


class Replica:
    """A replica that was chosen, and the connection to it."""

    def __init__(self, chosen: Chosen, connection: Connection) -> None:
        self.chosen = chosen
        self.connection = connection

    @property
    def index(self) -> int:
        return self.chosen.position

    def watch(self, request: v1.WatchRequest) -> Stream:
        return self.connection.stream(f"{SERVICE}/Watch", request, v1.WatchResponse)

    def acquire_lock(self, request: v1.AcquireLockRequest) -> Stream:
        return self.connection.stream(f"{SERVICE}/AcquireLock", request, v1.AcquireLockResponse)

    def register(self) -> Stream:
        return self.connection.duplex(f"{SERVICE}/Register", v1.RegisterRequest, v1.RegisterResponse)


def addresses(server: Union[str, Sequence[str]]) -> List[str]:
    """Parses `HOST:PORT`, several of these separated by commas, or a list of them."""
    texts = [server] if isinstance(server, str) else list(server)
    found = [part.strip() for text in texts for part in text.split(",") if part.strip()]
    for name in found:
        host, colon, port = name.rpartition(":")
        if not (host and colon and port.isdigit()) or "/" in name:
            raise ValueError(f"{name!r} is not HOST:PORT")
    if not found:
        raise ValueError("no server is named: give at least one HOST:PORT")
    return found


def clean(path: str) -> str:
    """A path without superfluous slashes, which kazoo accepts and a replica does not."""
    parts = [part for part in path.split("/") if part]
    return "/" * path.startswith("/") + "/".join(parts)


def check_size(request: Any) -> None:
    """Raises Refused if a request is larger than a replica reads. On a stream it would end the stream for all
    others."""
    size = request.ByteSize()
    if size > _LARGEST:
        message = f"{request.path[:100]}: a message of {size} bytes is over the limit of {_LARGEST}"
        raise Refused(message, "VALUE_TOO_LARGE", {"limit": str(_LARGEST)})


class Replicas:
    """Belongs to one event loop."""

    def __init__(
        self, names: List[str], credentials: Optional[grpc.ChannelCredentials], metadata: Metadata, connect: Connect
    ) -> None:
        self.names = ", ".join(names)
        self._names = names
        self._credentials = credentials
        self._metadata = metadata
        self._connect = connect
        self._choice = Choice(len(names))
        self._connections: Dict[int, Connection] = {}
        # Connections that get no new calls. They go when their calls have ended.
        self._left: Set[Connection] = set()
        # The round of questions for another replica that is under way, with the replica that is to be left; and the
        # results of such rounds, for each replica that is to be left.
        self._round: "Optional[Tuple[int, asyncio.Task[bool]]]" = None
        self._rounds = [Memory() for _ in names]
        # For each draining replica: the time until which it counts as about to stop.
        self._stops_until: Dict[int, float] = {}
        # From 0 to 1: how much later than other clients this one looks for another replica.
        self.spread = random.random()
        self._is_paused = False
        self._resumed = News()
        # The message of the last replica that failed.
        self.trouble = ""
        # The latest transaction that any replica has shown.
        self.seen = Seen()

    async def pick(self, but: Optional[int] = None, longest: float = math.inf) -> Replica:
        """The replica that answers, or the next to try; `but` only while no other may be tried. A replica that failed
        may be tried again after `longest`. Waits while all have failed lately.

        Cancellation: safe.
        """
        while True:
            replica = await self.pick_until(asyncio.get_running_loop().time() + 3600, but, longest)
            if replica is not None:
                return replica

    async def pick_until(
        self, deadline: float, but: Optional[int] = None, longest: float = math.inf
    ) -> Optional[Replica]:
        """Like `pick`, until a time on the loop's clock; None: the time is over."""
        loop = asyncio.get_running_loop()
        while True:
            self._sweep()
            verdict = self._choice.choose(loop.time(), but, longest)
            if isinstance(verdict, Chosen) and not self._is_paused:
                return Replica(verdict, self._connection(verdict.position))
            if loop.time() >= deadline:
                return None
            until = deadline if isinstance(verdict, Chosen) else min(verdict, deadline)
            await self._resumed.wait(until - loop.time())

    def _connection(self, index: int) -> Connection:
        if index not in self._connections:
            self._connections[index] = self._connect(self._names[index], self._credentials, self._metadata)
        return self._connections[index]

    def _leave(self, index: int) -> None:
        connection = self._connections.pop(index, None)
        if connection is not None:
            self._left.add(connection)

    def _sweep(self) -> None:
        self._left = {connection for connection in self._left if not connection.close_when_idle()}

    def succeeded(self, replica: Replica) -> None:
        self._choice.succeeded(replica.chosen)

    def failed(self, replica: Replica, failure: Failure) -> None:
        if self._is_paused or failure.kind is Kind.PAUSED:
            return  # This client has broken the connection itself.
        self.trouble = failure.message
        if self._choice.failed(replica.chosen, failure.asked, asyncio.get_running_loop().time()):
            # A connection that hangs is no use to new calls. Open streams keep it.
            self._leave(replica.index)
            log.debug("replica %s failed: %s", self._names[replica.index], failure.message)

    def drains(self, replica: Replica) -> None:
        """Records that the replica is about to stop. The next calls and streams go elsewhere or, behind a balancer,
        over a new connection."""
        self._stops_until[replica.index] = asyncio.get_running_loop().time() + _STOPPING
        if self._choice.failed(replica.chosen, _DRAINING, asyncio.get_running_loop().time()):
            self._leave(replica.index)
            log.info("replica %s drains", self._names[replica.index])

    def have_all_failed(self) -> bool:
        return self._choice.have_all_failed()

    async def found_better(self, than: int) -> bool:
        """Asks the others whether they have ZooKeeper, which the replica at `than` has lost. If one has, the next calls
        and streams go there. All callers that want to leave the same replica share one round of questions, and its
        answer for a while.

        Cancellation: safe.
        """
        if len(self._names) == 1 or self._is_paused:
            return False
        known = self._rounds[than].get(asyncio.get_running_loop().time())
        if known is not None:
            return known and self._choice.current != than
        if self._round is None or self._round[0] != than or self._round[1].done():
            self._round = (than, asyncio.ensure_future(self._ask_others(than)))
        return await asyncio.shield(self._round[1])

    async def _ask_others(self, than: int) -> bool:
        # A replica that is about to stop still answers.
        others = [index for index in range(len(self._names)) if index != than and not self._stops(index)]
        random.shuffle(others)
        asked = {asyncio.ensure_future(self._with_zookeeper(index)) for index in others}
        found: Optional[int] = None
        try:
            while asked and found is None:
                done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                found = next((index for index in (each.result() for each in done) if index is not None), None)
        finally:
            for each in asked:
                each.cancel()
        if found is not None and self._stops(found):
            found = None
        self._rounds[than].put(found is not None, asyncio.get_running_loop().time())
        if found is not None:
            self._choice.prefer(found)
            log.info("replica %s has lost zookeeper, and %s has it", self._names[than], self._names[found])
        return found is not None

    def _stops(self, index: int) -> bool:
        return asyncio.get_running_loop().time() < self._stops_until.get(index, 0.0)

    async def _with_zookeeper(self, index: int) -> Optional[int]:
        """The same index, if that replica can make a round trip to ZooKeeper."""
        # The path is ZooKeeper's own node, or nothing below a chroot: small, and the same for all clients of a replica.
        request = v1.GetRequest(path="/zookeeper", page_size=1, consistency=v1.CONSISTENCY_LATEST)
        if self._is_paused:
            return None
        try:
            await self._connection(index).unary(f"{SERVICE}/Get", request, v1.GetResponse, _QUESTION)
        except Failure as failure:
            # The path may not be read. That is an answer of ZooKeeper's, or of a replica that has no need to ask it.
            return index if failure.reason in ("NO_AUTH", "RULE") else None
        return index

    async def call(
        self,
        method: str,
        request: Any,
        answer: Any,
        patience: float,
        *,
        is_write: bool = False,
        settles: bool = False,
        waits_for_room: bool = True,
    ) -> Any:
        """Makes a call, at one replica after another, until one answers or `patience` seconds are over. A write is
        tried again only if it was certainly not carried out. A call that meets a limit of a replica is tried again if
        `waits_for_room`. A fork waits a moment for the answer of a write, and of any call that `settles`.

        Raises ServiceRegistryException.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        last: Optional[Failure] = None
        while True:
            replica = await self.pick_until(deadline)
            if replica is None:
                raise self.unreachable(last.message if last else "")
            left = max(0.001, deadline - loop.time())
            # A write that hangs must not be sent twice, so a single attempt has all the time there is.
            bound = left if is_write else min(left, OPENING)
            try:
                found = await replica.connection.unary(
                    f"{SERVICE}/{method}", request, answer, bound, settles or is_write
                )
            except Failure as failure:
                is_full = failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED and not waits_for_room
                if is_full or not failure.is_retryable():
                    self.succeeded(replica)
                    raise failure.to_exception() from None
                self.failed(replica, failure)
                if is_write and failure.kind in (Kind.BROKEN, Kind.PAUSED) and not failure.never_sent():
                    raise OutcomeUnknown(
                        f"{request.path} may or may not have been written: {failure.message}"
                    ) from None
                last = failure
            else:
                self.succeeded(replica)
                return found

    def unreachable(self, cause: str = "") -> NoConnection:
        cause = cause or self.trouble
        return NoConnection(f"no replica answered ({self.names})" + (f": {cause}" if cause else ""))

    async def pause(self) -> None:
        """Ends every connection, and makes none until `resume`."""
        self._is_paused = True
        await self._close()

    def resume(self) -> None:
        self._is_paused = False
        self._resumed.tell()

    async def close(self) -> None:
        await self.pause()

    async def _close(self) -> None:
        everything: Tuple[Connection, ...] = (*self._connections.values(), *self._left)
        self._connections.clear()
        self._left.clear()
        for connection in everything:
            await connection.close()
