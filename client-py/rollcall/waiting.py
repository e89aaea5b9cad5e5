"""Waiting for things that happen on a loop, with a bound.

Not asyncio.wait_for: before Python 3.12 it forgets a cancellation that comes at the same moment as what it waits for.
"""

import _thread
import asyncio
from typing import Optional


class News:
    """Something that happens again and again; any number of tasks may wait for the next time."""

    def __init__(self) -> None:
        self._next: "Optional[asyncio.Future[None]]" = None

    def tell(self) -> None:
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None

    async def wait(self, seconds: Optional[float] = None) -> bool:
        """Waits until it happens; says whether it did in so many seconds. Cancellation: safe."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait({self._next}, timeout=None if seconds is None else max(0.0, seconds))
        return bool(done)


class Once:
    """Something that happens once, and that threads wait for.

    An exception from a signal handler may leave a threading.Event or a concurrent.futures.Future locked for good, and
    with it the loop that tells it. Nothing of this is Python code while it is locked.
    """

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def tell(self) -> None:
        if self._lock.locked():
            self._lock.release()

    def wait(self, seconds: float = -1) -> bool:
        """Waits in one thread until it happens; says whether it did in so many seconds."""
        return self._lock.acquire(timeout=seconds)


class Bell:
    """The same for one task that waits; it hears what happened before it began to wait."""

    def __init__(self) -> None:
        self._news = News()
        self._has_rung = False

    def ring(self) -> None:
        self._has_rung = True
        self._news.tell()

    async def wait(self, seconds: Optional[float] = None) -> None:
        if not self._has_rung:
            await self._news.wait(seconds)
        self._has_rung = False
