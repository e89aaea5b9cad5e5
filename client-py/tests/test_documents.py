"""The sessions on the pages run as printed, and the built package is complete."""

import doctest
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import HERE, Replica

from rollcall import registry as module

ROOT = HERE.parents[1]
PAGES = ["README.md", "docs/tour.md", "client-py/README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_as_printed(page, alone, monkeypatch):
    text = (ROOT / page).read_text()
    shown = "".join(block + "\n" for block in re.findall(r"```pycon\n(.*?)```", text, re.DOTALL))
    assert shown.count(">>> ") > 4, f"no session in {page}"
    # The page says localhost:7700, but the server of a test has another address.
    real = module.addresses
    monkeypatch.setattr(module, "addresses", lambda server: real(alone if server == "localhost:7700" else server))
    test = doctest.DocTestParser().get_doctest(shown, {}, page, page, 0)
    said = []
    try:
        outcome = doctest.DocTestRunner().run(test, out=said.append, clear_globs=False)
        assert outcome.failed == 0, "".join(said)
    finally:
        # Not every page shows the end.
        if "registry" in test.globs:
            test.globs["registry"].stop()


@pytest.fixture
def alone(tmp_path):
    """A server with an empty tree."""
    replica = Replica(tmp_path, "--embedded")
    replica.memory()
    yield replica.address
    replica.kill()


def test_every_public_call_has_a_line_in_the_page_on_migrating():
    page = (ROOT / "docs" / "migrating-from-nd-service-registry.md").read_text()
    from nd_service_registry import KazooServiceRegistry
    from nd_service_registry.lock import Lock

    for name in [name for name in dir(KazooServiceRegistry) if not name.startswith("_")]:
        assert f"`{name}(" in page, name
        assert callable(getattr(module.ServiceRegistry, name)), name
    for name in [name for name in dir(Lock) if not name.startswith("_")]:
        assert f"`lock.{name}()`" in page, name


def test_the_wheel_has_types_and_stubs(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(HERE.parent, source, ignore=shutil.ignore_patterns("tests", "__pycache__", "build", "*.egg-info"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
    ]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(source)], check=True, timeout=120)
    (wheel,) = tmp_path.glob("rollcall_client-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("py.typed", "v1/registry_pb2.pyi", "v1/registry_pb2_grpc.py", "contrib/django/utils.py", "aio.py"):
        assert f"rollcall/{name}" in names
    assert not [name for name in names if "test" in name]
