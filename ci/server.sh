# What the scripts that run a command beside a server of their own share; they
# source it. They define `start` and `stop`; the server's files are in $home.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -gt 0 ] || { echo "usage: $0 command .." >&2; exit 2; }

arguments=("$@")
home=$(mktemp -d)
stop() { :; }
trap 'stop; rm -rf "$home"' EXIT
# A trap runs between commands, so the command is waited for.
command=
trap '[ -z "$command" ] || kill "$command" 2>/dev/null; exit 130' INT TERM HUP

# Installs a package of Debian, without starting what is in it.
install_package() {
    { apt-get update && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y "$1"; } >&2
}

# Starts the server by the function `start`, which gets a port. One that nobody
# listens on may be taken in between: then it tries another.
start_on_a_port() {
    local attempt
    for attempt in 1 2 3 4 5 6 7 8; do
        port=$((20000 + RANDOM % 12000))
        if start "$port" >/dev/null 2>&1; then
            return
        fi
    done
    cat "$home/server.log" >&2
    exit 1
}

# Runs the command, says beside what, and ends with its code.
beside() {
    echo "$JOB: $*"
    "${arguments[@]}" <&0 &
    command=$!
    local code=0
    wait "$command" || code=$?
    exit "$code"
}
