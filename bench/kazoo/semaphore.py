"""One kazoo client that takes a Semaphore and gives it back as often as it can.

    semaphore.py HOSTS[/CHROOT]

Says `ready` once it is connected. Each line that it reads, `PATH SECONDS`, it answers with `COUNT SECONDS`: how often it held
the lock, and in what time.
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
