#!/usr/bin/env bash
# Proves that the crate builds with the oldest Rust that it promises, with our versions of its dependencies and with those that Cargo picks.
. "$(dirname "$0")/common.sh"
msrv=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml).0
need_rust "$msrv"
cargo "+$msrv" check --lib --all-features --locked

# A user has no lock file of ours.
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
git ls-files -z --cached --others --exclude-standard -- . ':!Cargo.lock' |
    xargs -0 cp --parents --target-directory="$fresh" 2>/dev/null || true
target=${CARGO_TARGET_DIR:-$PWD/target}
(cd "$fresh" && CARGO_TARGET_DIR=$target cargo "+$msrv" check --lib --all-features)
count=$(cd "$fresh" && cargo "+$msrv" tree -e normal --all-features --prefix none --no-dedupe | sort -u | wc -l)
proved "the library and the $count packages it is made of build with $(rustc "+$msrv" -V)"
