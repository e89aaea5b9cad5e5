"""The helper for Django, with and without Django."""

import subprocess
import sys
import types

import pytest
from conftest import HERE, SOON, Seen, eventually

from rollcall.contrib import django
from rollcall.contrib.django import utils


@pytest.fixture
def helper(fleet, tmp_path, monkeypatch):
    """The module, as a program starts with it."""
    monkeypatch.setattr(utils, "_service_registry", None)
    monkeypatch.setattr(utils, "CACHEFILE", str(tmp_path / "cache.json"))
    monkeypatch.setattr(utils, "TIMEOUT", SOON)
    yield utils
    if utils._service_registry is not None:
        utils._service_registry.stop()


def test_by_the_variables_of_the_module(helper, fleet, registry, monkeypatch, path):
    host, _, port = fleet.server.partition(":")
    monkeypatch.setattr(helper, "SERVER", host)
    monkeypatch.setattr(helper, "PORT", port)
    seen = Seen()
    registry().set_node(f"{path}/one", {"n": 1})
    assert helper.get(path, callback=seen, wait=SOON)["children"]["one"]["n"] == 1
    assert seen.lists == [["one"]]
    assert django.get_service_registry() is helper.get_service_registry()


def test_by_the_settings_of_django(helper, fleet, registry, monkeypatch, path):
    settings = types.SimpleNamespace(ROLLCALL={"SERVER": fleet.server})
    monkeypatch.setitem(sys.modules, "django", types.ModuleType("django"))
    monkeypatch.setitem(sys.modules, "django.conf", types.SimpleNamespace(settings=settings))
    registry().set_node(f"{path}/one")
    eventually("seen", lambda: list(helper.get(path)["children"]) == ["one"])


def test_the_import_needs_no_django_and_connects_to_nobody():
    program = "import sys, threading; import rollcall.contrib.django; "
    program += "print('django' in sys.modules, threading.active_count())"
    environment = {"PYTHONPATH": str(HERE.parent), "PATH": ""}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=60, check=True)
    assert said.stdout.split() == [b"False", b"1"]
