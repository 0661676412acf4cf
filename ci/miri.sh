#!/usr/bin/env bash
# Proves that parent and coroutine use what they share by the rules of Rust, with threads in the place of stacks.
. "$(dirname "$0")/common.sh"
need_rust "$NIGHTLY" miri rust-src
export RUSTFLAGS="--cfg greenhack_threads"

miri() {
    counted cargo "+$NIGHTLY" miri test --no-default-features "$@"
}

# What is not called a leak must leave nothing behind, neither memory nor a
# thread.
for model in "" "-Zmiri-tree-borrows"; do
    MIRIFLAGS="$model" miri --lib --test miri_protocol --test miri_scopes -- --skip leak
    MIRIFLAGS="$model -Zmiri-ignore-leaks" miri --test miri_protocol --test miri_scopes -- leak
done
# The workers live as long as the process, and really wait for I/O.
MIRIFLAGS="-Zmiri-ignore-leaks -Zmiri-disable-isolation" miri --test sanitizer_workers
proved "$PASSED tests passed in Miri, with stacked and with tree borrows"
