"""Takes a lock with kazoo's Semaphore, while others remove its nodes again and again.

    vanishing_lock.py HOSTS[/CHROOT] PATH GUARD

Each of several threads takes the lock with a new Semaphore, creates the node GUARD while it holds it, and gives it back,
until the process is killed. It prints a line for each turn: `held`; `shared`, when GUARD already existed, so that two held
the lock; `vanished`, when the lock's nodes were removed between two requests of kazoo, which kazoo reports as NoNodeError;
or another error.
"""

import random
import sys
import threading
import time

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException, NodeExistsError, NoNodeError

hosts, path, guard = sys.argv[1:]
client = KazooClient(hosts=hosts, timeout=4)
client.start(timeout=30)


def turn():
    semaphore = client.Semaphore(path, "kazoo", max_leases=1)
    try:
        semaphore.acquire()
    except NoNodeError:
        return "vanished"
    try:
        client.create(guard, ephemeral=True)
        time.sleep(random.uniform(0, 0.005))
        client.delete(guard)
    except NodeExistsError:
        return "shared"
    finally:
        semaphore.release()
    return "held"


telling = threading.Lock()


def tell(what):
    # print writes the line end separately, and another thread's line may come between.
    with telling:
        print(what, flush=True)


def take():
    while True:
        try:
            tell(turn())
        except KazooException as error:
            tell(repr(error))
        time.sleep(random.choice([0, 0, 0.01, 0.1, 1.2]))


for _ in range(3):
    threading.Thread(target=take, daemon=True).start()
threading.Event().wait()
