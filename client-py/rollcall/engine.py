"""The thread that a registry's event loop runs on, and how it stands still while the process forks."""

import asyncio
import concurrent.futures
import logging
import os
import threading
import time
from typing import Any, Callable, Coroutine, TypeVar

from rollcall.core import Core
from rollcall.errors import NoConnection

log = logging.getLogger(__name__)

T = TypeVar("T")

# How long, in seconds, a fork waits at most until connections are closed.
_PAUSE = 3.0
# How long it waits at most until grpcio's own threads have ended; they do unless others in this program use grpcio too,
# which shows the first time.
_SETTLE = 0.5
_SETTLE_IN_VAIN = 0.02
GRPC_THREADS = ("grpc_", "event_engine", "lifeguard", "resolver-exec", "default-exec")


class Engine:
    """A Core on a thread of its own."""

    def __init__(self, make: Callable[[], Core]) -> None:
        self._loop = asyncio.new_event_loop()
        self._go_on = threading.Event()
        self._is_parked = threading.Event()
        self._is_over = False
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(make, ready), name="rollcall", daemon=True)
        self._thread.start()
        ready.wait()

    def _run(self, make: Callable[[], Core], ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)

        async def begin() -> None:
            self.core = make()

        try:
            self._loop.run_until_complete(begin())
        finally:
            ready.set()
        self._loop.run_forever()
        self._loop.close()

    def call(self, work: "Callable[[Core], Coroutine[Any, Any, T]]") -> T:
        """Runs a coroutine on the loop, and waits for its end. Raises NoConnection when the engine ends before that."""
        running = work(self.core)
        try:
            future = asyncio.run_coroutine_threadsafe(running, self._loop)
        except RuntimeError:
            running.close()
            raise NoConnection("the registry is stopped") from None
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise NoConnection("the registry is stopped") from None
        except BaseException:
            future.cancel()
            raise

    def do(self, work: Callable[[Core], T]) -> T:
        """The same with a function."""

        async def run(core: Core) -> T:
            return work(core)

        return self.call(run)

    def now(self) -> float:
        """The loop's clock."""
        return self._loop.time()

    def close(self) -> None:
        """Says goodbye, and ends the thread."""
        if self._is_over:
            return
        self._is_over = True
        try:
            self.call(self._end)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    @staticmethod
    async def _end(core: Core) -> None:
        await core.close()
        # Whoever still waits for something waits in vain.
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    # --- forks

    def park(self) -> None:
        """Closes every connection, and stops the loop at a point where it holds nothing. Registrations and locks
        outlive that by their ttl."""
        self._go_on.clear()
        self._is_parked.clear()

        async def pause() -> None:
            try:
                await asyncio.wait_for(self.core.replicas.pause(), _PAUSE)
            except asyncio.TimeoutError:
                log.warning("the connection to rollcall could not be closed before a fork")
            finally:
                self._loop.call_soon(self._stand)

        asyncio.run_coroutine_threadsafe(pause(), self._loop)
        if not self._is_parked.wait(_PAUSE + 1):
            log.warning("the thread of rollcall does not stand still for a fork")

    def _stand(self) -> None:
        self._is_parked.set()
        self._go_on.wait()

    def go_on(self) -> None:
        """After `park`, in the process that has forked: connects again, and goes on with everything."""
        self._go_on.set()
        self._loop.call_soon_threadsafe(self.core.replicas.resume)


# Whether it was waited for in vain the last time.
_is_vain = False


def settle() -> None:
    """Waits until grpcio's own threads, which end some time after the last channel, are gone. What a child has of them
    is a copy of memory that nobody will ever finish writing."""
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
        return False  # It has ended.
