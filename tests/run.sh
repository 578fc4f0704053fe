#!/usr/bin/env bash
# Installs what the tests need, builds, and runs all of them. May be run again at any time.
#   tests/run.sh              everything, as CI does
#   tests/run.sh STEP...      only these steps (see --help)
# Each step's output goes to build/test-logs/STEP.log and is shown when the step fails.
set -u
cd "$(dirname "$0")/.." || exit 1
. launch/packages.sh

steps=(packages python build ctest pytest clang cuda asan tsan fuzz)
logs=build/test-logs
jobs=$(nproc)

describe()
{
    case $1 in
        packages) echo "Debian packages for building and testing" ;;
        python) echo "Python environment .venv for the end-to-end tests" ;;
        build) echo "build/ with gcc" ;;
        ctest) echo "C tests and style checks (CTest)" ;;
        pytest) echo "tokenizer, gRPC and command line tests (pytest)" ;;
        clang) echo "build-clang/: everything compiles with clang too, warnings are errors" ;;
        cuda) echo "the CUDA module for one architecture (build/, else build-cuda/): exports, what it needs; nccl" ;;
        asan) echo "build-asan/: C, gRPC and command line tests under AddressSanitizer and UBSan" ;;
        tsan) echo "build-tsan/: threaded C tests under ThreadSanitizer" ;;
        fuzz) echo "fuzzers, some seconds each" ;;
    esac
}

configure_and_build() # FOLDER CMAKE-OPTIONS...
{
    local folder=$1
    shift
    cmake -S . -B "$folder" -G Ninja "$@" && cmake --build "$folder" -j "$jobs"
}

# Two tests for each core, because many wait for deadlines most of their time; of those that compute all along
# (RESOURCE_GROUPS "cores:1") no more than there are cores.
run_ctest() # FOLDER CTEST-OPTIONS...
{
    local folder=$1
    shift
    printf '{"version": {"major": 1, "minor": 0}, "local": [{"cores": [{"id": "all", "slots": %d}]}]}\n' "$jobs" \
        > "$folder/cores.json" &&
        ctest --test-dir "$folder" -j $((2 * jobs)) --resource-spec-file "$PWD/$folder/cores.json" --output-on-failure \
            --no-tests=error "$@"
}

step_packages()
{
    weft_packages_install "$weft_packages_build" && weft_packages_install "$weft_packages_test"
}

# Installs a list of packages into .venv, each in the version of constraints.txt; the index is asked only when one of the
# two has changed since the last success, and again when it does not answer.
install_list() # FILE
{
    local done=.venv/${1//\//-}
    cat "$1" tests/constraints.txt | cmp -s - "$done" && return
    for _ in 1 2 3; do
        if .venv/bin/pip install --quiet --disable-pip-version-check -r "$1" -c tests/constraints.txt; then
            cat "$1" tests/constraints.txt > "$done"
            return
        fi
        sleep 5
    done
    return 1
}

step_python()
{
    [ -x .venv/bin/python ] || /usr/bin/python3 -m venv .venv || return 1
    install_list tests/requirements.txt || return 1
    # Ray has no wheels for some machines; its test skips, visibly, where it is not there.
    install_list launch/ray/requirements.txt || echo "Skipped: Ray could not be installed"
}

step_build()
{
    configure_and_build build -DWEFT_BUILD_TESTS=ON # quickstart.sh may have left it off here
}

step_ctest()
{
    run_ctest build
}

# Three workers for two cores: most tests wait. Those of a file share servers, labs and clusters, and stay together.
run_pytest() # PATHS...
{
    .venv/bin/python -m pytest -q -rs --timeout=600 -n $(((3 * jobs + 1) / 2)) --dist loadfile "$@"
}

step_pytest()
{
    run_pytest tests
}

step_clang()
{
    # The CUDA module has a step and a compiler of its own.
    CC=clang-14 configure_and_build build-clang -DWEFT_BUILD_FUZZERS=ON -DWEFT_WITH_CUDA=OFF
}

# Installs the wheels of LIST into a Python environment FOLDER, when it does not hold just them.
install_wheels() # FOLDER LIST
{
    local held
    held=$1/$(basename "$2")
    cmp -s "$2" "$held" && return
    rm -rf "$1"
    /usr/bin/python3 -m venv "$1" >&2 &&
        "$1/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$2" >&2 &&
        cp "$2" "$held"
}

# nvcc of this machine, else from PyPI in an environment of its own. Prints its path.
find_nvcc()
{
    local nvcc environment=build-cuda/toolkit
    for nvcc in "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" "$(command -v nvcc)"; do
        if [ -n "$nvcc" ] && "$nvcc" --version > /dev/null 2>&1; then
            echo "$nvcc"
            return
        fi
    done
    install_wheels "$environment" tests/gpu/toolkit.txt || return 1
    find "$PWD/$environment"/lib -path '*/nvidia/cu13/bin/nvcc'
}

# Folder of NCCL's header: of this machine, else from PyPI in a folder of its own. Prints it.
find_nccl() # NVCC
{
    local folder target=build-cuda/nccl
    for folder in "$(dirname "$1")/../include" /usr/local/include /usr/include; do
        if [ -f "$folder/nccl.h" ]; then
            echo "$folder"
            return
        fi
    done
    install_wheels "$target" tests/gpu/nccl.txt || return 1
    dirname "$(find "$PWD/$target"/lib -path '*/nvidia/nccl/include/nccl.h')"
}

# Whether the step build found what the nccl backend is made with; its tests are then among those of the step ctest.
build_has_nccl()
{
    grep -q '^WEFT_NCCL_INCLUDE:PATH=/' build/CMakeCache.txt && grep -q '^WEFT_CUDA_INCLUDE:PATH=/' build/CMakeCache.txt
}

step_cuda()
{
    local nvcc nccl
    if [ -n "$(find build -maxdepth 1 -name weft_cuda.so)" ]; then # the step build found a compiler
        tests/gpu/check_module.sh build/weft_cuda.so || return 1
        build_has_nccl && return
    fi
    nvcc=$(find_nvcc) && [ -n "$nvcc" ] && "$nvcc" --version | tail -n 2 && nccl=$(find_nccl "$nvcc") &&
        cmake -S . -B build-cuda -G Ninja -DWEFT_WITH_CUDA=ON -DWEFT_WITH_NCCL=ON -DWEFT_BUILD_SERVE=OFF \
            -DWEFT_NVCC="$nvcc" -DWEFT_CUDA_ARCHITECTURES="${WEFT_CUDA_ARCHITECTURES:-90a}" \
            -DWEFT_NCCL_INCLUDE="$nccl" -DWEFT_CUDA_INCLUDE="$(dirname "$nvcc")/../include" &&
        cmake --build build-cuda -j "$jobs" --target weft_cuda nccl_stub test_comm test_comm_faults test_comm_nccl \
            comm_nccl_check &&
        tests/gpu/check_module.sh build-cuda/weft_cuda.so &&
        run_ctest build-cuda -R '^comm_.*nccl_'
}

step_asan()
{
    configure_and_build build-asan -DWEFT_SANITIZE=address,undefined &&
        run_ctest build-asan -LE 'style|install|no-sanitize' &&
        WEFT_BUILD=build-asan run_pytest tests/serve tests/e2e/test_cli.py
}

step_tsan()
{
    # One test per core: ThreadSanitizer makes everything compute, and deadlines of seconds come near.
    configure_and_build build-tsan -DWEFT_SANITIZE=thread &&
        run_ctest build-tsan -L threads -j "$jobs"
}

step_fuzz()
{
    tests/fuzz/run.sh build-clang "${WEFT_FUZZ_SECONDS:-10}"
}

usage()
{
    echo "usage: tests/run.sh [STEP...]"
    echo "Runs these steps, in this order, or only the named ones:"
    for step in "${steps[@]}"; do
        printf '  %-10s %s\n' "$step" "$(describe "$step")"
    done
}

chosen=()
for argument in "$@"; do
    if [ "$argument" = --help ] || [ "$argument" = -h ]; then
        usage
        exit 0
    fi
    case " ${steps[*]} " in
        *" $argument "*) chosen+=("$argument") ;;
        *) echo "tests/run.sh: unknown step '$argument'" >&2; usage >&2; exit 2 ;;
    esac
done
[ ${#chosen[@]} -gt 0 ] || chosen=("${steps[@]}")

mkdir -p "$logs"
passed=0
failed=0
for step in "${chosen[@]}"; do
    printf '== %-9s %s\n' "$step" "$(describe "$step")"
    begin=$SECONDS
    if "step_$step" > "$logs/$step.log" 2>&1; then
        passed=$((passed + 1))
        result=passed
    else
        failed=$((failed + 1))
        result=FAILED
        tail -n 150 "$logs/$step.log"
    fi
    # The runner's own summary and what was skipped, even when all is well.
    grep -hE '(tests passed|tests failed|[0-9]+ passed|[0-9]+ failed|^SKIPPED|Skipped)' "$logs/$step.log" | tail -n 30
    printf '   %-9s %s, %d s\n' "$step" "$result" $((SECONDS - begin))
done
echo
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
