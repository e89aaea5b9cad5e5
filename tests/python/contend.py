"""Contends for locks with kazoo's Semaphore, like a program from before Rollcall.

    contend.py HOSTS[/CHROOT] NAME THREADS PATH=LIMIT…

Each thread takes one of the locks after another, holds it for a moment and gives it back, until the process is killed. It
prints a line for each time that it held one.
"""

import random
import sys
import threading
import time

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException, LockTimeout
from kazoo.handlers.threading import KazooTimeoutError

hosts, name, threads, *locks = sys.argv[1:]
locks = [(path, int(limit)) for path, limit in (lock.split("=") for lock in locks)]
client = KazooClient(hosts=hosts, timeout=4, connection_retry={"max_tries": -1, "max_delay": 0.5})
client.start(timeout=30)


def contend(number):
    turn = 0
    while True:
        path, limit = random.choice(locks)
        turn += 1
        semaphore = client.Semaphore(path, f"{name}-{number}-{turn}", max_leases=limit)
        try:
            if semaphore.acquire(timeout=random.choice([None, random.uniform(0.1, 5)])):
                print(path, flush=True)
                time.sleep(random.uniform(0, 0.2))
            semaphore.release()
        except (KazooException, KazooTimeoutError, LockTimeout):
            time.sleep(0.5)


for number in range(int(threads)):
    threading.Thread(target=contend, args=(number,), daemon=True).start()
threading.Event().wait()
