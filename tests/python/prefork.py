"""A web application under a forking server: loaded once, and then served by forked workers.

    python prefork.py SERVER NAME PEERS WORKERS ROUNDS FILE

The master registers NAME, like an application while it is loaded. Each worker looks its peers up with the Django helper,
waits until there are PEERS, and then adds one to the number in FILE, ROUNDS times, under a lock that all share.
"""

import os
import pathlib
import sys
import threading
import time

import rollcall
from rollcall.contrib.django import utils

PLACE = "/services/example"

server, name, peers, workers, rounds, file = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]), pathlib.Path(sys.argv[6])
utils.SERVER = server
utils.CACHEFILE = str(file) + f".{name}.cache"
registry = rollcall.ServiceRegistry(server, timeout=20)


def find_peers():
    found, there = [], threading.Event()

    def seen(node):
        found[:] = sorted(node["children"])
        if len(found) >= peers:
            there.set()

    utils.get(PLACE, callback=seen)
    if not there.wait(60):
        raise SystemExit(f"found only {found}")
    return found


def add(lock):
    """Reads, waits, and writes, unless the lock is lost by then."""
    number = int(file.read_text()) if file.exists() else 0
    time.sleep(0.005)
    if not lock.status():
        return False
    file.write_text(f"{number + 1}\n")
    return True


def serve(worker):
    print(f"{worker} found {find_peers()}", flush=True)
    left = rounds
    while left:
        lock = registry.get_lock(f"{PLACE}-lock", name=f"{name}-{worker}", wait=60)
        with lock as held:
            left -= held and add(lock)


registry.set_node(f"{PLACE}/{name}", {"language": "python"})
# The application also uses the helper while it is loaded.
utils.get(PLACE)
pids = []
for worker in range(workers):
    pid = os.fork()
    if pid == 0:
        serve(worker)
        os._exit(0)
    pids.append(pid)
for pid in pids:
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise SystemExit(f"a worker ended with {status}")
registry.stop()
print("done", flush=True)
