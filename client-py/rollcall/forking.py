"""Forks: gunicorn, celery, multiprocessing, os.fork.

grpcio does not survive a fork while it has connections: its threads are missing in the child, and what they were
writing stays half written. So, just before, every registry closes its connections and stops its thread at a point where
it holds nothing. The parent connects again right after, and resumes by generation and lock id, so that nobody sees a
registration or a lock go. The child has the lists and the callbacks, but no registration and no lock; it connects for
itself, a moment later or when it is used.
"""

import os
import threading
import weakref
from typing import Any, List

import grpc

from rollcall import engine

_registries: "weakref.WeakSet[Any]" = weakref.WeakSet()
# Held from before a fork until after it.
_forking = threading.Lock()
_parked: List[Any] = []
_is_installed = False


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


def _before() -> None:
    _forking.acquire()
    _parked.extend(registry for registry in list(_registries) if registry._park())
    if _parked:
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
        registry._forked()
