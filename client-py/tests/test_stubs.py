"""The committed stubs match the protos, and need no more than pyproject.toml asks for."""

import ast
import pathlib
import re
import subprocess

import pytest
from conftest import HERE

PACKAGE = HERE.parent / "rollcall"
# tests/setup.sh installs the versions of requirements-stubs.txt here.
GENERATOR = HERE.parents[1] / ".cache" / "stubs" / "bin" / "python"


def test_the_stubs_are_generated_from_the_protos(tmp_path):
    assert GENERATOR.exists(), f"no {GENERATOR}: run tests/setup.sh python"
    subprocess.run([str(GENERATOR), str(HERE.parent / "generate.py"), str(tmp_path)], check=True, timeout=120)
    fresh, committed = tmp_path / "rollcall" / "v1", PACKAGE / "v1"
    names = sorted(path.name for path in fresh.iterdir())
    assert names == sorted(path.name for path in committed.iterdir() if path.is_file())
    for name in names:
        assert (fresh / name).read_text() == (committed / name).read_text(), f"{name}: run client-py/generate.py"


def test_the_lower_bounds_are_those_of_the_stubs():
    project = (HERE.parent / "pyproject.toml").read_text()
    grpcio = re.search(r'"grpcio>=([\d.]+)"', project)[1]
    protobuf = re.search(r'"protobuf>=([\d.]+)"', project)[1]
    service = (PACKAGE / "v1" / "registry_pb2_grpc.py").read_text()
    assert re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", service)[1] == grpcio
    message = (PACKAGE / "v1" / "data_pb2.py").read_text()
    assert re.search(r"Protobuf Python Version: ([\d.]+)", message)[1] == protobuf


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_syntax_is_that_of_python_3_9(file):
    ast.parse(pathlib.Path(file).read_text(), feature_version=(3, 9))


def test_the_types_are_right(tmp_path):
    command = [str(GENERATOR), "-m", "mypy", "--cache-dir", str(tmp_path), "--no-error-summary"]
    checked = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=240)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_everything_is_exported():
    from rollcall import v1

    assert v1.RegistryStub and v1.GetRequest(path="/a").path == "/a" and v1.CHANGE_KIND_ADDED == 1
    assert all(hasattr(v1, name) for name in v1.__all__)
