"""gRPC calls for an event loop, made with grpcio's threads.

grpcio's own asyncio API can't be taken down so that nothing of it is left, and that is what a fork needs (forking.py).
So each stream is read by a thread, which hands over what it reads, and everything else happens on the loop.
"""

import asyncio
import collections
import functools
import queue
import threading
from typing import Any, Callable, Deque, NamedTuple, Optional, Sequence, Set, Tuple

import grpc

from rollcall.errors import Failure, Kind
from rollcall.waiting import News

# How many messages of a stream may wait to be taken; the stream is not read meanwhile.
_WAITING = 64
# How long, in seconds, a connection that is closed waits at most for what should not break in the dark.
_GRACE = 1.0
_OPTIONS: Sequence[Tuple[str, Any]] = (
    # A replica welcomes no more pings than this. Together with the time-out it stays under what a replica allows
    # itself, so that a client knows of a broken connection before a lock that it carried is given to another.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # When to try again is decided here, not below.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A connection ends with its channel, and is nobody else's.
    ("grpc.use_local_subchannel_pool", 1),
)

Metadata = Optional[Tuple[Tuple[str, str], ...]]


class Connection:
    """A channel to one replica, and the calls that are under way on it. Belongs to the loop."""

    def __init__(self, target: str, credentials: Optional[grpc.ChannelCredentials], metadata: Metadata) -> None:
        self._metadata = metadata
        self._calls: Set[Any] = set()
        self._is_closed = False
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=_OPTIONS)

    def stream(self, method: str, request: Any, answer: Any) -> "Stream":
        """Begins a call with one request and many answers. Raises Failure."""
        self._check()
        call = self._channel.unary_stream(f"/{method}", request.SerializeToString, _parser(answer))
        return self._begin(Stream(lambda: call(request, metadata=self._metadata)))

    def duplex(self, method: str, request_type: Any, answer: Any) -> "Stream":
        """Begins a call with many requests, which `send` sends, and many answers. Raises Failure."""
        self._check()
        call = self._channel.stream_stream(f"/{method}", request_type.SerializeToString, _parser(answer))
        requests: "queue.SimpleQueue[Any]" = queue.SimpleQueue()
        return self._begin(Stream(lambda: call(iter(requests.get, None), metadata=self._metadata), requests))

    def _check(self) -> None:
        if self._is_closed:
            raise Failure(Kind.PAUSED, "the connection was closed")

    def _begin(self, stream: "Stream") -> "Stream":
        self._calls.add(stream)
        stream.on_end = lambda: self._calls.discard(stream)
        return stream

    async def unary(self, method: str, request: Any, answer: Any, bound: float) -> Any:
        """Makes a call with one answer.

        Raises Failure.
        """
        self._check()
        loop = asyncio.get_running_loop()
        news = News()
        call = self._channel.unary_unary(f"/{method}", request.SerializeToString, _parser(answer))
        future: Any = call.future(request, timeout=bound, metadata=self._metadata)
        one = _Unary(future, news)
        self._calls.add(one)
        future.add_done_callback(lambda _: _tell(loop, news.tell))
        try:
            while not future.done():
                await news.wait()
        except asyncio.CancelledError:
            future.cancel()
            raise
        finally:
            self._calls.discard(one)
        if future.cancelled():
            raise Failure(Kind.PAUSED, "the connection was closed")
        error = future.exception()
        if error is None:
            return future.result()
        raise Failure.of(error) from None

    async def close(self) -> None:
        """Breaks every call, and waits until no thread of them is left. What should not break in the dark has a moment
        to come to light."""
        self._is_closed = True
        deadline = asyncio.get_running_loop().time() + _GRACE
        for call in list(self._calls):
            await call.settled(deadline)
        for call in list(self._calls):
            await call.gone()
        self._channel.close()

    def close_when_idle(self) -> bool:
        """Closes the channel unless a call is under way on it; says whether it did."""
        if self._calls:
            return False
        self._channel.close()
        return True


def _parser(answer: Any) -> Callable[[bytes], Any]:
    parse: Callable[[bytes], Any] = answer.FromString
    return parse


def _tell(loop: asyncio.AbstractEventLoop, what: Callable[[], Any]) -> None:
    try:
        loop.call_soon_threadsafe(what)
    except RuntimeError:
        pass  # The loop has ended, and nobody listens.


class _Unary(NamedTuple):
    """A call with one answer, under way."""

    future: Any
    news: News

    async def settled(self, deadline: float) -> None:
        """Waits for the answer: that of a write tells whether it was made."""
        loop = asyncio.get_running_loop()
        while not self.future.done() and loop.time() < deadline:
            await self.news.wait(deadline - loop.time())

    async def gone(self) -> None:
        self.future.cancel()


class Stream:
    """A call with many answers."""

    def __init__(self, begin: Callable[[], Any], requests: "Optional[queue.SimpleQueue[Any]]" = None) -> None:
        self.on_end: Callable[[], Any] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._requests = requests
        self._messages: Deque[Any] = collections.deque()
        self._room = threading.Semaphore(_WAITING)
        self._is_open = False
        # How it ended: None is OK.
        self._end: Optional[Failure] = None
        self._has_ended = False
        self._is_cancelled = False
        # Whether we have broken it, so that it says nothing about the replica.
        self._is_ours = False
        # Whether something would be amiss if it were broken before the first answer, which has the id of a lock.
        self.is_delicate = False
        self._has_heard = False
        # Called on the loop whenever there is something to `poll`.
        self.on_news: Callable[[], Any] = lambda: None
        self._news = News()
        self._call = begin()
        self._thread = threading.Thread(target=self._read, name="rollcall-stream", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        end: Optional[Failure] = None
        try:
            # Waits for the headers, which a replica sends at once.
            self._call.initial_metadata()
            _tell(self._loop, self._opened)
            for message in self._call:
                self._room.acquire()
                if self._is_cancelled:
                    break
                _tell(self._loop, functools.partial(self._take, message))
        except grpc.RpcError as error:
            end = Failure.of(error)
        _tell(self._loop, lambda: self._over(end))

    def _opened(self) -> None:
        self._is_open = True
        self._wake()

    def _take(self, message: Any) -> None:
        self._messages.append(message)
        self._has_heard = True
        self._wake()

    def _over(self, end: Optional[Failure]) -> None:
        self._end = Failure(Kind.PAUSED, "the connection was closed") if self._is_ours else end
        self._has_ended = True
        if self._requests is not None:
            self._requests.put(None)
        self.on_end()
        self._wake()

    def _wake(self) -> None:
        self._news.tell()
        self.on_news()

    async def opened(self, bound: float) -> None:
        """Waits until the replica has taken the call. Raises Failure."""
        await self._until(lambda: self._is_open, bound)
        if not self._is_open:
            raise self._end or Failure.ended()

    async def next(self, bound: float) -> Any:
        """The next answer; None when the call has ended with OK. Raises Failure, also after `bound` seconds of silence.

        Cancellation: safe, no answer is lost.
        """
        await self._until(lambda: bool(self._messages), bound)
        message = self.poll()
        if message is None and self._end is not None:
            raise self._end
        return message

    def poll(self) -> Any:
        """The next answer if there is one already."""
        if not self._messages:
            return None
        self._room.release()
        return self._messages.popleft()

    def ended(self) -> Optional[Failure]:
        """How the call ended, once it has and every answer was taken."""
        if not self._has_ended or self._messages:
            return None
        return self._end or Failure.ended()

    async def _until(self, reached: Callable[[], bool], bound: float) -> None:
        deadline = self._loop.time() + bound
        while not reached() and not self._has_ended:
            left = deadline - self._loop.time()
            if left <= 0:
                raise Failure.silent()
            await self._news.wait(left)

    def send(self, message: Any) -> None:
        if self._requests is not None:
            self._requests.put(message)

    def cancel(self) -> None:
        """Ends the call; what it still says is not heard."""
        self._is_cancelled = True
        self._room.release()
        if self._requests is not None:
            self._requests.put(None)
        self._call.cancel()

    async def settled(self, deadline: float) -> None:
        """Waits for the first answer, where that matters."""
        while self.is_delicate and not (self._has_heard or self._has_ended) and self._loop.time() < deadline:
            await self._news.wait(deadline - self._loop.time())

    async def gone(self) -> None:
        """Breaks it, and waits until its thread has ended."""
        self._is_ours = True
        self.cancel()
        while not self._has_ended:
            await self._news.wait()
        self._thread.join()
