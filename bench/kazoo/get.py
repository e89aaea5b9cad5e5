"""Reads a path as a kazoo program does, the list and then each child, again and again.

    get.py HOSTS[/CHROOT]

For each line `PATH CHILDREN SECONDS` of its input it reads for SECONDS, at least once, and prints the number of reads a
second. It ends at the end of its input.
"""

import sys
import time

from kazoo.client import KazooClient

client = KazooClient(hosts=sys.argv[1])
client.start(timeout=30)


def read(path):
    return [client.get(f"{path}/{name}")[0] for name in client.get_children(path)]


for line in sys.stdin:
    path, children, seconds = line.split()
    begin, count = time.monotonic(), 0
    while count == 0 or time.monotonic() < begin + float(seconds):
        values = read(path)
        if len(values) != int(children) or not all(values):
            sys.exit(f"{path} has {len(values)} values instead of {children}")
        count += 1
    print(count / (time.monotonic() - begin), flush=True)
