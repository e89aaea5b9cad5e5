#!/usr/bin/env bash
# `make run-zookeeper`: runs ZooKeeper with its data in a temporary directory, and rollcall-server in the foreground,
# until Ctrl-C. The arguments are further options for rollcall-server. ZOOKEEPER_PORT sets ZooKeeper's port (2181).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
server=${ROLLCALL_SERVER_BIN:-$root/target/release/rollcall-server}
zookeeper_port=${ZOOKEEPER_PORT:-2181}

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# Whether something listens on a port of this machine.
taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

[[ -x $server ]] || die "no $server: run make build"
[[ -d $root/.cache/zookeeper/3.9 ]] || die "no ZooKeeper in .cache: run tests/setup.sh zookeeper"
"$root/tests/ports.sh" "$@"
# A ZooKeeper that already runs keeps its port; ours takes the next free one.
while taken "$zookeeper_port"; do
    zookeeper_port=$((zookeeper_port + 1))
done

data=$(mktemp -d "${TMPDIR:-/tmp}/rollcall-run-XXXXXX")
zookeeper=
rollcall=

# Ends both, the server first, so that it can remove its registrations while ZooKeeper runs.
finish() {
    trap '' INT TERM
    if [[ -n $rollcall ]]; then
        kill -TERM "$rollcall" 2>/dev/null || true
        wait "$rollcall" 2>/dev/null || true
    fi
    if [[ -n $zookeeper ]]; then
        kill -TERM "$zookeeper" 2>/dev/null || true
        wait "$zookeeper" 2>/dev/null || true
    fi
    rm -rf "$data"
}
trap finish EXIT
trap 'exit 0' INT TERM

cat >"$data/zoo.cfg" <<CONFIGURATION
dataDir=$data/data
clientPort=$zookeeper_port
clientPortAddress=127.0.0.1
tickTime=2000
4lw.commands.whitelist=*
admin.enableServer=false
CONFIGURATION
# Each job has its own process group: Ctrl-C reaches only this script, and finish ends them in order.
set -m
java -Xmx512m -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$root/.cache/zookeeper/3.9/*" \
    org.apache.zookeeper.server.quorum.QuorumPeerMain "$data/zoo.cfg" >"$data/zookeeper.log" 2>&1 </dev/null &
zookeeper=$!
say "starting ZooKeeper on 127.0.0.1:$zookeeper_port"
for ((attempt = 0; ; attempt++)); do
    taken "$zookeeper_port" && break
    if ! kill -0 "$zookeeper" 2>/dev/null || ((attempt == 300)); then
        cat "$data/zookeeper.log" >&2
        die "ZooKeeper did not start"
    fi
    sleep 0.1
done

: >"$data/listening"
"$server" --zookeeper "127.0.0.1:$zookeeper_port" "$@" </dev/null >"$data/listening" &
rollcall=$!
for ((attempt = 0; ; attempt++)); do
    # listening grpc=ADDRESS http=ADDRESS
    read -r _ grpc http <"$data/listening" && break
    if ! kill -0 "$rollcall" 2>/dev/null || ((attempt == 300)); then
        die "rollcall-server did not start: see what it says above"
    fi
    sleep 0.1
done

grpc=${grpc#grpc=} http=${http#http=}
grpcurl=grpcurl
if ! command -v grpcurl >/dev/null; then
    grpcurl=.cache/bin/grpcurl
    [[ -x $root/$grpcurl ]] || say "(grpcurl is missing: tests/setup.sh grpcurl builds it)"
fi
cat >&2 <<NEXT

Rollcall listens on $grpc (gRPC) and $http (metrics, health), beside ZooKeeper on localhost:$zookeeper_port.
Try, in other terminals:

  # registered until Ctrl-C
  $grpcurl -plaintext -d '{"set":{"path":"/services/ssh/server1:22","value":{"data":{"foo":"bar"}}}}' $grpc rollcall.v1.Registry/Register
  # who is there, and who comes and goes
  $grpcurl -plaintext -d '{"path":"/services/ssh"}' $grpc rollcall.v1.Registry/Get
  $grpcurl -plaintext -d '{"path":"/services/ssh"}' $grpc rollcall.v1.Registry/Watch
  # a lock, held until Ctrl-C
  $grpcurl -plaintext -d '{"path":"/jobs/nightly"}' $grpc rollcall.v1.Registry/AcquireLock
  # the same with kazoo: KazooClient("localhost:$zookeeper_port")

Ctrl-C here ends both; the data goes with them.
NEXT
wait "$rollcall"
