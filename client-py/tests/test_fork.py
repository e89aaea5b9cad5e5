"""Forks: os.fork, multiprocessing, and what the child must not have."""

import contextlib
import json
import multiprocessing
import os
import threading
import time

import pytest
from conftest import SOON, Seen, eventually
from kazoo.client import KazooClient

from rollcall import engine


@pytest.fixture
def zk(hosts):
    client = KazooClient(hosts=hosts, timeout=20)
    client.start(timeout=20)
    yield client
    client.stop()
    client.close()


def in_child(work):
    """Runs it in a forked child; returns what it returns, as JSON."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(work()).encode())
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as answers:
        answer = answers.read()
    assert os.waitpid(pid, 0)[1] == 0
    return json.loads(answer)


def test_a_child_connects_for_itself_and_the_parent_keeps_what_it_has(registry, zk, path):
    ours, seen, lost = registry(lock_ttl=2, ttl=2, on_lost=Seen()), Seen(), Seen()
    ours.set_node(f"{path}/parent", {"n": 1})
    ours.get(path, callback=seen)
    lock = ours.get_lock(f"{path}-lock", on_lost=lost)
    assert lock.acquire()
    token = lock.fencing_token
    czxid = zk.exists(f"{path}/parent").czxid
    missing = []
    zk.ChildrenWatch(path, lambda names: missing.append(names) if "parent" not in names else None)

    def child():
        assert not lock.status() and lock.release() is False and lock.fencing_token is None
        known = sorted(ours.get(path)["children"])
        ours.set_node(f"{path}/child", {"n": 2})
        busy = ours.acquire_lock(f"{path}-lock", wait=0)
        eventually("the child sees itself", lambda: "child" in ours.get(path)["children"])
        # Longer than the ttls of the parent.
        time.sleep(3)
        ours.stop()
        return [known, busy]

    assert in_child(child) == [["parent"], False]
    assert missing == [], "nobody found the parent's registration missing"
    assert lock.status() and lock.fencing_token == token and lost.all == []
    eventually(
        "the parent saw the child come and go",
        lambda: ["child", "parent"] in seen.lists and seen.lists[-1] == ["parent"],
    )
    assert ours.set_node(f"{path}/parent", {"n": 3})
    assert zk.exists(f"{path}/parent").czxid == czxid
    assert lock.release()


def test_nothing_of_grpcio_is_left_at_the_moment_of_a_fork(two, registry, path):
    assert os.path.isdir("/proc/self/task"), "this test needs Linux, which tells the names of threads"
    ours = registry()
    ours.set_node(f"{path}/one")
    ours.get(path)
    assert ours.acquire_lock(f"{path}-lock")

    def threads():
        names = []
        for each in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError), open(f"/proc/self/task/{each}/comm") as comm:
                names.append(comm.read().strip())
        return names

    assert any(name.startswith("event_engine") for name in threads()), "grpcio's threads are known by their names"
    assert ours._park()
    try:
        engine.settle()
        assert not [name for name in threads() if name.startswith(engine.GRPC_THREADS)]
        assert {thread.name for thread in threading.enumerate()}.isdisjoint({"rollcall-stream"})
    finally:
        ours._go_on()
    assert ours.set_node(f"{path}/two")


def test_callbacks_run_in_a_child_that_never_calls(registry, path):
    ours, other, seen = registry(), registry(), Seen()
    ours.get(path, callback=seen)

    def child():
        other.set_node(f"{path}/one")
        eventually("told in the child", lambda: "one" in seen.lists[-1])
        return True

    assert in_child(child)
    eventually("the child's registration goes with it", lambda: not ours.get(path)["children"], 2 * SOON)


def test_many_forks_while_threads_work(registry, zk, path):
    ours = registry()
    ours.set_node(f"{path}/parent")
    stop, faults, rounds = threading.Event(), [], []

    def work(number):
        try:
            while not stop.is_set():
                with ours.get_lock(f"{path}-lock", wait=60) as held:
                    assert held
                assert "parent" in ours.get(path)["children"]
                ours.set_data(f"{path}-data-{number}", {"n": 1})
                rounds.append(number)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        assert in_child(lambda: sorted(ours.get(path)["children"])) == ["parent"]
    count = len(rounds)
    eventually("they go on", lambda: len(rounds) > count + 6 or faults)
    stop.set()
    for thread in threads:
        thread.join(SOON)
    assert not faults and "parent" in zk.get_children(path)


def test_forked_workers_find_and_exclude_each_other_while_a_replica_is_killed(two, registry, tmp_path, path):
    """What gunicorn does: the program is loaded, looks things up, and forks workers."""
    ours, seen = registry(), Seen()
    ours.get(f"{path}/workers", callback=seen)
    inside = str(tmp_path / "inside")

    def worker(number):
        ours.set_node(f"{path}/workers/{number}")
        eventually("all are there", lambda: len(ours.get(f"{path}/workers")["children"]) == 3, 2 * SOON)
        for _ in range(20):
            with ours.get_lock(f"{path}/lock", wait=60) as held:
                assert held
                # Fails if another is inside.
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                time.sleep(0.005)
                os.unlink(inside)
        return number

    answers = []
    threads = [
        threading.Thread(target=lambda number=number: answers.append(in_child(lambda: worker(number))))
        for number in range(3)
    ]
    for thread in threads:
        thread.start()
    eventually("all are there", lambda: len(seen.last["children"]) == 3, 2 * SOON)
    first = next(index for index, names in enumerate(seen.lists) if len(names) == 3)
    two.replicas[0].kill()
    for thread in threads:
        thread.join(4 * SOON)
    assert sorted(answers) == [0, 1, 2]
    # They ended without a goodbye, and stand for their ttl.
    assert all(len(names) == 3 for names in seen.lists[first:]), seen.lists


def child_of_multiprocessing(ours, path, number):
    ours.set_node(f"{path}/{number}", {"pid": os.getpid()})
    assert "parent" in ours.get(path)["children"]
    with ours.get_lock(f"{path}-lock") as held:
        assert held
    ours.stop()


def test_multiprocessing(registry, zk, path):
    ours = registry()
    ours.set_node(f"{path}/parent")
    ours.get(path)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=child_of_multiprocessing, args=(ours, path, number)) for number in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(SOON)
        assert child.exitcode == 0
    eventually("only the parent is left", lambda: zk.get_children(path) == ["parent"])


@pytest.mark.parametrize("support", ["0", "1"])
def test_grpcio_s_own_support_of_forks_does_not_matter(support, fleet, run, monkeypatch, path):
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", support)
    program = run("fork_program.py", fleet.server, path)
    assert program.do(10) == [["parent"]] * 10
    assert "rollcall" not in program.end(), "all connections could be closed before each fork"


def test_a_child_of_a_child(registry, path):
    ours = registry()
    ours.set_node(f"{path}/parent")

    def grandchild():
        return in_child(lambda: list(ours.get(path)["children"]))

    assert in_child(grandchild) == ["parent"]
