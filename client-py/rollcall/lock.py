"""The lock as a program has it, with nd_service_registry's methods."""

import asyncio
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Coroutine, Optional, Type

from rollcall.errors import ServiceRegistryException
from rollcall.locks import Keeper

if TYPE_CHECKING:
    from rollcall.lock_verbs import LockVerbs

# Called with the reason when a lock is lost.
OnLost = Callable[[str], None]


class Lock:
    """A lock on a path, made by `ServiceRegistry.get_lock`; a place in the queue of its own.

        with registry.get_lock("/jobs/nightly") as held:
            if held:
                ...

    Who must not work beside another for even a moment passes `fencing_token` to what the lock guards, and has that
    refuse a smaller one than it has seen: a lock alone does not keep out a process that was paused while its lock ran
    out."""

    def __init__(
        self,
        registry: "LockVerbs",
        path: str,
        name: Optional[str] = None,
        simultaneous: int = 1,
        wait: Optional[float] = 300,
        on_lost: Optional[OnLost] = None,
        is_shared: bool = False,
    ) -> None:
        self.path = path
        self.terms = (name, simultaneous, wait, on_lost)
        # Set when the lock was held and is lost.
        self.lost = threading.Event()
        # Whether it belongs to the process, and not to one thread.
        self.is_shared = is_shared
        self.on_lost = on_lost
        self._registry = registry
        # Changed on the loop alone.
        self._keeper: Optional[Keeper] = None
        # Of the call that takes the lock now, on the loop: done when that has ended.
        self._taker: "Optional[asyncio.Future[None]]" = None

    def acquire(self) -> bool:
        """Waits until the lock is ours, for `wait` seconds at most (None: for ever; 0: not at all). Returns whether it
        is; at once, where it is already.

        Raises NoConnection when no replica can be reached; Refused when the path can't be locked like this.
        """
        name, simultaneous, wait, _ = self.terms
        return self.status() or self._registry._acquire(self, (name, simultaneous, wait))

    async def _take(
        self, take: Callable[[Optional[float]], Coroutine[Any, Any, Optional[Keeper]]], wait: Optional[float]
    ) -> Optional[Keeper]:
        """On the loop: takes the lock, after any other call that does. None: it is not ours, or already was."""
        loop = asyncio.get_running_loop()
        deadline = None if wait is None else loop.time() + wait
        while self._taker is not None:
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                return None
            await asyncio.wait({self._taker}, timeout=left)
        if self.status():
            return None
        taker = self._taker = loop.create_future()
        self.lost.clear()
        try:
            return await take(None if deadline is None else max(0.0, deadline - loop.time()))
        finally:
            self._taker = None
            taker.set_result(None)

    def release(self) -> bool:
        """Gives the lock back. False: it was not ours any more, or no replica could be told: it goes with its ttl."""
        keeper = self._keeper
        try:
            self._registry._adopt()
            return keeper is not None and self._registry._release(self, keeper)
        except ServiceRegistryException:
            raise
        except BaseException:
            self._registry._leave(self, keeper)
            raise

    def status(self) -> bool:
        """Whether the lock is ours, by all that is known now."""
        self._registry._adopt()
        keeper = self._keeper
        return keeper is not None and keeper.lost is None and self._registry._now() < keeper.until

    @property
    def fencing_token(self) -> Optional[int]:
        """Rises with every grant of this path's lock; None while it is not ours."""
        keeper = self._keeper
        return keeper.token if keeper is not None and self.status() else None

    def _forget(self) -> None:
        """After a fork: it is our parent's."""
        self._keeper = self._taker = None
        self.lost = threading.Event()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Lock {self.path} {'held' if self.status() else 'not held'}>"
