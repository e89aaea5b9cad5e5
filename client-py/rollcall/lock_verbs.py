"""The verbs of a registry that take and release locks, for programs with threads."""

import functools
import threading
import weakref
from typing import TYPE_CHECKING, List, Optional, Set, Tuple

from rollcall.core import Core
from rollcall.lock import Lock, OnLost
from rollcall.locks import Keeper
from rollcall.replicas import clean

if TYPE_CHECKING:
    from rollcall.dispatch import Dispatcher
    from rollcall.engine import Engine

LOCK_WAIT = 300  # seconds


class _OwnLocks(threading.local):
    """The locks of one thread."""

    def __init__(self) -> None:
        self.all: "weakref.WeakValueDictionary[str, Lock]" = weakref.WeakValueDictionary()


class LockVerbs:
    """The lock verbs of a ServiceRegistry, which has the connection."""

    _mutex: "threading.RLock"
    _engine: "Optional[Engine]"
    _dispatcher: "Dispatcher"

    def __init__(self) -> None:
        # Locks of `get_lock`, locks of `acquire_lock`, and both. A lock without references is forgotten, unless it is
        # held.
        self._own_locks = _OwnLocks()
        self._process_locks: "weakref.WeakValueDictionary[str, Lock]" = weakref.WeakValueDictionary()
        self._locks: "weakref.WeakSet[Lock]" = weakref.WeakSet()
        # Changed only on the loop.
        self._held: Set[Lock] = set()

    def _adopt(self) -> None:
        raise NotImplementedError

    def _ready(self) -> "Engine":
        raise NotImplementedError

    def _now(self) -> float:
        engine = self._engine
        return engine.now() if engine is not None else float("inf")

    def _forget_locks(self) -> None:
        """Forgets the locks after a fork: they belong to the parent."""
        self._own_locks = _OwnLocks()
        self._process_locks = weakref.WeakValueDictionary()
        self._held = set()
        for lock in list(self._locks):
            lock._forget()

    def get_lock(
        self,
        path: str,
        name: Optional[str] = None,
        simultaneous: int = 1,
        wait: Optional[float] = LOCK_WAIT,
        on_lost: Optional[OnLost] = None,
    ) -> Lock:
        """A lock, to be taken with `with` or `acquire`. A thread gets the same lock for the same path.

        Args:
            path: the path of the lock; all its users must give the same `simultaneous`.
            name: the holder's name, which others see.
            simultaneous: maximum number of holders at once.
            wait: seconds that `acquire` waits; 0: not at all; None: for ever.
            on_lost: called with the reason if the lock is lost while it is held.
        """
        self._adopt()
        return self._lock(self._own_locks.all, Lock(self, clean(path), name, simultaneous, wait, on_lost))

    def _lock(self, known: "weakref.WeakValueDictionary[str, Lock]", wanted: Lock) -> Lock:
        """The known lock of this path, unless it is not held and its terms differ."""
        with self._mutex:
            lock = known.get(wanted.path)
            if lock is None or (lock.terms != wanted.terms and not lock.status()):
                lock = known[wanted.path] = wanted
                self._locks.add(lock)
            return lock

    def acquire_lock(
        self, path: str, name: Optional[str] = None, simultaneous: int = 1, wait: Optional[float] = LOCK_WAIT
    ) -> bool:
        """Takes a lock for this process, whichever thread calls, and keeps it until `release_lock`. Returns whether
        this process holds it."""
        self._adopt()
        path = clean(path)
        if any(lock.status() for lock in self._held_by_process(path)):
            return True
        return self._lock(self._process_locks, Lock(self, path, name, simultaneous, wait, is_shared=True)).acquire()

    def release_lock(self, path: str) -> bool:
        """Releases the locks that `acquire_lock` has taken on the path, in any thread; if there are none, this thread's
        lock of `get_lock`. Returns True when none of these locks is held."""
        self._adopt()
        path = clean(path)
        own = self._own_locks.all.get(path)
        locks = self._held_by_process(path) or ([own] if own is not None else [])
        for lock in locks:
            lock.release()
        return not any(lock.status() for lock in locks)

    def _held_by_process(self, path: str) -> List[Lock]:
        return [lock for lock in list(self._held) if lock.is_shared and lock.path == path]

    def _acquire(self, lock: Lock, terms: Tuple[Optional[str], int, Optional[float]]) -> bool:
        def lose(reason: str) -> None:
            self._held.discard(lock)
            lock.lost.set()
            if lock.on_lost is not None:
                self._dispatcher.post(functools.partial(lock.on_lost, reason))

        name, simultaneous, wait = terms
        granted: List[Keeper] = []

        async def work(core: Core) -> None:
            keeper = await lock._take(lambda left: core.acquire(lock.path, name, simultaneous, left, lose), wait)
            if keeper is not None:
                # From here on the keeper belongs to the lock, and this call has to undo it.
                lock._keeper = keeper
                self._held.add(lock)
                granted.append(keeper)

        engine = self._ready()
        try:
            engine.call(work)
            return lock.status()
        except BaseException:

            def undo_grant(_: Core) -> None:
                for keeper in granted:
                    self._give_up(lock, keeper)

            engine.post(undo_grant)
            raise

    def _give_up(self, lock: Lock, keeper: Keeper) -> None:
        """On the loop: the call that has taken or released a lock was abandoned."""
        if lock._keeper is keeper:
            lock._keeper = None
            self._held.discard(lock)
        keeper.release_later()

    def _release(self, lock: Lock, keeper: Keeper) -> bool:
        async def work(core: Core) -> bool:
            if lock._keeper is keeper:
                lock._keeper = None
                self._held.discard(lock)
            return await keeper.release()

        return self._ready().call(work)

    def _leave(self, lock: Lock, keeper: Optional[Keeper]) -> None:
        """The call that was to release a lock was abandoned, so the lock is released in the background."""
        engine = self._engine
        if engine is not None and keeper is not None:
            engine.post(lambda _: self._give_up(lock, keeper))
