/*
 * 16-bit weights times up to 8 tokens, for decode: bound by memory.
 *
 * A block has one or two row tiles and all their chunks, dealt to its warps. Weights go straight to registers, several
 * loads in flight per lane; activations are read as f32 and rounded on the way. Chunk sums meet in shared memory, where
 * the program runs: one launch per product, nothing in scratch. Weights are read before the kernel that makes the
 * activations has ended. Its predecessors in decode say early that it may start, and so does each block once its
 * weights have been read: a small kernel that follows is there when the last block ends, and the product after that one
 * begins with its weights.
 */
#include "cuda/matrix_tensor.h"

static const uint32_t FEW_TOKENS = 8;
static const uint32_t FEW_WARPS = 8; /* per block, at most */
/* Tiles of weights in flight per warp: 4 KiB, with two blocks per multiprocessor 64 KiB. 5 TB/s and 800 ns of latency
 * ask for 30 KiB of each of 132. */
static const int FEW_DEPTH = 8;
/* Bytes for chunk sums; real models need 4 to 32 KiB. sm_80 has room for one such block, later ones for two. */
static const size_t FEW_SHARED_MAX = 96 << 10;

static __device__ __forceinline__ uint32_t few_rows(uint32_t row_tiles)
{
    return row_tiles * WEFT_CUDA_TILE;
}

/* Where one lane reads: its part of the chunk's first tile, and its columns of its token. */
struct few_source {
    const unsigned char *weights;
    size_t row_tile_stride; /* bytes */
    const float *x;
    uint32_t column_count; /* of x from there on; 0: the lane's token does not exist */
};

static __device__ __forceinline__ float4 few_x(const struct few_source *source, uint32_t tile)
{
    uint32_t column = tile * WEFT_CUDA_TILE;

    return column < source->column_count ? *(const float4 *)(source->x + column) : make_float4(0, 0, 0, 0);
}

/* sums[r] <- row tile r of the chunk, by one warp. A ring of registers keeps FEW_DEPTH tiles of weights on their way.
 */
template <bool IS_BF16, int ROW_TILES>
static __device__ __forceinline__ void few_chunk(const struct few_source *source, uint32_t tile_count,
                                                 float sums[ROW_TILES][4])
{
    static constexpr int depth = FEW_DEPTH / ROW_TILES;
    uint4 weights[depth][ROW_TILES];
    float4 x[depth];

#pragma unroll
    for (int i = 0; i < depth; i++) {
        if ((uint32_t)i < tile_count) {
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++) {
                weights[i][r] = weft_ptx_load_stream(source->weights + r * source->row_tile_stride +
                                                     (size_t)i * WEFT_CUDA_TILE_SIZE);
            }
        }
    }
    weft_ptx_wait_for_previous(); /* from here on activations can be read */
#pragma unroll
    for (int i = 0; i < depth; i++) {
        if ((uint32_t)i < tile_count) {
            x[i] = few_x(source, (uint32_t)i);
        }
    }
    for (uint32_t first = 0; first < tile_count; first += depth) {
#pragma unroll
        for (int i = 0; i < depth; i++) {
            uint32_t next = first + (uint32_t)i + depth;

            if (first + (uint32_t)i < tile_count) {
                uint2 rounded = weft_cuda_round_four<IS_BF16>(x[i]);

#pragma unroll
                for (int r = 0; r < ROW_TILES; r++) {
                    weft_cuda_multiply_tile<IS_BF16>(sums[r], weights[i][r], rounded);
                }
            }
            if (next < tile_count) {
#pragma unroll
                for (int r = 0; r < ROW_TILES; r++) {
                    weights[i][r] = weft_ptx_load_stream(source->weights + r * source->row_tile_stride +
                                                         (size_t)next * WEFT_CUDA_TILE_SIZE);
                }
                x[i] = few_x(source, next);
            }
        }
    }
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

template <bool IS_BF16, int ROW_TILES>
static __global__ void __launch_bounds__(FEW_WARPS *WEFT_CUDA_WARP) multiply_few(struct weft_cuda_product product)
{
    WEFT_CUDA_SHARED(float, partial);
    __shared__ struct weft_cuda_leaf leaves[WEFT_LEAF_COUNT_MAX]; /* nobody waits for them in the end */
    uint32_t lane = threadIdx.x % WEFT_CUDA_WARP;
    uint32_t row_tile = blockIdx.x * ROW_TILES;
    uint32_t row_tiles = (product.row_count + WEFT_CUDA_TILE - 1) / WEFT_CUDA_TILE;

    for (uint32_t i = threadIdx.x; i < product.leaf_count; i += blockDim.x) {
        leaves[i] = product.leaves[i];
    }
    for (uint32_t i = threadIdx.x / WEFT_CUDA_WARP; i < product.chunk_count; i += blockDim.x / WEFT_CUDA_WARP) {
        struct weft_cuda_chunk chunk = product.chunks[i];
        struct few_source source;
        float sums[ROW_TILES][4] = {};
        uint32_t column = lane % 4 * 4;

        source.weights = product.weights +
                         ((size_t)row_tile * product.tile_count + chunk.tile_begin) * WEFT_CUDA_TILE_SIZE +
                         lane * sizeof(uint4);
        /* the second row tile may not exist: the first is read twice, its rows are written once */
        source.row_tile_stride = row_tile + 1 < row_tiles ? (size_t)product.tile_count * WEFT_CUDA_TILE_SIZE : 0;
        source.x = product.x + (size_t)(lane / 4) * product.col_count + chunk.column_begin + column;
        source.column_count =
            lane / 4 < product.token_count && column < chunk.column_count ? chunk.column_count - column : 0;
        few_chunk<IS_BF16, ROW_TILES>(&source, chunk.tile_count, sums);
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

/* ---- launching ---- */

static uint32_t row_tiles_of(uint32_t token_count)
{
    return token_count <= FEW_TOKENS / 2 ? 1 : 2;
}

static size_t few_shared_size(const struct weft_matrix *matrix, uint32_t row_tiles)
{
    return (size_t)matrix->chunk_count * WEFT_CUDA_GROUP * row_tiles * WEFT_CUDA_TILE * sizeof(float);
}

bool weft_cuda_is_few(const struct weft_matrix *matrix, const float *x, uint32_t token_count)
{
    return token_count <= FEW_TOKENS && matrix->is_aligned && (uintptr_t)x % sizeof(float4) == 0 &&
           few_shared_size(matrix, row_tiles_of(token_count)) <= FEW_SHARED_MAX;
}

typedef void few_kernel(struct weft_cuda_product);

static few_kernel *few_kernel_of(bool is_bf16, uint32_t row_tiles)
{
    static few_kernel *const kernels[2][2] = {{multiply_few<false, 1>, multiply_few<false, 2>},
                                              {multiply_few<true, 1>, multiply_few<true, 2>}};

    return kernels[is_bf16][row_tiles - 1];
}

/* Of the code, not of the GPU: what was compiled for compute_80 runs on later GPUs too, and does not wait for its
 * predecessor. */
static void find_early_start(struct weft_cuda_device *device)
{
    struct cudaFuncAttributes attributes = {};

    if (weft_cuda_check(device, cudaFuncGetAttributes(&attributes, few_kernel_of(true, 1)),
                        "the matmul kernel's code")) {
        device->can_start_early = attributes.ptxVersion >= 90;
    }
}

void weft_cuda_few_init(struct weft_cuda_device *device)
{
    for (uint32_t i = 0; i < 4; i++) {
        cudaError_t error = cudaFuncSetAttribute(few_kernel_of(i % 2 != 0, 1 + i / 2),
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize, (int)FEW_SHARED_MAX);

        weft_cuda_check(device, error, "shared memory of the matmul kernel");
    }
    find_early_start(device);
}

void weft_cuda_multiply_few(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                            const struct weft_cuda_product *product)
{
    uint32_t row_tiles = row_tiles_of(product->token_count);
    few_kernel *kernel = few_kernel_of(matrix->dtype == WEFT_BF16, row_tiles);
    uint32_t blocks = weft_cuda_divide_up(product->row_count, row_tiles * WEFT_CUDA_TILE);
    uint32_t warps = matrix->chunk_count < FEW_WARPS ? matrix->chunk_count : FEW_WARPS;

    WEFT_CUDA_LAUNCH_EARLY(device->can_start_early && !device->has_fresh_weights, kernel, dim3(blocks),
                           dim3(warps * WEFT_CUDA_WARP), few_shared_size(matrix, row_tiles), device->stream, *product);
    device->has_fresh_weights = false;
    weft_cuda_launched(device, "matmul of a few tokens");
}
