/*
 * The PTX instructions that the kernels use, one thin function each; nothing else in this folder has inline assembly.
 *
 * The emulator has a twin of every function (tests/emulator/ptx_emulated.h), with the same names and arguments. What it
 * cannot promise is the order in which the tensor core adds the 16 products of one instruction: no code here may depend
 * on that order, only on its being the same for every row, token and call.
 *
 * All of it is in sm_80 and later, but for the early start of a kernel, which does nothing before sm_90, and an
 * instruction that has a substitute.
 */
#ifndef WEFT_CUDA_PTX_H
#define WEFT_CUDA_PTX_H

#include <stdint.h>

#include "cuda/port.h"

#ifdef WEFT_CUDA_EMULATED

#include "emulator/ptx_emulated.h"

#else

/*
 * d[16 rows, 8 columns] += a[16, 16] b[16, 8] by the whole warp, f32 sums. Lane l holds, with r = l / 4 and q = l % 4:
 *   a[0], a[1]: row r and row r + 8, k = 2q and 2q + 1 (low and high half of the word); a[2], a[3]: the same at k + 8
 *   b[0]: k = 2q and 2q + 1 of column r; b[1]: the same at k + 8
 *   d[0], d[1]: row r, columns 2q and 2q + 1; d[2], d[3]: row r + 8
 */
static __device__ __forceinline__ void weft_ptx_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ void weft_ptx_mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/*
 * d[16 rows, 8 columns] <- a[16, 32] b[32, 8] + c in every element, signed bytes, exact in 32 bits, by the whole warp.
 * Lane l holds, with r = l / 4 and q = l % 4, four bytes per word, the first lowest:
 *   a[0], a[1]: row r and row r + 8, k = 4q to 4q + 3; a[2], a[3]: the same at k + 16
 *   b[0]: k = 4q to 4q + 3 of column r; b[1]: the same at k + 16
 *   d[0], d[1]: row r, columns 2q and 2q + 1; d[2], d[3]: row r + 8
 */
static __device__ __forceinline__ void weft_ptx_mma_s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2],
                                                       int32_t c)
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%10,%10,%10,%10};"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c));
}

/* The two f16 of a word, the low half first; exact, a NaN stays a NaN. */
static __device__ __forceinline__ float2 weft_ptx_unpack_f16(uint32_t word)
{
    float2 pair;

    asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "=f"(pair.x), "=f"(pair.y)
        : "r"(word));
    return pair;
}

/* Two floats, each rounded to nearest even, as one word; a NaN stays a NaN, a denormal is kept. The bits of
 * weft_f32_to_bf16() and weft_f32_to_f16() but for a NaN's payload. */
static __device__ __forceinline__ uint32_t weft_ptx_pack_bf16(float low, float high)
{
    uint32_t word;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

static __device__ __forceinline__ uint32_t weft_ptx_pack_f16(float low, float high)
{
    uint32_t word;

    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

/*
 * Four E4M3 bytes as f16, exact, the first two in the first word. Before sm_89 by shifting: the bits are those of an
 * f16 that is 2^8 too small. (Bytes 0x7f and 0xff, NaN, differ; they are in no matrix.)
 */
static __device__ __forceinline__ uint2 weft_ptx_unpack_e4m3(uint32_t bytes)
{
    uint2 halves;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.rn.f16x2.e4m3x2 %0, low; cvt.rn.f16x2.e4m3x2 %1, high;}"
        : "=r"(halves.x), "=r"(halves.y)
        : "r"(bytes));
#else
    asm("{.reg .b32 low, high, sign;"
        "prmt.b32 low, %2, 0, 0x1404; prmt.b32 high, %2, 0, 0x3424;"
        "and.b32 sign, low, 0x80008000; shr.u32 low, low, 1; and.b32 low, low, 0x3f803f80; or.b32 low, low, sign;"
        "and.b32 sign, high, 0x80008000; shr.u32 high, high, 1; and.b32 high, high, 0x3f803f80;"
        "or.b32 high, high, sign;"
        "mov.b32 sign, 0x5c005c00;" /* 256 twice */
        "mul.rn.f16x2 %0, low, sign; mul.rn.f16x2 %1, high, sign;}"
        : "=r"(halves.x), "=r"(halves.y)
        : "r"(bytes));
#endif
    return halves;
}

/*
 * 16 bytes, 16-byte aligned, that this kernel does not write and nobody reads again soon: past the L1, and first to
 * leave the L2, so that weights that stream through displace neither activations nor the KV cache.
 */
static __device__ __forceinline__ uint4 weft_ptx_load_stream(const void *global)
{
    uint64_t policy;
    uint4 value;

    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0,%1,%2,%3}, [%4], %5;"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(global), "l"(policy));
    return value;
}

/*
 * shared[0..16) <- global[0..16), both 16-byte aligned, some time before the wait that covers it returns. Copies since
 * the last commit form a group; wait<N> returns when all but the N youngest groups of this thread are there. Other
 * threads see them after a barrier that follows.
 */
static __device__ __forceinline__ void weft_ptx_copy_async(void *shared, const void *global)
{
    uint32_t address = (uint32_t)__cvta_generic_to_shared(shared);

    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(address), "l"(global) : "memory");
}

static __device__ __forceinline__ void weft_ptx_copy_async_commit(void)
{
    asm volatile("cp.async.commit_group;" : : : "memory");
}

template <int N> static __device__ __forceinline__ void weft_ptx_copy_async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
}

/* threadIdx.x, read where this stands: what follows from it is not kept in registers through everything before. */
static __device__ __forceinline__ uint32_t weft_ptx_thread(void)
{
    uint32_t thread;

    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

/*
 * Early start (programmatic dependent launch). A kernel started with WEFT_CUDA_LAUNCH_EARLY may run while its
 * predecessor still does; wait_for_previous returns when the predecessor has ended and its writes can be read. Every
 * thread calls it, so that a kernel cannot end before its predecessor. let_next_start, once per block, says that the
 * successor may begin as soon as all blocks have said so or ended; it promises nothing about memory.
 */
static __device__ __forceinline__ void weft_ptx_wait_for_previous(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}

static __device__ __forceinline__ void weft_ptx_let_next_start(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
#endif
}

/*
 * Words that other GPUs, or the host, write and read while the kernel runs: each seen by everybody, none in the order
 * of any other. The vector forms are four such words, 16-byte aligned.
 */
static __device__ __forceinline__ void weft_ptx_load_shared_word(const uint32_t *global, uint32_t *value)
{
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(*value) : "l"(global));
}

static __device__ __forceinline__ void weft_ptx_load_shared_words(const uint32_t *global, uint32_t value[4])
{
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(value[0]), "=r"(value[1]), "=r"(value[2]), "=r"(value[3])
                 : "l"(global));
}

static __device__ __forceinline__ void weft_ptx_store_shared_word(uint32_t *global, uint32_t value)
{
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" : : "l"(global), "r"(value));
}

static __device__ __forceinline__ void weft_ptx_store_shared_words(uint32_t *global, const uint32_t value[4])
{
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1,%2,%3,%4};"
                 :
                 : "l"(global), "r"(value[0]), "r"(value[1]), "r"(value[2]), "r"(value[3]));
}

/* Between two looks at a word that has not come: nothing, the load takes long enough. */
static __device__ __forceinline__ void weft_ptx_poll_pause(void)
{
}
/* Looks after which it is time for one over the bus: some 10 ms. */
static const uint32_t WEFT_PTX_POLLS = 1U << 14;

#endif

#endif
