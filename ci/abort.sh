#!/usr/bin/env bash
# Proves what happens without unwinding: a dropped run is detached and ends, in place and on a worker.
. "$(dirname "$0")/common.sh"
cp Cargo.lock ci/abort/
cargo build --quiet --manifest-path ci/abort/Cargo.toml
target=${CARGO_TARGET_DIR:-$PWD/ci/abort/target}
# A run that does not end is waited for, and so is a failure after a while.
said=$(timeout 60 "$target/debug/greenhack-abort") || { echo "abort: the program failed, or did not end"; exit 1; }
echo "$said"
[ "$(echo "$said" | grep -c '^ended: ')" -eq 14 ] || { echo "abort: a run did not end"; exit 1; }
[ "$(echo "$said" | grep -c '^stays: ')" -eq 2 ] || { echo "abort: a generator did not stay"; exit 1; }
proved "$(echo "$said" | grep -c '^ended: ') dropped runs went on to their ends with panic=abort"
