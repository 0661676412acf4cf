#!/usr/bin/env bash
# Proves that without unwinding a dropped run is detached and ends, in place and on a worker.
. "$(dirname "$0")/common.sh"
cp Cargo.lock ci/abort/
cargo build --quiet --manifest-path ci/abort/Cargo.toml
target=${CARGO_TARGET_DIR:-$PWD/ci/abort/target}
said=$("$target/debug/greenhack-abort")
echo "$said"
[ "$(echo "$said" | grep -c '^ended: ')" -ge 4 ] || { echo "abort: a run did not end"; exit 1; }
proved "$(echo "$said" | grep -c '^ended: ') dropped runs went on to their ends with panic=abort"
