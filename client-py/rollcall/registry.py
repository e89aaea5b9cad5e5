"""ServiceRegistry: nd_service_registry's verbs, for programs with threads."""

import atexit
import contextlib
import functools
import logging
import os
import threading
import weakref
from typing import Any, Callable, Coroutine, Dict, List, Optional, Sequence, Type, TypeVar, Union

import grpc

from rollcall import forking
from rollcall.core import Core, Settings, node
from rollcall.dispatch import Dispatcher, Subscription, guarded
from rollcall.engine import Engine
from rollcall.errors import NoConnection, ReadOnly, Refused, ServiceRegistryException
from rollcall.follow import Watched
from rollcall.heir import Heir
from rollcall.lock_verbs import LockVerbs
from rollcall.registrations import Lost
from rollcall.replicas import addresses, clean
from rollcall.values import Data, to_dict

log = logging.getLogger(__name__)

T = TypeVar("T")

SERVER = "localhost:7700"
TIMEOUT = 5  # seconds

Callback = Callable[[Any], Any]


class EphemeralNode:
    """The `type` of a node that goes with its program."""


class DataNode:
    """The `type` of a node that stays."""


NodeType = Union[Type[EphemeralNode], Type[DataNode]]


class _Path:
    """A path that is followed, over any number of engines."""

    def __init__(self) -> None:
        self.watched: Optional[Watched] = None
        self.subscriptions: List[Subscription] = []


class ServiceRegistry(LockVerbs):
    """A registry of services, a watch on them, and locks, through any of several Rollcall replicas.

    Every method may be called from any thread, and in a forked child. Nothing is lost when a replica dies or restarts:
    watches go on where they were, and registrations and locks are resumed at another replica.

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
        name: the name in logs and for others who wait for this registry's locks. Default: the host's name and the
            process id.

    Raises:
        NoConnection: no replica answered in time, and not `lazy`.
        ValueError: an argument is not valid.
    """

    # Whether `get` returns False where it would raise NoConnection.
    _answers_false = False

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
        super().__init__()
        self._mutex = threading.RLock()
        self._engine: Optional[Engine] = None
        self._is_stopped = False
        # The process that this registry belongs to.
        self._pid = os.getpid()
        # The process that has forked it.
        self._parent = 0
        self._dispatcher = Dispatcher()
        self._paths: Dict[str, _Path] = {}
        # The registrations, for `start` and `rebuild`.
        self._registered: Dict[str, Data] = {}
        # The registrations of the process that forked this one, for when that process is gone: see heir.py.
        self._inherited: Dict[str, Data] = {}
        self._state_callbacks: List[Callback] = []
        forking.protect(self)
        _at_exit.add(self)
        self._connect()

    # --- the connection

    def _connect(self) -> Engine:
        """Starts the thread, and waits for a replica unless the registry is lazy. Raises NoConnection."""
        try:
            engine = self._start()
            if not self._lazy:
                engine.call(lambda core: core.connected())
            return engine
        except BaseException as error:
            if self._engine is not None:
                self._engine.end([])
                if isinstance(error, NoConnection):
                    self._engine.join()
                self._engine = None
            raise

    def _start(self) -> Engine:
        with self._mutex:
            if self._engine is None or self._engine.is_ending:
                engine = Engine(self._make)
                try:
                    engine.start()
                    self._engine = engine
                except BaseException:
                    engine.leave()
                    raise
            return self._engine

    def _adopt(self) -> None:
        """Does the work that follows any fork, if the process was forked and Python does not know of it."""
        if self._pid != os.getpid():
            forking.adopt()

    def _make(self) -> Core:
        """Creates a core, on the loop."""
        core = Core(Settings(**self._arguments), self._turned, self._lost)
        for path, followed in self._paths.items():
            self._follow(core, path, followed)
        for path, data in self._registered.items():
            core.wish(path, data)
        return core

    def _ready(self) -> Engine:
        self._adopt()
        engine = self._engine
        if engine is not None and not engine.is_ending:
            return engine
        if self._is_stopped:
            raise NoConnection("the registry is stopped")
        return self._start()

    def _call(self, work: Callable[[Core], Coroutine[Any, Any, T]]) -> T:
        return self._ready().call(work)

    def start(self) -> None:
        """Connects again after `stop`, and restores registrations and watches. Raises NoConnection."""
        self._adopt()
        self._is_stopped = False
        self._connect()
        Heir(self, self._parent).begin()

    def stop(self) -> None:
        """Disconnects. Registrations go at once, and locks are released. `get` goes on returning the last known
        state."""
        self._adopt()
        self._is_stopped = True
        # A fork waits for the end of this.
        with self._mutex:
            engine = self._engine
            if engine is None:
                return
            engine.end([lock._keeper for lock in list(self._held) if lock._keeper is not None])
            self._held = set()
            engine.join()
            self._engine = None
        self._tell_state(False)

    def rebuild(self) -> None:
        """Makes everything anew: connections, watches, and this process's registrations. Forked children need not call
        it."""
        self.stop()
        self.start()

    def get_state(self, callback: Optional[Callback] = None) -> bool:
        """Whether a replica can be reached, and ZooKeeper through it. The callback is called with that now, and again
        with each change."""
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
        """The user name that was given, here or at the start; without effect."""
        return self._username

    def set_username(self, username: Optional[str]) -> None:
        """Keeps the user name; without effect."""
        self._username = username

    def password(self) -> Optional[str]:
        """The password that was given, here or at the start; without effect."""
        return self._password

    def set_password(self, password: Optional[str]) -> None:
        """Keeps the password; without effect."""
        self._password = password

    # --- writing

    def set(self, node: str, data: Data = None, state: bool = True, type: NodeType = EphemeralNode) -> bool:
        """Registers a path, or takes it down with `state=False`. Returns True when that is done.

        The node holds `data`, and the keys `pid` and `created`; a string is stored under `string_value`. A registration
        that is made again without data keeps its data.

        A lazy registry returns False, and logs a WARNING, when no replica can be reached, or none that has ZooKeeper.
        It registers the path, or takes it down, as soon as that is possible.

        Raises:
            ReadOnly: this registry, or the server, takes no writes.
            NoConnection: no answer in time. A new registration is then given up; an existing one is changed as soon as
                that is possible.
            Refused: see `reason`: INVALID_PATH, NOT_EPHEMERAL, VALUE_TOO_LARGE, HAS_REGISTRATIONS.
        """
        if self._readonly:
            raise ReadOnly("In read-only mode, no writes allowed")
        is_durable = type is DataNode
        node = clean(node)
        to_dict(data)
        self._adopt()
        self._inherited.pop(node, None)
        if not state:
            self._registered.pop(node, None)
        is_new: List[bool] = []

        async def work(core: Core) -> bool:
            is_new.append(state and not is_durable and not core.has(node))
            is_done = await core.set(node, data, state, is_durable)
            # Set on the loop, so that a later loss removes it again.
            if state and not is_durable and core.has(node) and (data or node not in self._registered):
                self._registered[node] = data
            return is_done

        def undo(core: Core) -> None:
            if any(is_new):
                self._registered.pop(node, None)
                core.forget(node)

        engine = self._ready()
        try:
            return engine.call(work)
        except ServiceRegistryException:
            raise
        except BaseException:
            engine.post(undo)
            raise

    def set_node(self, node: str, data: Data = None, state: bool = True) -> bool:
        """Registers a path for as long as this program lives: `set` with `type=EphemeralNode`."""
        return self.set(node, data, state, EphemeralNode)

    def set_data(self, node: str, data: Data = None, state: bool = True) -> bool:
        """Writes a durable node, unless it holds the same data: `set` with `type=DataNode`."""
        return self.set(node, data, state, DataNode)

    def unset(self, node: str, type: NodeType = DataNode) -> bool:
        """Takes down a registration of this registry, or deletes a durable node. It is no error if there is none.
        Returns as `set` does."""
        return self.set(node, None, False, type)

    def _lost(self, lost: Lost) -> None:
        self._registered.pop(lost.path, None)
        on_lost = self._on_lost
        if on_lost is not None:
            self._dispatcher.post(lambda: on_lost(lost.path, lost.reason))

    # --- reading

    def get(self, path: str, callback: Optional[Callback] = None, wait: Optional[float] = None) -> Any:
        """The present node: `{'path', 'data', 'children': {name: data}, 'stat'}`; do not change anything in it.

        The path is followed from the first call on: later calls answer from memory, and the callback is called with the
        same dict once now and once for each change. `wait` holds the answer, and the callback, back until there is a
        child, for at most so many seconds.

        Raises:
            NoConnection: nothing is known: no replica can be reached, and no cache file knows the path. The callback is
                called as soon as the node is known. KazooServiceRegistry returns False instead.
            Refused: the path can't be read.
        """
        path = clean(path)
        self._adopt()
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
        state = watched.state if watched else None
        if state is None and not self._answers_false:
            raise self._unknown(path)
        return node(path, state, self._names_only)

    def _unknown(self, path: str) -> NoConnection:
        engine = self._engine
        cause = engine.core.replicas.unreachable().value if engine is not None else "the registry is stopped"
        return NoConnection(f"nothing is known of {path}: {cause}")

    def add_callback(self, path: str, callback: Callback) -> None:
        """Calls the callback with the node as `get` returns it: once now, or as soon as the node is known, and once for
        each change. The same callback is added only once."""
        try:
            self.get(path, callback)
        except NoConnection:
            if self._is_stopped:
                raise

    def _open(self, path: str) -> _Path:
        engine = self._ready()
        with self._mutex:
            followed = self._paths.setdefault(path, _Path())
        engine.do(lambda core: self._follow(core, path, followed))
        return followed

    def _follow(self, core: Core, path: str, followed: _Path) -> None:
        """Has a core follow a path, unless it does already. Called on the loop."""
        watched = core.watch(path, followed.watched)
        if followed.watched is watched:
            return
        followed.watched = watched
        watched.listen(lambda watched: self._changed(followed, watched))

    def _changed(self, followed: _Path, watched: Watched) -> None:
        subscriptions = followed.subscriptions
        what = node(watched.path, watched.state, self._names_only) if subscriptions else None
        for subscription in subscriptions:
            subscription.later(self._dispatcher, watched.version, what)

    def _subscribe(self, path: str, followed: _Path, callback: Callback) -> None:
        with self._mutex:
            if any(known.callback == callback for known in followed.subscriptions):
                return
            subscription = Subscription(callback)
            followed.subscriptions = [*followed.subscriptions, subscription]
        watched = followed.watched
        if watched is not None and watched.state is not None:
            # The version is read first: if the state is newer than that, the callback gets it once more at worst.
            version = watched.version
            subscription.run(version, node(path, watched.state, self._names_only))

    # --- forks: see forking.py

    def _park(self) -> bool:
        """Called just before a fork; `_go_on` follows in the parent. Returns whether there was a connection."""
        self._mutex.acquire()
        if self._engine is not None:
            self._engine.park()
        return self._engine is not None

    def _go_on(self) -> None:
        engine = self._engine
        # An exception from a signal handler may have come before the mutex was acquired.
        with contextlib.suppress(RuntimeError):
            self._mutex.release()
        if engine is not None:
            engine.go_on()

    def _forked(self) -> None:
        """Called in the child of a fork: the lists and callbacks stay, the rest belongs to the parent."""
        self._parent, self._pid = self._pid, os.getpid()
        # Kept, so that no part of it is ever taken down here.
        forking.abandon((self._engine, self._dispatcher))
        self._mutex = threading.RLock()
        self._engine = None
        self._dispatcher = Dispatcher()
        self._inherited.update(self._registered)
        self._registered = {}
        self._forget_locks()
        for followed in self._paths.values():
            followed.subscriptions = [known.copy() for known in followed.subscriptions]
        if not self._is_stopped:
            Heir(self, self._parent).begin()

    def _has_callbacks(self) -> bool:
        return any(followed.subscriptions for followed in self._paths.values())

    def _inherit(self) -> None:
        """Registers the paths of the process that forked this one and is gone, once they no longer exist."""

        def wish(core: Core) -> None:
            inherited, self._inherited = self._inherited, {}
            for path, data in inherited.items():
                self._registered[path] = data
                core.wish(path, data, is_exclusive=True)

        self._start().post(wish)


_at_exit: "weakref.WeakSet[ServiceRegistry]" = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for registry in list(_at_exit):
        guarded(registry.stop)
