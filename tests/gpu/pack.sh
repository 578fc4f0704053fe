#!/usr/bin/env bash
# pack.sh [FOLDER]: builds everything that run.sh needs and puts it, with the shared libraries it uses, into FOLDER
# (build-gpu/pack): for a machine with a GPU that lacks our Debian packages, compiler and toolkit. For all architectures
# of a release; WEFT_CUDA_ARCHITECTURES=90a makes it smaller and is built in a third of the time.
set -eu
cd "$(dirname "$0")/../.."
pack=${1:-build-gpu/pack}
build='build-gpu'
programs=(weft kernels_check fast_check comm_nccl_check gpu_probe)

# The programs find the libraries themselves (DT_RPATH, which the module that they open has the use of, too): nothing else
# there, torch above all, is to meet them.
mkdir -p "$build"
cmake -S . -B "$build" -G Ninja -DWEFT_BUILD_TESTS=ON -DWEFT_WITH_CUDA=ON -DWEFT_WITH_NCCL=ON -DWEFT_WITH_MPI=OFF \
    -DWEFT_WITH_UCX=OFF -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON \
    -DCMAKE_INSTALL_RPATH="\$ORIGIN/../lib" -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags \
    -DWEFT_CUDA_ARCHITECTURES="${WEFT_CUDA_ARCHITECTURES:-80;90a;100}" > "$build/configure.log" ||
    { cat "$build/configure.log"; exit 1; }
cmake --build "$build" -j "$(nproc)" --target "${programs[@]}" weft_cuda
grep -q cublasLtMatmul "$build/weft_cuda.so" ||
    { echo "pack.sh: the CUDA module was built without cublasLt.h: numerics fast cannot be tested"; exit 1; }

rm -rf "$pack"
mkdir -p "$pack/bin" "$pack/lib"
for program in "${programs[@]}" weft_cuda.so; do
    cp "$build/$program" "$pack/bin/"
done
# All but the C library's own, which must fit the kernel and loader that are there.
for program in "$pack"/bin/*; do
    ldd "$program" 2> /dev/null | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p'
done | sort -u | grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv|ld-linux[^/]*)\.so' | xargs -r cp -t "$pack/lib"
strip --strip-debug "$pack"/bin/* 2> /dev/null || true
du -sh "$pack"
