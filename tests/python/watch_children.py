"""Watches the children of a path with kazoo, like a program from before Rollcall.

    watch_children.py HOSTS[/CHROOT] PATH

It prints one JSON line for the first list and for each later one that differs: {"at": seconds, "added": [], "removed": []}.
It runs until it is killed.
"""

import json
import sys
import threading
import time

from kazoo.client import KazooClient

hosts, path = sys.argv[1:]
# The session outlives the faults of the tests. Otherwise kazoo would make a new one, and go on watching all the same.
client = KazooClient(hosts=hosts, timeout=30, connection_retry={"max_tries": -1, "max_delay": 0.5})
client.start(timeout=30)
known = None


@client.ChildrenWatch(path)
def changed(children):
    global known
    now, before = set(children), known or set()
    if known is None or now != before:
        print(json.dumps({"at": time.time(), "added": sorted(now - before), "removed": sorted(before - now)}))
    known = now


threading.Event().wait()
