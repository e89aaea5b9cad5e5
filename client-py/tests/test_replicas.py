"""Replicas that die, drain, hang, or do not exist."""

import asyncio
import json
import os
import signal
import socket
import threading
import time

import pytest
from conftest import SOON, Fleet, Replica, Seen, eventually

import rollcall
from rollcall import aio, transport, transport_aio, v1
from rollcall.errors import Failure


def free_address():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return "127.0.0.1:%d" % found.getsockname()[1]


def holder_of(fleet, ours):
    """The replica that a registry uses."""
    engine = ours._engine
    held = eventually("it is registered", lambda: engine.core.session._held)
    return fleet.replicas[held.replica.index]


def test_a_killed_replica_is_not_missed(two, registry, zk, path):
    ours, watcher, seen, lost = registry(), registry(), Seen(), Seen()
    for number in range(20):
        ours.set_node(f"{path}/{number}", {"n": number})
    watcher.get(path, callback=seen)
    lock = ours.get_lock(f"{path}-lock", on_lost=lost)
    assert lock.acquire()
    token = lock.fencing_token
    dead = holder_of(two, ours)
    sessions = {zk.exists(f"{path}/{number}").ephemeralOwner for number in range(20)}
    told = len(seen.all)
    dead.kill()
    other = next(replica for replica in two.replicas if replica is not dead)

    # Everything goes on at the other replica.
    eventually(
        "moved", lambda: (held := ours._engine.core.session._held) and held.replica.index == two.replicas.index(other)
    )
    eventually("taken over", lambda: ours._engine.core.session.registrations.is_settled())
    ours.set_node(f"{path}/0", {"n": 100})
    eventually("seen", lambda: watcher.get(path)["children"]["0"]["n"] == 100)
    # The end of the dead replica's sessions takes nothing down.
    fences = "/.rollcall/fences"

    def owners():
        stats = [zk.exists(f"{fences}/{name}") for name in zk.get_children(fences)]
        return {stat.ephemeralOwner for stat in stats if stat is not None}

    eventually("the sessions are over", lambda: not sessions & owners(), 2 * SOON)
    assert sorted(zk.get_children(path), key=int) == [str(number) for number in range(20)]
    assert [len(node["children"]) for node in seen.all[told:]] == [20], "told of the one change, and of nothing else"
    assert lock.status() and lock.fencing_token == token and lost.all == []
    lock.release()
    assert watcher.get_state() is True


def test_a_replica_that_drains_hands_over(two, registry, zk, path):
    ours, seen = registry(), Seen()
    for number in range(5):
        ours.set_node(f"{path}/{number}")
    registry().get(path, callback=seen)
    told = len(seen.all)
    with ours.get_lock(f"{path}-lock") as held:
        assert held
        holder_of(two, ours).stop()
        assert ours.get_lock(f"{path}-lock").status()
    assert sorted(zk.get_children(path)) == ["0", "1", "2", "3", "4"]
    assert ours.set_node(f"{path}/5")
    eventually("seen", lambda: len(seen.last["children"]) == 6)
    assert len(seen.all) == told + 1


def test_a_replica_that_hangs_is_left(two, registry, zk, path):
    ours = registry(ttl=3)
    ours.set_node(f"{path}/one")
    hung = holder_of(two, ours)
    hung.process.send_signal(signal.SIGSTOP)
    try:
        eventually(
            "moved",
            lambda: (
                two.replicas[ours._engine.core.session._held.replica.index] is not hung
                if ours._engine.core.session._held
                else False
            ),
        )
        assert ours.set_node(f"{path}/two")
        assert sorted(zk.get_children(path)) == ["one", "two"]
    finally:
        hung.process.send_signal(signal.SIGCONT)


def test_who_comes_back_does_not_take_what_is_newer(two, registry, zk, path):
    lost = Seen()
    ours = registry(ttl=3, on_lost=lost)
    ours.set_node(f"{path}/one", {"n": 1})
    hung = holder_of(two, ours)
    hung.process.send_signal(signal.SIGSTOP)
    try:
        other = registry(next(replica for replica in two.replicas if replica is not hung).address)
        other.set_node(f"{path}/one", {"n": 2})
        eventually("told", lambda: lost.all == [(f"{path}/one", "TAKEN_OVER")])
        assert json.loads(zk.get(f"{path}/one")[0])["n"] == 2
    finally:
        hung.process.send_signal(signal.SIGCONT)


def test_a_replica_that_drained_is_tried_again_while_the_others_are_down(fleet, registry, zk, path):
    home, lost, granted = fleet.replicas[0], Seen(), Seen()
    server = f"{free_address()},{home.address}"
    ours = registry(server, ttl=12, lock_ttl=12, on_lost=lost)
    ours.set_node(f"{path}/one")
    lock = ours.get_lock(f"{path}-lock", on_lost=lost)
    assert lock.acquire()
    token = lock.fencing_token
    waiter = registry(server, lock_ttl=12).get_lock(f"{path}-lock")
    waiting = threading.Thread(target=lambda: granted(waiter.acquire()))
    waiting.start()
    queue = f"{path}-lock-__lock__"
    eventually("it waits", lambda: zk.exists(queue) and len(zk.get_children(queue)) == 1)
    home.stop()
    fleet.start(listen=home.address)
    eventually("it waits again", lambda: len(zk.get_children(queue)) == 1)
    ours.set_node(f"{path}/two")
    assert lock.status() and lock.fencing_token == token and lost.all == granted.all == []
    assert sorted(zk.get_children(path)) == ["one", "two"]
    assert lock.release()
    waiting.join(SOON)
    assert granted.all == [True] and waiter.fencing_token > token
    waiter.release()


class Bad:
    """An address where each connection is closed at once or, if it hangs, never answered."""

    def __init__(self, hangs=False, tell=lambda address: None):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._hangs, self._tell, self._held = hangs, tell, []
        self.address = "127.0.0.1:%d" % self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._tell(self.address)
            if self._hangs:
                self._held.append(connection)
            else:
                connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()
        for connection in self._held:
            connection.close()


@pytest.mark.parametrize("connect", [transport.Connection, transport_aio.AioConnection])
def test_each_address_of_a_name_is_tried_in_a_random_order(fleet, monkeypatch, connect):
    # A list of addresses has no name of its own to present to the server.
    for module in (transport, transport_aio):
        monkeypatch.setattr(module, "OPTIONS", (*transport.OPTIONS, ("grpc.default_authority", "name")))

    async def ask(addresses, bound):
        connection = connect("ipv4:" + ",".join(addresses), None, None)
        try:
            request = v1.GetRequest(path="/")
            return await connection.unary("rollcall.v1.Registry/Get", request, v1.GetResponse, bound)
        finally:
            await connection.close()

    with Bad(hangs=True) as hangs, Bad() as closes:
        addresses = [hangs.address, closes.address, free_address(), fleet.replicas[0].address]
        for _ in range(5):
            assert asyncio.run(ask(addresses, SOON)).node.exists
    firsts = set()
    for _ in range(30):
        tried = Seen()
        with Bad(tell=tried) as one, Bad(tell=tried) as other:
            with pytest.raises(Failure):
                asyncio.run(ask([one.address, other.address], 1))
            firsts.add(tried.all[0] == one.address)
        if len(firsts) == 2:
            return
    pytest.fail("the first address is always tried first")


def test_the_only_replica_restarts(fleet, registry, path):
    states, seen = Seen(), Seen()
    ours = registry()
    ours.get_state(states)
    ours.set_node(f"{path}/one", {"n": 1})
    ours.get(path, callback=seen)
    address = fleet.replicas[0].address
    fleet.replicas[0].kill()
    eventually("told", lambda: states.all == [True, False])
    assert list(ours.get(path)["children"]) == ["one"], "what is known is told"
    fleet.start(listen=address)
    eventually("told", lambda: states.all == [True, False, True])
    assert ours.set_node(f"{path}/two")
    eventually("seen", lambda: seen.lists[-1] == ["one", "two"])
    assert all("one" in names for names in seen.lists), seen.lists


def test_the_state_is_that_of_zookeeper_behind_the_replica_too(tmp_path, path):
    """An embedded server takes the place of ZooKeeper here: it is stopped, and killed."""
    backend = Replica(tmp_path, "--embedded")
    own = Fleet(tmp_path, backend.memory())
    front = own.start()
    states, others = Seen(), []
    ours = rollcall.ServiceRegistry(front.address, timeout=SOON)
    assert ours.get_state(states) is True
    ours.get(path)

    async def follow():
        async with aio.ServiceRegistry(front.address, timeout=SOON) as registry:
            registry.get_state(others.append)
            while others[-1:] != [False]:
                await asyncio.sleep(0.05)

    for stopped, what in ((backend, "zookeeper hangs"), (front, "the replica hangs")):
        stopped.process.send_signal(signal.SIGSTOP)
        try:
            eventually(f"{what}: told", lambda: states.last is False, 3 * SOON)
            assert ours.get_state() is False
        finally:
            stopped.process.send_signal(signal.SIGCONT)
        eventually("both are back", lambda: states.last is True and ours.get_state() is True, 3 * SOON)
    following = threading.Thread(target=lambda: asyncio.run(asyncio.wait_for(follow(), 3 * SOON)))
    following.start()
    eventually("it follows", lambda: others == [True])
    backend.kill()
    eventually("told", lambda: states.last is False, SOON)
    following.join(3 * SOON)
    assert others[:2] == [True, False]
    with pytest.raises(rollcall.NoConnection):
        rollcall.ServiceRegistry(front.address, timeout=1)
    lazy = rollcall.ServiceRegistry(front.address, timeout=1, lazy=True)
    assert lazy.get_state() is False and lazy.set_node(f"{path}/one") is False
    front.kill()
    ours.stop()
    lazy.stop()


@pytest.fixture
def without(tmp_path):
    """A replica that has no ZooKeeper."""
    replica = Replica(tmp_path, "--zookeeper", free_address())
    yield replica
    replica.kill()


def test_the_start_finds_the_one_replica_that_has_zookeeper(fleet, without, registry, path):
    server = f"{without.address},{fleet.server}"
    for timeout in (0.5, SOON):
        for _ in range(4):
            ours = registry(server, timeout=timeout)
            assert ours.get_state() is True
    assert ours.set_node(f"{path}/one") and list(ours.get(path)["children"]) == ["one"]

    async def follow():
        for _ in range(4):
            async with aio.ServiceRegistry(server, timeout=0.5) as each:
                assert each.get_state()

    asyncio.run(follow())


def test_everything_goes_to_a_replica_that_has_zookeeper(fleet, without, registry, path):
    address, seen, granted = free_address(), Seen(), Seen()
    ours = registry(f"{without.address},{address}", timeout=1, lazy=True)
    lock = ours.get_lock(f"{path}-lock", wait=3 * SOON)
    ours.add_callback(path, seen)
    assert ours.set_node(f"{path}/one") is False
    held = eventually("it waits where there is no zookeeper", lambda: ours._engine.core.session._held)
    assert held.replica.index == 0
    waiting = threading.Thread(target=lambda: granted(lock.acquire()))
    waiting.start()
    fleet.start(listen=address)
    eventually("registered", lambda: seen.all and list(seen.last["children"]) == ["one"])
    eventually("up", ours.get_state)
    waiting.join(3 * SOON)
    assert granted.all == [True] and lock.release()
    assert ours._engine.core.session._held.replica.index == 1


def test_what_another_replica_has_no_room_for_goes_back_and_waits_where_it_was(fleet, without, registry, path):
    address = free_address()
    ours = registry(f"{without.address},{address}", timeout=0.1, lazy=True)
    for number in range(40):
        assert ours.set_node(f"{path}/{number}", "x" * 250_000) is False
    session = ours._engine.core.session
    assert eventually("it waits", lambda: session._held).replica.index == 0
    fleet.start("--max-bytes-per-connection", str(8 << 20), listen=address)
    eventually("it was there", lambda: session._left is not None and session._left.replica.index == 1, 3 * SOON)
    assert session._held.replica.index == 0 and len(session.registrations.entries) == 40


def test_a_registry_stays_while_no_replica_has_zookeeper(without, tmp_path, registry, path):
    other = Replica(tmp_path, "--zookeeper", free_address())
    try:
        ours = registry(f"{without.address},{other.address}", timeout=1, lazy=True)
        assert ours.set_node(f"{path}/one") is False
        held = eventually("it waits", lambda: ours._engine.core.session._held)
        # Nothing must happen. The time is long enough for a client that moves to have moved more than once.
        time.sleep(4)
        assert ours._engine.core.session._held is held
    finally:
        other.kill()


def test_no_server_at_the_start(tmp_path, hosts, registry, path, caplog):
    address = free_address()
    begun = time.monotonic()
    with pytest.raises(rollcall.NoConnection):
        registry(address, timeout=1)
    ours, seen, states = registry(address, timeout=1, lazy=True), Seen(), Seen()
    assert ours.get_state(states) is False
    with pytest.raises(rollcall.NoConnection):
        ours.get(path)
    ours.add_callback(path, seen)
    assert seen.all == []
    assert ours.set_node(f"{path}/one", {"n": 1}) is False, "as soon as there is one"
    assert ours.set_node(f"{path}/two") is False and ours.unset(f"{path}/two") is False
    assert sum("not registered yet" in line or "not taken down yet" in line for line in caplog.messages) == 3
    with pytest.raises(rollcall.NoConnection):
        ours.acquire_lock(f"{path}-lock")
    with pytest.raises(rollcall.NoConnection):
        ours.set_data(f"{path}/data")
    assert time.monotonic() - begun < SOON, "nobody waits for ever"
    fleet = Fleet(tmp_path, hosts)
    fleet.start(listen=address)
    try:
        eventually("registered", lambda: seen.all and list(seen.last["children"]) == ["one"])
        eventually("told", lambda: states.all == [False, True])
        assert ours.get(path)["children"]["one"]["n"] == 1
        eventually("both", lambda: ours.set_node(f"{path}/one", {"n": 2}) and "two" not in ours.get(path)["children"])
    finally:
        fleet.replicas[0].kill()


def test_a_program_that_ends_says_goodbye_and_nothing_else(fleet, run, zk, path):
    program = run("our_program.py", fleet.server)
    assert program.do("set_node", f"{path}/one") is True
    assert program.do("acquire_lock", f"{path}-lock") is True
    assert zk.get_children(path) == ["one"] and zk.get_children(f"{path}-lock")
    assert program.end() == ""
    assert zk.get_children(path) == [] and zk.get_children(f"{path}-lock") == []


def test_without_a_server_a_program_is_quiet_and_ends(run, path):
    program = run("our_program.py", "127.0.0.1:1", json.dumps({"lazy": True, "timeout": 0.5}))
    assert program.do("set_node", f"{path}/one") is False
    assert program.end() == ""


def test_the_cache_file_tells_what_nobody_else_can(fleet, registry, tmp_path, path):
    file = tmp_path / "cache.json"
    ours = registry(cachefile=str(file), timeout=2)
    ours.set_node(f"{path}/one", {"n": 1})
    eventually("known", lambda: ours.get(path)["children"])
    ours.set_data(path, "text")
    eventually("kept", lambda: file.exists() and "text" in file.read_text())
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text())["version"] == 1
    assert os.listdir(tmp_path).count("cache.json") == 1

    # An empty list never replaces a known one.
    ours.unset(f"{path}/one")
    eventually("empty", lambda: not ours.get(path)["children"])
    ours.stop()
    assert "text" in file.read_text()

    address = fleet.replicas[0].address
    fleet.replicas[0].kill()
    seen = Seen()
    again = registry(address, cachefile=str(file), timeout=2, lazy=True)
    node = again.get(path, callback=seen)
    assert node["children"]["one"]["n"] == 1 and node["data"]["string_value"] == "text"
    assert seen.all == [node] and isinstance(node["stat"], rollcall.ZnodeStat)
    with pytest.raises(rollcall.NoConnection):
        again.get(f"{path}/unknown")
    fleet.start(listen=address)
    eventually("the truth", lambda: seen.lists[-1] == [])
    file.write_text("no cache")
    assert registry(cachefile=str(file)).get(path)["children"] == {}
