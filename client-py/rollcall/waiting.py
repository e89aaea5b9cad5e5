"""Waiting for events on a loop, with a bound.

Not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes at the same moment as the awaited event.
"""

import _thread
import asyncio
from typing import Optional


class News:
    """A repeated event. Any number of tasks may wait for its next time."""

    def __init__(self) -> None:
        self._next: "Optional[asyncio.Future[None]]" = None

    def tell(self) -> None:
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None

    async def wait(self, seconds: Optional[float] = None) -> bool:
        """Waits until it happens. Returns whether it did within so many seconds. Cancellation: safe."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait({self._next}, timeout=None if seconds is None else max(0.0, seconds))
        return bool(done)


class Once:
    """An event that happens once, and that threads wait for.

    An exception from a signal handler may leave a threading.Event or a concurrent.futures.Future locked for ever, and
    with it the loop that sets it. Here no Python code runs while the lock is held.
    """

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def tell(self) -> None:
        if self._lock.locked():
            self._lock.release()

    def wait(self, seconds: float = -1) -> bool:
        """Waits in one thread until it happens. Returns whether it did within so many seconds."""
        return self._lock.acquire(timeout=seconds)


class Bell:
    """An event for one task that waits. It also notices an event from before it began to wait."""

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
