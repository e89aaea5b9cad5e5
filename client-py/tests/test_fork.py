"""Forks: os.fork, multiprocessing, and the state that a child must not have."""

import asyncio
import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import Future

import pytest
from conftest import SOON, Seen, eventually

import rollcall
from rollcall import engine, transport
from rollcall.errors import Failure, Kind
from rollcall.waiting import News


def from_child(work, fork=os.fork):
    """Runs `work` in a forked child. Returns its result, as JSON, and how the child ended."""
    reader, writer = os.pipe()
    pid = fork()
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
    return answer, os.waitpid(pid, 0)[1]


def in_child(work):
    """Runs `work` in a forked child. Returns its result."""
    answer, status = from_child(work)
    assert status == 0
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
    """gunicorn's way: the program is loaded, looks things up, and forks workers."""
    ours, seen = registry(), Seen()
    ours.get(f"{path}/workers", callback=seen)
    inside = str(tmp_path / "inside")

    def worker(number):
        ours.set_node(f"{path}/workers/{number}")
        eventually("all are there", lambda: len(ours.get(f"{path}/workers")["children"]) == 3, 2 * SOON)
        for _ in range(20):
            with ours.get_lock(f"{path}/lock", wait=60) as held:
                assert held
                # Fails if another process is inside.
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
    # The workers ended without a goodbye, so their registrations stay for their ttl.
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


def untold_fork():
    """A fork of uwsgi's kind, of which Python does not know."""
    return ctypes.PyDLL(None).fork()


def test_a_fork_that_python_is_not_told_of_is_found_out(registry, path, caplog):
    ours, seen = registry(), Seen()
    ours.set_node(f"{path}/parent")
    eventually("seen", lambda: "parent" in ours.get(path, callback=seen)["children"])
    lock = ours.get_lock(f"{path}-lock")
    assert lock.acquire() and ours.acquire_lock(f"{path}-other")

    def child():
        # The alarm ends anything that hangs.
        signal.alarm(2 * SOON)
        assert not lock.status() and lock.release() is False
        assert sorted(ours.get(path)["children"]) == ["parent"]
        assert ours.set_node(f"{path}/child") and ours.get_state()
        assert ours.acquire_lock(f"{path}-lock", wait=0) is False
        assert ours.acquire_lock(f"{path}-other", wait=0) is False
        eventually("the child sees itself", lambda: "child" in seen.lists[-1])
        ours.stop()
        return [message for message in caplog.messages if "uwsgi" in message] != []

    # If another thread is at work in grpcio at that moment, grpcio does not work in the child: it may hang, or end the
    # child by a signal. So the test tries several forks.
    for _ in range(6):
        answer, status = from_child(child, untold_fork)
        if not os.WIFSIGNALED(status):
            break
    assert (answer, status) == (b"true", 0)
    assert lock.status() and ours.set_node(f"{path}/parent", {"n": 1})
    eventually("the parent saw the child come and go", lambda: seen.lists[-1] == ["parent"])


def test_a_thread_that_does_not_answer_is_no_reason_to_hang(registry, path, monkeypatch):
    """A child is in this state if its parent's threads were at work in grpcio."""
    monkeypatch.setattr(engine, "_DEAD", 0.2)
    ours, stands = registry(), threading.Event()
    ours._engine.post(lambda core: stands.wait(SOON))
    with pytest.raises(rollcall.NoConnection, match="does not answer"):
        ours.set_node(f"{path}/one")
    stands.set()


def daemon(ours, path, done):
    """Turns into a daemon, which writes to a pipe once it has its parent's registrations."""
    if os.fork() > 0:
        # A daemon's parent ends like this, without a goodbye. Its registrations stay for their ttl.
        os._exit(0)
    eventually("it is ours", lambda: (ours.get(path)["children"].get("one") or {}).get("pid") == os.getpid(), 2 * SOON)
    os.write(done, b"ours")
    time.sleep(2 * SOON)


def test_a_daemon_has_its_parents_registrations_when_that_is_gone(registry, zk, path):
    ours, (reader, writer) = registry(ttl=2), os.pipe()

    def program():
        ours.set_node(f"{path}/one", {"n": 1})
        daemon(ours, path, writer)

    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            program()
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with open(reader, "rb") as told:
        assert told.read(4) == b"ours"
    data = json.loads(zk.get(f"{path}/one")[0])
    assert data["n"] == 1 and data["pid"] != pid
    os.kill(data["pid"], signal.SIGKILL)


def test_a_child_leaves_its_parents_names_alone_while_that_lives(registry, zk, path):
    lost, ours = Seen(), None
    ours = registry(ttl=2, on_lost=lost)
    ours.set_node(f"{path}/one", {"n": 1})
    ours.get(path)
    czxid = zk.exists(f"{path}/one").czxid

    def child():
        # Nothing must happen meanwhile.
        time.sleep(0.5)
        # The child may take the path when the program says so; it never takes a path that it waits for.
        assert list(ours._inherited) == [f"{path}/one"] and ours._registered == {}
        ours._inherit()
        ours.set_node(f"{path}/two")
        eventually("it was asked for", lambda: f"{path}/one" in ours._engine.core.session.registrations._later)
        ours.stop()
        return True

    assert in_child(child)
    assert zk.exists(f"{path}/one").czxid == czxid and lost.all == []


def test_a_fork_waits_for_no_place_in_a_queue_that_is_left(registry, path, monkeypatch):
    """A replica looks for a second for a place that is gone. A mere release does not delay a fork."""
    ours, asked, answered = registry(), threading.Event(), []
    real = transport.Connection.unary

    async def unary(self, method, request, answer, bound, settles=False):
        answered.append((method, settles))
        asked.set()
        return await real(self, method, request, answer, bound, settles)

    monkeypatch.setattr(transport.Connection, "unary", unary)
    ours._engine.post(lambda core: core.locks.release_later(f"{path}:" + "0" * 32))
    assert asked.wait(SOON)
    lock = ours.get_lock(path)
    assert lock.acquire() and lock.release()
    ours.set_data(path + "-data", {"n": 1})
    settles = dict(reversed(answered))
    assert answered[0] == ("rollcall.v1.Registry/ReleaseLock", False)
    assert ("rollcall.v1.Registry/ReleaseLock", True) in answered, "the release of a lock that is held tells something"
    assert settles["rollcall.v1.Registry/Put"] is True

    async def has_waited(settles):
        began.clear()
        asyncio.get_running_loop().call_soon(began.set)
        call = transport._Unary(Future(), News(), settles)
        await call.settled(asyncio.get_running_loop().time() + 0.1)
        # A task that does not wait gives no other task a turn.
        return began.is_set()

    began = threading.Event()
    assert asyncio.run(has_waited(True)) and not asyncio.run(has_waited(False))


@pytest.mark.parametrize("was_made", [False, True])
def test_a_write_that_a_fork_breaks_is_made_again(registry, zk, path, monkeypatch, was_made):
    ours, broken = registry(), []
    ours.set_data(path, {"n": 1})
    real = transport.Connection.unary

    async def unary(self, method, request, answer, bound, settles=False):
        is_write = method.endswith(("/Put", "/Delete"))
        if is_write and not broken and not was_made:
            broken.append(method)
            raise Failure(Kind.PAUSED, "the connection was closed")
        answered = await real(self, method, request, answer, bound, settles)
        if is_write and not broken:
            broken.append(method)
            raise Failure(Kind.PAUSED, "the connection was closed")
        return answered

    monkeypatch.setattr(transport.Connection, "unary", unary)
    assert ours.set_data(path, {"n": 2}) is True and broken
    data, stat = zk.get(path)
    assert json.loads(data)["n"] == 2 and stat.version == 1, "once"
    broken.clear()
    assert ours.unset(path) is True and broken and zk.exists(path) is None


def test_a_write_that_may_have_been_made_is_not_made_over_another(registry, zk, path, monkeypatch):
    ours, broken = registry(), []
    ours.set_data(path, {"n": 1})
    real = transport.Connection.unary

    async def unary(self, method, request, answer, bound, settles=False):
        if method.endswith("/Put") and not broken:
            broken.append(method)
            zk.set(path, b"of another")
            raise Failure(Kind.BROKEN, "the replica died")
        return await real(self, method, request, answer, bound, settles)

    monkeypatch.setattr(transport.Connection, "unary", unary)
    with pytest.raises(rollcall.OutcomeUnknown):
        ours.set_data(path, {"n": 2})
    assert zk.get(path)[0] == b"of another"
