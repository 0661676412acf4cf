#!/usr/bin/env bash
# Runs a command beside a WebDriver of its own, whose address is in GREENHACK_TEST_WEBDRIVER: `ci/browser.sh cargo test ..`.
. "$(dirname "$0")/common.sh"
[ $# -gt 0 ] || { echo "usage: $0 command .." >&2; exit 2; }

if ! command -v chromedriver >/dev/null || ! command -v chromium >/dev/null; then
    { apt-get update && DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends chromium chromium-driver; } >&2
fi

home=$(mktemp -d)
driver=
stop() {
    [ -z "$driver" ] || kill "$driver" 2>/dev/null || true
    rm -rf "$home"
}
trap stop EXIT
# A trap runs between commands, so the command is waited for.
command=
trap '[ -z "$command" ] || kill "$command" 2>/dev/null; exit 130' INT TERM HUP

# It takes a free port and says which.
chromedriver --port=0 >"$home/log" 2>&1 &
driver=$!
port=
while [ -z "$port" ]; do
    kill -0 "$driver" 2>/dev/null || { cat "$home/log" >&2; exit 1; }
    port=$(sed -n 's/.*started successfully on port \([0-9]*\).*/\1/p' "$home/log")
    sleep 0.05
done

export GREENHACK_TEST_WEBDRIVER="http://127.0.0.1:$port"
echo "$JOB: $(chromedriver --version | cut -d " " -f 1,2) at $GREENHACK_TEST_WEBDRIVER"
"$@" <&0 &
command=$!
code=0
wait "$command" || code=$?
exit "$code"
