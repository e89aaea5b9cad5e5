"""nd_service_registry's verbs for asyncio, as coroutines.

    async with rollcall.aio.ServiceRegistry("localhost:7700") as registry:
        await registry.set_node("/services/ssh/server1:22", data={"foo": "bar"})
        async with registry.get_lock("/jobs/nightly") as held:
            ...

A registry belongs to the event loop in which it was started. It is not for a process that forks while the registry is
started: fork first, as asyncio asks anyway.
"""

import asyncio
import contextlib
import inspect
import logging
import os
import weakref
from types import TracebackType
from typing import Any, Callable, Coroutine, Dict, List, Optional, Sequence, Set, Type, Union

import grpc

from rollcall.core import Core, Settings, node
from rollcall.errors import NoConnection, ReadOnly, Refused
from rollcall.follow import Watched
from rollcall.greenlets import check_threads
from rollcall.lock_verbs import LOCK_WAIT
from rollcall.locks import Keeper
from rollcall.registrations import Lost
from rollcall.registry import SERVER, TIMEOUT, DataNode, EphemeralNode, NodeType
from rollcall.replicas import addresses, clean
from rollcall.transport_aio import AioConnection
from rollcall.values import Data

log = logging.getLogger(__name__)

# A function or a coroutine function.
Callback = Callable[..., Any]


class ServiceRegistry:
    """Like `rollcall.ServiceRegistry`, with the same arguments. It connects with `start`, or `async with`. Callbacks
    run on the loop, and may be coroutine functions.

    Cancellation: a cancelled call is no longer waited for; a write may be made all the same. A place in a lock's queue
    is given up.
    """

    def __init__(
        self,
        server: Union[str, Sequence[str]] = SERVER,
        readonly: bool = False,
        timeout: float = TIMEOUT,
        cachefile: Optional[str] = None,
        lazy: bool = False,
        *,
        token: Optional[str] = None,
        tls: Optional[grpc.ChannelCredentials] = None,
        ttl: float = 15,
        lock_ttl: float = 30,
        names_only: bool = False,
        on_lost: Optional[Callback] = None,
        name: Optional[str] = None,
    ) -> None:
        options: Dict[str, Any] = {"name": name} if name else {}
        self._settings = Settings(
            addresses=addresses(server),
            timeout=timeout,
            ttl=ttl,
            lock_ttl=lock_ttl,
            lazy=lazy,
            cachefile=cachefile,
            credentials=tls,
            metadata=(("authorization", f"Bearer {token}"),) if token else None,
            **options,
        )
        self._readonly = readonly
        self._names_only = names_only
        self._on_lost = on_lost
        self._core: Optional[Core] = None
        self._pid = 0
        # The followed paths, as the present core follows them.
        self._watched: Dict[str, Watched] = {}
        self._subscriptions: Dict[str, "List[_Subscription]"] = {}
        self._registered: Dict[str, Data] = {}
        # The locks that are held, and those of `acquire_lock`, which are forgotten unless they are held.
        self._held: "Set[Lock]" = set()
        self._own_locks: "weakref.WeakValueDictionary[str, Lock]" = weakref.WeakValueDictionary()
        self._state_callbacks: List[Callback] = []
        self._running: "Set[asyncio.Task[Any]]" = set()

    async def __aenter__(self) -> "ServiceRegistry":
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connects, and restores the registrations and watches from before `stop`. Raises NoConnection, unless lazy."""
        if self._core is not None:
            return
        check_threads()
        self._pid = os.getpid()
        core = self._core = Core(self._settings, self._turned, self._lost, AioConnection)
        for path in list(self._watched):
            self._follow(core, path)
        for path, data in self._registered.items():
            core.wish(path, data)
        if not self._settings.lazy:
            try:
                await core.connected()
            except BaseException:
                self._core = None
                await self._finish(core.close())
                raise

    async def stop(self) -> None:
        """Disconnects. Registrations go at once, and locks are released. Cancellation: it goes on in the background."""
        core, self._core = self._core, None
        if core is None:
            return
        await self._finish(self._close(core))

    async def _close(self, core: Core) -> None:
        for lock in list(self._held):
            await lock.release()
        await core.close()
        self._tell(self._state_callbacks, False)

    async def _finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs the work to its end, even if the caller is cancelled."""
        await asyncio.shield(self._spawn(work))

    async def rebuild(self) -> None:
        """Closes everything, and makes it anew."""
        await self.stop()
        await self.start()

    def get_state(self, callback: Optional[Callback] = None) -> bool:
        """Whether a replica can be reached, and ZooKeeper through it. The callback is called with that now, and again
        with each change."""
        is_up = self._core is not None and self._core.link.is_up
        if callback is not None and callback not in self._state_callbacks:
            self._state_callbacks.append(callback)
            self._tell([callback], is_up)
        return is_up

    def _ready(self) -> Core:
        if self._core is None:
            raise NoConnection("the registry is stopped")
        if self._pid != os.getpid():
            raise NoConnection("the registry was started before the process forked")
        return self._core

    def _turned(self, is_up: bool) -> None:
        self._tell(self._state_callbacks, is_up)

    def _tell(self, callbacks: List[Callback], *arguments: Any) -> None:
        for callback in callbacks:
            self._spawn(_run(callback, *arguments))

    def _spawn(self, work: Any) -> "asyncio.Task[Any]":
        task: "asyncio.Task[Any]" = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    # --- writing

    async def set(self, node: str, data: Data = None, state: bool = True, type: NodeType = EphemeralNode) -> bool:
        """Like `rollcall.ServiceRegistry.set`."""
        if self._readonly:
            raise ReadOnly("In read-only mode, no writes allowed")
        node = clean(node)
        if not state:
            self._registered.pop(node, None)
        core, is_durable = self._ready(), type is DataNode
        is_done = await core.set(node, data, state, is_durable)
        if state and not is_durable and core.has(node) and (data or node not in self._registered):
            self._registered[node] = data
        return is_done

    async def set_node(self, node: str, data: Data = None, state: bool = True) -> bool:
        """Registers a path for as long as this registry is started."""
        return await self.set(node, data, state, EphemeralNode)

    async def set_data(self, node: str, data: Data = None, state: bool = True) -> bool:
        """Writes a durable node."""
        return await self.set(node, data, state, DataNode)

    async def unset(self, node: str, type: NodeType = DataNode) -> bool:
        """Takes down a registration of this registry, or deletes a durable node."""
        return await self.set(node, None, False, type)

    def _lost(self, lost: Lost) -> None:
        self._registered.pop(lost.path, None)
        if self._on_lost is not None:
            self._tell([self._on_lost], lost.path, lost.reason)

    # --- reading

    async def get(self, path: str, callback: Optional[Callback] = None, wait: Optional[float] = None) -> Any:
        """Like `rollcall.ServiceRegistry.get`. The first call of a callback has ended when `get` returns.

        Raises NoConnection, Refused.
        """
        core, path = self._ready(), clean(path)
        if path not in self._watched:
            self._follow(core, path)
        try:
            watched = await (core.until_children(path, wait) if wait else core.first(path))
        except Refused:
            self._watched.pop(path, None)
            raise
        found = node(path, watched.state, self._names_only)
        subscriptions = self._subscriptions.setdefault(path, [])
        if callback is not None and all(known.callback != callback for known in subscriptions):
            subscription = _Subscription(callback)
            subscriptions.append(subscription)
            if watched.state is not None:
                await subscription.run(watched.version, found)
        if watched.state is None:
            raise NoConnection(f"nothing is known of {path}: {core.replicas.unreachable()}")
        return found

    async def add_callback(self, path: str, callback: Callback) -> None:
        """Calls the callback with the node as `get` returns it: once now, or as soon as the node is known, and once for
        each change."""
        self._ready()
        with contextlib.suppress(NoConnection):
            await self.get(path, callback)

    def _follow(self, core: Core, path: str) -> None:
        watched = self._watched[path] = core.watch(path, self._watched.get(path))
        watched.listen(self._changed)

    def _changed(self, watched: Watched) -> None:
        for subscription in self._subscriptions.get(watched.path, ()):
            self._spawn(subscription.run(watched.version, node(watched.path, watched.state, self._names_only)))

    # --- locks

    def get_lock(
        self,
        path: str,
        name: Optional[str] = None,
        simultaneous: int = 1,
        wait: Optional[float] = LOCK_WAIT,
        on_lost: Optional[Callback] = None,
    ) -> "Lock":
        """A lock, to be taken with `async with` or `acquire`. Each call creates another one."""
        return Lock(self, clean(path), name, simultaneous, wait, on_lost)

    async def acquire_lock(
        self, path: str, name: Optional[str] = None, simultaneous: int = 1, wait: Optional[float] = LOCK_WAIT
    ) -> bool:
        """Takes a lock for this registry, whichever task calls, and keeps it until `release_lock`. Returns whether this
        registry holds it."""
        path = clean(path)
        lock = self._own_locks.get(path)
        if lock is None or (lock._terms != (name, simultaneous, wait) and not lock.status()):
            lock = self._own_locks[path] = self.get_lock(path, name, simultaneous, wait)
        async with lock._taking:
            return await lock.acquire()

    async def release_lock(self, path: str) -> bool:
        """Releases the lock that `acquire_lock` has taken on the path. Returns True when the lock is no longer held."""
        lock = self._own_locks.get(clean(path))
        if lock is not None:
            await lock.release()
        return lock is None or not lock.status()


class Lock:
    """A lock on a path: from `ServiceRegistry.get_lock`."""

    def __init__(
        self,
        registry: ServiceRegistry,
        path: str,
        name: Optional[str],
        simultaneous: int,
        wait: Optional[float],
        on_lost: Optional[Callback],
    ) -> None:
        self.path = path
        self._registry = registry
        self._terms = (name, simultaneous, wait)
        self._on_lost = on_lost
        self._keeper: Optional[Keeper] = None
        # Held by a call of `acquire_lock`.
        self._taking = asyncio.Lock()

    async def acquire(self) -> bool:
        """Waits until the lock is held, for `wait` seconds at most. Raises NoConnection, Refused."""
        if not self.status():
            name, simultaneous, wait = self._terms
            core = self._registry._ready()
            self._keeper = await core.acquire(self.path, name, simultaneous, wait, self._lose)
            if self._keeper is not None:
                self._registry._held.add(self)
        return self.status()

    async def release(self) -> bool:
        """Releases the lock. False: it was no longer held, or no replica could be reached."""
        keeper, self._keeper = self._keeper, None
        self._registry._held.discard(self)
        return keeper is not None and await keeper.release()

    def status(self) -> bool:
        """Whether the lock is held, as far as is known now."""
        keeper = self._keeper
        return keeper is not None and keeper.lost is None and asyncio.get_running_loop().time() < keeper.until

    @property
    def fencing_token(self) -> Optional[int]:
        """Rises with every grant of this path's lock; None while the lock is not held."""
        return self._keeper.token if self._keeper is not None and self.status() else None

    def _lose(self, reason: str) -> None:
        self._registry._held.discard(self)
        if self._on_lost is not None:
            self._registry._tell([self._on_lost], reason)

    async def __aenter__(self) -> bool:
        return await self.acquire()

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await self.release()


class _Subscription:
    """A callback that gets each version once, in order, one at a time."""

    def __init__(self, callback: Callback) -> None:
        self.callback = callback
        self._seen = 0
        self._running = asyncio.Lock()

    async def run(self, version: int, what: Any) -> None:
        async with self._running:
            if version > self._seen:
                self._seen = version
                await _run(self.callback, what)


async def _run(callback: Callback, *arguments: Any) -> None:
    try:
        outcome = callback(*arguments)
        if inspect.isawaitable(outcome):
            await outcome
    except Exception:
        log.exception("a callback raised")
