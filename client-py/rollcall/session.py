"""All registrations of a client: one Register stream, over any number of replicas."""

import asyncio
import logging
import os
from typing import Callable, Optional, Tuple

import grpc
from google.protobuf import duration_pb2

from rollcall import v1
from rollcall.errors import Failure
from rollcall.registrations import RESOURCE_EXHAUSTED, Lost, Registrations
from rollcall.replicas import OPENING, Replica, Replicas
from rollcall.scout import Unease
from rollcall.stream import Stream
from rollcall.waiting import Bell, News

log = logging.getLogger(__name__)

# Time, in seconds, after which a replica that had no room is asked again.
_TRY_AGAIN = 2.0
# Shortest interval of keep-alives, whatever the replica asks for. A third of the shortest ttl is longer.
_SHORTEST = 0.1
# Number of keep-alives in the time after which a silent replica is given up.
_IN_HORIZON = 3
# Shortest silence, in seconds, after which a replica is given up.
_SILENCE = 1.0
# Time that a goodbye may take.
_GOODBYE = 2.0


class _Held:
    """An open Register stream."""

    def __init__(self, replica: Replica, stream: Stream, keep_alive: float, silence: float, now: float) -> None:
        self.replica = replica
        self.stream = stream
        self.keep_alive = keep_alive
        # Time that the replica may be silent before it is given up.
        self.silence = silence
        self.sent_at = now
        self.heard_at = now
        self.drains = False

    @property
    def silent_at(self) -> float:
        return self.heard_at + self.silence

    @property
    def due_at(self) -> float:
        return min(self.sent_at + self.keep_alive, self.silent_at)

    def say(self, request: v1.RegisterRequest, now: float) -> None:
        self.stream.send(request)
        self.sent_at = now

    def keep_up(self, now: float) -> None:
        """Sends a keep-alive when it is due. Raises Failure when the replica seems to be gone."""
        if now >= self.silent_at:
            raise Failure.silent()
        if now >= self.sent_at + self.keep_alive:
            self.say(v1.RegisterRequest(keep_alive=v1.KeepAlive()), now)


def _terms(opened: v1.Opened, ttl: float) -> Tuple[float, float]:
    """The interval of keep-alives, and the time that the replica may be silent."""
    interval, horizon = opened.keep_alive_interval, opened.horizon
    keep_alive = max(_SHORTEST, interval.seconds + interval.nanos / 1e9 or ttl / 3)
    if not opened.HasField("horizon"):
        # A replica of an older version gives no horizon.
        return keep_alive, max(2 * keep_alive, _SILENCE)
    silence = horizon.seconds + horizon.nanos / 1e9
    return min(keep_alive, max(silence / _IN_HORIZON, _SHORTEST)), max(silence, _SILENCE)


class Session:
    """Belongs to the loop."""

    def __init__(self, replicas: Replicas, ttl: float, name: str, on_lost: Callable[[Lost], None]) -> None:
        self.registrations = Registrations()
        self._replicas = replicas
        self._ttl = ttl
        self._name = name
        self._on_lost = on_lost
        self._bell = Bell()
        self._is_closing = False
        self._closed = News()
        self._held: Optional[_Held] = None
        # The previous stream, kept alive until everything has been taken over from it.
        self._left: Optional[_Held] = None
        # Whether its replica would go on: the stream was left for a replica that has ZooKeeper.
        self._left_is_open = False
        self._unease = Unease()

    def wake(self) -> None:
        """Wakes the task when there are requests to send or messages to read."""
        self._bell.ring()

    async def run(self) -> None:
        """Keeps a stream going while there is a registration."""
        while not self._is_closing:
            while self.registrations.is_empty():
                await self._bell.wait()
            opened = await self._open(None)
            if opened is None:
                continue
            self._held = opened
            self.registrations.begin()
            try:
                await self._hold()
            except Failure as failure:
                if failure.code is grpc.StatusCode.INVALID_ARGUMENT:
                    self.registrations.suspect(failure.to_exception())
                self._replicas.failed(self._held.replica, failure)
            finally:
                self._drop(self._held)
                self._drop(self._left)
                self._held = self._left = None
                self._closed.tell()

    async def close(self) -> None:
        """Takes everything down at once, if a replica can be reached."""
        self._is_closing = True
        for held in (self._left, self._held):
            if held is not None:
                held.say(v1.RegisterRequest(close=v1.CloseSession()), asyncio.get_running_loop().time())
        if self._held is not None and not await self._closed.wait(_GOODBYE):
            log.debug("no replica has heard the goodbye")

    async def _open(self, but: Optional[int]) -> Optional[_Held]:
        """Opens a stream at a replica other than `but`, if there is another. None: the attempt failed."""
        replica = await self._replicas.pick(but, self._ttl / 6)
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        stream = replica.register()
        try:
            terms = v1.OpenSession(client_name=self._name, pid=os.getpid())
            terms.ttl.CopyFrom(duration_pb2.Duration(nanos=int(self._ttl % 1 * 1e9), seconds=int(self._ttl)))
            stream.send(v1.RegisterRequest(open=terms))
            await stream.opened(OPENING)
            first = await stream.next(OPENING)
            if first is None or first.WhichOneof("response") != "opened":
                raise Failure.ended()
        except Failure as failure:
            stream.cancel()
            refusal = None if failure.is_retryable() else failure.to_exception()
            if refusal is not None:
                self.registrations.refuse(refusal)
            self._replicas.failed(replica, failure)
            return None
        except asyncio.CancelledError:
            stream.cancel()
            raise
        self._replicas.succeeded(replica)
        keep_alive, silence = _terms(first.opened, self._ttl)
        held = _Held(replica, stream, keep_alive, silence, sent_at)
        held.heard_at = loop.time()
        stream.on_news = self.wake
        return held

    async def _open_if_better(self, than: int) -> Optional[_Held]:
        """Opens a stream at another replica, if one has ZooKeeper."""
        return await self._open(than) if await self._replicas.found_better(than) else None

    async def _hold(self) -> None:
        """Keeps the registrations on a stream. Moves them to the next stream when the replica is about to stop, or when
        it has lost ZooKeeper and another replica has it. Ends when no registration is left. Raises Failure."""
        loop = asyncio.get_running_loop()
        moving: "Optional[asyncio.Task[Optional[_Held]]]" = None
        try_again_at = loop.time() + _TRY_AGAIN
        self._unease = unease = Unease(self._replicas.spread)
        try:
            while True:
                held = self._held
                assert held is not None
                if not self._read(held):
                    self._go_back(held)
                    if moving is not None:
                        if not moving.cancel():
                            self._drop(moving.result())
                        moving = None
                    continue
                if held.drains and moving is None:
                    moving = asyncio.ensure_future(self._open(held.replica.index))
                    moving.add_done_callback(lambda _: self.wake())
                if self.registrations.is_settled() or self.registrations.is_without_zookeeper():
                    unease.set(self.registrations.is_without_zookeeper(), loop.time())
                if moving is None and unease.left(loop.time(), _TRY_AGAIN) == 0.0:
                    unease.looks(loop.time())
                    moving = asyncio.ensure_future(self._open_if_better(held.replica.index))
                    moving.add_done_callback(lambda _: self.wake())
                if moving is not None and moving.done():
                    opened, moving = moving.result(), None
                    if opened is None:
                        continue
                    self._drop(self._left)
                    self._left, self._held = held, opened
                    self._left_is_open = not held.drains
                    unease.moved()
                    self.registrations.begin()
                    continue
                self._tend_left()
                now = loop.time()
                if now >= try_again_at:
                    self.registrations.try_again()
                    try_again_at = now + _TRY_AGAIN
                # After the goodbye no request is sent.
                request = None if self._is_closing else self.registrations.next_request()
                while request is not None:
                    held.say(request, now)
                    request = self.registrations.next_request()
                if self.registrations.is_empty():
                    return
                held.keep_up(now)
                due_at = min(each.due_at for each in (held, self._left) if each is not None)
                pause = min(due_at, try_again_at) - now
                await self._bell.wait(pause if moving is not None else unease.left(now, pause))
        finally:
            if moving is not None:
                moving.cancel()

    def _read(self, held: _Held) -> bool:
        """Takes in the messages of a stream. False: it is better to go back. Raises Failure when the stream has
        ended."""
        message = held.stream.poll()
        while message is not None:
            held.heard_at = asyncio.get_running_loop().time()
            if message.WhichOneof("response") == "draining":
                if not held.drains:
                    self._replicas.drains(held.replica)
                held.drains = True
            elif self._misses_left(message):
                return False
            else:
                self._replicas.seen.note_registration(message)
                lost = self.registrations.take(message)
                if lost is not None:
                    log.warning("registration of %s is lost: %s", lost.path, lost.reason)
                    self._on_lost(lost)
            message = held.stream.poll()
        end = held.stream.ended()
        if end is not None:
            raise end
        return True

    def _misses_left(self, message: v1.RegisterResponse) -> bool:
        """Whether it is better to go back. The replica that has ZooKeeper has no room, so the request would end, or
        wait there for room, when it could as well wait for ZooKeeper on the previous stream."""
        # A quota is set in ZooKeeper, and is the same at every replica.
        is_full = message.rejected.code == RESOURCE_EXHAUSTED and message.rejected.reason != "QUOTA"
        return self._left is not None and self._left_is_open and is_full

    def _go_back(self, full: _Held) -> None:
        """Makes the previous stream the present one again. The registrations that the other has taken over stay there
        until then."""
        self._held, self._left, self._left_is_open = self._left, full, False
        self._unease.returned()
        self.registrations.begin()

    def _tend_left(self) -> None:
        """Keeps the previous stream alive. Of its messages only the draining of its replica still counts."""
        left = self._left
        if left is None:
            return
        message = left.stream.poll()
        while message is not None:
            left.heard_at = asyncio.get_running_loop().time()
            self._left_is_open &= message.WhichOneof("response") != "draining"
            message = left.stream.poll()
        try:
            left.keep_up(asyncio.get_running_loop().time())
        except Failure:
            self._let_go()
        is_taken_over = self.registrations.is_settled() and not self.registrations.lacks_room()
        if left.stream.ended() is not None or is_taken_over:
            self._let_go()

    def _let_go(self) -> None:
        self._drop(self._left)
        self._left = None

    @staticmethod
    def _drop(held: Optional[_Held]) -> None:
        if held is not None:
            held.stream.on_news = lambda: None
            held.stream.cancel()
