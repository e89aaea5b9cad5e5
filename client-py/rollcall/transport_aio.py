"""The same calls with grpcio's asyncio API, for rollcall.aio, without threads of this package."""

import asyncio
from typing import Any, Awaitable, Optional, Set

import grpc
from grpc import aio

from rollcall.errors import Failure, Kind
from rollcall.stream import WAITING, Stream
from rollcall.transport import GRACE, OPTIONS, Metadata, parser


class AioConnection:
    """A channel to one replica, and the calls under way on it."""

    def __init__(self, target: str, credentials: Optional[grpc.ChannelCredentials], metadata: Metadata) -> None:
        self._metadata = metadata
        self._calls: "Set[AioStream]" = set()
        self._unaries = 0
        self._closing: "Optional[asyncio.Task[None]]" = None
        self._channel: Any
        if credentials is None:
            self._channel = aio.insecure_channel(target, options=OPTIONS)
        else:
            self._channel = aio.secure_channel(target, credentials, options=OPTIONS)

    def stream(self, method: str, request: Any, answer: Any) -> Stream:
        """Begins a call with one request and many answers. Raises Failure."""
        self._check()
        call = self._channel.unary_stream(f"/{method}", request.SerializeToString, parser(answer))
        return self._begin(AioStream(call(request, metadata=self._metadata)))

    def duplex(self, method: str, request_type: Any, answer: Any) -> Stream:
        """Begins a call with many requests, which `send` sends, and many answers. Raises Failure."""
        self._check()
        call = self._channel.stream_stream(f"/{method}", request_type.SerializeToString, parser(answer))
        requests: "asyncio.Queue[Any]" = asyncio.Queue()

        async def said() -> Any:
            message = await requests.get()
            while message is not None:
                yield message
                message = await requests.get()

        return self._begin(AioStream(call(said(), metadata=self._metadata), requests))

    def _check(self) -> None:
        if self._closing is not None:
            raise Failure(Kind.PAUSED, "the connection was closed")

    def _begin(self, stream: "AioStream") -> Stream:
        self._calls.add(stream)
        stream.on_end = lambda: self._calls.discard(stream)
        return stream

    async def unary(self, method: str, request: Any, answer: Any, bound: float, settles: bool = False) -> Any:
        """Makes a call with one answer. Raises Failure."""
        self._check()
        call = self._channel.unary_unary(f"/{method}", request.SerializeToString, parser(answer))
        self._unaries += 1
        try:
            return await call(request, timeout=bound, metadata=self._metadata)
        except grpc.RpcError as error:
            raise Failure.of(error) from None
        finally:
            self._unaries -= 1

    async def close(self) -> None:
        """Breaks every call. Calls whose outcome should be known have a moment to finish."""
        deadline = asyncio.get_running_loop().time() + GRACE
        for call in list(self._calls):
            await call.settled(deadline)
        for call in list(self._calls):
            await call.gone()
        await self._close()

    def close_when_idle(self) -> bool:
        """Closes the channel, unless a call is under way on it. Returns whether it did."""
        if self._calls or self._unaries:
            return False
        self._close()
        return True

    def _close(self) -> Awaitable[None]:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._channel.close(GRACE))
        return self._closing


class AioStream(Stream):
    """A stream that a task reads, since a cancelled read would end the call."""

    def __init__(self, call: Any, requests: "Optional[asyncio.Queue[Any]]" = None) -> None:
        super().__init__()
        self._call = call
        self._requests = requests
        self._room = asyncio.Semaphore(WAITING)
        self._task = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        end: Optional[Failure] = Failure(Kind.BROKEN, "the call was cancelled")
        try:
            # Waits for the headers, which a replica sends at once.
            await self._call.initial_metadata()
            self._opened()
            while True:
                message = await self._call.read()
                if message is aio.EOF:  # type: ignore[attr-defined]
                    end = None
                    break
                self._take(message)
                await self._room.acquire()
        except grpc.RpcError as error:
            end = Failure.of(error)
        finally:
            if self._requests is not None:
                self._requests.put_nowait(None)
            self._over(end)

    def send(self, message: Any) -> None:
        if self._requests is not None:
            self._requests.put_nowait(message)

    def cancel(self) -> None:
        self._call.cancel()
        self._task.cancel()

    def _taken(self) -> None:
        self._room.release()

    async def _join(self) -> None:
        await asyncio.wait({self._task})
