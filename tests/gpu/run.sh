#!/usr/bin/env bash
# Everything that needs a GPU, in under ten minutes, as one table.
#   tests/gpu/run.sh [STAGE...]      (see --help)
# Each stage stands alone, has a time limit, and goes on from whatever the one before it left. Logs: $OUT or
# build/gpu-logs. Programs: WEFT_GPU_BIN, else build-gpu/pack/bin (pack.sh), else build.
set -u
cd "$(dirname "$0")/../.." || exit 1

budget=${WEFT_GPU_BUDGET:-570} # seconds for all
logs=${OUT:-build/gpu-logs}
models=${WEFT_GPU_MODELS:-/dev/shm}
stages=(machine kernels models ranks peer nccl sanitizer speed)
bin=${WEFT_GPU_BIN:-}
for folder in build-gpu/pack/bin build; do
    [ -n "$bin" ] || { [ -x "$folder/weft" ] && bin=$PWD/$folder; }
done
libraries=${bin%/bin}/lib
if [ -d "$libraries" ]; then
    export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
export WEFT_BUILD=$bin
module=${WEFT_CUDA_MODULE:-$bin/weft_cuda.so}
python=$(command -v python3 || echo python3)
torch_python=""
for candidate in "${WEFT_GPU_TORCH:-}" "$python" /opt/venv/bin/python /opt/conda/bin/python /usr/local/bin/python3; do
    if [ -z "$torch_python" ] && [ -x "$candidate" ] && timeout 60 "$candidate" -c 'import torch' 2> /dev/null; then
        torch_python=$candidate
    fi
done

# For --numerics fast: torch brings cuBLASLt where there is no toolkit. Last, so that nothing else is found there.
torch_nvidia=${torch_python:+$(dirname "$("$torch_python" -c 'import torch; print(torch.__file__)')")/../nvidia}
for folder in /usr/local/cuda/lib64 "$torch_nvidia/cu13/lib" "$torch_nvidia/cublas/lib"; do
    if [ -e "$folder/libcublasLt.so.13" ] || [ -e "$folder/libcublasLt.so.12" ]; then
        export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
        break
    fi
done

describe()
{
    case $1 in
        machine) echo "driver, GPUs and links as weft info sees them" ;;
        kernels) echo "every operation of the device against the CPU's, by bits where they must agree" ;;
        models) echo "tiny models of every family and the demo model, on the GPU and on the CPU" ;;
        ranks) echo "2, 4 and 8 ranks on one GPU, through host memory: the same bits" ;;
        peer) echo "sums through the memory of peers on one GPU, between threads and processes; one of them killed" ;;
        nccl) echo "two and three processes on one GPU over NCCL: the same bits; one of them killed, the others go on" ;;
        sanitizer) echo "compute-sanitizer memcheck and racecheck over a small model and the kernel checks" ;;
        speed) echo "figures next to what bounds them" ;;
    esac
}

limit()
{
    case $1 in machine) echo 40 ;; kernels) echo 90 ;; models) echo 90 ;; ranks) echo 60 ;; peer) echo 45 ;; nccl) echo 60 ;;
        sanitizer) echo 90 ;; speed) echo 420 ;; esac
}

has()
{
    [ -x "$bin/$1" ] || { echo "SKIPPED: $1 is not among the programs in $bin"; return 1; }
}

stage_machine()
{
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv || true
    "$bin/weft" info && "$bin/weft" run --device cuda:0 --prompt '12+30=' --verbose
}

stage_kernels()
{
    has kernels_check || return 77
    "$bin/kernels_check" --device cuda --module "$module" || return 1
    [ ! -x "$bin/fast_check" ] || "$bin/fast_check" --module "$module"
}

stage_models()
{
    "$python" tests/gpu/compare.py --ranks 1
}

stage_ranks()
{
    "$python" tests/gpu/compare.py --ranks 1,2,4,8 --families llama2,qwen2
}

stage_peer()
{
    has comm_nccl_check || return 77
    "$bin/comm_nccl_check" --backend peer --as threads && "$bin/comm_nccl_check" --backend peer --as threads --ranks 4 &&
        "$bin/comm_nccl_check" --backend peer
}

stage_nccl()
{
    local library
    for library in /usr/local/cuda/lib64 /usr/lib/x86_64-linux-gnu \
        ${torch_python:+"$(dirname "$("$torch_python" -c 'import torch; print(torch.__file__)')")/../nvidia/nccl/lib"}; do
        [ ! -e "$library/libnccl.so.2" ] || break
    done
    [ -e "$library/libnccl.so.2" ] || { echo "SKIPPED: no libnccl.so.2 on this machine"; return 77; }
    export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$library
    [ ! -x "$bin/comm_nccl_check" ] || { "$bin/comm_nccl_check" && "$bin/comm_nccl_check" --ranks 3; } || return 1
    "$python" tests/gpu/nccl.py
}

stage_sanitizer()
{
    local sanitizer tool
    sanitizer=$(command -v compute-sanitizer || command -v /usr/local/cuda/bin/compute-sanitizer) ||
        { echo "SKIPPED: no compute-sanitizer on this machine"; return 77; }
    for tool in memcheck racecheck; do
        echo "$tool: the demo model"
        "$sanitizer" --tool "$tool" --error-exitcode 9 "$bin/weft" run --quiet --device cuda:0 --max-tokens 3 \
            --prompt '12+30=' || return 1
        echo "$tool: rows, rotation"
        "$sanitizer" --tool "$tool" --error-exitcode 9 "$bin/kernels_check" --device cuda --module "$module" \
            --only rows || return 1
        "$sanitizer" --tool "$tool" --error-exitcode 9 "$bin/kernels_check" --device cuda --module "$module" \
            --only "device rope" || return 1
    done
}

stage_speed()
{
    has gpu_probe || return 77
    timeout 60 "$bin/kernels_check" --device cuda --module "$module" --bench || return 1
    "$python" tests/gpu/speed.py "$bin" "$models" --budget "$(($1 - 60))" ${torch_python:+--torch "$torch_python"}
}

usage()
{
    echo "usage: tests/gpu/run.sh [STAGE...]"
    for stage in "${stages[@]}"; do
        printf '  %-10s %s\n' "$stage" "$(describe "$stage")"
    done
}

# `stage NAME SECONDS` in a shell of its own, so that timeout can end it with all it started.
if [ "${1:-}" = --stage ]; then
    "stage_$2" "$3"
    exit
fi
chosen=()
for argument in "$@"; do
    case " ${stages[*]} " in
        *" $argument "*) chosen+=("$argument") ;;
        *) usage; [ "$argument" = --help ]; exit ;;
    esac
done
[ ${#chosen[@]} -gt 0 ] || chosen=("${stages[@]}")

if [ -z "$bin" ]; then
    echo "tests/gpu/run.sh: no weft in build-gpu/pack/bin or build: run tests/gpu/pack.sh where there is a compiler"
    exit 1
fi
if ! "$bin/weft" info 2> /dev/null | grep -qE '^GPU +name '; then
    echo "SKIPPED, all of it: $("$bin/weft" info 2>&1 | grep -E '^GPUs ' || echo "weft info does not run")"
    exit 0
fi
mkdir -p "$logs"
failed=0
rows=()
for stage in "${chosen[@]}"; do
    left=$((budget - SECONDS))
    seconds=$(limit "$stage")
    [ "$seconds" -le "$left" ] || seconds=$left
    printf '== %-9s %s\n' "$stage" "$(describe "$stage")"
    if [ "$seconds" -lt 10 ]; then
        rows+=("$(printf '%-10s not run: the time is used up' "$stage")")
        failed=1
        continue
    fi
    begin=$SECONDS
    timeout --kill-after=5 "$seconds" bash "$0" --stage "$stage" $((seconds - 5)) > "$logs/$stage.log" 2>&1
    code=$?
    case $code in
        0) result=passed ;;
        77) result="skipped$(grep -h '^SKIPPED' "$logs/$stage.log" | tail -n 1 | sed s/SKIPPED//)" ;;
        124|137) result="FAILED: not done after $seconds s" failed=1 ;;
        *) result="FAILED, exit code $code" failed=1 ;;
    esac
    tail -n 40 "$logs/$stage.log"
    rows+=("$(printf '%-10s %4d s  %s' "$stage" $((SECONDS - begin)) "$result")")
    printf -- '-- %s\n' "${rows[-1]}" # at once: whoever ends this script early still has it
done
printf '\n%-10s %6s  %s\n' stage time result
printf '%s\n' "${rows[@]}"
exit "$failed"
