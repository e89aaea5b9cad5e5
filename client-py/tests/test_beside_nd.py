"""Beside real nd_service_registry processes, both ways."""

import threading

from conftest import SOON, Seen, eventually


def test_each_sees_what_the_other_registers(registry, run, hosts, path):
    ours, nd, seen = registry(), run("nd_program.py", hosts), Seen()
    ours.get(path, callback=seen)
    nd.do("set_node", f"{path}/nd:1", {"foo": "bar"})
    eventually("ours sees nd's", lambda: ours.get(path)["children"].get("nd:1", {}).get("foo") == "bar")
    nd.do("add_callback", path)
    ours.set_node(f"{path}/ours:1", {"n": 3})
    eventually("nd sees ours", lambda: nd.do("get", path)["children"] == ["nd:1", "ours:1"])
    assert nd.do("get", f"{path}/ours:1")["data"]["n"] == 3
    theirs = nd.do("get", f"{path}/nd:1")["data"]
    assert ours.get(f"{path}/nd:1")["data"] == theirs
    ours.set_data(f"{path}/data", "text")
    eventually("nd reads it", lambda: (nd.do("get", f"{path}/data")["data"] or {}).get("string_value") == "text")
    nd.do("set_data", f"{path}/data", {"n": 2})
    eventually("we read it", lambda: ours.get(f"{path}/data")["data"].get("n") == 2)

    nd.do("unset", f"{path}/nd:1")
    ours.unset(f"{path}/ours:1")
    eventually(
        "both saw both go", lambda: ours.get(path)["children"].keys() == {"data"} and nd.do("seen")[-1] == ["data"]
    )
    assert ["nd:1", "ours:1"] in seen.lists


def test_a_killed_nd_process_goes_and_ours_takes_its_place(registry, run, hosts, path):
    ours, nd = registry(), run("nd_program.py", hosts)
    nd.do("set_node", f"{path}/server:1", {"who": "nd"})
    eventually("seen", lambda: ours.get(path)["children"].get("server:1", {}).get("who") == "nd")
    nd.kill()
    # The same service restarts with this client before ZooKeeper has noticed the end of the old one.
    ours.set_node(f"{path}/server:1", {"who": "ours"})
    eventually("taken over", lambda: ours.get(path)["children"].get("server:1", {}).get("who") == "ours")


def test_one_lock_for_both(registry, run, hosts, path):
    ours, nd = registry(), run("nd_program.py", hosts)
    assert nd.do("acquire_lock", path, "nd", 1, 5) is True
    assert ours.acquire_lock(path, wait=0) is False
    got = []
    thread = threading.Thread(target=lambda: got.append(ours.acquire_lock(path, wait=60)))
    thread.start()
    assert nd.do("release_lock", path) is True
    thread.join(SOON)
    assert got == [True], "granted in turn"
    other = run("nd_program.py", hosts)
    assert other.do("acquire_lock", path, "other", 1, 1) is False
    assert ours.release_lock(path) is True
    third = run("nd_program.py", hosts)
    # The process that has tried in vain is still in the queue, as nd leaves it.
    other.kill()
    eventually("nd gets it", lambda: third.do("acquire_lock", path, "third", 1, 20))
