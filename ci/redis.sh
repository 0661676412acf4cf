#!/usr/bin/env bash
# Runs a command beside a redis of its own, whose address is in GREENHACK_TEST_REDIS: `ci/redis.sh cargo test ..`.
. "$(dirname "$0")/server.sh"

command -v redis-server >/dev/null || install_package redis-server

server=
start() {
    redis-server --port "$1" --bind 127.0.0.1 --dir "$home" --save "" --appendonly no \
        --logfile "$home/server.log" &
    server=$!
    # Whoever answers at the port may be another.
    until redis-cli -p "$1" info server | grep -q "^process_id:$server\b"; do
        kill -0 "$server" || return
        sleep 0.1
    done
}

stop() {
    [ -z "$server" ] || kill "$server" 2>/dev/null && wait "$server" || true
}

start_on_a_port
export GREENHACK_TEST_REDIS="redis://127.0.0.1:$port/"
beside "$(redis-server --version | cut -d' ' -f1-3) at $GREENHACK_TEST_REDIS"
