"""The original nd_service_registry 1.1.0 and kazoo beside Rollcall on one ZooKeeper."""

import datetime
import json
import os
import re
import threading

import grpc
import pytest
from conftest import SOON, error_info, eventually, needed, plain, struct
from google.protobuf import duration_pb2
from kazoo.exceptions import LockTimeout
from nd_service_registry import KazooServiceRegistry

TRY = duration_pb2.Duration(seconds=0)


@pytest.fixture(scope="session")
def nd():
    """nd_service_registry, which allows one object in a process. Its rate limit is switched off."""
    registry = KazooServiceRegistry(server=needed("ZOOKEEPER_ADDR"), timeout=SOON, rate_limit_calls=None)
    yield registry
    registry.stop()


@pytest.fixture
def watch(stubs, registry):
    """Opens Watch streams, and follows them."""
    opened = []

    def open_stream(path):
        opened.append(Watched(stubs, registry, path))
        return opened[-1]

    yield open_stream
    for stream in opened:
        stream.call.cancel()


class Watched:
    """The children of a path, put together from a Watch stream."""

    def __init__(self, stubs, registry, path):
        self.stubs = stubs
        self.call = registry.Watch(stubs.WatchRequest(path=path), timeout=3 * SOON)
        self.children = {}
        self.step()

    def step(self):
        response = next(self.call)
        if response.WhichOneof("event") == "snapshot":
            self.children = {name: plain(child.value) for name, child in response.snapshot.node.children.items()}
        for change in response.delta.changes:
            if change.kind in (self.stubs.CHANGE_KIND_ADDED, self.stubs.CHANGE_KIND_UPDATED):
                self.children[change.name] = plain(change.child.value)
            elif change.kind == self.stubs.CHANGE_KIND_REMOVED:
                del self.children[change.name]
            elif change.kind == self.stubs.CHANGE_KIND_DELETED:
                self.children.clear()

    def until(self, accept):
        while not accept(self.children):
            self.step()


# --- registrations


def test_watch_and_get_show_what_nd_registers(stubs, registry, nd, watch, path):
    name, node = "server1:22", f"{path}/server1:22"
    seen = watch(path)
    assert seen.children == {}

    nd.set_node(node, data={"foo": "bar", "größe": 3})
    seen.until(lambda children: name in children)
    data = seen.children[name]
    assert (data["foo"], data["größe"], data["pid"]) == ("bar", 3, os.getpid())
    assert data == nd.get(node)["data"]
    got = registry.Get(stubs.GetRequest(path=path, consistency=stubs.CONSISTENCY_LATEST))
    assert plain(got.node.children[name].value) == data
    assert got.node.children[name].stat.ephemeral_owner != 0

    nd.set_node(node, data="a string")
    seen.until(lambda children: "string_value" in children[name])
    assert seen.children[name]["string_value"] == "a string"

    nd.unset(node)
    seen.until(lambda children: name not in children)


def test_nd_and_kazoo_see_what_rollcall_registers(nd, zk, register, path):
    name, node = "server1:22", f"{path}/server1:22"
    stream = register(pid=4711)
    stream.set(node, {"foo": "bar", "port": 10733, "ratio": 0.25, "tags": ["a", {"b": None}], "größe": True})

    raw, stat = zk.get(node)
    text = raw.decode("utf-8")
    assert stat.ephemeralOwner != 0
    assert re.match(r'\{"pid":4711,"created":"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d",', text), text
    data = json.loads(text)
    assert text.replace("\\u00f6", "ö").replace("\\u00df", "ß") == json.dumps(
        data, separators=(",", ":"), ensure_ascii=False
    ), "compact JSON"
    created = datetime.datetime.strptime(data.pop("created"), "%Y-%m-%d %H:%M:%S")
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    assert abs(now - created) < datetime.timedelta(minutes=5), "created is UTC"
    assert data == {"pid": 4711, "foo": "bar", "port": 10733, "ratio": 0.25, "tags": ["a", {"b": None}], "größe": True}
    assert (type(data["port"]), zk.get(path)[0]) == (int, b"")

    assert nd.get(node)["data"] == json.loads(text)
    assert nd.get(path)["children"] == [name]
    stream.cancel()
    eventually("nd sees it go", lambda: nd.get(path)["children"] == [] and nd.get(node)["stat"] is None)


def test_what_the_caller_sets_wins_over_pid_and_created(zk, register, path):
    stream = register(pid=4711)
    stream.set(path, {"pid": 1, "created": "2012-12-14 21:17:50"})
    assert json.loads(zk.get(path)[0]) == {"pid": 1, "created": "2012-12-14 21:17:50"}


def test_a_pid_that_is_not_told_is_not_written(zk, register, path):
    register().set(path)
    assert re.fullmatch(rb'\{"created":"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"\}', zk.get(path)[0])


def test_nd_reads_what_put_writes_and_we_read_what_nd_sets(stubs, registry, nd, path):
    def get(at):
        return registry.Get(stubs.GetRequest(path=at, consistency=stubs.CONSISTENCY_LATEST)).node

    registry.Put(stubs.PutRequest(path=f"{path}/data", value=stubs.Value(data=struct({"limit": 5}))))
    data = nd.get(f"{path}/data")["data"]
    assert data.pop("created") and data == {"limit": 5}
    registry.Put(stubs.PutRequest(path=f"{path}/text", value=stubs.Value(text="five")))
    assert nd.get(f"{path}/text")["data"] == {"string_value": "five"}
    registry.Put(stubs.PutRequest(path=f"{path}/empty"))
    assert nd.get(f"{path}/empty")["data"] is None and nd.get(f"{path}/empty")["stat"] is not None

    nd.set_data(f"{path}/theirs", {"limit": 6})
    node = get(f"{path}/theirs")
    assert plain(node.value)["limit"] == 6 and node.stat.ephemeral_owner == 0


def test_rollcall_takes_over_what_kazoo_registered(register, zk, path):
    zk.create(path, b'{"theirs":1}', ephemeral=True)
    answer = register().set(path, {"ours": 1})
    raw, stat = zk.get(path)
    assert json.loads(raw)["ours"] == 1
    assert stat.ephemeralOwner != zk.client_id[0] and stat.czxid == answer.generation


def test_a_registration_that_nd_deletes_comes_back(register, nd, zk, path):
    stream = register()
    first = stream.set(path, {"foo": "bar"})
    before = zk.get(path)[0]
    zk.delete(path)
    back = stream.expect("registered")
    assert back.restored and back.generation > first.generation
    assert zk.get(path)[0] == before


# --- locks


def test_a_held_and_a_waiting_lock_have_kazoos_layout(acquire, zk, path):
    holder = acquire(path, name="holder")
    held = holder.held()
    assert zk.get(path)[0] == b"1"
    (lease,) = zk.get_children(path)
    assert re.fullmatch(r"[0-9a-f]{32}", lease)
    data, stat = zk.get(f"{path}/{lease}")
    assert data == b"holder" and stat.ephemeralOwner != 0 and stat.czxid == held.fencing_token
    assert zk.get_children(f"{path}-__lock__") == [] and zk.get(f"{path}-__lock__")[0] == b""

    acquire(path, name="waiter").expect("queued")
    (contender,) = zk.get_children(f"{path}-__lock__")
    assert re.fullmatch(r"[0-9a-f]{32}__lock__\d{10}", contender)
    data, stat = zk.get(f"{path}-__lock__/{contender}")
    assert data == b"waiter" and stat.ephemeralOwner != 0

    assert zk.Semaphore(path).lease_holders() == ["holder"]
    assert zk.Lock(f"{path}-__lock__").contenders() == ["waiter"]


def test_a_lock_passes_to_and_fro_in_the_order_of_arrival(stubs, registry, acquire, zk, path):
    first = acquire(path, name="first")
    first.held()
    theirs = zk.Semaphore(path, "kazoo")
    waiting = threading.Thread(target=theirs.acquire, kwargs={"timeout": SOON})
    waiting.start()
    eventually("kazoo waits", lambda: zk.get_children(f"{path}-__lock__"))
    last = acquire(path, name="last")
    queued = last.expect("queued")
    assert list(queued.holders) == ["first"] and queued.position == 2
    described = registry.DescribeLock(stubs.DescribeLockRequest(path=path))
    assert [(party.name, party.foreign) for party in described.holders] == [("first", False)]
    assert [(party.name, party.foreign) for party in described.waiters] == [("kazoo", True), ("last", False)]

    first.cancel()
    waiting.join(SOON)
    assert theirs.is_acquired and zk.Semaphore(path).lease_holders() == ["kazoo"]
    with pytest.raises(grpc.RpcError) as busy:
        acquire(path, wait=TRY).held()
    assert error_info(busy.value).reason == "LOCK_BUSY"
    theirs.release()
    last.held()
    assert zk.Semaphore(path).lease_holders() == ["last"]


def test_kazoo_waits_for_us_and_we_for_kazoo(acquire, zk, path):
    ours = acquire(path)
    ours.held()
    theirs = zk.Semaphore(path)
    assert not theirs.acquire(blocking=False)
    with pytest.raises(LockTimeout):
        # A Semaphore that was busy until its time was over must leave nothing that blocks us.
        zk.Semaphore(path).acquire(timeout=0.2)
    ours.cancel()
    assert theirs.acquire(timeout=SOON)
    next_one = acquire(path)
    next_one.expect("queued")
    theirs.release()
    next_one.held()


def test_all_who_use_a_lock_agree_on_how_many_may_hold_it(acquire, zk, path):
    held = [acquire(path, simultaneous=2, name=name) for name in ("a", "b")]
    for lock in held:
        lock.held()
    assert zk.get(path)[0] == b"2"
    third = zk.Semaphore(path, max_leases=2)
    assert not third.acquire(blocking=False)
    with pytest.raises(ValueError, match="Inconsistent max leases"):
        zk.Semaphore(path).acquire(blocking=False)
    with pytest.raises(grpc.RpcError) as differs:
        acquire(path).held()
    assert error_info(differs.value).reason == "LOCK_LIMIT_DIFFERS"
    held[0].cancel()
    assert third.acquire(timeout=SOON)
    third.release()


def test_nd_and_rollcall_keep_each_other_out(acquire, nd, path):
    ours = acquire(path, name="ours")
    ours.held()
    # On kazoo 2.2 and later, nd gets a lock only if it is free at the first try: it polls a flag that nothing sets.
    theirs = nd.get_lock(path, name="nd", wait=0)
    with theirs as got:
        assert not got
    ours.cancel()
    eventually("nd gets the lock", theirs.acquire)
    waiter = acquire(path, name="waiter")
    assert list(waiter.expect("queued").holders) == ["nd"]
    theirs.release()
    waiter.held()
    assert not theirs.acquire() and not theirs.status()


def test_one_lock_under_contention_is_never_held_twice(acquire, nd, zk, path):
    rounds = 15
    inside, guard, failures, tokens = [], threading.Lock(), [], []

    def work(who):
        with guard:
            inside.append(who)
            if len(inside) > 1:
                failures.append(list(inside))
        leases = zk.get_children(path)
        if len(leases) != 1:
            failures.append((who, leases))
        with guard:
            inside.remove(who)

    def kazoo(who):
        for _ in range(rounds):
            lock = zk.Semaphore(path, who)
            lock.acquire(timeout=3 * SOON)
            work(who)
            lock.release()

    def rollcall(who):
        for _ in range(rounds):
            lock = acquire(path, name=who)
            token = lock.held().fencing_token
            with guard:
                tokens.append(token)
            work(who)
            lock.cancel()

    def nd_service_registry(who):
        lock = nd.get_lock(path, name=who, wait=0)
        for _ in range(rounds):
            eventually("nd gets the lock", lock.acquire)
            work(who)
            lock.release()

    def guarded(contender, who):
        try:
            contender(who)
        except BaseException as error:  # noqa: BLE001 - shown by the test, whatever it is
            failures.append((who, repr(error)))

    contenders = [(kazoo, "kazoo 1"), (kazoo, "kazoo 2"), (rollcall, "rollcall 1"), (rollcall, "rollcall 2")]
    contenders.append((nd_service_registry, "nd"))
    threads = [threading.Thread(target=guarded, args=contender, daemon=True) for contender in contenders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * SOON)
        assert not thread.is_alive()
    assert not failures
    assert tokens == sorted(set(tokens)) and len(tokens) == 2 * rounds
