"""Checks that this environment has Rollcall's client, all of it, and no other distribution of that name.

    installed.py HOST:PORT

It registers at that server, looks the registration up, and prints the distributions, the version and the children that it found.
"""

import sys
from importlib import metadata

import rollcall
import rollcall.aio
import rollcall.contrib.django
import rollcall.v1

assert rollcall.__file__.startswith(sys.prefix), f"{rollcall.__file__} is not of this environment"
names = sorted(each.metadata["Name"] for each in metadata.distributions() if "rollcall" in each.metadata["Name"])
files = {str(file) for file in metadata.files("rollcall-client")}
for name in ("py.typed", "v1/registry_pb2.pyi", "v1/registry_pb2_grpc.py"):
    assert f"rollcall/{name}" in files, name
assert any(name.endswith("LICENSE") for name in files), "no licence"
assert not [name for name in files if "test" in name], "tests are installed, too"
assert metadata.version("rollcall-client") == rollcall.__version__

registry = rollcall.ServiceRegistry(sys.argv[1])
registry.set_node("/services/installed/host1:80", data={"zone": "a"})
found = list(registry.get("/services/installed", wait=5)["children"])
registry.stop()
print(*names, rollcall.__version__, *found)
