#!/usr/bin/env bash
# Proves that runs, workers and callers race for nothing; with threads in the place of stacks, which ThreadSanitizer can't follow.
. "$(dirname "$0")/common.sh"
export CARGO_PROFILE_DEV_DEBUG=line-tables-only
need_rust "$NIGHTLY" rust-src
export RUSTFLAGS="-Zsanitizer=thread --cfg greenhack_threads"
counted cargo "+$NIGHTLY" test -Zbuild-std --target "$HOST" --no-default-features --lib \
    --test miri_protocol --test sanitizer_workers
proved "$PASSED tests passed in ThreadSanitizer, on stand-ins for the stacks"
