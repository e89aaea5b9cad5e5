"""The work that a forked child does by itself. It connects for its callbacks' sake. Once its parent is gone, as it is
when a program turns into a daemon, it registers the parent's registrations.

While the parent lives, the names are the parent's, and the child does not even ask for them.
"""

import logging
import os
import threading
import time
from typing import TYPE_CHECKING

from rollcall.dispatch import guarded

if TYPE_CHECKING:
    from rollcall.registry import ServiceRegistry

log = logging.getLogger(__name__)

# Seconds before a child connects. A child that runs another program at once, or ends at once, never connects.
_CONNECTS = 0.2
# Seconds between two checks whether the parent is gone.
_LOOKS = 0.2


class Heir:
    """A thread of a child. It ends when there is nothing left to do."""

    def __init__(self, registry: "ServiceRegistry", parent: int) -> None:
        self._registry = registry
        self._parent = parent
        self._pid = os.getpid()

    def begin(self) -> None:
        """Starts the thread, if the child has work for it."""
        registry = self._registry
        if self._parent and (registry._has_callbacks() or registry._inherited):
            threading.Thread(target=lambda: guarded(self._run), name="rollcall-heir", daemon=True).start()

    def _run(self) -> None:
        time.sleep(_CONNECTS)
        if self._registry._has_callbacks() and self._is_wanted():
            self._registry._start()
        while self._is_wanted() and self._registry._inherited:
            if os.getppid() != self._parent:
                log.info("process %d is gone: this process takes over its registrations", self._parent)
                self._registry._inherit()
                return
            time.sleep(_LOOKS)

    def _is_wanted(self) -> bool:
        """Whether this is still the process that started the thread, and its registry is not stopped."""
        return os.getpid() == self._pid and not self._registry._is_stopped
