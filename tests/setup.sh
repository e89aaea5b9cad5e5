#!/usr/bin/env bash
# Installs what the tests, `make run-zookeeper` and `make bench` need into .cache: ZooKeeper's jars, a Python environment, the
# tools that build and install the Python package, grpcurl, the Go generators of protobuf, staticcheck, buf, packages of Node and
# Java, the other generators of buf.gen.yaml, etcd, and the clients that judge the embedded server. A part whose inputs have not
# changed is skipped.
#
#   tests/setup.sh              all parts except cargo-deny and etcd, which take minutes to build; only make deny and
#                               make bench need them
#   tests/setup.sh zookeeper    only the named parts: zookeeper python packaging judges grpcurl go-plugins staticcheck buf node
#                               java grpc-plugins cargo-deny etcd
set -euo pipefail

GRPCURL_VERSION=v1.9.3
PROTOC_GEN_GO_VERSION=v1.36.12
PROTOC_GEN_GO_GRPC_VERSION=v1.6.2
STATICCHECK_VERSION=v0.8.2
BUF_VERSION=1.75.0
CARGO_DENY_VERSION=0.20.2
ETCD_VERSION=v3.7.3

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$root/.cache
mkdir -p "$cache/stamps" "$cache/bin" "$cache/logs"

say() { printf 'setup: %s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# run LOG COMMAND…: runs a command quietly; when it fails, shows the end of its output.
run() {
    local log=$cache/logs/$1.log
    shift
    if ! "$@" >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        die "failed: $* (all of its output is in $log)"
    fi
}

# part NAME STAMP MARKER FUNCTION: calls FUNCTION unless it succeeded before with the same STAMP and MARKER still exists.
part() {
    local name=$1 stamp=$2 marker=$3 function=$4 file=$cache/stamps/$1 started=$SECONDS
    if [[ -e $marker && -f $file && $(<"$file") == "$stamp" ]]; then
        return
    fi
    rm -f "$file"
    "$function"
    [[ -e $marker ]] || die "$name: $marker is missing after the install"
    printf '%s\n' "$stamp" >"$file"
    say "$name: ready after $((SECONDS - started)) s"
}

# hash_of FILE…: the hash of the files' contents.
hash_of() { sha256sum -- "$@" | cut -d ' ' -f 1 | sha256sum | cut -d ' ' -f 1; }

# apt_install WHAT PACKAGE…: installs Debian packages, since WHAT is missing.
apt_install() {
    local what=$1
    shift
    say "$what is missing: installing $* with apt-get (a minute or two)"
    run apt-update apt-get update
    run "apt-$what" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# need TOOL HINT PACKAGE…: installs Debian packages when TOOL is missing and we may; HINT is for other systems.
need() {
    local tool=$1 hint=$2
    shift 2
    if command -v "$tool" >/dev/null; then
        return
    fi
    if [[ $# -gt 0 && $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        apt_install "$tool" "$@"
        command -v "$tool" >/dev/null || die "$tool is still missing after apt-get install $*"
        return
    fi
    if [[ $# -gt 0 ]]; then
        die "$tool is missing: $hint (on Debian or Ubuntu: sudo apt-get install -y $*)"
    fi
    die "$tool is missing: $hint"
}

# --- ZooKeeper: the newest supported line and the oldest

resolve_zookeeper() {
    need java "install Java 11 or newer" default-jre-headless
    need mvn "install Maven 3.6 or newer" maven
    local line
    for line in 3.9 3.6; do
        say "zookeeper: resolving the $line line with Maven"
        rm -rf "$cache/zookeeper/$line"
        local arguments=(-B -ntp -f "$root/tests/zookeeper/pom.xml" dependency:copy-dependencies)
        if [[ $line == 3.6 ]]; then
            arguments+=(-Poldest)
        fi
        run "mvn-$line" mvn "${arguments[@]}"
        compgen -G "$cache/zookeeper/$line/zookeeper-$line.*.jar" >/dev/null ||
            die "zookeeper: no zookeeper-$line.*.jar in $cache/zookeeper/$line: does tests/zookeeper/pom.xml name that line?"
    done
}

part_zookeeper() {
    # The jars may come from another machine, but the programs that run them don't.
    need java "install Java 11 or newer" default-jre-headless
    part zookeeper "$(hash_of "$root/tests/zookeeper/pom.xml")" "$cache/zookeeper/3.6" resolve_zookeeper
}

# --- Python: stubs, kazoo, nd_service_registry

# make_venv DIRECTORY: an empty Python environment.
make_venv() {
    rm -rf "$1"
    if ! python3 -m venv "$1" >"$cache/logs/venv.log" 2>&1; then
        # Debian has venv in a separate package.
        [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null ||
            die "python3 -m venv failed: install venv (on Debian or Ubuntu: sudo apt-get install -y python3-venv)"
        apt_install venv python3-venv
        rm -rf "$1"
        run venv python3 -m venv "$1"
    fi
}

# pip_in VENV LOG ARGUMENT…: runs that environment's pip.
pip_in() {
    local python=$1/bin/python log=$2
    shift 2
    run "$log" "$python" -m pip --quiet --disable-pip-version-check "$@"
}

make_python() {
    say "python: installing tests/python/requirements.txt"
    make_venv "$cache/venv"
    pip_in "$cache/venv" pip install --requirement "$root/tests/python/requirements.txt"
    # The generator of client-py's stubs is older.
    make_venv "$cache/stubs"
    pip_in "$cache/stubs" pip-stubs install --requirement "$root/client-py/requirements-stubs.txt"
}

part_python() {
    need python3 "install Python 3.10 or newer" python3 python3-venv
    part python "$(python3 --version) $(hash_of "$root/tests/python/requirements.txt" "$root/client-py/requirements-stubs.txt")" \
        "$cache/stubs/bin/python" make_python
}

# --- packaging: the tools that build the Python package, and the wheels with which it is installed without an index

fetch_packaging() {
    local to=$cache/packaging
    say "packaging: installing packaging/requirements.txt, and downloading what client-py depends on"
    rm -rf "$to"
    mkdir -p "$to"
    make_venv "$to/venv"
    pip_in "$to/venv" pip-packaging install --require-hashes --requirement "$root/packaging/requirements.txt"
    # An sdist is built where it is installed: setuptools is among the wheels.
    pip_in "$to/venv" pip-packaging-build download --no-deps --require-hashes --requirement "$root/packaging/requirements.txt" --dest "$to/wheels"
    pip_in "$to/venv" pip-packaging-wheels download --only-binary :all: --constraint "$root/tests/python/requirements.txt" --dest "$to/wheels" \
        grpcio protobuf googleapis-common-protos
}

part_packaging() {
    need python3 "install Python 3.10 or newer" python3 python3-venv
    part packaging "$(python3 --version) $(hash_of "$root/packaging/requirements.txt" "$root/tests/python/requirements.txt")" \
        "$cache/packaging/wheels" fetch_packaging
}

# --- Go: grpcurl, and the generators that buf runs

need_go() { need go "install Go 1.26 or newer and put its bin directory on the PATH"; }

# install_go MODULE@VERSION: installs a program into .cache/bin.
install_go() {
    need_go
    run "go-${1##*/}" env GOBIN="$cache/bin" go install "$1"
}

install_grpcurl() {
    say "grpcurl: building $GRPCURL_VERSION (a minute or two)"
    install_go "github.com/fullstorydev/grpcurl/cmd/grpcurl@$GRPCURL_VERSION"
}

part_grpcurl() { part grpcurl "$GRPCURL_VERSION" "$cache/bin/grpcurl" install_grpcurl; }

install_go_plugins() {
    say "go-plugins: building protoc-gen-go and protoc-gen-go-grpc"
    install_go "google.golang.org/protobuf/cmd/protoc-gen-go@$PROTOC_GEN_GO_VERSION"
    install_go "google.golang.org/grpc/cmd/protoc-gen-go-grpc@$PROTOC_GEN_GO_GRPC_VERSION"
}

part_go-plugins() {
    need_go
    part go-plugins "$PROTOC_GEN_GO_VERSION $PROTOC_GEN_GO_GRPC_VERSION" "$cache/bin/protoc-gen-go-grpc" install_go_plugins
}

# --- staticcheck: checks the Go client

install_staticcheck() {
    say "staticcheck: building $STATICCHECK_VERSION"
    install_go "honnef.co/go/tools/cmd/staticcheck@$STATICCHECK_VERSION"
}

part_staticcheck() {
    need_go
    # It must be built with the Go version whose code it reads.
    part staticcheck "$STATICCHECK_VERSION $(go version)" "$cache/bin/staticcheck" install_staticcheck
}

# --- buf: lint, and code generation

install_buf() {
    need npm "install Node.js 18 or newer with npm" nodejs npm
    say "buf: installing $BUF_VERSION with npm"
    rm -rf "$cache/npm"
    mkdir -p "$cache/npm"
    run npm npm install --prefix "$cache/npm" --no-audit --no-fund --no-package-lock "@bufbuild/buf@$BUF_VERSION"
}

part_buf() {
    need node "install Node.js 18 or newer with npm" nodejs npm
    part buf "$BUF_VERSION" "$cache/npm/node_modules/.bin/buf" install_buf
}

# --- Node: the packages for the programs of docs/stubs.md, and buf's generator for TypeScript

install_node() {
    say "node: installing tests/node/package-lock.json"
    rm -rf "$cache/node"
    mkdir -p "$cache/node"
    cp "$root"/tests/node/package*.json "$cache/node"
    # No package may run its install scripts.
    run npm-node npm ci --prefix "$cache/node" --ignore-scripts --no-audit --no-fund
}

part_node() {
    need npm "install Node.js 18 or newer with npm" nodejs npm
    part node "$(hash_of "$root"/tests/node/package*.json)" "$cache/node/node_modules/.bin/protoc-gen-ts_proto" install_node
}

# --- Java: all that Maven needs for the program of docs/stubs.md, with protoc and its generator for gRPC in Java

resolve_java() {
    say "java: resolving tests/java/pom.xml with Maven"
    local project=$cache/java exe
    rm -rf "$project" "$cache/maven"
    mkdir -p "$project/src/main/java"
    cp "$root/tests/java/pom.xml" "$project"
    ln -s "$root/proto" "$project/proto"
    printf 'class Nothing { public static void main(String[] arguments) {} }\n' >"$project/src/main/java/Nothing.java"
    run mvn-java mvn -B -ntp -f "$project/pom.xml" -Dmaven.repo.local="$cache/maven" compile exec:java -Dexec.mainClass=Nothing
    for exe in com/google/protobuf/protoc io/grpc/protoc-gen-grpc-java; do
        install -m 755 "$cache/maven/$exe"/*/*.exe "$cache/bin/${exe##*/}"
    done
}

part_java() {
    need javac "install a JDK, 17 or newer" default-jdk-headless
    need mvn "install Maven 3.6 or newer" maven
    part java "$(hash_of "$root/tests/java/pom.xml")" "$cache/bin/protoc-gen-grpc-java" resolve_java
}

# --- grpc-plugins: gRPC's generators for C# and Python, compiled from its own sources, since few systems package them

compile_grpc_plugin() {
    (
        cd "$cache/grpc-source/grpc_root"
        # protobuf is linked statically, since .cache may outlive Debian's packages.
        run "c++-$1" c++ -std=c++17 -I. -Iinclude "src/compiler/$1_plugin.cc" "src/compiler/$1_generator.cc" \
            -Wl,-Bstatic -lprotoc -lprotobuf -Wl,-Bdynamic -lpthread -o "$cache/bin/grpc_$1_plugin"
    )
}

build_grpc_plugins() {
    local source=$cache/grpc-source csharp python
    rm -f "$cache/bin/grpc_csharp_plugin" "$cache/bin/grpc_python_plugin"
    if csharp=$(command -v grpc_csharp_plugin) && python=$(command -v grpc_python_plugin); then
        ln -s "$csharp" "$python" "$cache/bin"
        return
    fi
    need c++ "install a C++ compiler" g++
    if ! c++ -E -x c++ - <<<'#include <google/protobuf/compiler/plugin.h>' >/dev/null 2>&1; then
        [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null ||
            die "grpc_csharp_plugin is missing: install gRPC (on macOS: brew install grpc), or on Debian: sudo apt-get install -y libprotoc-dev"
        apt_install libprotoc libprotoc-dev
    fi
    say "grpc-plugins: compiling gRPC's generators for C# and Python"
    rm -rf "$source"
    mkdir -p "$source"
    # Built only as far as its metadata, with the pinned setuptools.
    make_venv "$source/venv"
    pip_in "$source/venv" pip-grpc-build install --require-hashes --requirement "$root/tests/stubs/grpc-build.txt"
    pip_in "$source/venv" pip-grpc-source download --no-deps --no-binary grpcio-tools --no-build-isolation --require-hashes \
        --requirement "$root/tests/stubs/grpc-source.txt" --dest "$source"
    run tar-grpc tar -xzf "$source"/grpcio-tools-*.tar.gz -C "$source" --strip-components 1
    compile_grpc_plugin csharp
    compile_grpc_plugin python
}

part_grpc-plugins() {
    need python3 "install Python 3.10 or newer" python3 python3-venv
    part grpc-plugins "$(hash_of "$root"/tests/stubs/grpc-*.txt)" "$cache/bin/grpc_python_plugin" build_grpc_plugins
}

# --- cargo-deny: checks which dependencies are allowed

install_cargo_deny() {
    need cargo "install Rust with rustup"
    say "cargo-deny: building $CARGO_DENY_VERSION (some minutes)"
    run cargo-deny cargo install --locked --quiet --root "$cache" "cargo-deny@$CARGO_DENY_VERSION"
}

part_cargo-deny() { part cargo-deny "$CARGO_DENY_VERSION" "$cache/bin/cargo-deny" install_cargo_deny; }

# --- Judges: kazoo with its own tests, an older kazoo, a client in JavaScript

fetch_judges() {
    local judges=$root/tests/judges to=$cache/judges
    say "judges: fetching kazoo's source and tests, kazoo 2.6, node-zookeeper-client"
    rm -rf "$to"
    mkdir -p "$to/source" "$to/node"
    make_venv "$to/kazoo-tests"
    pip_in "$to/kazoo-tests" pip-kazoo-tests install --requirement "$judges/kazoo-tests.txt"
    # Built only as far as its metadata, with the pinned setuptools.
    pip_in "$to/kazoo-tests" pip-kazoo-source download --no-deps --no-binary kazoo --no-build-isolation --require-hashes \
        --requirement "$judges/kazoo-source.txt" --dest "$to/source"
    mkdir "$to/kazoo"
    run tar-kazoo tar -xzf "$to"/source/kazoo-*.tar.gz -C "$to/kazoo" --strip-components 1
    make_venv "$to/kazoo-2.6"
    pip_in "$to/kazoo-2.6" pip-kazoo-2.6 install --require-hashes --requirement "$judges/kazoo-2.6.txt"
    cp "$judges/package.json" "$judges/package-lock.json" "$to/node"
    run npm-judges npm ci --prefix "$to/node" --no-audit --no-fund
}

part_judges() {
    need python3 "install Python 3.10 or newer" python3 python3-venv
    need npm "install Node.js 18 or newer with npm" nodejs npm
    local judges=$root/tests/judges
    part judges "$(python3 --version) $(hash_of "$judges"/*.txt "$judges"/package*.json)" \
        "$cache/judges/node/node_modules/node-zookeeper-client" fetch_judges
}

# --- etcd: a peer of the benchmark

install_etcd() {
    need_go
    say "etcd: building $ETCD_VERSION (some minutes)"
    # Its module can't be installed by name, since it replaces others by folders of its repository; a module that
    # depends on it takes the published ones. Go checks its downloads against its checksum database.
    local module=$cache/etcd
    rm -rf "$module"
    mkdir -p "$module"
    (
        cd "$module"
        run etcd-module go mod init rollcall.invalid/etcd
        run etcd-fetch go get "go.etcd.io/etcd/server/v3@$ETCD_VERSION"
        run etcd go build -trimpath -o "$cache/bin/etcd" go.etcd.io/etcd/server/v3
    )
}

part_etcd() { part etcd "$ETCD_VERSION" "$cache/bin/etcd" install_etcd; }

if [[ $# -eq 0 ]]; then
    set -- zookeeper python packaging judges go-plugins staticcheck buf node java grpc-plugins grpcurl
fi
for name in "$@"; do
    case $name in
        zookeeper | python | packaging | judges | grpcurl | go-plugins | staticcheck | buf | node | java | grpc-plugins | cargo-deny | etcd) "part_$name" ;;
        *) die "no such part: $name (the head of this file names them)" ;;
    esac
done
