"""A call with many answers, as the loop sees it, over any transport."""

import asyncio
import collections
from typing import Any, Callable, Deque, Optional

from rollcall.errors import Failure, Kind
from rollcall.waiting import News

# Maximum number of messages of a stream that wait to be taken. Meanwhile the stream is not read.
WAITING = 64


class Stream:
    """A call of a transport, which calls `_opened`, `_take` and `_over` on the loop."""

    def __init__(self) -> None:
        self.on_end: Callable[[], Any] = lambda: None
        # Called on the loop whenever `poll` has a message.
        self.on_news: Callable[[], Any] = lambda: None
        # Whether the stream must not break before its first answer, which has the id of a lock.
        self.is_delicate = False
        self._loop = asyncio.get_running_loop()
        self._messages: Deque[Any] = collections.deque()
        self._is_open = False
        self._has_heard = False
        # How the call ended: None is OK.
        self._end: Optional[Failure] = None
        self._has_ended = False
        # Whether this client has broken it, so that its end says nothing about the replica.
        self._is_ours = False
        self._news = News()

    # --- implemented by a transport

    def send(self, message: Any) -> None:
        """Sends a message, on a call with many requests."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Ends the call. Messages that still come are ignored."""
        raise NotImplementedError

    def _taken(self) -> None:
        """There is room for one more message."""
        raise NotImplementedError

    async def _join(self) -> None:
        """Waits, after the end of the call, until nothing of it is left."""
        raise NotImplementedError

    # --- calls of the transport, and answers

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
        self.on_end()
        self._wake()

    def _wake(self) -> None:
        self._news.tell()
        self.on_news()

    async def opened(self, bound: float) -> None:
        """Waits until the replica has accepted the call. Raises Failure."""
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
        """The next answer, if it has come already."""
        if not self._messages:
            return None
        self._taken()
        return self._messages.popleft()

    def ended(self) -> Optional[Failure]:
        """How the call ended, once it has ended and every answer was taken."""
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

    async def settled(self, deadline: float) -> None:
        """Waits for the first answer, if that matters."""
        while self.is_delicate and not (self._has_heard or self._has_ended) and self._loop.time() < deadline:
            await self._news.wait(deadline - self._loop.time())

    async def gone(self) -> None:
        """Breaks the call, and waits until nothing of it is left."""
        self._is_ours = True
        self.cancel()
        while not self._has_ended:
            await self._news.wait()
        await self._join()
