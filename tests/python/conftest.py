"""Shared by the Python tests. The environment has to set:

ROLLCALL_ADDR   HOST:PORT, the server's gRPC address
ZOOKEEPER_ADDR  HOST:PORT/CHROOT, the ZooKeeper and the chroot that this server uses
ROLLCALL_STUBS  optional: a folder with stubs to be tested instead of those of grpcio-tools

Every wait has a deadline. `cargo test -p rollcall-tests polyglot` starts all of this.
"""

import importlib
import os
import pathlib
import queue
import re
import sys
import time
import types

import grpc
import pytest
from google.protobuf import json_format, struct_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from grpc_tools import protoc
from kazoo.client import KazooClient

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A time-out in seconds, for anything that needs no session to expire.
SOON = 20


def needed(variable):
    if variable not in os.environ:
        pytest.exit(f"{variable} is not set: see tests/python/conftest.py", returncode=4)
    return os.environ[variable]


@pytest.fixture(scope="session")
def stubs(tmp_path_factory):
    """The stubs of our protos: one namespace with all messages and the service."""
    protos = sorted(str(path) for path in (ROOT / "proto" / "rollcall" / "v1").glob("*.proto"))
    out = os.environ.get("ROLLCALL_STUBS")
    if out is None:
        out = tmp_path_factory.mktemp("stubs")
        included = pathlib.Path(protoc.__file__).parent / "_proto"
        arguments = [f"-I{ROOT / 'proto'}", f"-I{included}", f"--python_out={out}", f"--grpc_python_out={out}"]
        assert protoc.main(["protoc", *arguments, *protos]) == 0
    sys.path.insert(0, str(out))
    names = types.SimpleNamespace()
    for proto in protos:
        stem = pathlib.Path(proto).stem
        for suffix in ("_pb2", "_pb2_grpc"):
            vars(names).update(vars(importlib.import_module(f"rollcall.v1.{stem}{suffix}")))
    return names


@pytest.fixture(scope="session")
def registry(stubs):
    """The plain generated client."""
    with grpc.insecure_channel(needed("ROLLCALL_ADDR")) as channel:
        yield stubs.RegistryStub(channel)


@pytest.fixture(scope="session")
def zk():
    """kazoo, beside the server in the same chroot."""
    client = KazooClient(hosts=needed("ZOOKEEPER_ADDR"), timeout=20)
    client.start(timeout=SOON)
    yield client
    client.stop()
    client.close()


@pytest.fixture
def path(request):
    """A path of this test alone."""
    return "/" + re.sub(r"\W+", "-", request.node.name).strip("-")


@pytest.fixture
def register(stubs, registry):
    """Opens Register streams; those that the test leaves open are cancelled after it."""
    opened = []

    def open_stream(**open_session):
        opened.append(Registration(stubs, registry, open_session))
        return opened[-1]

    yield open_stream
    for stream in opened:
        stream.cancel()


@pytest.fixture
def acquire(stubs, registry):
    """Calls AcquireLock; locks that the test leaves held are cancelled after it."""
    opened = []

    def open_stream(path, **fields):
        opened.append(Lock(stubs, registry, path, fields))
        return opened[-1]

    yield open_stream
    for stream in opened:
        stream.cancel()


class Stream:
    """The answers of a server stream, one at a time. A heartbeat is no answer."""

    QUIET = ("kept_alive", "heartbeat")

    def __init__(self, call, oneof):
        self.call = call
        self.oneof = oneof

    def next(self):
        """The name and the value of the next answer."""
        while True:
            answer = next(self.call)
            kind = answer.WhichOneof(self.oneof)
            if kind not in self.QUIET:
                return kind, getattr(answer, kind)

    def expect(self, kind):
        found, value = self.next()
        assert found == kind, f"{found} {value} instead of {kind}"
        return value

    def cancel(self):
        self.call.cancel()


class Registration(Stream):
    """One Register stream."""

    def __init__(self, stubs, registry, open_session):
        self.stubs = stubs
        self.requests = queue.SimpleQueue()
        # The deadline ends a test that waits in vain for an answer.
        super().__init__(registry.Register(iter(self.requests.get, None), timeout=3 * SOON), "response")
        self.send(open=stubs.OpenSession(**open_session))
        self.opened = self.expect("opened")

    def send(self, **request):
        self.requests.put(self.stubs.RegisterRequest(**request))

    def set(self, path, data=None, **fields):
        """Registers `data` and returns the answer `registered`."""
        value = self.stubs.Value(data=struct(data or {}))
        self.send(set=self.stubs.SetRegistration(path=path, value=value, **fields))
        while True:
            kind, answer = self.next()
            if kind != "pending":
                assert kind == "registered", f"{kind} {answer}"
                return answer

    def unset(self, path):
        self.send(unset=self.stubs.UnsetRegistration(path=path))
        return self.expect("unregistered")

    def cancel(self):
        self.requests.put(None)
        super().cancel()


class Lock(Stream):
    """One AcquireLock stream."""

    def __init__(self, stubs, registry, path, fields):
        request = stubs.AcquireLockRequest(path=path, **fields)
        super().__init__(registry.AcquireLock(request, timeout=3 * SOON), "event")

    def held(self):
        """Waits until the lock is ours."""
        while True:
            kind, event = self.next()
            assert kind in ("queued", "held"), f"{kind} {event}"
            if kind == "held":
                return event


def struct(data):
    return json_format.ParseDict(data, struct_pb2.Struct())


def plain(value):
    """A Value as the caller's language has it; whole numbers stay whole."""
    kind = value.WhichOneof("kind")
    return json_format.MessageToDict(value.data) if kind == "data" else kind and getattr(value, kind)


def error_info(error):
    """The google.rpc.ErrorInfo that every error carries."""
    status = rpc_status.from_call(error)
    assert status is not None, f"an error without details: {error}"
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            return info
    raise AssertionError(f"no ErrorInfo: {status}")


def eventually(what, probe):
    """Calls `probe` until it returns something true, and returns that."""
    deadline = time.monotonic() + SOON
    while True:
        seen = probe()
        if seen:
            return seen
        assert time.monotonic() < deadline, f"not within {SOON} s: {what}"
        time.sleep(0.02)
