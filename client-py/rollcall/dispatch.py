"""Callbacks: once for each change, in order, with the whole state, and never on the thread that keeps the
connection."""

import collections
import logging
import queue
import threading
from typing import Any, Callable, Deque, Optional, Tuple

log = logging.getLogger(__name__)

# Maximum number of changes that wait for a slow callback; beyond it, the oldest are left out.
_WAITING = 1000


class Dispatcher:
    """A thread that runs callbacks. It starts with the first callback."""

    def __init__(self) -> None:
        self._queue: "queue.SimpleQueue[Optional[Callable[[], Any]]]" = queue.SimpleQueue()
        self._start = threading.Lock()
        self._thread: Optional[threading.Thread] = None

    def post(self, work: Callable[[], Any]) -> None:
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rollcall-callbacks", daemon=True)
                self._thread.start()
        self._queue.put(work)

    def close(self) -> None:
        """Ends the thread once the waiting callbacks have run."""
        self._queue.put(None)

    def _run(self) -> None:
        while True:
            work = self._queue.get()
            if work is None:
                return
            guarded(work)


def guarded(work: Callable[[], Any]) -> None:
    """Runs work. An exception in a callback must not end the work that follows."""
    try:
        work()
    except Exception:
        log.exception("a callback raised")


class Subscription:
    """A callback that gets each version of a state once."""

    def __init__(self, callback: Callable[[Any], Any]) -> None:
        self.callback = callback
        self._seen = 0
        self._news: Deque[Tuple[int, Any]] = collections.deque(maxlen=_WAITING)
        # Held while the callback runs, which may ask for the same state again.
        self._running = threading.RLock()

    def copy(self) -> "Subscription":
        """A copy for use after a fork: it has seen the same versions, and does not run."""
        copy = Subscription(self.callback)
        copy._seen = self._seen
        return copy

    def later(self, dispatcher: Dispatcher, version: int, what: Any) -> None:
        """Runs the callback on the dispatcher's thread."""
        self._news.append((version, what))
        dispatcher.post(self._next)

    def _next(self) -> None:
        try:
            version, what = self._news.popleft()
        except IndexError:
            return  # Left out, since newer ones came.
        self.run(version, what)

    def run(self, version: int, what: Any) -> None:
        """Runs the callback here and now, unless it has seen this version."""
        with self._running:
            if version <= self._seen:
                return
            self._seen = version
            guarded(lambda: self.callback(what))
