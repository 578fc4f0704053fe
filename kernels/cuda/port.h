/*
 * What the kernels' sources may use of CUDA, so that the same files also build as plain C++ for the emulator
 * (tests/emulator), where blocks run one after another and threads are fibers.
 *
 * Every .cu file includes this and never <cuda_runtime.h>. A kernel is started with WEFT_CUDA_LAUNCH, takes its dynamic
 * shared memory with WEFT_CUDA_SHARED, and keeps to: threadIdx, blockIdx, blockDim, gridDim, __shared__, __syncthreads,
 * __syncwarp, the *_sync shuffles and votes with full masks, atomics on 32-bit words, fmaf, division and sqrtf as IEEE
 * has them, and what ptx.h offers. Anything else belongs into a file of its own that says why it cannot be emulated.
 */
#ifndef WEFT_CUDA_PORT_H
#define WEFT_CUDA_PORT_H

/* #pragma unroll for headers, which C++ compilers read, too. */
#ifdef __CUDACC__
#define WEFT_CUDA_PRAGMA(text)      _Pragma(#text)
#define WEFT_CUDA_UNROLL            WEFT_CUDA_PRAGMA(unroll)
#define WEFT_CUDA_UNROLL_BY(factor) WEFT_CUDA_PRAGMA(unroll factor)
#else
#define WEFT_CUDA_UNROLL
#define WEFT_CUDA_UNROLL_BY(factor)
#endif

#ifdef WEFT_CUDA_EMULATED

#include "emulator/cuda_emulated.h"

#else

#include <cuda_runtime.h>

/* Dynamic shared memory of the running block, 128-byte aligned, as `type *name`. */
#define WEFT_CUDA_SHARED(type, name)                                                                                   \
    extern __shared__ __align__(128) unsigned char weft_dynamic_shared[];                                              \
    type *name = reinterpret_cast<type *>(weft_dynamic_shared)

/* What NCCL is given as a stream; NULL: it could do nothing with it. */
#define WEFT_CUDA_STREAM_FOR_NCCL(stream) (stream)

/* kernel<<<grid, block, shared_size, stream>>>(arguments...); errors appear at the next cudaPeekAtLastError(). */
#define WEFT_CUDA_LAUNCH(kernel, grid, block, shared_size, stream, ...)                                                \
    kernel<<<(grid), (block), (shared_size), (stream)>>>(__VA_ARGS__)

/*
 * The same as WEFT_CUDA_LAUNCH for a kernel that may begin before what precedes it in the stream has ended
 * (programmatic dependent launch; with is_early false like WEFT_CUDA_LAUNCH, which is all that GPUs before sm_90 can).
 * Until weft_ptx_wait_for_previous() it reads only what no operation of a step writes, weights for example, and writes
 * nothing.
 */
template <typename... P, typename... A>
static inline void weft_cuda_launch_early(bool is_early, void (*kernel)(P...), dim3 grid, dim3 block,
                                          size_t shared_size, cudaStream_t stream, A... arguments)
{
    cudaLaunchAttribute attribute = {};
    cudaLaunchConfig_t config = {};

    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_size;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = is_early ? 1 : 0;
    (void)cudaLaunchKernelEx(&config, kernel, arguments...); /* the error stays for cudaPeekAtLastError() */
}

#define WEFT_CUDA_LAUNCH_EARLY(is_early, kernel, grid, block, shared_size, stream, ...)                                \
    weft_cuda_launch_early(is_early, kernel, grid, block, shared_size, stream, __VA_ARGS__)

/*
 * The same for a kernel whose blocks wait for those of other GPUs: block i for what their blocks up to i do. Blocks
 * that wait keep their place on the GPU, so there are to be few enough for all of them to have one.
 */
#define WEFT_CUDA_LAUNCH_RESIDENT WEFT_CUDA_LAUNCH_EARLY

#endif

#endif
