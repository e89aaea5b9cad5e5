"""The lock as a program has it, with nd_service_registry's methods."""

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Callable, Optional, Type

from rollcall.locks import Keeper

if TYPE_CHECKING:
    from rollcall.registry import ServiceRegistry

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
        registry: "ServiceRegistry",
        path: str,
        name: Optional[str] = None,
        simultaneous: int = 1,
        wait: Optional[float] = 300,
        on_lost: Optional[OnLost] = None,
    ) -> None:
        self.path = path
        self.terms = (name, simultaneous, wait, on_lost)
        # Set when the lock was held and is lost.
        self.lost = threading.Event()
        self._registry = registry
        self._name = name
        self._simultaneous = simultaneous
        self._wait = wait
        self.on_lost = on_lost
        self._keeper: Optional[Keeper] = None
        # Held while one thread takes the lock.
        self._taking = threading.Lock()

    def acquire(self) -> bool:
        """Waits until the lock is ours, for `wait` seconds at most (None: for ever; 0: not at all). Returns whether it
        is; at once, where it is already.

        Raises NoConnection when no replica can be reached; Refused when the path can't be locked like this.
        """
        begun = time.monotonic()
        if not self._taking.acquire(timeout=-1 if self._wait is None else self._wait):
            return self.status()
        try:
            if self.status():
                return True
            left = None if self._wait is None else max(0.0, self._wait - (time.monotonic() - begun))
            self.lost.clear()
            self._keeper = self._registry._acquire(self, self._name, self._simultaneous, left)
            return self.status()
        finally:
            self._taking.release()

    def release(self) -> bool:
        """Gives the lock back. False: it was not ours any more, or no replica could be told: it goes with its ttl."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return False
        return self._registry._release(self, keeper)

    def status(self) -> bool:
        """Whether the lock is ours, by all that is known now."""
        keeper = self._keeper
        return keeper is not None and keeper.lost is None and self._registry._now() < keeper.until

    @property
    def fencing_token(self) -> Optional[int]:
        """Rises with every grant of this path's lock; None while it is not ours."""
        keeper = self._keeper
        return keeper.token if keeper is not None and self.status() else None

    def _forget(self) -> None:
        """After a fork: it is our parent's."""
        self._keeper = None
        self._taking = threading.Lock()
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
