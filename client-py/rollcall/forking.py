"""Forks: gunicorn, celery, multiprocessing, os.fork; and uwsgi, which does not tell Python.

grpcio does not survive a fork while it has connections: its threads are missing in the child, and what they were
writing stays half written. So, just before, every registry closes its connections and stops its thread at a point where
it holds nothing. The parent connects again right after, and resumes by generation and lock id, so that nobody sees a
registration or a lock go. The child has the lists and the callbacks, but no registration and no lock; it connects for
itself, a moment later or when it is used.

A fork that Python is not told of is found by the process id when the registry is next used. The child leaves everything
of its parent alone, and begins anew; that works as long as no thread was at work in grpcio at the moment of the fork. If one
was, grpcio may hang in the child, or crash it, whatever is done here.
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
# Held while a process finds out that it was forked; one for each, since a lock may be held at a fork.
_adopting: Dict[int, Any] = {}


def protect(registry: Any) -> None:
    """Has a registry stand still while this process forks."""
    global _is_installed
    if not _is_installed and hasattr(os, "register_at_fork"):
        _is_installed = True
        # With GRPC_ENABLE_FORK_SUPPORT grpcio stops its threads before a fork, once it was used; who registers later is
        # called earlier, and ours need those threads to close connections.
        grpc.insecure_channel("localhost:1").close()
        os.register_at_fork(before=_before, after_in_parent=_parent, after_in_child=_child)
    _registries.add(registry)


def adopt() -> None:
    """In a child of a fork that Python was not told of: does what is done after any other fork."""
    with _adopting.setdefault(os.getpid(), threading.RLock()):
        if any(registry._pid != os.getpid() for registry in list(_registries)):
            log.warning(
                "this process was forked, and Python was not told: rollcall begins anew. Under uwsgi, set "
                "py-call-uwsgi-fork-hooks or lazy-apps"
            )
            _child()


def abandon(what: Any) -> None:
    """Keeps something for good: to take down in a child what is its parent's may wait for threads that the child has
    not."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(what))


def _before() -> None:
    _forking.acquire()
    is_connected = False
    for registry in list(_registries):
        # First: an exception from a signal handler may come before it is parked, and after.
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
