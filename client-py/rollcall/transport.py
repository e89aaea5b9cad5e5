"""gRPC calls for the loop of a registry with threads.

grpcio's own asyncio API (transport_aio.py) can't be taken down completely, and a fork needs that (forking.py). So a
thread reads each stream and hands over its messages, and everything else happens on the loop.
"""

import asyncio
import functools
import queue
import threading
from typing import Any, Callable, NamedTuple, Optional, Sequence, Set, Tuple

import grpc

from rollcall.errors import Failure, Kind
from rollcall.stream import WAITING, Stream
from rollcall.waiting import News

# Maximum time, in seconds, that closing a connection waits for calls whose outcome should be known.
GRACE = 1.0
OPTIONS: Sequence[Tuple[str, Any]] = (
    # A replica welcomes pings no more often than this. Together with the time-out it is shorter than the time that a
    # replica allows itself, so that a client knows of a broken connection before the lock that it carried is given to
    # another client.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # This package decides when to try again, not grpcio.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A name may have several addresses: each is tried, and the clients are spread over them.
    ("grpc.service_config", '{"loadBalancingConfig":[{"pick_first":{"shuffleAddressList":true}}]}'),
    # A connection ends with its channel, and is shared with no other.
    ("grpc.use_local_subchannel_pool", 1),
)

Metadata = Optional[Tuple[Tuple[str, str], ...]]


class Connection:
    """A channel to one replica, and the calls under way on it. Belongs to the loop."""

    def __init__(self, target: str, credentials: Optional[grpc.ChannelCredentials], metadata: Metadata) -> None:
        self._metadata = metadata
        self._calls: Set[Any] = set()
        self._is_closed = False
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=OPTIONS)

    def stream(self, method: str, request: Any, answer: Any) -> Stream:
        """Begins a call with one request and many answers. Raises Failure."""
        self._check()
        call = self._channel.unary_stream(f"/{method}", request.SerializeToString, parser(answer))
        return self._begin(ThreadStream(lambda: call(request, metadata=self._metadata)))

    def duplex(self, method: str, request_type: Any, answer: Any) -> Stream:
        """Begins a call with many requests, which `send` sends, and many answers. Raises Failure."""
        self._check()
        call = self._channel.stream_stream(f"/{method}", request_type.SerializeToString, parser(answer))
        requests: "queue.SimpleQueue[Any]" = queue.SimpleQueue()
        return self._begin(ThreadStream(lambda: call(iter(requests.get, None), metadata=self._metadata), requests))

    def _check(self) -> None:
        if self._is_closed:
            raise Failure(Kind.PAUSED, "the connection was closed")

    def _begin(self, stream: Stream) -> Stream:
        self._calls.add(stream)
        stream.on_end = lambda: self._calls.discard(stream)
        return stream

    async def unary(self, method: str, request: Any, answer: Any, bound: float, settles: bool = False) -> Any:
        """Makes a call with one answer. `close` waits a moment for the answer if `settles`.

        Raises Failure.
        """
        self._check()
        loop = asyncio.get_running_loop()
        news = News()
        call = self._channel.unary_unary(f"/{method}", request.SerializeToString, parser(answer))
        future: Any = call.future(request, timeout=bound, metadata=self._metadata)
        one = _Unary(future, news, settles)
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
        """Breaks every call, and waits until none of their threads is left. Calls whose outcome should be known have a
        moment to finish."""
        self._is_closed = True
        deadline = asyncio.get_running_loop().time() + GRACE
        for call in list(self._calls):
            await call.settled(deadline)
        for call in list(self._calls):
            await call.gone()
        self._channel.close()

    def close_when_idle(self) -> bool:
        """Closes the channel, unless a call is under way on it. Returns whether it did."""
        if self._calls:
            return False
        self._channel.close()
        return True


def parser(answer: Any) -> Callable[[bytes], Any]:
    parse: Callable[[bytes], Any] = answer.FromString
    return parse


def _tell(loop: asyncio.AbstractEventLoop, what: Callable[[], Any]) -> None:
    try:
        loop.call_soon_threadsafe(what)
    except RuntimeError:
        pass  # The loop has ended, so nothing would receive it.


class _Unary(NamedTuple):
    """A call with one answer, under way."""

    future: Any
    news: News
    settles: bool

    async def settled(self, deadline: float) -> None:
        """Waits for an answer that tells whether a change was made. Any other call is simply made again."""
        loop = asyncio.get_running_loop()
        while self.settles and not self.future.done() and loop.time() < deadline:
            await self.news.wait(deadline - loop.time())

    async def gone(self) -> None:
        self.future.cancel()


class ThreadStream(Stream):
    """A stream that a thread reads."""

    def __init__(self, begin: Callable[[], Any], requests: "Optional[queue.SimpleQueue[Any]]" = None) -> None:
        super().__init__()
        self._requests = requests
        self._room = threading.Semaphore(WAITING)
        self._is_cancelled = False
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
        if self._requests is not None:
            # The sending thread ends too.
            self._requests.put(None)
        _tell(self._loop, lambda: self._over(end))

    def send(self, message: Any) -> None:
        if self._requests is not None:
            self._requests.put(message)

    def cancel(self) -> None:
        self._is_cancelled = True
        self._room.release()
        if self._requests is not None:
            self._requests.put(None)
        self._call.cancel()

    def _taken(self) -> None:
        self._room.release()

    async def _join(self) -> None:
        self._thread.join()
