/*
 * The device side: who a thread is, barriers, warp operations, atomics. One worker thread of the host runs a grid:
 * blocks one after another, the threads of a block as fibers that give way only where they wait.
 *
 * Stricter than a GPU where a GPU forgives: __syncthreads() must be reached by every thread of the block, at the same
 * line; the lanes of a warp operation must all be at the same one; a shuffle may only read lanes that take part. What
 * breaks a rule ends the kernel with one line (weft_emulated_report()) and kills the emulated GPU, as a fault does.
 */
#ifndef WEFT_TESTS_EMULATOR_GRID_H
#define WEFT_TESTS_EMULATOR_GRID_H

#include "emulator/cuda_types.h"

struct weft_emulated_thread {
    uint3 thread_index;
    uint3 block_index;
    dim3 block_dim;
    dim3 grid_dim;
    uint32_t lane;
    void *shared; /* dynamic shared memory of the block */
};

/* The running fiber's thread. Not initial-exec, which would be faster to read: all thread-local memory of the module,
 * __shared__ of every kernel, would then have to fit into the little that glibc keeps for libraries opened later. */
extern __thread const weft_emulated_thread *weft_emulated_self;

#define threadIdx (weft_emulated_self->thread_index)
#define blockIdx  (weft_emulated_self->block_index)
#define blockDim  (weft_emulated_self->block_dim)
#define gridDim   (weft_emulated_self->grid_dim)

constexpr int warpSize = 32;

/* Ends the kernel with one line: "GPU 0, kernel NAME, block (0, 0, 0), thread (1, 0, 0): TEXT". */
[[noreturn]] void weft_emulated_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- barriers ---- */

struct weft_emulated_votes {
    uint32_t count; /* of threads with a predicate that holds */
    uint32_t of;
};
weft_emulated_votes weft_emulated_barrier(const char *file, int line, bool predicate);

#define __syncthreads()                weft_emulated_barrier(__FILE__, __LINE__, false)
#define __syncthreads_count(predicate) ((int)weft_emulated_barrier(__FILE__, __LINE__, (predicate) != 0).count)
#define __syncthreads_or(predicate)    (weft_emulated_barrier(__FILE__, __LINE__, (predicate) != 0).count > 0)
#define __syncthreads_and(predicate)   weft_emulated_all(weft_emulated_barrier(__FILE__, __LINE__, (predicate) != 0))

static inline int weft_emulated_all(weft_emulated_votes votes)
{
    return votes.count == votes.of;
}

/* Lets the other threads of the block run, for loops that wait for memory to change. */
void weft_emulated_yield();

static inline void __nanosleep(unsigned int)
{
    weft_emulated_yield();
}

/* ---- warps ---- */

/*
 * One operation of all lanes of `mask` (lanes that have left the kernel excepted): the last to arrive calls
 * run(data, lanes), data[i] what lane i passed, for every bit i of `lanes`; then all go on.
 */
typedef void weft_emulated_warp_run(void **data, uint32_t lanes);
void weft_emulated_warp(uint32_t mask, weft_emulated_warp_run *run, void *data, const char *what);

#define WEFT_EMULATED_FULL_MASK 0xffffffffU

void __syncwarp(uint32_t mask = WEFT_EMULATED_FULL_MASK);
uint32_t __ballot_sync(uint32_t mask, int predicate);
uint32_t __activemask();

static inline int __any_sync(uint32_t mask, int predicate)
{
    return __ballot_sync(mask, predicate) != 0;
}

template <typename T> struct weft_emulated_shuffle {
    T value;
    uint32_t source; /* lane */
    T result;

    static void run(void **data, uint32_t lanes)
    {
        for (uint32_t i = 0; i < 32; i++) {
            if ((lanes >> i & 1) != 0) {
                weft_emulated_shuffle *own = static_cast<weft_emulated_shuffle *>(data[i]);

                if ((lanes >> own->source & 1) == 0) {
                    weft_emulated_fault("lane %u shuffles from lane %u, which does not take part", i, own->source);
                }
                own->result = static_cast<weft_emulated_shuffle *>(data[own->source])->value;
            }
        }
    }
};

template <typename T>
static inline T weft_emulated_shuffle_from(uint32_t mask, T value, uint32_t source, const char *what)
{
    weft_emulated_shuffle<T> own = {value, source, value};

    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move words of 4 or 8 bytes");
    weft_emulated_warp(mask, weft_emulated_shuffle<T>::run, &own, what);
    return own.result;
}

/* Lanes in segments of `width`; a source outside the segment means the lane itself. */
template <typename T> static inline T __shfl_sync(uint32_t mask, T value, int source, int width = 32)
{
    uint32_t lane = weft_emulated_self->lane;
    uint32_t base = lane & ~((uint32_t)width - 1);

    return weft_emulated_shuffle_from(mask, value, base + ((uint32_t)source & ((uint32_t)width - 1)), "__shfl_sync");
}

template <typename T> static inline T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32)
{
    uint32_t lane = weft_emulated_self->lane;
    uint32_t source = lane ^ (uint32_t)lane_mask;
    uint32_t end = (lane & ~((uint32_t)width - 1)) + (uint32_t)width; /* earlier segments may be read */

    return weft_emulated_shuffle_from(mask, value, source < end ? source : lane, "__shfl_xor_sync");
}

template <typename T> static inline T __shfl_down_sync(uint32_t mask, T value, unsigned int delta, int width = 32)
{
    uint32_t lane = weft_emulated_self->lane;
    uint32_t end = (lane & ~((uint32_t)width - 1)) + (uint32_t)width;

    return weft_emulated_shuffle_from(mask, value, lane + delta < end ? lane + delta : lane, "__shfl_down_sync");
}

template <typename T> static inline T __shfl_up_sync(uint32_t mask, T value, unsigned int delta, int width = 32)
{
    uint32_t lane = weft_emulated_self->lane;
    uint32_t begin = lane & ~((uint32_t)width - 1);

    return weft_emulated_shuffle_from(mask, value, lane >= begin + delta ? lane - delta : lane, "__shfl_up_sync");
}

/* Lanes that have left the kernel do not vote. */
int __all_sync(uint32_t mask, int predicate);

/* ---- cp.async: the target holds NaN until a wait covers the copy; only then are the 16 bytes read and written ---- */

void weft_emulated_copy_async(void *shared, const void *global);
void weft_emulated_copy_async_commit();
/* Until all but the `left` youngest groups are there. */
void weft_emulated_copy_async_wait(uint32_t left);

/* ---- atomics and fences: seen by the host and by other emulated GPUs too ---- */

static inline void __threadfence_system()
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static inline void __threadfence()
{
    __threadfence_system();
}

static inline void __threadfence_block()
{
    __threadfence_system();
}

template <typename T> static inline T atomicAdd(T *address, T value)
{
    return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);
}

static inline float atomicAdd(float *address, float value)
{
    uint32_t *word = reinterpret_cast<uint32_t *>(address);
    uint32_t old = __atomic_load_n(word, __ATOMIC_SEQ_CST);

    while (!__atomic_compare_exchange_n(word, &old, __float_as_uint(__uint_as_float(old) + value), false,
                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    return __uint_as_float(old);
}

template <typename T> static inline T atomicExch(T *address, T value)
{
    return __atomic_exchange_n(address, value, __ATOMIC_SEQ_CST);
}

template <typename T> static inline T atomicCAS(T *address, T expected, T value)
{
    __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return expected;
}

template <typename T> static inline T atomicOr(T *address, T value)
{
    return __atomic_fetch_or(address, value, __ATOMIC_SEQ_CST);
}

template <typename T> static inline T atomicAnd(T *address, T value)
{
    return __atomic_fetch_and(address, value, __ATOMIC_SEQ_CST);
}

template <typename T> static inline T atomicMax(T *address, T value)
{
    T old = __atomic_load_n(address, __ATOMIC_SEQ_CST);

    while (old < value &&
           !__atomic_compare_exchange_n(address, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    return old;
}

template <typename T> static inline T atomicMin(T *address, T value)
{
    T old = __atomic_load_n(address, __ATOMIC_SEQ_CST);

    while (value < old &&
           !__atomic_compare_exchange_n(address, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    return old;
}

#endif
