"""The thread that runs a registry's event loop, and how it pauses while the process forks."""

import asyncio
import logging
import os
import threading
import time
from typing import Any, Callable, Coroutine, List, Optional, Set, TypeVar, cast

from rollcall.core import Core
from rollcall.errors import NoConnection
from rollcall.greenlets import check_threads
from rollcall.locks import Keeper
from rollcall.waiting import Once

log = logging.getLogger(__name__)

T = TypeVar("T")

# Maximum time, in seconds, that a fork waits until connections are closed.
_PAUSE = 3.0
# Maximum time that a fork waits until grpcio's own threads have ended. They do end, unless other code in this program
# uses grpcio too, which shows the first time. If the time is shorter, it passes before they have ended on a machine
# under load, and a child then crashes.
_SETTLE = 2.0
_SETTLE_IN_VAIN = 0.02
# Time without a step of the loop, in seconds, after which a caller gives up on the thread. If it is shorter, a machine
# under load looks like a thread that hangs.
_DEAD = 15.0
GRPC_THREADS = ("grpc_", "event_engine", "lifeguard", "resolver-exec", "default-exec")


class _Call:
    """A coroutine that a thread waits for."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.ended = Once()
        self._work = work
        self._task: "Optional[asyncio.Task[Any]]" = None

    def begin(self) -> None:
        self._task = asyncio.ensure_future(self._work())
        self._task.add_done_callback(lambda _: self.ended.tell())

    def outcome(self) -> Any:
        """The result of the coroutine, or its exception. Raises NoConnection if the coroutine was not run to its
        end."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            raise NoConnection("the registry is stopped")
        return self._task.result()

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class Engine:
    """Runs a Core on a thread of its own.

    An exception may hit the calling thread between any two instructions, such as one from a signal handler. So
    everything that a call creates belongs to the loop from the first moment, and the loop undoes an abandoned call.

    Raises RuntimeError if threads are greenlets.
    """

    def __init__(self, make: Callable[[], Core]) -> None:
        check_threads()
        self._go_on = Once()
        self._is_parked = Once()
        # Guards the two below. A signal handler may call while its thread holds it.
        self._mutex = threading.RLock()
        self._calls: Set[_Call] = set()
        self._is_over = False
        self._ending: "Optional[asyncio.Task[None]]" = None
        self._fault: Optional[BaseException] = None
        # Whether the caller left before there was a core.
        self._is_unwanted = False
        self._make = make
        self._ready = Once()
        self._thread = threading.Thread(target=self._run, name="rollcall", daemon=True)

    def start(self) -> None:
        """Starts the thread, and waits until there is a core."""
        self._thread.start()
        while not self._ready.wait(_DEAD):
            if not self._thread.is_alive():
                raise NoConnection("the thread of rollcall has died")
        if self._fault is not None:
            raise self._fault

    def leave(self) -> None:
        """Ends an engine that no caller has, whether or not it has started."""
        self._is_unwanted = True
        if hasattr(self, "core"):
            self.end([])

    def _run(self) -> None:
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)

        async def begin() -> None:
            self.core = self._make()
            if self._is_unwanted:
                self.end([])

        try:
            self._loop.run_until_complete(begin())
            self._ready.tell()
            self._loop.run_forever()
        except BaseException as fault:
            self._fault = fault
        with self._mutex:
            self._is_over = True
            calls, self._calls = self._calls, set()
        for call in calls:
            call.ended.tell()
        self._ready.tell()
        self._loop.close()

    def call(self, work: "Callable[[Core], Coroutine[Any, Any, T]]") -> T:
        """Runs a coroutine on the loop, and waits for its end. An exception that hits the caller meanwhile cancels it.

        Raises NoConnection when the engine ends earlier.
        """

        async def run() -> T:
            return await work(self.core)

        call = _Call(run)
        try:
            with self._mutex:
                if self._is_over:
                    raise NoConnection("the registry is stopped")
                self._calls.add(call)
                self._loop.call_soon_threadsafe(call.begin)
            return cast(T, self._outcome(call))
        except BaseException:
            self.post(lambda _: call.cancel())
            raise
        finally:
            with self._mutex:
                self._calls.discard(call)

    def _outcome(self, call: _Call) -> Any:
        while not call.ended.wait(_DEAD):
            if not self._steps():
                raise NoConnection("the thread of rollcall does not answer")
        return call.outcome()

    def _steps(self) -> bool:
        """Whether the loop still takes steps."""
        step = Once()
        self.post(lambda _: step.tell())
        return step.wait(_DEAD) or self._is_over

    def do(self, work: Callable[[Core], T]) -> T:
        """Like `call`, with a function."""

        async def run(core: Core) -> T:
            return work(core)

        return self.call(run)

    def post(self, work: Callable[[Core], Any]) -> None:
        """Has the loop run a function, and does not wait. Does nothing after the end of the engine."""
        with self._mutex:
            if not self._is_over:
                self._loop.call_soon_threadsafe(lambda: work(self.core))

    def now(self) -> float:
        """The loop's clock."""
        return self._loop.time()

    @property
    def is_ending(self) -> bool:
        """Whether `end` was called."""
        return self._ending is not None or self._is_over

    def end(self, held: List[Keeper]) -> None:
        """Has the loop release these locks, say goodbye and end; `join` waits for that. A second call does nothing."""

        def begin(core: Core) -> None:
            if self._ending is None:
                self._ending = asyncio.ensure_future(self._end(core, held))

        self.post(begin)

    def join(self, bound: Optional[float] = None) -> None:
        """Waits for the end of the thread."""
        self._thread.join(bound)

    async def _end(self, core: Core, held: List[Keeper]) -> None:
        try:
            await asyncio.gather(*(keeper.release() for keeper in held), return_exceptions=True)
            await core.close()
            # A task that still waits would wait in vain.
            waiting = asyncio.all_tasks() - {asyncio.current_task()}
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        except Exception:
            log.exception("ending a registry")
        finally:
            self._loop.stop()

    # --- forks

    def park(self) -> None:
        """Closes every connection, and stops the loop at a point where it holds nothing. Registrations and locks
        outlive that by their ttl."""
        if self.is_ending:
            self.join(_PAUSE)
            return
        self._go_on, self._is_parked = Once(), Once()

        async def pause() -> None:
            try:
                await asyncio.wait_for(self.core.replicas.pause(), _PAUSE)
            except asyncio.TimeoutError:
                log.warning("the connection to rollcall could not be closed before a fork")
            finally:
                self._loop.call_soon(self._stand)

        self.post(lambda _: asyncio.ensure_future(pause()))
        if not self._is_parked.wait(_PAUSE + 1):
            log.warning("the thread of rollcall did not pause in time for a fork")

    def _stand(self) -> None:
        self._is_parked.tell()
        self._go_on.wait()

    def go_on(self) -> None:
        """Connects again after `park`, in the process that has forked, and goes on with everything."""
        self._go_on.tell()
        self.post(lambda core: core.replicas.resume())


# Whether the last wait was in vain.
_is_vain = False


def settle() -> None:
    """Waits until grpcio's own threads are gone, which end some time after the last channel. A child has only a copy of
    the memory that they were writing, and no thread will ever finish it."""
    global _is_vain
    tasks = "/proc/self/task"
    if not os.path.isdir(tasks):
        return
    deadline = time.monotonic() + (_SETTLE_IN_VAIN if _is_vain else _SETTLE)
    while any(_is_grpc(f"{tasks}/{each}/comm") for each in os.listdir(tasks)):
        if time.monotonic() >= deadline:
            _is_vain = True
            return
        time.sleep(0.0005)
    _is_vain = False


def _is_grpc(file: str) -> bool:
    try:
        with open(file, encoding="ascii", errors="replace") as comm:
            return comm.read().startswith(GRPC_THREADS)
    except OSError:
        return False  # The thread has ended.
