#!/usr/bin/env bash
# From a fresh clone to an answer: installs what is missing, builds, and asks the demo model a question over two ranks.
set -eu
cd "$(dirname "$0")/.."
. launch/packages.sh

ranks=2
prompt="The key of the red box is 4821. The key of the blue bag is 7350. The key of the green jar is 1964. \
What is the key of the blue bag?"
only_build=false

usage()
{
    cat << 'EOF'
usage: launch/quickstart.sh [--build-only] [PROMPT]

Installs the Debian packages Weft needs (only what is missing), builds it into build/, starts the demo model over
two ranks with mpirun and streams the answer to PROMPT. May be run again at any time.

  --build-only   stop after the build
  -h, --help     this text

The demo model adds, counts, sorts, copies, reverses, compares, looks things up and tells tiny stories:
  launch/quickstart.sh "123 + 456 ="
  launch/quickstart.sh "Once upon a time"
EOF
}

has_prompt=false
while [ $# -gt 0 ]; do
    case $1 in
        --build-only) only_build=true ;;
        -h | --help) usage; exit 0 ;;
        --) shift; break ;;
        -*) echo "launch/quickstart.sh: unknown option '$1'" >&2; usage >&2; exit 2 ;;
        *) break ;;
    esac
    shift
done
if [ $# -gt 0 ]; then
    prompt=$1
    has_prompt=true
    shift
fi
if [ $# -gt 0 ] || { $only_build && $has_prompt; }; then
    echo "launch/quickstart.sh: unexpected argument '${1:-$prompt}' (quote the prompt)" >&2
    exit 2
fi

build()
{
    local log=build/quickstart.log jobs
    jobs=$(nproc)
    if ! mkdir -p build || ! { : > "$log"; } 2> /dev/null; then
        echo "launch/quickstart.sh: cannot write to $PWD/build as $(id -un); remove that folder or fix its owner" >&2
        return 1
    fi
    echo "Building into build/ (log: $log)"
    # Tests have needs of their own; tests/run.sh turns them on in the same folder, and a folder already so stays so.
    local tests=(-DWEFT_BUILD_TESTS=OFF)
    [ ! -f build/CMakeCache.txt ] || tests=()
    if ! { cmake -S . -B build -G Ninja "${tests[@]}" && cmake --build build -j "$jobs"; } > "$log" 2>&1; then
        tail -n 40 "$log" >&2
        echo "launch/quickstart.sh: the build failed; the whole log is in $log" >&2
        return 1
    fi
}

# mpirun refuses root unless told, and more ranks than cores unless told. It forwards standard output and error by
# separate ways, on which the end of the answer can arrive after the figures that follow it: on a terminal, where that
# would be seen, both take the same one.
ask()
{
    local options=(-n "$ranks" --bind-to none) merge=()
    [ "$(id -u)" -ne 0 ] || options+=(--allow-run-as-root)
    [ "$(nproc)" -ge "$ranks" ] || options+=(--oversubscribe)
    [ ! -t 1 ] || merge=(bash -c 'exec "$@" 2>&1' bash)
    echo
    printf '$ mpirun %s build/weft run --prompt "%s"\n' "${options[*]}" "$prompt"
    mpirun "${options[@]}" "${merge[@]}" build/weft run --prompt "$prompt"
}

next_steps()
{
    cat << 'EOF'

Next:
  build/weft run --ranks 3 --prompt "Sort 42 7 19:"        any number of ranks, without mpirun
  build/weft info --ranks 2                                what the model is, bytes per rank
  build/weft doctor --ranks 2                              machines and links before anything is loaded
  build/weft serve --ranks 2 --grpc 127.0.0.1:9000         gRPC; README.md shows a client in Python
  build/weft --help
  tests/run.sh                                             installs what the tests need and runs all of them
EOF
}

weft_packages_install "$weft_packages_build"
build
if $only_build; then
    echo "Built build/weft"
    exit 0
fi
ask
next_steps
