#!/usr/bin/env bash
# Proves that files import only from their own row or a lower one, and that unsafe code is where it is allowed.
. "$(dirname "$0")/common.sh"
failed=0

# Fails if a line of these files, other than a comment, matches the pattern.
never() {
    local why=$1 pattern=$2
    shift 2
    local found code=0
    found=$(grep -nE "$pattern" "$@") || code=$?
    if [ "$code" -gt 1 ]; then
        echo "layers: whether $why, could not be checked"
        failed=1
    elif grep . <<<"$found" | grep -vE '^[^:]*:([0-9]+:)?[[:space:]]*//'; then
        echo "layers: $why"
        failed=1
    fi
}

# In braces the name stands alone, as in `use crate::{await_sync, engine::..}`.
rows=(ground memory engine surface adapters)
for ((row = 0; row < ${#rows[@]} - 1; row++)); do
    higher=$(IFS='|' && echo "${rows[*]:row+1}")
    never "src/${rows[row]} imports from a higher row" \
        "\b($higher)::|(crate|super::super)::\{?($higher)\b" $(find "src/${rows[row]}" -name '*.rs')
done
never "src/adapters uses more than the public API" \
    "\b(ground|memory|engine|surface|__private)::|(crate|super)::\{?(ground|memory|engine|surface|__private)\b" \
    $(find src/adapters -name '*.rs')
for dir in src/*/; do
    case " ${rows[*]} " in *" $(basename "$dir") "*) ;; *) echo "$dir is in no row" && failed=1 ;; esac
done

files=$(find src -name '*.rs')
never "only ground/switch.rs names corosensei" '\bcorosensei\b' \
    $(echo "$files" | grep -v '^src/ground/switch.rs$') macros/src/*.rs
# Its tests look at what the system says of a process that has died.
never "only ground/sys.rs calls the system" '\blibc\b' \
    $(echo "$files" | grep -vE '^src/(ground/sys|memory/old_kernel_tests).rs$') macros/src/*.rs
unsafes=0
for file in $(echo "$files" | grep -v '/\(lib\|mod\).rs$') macros/src/lib.rs; do
    # The first line after the documentation of the file.
    case $(awk '!/^\/\/!/ && NF { print; exit }' "$file") in
    '#![forbid(unsafe_code)]') ;;
    *)
        if awk '!/^ *\/\// && /(^|[^a-z_])unsafe (\{|fn|impl|extern)/ { n++ } END { exit !n }' "$file"; then
            unsafes=$((unsafes + 1))
        else
            echo "$file has no unsafe code, and does not begin with \`#![forbid(unsafe_code)]\`"
            failed=1
        fi
        ;;
    esac
done
[ "$failed" = 0 ] || exit 1
proved "$(echo "$files" | wc -l) files keep to their rows; $unsafes of them have unsafe code"
