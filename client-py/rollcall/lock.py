"""The lock that programs use, with nd_service_registry's methods."""

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
    """A lock on a path, with a place in the queue of its own: from `ServiceRegistry.get_lock`.

        with registry.get_lock("/jobs/nightly") as held:
            if held:
                ...

    A lock alone does not keep out a process that was paused while its lock ran out. If your work must never run beside
    another's for even a moment, pass `fencing_token` to the resource that the lock guards, and have it refuse a token
    smaller than the largest it has seen."""

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
        # Whether the lock belongs to the whole process, and not to one thread.
        self.is_shared = is_shared
        self.on_lost = on_lost
        self._registry = registry
        # Changed only on the loop.
        self._keeper: Optional[Keeper] = None
        # The future of the call that takes the lock now, on the loop: done when that call has ended.
        self._taker: "Optional[asyncio.Future[None]]" = None

    def acquire(self) -> bool:
        """Waits until the lock is held, for `wait` seconds at most (None: for ever; 0: not at all). Returns whether the
        lock is held; at once if it is held already.

        Raises NoConnection when no replica can be reached, Refused when the path can't be locked like this.
        """
        name, simultaneous, wait, _ = self.terms
        return self.status() or self._registry._acquire(self, (name, simultaneous, wait))

    async def _take(
        self, take: Callable[[Optional[float]], Coroutine[Any, Any, Optional[Keeper]]], wait: Optional[float]
    ) -> Optional[Keeper]:
        """On the loop: takes the lock, after any other call that takes it. None: it is not held, or already was."""
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
        """Releases the lock. False: it was no longer held, or no replica could be reached and it goes with its ttl."""
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
        """Whether the lock is held, as far as is known now."""
        self._registry._adopt()
        keeper = self._keeper
        return keeper is not None and keeper.lost is None and self._registry._now() < keeper.until

    @property
    def fencing_token(self) -> Optional[int]:
        """Rises with every grant of this path's lock; None while the lock is not held."""
        keeper = self._keeper
        return keeper.token if keeper is not None and self.status() else None

    def _forget(self) -> None:
        """Forgets the lock after a fork: it belongs to the parent."""
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
