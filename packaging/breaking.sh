#!/usr/bin/env bash
# Compares the .proto files with those of the last release, and fails on a change that breaks programs (`breaking` in buf.yaml).
#
# The last release is the newest tag vX.Y.Z in the history of HEAD; a commit that is a release itself is compared with the one
# before. Without such a tag there is no published API that a change could break. Nothing is compared then, and the last line
# says so. The parent commit would be no substitute: it has promised nothing to anybody.
#
#   packaging/breaking.sh          with the repository's buf, of tests/setup.sh
#   BUF=buf packaging/breaking.sh  with another
set -euo pipefail

root=$(git -C "$(dirname "${BASH_SOURCE[0]}")" rev-parse --show-toplevel 2>/dev/null || true)

not_checked() {
    printf 'breaking: NOT CHECKED: %s\n' "$*" >&2
    # An annotation on the page of the run.
    if [[ -n ${GITHUB_ACTIONS:-} ]]; then
        printf '::warning title=buf breaking was not checked::%s\n' "$*"
    fi
    exit 0
}

[[ -n $root ]] || not_checked "this folder is not a clone of the repository, so no release can be looked up"
cd "$root"

newest_tag() { git describe --tags --abbrev=0 --match 'v[0-9]*' "$1" 2>/dev/null || true; }

tag=$(newest_tag HEAD)
if [[ -n $tag && $(git rev-parse "$tag^{commit}") == $(git rev-parse HEAD) ]] && git diff --quiet HEAD -- proto buf.yaml; then
    tag=$(newest_tag 'HEAD^')
fi
if [[ -z $tag ]]; then
    if [[ $(git rev-parse --is-shallow-repository) == true ]]; then
        not_checked "this clone is shallow and has no tag of a release: git fetch --unshallow --tags"
    fi
    not_checked "no tag vX.Y.Z is in the history of HEAD: nothing has been released that a change could break"
fi

released=$(mktemp -d)
trap 'rm -rf -- "$released"' EXIT
git archive "$tag" -- buf.yaml proto | tar -x -C "$released"
"${BUF:-.cache/npm/node_modules/.bin/buf}" breaking --against "$released"
printf 'breaking: nothing breaks what %s promised\n' "$tag" >&2
