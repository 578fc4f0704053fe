#!/usr/bin/env bash
# Runs every fuzzer of a build folder for some seconds each, two processes' worth of machine at most.
#   tests/fuzz/run.sh BUILD-FOLDER SECONDS [FUZZER...]
# What it finds new is kept in BUILD-FOLDER/corpus/FUZZER and used the next time; a crash is kept in
# BUILD-FOLDER/crashes/ and ends the script with an error. corpus/ beside this script is read, never written.
set -u
[ $# -ge 2 ] || { sed -n '2,5s/^# *//p' "$0" >&2; exit 2; }
cd "$(dirname "$0")/../.." || exit 1
build=$1
seconds=$2
shift 2

fuzzers=("$@")
if [ ${#fuzzers[@]} -eq 0 ]; then
    for path in "$build"/fuzz_*; do
        [ -f "$path" ] && [ -x "$path" ] && fuzzers+=("$(basename "$path")")
    done
fi
[ ${#fuzzers[@]} -gt 0 ] || { echo "no fuzzers in $build: configure with CC=clang-14 -DWEFT_BUILD_FUZZERS=ON" >&2; exit 1; }

failed=0
mkdir -p "$build/crashes"
for fuzzer in "${fuzzers[@]}"; do
    corpus=$build/corpus/$fuzzer
    mkdir -p "$corpus"
    arguments=(-max_total_time="$seconds" -timeout=25 -rss_limit_mb=2048 -print_final_stats=1
        -artifact_prefix="$build/crashes/$fuzzer-" "$corpus")
    [ -d "tests/fuzz/corpus/$fuzzer" ] && arguments+=("tests/fuzz/corpus/$fuzzer")
    [ -f "tests/fuzz/$fuzzer.dict" ] && arguments=(-dict="tests/fuzz/$fuzzer.dict" "${arguments[@]}")
    echo "$fuzzer: $seconds seconds"
    if nice "$build/$fuzzer" "${arguments[@]}" > "$corpus.log" 2>&1; then
        grep -E 'number_of_executed_units|peak_rss' "$corpus.log"
    else
        failed=1
        tail -n 60 "$corpus.log"
        echo "$fuzzer: FAILED, the input is in $build/crashes/"
    fi
done
exit $failed
