"""gevent and eventlet, which turn threads into greenlets.

grpcio waits for its connections in C code, which no greenlet can interrupt: a thread that is none would stop the whole
program at the first call, for good.
"""

import sys

_ADVICE = (
    "rollcall needs real threads, and {name} has turned `threading` into greenlets: every call would hang. Run this "
    "program with threads or processes (gunicorn -k gthread, celery --pool threads or prefork), or patch without "
    "threads ({without}) before rollcall is imported"
)


def check_threads() -> None:
    """Raises RuntimeError where `threading` was patched, and says what to call instead."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and (gevent.is_module_patched("threading") or gevent.is_module_patched("_thread")):
        raise RuntimeError(_ADVICE.format(name="gevent", without="gevent.monkey.patch_all(thread=False)"))
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        raise RuntimeError(_ADVICE.format(name="eventlet", without="eventlet.monkey_patch(thread=False)"))
