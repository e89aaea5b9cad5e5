#!/usr/bin/env bash
# Checks, before anything is built or fetched, that rollcall-server could listen at the addresses in these options of
# it.
set -euo pipefail

listen=${ROLLCALL_LISTEN:-127.0.0.1:7700}
http_listen=${ROLLCALL_HTTP_LISTEN:-127.0.0.1:7701}
embedded_listen=127.0.0.1:0

# Whether something listens at an address of this machine.
taken() {
    local port=${1##*:} host=${1%:*}
    host=${host#[} host=${host%]}
    case $host in
        0.0.0.0) host=127.0.0.1 ;;
        ::) host=::1 ;;
    esac
    [[ $port != 0 ]] && (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null
}

while (($#)); do
    case $1 in
        --listen | --http-listen | --embedded-listen)
            name=${1#--} value=${2-}
            shift
            ;;
        --listen=* | --http-listen=* | --embedded-listen=*)
            name=${1%%=*} name=${name#--} value=${1#*=}
            ;;
        *) name='' ;;
    esac
    [[ -z $name ]] || printf -v "${name//-/_}" '%s' "$value"
    (($# == 0)) || shift
done

for option in listen http-listen embedded-listen; do
    variable=${option//-/_}
    if taken "${!variable}"; then
        printf 'error: somebody listens on %s: name another address with --%s, as in make run RUN="--%s 127.0.0.1:0"\n' \
            "${!variable}" "$option" "$option" >&2
        exit 1
    fi
done
