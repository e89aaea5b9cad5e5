"""The calls that a program under gevent or eventlet can make: `greenlet_program.py SERVER KIND PATCHES`."""

import json
import sys

_, server, kind, patches = sys.argv
if kind == "gevent":
    from gevent import monkey

    monkey.patch_all(**json.loads(patches))
else:
    import eventlet

    eventlet.monkey_patch(**json.loads(patches))

import rollcall  # noqa: E402
from rollcall import aio  # noqa: E402


def outcome(call):
    try:
        return call()
    except RuntimeError as error:
        return str(error)


def use():
    registry = rollcall.ServiceRegistry(server, timeout=20)
    done = registry.set_node("/greenlets/one") and registry.acquire_lock("/greenlets-lock")
    registry.stop()
    return done


async def start():
    async with aio.ServiceRegistry(server, timeout=20) as registry:
        return registry.get_state()


def use_aio():
    coroutine = start()
    try:
        # The refusal needs no loop.
        coroutine.send(None)
    finally:
        coroutine.close()


print(json.dumps([outcome(use), outcome(use_aio) if patches == "{}" else None]), flush=True)
