#!/usr/bin/env bash
# Sums between hosts against Open MPI's own TCP and its UCX, on the lab's wire: tests/bench/wire.sh [RATE_MBIT DELAY_US]
# One rank per host, 2 and 4 hosts; Weft's and MPI's rounds alternate in the same processes. Needs what the lab needs.
set -eu
cd "$(dirname "$0")/../.."
export LAB_WIRE="${1:-1000} ${2:-200}"
build=${WEFT_BUILD:-build}

bench() # HOSTS spin|yield NAME MPIRUN-OPTIONS...
{
    local hosts=$1 wait=$2
    echo "== $hosts hosts, $LAB_WIRE, MPI: $3"
    shift 3
    # shellcheck disable=SC2016 # $LAB is the lab's
    tests/e2e/lab/lab.sh "$hosts" sh -c 'exec timeout 120 $LAB/on 0 "$@"' sh mpirun -n "$hosts" \
        --mca mpi_yield_when_idle 1 "$@" "$build/comm_bench" tcp mpirun "$hosts" "$wait" 10.78.0.0/24
}

for hosts in 2 4; do
    wait=spin
    [ "$hosts" -le "$(nproc)" ] || wait=yield
    bench "$hosts" "$wait" "ob1, tcp" --mca btl_tcp_if_include wire
    bench "$hosts" "$wait" ucx --mca pml ucx --mca opal_common_ucx_tls any --mca opal_common_ucx_devices any \
        -x UCX_TLS=tcp,self -x UCX_NET_DEVICES=wire
done
