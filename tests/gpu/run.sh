#!/usr/bin/env bash
# Everything that needs a GPU, in under ten minutes, as one table.
#   tests/gpu/run.sh [STAGE|check...]     (see --help; check: all stages but speed)
#   tests/gpu/run.sh --emulate [...]      the same commands on the emulated GPU, small: that they work, no figures
# Each stage stands alone and has a share of the budget that no other can take; what is left over goes to the last one.
# Logs: $OUT or build/gpu-logs. Programs: WEFT_GPU_BIN, else build-gpu/pack/bin (pack.sh), else build.
set -u
cd "$(dirname "$0")/../.." || exit 1

logs=${OUT:-build/gpu-logs}
stages=(machine kernels models ranks peer nccl sanitizer speed)
emulate=${WEFT_GPU_EMULATE:-} # set for the stages' own shells
[ "${1:-}" != --emulate ] || { emulate=yes; shift; }
budget=${WEFT_GPU_BUDGET:-${emulate:+3000}}
budget=${budget:-570} # seconds for all; on the emulated GPU against hanging alone
bin=${WEFT_GPU_BIN:-}
for folder in build-gpu/pack/bin build; do
    [ -n "$bin" ] || { [ -x "$folder/weft" ] && bin=$PWD/$folder; }
done
export WEFT_BUILD=$bin WEFT_GPU_EMULATE=$emulate
module=${WEFT_CUDA_MODULE:-$bin/weft_cuda.so}
probe=$bin/gpu_probe

add_libraries() # FOLDER: behind those that are there
{
    export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$1
}

if [ -n "$emulate" ]; then
    module=$bin/weft_cuda_emulated.so
    probe=$bin/gpu_probe_emulated
    export WEFT_CUDA_MODULE=$module WEFT_EMULATED_GPU=devices=1
    [ ! -d "$bin/cublaslt_stub" ] || add_libraries "$bin/cublaslt_stub"
fi

python="" # with numpy, for random models; with torch when there is one
torch=""  # folder of torch
for candidate in "${WEFT_GPU_PYTHON:-}" python3 .venv/bin/python /opt/venv/bin/python /opt/conda/bin/python; do
    candidate=$(command -v "$candidate") || continue
    find='import importlib.util as u, os; u.find_spec("numpy").origin; t = u.find_spec("torch"); print(t and os.path.dirname(t.origin) or "")'
    found=$("$candidate" -c "$find" 2> /dev/null) || continue
    if [ -z "$python" ] || { [ -z "$torch" ] && [ -n "$found" ]; }; then
        python=$candidate torch=$found
    fi
done
python=${python:-python3}

# For --numerics fast: torch brings cuBLASLt where there is no toolkit. Last, so that nothing else is found there.
if [ -z "$emulate" ]; then
    for folder in /usr/local/cuda/lib64 "$torch/../nvidia/cu13/lib" "$torch/../nvidia/cublas/lib"; do
        if [ -e "$folder/libcublasLt.so.13" ] || [ -e "$folder/libcublasLt.so.12" ]; then
            add_libraries "$folder"
            break
        fi
    done
fi

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

# Seconds of 570; 10 are for what is outside the stages.
share()
{
    case $1 in machine) echo 15 ;; kernels) echo 40 ;; models) echo 35 ;; ranks) echo 30 ;; peer) echo 15 ;; nccl) echo 25 ;;
        sanitizer) echo 40 ;; speed) echo 360 ;; esac
}

has()
{
    [ -x "$1" ] || { echo "SKIPPED: ${1##*/} is not among the programs in $bin"; return 1; }
}

# What a dry run cannot show, said so that the table has it.
not_here()
{
    echo "NOT HERE: $1"
}

stage_machine()
{
    if [ -z "$emulate" ]; then
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv || true
    else
        not_here nvidia-smi
    fi
    "$bin/weft" info && "$bin/weft" run --device cuda:0 --prompt '12+30=' --verbose
}

stage_kernels()
{
    local only=() tokens=()
    has "$bin/kernels_check" || return 77
    # The emulated GPU has all of it in CTest.
    [ -z "$emulate" ] || { only=(--only rows) tokens=(--tokens 16,48); }
    if [ -n "$emulate" ] && [ ! -d "$bin/cublaslt_stub" ]; then
        not_here "cuBLASLt (no header of it when this was built, so no stub)"
        tokens+=(--without)
    fi
    "$bin/kernels_check" --device cuda --module "$module" "${only[@]}" || return 1
    has "$bin/fast_check" || return 1
    "$bin/fast_check" --module "$module" "${tokens[@]}"
}

compare()
{
    "$python" tests/gpu/compare.py --cuda-module "$module" "$@"
}

stage_models()
{
    if [ -n "$emulate" ]; then
        compare --ranks 1 --families llama2 --quantised '' --tokens 3 --jobs 2
    else
        compare --ranks 1 --jobs 6
    fi
}

stage_ranks()
{
    if [ -n "$emulate" ]; then
        compare --ranks 1,2 --families '' --tokens 3 --jobs 2
    else
        compare --ranks 1,2,4,8 --families llama2,qwen2 --jobs 4
    fi
}

# comm_nccl_check takes a module as a sign that it runs in software.
stage_peer()
{
    local options
    has "$bin/comm_nccl_check" || return 77
    for options in "--as threads" "--as threads --ranks 4" "--as processes"; do
        # shellcheck disable=SC2086 # words
        "$bin/comm_nccl_check" --backend peer $options ${emulate:+--module "$module"} || return 1
    done
}

stage_nccl()
{
    local folder options folders=(/usr/local/cuda/lib64 /usr/lib/x86_64-linux-gnu "$torch/../nvidia/nccl/lib")
    [ -z "$emulate" ] || folders=("$bin/tests/comm/nccl_stub")
    for folder in "${folders[@]}"; do
        [ ! -e "$folder/libnccl.so.2" ] || break
    done
    [ -e "$folder/libnccl.so.2" ] || { echo "SKIPPED: no libnccl.so.2 on this machine"; return 77; }
    add_libraries "$folder"
    [ -z "$emulate" ] || export WEFT_EMULATED_GPU="devices=1 nccl=1"
    has "$bin/comm_nccl_check" || return 1
    for options in "--ranks 2" "--ranks 3"; do
        # shellcheck disable=SC2086 # words
        "$bin/comm_nccl_check" $options ${emulate:+--module "$module"} || return 1
    done
    "$python" tests/gpu/nccl.py --cuda-module "$module"
}

# Under one tool, which says what it found by exit code 9.
sanitize() # TOOL COMMAND...
{
    local tool=$1
    shift
    echo "$tool: ${*##*/}"
    if [ -n "$emulate" ]; then
        "$@"
    else
        "$sanitizer" --tool "$tool" --target-processes all --error-exitcode 9 "$@"
    fi
}

# In an order that shows most before the time is up.
stage_sanitizer()
{
    local tool
    sanitizer=$(command -v compute-sanitizer || command -v /usr/local/cuda/bin/compute-sanitizer)
    [ -z "$emulate" ] || not_here "compute-sanitizer (its commands ran without it)"
    [ -n "$sanitizer$emulate" ] || { echo "SKIPPED: no compute-sanitizer on this machine"; return 77; }
    for tool in memcheck racecheck; do
        sanitize "$tool" "$bin/weft" run --quiet --device cuda:0 --max-tokens 3 --prompt '12+30=' || return 1
    done
    for tool in memcheck racecheck; do
        sanitize "$tool" "$bin/kernels_check" --device cuda --module "$module" --only rows || return 1
        [ -n "$emulate" ] ||
            sanitize "$tool" "$bin/kernels_check" --device cuda --module "$module" --only candidates || return 1
    done
}

# The first folder with room for the random models; one in memory makes loading a matter of the link.
models_folder()
{
    local folder
    for folder in ${WEFT_GPU_MODELS:+"$WEFT_GPU_MODELS"} /dev/shm /tmp build; do
        if [ -d "$folder/weft-random-8b" ] || [ "$(df --output=avail -B 1000000000 "$folder" | tail -n 1)" -ge 30 ]; then
            echo "$folder"
            return
        fi
    done
    echo "SKIPPED: no folder with 30 GB of room for random models; name one by WEFT_GPU_MODELS" >&2
    return 77
}

stage_speed()
{
    local models options=()
    has "$probe" && has "$bin/kernels_check" || return 77
    if [ -n "$emulate" ]; then
        models=$(mktemp -d) options=(--tiny)
        # shellcheck disable=SC2064 # now: it is local
        trap "rm -rf '$models'" EXIT
        [ -n "$torch" ] || not_here "torch and transformers"
    else
        models=$(models_folder) || return 77
    fi
    [ -z "$torch" ] || options+=(--torch)
    "$python" tests/gpu/speed.py "$bin" "$models" --probe "$probe" --module "$module" --budget "$1" "${options[@]}"
}

usage()
{
    echo "usage: tests/gpu/run.sh [--emulate] [STAGE|check...]"
    for stage in "${stages[@]}"; do
        printf '  %-10s %3d s of 570: %s\n' "$stage" "$(share "$stage")" "$(describe "$stage")"
    done
}

# `stage NAME SECONDS` in a shell of its own, so that timeout can end it with all it started.
if [ "${1:-}" = --stage ]; then
    "stage_$2" "$3"
    exit
fi
chosen=()
for argument in "$@"; do
    case " ${stages[*]} check " in
        *" $argument "*) [ "$argument" = check ] && chosen+=("${stages[@]::7}") || chosen+=("$argument") ;;
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
shares=10
for stage in "${chosen[@]}"; do
    shares=$((shares + $(share "$stage")))
done
if [ $((15 * budget / shares)) -lt 7 ]; then
    echo "tests/gpu/run.sh: WEFT_GPU_BUDGET=$budget is too little for these stages: expected $((shares / 2)) seconds at least"
    exit 1
fi
mkdir -p "$logs"
failed=0
rows=()
running="" # process group of the stage
end_stage()
{
    [ -z "$running" ] || kill -KILL -- "-$running" 2> /dev/null
}
trap '[ -z "$running" ] || kill -TERM -- "-$running"; sleep 1; end_stage; exit 130' INT TERM
for stage in "${chosen[@]}"; do
    seconds=$(($(share "$stage") * budget / shares))
    [ "$stage" != "${chosen[-1]}" ] || seconds=$((budget - SECONDS)) # what the others left, its own share at least
    printf '== %-9s %s, %d s at most\n' "$stage" "$(describe "$stage")" "$seconds"
    begin=$SECONDS
    timeout --kill-after=3 $((seconds - 3)) bash "$0" --stage "$stage" $((seconds - 6)) > "$logs/$stage.log" 2>&1 &
    running=$!
    wait "$running"
    code=$?
    end_stage # whoever does not heed SIGTERM, a program that waits for a GPU for ever, has no more of it
    case $code in
        0) result=passed ;;
        77) result="skipped$(grep -h '^SKIPPED' "$logs/$stage.log" | tail -n 1 | sed s/SKIPPED//)" ;;
        124|137) result="FAILED: not done after $((seconds - 3)) s" failed=1 ;;
        *) result="FAILED, exit code $code" failed=1 ;;
    esac
    result+=$(sed -n 's/^NOT HERE: /; not here: /p' "$logs/$stage.log" | tr -d '\n')
    tail -n 150 "$logs/$stage.log"
    rows+=("$(printf '%-10s %4d s  %s' "$stage" $((SECONDS - begin)) "$result")")
    printf -- '-- %s\n' "${rows[-1]}" # at once: whoever ends this script early still has it
done
printf '\n%-10s %6s  %s\n' stage time result
printf '%s\n' "${rows[@]}"
exit "$failed"
