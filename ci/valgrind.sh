#!/usr/bin/env bash
# Proves that no uninitialised or freed memory is used around the switch, in memcheck.
. "$(dirname "$0")/common.sh"
export CARGO_PROFILE_DEV_DEBUG=line-tables-only
need_program valgrind
runner="CARGO_TARGET_$(echo "$HOST" | tr 'a-z-' 'A-Z_')_RUNNER"
export "$runner=valgrind --quiet --error-exitcode=99 --max-stackframe=8388608"
# Valgrind has to be told of each stack, which those out of slabs aren't.
export RUSTFLAGS="--cfg greenhack_valgrind"
counted cargo test --features full --test smoke --test miri_protocol
proved "$PASSED tests passed in valgrind"
