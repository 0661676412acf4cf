#!/usr/bin/env bash
# Proves that the workers' queue loses no job and no wake, whatever the order of its threads.
. "$(dirname "$0")/common.sh"
export RUSTFLAGS="--cfg greenhack_loom"
counted cargo test --no-default-features --lib loom
proved "$PASSED models passed in loom"
