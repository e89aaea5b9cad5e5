"""Takes a lock, like a program from before Rollcall, and gives it back on command.

    hold_lock.py HOSTS[/CHROOT] PATH NAME LIMIT kazoo|nd [SECONDS]

It prints `waiting` before it asks for the lock, `held` when it holds the lock, and `released` when it has given it back,
which it does after a line on its standard input; `busy` if it did not get the lock within SECONDS; `refused: why` if it
can't have it.
"""

import sys
import time

hosts, path, name, limit, program, *seconds = sys.argv[1:]
timeout = float(seconds[0]) if seconds else None


def say(word):
    print(word, flush=True)


if program == "kazoo":
    from kazoo.client import KazooClient
    from kazoo.exceptions import LockTimeout

    client = KazooClient(hosts=hosts, timeout=4)
    client.start(timeout=20)
    lock = client.Semaphore(path, name, max_leases=int(limit))

    def acquire():
        try:
            return lock.acquire(timeout=timeout)
        except LockTimeout:
            return False

else:
    from nd_service_registry import KazooServiceRegistry

    registry = KazooServiceRegistry(server=hosts, timeout=20, rate_limit_calls=None)
    lock = registry.get_lock(path, name=name, simultaneous=int(limit), wait=0)

    def acquire():
        # On kazoo 2.2 and later, nd gets a lock only if it is free at the first try.
        end = time.monotonic() + (timeout or 60)
        while not lock.acquire():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


say("waiting")
try:
    held = acquire()
except ValueError as error:
    say(f"refused: {error}")
    sys.exit()
if not held:
    say("busy")
    sys.exit()
say("held")
sys.stdin.readline()
lock.release()
say("released")
