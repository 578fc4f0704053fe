#!/usr/bin/env bash
# pack.sh [FOLDER]: builds everything that run.sh needs and puts it, with the shared libraries it uses, into FOLDER
# (build-gpu/pack): for a machine with a GPU that lacks our Debian packages, compiler and toolkit.
set -eu
cd "$(dirname "$0")/../.."
pack=${1:-build-gpu/pack}
build='build-gpu'

cmake -S . -B "$build" -G Ninja -DWEFT_BUILD_TESTS=ON -DWEFT_WITH_CUDA=ON -DWEFT_WITH_MPI=OFF -DWEFT_WITH_UCX=OFF \
    -DWEFT_CUDA_ARCHITECTURES="${WEFT_CUDA_ARCHITECTURES:-80;90a;100}" > "$build.log" || { cat "$build.log"; exit 1; }
mv "$build.log" "$build/configure.log"
cmake --build "$build" -j "$(nproc)"
nvcc=$(sed -n 's/^WEFT_NVCC:[A-Z]*=//p' "$build/CMakeCache.txt")
"$nvcc" -O3 -std=c++17 --cudart=static -gencode 'arch=compute_80,code=[sm_80,compute_80]' \
    -gencode arch=compute_90,code=sm_90 tests/gpu/probe.cu -o "$build/gpu_probe"

rm -rf "$pack"
mkdir -p "$pack/bin" "$pack/lib"
find "$build" -maxdepth 1 -type f -executable ! -name '*.so' ! -name 'fuzz_*' -exec cp {} "$pack/bin/" \;
find "$build" -maxdepth 1 -name 'weft_cuda*.so' -exec cp {} "$pack/bin/" \;
# All but the C library's own, which must fit the kernel and loader that are there.
for program in "$pack"/bin/*; do
    ldd "$program" 2> /dev/null | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p'
done | sort -u | grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv|ld-linux[^/]*)\.so' | xargs -r cp -t "$pack/lib"
strip --strip-debug "$pack"/bin/* 2> /dev/null || true
du -sh "$pack"
