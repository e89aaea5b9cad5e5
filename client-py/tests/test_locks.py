"""Locks: their order, and their loss."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import SOON, Seen, eventually

import rollcall


def waiters(zk, path):
    return zk.exists(f"{path}-__lock__") and zk.get_children(f"{path}-__lock__")


def test_a_lock_that_is_contended_is_granted_in_turn(two, registry, zk, path):
    first = registry()
    assert first.acquire_lock(path, wait=0) is True
    assert first.acquire_lock(path) is True, "it is ours already"
    order, threads = [], []

    def take(number, ours):
        with ours.get_lock(path, name=f"worker {number}", wait=60) as held:
            order.append((number, held))

    for number in range(4):
        threads.append(threading.Thread(target=take, args=(number, registry())))
        threads[-1].start()
        eventually("in the queue", lambda: len(waiters(zk, path) or []) == number + 1)
    assert registry().acquire_lock(path, wait=0) is False
    assert registry().get_lock(path, wait=0.2).acquire() is False
    assert order == []
    assert first.release_lock(path) is True
    for thread in threads:
        thread.join(SOON)
    assert order == [(number, True) for number in range(4)]
    eventually("nothing is left", lambda: not waiters(zk, path) and not zk.get_children(path))
    assert first.release_lock(path) is True, "there is none"


def test_threads_of_one_registry_exclude_each_other(registry, path):
    ours = registry()
    inside, worst = [], []

    def work():
        for _ in range(5):
            with ours.get_lock(path, wait=60) as held:
                assert held
                inside.append(1)
                worst.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * SOON)
    assert len(worst) == 20 and max(worst) == 1


def test_who_waits_is_told_that_the_registry_stops(registry, zk, path):
    assert registry().acquire_lock(path)
    ours, told = registry(), []

    def wait():
        try:
            ours.acquire_lock(path)
        except rollcall.NoConnection as error:
            told.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    eventually("in the queue", lambda: waiters(zk, path))
    ours.stop()
    thread.join(SOON)
    assert told == ["the registry is stopped"]
    eventually("it left the queue", lambda: not waiters(zk, path))


def test_so_many_at_once(registry, path):
    one, two, three = (registry().get_lock(path, simultaneous=2, wait=0) for _ in range(3))
    assert one.acquire() and two.acquire() and not three.acquire()
    assert one.fencing_token and two.fencing_token and one.fencing_token != two.fencing_token
    assert one.release() is True and one.release() is False and not one.status()
    assert three.acquire()
    with pytest.raises(rollcall.Refused) as refused:
        registry().get_lock(path, simultaneous=3, wait=0).acquire()
    assert refused.value.reason == "LOCK_LIMIT_DIFFERS"


def test_a_lost_lock_is_told(registry, zk, path):
    ours, lost = registry(lock_ttl=3), Seen()
    lock = ours.get_lock(path, on_lost=lost)
    assert lock.acquire() and lock.status()
    lease = zk.get_children(path)[0]
    zk.delete(f"{path}/{lease}")
    assert lock.lost.wait(SOON)
    eventually("told", lambda: lost.all)
    assert not lock.status() and lock.fencing_token is None and lost.all[0] in ("REMOVED", "SESSION_LOST")
    assert lock.release() is False
    assert lock.acquire() and not lock.lost.is_set(), "it can be taken again"
    assert lock.release()


def test_without_any_replica_a_lock_runs_out(fleet, registry, path):
    ours, lost = registry(lock_ttl=2, timeout=1), Seen()
    lock = ours.get_lock(path, on_lost=lost)
    assert lock.acquire()
    fleet.replicas[0].kill()
    assert lock.lost.wait(SOON)
    assert not lock.status()
    eventually("told", lambda: lost.all == ["EXPIRED"])


def test_a_lock_is_kept_for_longer_than_its_ttl(registry, path):
    lock = registry(lock_ttl=3).get_lock(path)
    assert lock.acquire()
    token, until = lock.fencing_token, lock._keeper.until
    eventually("renewed, until long after its ttl", lambda: not lock.status() or lock._keeper.until > until + 3)
    assert lock.status() and lock.fencing_token == token
    assert registry().acquire_lock(path, wait=0) is False


def test_a_place_in_the_queue_moves_when_its_replica_drains(two, registry, zk, path):
    first = registry(two.replicas[0].address)
    assert first.acquire_lock(path)
    # The replicas are tried in the order of their names here: the second registry begins at the replica that it has to
    # leave.
    second = registry(two.server)
    got = []
    thread = threading.Thread(target=lambda: got.append(second.acquire_lock(path, wait=60)))
    thread.start()
    eventually("in the queue", lambda: waiters(zk, path))
    two.replicas[1].stop()
    eventually("still in the queue", lambda: waiters(zk, path))
    first.release_lock(path)
    thread.join(SOON)
    assert got == [True]


def in_thread(work):
    got = []
    thread = threading.Thread(target=lambda: got.append(work()))
    thread.start()
    thread.join(2 * SOON)
    return got[0]


def test_acquire_lock_is_of_the_process_and_get_lock_of_the_thread(registry, path):
    ours = registry()
    assert in_thread(lambda: ours.acquire_lock(path, wait=SOON)) is True
    assert ours.acquire_lock(path, wait=0) is True, "the process has it"
    assert ours.get_lock(path, wait=0).acquire() is False, "this thread has not"
    assert registry().acquire_lock(path, wait=0) is False
    assert in_thread(lambda: ours.release_lock(path)) is True
    lock = ours.get_lock(path, wait=SOON)
    assert lock.acquire() and ours.get_lock(path, wait=SOON) is lock
    assert in_thread(lambda: ours.release_lock(path)) is True and lock.status(), "it is another thread's"
    assert ours.release_lock(path) is True and not lock.status()
    # Two threads that ask at once share one lock.
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: ours.acquire_lock(path, wait=SOON), range(4))) == [True] * 4
    assert len(ours._held) == 1 and ours.release_lock(path) and registry().acquire_lock(path, wait=SOON)


def test_a_lock_that_nobody_has_is_forgotten_unless_it_is_held(registry, path):
    ours = registry()
    for number in range(20):
        with ours.get_lock(f"{path}-{number}") as held:
            assert held
        assert ours.acquire_lock(f"{path}-{number}") and ours.release_lock(f"{path}-{number}")
    ours.get_lock(path).acquire()
    gc.collect()
    assert [lock.path for lock in ours._locks] == [path] and ours.get_lock(path).status()
    assert list(ours._own_locks.all) == [path] and not list(ours._process_locks)
