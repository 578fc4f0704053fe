/*
 * RMS norm of a row by one block, after what is added to the row: in kernels that differ in where that comes from.
 * V is weft_cuda_one or weft_cuda_four.
 */
#ifndef WEFT_CUDA_NORM_H
#define WEFT_CUDA_NORM_H

#include <stddef.h>
#include <stdint.h>

#include "cuda/port.h"
#include "cuda/tree_cuda.h"

/* Lanes of a horizontal sum: part of the numerics contract. */
static const uint32_t WEFT_CUDA_NORM_LANES = 16;

/* Elements of a row in shared memory at a time: 16 KiB, so that some blocks fit onto a multiprocessor. */
static const uint32_t WEFT_CUDA_NORM_CHUNK = 4096;

/* Shared memory of the block. */
template <typename V> struct weft_cuda_norm_room {
    V chunk[WEFT_CUDA_NORM_CHUNK / (sizeof(V) / sizeof(float))];
    float factor;
};

/* Rows of `width` elements: x, which may be written, and the norms. */
struct weft_cuda_norm_rows {
    float *x;
    const float *weight;
    float *out;
    uint32_t width;
    float eps;
};

/* x[i] <- x[i] + (term + bias[i]), and returned; bias may be NULL. */
template <typename V>
static __device__ __forceinline__ V weft_cuda_norm_add(V *x, V term, const float *bias, uint32_t i)
{
    if (bias != NULL) {
        term = weft_cuda_add(term, reinterpret_cast<const V *>(bias)[i]);
    }
    x[i] = weft_cuda_add(x[i], term);
    return x[i];
}

/*
 * By `threads` threads, a power of two of at least 32. Beside What lie two functions: element_of(what, x, begin, i),
 * what is to be normalised as element i of row x, which begins `begin` elements after the first row, all in units of V;
 * and row_is_there(what), called when element_of() has returned for the whole row.
 *
 * Lane i of 16 must add the squares of elements i, i + 16, ... one after another: 16 threads do, from shared memory,
 * while all load and write. Width 4096: 256 dependent additions, about half a microsecond, which hides behind other
 * rows when there are many. A row longer than a chunk is read again in the end, each element by the thread that may
 * have written it.
 */
template <typename V, typename What>
static __device__ __forceinline__ void weft_cuda_norm_row(What &what, const weft_cuda_norm_rows &rows, uint32_t index,
                                                          uint32_t threads, weft_cuda_norm_room<V> *room)
{
    static const uint32_t by = sizeof(V) / sizeof(float);
    const uint32_t width = rows.width;
    const float *elements = reinterpret_cast<const float *>(room->chunk);
    const size_t row_begin = static_cast<size_t>(index) * width;
    V *row = reinterpret_cast<V *>(rows.x + row_begin);
    V *row_out = reinterpret_cast<V *>(rows.out + row_begin);
    float sum = 0;

    for (uint32_t begin = 0; begin < width; begin += WEFT_CUDA_NORM_CHUNK) {
        const uint32_t count = width - begin < WEFT_CUDA_NORM_CHUNK ? width - begin : WEFT_CUDA_NORM_CHUNK;

        for (uint32_t i = threadIdx.x; i < count / by; i += threads) {
            room->chunk[i] = element_of(what, row, row_begin / by, begin / by + i);
        }
        __syncthreads();
        if (begin + count == width) {
            row_is_there(what);
        }
        if (threadIdx.x < WEFT_CUDA_NORM_LANES) {
            WEFT_CUDA_UNROLL_BY(8)
            for (uint32_t i = threadIdx.x; i < count; i += WEFT_CUDA_NORM_LANES) {
                sum = fmaf(elements[i], elements[i], sum);
            }
        }
        __syncthreads();
    }
    if (threadIdx.x < 32) {
        for (uint32_t distance = WEFT_CUDA_NORM_LANES / 2; distance > 0; distance /= 2) {
            sum += __shfl_down_sync(0xffffffffU, sum, distance, WEFT_CUDA_NORM_LANES);
        }
        if (threadIdx.x == 0) {
            room->factor = 1.0f / sqrtf(sum / static_cast<float>(width) + rows.eps);
        }
    }
    __syncthreads();
    const float factor = room->factor;
    WEFT_CUDA_UNROLL_BY(4)
    for (uint32_t i = threadIdx.x; i < width / by; i += threads) {
        V value = width <= WEFT_CUDA_NORM_CHUNK ? room->chunk[i] : row[i];
        const V scale = reinterpret_cast<const V *>(rows.weight)[i];
        WEFT_CUDA_UNROLL
        for (uint32_t j = 0; j < by; j++) {
            value.v[j] = value.v[j] * factor * scale.v[j];
        }
        row_out[i] = value;
    }
}

#endif
