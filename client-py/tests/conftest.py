"""The helpers of the Python client's tests. The environment has to give:

ROLLCALL_SERVER_BIN  the program rollcall-server
ZOOKEEPER_ADDR       HOST:PORT/CHROOT, a ZooKeeper and an empty chroot

Each test runs on that ZooKeeper and on the embedded server, with replicas of its own, which it may kill. Every wait has
a deadline; `cargo test -p rollcall-tests -- polyglot` starts all of it.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from kazoo.client import KazooClient

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import rollcall  # noqa: E402

# Seconds that anything may take, if no ZooKeeper session has to expire for it.
SOON = 20


def needed(variable):
    if variable not in os.environ:
        pytest.exit(f"{variable} is not set: see client-py/tests/conftest.py", returncode=4)
    return os.environ[variable]


def eventually(what, probe, seconds=SOON):
    """Calls `probe` until it returns something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        seen = probe()
        if seen:
            return seen
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


class Replica:
    """A rollcall-server on a port of its own."""

    def __init__(self, directory, *options, listen="127.0.0.1:0"):
        self._log = open(directory / f"server-{time.monotonic_ns()}.log", "w+b")
        command = [needed("ROLLCALL_SERVER_BIN"), "--listen", listen, "--http-listen", "127.0.0.1:0", *options]
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL)
        self.address = eventually("a replica listens", lambda: self._said(rb"listening grpc=(\S+) "))

    def _said(self, pattern):
        text = pathlib.Path(self._log.name).read_bytes()
        assert self.process.poll() is None, text.decode()
        found = re.search(pattern, text)
        return found and found[1].decode()

    def memory(self):
        """The address where an embedded server serves ZooKeeper's protocol."""
        return eventually("the memory is served", lambda: self._said(rb"served on (\S+?),"))

    def kill(self):
        self.process.kill()
        self.process.wait(SOON)

    def stop(self):
        """Drains the server, and waits for its end."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(SOON)


class Fleet:
    """Replicas on one backend."""

    def __init__(self, directory, hosts):
        self._directory = directory
        self.hosts = hosts
        self.replicas = []

    def start(self, *more, listen="127.0.0.1:0"):
        options = ["--zookeeper", self.hosts, "--session-timeout", "6s", "--drain", "5s", *more]
        self.replicas.append(Replica(self._directory, *options, listen=listen))
        return self.replicas[-1]

    @property
    def server(self):
        return ",".join(replica.address for replica in self.replicas)


@pytest.fixture(scope="session")
def embedded(tmp_path_factory):
    """The address of a process that serves ZooKeeper's protocol from memory."""
    replica = Replica(tmp_path_factory.mktemp("embedded"), "--embedded")
    yield replica.memory()
    replica.kill()


@pytest.fixture(params=["embedded", "zookeeper"])
def hosts(request, embedded):
    return embedded if request.param == "embedded" else needed("ZOOKEEPER_ADDR")


@pytest.fixture
def zk(hosts):
    """A kazoo client, to see the nodes in ZooKeeper itself."""
    client = KazooClient(hosts=hosts, timeout=20)
    client.start(timeout=20)
    yield client
    client.stop()
    client.close()


@pytest.fixture
def fleet(tmp_path, hosts):
    """One replica; a test may start more."""
    fleet = Fleet(tmp_path, hosts)
    fleet.start()
    yield fleet
    for replica in fleet.replicas:
        replica.kill()


@pytest.fixture
def two(fleet):
    """Two replicas."""
    fleet.start()
    return fleet


@pytest.fixture
def path(request):
    """A path of this test alone."""
    return "/" + re.sub(r"\W+", "-", request.node.name).strip("-")


@pytest.fixture
def registry(fleet):
    """Makes registries that are stopped after the test; by default, of all replicas."""
    made = []

    def make(server=None, **options):
        made.append(rollcall.ServiceRegistry(server or fleet.server, **{"timeout": SOON, **options}))
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.fixture
def run(tmp_path):
    """Runs a program of this directory that reads commands, as JSON, and answers each with one line of JSON."""
    started = []

    def start(script, *arguments):
        started.append(Program(tmp_path, script, *arguments))
        return started[-1]

    yield start
    for program in started:
        program.kill()


class Program:
    """Another process."""

    def __init__(self, directory, script, *arguments):
        self._errors = open(directory / f"{script}-{time.monotonic_ns()}.log", "w+b")
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        )

    def do(self, *command):
        """Sends a command, and returns its answer."""
        self.say(*command)
        return self.answer()

    def say(self, *command):
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self):
        line = self.process.stdout.readline()
        assert line, pathlib.Path(self._errors.name).read_text()
        return json.loads(line)

    def end(self):
        """Lets the process end, and returns its standard error."""
        self.process.stdin.close()
        assert self.process.wait(SOON) == 0
        return pathlib.Path(self._errors.name).read_text()

    def kill(self):
        self.process.kill()
        self.process.wait(SOON)
        self.process.stdin.close()
        self.process.stdout.close()


class Seen:
    """A callback that keeps its calls."""

    def __init__(self):
        self.all = []

    def __call__(self, *what):
        self.all.append(what[0] if len(what) == 1 else what)

    @property
    def last(self):
        return self.all[-1] if self.all else None

    @property
    def lists(self):
        """The names of the children in each call."""
        return [sorted(node["children"]) for node in self.all]
