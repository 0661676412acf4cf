#!/usr/bin/env bash
# Proves that the library builds without warnings with no feature, each alone, the default ones, and all.
. "$(dirname "$0")/common.sh"
features=$(sed -n '/^\[features\]/,/^\[dep/s/^\([a-z0-9_-]*\) = .*/\1/p' Cargo.toml | grep -v default)
count=0
for flags in --no-default-features --all-features "" \
    $(printf -- '--no-default-features=--features=%s ' $features); do
    # A pair of flags is joined by a `=` above, to be one word here.
    flags=${flags/=--/ --}
    cargo clippy --quiet --lib $flags -- -D warnings
    count=$((count + 1))
done
proved "$count sets of features checked:" $features
