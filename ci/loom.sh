#!/usr/bin/env bash
# Proves that the workers' queue loses no job and no wake, and the cooler no stack, whatever the order of the threads.
. "$(dirname "$0")/common.sh"
export RUSTFLAGS="--cfg greenhack_loom"
counted cargo test --no-default-features --lib loom
proved "$PASSED models passed in loom"
