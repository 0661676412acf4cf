#!/usr/bin/env bash
# Proves that the stacks of ARM switch, unwind, overflow and are cancelled as they should, in QEMU.
. "$(dirname "$0")/common.sh"
target=aarch64-unknown-linux-gnu
if ! command -v aarch64-linux-gnu-gcc >/dev/null || ! command -v qemu-aarch64 >/dev/null; then
    { apt-get update && apt-get install -y --no-install-recommends \
        gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user; } >/dev/null 2>&1 ||
        skip "there is no QEMU, or no linker for $target"
fi
command -v rustup >/dev/null && rustup target add "$target" >/dev/null ||
    skip "there is no $target to be had"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export GREENHACK_TEST_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$GREENHACK_TEST_RUNNER
counted cargo test --target "$target" --no-default-features --test smoke --test panics \
    --test cancellation --test soundness_attacks --test soundness_scoped --test soundness_overflow
proved "$PASSED tests passed for $target, in $(qemu-aarch64 --version | head -1)"
