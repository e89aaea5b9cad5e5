"""Calls that an exception from a signal handler ends at any of their lines, as Ctrl-C and celery's soft time limit
do."""

import gc
import itertools
import linecache
import os
import sys
import threading

import pytest
from conftest import SOON, Seen, eventually

import rollcall
from rollcall import engine


def line(function, number):
    """A line of a function of the package, in the form that `interrupted_at` returns."""
    return f"{function.__code__.co_filename}:{function.__code__.co_firstlineno + number}"


# The lines that run before `release` has done anything.
FIRST_LINES = [line(rollcall.Lock.__exit__, 6), line(rollcall.Lock.release, 2), line(rollcall.Lock.release, 3)]


class Interrupted(BaseException):
    """The exception of the signal handler."""


# The work of CPython and grpcio themselves, such as the start of a thread or a __del__. This package can't make it
# safe.
LEFT_OUT = (
    "threading.py",
    "_channel.py",
    "selectors.py",
    "weakref.py",
    "_weakrefset.py",
    "test_interrupted.py",
    "conftest.py",
)


def interrupted_at(number, call):
    """Makes a call, and raises in this thread before the line of that number runs. Returns the line, or None."""
    count, where = itertools.count(), []

    def trace(frame, event, _):
        if frame.f_code.co_filename.endswith(LEFT_OUT):
            return None
        # CPython handles no signal between the end of such a block and the release of its lock.
        is_with = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().startswith("with ")
        if event == "line" and not is_with and next(count) == number:
            where.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
            sys.settrace(None)
            raise Interrupted
        return trace

    # The garbage of other tests has a __del__, which would swallow the exception.
    gc.disable()
    sys.settrace(trace)
    try:
        call()
    except Interrupted:
        pass
    finally:
        sys.settrace(None)
        gc.enable()
    return where[0] if where else None


def every_line(call, after):
    """Makes the call again and again, interrupted one line later each time, until it runs to its end."""
    for number in itertools.count():
        where = interrupted_at(number, call)
        after(where)
        if where is None:
            assert number > 3, "the lines of the call are seen"
            return


def test_a_lock_is_held_by_nobody_when_acquire_was_left(registry, zk, path):
    ours = registry()
    lock = ours.get_lock(path, wait=20)

    def take():
        with lock:
            pass

    def is_free(where):
        if where in FIRST_LINES:
            # Nothing can be done if release has not begun; the lock says that it is held.
            assert lock.status() and lock.release()
        eventually(f"nothing is left after {where}", lambda: not zk.exists(path) or not zk.get_children(path))
        assert not ours._held, where

    every_line(take, is_free)
    with ours.get_lock(path, wait=20) as held:
        assert held


def test_a_lock_that_was_held_before_stays_when_acquire_is_left(registry, path):
    ours = registry()
    lock = ours.get_lock(path)
    assert lock.acquire()
    every_line(lambda: [lock.acquire() for _ in range(4)], lambda where: None)
    assert lock.status() and ours._held == {lock}


def test_a_lock_is_given_back_or_still_ours_when_release_was_left(registry, zk, path):
    ours = registry()
    lock = ours.get_lock(path)
    assert lock.acquire()

    def given_back(where):
        if not lock.status():
            eventually(f"it is given back after {where}", lambda: not zk.get_children(path))
            assert lock.acquire(), where

    every_line(lock.release, given_back)


def test_a_new_registration_is_given_up_when_its_call_was_left(registry, zk, path):
    ours = registry()

    def is_gone(where):
        if where is not None:
            eventually(f"nothing is left after {where}", lambda: not zk.exists(f"{path}/one"))
            assert not ours._registered, where

    every_line(lambda: ours.set_node(f"{path}/one", {"n": 1}), is_gone)
    assert zk.exists(f"{path}/one")
    # An existing registration stays, whatever happens to a call that changes it.
    every_line(lambda: ours.set_node(f"{path}/one", {"n": 2}), lambda where: None)
    assert zk.exists(f"{path}/one") and list(ours._registered) == [f"{path}/one"]


def names():
    return [thread.name for thread in threading.enumerate()]


def test_no_thread_is_left_when_the_constructor_or_stop_was_left(fleet):
    before = names().count("rollcall")
    made = []

    def make_and_stop():
        made.append(rollcall.ServiceRegistry(fleet.server))
        made[-1].stop()

    def nothing_is_left(where):
        # The program either has the registry or does not. If it has it, it may stop it once more.
        while made:
            made.pop().stop()
        eventually(f"the thread has ended after {where}", lambda: names().count("rollcall") == before)

    every_line(make_and_stop, nothing_is_left)


@pytest.mark.parametrize("is_waiting", [False, True])
def test_a_call_is_left_at_once_while_it_waits(registry, zk, monkeypatch, path, is_waiting):
    """A signal handler runs during the wait for the answer: before the answer comes, and just after it has come."""
    ours, other = registry(), registry()
    if is_waiting:
        assert other.acquire_lock(path)
    real = engine.Engine._outcome

    def interrupted(self, call):
        if is_waiting:
            eventually("in the queue", lambda: zk.exists(f"{path}-__lock__") and zk.get_children(f"{path}-__lock__"))
        else:
            real(self, call)
        raise Interrupted

    monkeypatch.setattr(engine.Engine, "_outcome", interrupted)
    with pytest.raises(Interrupted):
        ours.acquire_lock(path)
    monkeypatch.undo()
    if is_waiting:
        eventually("it left the queue", lambda: not zk.get_children(f"{path}-__lock__"))
        assert other.release_lock(path)
    assert other.acquire_lock(path, wait=20)


def test_a_fork_that_is_interrupted_leaves_the_registry_at_work(registry, path, monkeypatch):
    ours, real, told = registry(), engine.Engine.park, Seen()

    def interrupted(self):
        real(self)
        raise Interrupted

    monkeypatch.setattr(engine.Engine, "park", interrupted)
    monkeypatch.setattr(sys, "unraisablehook", told)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    monkeypatch.undo()
    done = []
    thread = threading.Thread(target=lambda: done.append(ours.set_node(f"{path}/one")), daemon=True)
    thread.start()
    thread.join(SOON)
    assert done == [True] and told.all
