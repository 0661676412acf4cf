# What the scripts here share; they source it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
JOB=$(basename "$0" .sh)
NIGHTLY=${NIGHTLY:-nightly}
HOST=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TERM_COLOR=never CARGO_PROFILE_DEV_DEBUG=${CARGO_PROFILE_DEV_DEBUG:-line-tables-only}

# Ends the job because this machine can't do it, and notes that in the file
# $SKIPPED, if there is one; with REQUIRE=1 it is a failure.
skip() {
    echo "$JOB: skipped: $*"
    [ "${REQUIRE:-0}" = 1 ] && exit 1
    [ -z "${SKIPPED:-}" ] || echo "$JOB: $*" >>"$SKIPPED"
    exit 0
}

# Makes sure of a toolchain and its components: `need_rust nightly miri`.
need_rust() {
    local toolchain=$1 component
    shift
    command -v rustup >/dev/null || skip "there is no rustup to get $toolchain with"
    rustup run "$toolchain" rustc -V >/dev/null 2>&1 ||
        rustup toolchain install "$toolchain" --profile minimal --no-self-update ||
        skip "the toolchain $toolchain can't be had"
    for component in "$@"; do
        rustup component list --toolchain "$toolchain" --installed | grep -q "^$component" ||
            rustup component add "$component" --toolchain "$toolchain" ||
            skip "$toolchain has no $component"
    done
}

# Makes sure of a program, from the Debian package of that name.
need_program() {
    command -v "$1" >/dev/null && return
    { apt-get update && apt-get install -y "$1"; } >/dev/null 2>&1 ||
        skip "there is no $1"
}

# Runs a test command, and adds to PASSED how many tests have passed.
PASSED=0
counted() {
    local log passed
    log=$(mktemp)
    "$@" 2>&1 | tee "$log"
    passed=$(awk '/^test result: ok/ { sum += $4 } END { print sum + 0 }' "$log")
    rm "$log"
    PASSED=$((PASSED + passed))
    [ "$passed" -gt 0 ] || { echo "$JOB: no test has run"; exit 1; }
}

# The last line of a job.
proved() {
    echo "$JOB: $*"
}
