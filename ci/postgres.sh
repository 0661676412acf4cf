#!/usr/bin/env bash
# Runs a command beside a PostgreSQL of its own, whose address is in GREENHACK_TEST_POSTGRES: `ci/postgres.sh cargo test ..`.
. "$(dirname "$0")/common.sh"
[ $# -gt 0 ] || { echo "usage: $0 command .." >&2; exit 2; }

# The newest that is installed. Debian does not put it on the path.
bin_of_postgres() {
    ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1
}
bin=$(bin_of_postgres)
[ -n "$bin" ] || ! command -v initdb >/dev/null || bin=$(dirname "$(command -v initdb)")
if [ -z "$bin" ]; then
    # Only the programs: no cluster of Debian's own.
    mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] ||
        echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y postgresql; } >&2
    bin=$(bin_of_postgres)
fi

home=$(mktemp -d)
# It refuses to be root.
as_server=()
if [ "$(id -u)" = 0 ]; then
    user=postgres
    id -u "$user" >/dev/null 2>&1 || user=nobody
    chown "$user" "$home"
    as_server=(setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups env HOME="$home")
fi
server() {
    (cd "$home" && "${as_server[@]}" "$bin/$@")
}

stop() {
    server pg_ctl stop -D "$home/data" -m immediate >/dev/null 2>&1 || true
    rm -rf "$home"
}
trap stop EXIT
# A trap runs between commands, so the command is waited for.
command=
trap '[ -z "$command" ] || kill "$command" 2>/dev/null; exit 130' INT TERM HUP

server initdb -D "$home/data" -U greenhack -A trust --no-sync --no-instructions \
    -E UTF8 --locale=C.UTF-8 >"$home/initdb.log" 2>&1 || { cat "$home/initdb.log" >&2; exit 1; }
# Tests open many connections, and don't need their data tomorrow.
cat >>"$home/data/postgresql.conf" <<SETTINGS
listen_addresses = '127.0.0.1'
unix_socket_directories = '$home'
max_connections = 400
fsync = off
synchronous_commit = off
full_page_writes = off
SETTINGS

# A port that nobody listens on may be taken in between: then try another.
for attempt in 1 2 3 4 5 6 7 8; do
    port=$((20000 + RANDOM % 12000))
    if server pg_ctl start -w -s -D "$home/data" -l "$home/server.log" -o "-p $port" >/dev/null 2>&1; then
        break
    fi
    [ "$attempt" != 8 ] || { cat "$home/server.log" >&2; exit 1; }
done

export GREENHACK_TEST_POSTGRES="postgres://greenhack@127.0.0.1:$port/postgres"
echo "$JOB: $("$bin/postgres" --version) at $GREENHACK_TEST_POSTGRES"
"$@" <&0 &
command=$!
code=0
wait "$command" || code=$?
exit "$code"
