/*
 * The kernel of products of up to 8 tokens, for decode: bound by memory; and what its launch must know of a format of
 * weights.
 *
 * A block has one or two row tiles and all their chunks, dealt to its warps. Chunk sums meet in shared memory, where
 * the program runs: one launch per product, nothing in scratch. Weights are read before the kernel that makes the
 * activations has ended. Its predecessors in decode say early that it may start, and so does each block once its
 * weights have been read: a small kernel that follows is there when the last block ends, and the product after that one
 * begins with its weights.
 *
 * A *format* says how a warp multiplies one chunk:
 *   blocks          of the largest number of threads that a multiprocessor is to have room for, in registers
 *   stage_size      bytes of shared memory that a warp has for itself meanwhile, a multiple of 16
 *   chunk<ROW_TILES>(product, chunk, row_tile, stage, sums)  sums <- ROW_TILES row tiles of the chunk, from zero, by
 * the whole warp; waits for the previous kernel before it reads activations. A row tile beyond the matrix is computed,
 * from whatever there is to read, and written nowhere.
 */
#ifndef WEFT_CUDA_MATRIX_FEW_H
#define WEFT_CUDA_MATRIX_FEW_H

#include "cuda/matrix_tensor.h"

static const uint32_t FEW_WARPS = 8; /* per block, at most */

typedef void few_kernel(struct weft_cuda_product);

/* What the launch needs to know: kernels of one and two row tiles. */
struct few_format {
    few_kernel *kernels[2];
    size_t (*stage_size)(const struct weft_cuda_product *product, uint32_t row_tiles);
};

/* matrix_few.cu, matrix_f8_few.cu: the formats. */
const struct few_format *weft_cuda_few_16(bool is_bf16);
const struct few_format *weft_cuda_few_f8(void);

static __device__ __forceinline__ uint32_t few_rows(uint32_t row_tiles)
{
    return row_tiles * WEFT_CUDA_TILE;
}

/* Bytes from a row tile to the one after it, or to itself, which is then computed twice, when there is none. */
static __device__ __forceinline__ size_t few_row_tile_stride(const struct weft_cuda_product *product, uint32_t row_tile,
                                                             uint32_t tile_size)
{
    uint32_t row_tiles = (product->row_count + WEFT_CUDA_TILE - 1) / WEFT_CUDA_TILE;

    return row_tile + 1 < row_tiles ? (size_t)product->tile_count * tile_size : 0;
}

/* partial[chunk][8 tokens][rows] in shared memory. */
template <int ROW_TILES>
static __device__ __forceinline__ void few_store(float *partial, uint32_t chunk, uint32_t lane,
                                                 const float sums[ROW_TILES][4])
{
    float *to = partial + ((size_t)chunk * WEFT_CUDA_GROUP + lane % 4 * 2) * few_rows(ROW_TILES) + lane / 4;

#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
        to[r * WEFT_CUDA_TILE] = sums[r][0];
        to[r * WEFT_CUDA_TILE + few_rows(ROW_TILES)] = sums[r][1];
        to[r * WEFT_CUDA_TILE + 8] = sums[r][2];
        to[r * WEFT_CUDA_TILE + few_rows(ROW_TILES) + 8] = sums[r][3];
    }
}

template <class FORMAT, int ROW_TILES>
static __global__ void __launch_bounds__(FEW_WARPS *WEFT_CUDA_WARP, FORMAT::blocks)
    multiply_few(struct weft_cuda_product product)
{
    WEFT_CUDA_SHARED(unsigned char, shared);
    __shared__ struct weft_cuda_leaf leaves[WEFT_LEAF_COUNT_MAX]; /* nobody waits for them in the end */
    uint32_t lane = threadIdx.x % WEFT_CUDA_WARP;
    uint32_t row_tile = blockIdx.x * ROW_TILES;
    size_t stage_size = FORMAT::stage_size(&product, ROW_TILES);
    float *partial = (float *)(shared + blockDim.x / WEFT_CUDA_WARP * stage_size);

    for (uint32_t i = threadIdx.x; i < product.leaf_count; i += blockDim.x) {
        leaves[i] = product.leaves[i];
    }
    for (uint32_t i = threadIdx.x / WEFT_CUDA_WARP; i < product.chunk_count; i += blockDim.x / WEFT_CUDA_WARP) {
        struct weft_cuda_chunk chunk = product.chunks[i];
        float sums[ROW_TILES][4] = {};

        FORMAT::template chunk<ROW_TILES>(&product, &chunk, row_tile,
                                          shared + threadIdx.x / WEFT_CUDA_WARP * stage_size, sums);
        few_store<ROW_TILES>(partial, i, lane, sums);
    }
    weft_ptx_let_next_start(); /* the first warp here has read its weights, the others nearly */
    __syncthreads();
    product.leaves = leaves;
    for (uint32_t i = threadIdx.x; i < product.token_count * few_rows(ROW_TILES); i += blockDim.x) {
        uint32_t row = row_tile * WEFT_CUDA_TILE + i % few_rows(ROW_TILES);

        if (row < product.row_count) {
            weft_cuda_finish(&product, partial + i, (size_t)WEFT_CUDA_GROUP * few_rows(ROW_TILES), false,
                             i / few_rows(ROW_TILES), row);
        }
    }
}

/* What the launch must know of FORMAT. */
template <class FORMAT> struct few_format few_format_of(void)
{
    struct few_format format = {{multiply_few<FORMAT, 1>, multiply_few<FORMAT, 2>}, FORMAT::stage_size};

    return format;
}

#endif
