#!/usr/bin/env bash
# check.sh BUILD MODEL: install, compile the example with pkg-config, run it with the shared and the static library.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=$1
model=$2
prefix=$(mktemp -d)
trap 'rm -rf "$prefix"' EXIT

cmake --install "$build" --prefix "$prefix" > "$prefix/install.log"
pc=$(find "$prefix" -name weft.pc)
export PKG_CONFIG_PATH
PKG_CONFIG_PATH=$(dirname "$pc")
libdir=$(pkg-config --variable=libdir weft)

headers=$(cd "$prefix/include" && find . -name '*.h' | sort | tr '\n' ' ')
[ "$headers" = "./weft/log.h ./weft/status.h ./weft/weft.h " ] || { echo "unexpected headers: $headers"; exit 1; }

# shellcheck disable=SC2046
cc -std=c11 -Wall -Wextra -Werror "$here/example.c" $(pkg-config --cflags --libs weft) -o "$prefix/shared"
# shellcheck disable=SC2046
cc -std=c11 -Wall -Wextra -Werror "$here/example.c" $(pkg-config --cflags weft) "$libdir/libweft.a" \
    $(pkg-config --static --libs weft | sed 's/-lweft//') -o "$prefix/static"

# Only the API may be visible to an embedder.
hidden=$(nm -D --defined-only "$libdir/libweft.so" | awk '$2 ~ /[TDBR]/ {print $3}' | grep -v '^weft_' || true)
[ -z "$hidden" ] || { echo "exported without the prefix: $hidden"; exit 1; }

shared=$(LD_LIBRARY_PATH=$libdir "$prefix/shared" "$model" "Once upon a time" 1)
static=$("$prefix/static" "$model" "Once upon a time" 2)
printf '%s\n' "$shared"
[ -n "$shared" ] && [ "$shared" = "$static" ] || { echo "1 rank, shared: $shared"; echo "2 ranks, static: $static"; exit 1; }
