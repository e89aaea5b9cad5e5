"""A client: its watches, its registrations, its locks. The threaded registry and the asyncio registry share it.

Belongs to one event loop, from creation to close. All state belongs to the loop. A part of it that other threads read
(`Watched.state`, `Keeper.until`) is replaced as a whole. `registrations`, `assemble`, `choice` and `values` are pure.
"""

import asyncio
import logging
import os
import socket
from dataclasses import dataclass, field
from typing import Any, Callable, Coroutine, Dict, List, Optional, Sequence, Tuple

import grpc

from rollcall import v1
from rollcall.cache import CacheFile
from rollcall.durable import Durable
from rollcall.errors import NoConnection, ServiceRegistryException
from rollcall.follow import Watched
from rollcall.link import Link
from rollcall.locks import Keeper, Locks, Terms
from rollcall.registrations import Lost, Wish
from rollcall.replicas import Connect, Replicas, check_size
from rollcall.session import Session
from rollcall.transport import Connection, Metadata
from rollcall.values import Data, State, from_value, is_same, now, to_dict, to_value

log = logging.getLogger(__name__)

# Time, in seconds, to wait at the end for work that is under way.
_GOODBYE = 2.0
# Maximum time, in seconds, that a write waits until the followed paths show it.
_SHOWN = 2.0


def _mark(held: Any) -> Any:
    """The mark by which one program's node differs from another's at the same path. None if the node has none, like
    nodes of other programs."""
    return held.get("created") if isinstance(held, dict) else None


def _default_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True)
class Settings:
    addresses: List[str]
    # Seconds: the time that a call may take before NoConnection, and the times that registrations and locks outlive
    # their client.
    timeout: float
    ttl: float
    lock_ttl: float
    lazy: bool = False
    cachefile: Optional[str] = None
    credentials: Optional[grpc.ChannelCredentials] = field(default=None, repr=False)
    metadata: Metadata = field(default=None, repr=False)
    name: str = field(default_factory=_default_name)

    def __post_init__(self) -> None:
        for what in ("ttl", "lock_ttl"):
            if not 1 <= getattr(self, what) <= 600:
                raise ValueError(f"{what} must be from 1 to 600 seconds")


class Core:
    """Calls `on_state` with True and False as the connection comes and goes, and `on_lost` with each lost
    registration."""

    def __init__(
        self,
        settings: Settings,
        on_state: Callable[[bool], None],
        on_lost: Callable[[Lost], None],
        connect: Connect = Connection,
    ) -> None:
        self.settings = settings
        self.replicas = Replicas(settings.addresses, settings.credentials, settings.metadata, connect)
        self.link = Link(self.replicas, on_state)
        self.locks = Locks(self.replicas, settings.timeout)
        self.session = Session(self.replicas, settings.ttl, settings.name, on_lost)
        self._durable = Durable(self.replicas, settings.timeout)
        self._cache = CacheFile(settings.cachefile) if settings.cachefile else None
        self._watched: Dict[str, Watched] = {}
        self._tasks: "List[asyncio.Task[Any]]" = []
        self._spawn(self.link.run(), "link")
        self._spawn(self.session.run(), "session")

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda task: self._ended(task, name))
        self._tasks.append(task)

    @staticmethod
    def _ended(task: "asyncio.Task[Any]", name: str) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("%s ended by a fault of this package", name, exc_info=task.exception())

    async def connected(self) -> None:
        """Waits for the first contact. Raises NoConnection."""
        if not await self.link.wait_up(self.settings.timeout):
            raise self.replicas.unreachable()

    async def close(self) -> None:
        """Ends the client. Registrations and places in queues go at once, if a replica can be reached."""
        await self.session.close()
        await self.locks.settle(_GOODBYE)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.replicas.close()
        if self._cache:
            self._cache.flush()

    # --- reading

    def watch(self, path: str, known: Optional[Watched] = None) -> Watched:
        """Follows a path from now on. `known` is the last state that another client of this program knew of it."""
        watched = self._watched.get(path)
        if watched is None:
            watched = self._watched[path] = Watched(path, known)
            watched.listen(self._remember)
            self._spawn(watched.run(self.replicas), f"watch of {path}")
        return watched

    def _remember(self, watched: Watched) -> None:
        if self._cache and watched.state is not None and watched.is_live:
            self._cache.keep(watched.path, watched.state)

    async def first(self, path: str) -> Watched:
        """Waits until a path is known. If no replica can be reached, the cache file has to do. The state is None if the
        file does not know the path either; a replica's answer will then be shown as soon as it comes.

        Raises Refused.
        """
        watched = self.watch(path)
        loop = asyncio.get_running_loop()
        # A caller that has waited for a connection before does not wait for it again with each path.
        deadline = (loop.time() if self.link.is_reachable else self.link.down_since) + self.settings.timeout
        while watched.state is None and watched.refusal is None:
            if not self.link.is_reachable and self.replicas.have_all_failed() and self._from_cache(watched):
                break
            if loop.time() >= deadline:
                self._from_cache(watched)
                break
            # No news comes when a replica fails, so look again from time to time.
            await watched.news.wait(min(0.05, deadline - loop.time()))
        if watched.state is None and watched.refusal is not None:
            # The next call asks the replica anew.
            self._watched.pop(path, None)
            raise watched.refusal
        return watched

    def _from_cache(self, watched: Watched) -> bool:
        state = self._cache.load(watched.path) if self._cache else None
        if state is None:
            return False
        log.info("%s is read from the cache file", watched.path)
        watched.show(state, is_live=False)
        return True

    async def until_children(self, path: str, patience: float) -> Watched:
        """Waits until a path has a child, for at most `patience` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        watched = await self.first(path)
        while not (watched.state and watched.state.children) and loop.time() < deadline:
            if watched.refusal is not None:
                raise watched.refusal
            await watched.news.wait(deadline - loop.time())
        return watched

    # --- writing

    async def register(self, path: str, data: Data) -> bool:
        """Registers a path, or gives a registration other data. Without data, a registration keeps its data.

        Returns False when a lazy client goes on in the background. Raises NoConnection, Refused; a new registration is
        then given up.

        Cancellation: a new registration is given up too.
        """
        registrations = self.session.registrations
        entry = registrations.entries.get(path)
        if entry is not None and entry.wish is Wish.LEAVE:
            entry = None
        fields = to_dict(data)
        if entry is not None and entry.is_registered and (not fields or fields == entry.data):
            return True
        if entry is not None and not fields:
            fields = entry.data
        is_new = entry is None or entry.generation is None
        answer = _Answer()
        # `created` is set here, once, so that a registration is resumed with the data that the node already has.
        value = to_value({"created": now(), **fields}, os.getpid())
        check_size(v1.SetRegistration(path=path, value=value))
        registrations.set(path, fields, value, answer.give)
        self.session.wake()
        try:
            if await answer.within(self.settings.timeout):
                return True
        except asyncio.CancelledError:
            if is_new:
                self.forget(path)
            raise
        if self.settings.lazy:
            log.warning("%s is not registered yet: %s", path, self._trouble())
            return False
        if is_new:
            self.forget(path)
        raise self._trouble()

    def _trouble(self) -> NoConnection:
        return self.replicas.unreachable("the replica waits for zookeeper" if self.link.is_reachable else "")

    def wish(self, path: str, data: Data, is_exclusive: bool = False) -> None:
        """Registers a path as soon as that is possible, and does not wait. With `is_exclusive`, only while no other
        client has it."""
        fields = to_dict(data)
        value = to_value({"created": now(), **fields}, os.getpid())
        self.session.registrations.set(path, fields, value, lambda error: None, is_exclusive)
        self.session.wake()

    def has(self, path: str) -> bool:
        """Whether a path is registered, or about to be."""
        entry = self.session.registrations.entries.get(path)
        return entry is not None and entry.wish is Wish.HOLD

    def forget(self, path: str) -> None:
        """Removes a registration, and does not wait."""
        self.session.registrations.forget(path)
        self.session.wake()

    async def unregister(self, path: str) -> bool:
        """Takes a registration down. Returns False when a lazy client takes it down later, in the background.

        Raises NoConnection when no replica is reached. The registration is removed as soon as one is.
        """
        answer = _Answer()
        self.session.registrations.unset(path, answer.give)
        self.session.wake()
        if await answer.within(self.settings.timeout):
            return True
        if not self.settings.lazy:
            raise self._trouble()
        log.warning("%s is not taken down yet: %s", path, self._trouble())
        return False

    async def set(self, path: str, data: Data, state: bool, is_durable: bool) -> bool:
        """Does the work of the verbs `set`, `set_node`, `set_data` and `unset`. Returns False when a lazy client goes
        on in the background. On True, the followed paths show the change."""
        if state and is_durable:
            fields = to_dict(data)
            await self._until_shown(path, fields, await self._durable.put(path, fields))
        elif state:
            if not await self.register(path, data):
                return False
            entry = self.session.registrations.entries.get(path)
            if entry is not None:
                await self._until_shown(path, entry.data, entry.transaction)
        else:
            entry = self.session.registrations.entries.get(path)
            transaction, ours = self._shown_of(path)
            if entry is None:
                await self._durable.delete(path)
            else:
                transaction = max(transaction, entry.transaction)
                ours.append(_mark(from_value(entry.value)))
                if not await self.unregister(path):
                    return False
            await self._until_shown(path, None, transaction, ours)
        return True

    def _followed(self, path: str) -> "List[Tuple[Watched, Optional[str]]]":
        """A path and its parent, as far as they are followed. The parent comes with the path's name in it."""
        parent, _, own = path.rpartition("/")
        pairs = ((path, None), (parent or "/", own))
        return [(self._watched[at], name) for at, name in pairs if at in self._watched]

    def _shown_of(self, path: str) -> Tuple[int, List[Any]]:
        """The shown state of a path: the transaction that created it, and the marks of its data."""
        made, marks = 0, []
        for watched, name in self._followed(path):
            state = watched.state
            if state is not None and name is None and state.stat is not None:
                made = state.stat.czxid
            elif state is not None and name in state.children:
                marks.append(_mark(state.children[name]))
        return made, marks

    async def _until_shown(
        self, path: str, fields: Optional[Dict[str, Any]], transaction: int, ours: Sequence[Any] = ()
    ) -> None:
        """Waits for a moment until a path and its parent, as far as they are followed, show the data that a transaction
        wrote. Without fields, waits until the node is gone that has one of the marks `ours`, or was created by the
        transaction or earlier. Others may have written since."""

        def shows(watched: Watched, name: Optional[str]) -> bool:
            state = watched.state
            if state is None or watched.refusal is not None or not watched.is_live:
                return True  # Nothing is shown that could be old.
            exists = state.stat is not None if name is None else name in state.children
            held = state.data if name is None else state.children.get(name)
            if fields is None:
                # Another client may have taken the path at once. For a child, a watch does not give the time of
                # creation.
                if name is not None:
                    return not exists or bool(ours) and _mark(held) not in ours
                return state.stat is None or 0 < transaction < state.stat.czxid
            return watched.revision >= transaction or exists and is_same(held, to_value(fields, 0), fields)

        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SHOWN
        for watched, name in self._followed(path):
            while not shows(watched, name) and loop.time() < deadline:
                await watched.news.wait(deadline - loop.time())

    # --- locks

    async def acquire(
        self,
        path: str,
        name: Optional[str],
        simultaneous: int,
        wait: Optional[float],
        on_lost: Callable[[str], None],
    ) -> Optional[Keeper]:
        """Takes a lock; None: others hold it. Raises NoConnection, Refused."""
        terms = Terms(path, name or self.settings.name, simultaneous, self.settings.lock_ttl)
        grant = await self.locks.acquire(terms, wait)
        return grant and Keeper(self.locks, terms, grant, on_lost)


class _Answer:
    """The answer to a request on a stream."""

    def __init__(self) -> None:
        self._future: "asyncio.Future[Optional[ServiceRegistryException]]" = asyncio.get_running_loop().create_future()

    def give(self, error: Optional[ServiceRegistryException]) -> None:
        if not self._future.done():
            self._future.set_result(error)

    async def within(self, seconds: float) -> bool:
        """Waits for the answer. Raises the error, if it is one."""
        done, _ = await asyncio.wait({self._future}, timeout=seconds)
        if not done:
            return False
        error = self._future.result()
        if error is not None:
            raise error
        return True


def node(path: str, state: Optional[State], names_only: bool) -> Any:
    """A node as nd_service_registry's `get` returns it; False when nothing is known."""
    if state is None:
        return False
    children: Any = list(state.children) if names_only else dict(state.children)
    return {"path": path, "data": state.data, "children": children, "stat": state.stat}
