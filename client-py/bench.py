#!/usr/bin/env python3
"""Rollcall's client beside nd_service_registry and kazoo, in one run and one process.

    bench.py --rollcall localhost:7700 --zookeeper localhost:2181 [--children 100] [--seconds 3] [--writes 300]

Lookups: how often a second one thread gets a path with its children. `get` of Rollcall and of nd_service_registry
answer from memory, which a watch keeps up to date; kazoo reads the list, and each child, from ZooKeeper.

Callbacks: from just before a child is created, through kazoo, to the callback that names it; one subscriber at a time.
kazoo's own is a ChildrenWatch. Only Rollcall's has the children's data as well.
"""

import argparse
import statistics
import sys
import threading
import time
from typing import Any, Callable, List

import grpc
from kazoo.client import KazooClient
from nd_service_registry import KazooServiceRegistry

import rollcall
from rollcall import v1

ROOT = "/bench-python"


def lookups(seconds: float, get: Callable[[], Any]) -> float:
    """Number of times a second that `get` returns."""
    get()
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        get()
        count += 1
    return count / (time.perf_counter() - begun)


class Latency:
    """Time from a write to the callback that shows it, in seconds."""

    def __init__(self) -> None:
        self._wanted, self._at = "", 0.0
        self._seen = threading.Event()

    def told(self, names: Any) -> None:
        if self._wanted and self._wanted in names:
            self._at = time.perf_counter()
            self._wanted = ""
            self._seen.set()

    def measure(self, zk: KazooClient, path: str, writes: int) -> List[float]:
        found = []
        for number in range(writes):
            self._seen.clear()
            self._wanted = f"new-{number:05}"
            begun = time.perf_counter()
            zk.create(f"{path}/new-{number:05}", b"{}")
            if not self._seen.wait(20):
                sys.exit(f"no callback for {path}/new-{number:05}")
            found.append(self._at - begun)
            # Back to the same length.
            zk.delete(f"{path}/new-{number:05}")
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollcall", default="localhost:7700")
    parser.add_argument("--zookeeper", default="localhost:2181")
    parser.add_argument("--children", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--writes", type=int, default=300)
    options = parser.parse_args()

    zk = KazooClient(hosts=options.zookeeper)
    zk.start()
    ours = rollcall.ServiceRegistry(options.rollcall)
    nd = KazooServiceRegistry(server=options.zookeeper, rate_limit_calls=None)
    stub = v1.RegistryStub(grpc.insecure_channel(options.rollcall))
    if zk.exists(ROOT):
        zk.delete(ROOT, recursive=True)
    paths = {who: f"{ROOT}/{who}" for who in ("lookups", "rollcall", "nd", "kazoo")}
    for path in paths.values():
        for number in range(options.children):
            zk.create(
                f"{path}/host{number:04}:80", b'{"pid":4711,"created":"2026-01-31 23:59:59","zone":"a"}', makepath=True
            )

    path = paths["lookups"]
    rows = [
        ("rollcall get, names and data", lambda: ours.get(path)["children"]),
        ("nd_service_registry get, names", lambda: nd.get(path)["children"]),
        ("rollcall.v1 stub Get, names and data", lambda: stub.Get(v1.GetRequest(path=path)).node.children),
        ("kazoo, names", lambda: zk.get_children(path)),
        ("kazoo, names and data", lambda: [zk.get(f"{path}/{name}") for name in zk.get_children(path)]),
    ]
    print(f"{options.children} children        lookups a second")
    for name, get in rows:
        print(f"{name:40} {lookups(options.seconds, get):12,.0f}")

    subscribers: List[Any] = [
        ("rollcall", lambda told: ours.add_callback(paths["rollcall"], lambda node: told(node["children"]))),
        ("nd", lambda told: nd.add_callback(paths["nd"], lambda node: told(node["children"]))),
        ("kazoo", lambda told: zk.ChildrenWatch(paths["kazoo"], lambda names: told(names))),
    ]
    print(f"\n{options.children} children, {options.writes} writes        ms from write to callback: median    p99")
    for who, subscribe in subscribers:
        latency = Latency()
        subscribe(latency.told)
        found = sorted(1000 * seconds for seconds in latency.measure(zk, paths[who], options.writes))
        print(f"{who:40} {statistics.median(found):23.2f} {found[int(len(found) * 0.99)]:10.2f}")

    ours.stop()
    nd.stop()
    zk.delete(ROOT, recursive=True)
    zk.stop()


if __name__ == "__main__":
    main()
