"""One kazoo client that takes a Semaphore and gives it back as often as it can.

    semaphore.py HOSTS[/CHROOT]

It prints `ready` once it is connected. It answers each input line `PATH SECONDS` with `COUNT SECONDS`: the number of times
that it held the lock, and the time that they took.
"""

import sys
import time

from kazoo.client import KazooClient

client = KazooClient(hosts=sys.argv[1])
client.start(timeout=30)
print("ready", flush=True)
for line in sys.stdin:
    path, seconds = line.split()
    semaphore = client.Semaphore(path, "bench")
    count, begin = 0, time.monotonic()
    while time.monotonic() < begin + float(seconds):
        semaphore.acquire()
        semaphore.release()
        count += 1
    print(count, time.monotonic() - begin, flush=True)
