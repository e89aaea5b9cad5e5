#!/usr/bin/env bash
# Packs the programs in FOLDER, where cargo has put them, into OUT/rollcall-VERSION-TARGET.tar.gz, with a SHA-256 sum beside it.
# `make archive` builds them first.
#
#   packaging/archive.sh FOLDER OUT
set -euo pipefail

folder=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
target=$(rustc -vV | sed -n 's/^host: //p')
name=rollcall-$version-$target

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
mkdir "$work/$name"
for program in rollcall-server rollcall; do
    # A program of another version in FOLDER would be shipped under a wrong name.
    said=$("$folder/$program" --version)
    if [[ $said != "$program $version" ]]; then
        printf 'archive: error: %s/%s says "%s", not version %s: build it again\n' "$folder" "$program" "$said" "$version" >&2
        exit 1
    fi
    install -m 755 "$folder/$program" "$work/$name"
done
install -m 644 LICENSE README.md CHANGELOG.md SECURITY.md "$work/$name"
# The licences of the crates that are linked in ask for their text to go along.
python3 packaging/licenses.py "$target" rollcall-server rollcall-cli >"$work/$name/THIRD-PARTY-LICENSES.txt"

# The same input makes the same bytes, wherever and by whom the archive is made.
tar --sort=name --mtime='2026-01-01 00:00Z' --owner=0 --group=0 --numeric-owner -C "$work" -cf - "$name" | gzip -n >"$out/$name.tar.gz"
(cd "$out" && sha256sum "$name.tar.gz" >"$name.tar.gz.sha256")
printf '%s\n' "$out/$name.tar.gz"
