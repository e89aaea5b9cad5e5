"""Creates, writes and deletes nodes at random with kazoo, until its input closes. It prints `path czxid-or-mzxid value`
for every write that ZooKeeper has acknowledged."""

import os
import random
import sys
import threading

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException

hosts, root, seed = sys.argv[1:]
chance = random.Random(int(seed))
closed = threading.Event()


def listen():
    sys.stdin.read()
    closed.set()


threading.Thread(target=listen, daemon=True).start()
client = KazooClient(hosts=hosts)
client.start()
step = 0
while not closed.wait(chance.uniform(0.002, 0.02)):
    step += 1
    path = f"{root}/{chance.choice(['k', 'k', 'shared', 'deep/k'])}{chance.randrange(4)}"
    value = f"kazoo {os.getpid()} {step}"
    try:
        if not client.exists(path):
            _, stat = client.create(path, value.encode(), makepath=True, include_data=True)
        elif chance.random() < 0.5:
            stat = client.set(path, value.encode())
        else:
            client.delete(path)
            continue
    except KazooException:
        continue
    print(path, stat.mzxid, value, sep="\t", flush=True)
client.stop()
