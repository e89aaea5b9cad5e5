#!/usr/bin/env python3
"""Generates `rollcall/v1` from the protos, into this package or into the given directory.

It runs on the versions of `requirements-stubs.txt`. They are old on purpose: all later versions of protobuf and grpcio
still understand the code that they generate, and Python 3.9 still has them.
"""

import ast
import pathlib
import sys

from grpc_tools import protoc

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE.parent / "proto"
HEAD = '''"""The generated messages and the stub of Rollcall's service, `RegistryStub`.

The promises of each call stand in the proto files. Made by generate.py.
"""

'''


def main(out: pathlib.Path) -> int:
    out.mkdir(parents=True, exist_ok=True)
    package = out / "rollcall" / "v1"
    for old in package.glob("*_pb2*"):
        old.unlink()
    protos = sorted((PROTO / "rollcall" / "v1").glob("*.proto"))
    included = pathlib.Path(protoc.__file__).parent / "_proto"
    plugins = [f"--{plugin}_out={out}" for plugin in ("python", "pyi", "grpc_python")]
    code = int(protoc.main(["protoc", f"-I{PROTO}", f"-I{included}", *plugins, *map(str, protos)]))
    if code:
        return code
    lines, names = [], []
    for proto in protos:
        # Only the file with the service has a stub worth keeping.
        service = package / f"{proto.stem}_pb2_grpc.py"
        if "\nservice " not in proto.read_text(encoding="utf-8"):
            service.unlink()
        found = names_of(package / f"{proto.stem}_pb2.pyi")
        if found:
            lines.append(
                f"from rollcall.v1.{proto.stem}_pb2 import (\n" + "".join(f"    {n},\n" for n in found) + ")\n"
            )
        names += found
        if service.exists():
            found = ["RegistryServicer", "RegistryStub", "add_RegistryServicer_to_server"]
            lines.append(f"from rollcall.v1.{service.stem} import (\n" + "".join(f"    {n},\n" for n in found) + ")\n")
            names += found
    exports = "\n__all__ = [\n" + "".join(f'    "{name}",\n' for name in sorted(names)) + "]\n"
    (package / "__init__.py").write_text(HEAD + "".join(lines) + exports, encoding="utf-8")
    return 0


def names_of(stub: pathlib.Path) -> "list[str]":
    """The messages, enums and enum values of a module."""
    names = []
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id != "DESCRIPTOR":
            names.append(node.target.id)
    return sorted(names)


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE))
