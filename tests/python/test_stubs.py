"""All eight calls through plain generated stubs, like a program that knows nothing but our protos."""

import datetime

import grpc
import pytest
from conftest import error_info, plain, struct
from google.protobuf import duration_pb2


def test_register_get_and_cancel(stubs, registry, register, zk, path):
    stream = register(client_name="stubs", pid=4711)
    assert stream.opened.session_id
    answer = stream.set(f"{path}/host:22", {"foo": "bar", "port": 10733})
    assert answer.path == f"{path}/host:22" and answer.generation > 0

    got = registry.Get(stubs.GetRequest(path=path, consistency=stubs.CONSISTENCY_LATEST))
    assert got.node.exists and list(got.node.children) == ["host:22"]
    child = got.node.children["host:22"]
    assert child.stat.czxid == answer.generation
    data = plain(child.value)
    assert data["foo"] == "bar" and data["port"] == 10733 and data["pid"] == 4711
    datetime.datetime.strptime(data["created"], "%Y-%m-%d %H:%M:%S")

    stream.cancel()
    watch = registry.Watch(stubs.WatchRequest(path=path), timeout=20)
    for response in watch:
        if response.WhichOneof("event") == "snapshot" and not response.snapshot.node.children:
            break
        if any(change.kind == stubs.CHANGE_KIND_REMOVED for change in response.delta.changes):
            break
    watch.cancel()
    assert zk.get_children(path) == []


def test_unset_and_close(stubs, register, zk, path):
    stream = register()
    stream.set(f"{path}/one")
    stream.set(f"{path}/two")
    assert stream.unset(f"{path}/one").path == f"{path}/one"
    assert zk.get_children(path) == ["two"]
    stream.send(close=stubs.CloseSession())
    assert stream.expect("unregistered").path == f"{path}/two"
    with pytest.raises(StopIteration):
        stream.next()
    assert stream.call.code() == grpc.StatusCode.OK
    assert zk.get_children(path) == []


def test_watch_put_and_delete(stubs, registry, path):
    watch = registry.Watch(stubs.WatchRequest(path=path), timeout=20)
    first = next(watch)
    assert first.WhichOneof("event") == "snapshot" and not first.snapshot.node.exists

    put = registry.Put(stubs.PutRequest(path=path, value=stubs.Value(data=struct({"limit": 5}))))
    assert put.stat.version == 0
    changes = next_changes(watch)
    assert [change.kind for change in changes] == [stubs.CHANGE_KIND_CREATED]
    assert plain(changes[0].child.value)["limit"] == 5

    put = registry.Put(stubs.PutRequest(path=path, value=stubs.Value(text="five"), expected_version=0))
    assert put.stat.version == 1
    changes = next_changes(watch)
    assert [change.kind for change in changes] == [stubs.CHANGE_KIND_DATA_CHANGED]
    assert plain(changes[0].child.value) == "five"

    with pytest.raises(grpc.RpcError) as refused:
        registry.Delete(stubs.DeleteRequest(path=path, expected_version=0))
    assert refused.value.code() == grpc.StatusCode.ABORTED
    info = error_info(refused.value)
    assert (info.domain, info.reason) == ("rollcall", "VERSION_MISMATCH")

    registry.Delete(stubs.DeleteRequest(path=path, expected_version=1))
    assert [change.kind for change in next_changes(watch)] == [stubs.CHANGE_KIND_DELETED]
    watch.cancel()


def next_changes(watch):
    for response in watch:
        if response.WhichOneof("event") == "delta":
            return response.delta.changes
    raise AssertionError("the watch ended")


def test_the_three_lock_calls(stubs, registry, acquire, path):
    described = registry.DescribeLock(stubs.DescribeLockRequest(path=path))
    assert (described.simultaneous, len(described.holders)) == (0, 0)

    first = acquire(path, name="first")
    queued = first.expect("queued")
    held = first.held()
    assert held.lock_id == queued.lock_id and held.fencing_token > 0

    second = acquire(path, name="second")
    waiting = second.expect("queued")
    assert list(waiting.holders) == ["first"]
    described = registry.DescribeLock(stubs.DescribeLockRequest(path=path))
    assert [party.name for party in described.holders] == ["first"]
    assert [party.name for party in described.waiters] == ["second"]
    assert described.simultaneous == 1 and described.holders[0].fencing_token == held.fencing_token

    busy = acquire(path, wait=duration_pb2.Duration(seconds=0))
    with pytest.raises(grpc.RpcError) as refused:
        busy.held()
    assert (refused.value.code(), error_info(refused.value).reason) == (grpc.StatusCode.ABORTED, "LOCK_BUSY")

    assert registry.ReleaseLock(stubs.ReleaseLockRequest(lock_id=held.lock_id)).released
    with pytest.raises(StopIteration):
        first.next()
    assert first.call.code() == grpc.StatusCode.OK
    assert second.held().fencing_token > held.fencing_token
