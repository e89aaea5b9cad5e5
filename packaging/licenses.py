"""Prints the licences of the crates that packages of this workspace link in, with their texts.

    licenses.py TARGET PACKAGE…

It reads what `cargo metadata` knows, and the sources that cargo has fetched. Build scripts and tests are not distributed, and left
out.
"""

import json
import pathlib
import subprocess
import sys
from fnmatch import fnmatchcase

TEXTS = ("licen[cs]e*", "copying*", "notice*", "unlicense*")


def linked(metadata: dict, roots: list[str]) -> set[str]:
    """The ids of all packages that these depend on, with normal dependencies."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    names = {package["id"]: package["name"] for package in metadata["packages"]}
    left = [id for id in nodes if names[id] in roots and id in metadata["workspace_members"]]
    if len(left) != len(roots):
        sys.exit(f"licenses: error: not all of {roots} are packages of this workspace")
    found = set()
    while left:
        id = left.pop()
        if id in found:
            continue
        found.add(id)
        for dependency in nodes[id]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                left.append(dependency["pkg"])
    return found


def texts(package: dict) -> list[pathlib.Path]:
    folder = pathlib.Path(package["manifest_path"]).parent
    return sorted(
        file for file in folder.iterdir() if file.is_file() and any(fnmatchcase(file.name.lower(), text) for text in TEXTS)
    )


def main(target: str, roots: list[str]) -> None:
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
    metadata = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    ids = linked(metadata, roots)
    packages = [each for each in metadata["packages"] if each["id"] in ids and each["source"] is not None]
    for package in sorted(packages, key=lambda each: (each["name"], each["version"])):
        print("=" * 80)
        print(f"{package['name']} {package['version']}: {package['license'] or package['license_file']}")
        print(package["repository"] or f"https://crates.io/crates/{package['name']}")
        for file in texts(package):
            print(f"\n--- {file.name}\n\n{file.read_text(encoding='utf-8', errors='replace').strip()}")
        print()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
