#!/usr/bin/env bash
# Proves that the library type-checks for systems that the tests do not run on.
. "$(dirname "$0")/common.sh"
# Of 32 bits; neither Linux; neither Unix.
targets="i686-unknown-linux-gnu aarch64-apple-darwin x86_64-pc-windows-gnu"
for target in $targets; do
    command -v rustup >/dev/null && rustup target add "$target" >/dev/null ||
        skip "there is no $target to be had"
    cargo check --quiet --lib --target "$target"
done
proved "checked for $targets"
