# Debian packages that Weft needs, with the reason for each, and how to install what is missing. Sourced by
# launch/quickstart.sh, tests/run.sh and launch/docker/Dockerfile; the only place where a package name stands.

# name|why, one per line. Everything needed to build and run.
weft_packages_build='
gcc|C compiler
libc6-dev|C library headers
cmake|build system
ninja-build|runs the build
pkg-config|finds the libraries below
libjansson-dev|JSON: model configuration, tokenizer, output
libpcre2-dev|regular expressions of tokenizers
libutf8proc-dev|Unicode normalisation of tokenizers
libssl-dev|SHA-256 of logits, rendezvous secret
libxxhash-dev|checksums of streamed weights
libprotobuf-c-dev|messages: plans and gRPC
protobuf-c-compiler|generates their C code
libgrpc-dev|gRPC server (C core)
libmicrohttpd-dev|HTTP server: metrics and health
libopenmpi-dev|mpi bootstrap and backend
openmpi-bin|mpirun
libucx-dev|ucx backend (InfiniBand, RoCE)
'

# For the CUDA module where there is no CUDA toolkit (its compiler comes from PyPI, tests/gpu/toolkit.txt).
weft_packages_cuda='
g++|host code of the CUDA module
python3-venv|fetches the CUDA compiler
'

# What the tests need on top.
weft_packages_test='
g++|checks that the headers are good C++
clang-14|second compiler, fuzzers
libclang-rt-14-dev|sanitizer and fuzzer run time of clang
clang-format-14|format check
libcmocka-dev|C unit tests
git|lists the files that the style check reads
python3|end-to-end tests
python3-venv|their private environment (.venv)
openssh-server|several hosts on one machine: mpirun over ssh
openssh-client|the same
iproute2|the same: network namespaces
procps|the same: looking for left-over processes
mmdebstrap|the container image without a container engine
'

# What the container image holds at run time. A test compares it with the libraries that build/weft is linked to.
weft_packages_image='
libgrpc29|gRPC server (C core)
libjansson4|JSON
libmicrohttpd12|HTTP server: metrics and health
libpcre2-8-0|regular expressions of tokenizers
libprotobuf-c1|messages: plans and gRPC
libssl3|SHA-256, rendezvous secret
libutf8proc2|Unicode normalisation of tokenizers
libopenmpi3|mpi bootstrap and backend
libucx0|ucx backend, opened at run time
openmpi-bin|mpirun, and orted on every host
openssh-client|mpirun reaches the other hosts with it
openssh-server|they answer with it
'

# Runs apt-get, by sudo only when not root.
weft_apt()
{
    if [ "$(id -u)" -eq 0 ]; then
        DEBIAN_FRONTEND=noninteractive apt-get "$@"
    else
        sudo DEBIAN_FRONTEND=noninteractive apt-get "$@"
    fi
}

# weft_packages_install LIST: installs what LIST names and is not there yet; prints what and why.
weft_packages_install()
{
    local name why missing=()

    if ! command -v dpkg-query > /dev/null; then
        echo "weft: this is not Debian (no dpkg); install the equivalents of these by hand, then run again:" >&2
        printf '%s\n' "$1" | sed '/^$/d; s/|/  - /' >&2
        return 1
    fi
    while IFS='|' read -r name why; do
        [ -n "$name" ] || continue
        if [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2> /dev/null)" != installed ]; then
            [ ${#missing[@]} -gt 0 ] || echo "Installing packages:"
            printf '  %-22s %s\n' "$name" "$why"
            missing+=("$name")
        fi
    done <<< "$1"
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo > /dev/null; then
        echo "weft: this is neither root nor is there a sudo; as root, run: apt-get install ${missing[*]}" >&2
        return 1
    fi
    local log
    log=$(mktemp)
    if ! { weft_apt update -qq && weft_apt install -y -qq --no-install-recommends "${missing[@]}"; } > "$log" 2>&1; then
        tail -n 20 "$log" >&2
        echo "weft: apt-get could not install the packages above (see the lines before this one)" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}
