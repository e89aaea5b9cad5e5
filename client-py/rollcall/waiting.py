"""Waiting for things that happen on a loop, with a bound.

Not asyncio.wait_for: before Python 3.12 it forgets a cancellation that comes at the same moment as what it waits for.
"""

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
