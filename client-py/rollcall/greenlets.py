"""gevent and eventlet, which turn threads into greenlets.

grpcio waits for its connections in C code, which no greenlet can interrupt. A "thread" that is a greenlet would stop
the whole program at the first call, for good.
"""

import sys

_ADVICE = (
    "rollcall needs threads of the system, not {name}'s: with {patch} every call would hang. Run the program with "
    "threads or processes (gunicorn -k gthread, celery --pool threads or prefork), or call {without}"
)


def check_threads() -> None:
    """Raises RuntimeError if gevent or eventlet has patched modules that threads need, and says which call to use
    instead."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and any(map(gevent.is_module_patched, ("threading", "_thread", "select", "queue"))):
        without = "gevent.monkey.patch_all(thread=False, select=False, queue=False)"
        raise RuntimeError(_ADVICE.format(name="gevent", patch="gevent.monkey.patch_all()", without=without))
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and any(map(eventlet.is_monkey_patched, ("thread", "select"))):
        without = "eventlet.monkey_patch(thread=False, select=False)"
        raise RuntimeError(_ADVICE.format(name="eventlet", patch="eventlet.monkey_patch()", without=without))
