#!/usr/bin/env bash
# Runs a command beside a PostgreSQL of its own, whose address is in GREENHACK_TEST_POSTGRES: `ci/postgres.sh cargo test ..`.
. "$(dirname "$0")/server.sh"

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
    install_package postgresql
    bin=$(bin_of_postgres)
fi

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

start() {
    server pg_ctl start -w -s -D "$home/data" -l "$home/server.log" -o "-p $1"
}

stop() {
    server pg_ctl stop -D "$home/data" -m immediate >/dev/null 2>&1 || true
}

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

start_on_a_port
export GREENHACK_TEST_POSTGRES="postgres://greenhack@127.0.0.1:$port/postgres"
beside "$("$bin/postgres" --version) at $GREENHACK_TEST_POSTGRES"
