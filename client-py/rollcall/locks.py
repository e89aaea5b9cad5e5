"""Locks: queueing for a lock, holding it, releasing it.

All locks have a ttl: they outlive a replica, and the moment in which a process forks.
"""

import asyncio
import logging
from typing import Any, Callable, Coroutine, List, NamedTuple, Optional, TypeVar

from google.protobuf import duration_pb2

from rollcall import v1
from rollcall.errors import Failure, Kind, NoConnection, Refused, ServiceRegistryException, lost_reason
from rollcall.replicas import OPENING, Replica, Replicas, check_size
from rollcall.stream import Stream

log = logging.getLogger(__name__)

T = TypeVar("T")

# Longest silence, in seconds, of a quiet stream before the replica sends something. While the lock is held, the replica
# sends at least every third of the lock's horizon.
_HEARTBEAT = 3
# Time without a word, in seconds, after which a stream is given up where the replica has given no horizon: a replica of
# an older version, or one that has not granted the lock yet.
_SILENCE = 10.0
# Shortest silence, in seconds, after which a stream is given up: in doubt, the horizon is the rest of the lock's
# certainty.
_LEAST_SILENCE = 1.0


class Terms(NamedTuple):
    path: str
    name: str
    simultaneous: int
    # Seconds.
    ttl: float


class Grant(NamedTuple):
    """A lock that was granted."""

    replica: Replica
    stream: Stream
    lock_id: str
    token: int
    # When the request was sent that was answered with this grant; the ttl counts from then.
    sent_at: float
    # Time, in seconds, that the replica may be silent before it is given up.
    silence: float


def _grant(replica: Replica, stream: Stream, held: v1.Held, sent_at: float) -> Grant:
    horizon = held.horizon.seconds + held.horizon.nanos / 1e9 if held.HasField("horizon") else _SILENCE
    return Grant(replica, stream, held.lock_id, held.fencing_token, sent_at, min(max(horizon, _LEAST_SILENCE), _SILENCE))


class _Left(NamedTuple):
    """A previous place in a queue, kept until the new one is certain."""

    stream: Stream
    lock_id: str


def _duration(seconds: float) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


class Locks:
    """Takes and releases locks for a client. Belongs to the loop."""

    def __init__(self, replicas: Replicas, patience: float) -> None:
        self.replicas = replicas
        self.patience = patience
        self._background: "List[asyncio.Task[Any]]" = []

    def ask(self, replica: Replica, terms: Terms, wait: Optional[float], lock_id: str = "") -> Stream:
        request = v1.AcquireLockRequest(
            path=terms.path, simultaneous=terms.simultaneous, name=terms.name, lock_id=lock_id
        )
        request.ttl.CopyFrom(_duration(terms.ttl))
        request.heartbeat.CopyFrom(_duration(_HEARTBEAT))
        if wait is not None:
            request.wait.CopyFrom(_duration(wait))
        check_size(request)
        stream = replica.acquire_lock(request)
        stream.is_delicate = True
        return stream

    async def release(self, lock_id: str, patience: float, settles: bool = False) -> bool:
        """Releases a lock, or a place in its queue. False: it was no longer held. With `settles`, a fork waits a moment
        for the answer. Raises NoConnection."""
        request = v1.ReleaseLockRequest(lock_id=lock_id)
        try:
            answer = await self.replicas.call("ReleaseLock", request, v1.ReleaseLockResponse, patience, settles=settles)
        except Refused as refused:
            if refused.reason == "LOCK_LOST":
                return False
            raise
        return bool(answer.released)

    def release_later(self, lock_id: str, patience: Optional[float] = None) -> None:
        """Does the same in the background."""

        async def run() -> None:
            try:
                await self.release(lock_id, patience or self.patience)
            except ServiceRegistryException as error:
                log.warning("a lock could not be given back, and stays until its ttl runs out: %s", error)

        self.run_in_background(run())

    def leave(self, stream: Stream) -> None:
        """Ends a call, in the background, whose lock has no id yet. The call is read until the id has come, since the
        lock may be granted before the replica notices that the caller is gone."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience

        async def run() -> None:
            try:
                message = await stream.next(self.patience)
                while message is not None and message.WhichOneof("event") == "heartbeat" and loop.time() < deadline:
                    message = await stream.next(self.patience)
                if message is not None and message.WhichOneof("event") == "queued":
                    self.release_later(message.queued.lock_id)
            except Failure as failure:
                log.debug("a place in a queue was left: %s", failure.message)
            finally:
                stream.cancel()

        self.run_in_background(run())

    def run_in_background(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Runs work that `settle` waits for."""
        task = asyncio.ensure_future(work)
        self._background = [task for task in self._background if not task.done()]
        self._background.append(task)
        return task

    async def settle(self, bound: float) -> None:
        """Waits until all background releases are done."""
        pending = {task for task in self._background if not task.done()}
        if pending:
            await asyncio.wait(pending, timeout=bound)

    async def renew(self, terms: Terms, lock_id: str, replica: Replica) -> Grant:
        """Resumes a lock at a replica, and waits until the replica says that it is held. Raises Failure."""
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        bound = max(terms.ttl / 6, 0.3)
        stream = self.ask(replica, terms, None, lock_id)
        try:
            while True:
                message = await stream.next(max(0.0, sent_at + bound - loop.time()))
                if message is None:
                    raise Failure.ended()
                if message.WhichOneof("event") == "held":
                    self.replicas.seen.note(message.held.fencing_token)
                    return _grant(replica, stream, message.held, sent_at)
        except BaseException:
            stream.cancel()
            raise

    async def acquire(self, terms: Terms, wait: Optional[float]) -> Optional[Grant]:
        """Queues for `wait` seconds at most, or for ever. None: others hold the lock.

        Raises NoConnection, Refused. Cancellation: the place in the queue is given up.
        """
        seat = _Seat(self, terms)
        try:
            return await seat.take(wait)
        except Refused as refused:
            if refused.reason == "LOCK_BUSY":
                return None
            raise
        finally:
            seat.give_up()


class _Seat:
    """A place in the queue for a lock."""

    def __init__(self, locks: Locks, terms: Terms) -> None:
        self._locks = locks
        self._replicas = locks.replicas
        self._terms = terms
        self._lock_id = ""
        self._left: Optional[_Left] = None
        self._give_up_at = 0.0

    def give_up(self) -> None:
        """Releases all places: a place that a replica still knows must not block anybody."""
        self._leave_place()
        self._leave_left()

    def _leave_place(self) -> None:
        lock_id, self._lock_id = self._lock_id, ""
        if lock_id:
            self._locks.release_later(lock_id)

    def _leave_left(self) -> None:
        left, self._left = self._left, None
        if left is not None:
            left.stream.cancel()
            self._locks.release_later(left.lock_id)

    def _patient(self) -> None:
        self._give_up_at = asyncio.get_running_loop().time() + self._locks.patience

    async def take(self, wait: Optional[float]) -> Grant:
        loop = asyncio.get_running_loop()
        deadline = None if wait is None else loop.time() + wait
        drains: Optional[int] = None
        self._patient()
        while True:
            replica = await self._replicas.pick_until(self._give_up_at, drains, self._locks.patience / 6)
            if replica is None:
                raise self._replicas.unreachable()
            left = None if deadline is None else max(0.0, deadline - loop.time())
            try:
                grant = await self._queue(replica, left)
            except Failure as failure:
                self._failed(replica, failure)
                continue
            if grant is not None:
                self._lock_id = ""
                return grant
            drains = replica.index if self._left is not None else None

    def _failed(self, replica: Replica, failure: Failure) -> None:
        """Returns to queue again, or raises an error that queueing again can't mend."""
        if failure.kind is not Kind.REFUSED:
            self._leave_place()
            self._replicas.failed(replica, failure)
            return
        # The replica has already ended the place.
        had_place, self._lock_id = bool(self._lock_id), ""
        if failure.reason == "LOCK_LOST" and had_place:
            return
        self._replicas.succeeded(replica)
        raise failure.to_exception()

    async def _queue(self, replica: Replica, wait: Optional[float]) -> Optional[Grant]:
        """Follows a place in the queue. None: queue again at another replica. Raises Failure."""
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        stream = self._locks.ask(replica, self._terms, wait)
        keeps = False
        try:
            await stream.opened(OPENING)
        except BaseException:
            self._locks.leave(stream)
            raise
        try:
            while True:
                try:
                    message = await stream.next(_SILENCE)
                except asyncio.CancelledError:
                    if not self._lock_id:
                        keeps = True
                        self._locks.leave(stream)
                    raise
                if message is None:
                    self._lock_id = ""
                    raise Failure(Kind.REFUSED, "the place in the queue was given back by its id", "LOCK_LOST")
                self._replicas.succeeded(replica)
                self._patient()
                event = message.WhichOneof("event")
                if event == "queued":
                    self._lock_id = message.queued.lock_id
                    self._leave_left()
                elif event == "held":
                    self._replicas.seen.note(message.held.fencing_token)
                    grant = _grant(replica, stream, message.held, sent_at)
                    # The lock's certainty counts from the request, which is long ago after a long wait, so the lock is
                    # renewed first.
                    if loop.time() - sent_at > self._terms.ttl / 3:
                        grant = await self._locks.renew(self._terms, grant.lock_id, replica)
                    keeps = grant.stream is stream
                    return grant
                elif event == "heartbeat" and not self._lock_id:
                    # Without ZooKeeper there is no place. The replica goes on waiting for it, though another replica
                    # may have it.
                    if await self._replicas.found_better(replica.index):
                        keeps = True
                        self._locks.leave(stream)
                        return None
                elif event == "lost":
                    self._lock_id = ""
                    return None
                elif event == "draining":
                    self._replicas.drains(replica)
                    if self._lock_id:
                        # The place can't be moved, so it is kept until there is another.
                        self._left, self._lock_id, keeps = _Left(stream, self._lock_id), "", True
                    return None
        finally:
            if not keeps:
                stream.cancel()


class Keeper:
    """Keeps a lock: renews it every third of its ttl, at any replica that answers, until it is lost or released."""

    def __init__(self, locks: Locks, terms: Terms, grant: Grant, on_lost: Callable[[str], None]) -> None:
        self._locks = locks
        self._terms = terms
        self._grant = grant
        self._on_lost = on_lost
        self.lock_id = grant.lock_id
        self.token = grant.token
        # The time, on the loop's clock, until which the lock is certain. Any thread may read it.
        self.until = grant.sent_at + terms.ttl
        # Why the lock is no longer held; "RELEASED" when it was released.
        self.lost: Optional[str] = None
        self._task = asyncio.ensure_future(self._run())
        self._releasing: "Optional[asyncio.Task[bool]]" = None

    async def release(self) -> bool:
        """Releases the lock. False: it was lost before, or no replica could be reached and it goes with its ttl.

        Cancellation: the lock is released all the same.
        """
        return await asyncio.shield(self.release_later())

    def release_later(self) -> "asyncio.Task[bool]":
        """Does the same in the background."""
        if self._releasing is None:
            self._releasing = self._locks.run_in_background(self._release())
        return self._releasing

    async def _release(self) -> bool:
        was_held = self._end("RELEASED")
        self._task.cancel()
        try:
            released = await self._locks.release(self.lock_id, self._locks.patience, settles=True)
        except NoConnection as error:
            log.warning("lock %s could not be given back yet: %s", self._terms.path, error)
            self._locks.release_later(self.lock_id, self._terms.ttl)
            return False
        except ServiceRegistryException as error:
            log.warning("lock %s was not given back, and stays until its ttl runs out: %s", self._terms.path, error)
            return False
        return released and was_held

    def _end(self, reason: str) -> bool:
        if self.lost is not None:
            return False
        self.lost = reason
        return True

    def _lose(self, reason: str) -> None:
        if self._end(reason):
            log.warning("lock %s is lost: %s", self._terms.path, reason)
            self._on_lost(reason)

    async def _run(self) -> None:
        try:
            await self._keep()
        except Failure as failure:
            self._lose(failure.reason)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("keeping the lock %s", self._terms.path)
            self._lose("EXPIRED")
        finally:
            self._grant.stream.cancel()

    async def _keep(self) -> None:
        """Keeps the lock until it is lost. Raises Failure with the cause."""
        stream: Optional[Stream] = self._grant.stream
        loop = asyncio.get_running_loop()
        replicas, terms = self._locks.replicas, self._terms
        renew_at = self._grant.sent_at + terms.ttl / 3
        drains: Optional[int] = None
        while True:
            if stream is not None and loop.time() < renew_at:
                left = renew_at - loop.time()
                try:
                    silence = self._grant.silence
                    renew_now = await self._heard(stream, min(left, silence), left <= silence)
                    if renew_now:
                        replicas.drains(self._grant.replica)
                        drains = self._grant.replica.index
                except Failure as failure:
                    self._judge(failure, renewing=False)
                    replicas.failed(self._grant.replica, failure)
                    renew_now = True
                if renew_now:
                    stream, renew_at = None, 0.0
                continue
            if loop.time() >= self.until:
                raise Failure(Kind.REFUSED, "", "EXPIRED")
            replica = await replicas.pick_until(self.until, drains, terms.ttl / 6)
            if replica is None:
                raise Failure(Kind.REFUSED, "", "EXPIRED")
            try:
                grant = await self._locks.renew(terms, self.lock_id, replica)
            except Failure as failure:
                self._judge(failure, renewing=True)
                replicas.failed(replica, failure)
                continue
            replicas.succeeded(replica)
            self._grant.stream.cancel()
            self._grant, stream, drains = grant, grant.stream, None
            self.until = grant.sent_at + terms.ttl
            renew_at = grant.sent_at + terms.ttl / 3

    async def _heard(self, stream: Stream, bound: float, may_be_silent: bool) -> bool:
        """Reads one message. Returns whether it is time to move. Raises Failure."""
        try:
            message = await stream.next(bound)
        except Failure as failure:
            if may_be_silent and failure.kind is Kind.BROKEN and stream.ended() is None:
                return False  # Silence here only means that it is time to renew.
            raise
        if message is None:
            raise Failure(Kind.REFUSED, "", "RELEASED_ELSEWHERE")
        event = message.WhichOneof("event")
        if event == "lost":
            raise Failure(Kind.REFUSED, "", lost_reason(message.lost.reason))
        if event == "suspended":
            remaining = message.suspended.remaining
            left = remaining.seconds + remaining.nanos / 1e9
            self.until = min(self.until, asyncio.get_running_loop().time() + left)
        elif event == "held":
            self.until = self._grant.sent_at + self._terms.ttl
        return bool(event == "draining")

    @staticmethod
    def _judge(failure: Failure, renewing: bool) -> None:
        """Raises the failure if it ends the lock; returns if another attempt is worth it. While renewing, the renewal
        itself may have superseded the stream."""
        if failure.kind is not Kind.REFUSED:
            return
        if failure.reason == "LOCK_LOST":
            raise Failure(Kind.REFUSED, failure.message, "SESSION_LOST")
        if failure.reason == "SUPERSEDED" and renewing:
            return
        if failure.reason in ("SUPERSEDED", "RELEASED_ELSEWHERE", "TAKEN_OVER", "EXPIRED", "SESSION_LOST", "REMOVED"):
            raise failure
        # A single replica may refuse, or refuse only for a moment, so the ttl decides.
