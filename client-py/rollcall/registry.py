"""ServiceRegistry: nd_service_registry's verbs, for programs with threads."""

import asyncio
import atexit
import functools
import logging
import os
import threading
import weakref
from typing import Any, Callable, Coroutine, Dict, List, Optional, Sequence, Set, Type, TypeVar, Union

import grpc

from rollcall import forking
from rollcall.core import Core, Settings, node
from rollcall.dispatch import Dispatcher, Subscription, guarded
from rollcall.engine import Engine
from rollcall.errors import NoConnection, ReadOnly, Refused
from rollcall.follow import Watched
from rollcall.lock import Lock, OnLost
from rollcall.locks import Keeper
from rollcall.registrations import Lost
from rollcall.replicas import addresses, clean
from rollcall.values import Data, to_dict

log = logging.getLogger(__name__)

T = TypeVar("T")

SERVER = "localhost:7700"
TIMEOUT = 5  # seconds
LOCK_WAIT = 300  # seconds
# How long, in seconds, a forked child waits before it connects for its callbacks' sake: one that runs another program,
# or ends, at once never does.
_CHILD_CONNECTS = 0.2

Callback = Callable[[Any], Any]


class EphemeralNode:
    """The `type` of what goes with its program."""


class DataNode:
    """The `type` of what stays."""


NodeType = Union[Type[EphemeralNode], Type[DataNode]]


class _Path:
    """A path that is followed, over any number of engines."""

    def __init__(self) -> None:
        self.watched: Optional[Watched] = None
        self.subscriptions: List[Subscription] = []


class ServiceRegistry:
    """A registry of services, a watch on them, and locks, through any of some Rollcall replicas.

    Every method may be called from any thread, and in a forked child. Nothing is lost when a replica dies or restarts:
    watches go on where they were, registrations and locks are resumed at another.

    Args:
        server: `HOST:PORT`; several replicas separated by commas, or as a list.
        readonly: whether `set` and its kin raise ReadOnly.
        timeout: seconds to wait for an answer, until NoConnection.
        cachefile: a JSON file with the last known lists; `get` reads it when nothing can be reached.
        lazy: do not wait for the connection, and do not raise when there is none: registrations are made, and callbacks
            called, as soon as there is one.
        username, password, acl: kept, and without effect: nodes are open to everybody. See `token`.
        rate_limit_time, rate_limit_calls: without effect.
        token: sent with each call as `authorization: Bearer …`.
        tls: grpc.ssl_channel_credentials(…), to encrypt.
        ttl: seconds that registrations outlive this program when it dies without a goodbye, 1 to 600.
        lock_ttl: the same for locks.
        names_only: whether `children` is a list of names, as in nd_service_registry 1.x, and not a dict of their data.
        on_lost: called with a path and a reason when a registration is lost for good, as when another takes it over.
        name: who we are, for logs and for others who wait for our locks. Default: the host's name and the process id.

    Raises:
        NoConnection: no replica answered in time, and not `lazy`.
        ValueError: an argument can't be.
    """

    def __init__(
        self,
        server: Union[str, Sequence[str]] = SERVER,
        readonly: bool = False,
        timeout: float = TIMEOUT,
        cachefile: Optional[str] = None,
        lazy: bool = False,
        username: Optional[str] = None,
        password: Optional[str] = None,
        acl: Any = None,
        rate_limit_time: Optional[float] = 2,
        rate_limit_calls: Optional[int] = 50,
        *,
        token: Optional[str] = None,
        tls: Optional[grpc.ChannelCredentials] = None,
        ttl: float = 15,
        lock_ttl: float = 30,
        names_only: bool = False,
        on_lost: Optional[Callable[[str, str], None]] = None,
        name: Optional[str] = None,
    ) -> None:
        self._arguments: Dict[str, Any] = {
            "addresses": addresses(server),
            "timeout": timeout,
            "ttl": ttl,
            "lock_ttl": lock_ttl,
            "lazy": lazy,
            "cachefile": cachefile,
            "credentials": tls,
            "metadata": (("authorization", f"Bearer {token}"),) if token else None,
            **({"name": name} if name else {}),
        }
        Settings(**self._arguments)
        self._readonly = readonly
        self._lazy = lazy
        self._username = username
        self._password = password
        self._names_only = names_only
        self._on_lost = on_lost
        if username or password or acl is not None:
            log.warning("username, password and acl have no effect: nodes are open to everybody")
        self._mutex = threading.RLock()
        self._engine: Optional[Engine] = None
        self._is_stopped = False
        self._dispatcher = Dispatcher()
        self._paths: Dict[str, _Path] = {}
        # What is registered, for `start` and `rebuild`.
        self._registered: Dict[str, Data] = {}
        self._own_locks = threading.local()
        self._locks: "weakref.WeakSet[Lock]" = weakref.WeakSet()
        self._held: Set[Lock] = set()
        self._state_callbacks: List[Callback] = []
        forking.protect(self)
        _at_exit.add(self)
        self._connect()

    # --- the connection

    def _connect(self) -> Engine:
        """Starts the thread, and waits for a replica unless we are lazy. Raises NoConnection."""
        engine = self._start()
        if not self._lazy:
            try:
                engine.call(lambda core: core.connected())
            except NoConnection:
                with self._mutex:
                    self._engine = None
                engine.close()
                raise
        return engine

    def _start(self) -> Engine:
        with self._mutex:
            if self._engine is None:
                self._engine = Engine(self._make)
            return self._engine

    def _make(self) -> Core:
        """On the loop."""
        core = Core(Settings(**self._arguments), self._turned, self._lost)
        for path, followed in self._paths.items():
            self._follow(core, path, followed)
        for path, data in self._registered.items():
            core.wish(path, data)
        return core

    def _ready(self) -> Engine:
        engine = self._engine
        if engine is not None:
            return engine
        if self._is_stopped:
            raise NoConnection("the registry is stopped")
        return self._start()

    def _call(self, work: Callable[[Core], Coroutine[Any, Any, T]]) -> T:
        return self._ready().call(work)

    def _now(self) -> float:
        engine = self._engine
        return engine.now() if engine is not None else float("inf")

    def start(self) -> None:
        """Connects again after `stop`; what was registered and watched is again. Raises NoConnection."""
        self._is_stopped = False
        self._connect()

    def stop(self) -> None:
        """Disconnects: registrations go at once, locks are given back. `get` goes on telling what was known last."""
        self._is_stopped = True
        # A fork waits for the end of this.
        with self._mutex:
            engine, self._engine = self._engine, None
            held, self._held = list(self._held), set()
            if engine is None:
                return
            keepers = [lock._keeper for lock in held if lock._keeper is not None]
            try:
                engine.call(lambda _: _release_all(keepers))
            finally:
                engine.close()
        self._tell_state(False)

    def rebuild(self) -> None:
        """Makes everything anew: connections, watches, what this process has registered. Forked children need not."""
        self.stop()
        self.start()

    def get_state(self, callback: Optional[Callback] = None) -> bool:
        """Whether a replica can be reached. The callback is called with that now, and whenever it changes."""
        engine = None if self._is_stopped else self._ready()
        is_up = engine is not None and engine.core.link.is_up
        if callback is not None and callback not in self._state_callbacks:
            self._state_callbacks.append(callback)
            guarded(lambda: callback(is_up))
        return is_up

    def _turned(self, is_up: bool) -> None:
        (log.info if is_up else log.warning)("rollcall is %s", "connected" if is_up else "out of reach")
        self._tell_state(is_up)

    def _tell_state(self, is_up: bool) -> None:
        for callback in list(self._state_callbacks):
            self._dispatcher.post(functools.partial(callback, is_up))

    # --- credentials

    def username(self) -> Optional[str]:
        """What was set, here or at the start; without effect."""
        return self._username

    def set_username(self, username: Optional[str]) -> None:
        """Keeps it; without effect."""
        self._username = username

    def password(self) -> Optional[str]:
        """What was set, here or at the start; without effect."""
        return self._password

    def set_password(self, password: Optional[str]) -> None:
        """Keeps it; without effect."""
        self._password = password

    # --- writing

    def set(self, node: str, data: Data = None, state: bool = True, type: NodeType = EphemeralNode) -> bool:
        """Registers a path, or takes it down with `state=False`. Returns True.

        The node holds `data`, and the keys `pid` and `created`; a string stands under `string_value`. A registration
        that is made again without data keeps those that it has.

        Raises:
            ReadOnly: this registry, or the server, takes no writes.
            NoConnection: no answer in time. A new registration is given up then; one that stands is changed as soon as
                that is possible. A lazy registry returns, and registers as soon as that is possible.
            Refused: see `reason`: INVALID_PATH, NOT_EPHEMERAL, VALUE_TOO_LARGE, HAS_REGISTRATIONS.
        """
        if self._readonly:
            raise ReadOnly("In read-only mode, no writes allowed")
        is_durable = type is DataNode
        node = clean(node)
        to_dict(data)
        if not state:
            self._registered.pop(node, None)

        async def work(core: Core) -> None:
            # On the loop, where a loss that comes later takes it out again.
            if await core.set(node, data, state, is_durable) and (data or node not in self._registered):
                self._registered[node] = data

        self._call(work)
        return True

    def set_node(self, node: str, data: Data = None, state: bool = True) -> bool:
        """Registers a path for as long as this program lives: `set` with `type=EphemeralNode`."""
        return self.set(node, data, state, EphemeralNode)

    def set_data(self, node: str, data: Data = None, state: bool = True) -> bool:
        """Writes a durable node: `set` with `type=DataNode`."""
        return self.set(node, data, state, DataNode)

    def unset(self, node: str, type: NodeType = DataNode) -> bool:
        """Takes a registration of ours down, or deletes a durable node. That there is none is fine."""
        return self.set(node, None, False, type)

    def _lost(self, lost: Lost) -> None:
        self._registered.pop(lost.path, None)
        on_lost = self._on_lost
        if on_lost is not None:
            self._dispatcher.post(lambda: on_lost(lost.path, lost.reason))

    # --- reading

    def get(self, path: str, callback: Optional[Callback] = None, wait: Optional[float] = None) -> Any:
        """A node as it is now: `{'path', 'data', 'children': {name: data}, 'stat'}`; do not change what is in it.

        The path is followed from the first call on: later ones answer from memory, and the callback is called with the
        same dict once now and once for each change. `wait` holds the answer, and the callback, back until there is a
        child, for so many seconds at most.

        Returns False when nothing is known: no replica can be reached, and no cache file knows the path; the callback
        is called later then.

        Raises Refused when the path can't be read.
        """
        path = clean(path)
        followed = self._paths.get(path)
        if self._is_stopped:
            with self._mutex:
                followed = self._paths.setdefault(path, _Path())
        elif followed is None or followed.watched is None or self._engine is None:
            followed = self._open(path)
        watched = followed.watched
        if watched is not None and not self._is_stopped:
            try:
                if wait and not (watched.state and watched.state.children):
                    self._call(lambda core: core.until_children(path, wait))
                elif watched.state is None:
                    self._call(lambda core: core.first(path))
            except Refused:
                followed.watched = None
                raise
        if callback is not None:
            self._subscribe(path, followed, callback)
        return node(path, watched.state if watched else None, self._names_only)

    def add_callback(self, path: str, callback: Callback) -> None:
        """Has it called with the node as `get` returns it, once now and once for each change. The same callback is
        added once."""
        self.get(path, callback)

    def _open(self, path: str) -> _Path:
        engine = self._ready()
        with self._mutex:
            followed = self._paths.setdefault(path, _Path())
        engine.do(lambda core: self._follow(core, path, followed))
        return followed

    def _follow(self, core: Core, path: str, followed: _Path) -> None:
        """On the loop: has a core follow a path, unless it does."""
        watched = core.watch(path, followed.watched)
        if followed.watched is watched:
            return
        followed.watched = watched
        watched.listen(lambda watched: self._changed(followed, watched))

    def _changed(self, followed: _Path, watched: Watched) -> None:
        for subscription in followed.subscriptions:
            what = node(watched.path, watched.state, self._names_only)
            subscription.later(self._dispatcher, watched.version, what)

    def _subscribe(self, path: str, followed: _Path, callback: Callback) -> None:
        with self._mutex:
            if any(known.callback == callback for known in followed.subscriptions):
                return
            subscription = Subscription(callback)
            followed.subscriptions = [*followed.subscriptions, subscription]
        watched = followed.watched
        if watched is not None and watched.state is not None:
            # The version first: a state that is newer than it says is told once more at worst.
            version = watched.version
            subscription.run(version, node(path, watched.state, self._names_only))

    # --- locks

    def get_lock(
        self,
        path: str,
        name: Optional[str] = None,
        simultaneous: int = 1,
        wait: Optional[float] = LOCK_WAIT,
        on_lost: Optional[OnLost] = None,
    ) -> Lock:
        """A lock to be taken, with `with` or `acquire`. A thread gets the same one for the same path.

        Args:
            path: where it is; all who use it must say the same `simultaneous`.
            name: who we are, for others to see.
            simultaneous: how many may hold it at once.
            wait: seconds that `acquire` waits; 0: not at all; None: for ever.
            on_lost: called with the reason if the lock is lost while it is held.
        """
        path = clean(path)
        own: Dict[str, Lock] = self._own_locks.__dict__
        lock = own.get(path)
        if lock is None or (lock.terms != (name, simultaneous, wait, on_lost) and not lock.status()):
            lock = own[path] = Lock(self, path, name, simultaneous, wait, on_lost)
            self._locks.add(lock)
        return lock

    def acquire_lock(
        self, path: str, name: Optional[str] = None, simultaneous: int = 1, wait: Optional[float] = LOCK_WAIT
    ) -> bool:
        """Takes a lock and keeps it until `release_lock`. Returns whether it is ours."""
        return self.get_lock(path, name, simultaneous, wait).acquire()

    def release_lock(self, path: str) -> bool:
        """Gives a lock back that this process holds on the path: this thread's, or else any. Returns True when it holds
        none."""
        path = clean(path)
        own: Dict[str, Lock] = self._own_locks.__dict__
        with self._mutex:
            held = [lock for lock in self._held if lock.path == path]
        lock = own.get(path) if own.get(path) in held else next(iter(held), None)
        if lock is not None:
            lock.release()
        return lock is None or not lock.status()

    def _acquire(self, lock: Lock, name: Optional[str], simultaneous: int, wait: Optional[float]) -> Optional[Keeper]:
        def lose(reason: str) -> None:
            lock.lost.set()
            if lock.on_lost is not None:
                self._dispatcher.post(functools.partial(lock.on_lost, reason))

        keeper = self._call(lambda core: core.acquire(lock.path, name, simultaneous, wait, lose))
        if keeper is not None:
            with self._mutex:
                self._held.add(lock)
        return keeper

    def _release(self, lock: Lock, keeper: Keeper) -> bool:
        with self._mutex:
            self._held.discard(lock)
        return self._call(functools.partial(_release, keeper))

    # --- forks: see forking.py

    def _park(self) -> bool:
        """Just before a fork; says whether there is anything to go on with after it."""
        self._mutex.acquire()
        if self._engine is None:
            self._mutex.release()
            return False
        self._engine.park()
        return True

    def _go_on(self) -> None:
        engine = self._engine
        self._mutex.release()
        if engine is not None:
            engine.go_on()

    def _forked(self) -> None:
        """In the child: the lists and callbacks stay, the rest is our parent's."""
        # Kept, so that nothing of it is ever taken down here.
        _abandoned.append((self._engine, self._dispatcher))
        self._mutex = threading.RLock()
        self._engine = None
        self._dispatcher = Dispatcher()
        self._registered = {}
        self._own_locks = threading.local()
        self._held = set()
        for lock in self._locks:
            lock._forget()
        for followed in self._paths.values():
            followed.subscriptions = [known.copy() for known in followed.subscriptions]
        if not self._is_stopped and any(followed.subscriptions for followed in self._paths.values()):
            timer = threading.Timer(_CHILD_CONNECTS, self._connect_in_child, [os.getpid()])
            timer.daemon = True
            timer.start()

    def _connect_in_child(self, pid: int) -> None:
        if os.getpid() == pid and not self._is_stopped:
            self._start()


async def _release(keeper: Keeper, _: Core) -> bool:
    return await keeper.release()


async def _release_all(keepers: List[Keeper]) -> None:
    await asyncio.gather(*(keeper.release() for keeper in keepers))


# What a fork has left of its parent's engines.
_abandoned: List[Any] = []
_at_exit: "weakref.WeakSet[ServiceRegistry]" = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for registry in list(_at_exit):
        guarded(registry.stop)
