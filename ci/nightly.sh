#!/usr/bin/env bash
# Gets the toolchain of Miri and of the sanitizers, before they run at the same time.
. "$(dirname "$0")/common.sh"
need_rust "$NIGHTLY" miri rust-src
proved "$(rustc "+$NIGHTLY" -V)"
