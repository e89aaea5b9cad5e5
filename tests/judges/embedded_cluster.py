"""A pytest plugin: kazoo's own tests, on `rollcall-server --embedded` instead of the ZooKeepers that their harness starts.

It changes nothing of kazoo except the name by which its harness finds the cluster class. Each worker of pytest-xdist has
one server, which the tests stop and start.

ROLLCALL_SERVER     the program
ROLLCALL_ADDRESSES  the addresses of ZooKeeper's protocol, one for each worker, comma-separated
ROLLCALL_OUTCOMES   the output file, with one JSON object a line for each test: name, outcome, said
"""

import json
import os
import subprocess
import sys
import tempfile
import types

import pytest

# kazoo's harness makes certificates with these two modules, for TLS, which is not served here.
for name in ("OpenSSL", "jks"):
    sys.modules.setdefault(name, types.ModuleType(name))

from kazoo.testing import harness  # noqa: E402

SOON = 20

# Ends the server when its input ends: a worker that hangs is ended by force, and leaves nothing behind.
KEEPER = '"$@" & exec >&-; read -r _; kill $!; wait $!'


class Server:
    """One server, with the interface that kazoo's tests expect of a ZooKeeper."""

    def __init__(self, address):
        self.address = address
        self._process = None
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")

    @property
    def running(self):
        return self._process is not None

    def run(self):
        if self.running:
            return
        server = [os.environ["ROLLCALL_SERVER"], "--embedded", "--embedded-listen", self.address]
        self._process = subprocess.Popen(
            ["sh", "-c", KEEPER, "sh", *server, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        said = self._process.stdout.readline()
        assert said.startswith("listening "), (said, self.get_logs())

    def stop(self):
        if not self.running:
            return
        self._process.stdin.close()
        self._process.wait(SOON)
        self._process.stdout.close()
        self._process = None

    def get_logs(self):
        self._log.seek(0)
        return self._log.readlines()[-100:]


class Cluster(list):
    """A cluster of one server."""

    def __init__(self, **_options):
        # A worker that replaces one that has hung has its own number.
        worker = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
        super().__init__([Server(os.environ["ROLLCALL_ADDRESSES"].split(",")[worker])])

    def start(self):
        for server in self:
            server.run()

    def terminate(self):
        for server in self:
            server.stop()

    def get_logs(self):
        return [line for server in self for line in server.get_logs()]

    def get_ssl_client_configuration(self):
        pytest.skip("there is no TLS")


harness.ZookeeperCluster = Cluster


class Outcomes:
    """Writes what became of each test, where the workers' reports come together."""

    def __init__(self, path):
        self._path = path
        self._tests = {}

    def pytest_runtest_logreport(self, report):
        # A test may pass and its clean-up fail: every failure counts.
        test = self._tests.setdefault(report.nodeid, {"name": report.nodeid, "outcome": "passed", "said": ""})
        if not report.passed:
            test["outcome"] = report.outcome
            test["said"] += f"{report.longreprtext}\n{report.caplog}\n"

    def pytest_sessionfinish(self):
        with open(self._path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(test) + "\n" for test in self._tests.values())


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(Outcomes(os.environ["ROLLCALL_OUTCOMES"]))
