#!/usr/bin/env bash
# Runs a test program under mpirun on this host and counts the ranks that say "rank R: fine".
#   mpirun.sh RANKS FINE PROGRAM ARGUMENTS...   FINE: how many ranks must be fine; fewer than RANKS: one dies on purpose,
#                                               and mpirun must then report failure.
set -u
ranks=$1
fine=$2
shift 2
if ! command -v mpirun > /dev/null; then
    echo "SKIPPED: no mpirun"
    exit 77
fi
WEFT_TEST_FOLDER=$(mktemp -d) # for what ranks tell each other without MPI
export WEFT_TEST_FOLDER
trap 'rm -rf "$WEFT_TEST_FOLDER"' EXIT
output=$(timeout -k 5 300 mpirun --allow-run-as-root --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 \
    -n "$ranks" "$@" 2>&1)
status=$?
printf '%s\n' "$output"
found=$(printf '%s\n' "$output" | grep -c '^rank [0-9]*: fine$')
if [ "$found" -ne "$fine" ]; then
    echo "$found ranks were fine, expected $fine"
    exit 1
fi
if [ "$status" -eq 124 ] || { [ "$fine" -eq "$ranks" ] && [ "$status" -ne 0 ]; } ||
    { [ "$fine" -ne "$ranks" ] && [ "$status" -eq 0 ]; }; then
    echo "mpirun: exit status $status"
    exit 1
fi
