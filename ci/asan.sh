#!/usr/bin/env bash
# Proves that no test touches memory that is freed, or lies outside of an object, on real stacks.
. "$(dirname "$0")/common.sh"
export CARGO_PROFILE_DEV_DEBUG=line-tables-only
need_rust "$NIGHTLY"
export RUSTFLAGS="-Zsanitizer=address --cfg greenhack_sanitizer"
# A leaked run is no bug here, and leaks are Miri's part.
export ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=1"
# Not the tests of programs of their own, nor of how much memory is resident (the
# sanitizer keeps what is freed), nor of words, types and macros.
tests=$(ls tests/*.rs | sed 's/.*\/\(.*\)\.rs/--test \1/' |
    grep -v 'example_\|soak\|docs_links\|auto_traits\|macros')
libraries="--test io_libraries --test serve_axum --test websocket"
# A stack overflow is for AddressSanitizer to report, not for us.
counted cargo "+$NIGHTLY" test --target "$HOST" -p greenhack -p greenhack-libraries \
    --features greenhack/full --lib $tests $libraries -- --skip overflow
proved "$PASSED tests passed in AddressSanitizer"
