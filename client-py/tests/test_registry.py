"""The verbs, on one replica."""

import json
import os
import re
import threading

import pytest
from conftest import Seen, eventually

import rollcall
from rollcall import core, v1


def test_what_is_registered_is_what_nd_would_write(registry, zk, path):
    ours, node = registry(), f"{path}/server1:22"
    assert ours.set_node(node, {"foo": "bar", "n": 3, "big": 1.5, "tags": ["a", {"b": None}], "größe": True}) is True
    raw, stat = zk.get(node)
    data = json.loads(raw)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", data.pop("created"))
    assert data == {"pid": os.getpid(), "foo": "bar", "n": 3, "big": 1.5, "tags": ["a", {"b": None}], "größe": True}
    assert stat.ephemeralOwner != 0 and zk.get(path)[0] == b""

    # Other data are written; without data, the node keeps its data.
    assert ours.set_node(node, "a string") is True
    assert json.loads(zk.get(node)[0])["string_value"] == "a string"
    assert ours.set_node(node) is True
    assert json.loads(zk.get(node)[0])["string_value"] == "a string"
    # A double would change this number.
    ours.set_node(node, {"n": 2**60 + 1, "created": "2012-12-14 21:17:50"})
    assert json.loads(zk.get(node)[0]) == {"pid": os.getpid(), "created": "2012-12-14 21:17:50", "n": 2**60 + 1}

    assert ours.set_node(node, state=False) is True
    assert zk.exists(node) is None
    assert ours.unset(node) is True, "that there is none is fine"


def test_durable_data_are_written_and_deleted(registry, zk, path):
    ours = registry()
    assert ours.set_data(path, {"limit": 5}) is True
    raw, stat = zk.get(path)
    assert json.loads(raw)["limit"] == 5 and json.loads(raw)["pid"] == os.getpid() and stat.ephemeralOwner == 0
    assert ours.set(path, "text", True, rollcall.DataNode) is True
    assert ours.get(path)["data"]["string_value"] == "text"
    assert ours.unset(path) is True
    assert ours.get(path)["stat"] is None


def test_what_was_written_is_in_the_next_get(registry, path):
    ours = registry()
    for number in range(200):
        # One list is followed already, the other is not.
        for parent in (f"{path}/followed", f"{path}/new{number}"):
            node = f"{parent}/{number}"
            ours.set_node(node, {"number": number})
            assert ours.get(parent)["children"][node.rpartition("/")[2]]["number"] == number
            ours.set_node(node, {"number": -number})
            assert ours.get(parent)["children"][node.rpartition("/")[2]]["number"] == -number
            ours.unset(node)
            assert ours.get(parent)["children"] == {}
        ours.set_data(f"{path}/data", {"number": number})
        assert ours.get(f"{path}/data")["data"]["number"] == number


def test_get_has_the_shape_of_the_documents(registry, zk, path):
    ours = registry()
    assert ours.get(path) == {"path": path, "data": None, "children": {}, "stat": None}
    zk.create(path, b" some text\n")
    for name, data in {"b": b'{"x":1}', "a": b"", "c": b"text", "d": b"\xff", "e": b" "}.items():
        zk.create(f"{path}/{name}", data)
    expected = {"a": None, "b": {"x": 1}, "c": {"string_value": "text"}, "d": b"\xff", "e": {}}
    eventually("all are seen", lambda: ours.get(path)["children"] == expected)
    node = ours.get(path)
    assert list(node["children"]) == ["a", "b", "c", "d", "e"]
    assert node["data"] == {"string_value": "some text"}
    assert node["stat"].czxid == zk.exists(path).czxid and isinstance(node["stat"], rollcall.ZnodeStat)
    names = registry(names_only=True)
    assert names.get(path)["children"] == ["a", "b", "c", "d", "e"]


def test_callbacks_come_once_for_each_change(registry, path):
    ours, seen, more = registry(), Seen(), Seen()
    ours.get(path, callback=seen)
    assert len(seen.all) == 1, "called before get returns"
    ours.add_callback(path, seen)
    ours.set_node(f"{path}/one", {"n": 1})
    eventually("one", lambda: seen.lists[-1] == ["one"])
    ours.set_node(f"{path}/one", {"n": 2})
    eventually("changed", lambda: seen.last["children"]["one"]["n"] == 2)
    ours.set_node(f"{path}/two")
    eventually("two", lambda: seen.lists[-1] == ["one", "two"])
    ours.unset(f"{path}/one")
    eventually("one is gone", lambda: seen.lists[-1] == ["two"])
    # The parent came before its first child.
    assert seen.lists in (
        [[], [], ["one"], ["one"], ["one", "two"], ["two"]],
        [[], ["one"], ["one"], ["one", "two"], ["two"]],
    )
    ours.add_callback(path, more)
    assert more.lists == [["two"]]


def test_a_callback_that_raises_or_asks_harms_nothing(registry, path):
    ours, seen = registry(), Seen()

    def asks(node):
        seen(ours.get(path))
        ours.get(f"{path}/other", callback=lambda other: seen(other))
        raise RuntimeError("a fault of the program")

    ours.get(path, callback=asks)
    ours.set_node(f"{path}/one")
    eventually("both are told", lambda: any("one" in node["children"] for node in seen.all))
    assert any(node["path"] == f"{path}/other" for node in seen.all)


def test_a_large_list_is_told_whole(registry, path):
    writer, reader, seen = registry(), registry(), Seen()
    text = "x" * 20_000
    for number in range(150):
        writer.set_node(f"{path}/{number:03}", {"text": text})
    # 3 MB, so it comes in parts.
    reader.get(path, callback=seen)
    assert seen.lists == [[f"{number:03}" for number in range(150)]]


def test_wait_holds_the_answer_back_until_there_is_a_child(registry, path):
    ours, other, seen = registry(), registry(), Seen()
    assert ours.get(path, wait=0.05)["children"] == {}
    threading.Timer(0.3, lambda: other.set_node(f"{path}/one")).start()
    assert list(ours.get(path, callback=seen, wait=20)["children"]) == ["one"]
    assert seen.lists == [["one"]]


def test_state_and_start_and_stop(registry, path):
    ours, other, states = registry(), registry(), Seen()
    assert ours.get_state(states) is True and states.all == [True]
    ours.set_node(f"{path}/one", {"n": 1})
    assert ours.acquire_lock(f"{path}/lock") is True
    eventually("seen", lambda: other.get(path)["children"].get("one", {}).get("n") == 1)
    ours.stop()
    assert ours.get_state() is False
    eventually("taken down", lambda: "one" not in other.get(path)["children"])
    with pytest.raises(rollcall.NoConnection):
        ours.set_node(f"{path}/two")
    with pytest.raises(rollcall.NoConnection):
        ours.get(f"{path}/never-seen")
    with other.get_lock(f"{path}/lock", wait=20) as held:
        assert held
    ours.start()
    eventually("registered again", lambda: other.get(path)["children"].get("one", {}).get("n") == 1)
    eventually("told", lambda: states.all[:3] == [True, False, True])
    ours.rebuild()
    eventually("and again", lambda: "one" in ours.get(path)["children"])


def test_refusals_are_exceptions_with_a_reason(registry, path):
    ours = registry()
    ours.set_data(path)
    with pytest.raises(rollcall.Refused) as refused:
        ours.set_node(path)
    assert refused.value.reason == "NOT_EPHEMERAL"
    with pytest.raises(rollcall.Refused) as refused:
        ours.set_node("no path")
    assert refused.value.reason == "INVALID_PATH"
    for _ in range(2):
        with pytest.raises(rollcall.Refused) as refused:
            ours.get("no path")
        assert refused.value.reason == "INVALID_PATH"
    with pytest.raises(rollcall.Refused) as refused:
        ours.get_lock(path).acquire()
    assert refused.value.reason == "NOT_A_LOCK"
    with pytest.raises(TypeError):
        ours.set_node(f"{path}/one", {"bytes": b""})
    assert issubclass(rollcall.Refused, rollcall.ServiceRegistryException)


def test_read_only(registry, path):
    ours = registry(readonly=True)
    for verb in (ours.set_node, ours.set_data, ours.unset):
        with pytest.raises(rollcall.ReadOnly):
            verb(path)
    assert ours.get(path)["stat"] is None


def test_who_registers_takes_over_and_the_other_is_told(registry, path):
    lost = Seen()
    first, second = registry(on_lost=lost), registry()
    first.set_node(f"{path}/one", {"n": 1})
    second.set_node(f"{path}/one", {"n": 2})
    eventually("told", lambda: lost.all == [(f"{path}/one", "TAKEN_OVER")])
    eventually("seen", lambda: first.get(path)["children"]["one"]["n"] == 2)
    # The path can be taken back.
    first.set_node(f"{path}/one", {"n": 3})
    eventually("seen", lambda: second.get(path)["children"]["one"]["n"] == 3)


def test_what_is_lost_with_the_answer_is_not_registered_again(registry, path):
    mine = registry()
    core = mine._ready().core
    register = core.register

    async def and_lost(node, data):
        await register(node, data)
        registrations = core.session.registrations
        lost = v1.Lost(path=node, generation=registrations.entries[node].generation, reason=v1.LOST_REASON_TAKEN_OVER)
        mine._lost(registrations.take(v1.RegisterResponse(lost=lost)))

    core.register = and_lost
    mine.set_node(f"{path}/one")
    # These are the registrations that a new start would make.
    assert mine._registered == {}


def test_credentials_are_kept(registry):
    ours = registry(username="user", password="secret")
    assert (ours.username(), ours.password()) == ("user", "secret")
    ours.set_username("other")
    ours.set_password("too")
    assert (ours.username(), ours.password()) == ("other", "too")


def test_one_registry_for_a_whole_program(run, fleet, path):
    program = run("singleton_program.py", fleet.server)
    assert program.answer() == [True, []]


def test_what_is_too_large_is_refused_at_once_and_holds_up_nothing(registry, path):
    ours = registry(lazy=True, timeout=2)
    ours.set_node(f"{path}/one", {"n": 1})
    stream = ours._engine.core.session._held
    large = {"text": "x" * (2 * 1024 * 1024)}
    for refuses in (
        lambda: ours.set_node(f"{path}/large", large),
        lambda: ours.set_node(f"{path}/one", large),
        lambda: ours.set_data(f"{path}/large", large),
        lambda: ours.get_lock(path, name=large["text"]).acquire(),
    ):
        with pytest.raises(rollcall.Refused) as refused:
            refuses()
        assert refused.value.reason == "VALUE_TOO_LARGE"
    assert ours._engine.core.session._held is stream, "nothing of it was said"
    assert ours.set_node(f"{path}/two") is True
    eventually("both are there", lambda: sorted(ours.get(path)["children"]) == ["one", "two"])
    assert ours.get(path)["children"]["one"]["n"] == 1


def test_what_no_replica_can_read_holds_up_nothing(registry, path, monkeypatch):
    """A replica of another version may read less than this client assumes."""
    monkeypatch.setattr(core, "check_size", lambda request: None)
    ours = registry(timeout=10)
    ours.set_node(f"{path}/one")
    with pytest.raises(rollcall.Refused) as refused:
        ours.set_node(f"{path}/large", {"text": "x" * (2 * 1024 * 1024)})
    assert refused.value.reason == "VALUE_TOO_LARGE"
    assert ours.set_node(f"{path}/two") is True


def test_the_same_data_are_not_written_again(registry, zk, path):
    ours = registry()
    ours.set_data(path, {"n": 1, "list": [1, {"a": None}]})
    version = zk.exists(path).version
    assert ours.set_data(path, {"n": 1, "list": [1, {"a": None}]}) is True
    assert registry().set_data(path, {"list": [1, {"a": None}], "n": 1}) is True, "whichever program has written them"
    assert zk.exists(path).version == version
    zk.set(path, b"of another")
    assert ours.set_data(path, {"n": 1, "list": [1, {"a": None}]}) is True
    assert json.loads(zk.get(path)[0])["n"] == 1


def test_data_are_written_though_others_write_at_the_same_time(registry, zk, path):
    threads = [
        threading.Thread(target=lambda ours=registry(), number=number: ours.set_data(path, {"n": number}))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert zk.exists(path).version == 7, "each of them once"
