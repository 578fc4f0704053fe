/* 16-bit weights times up to 8 tokens, the format, and the launch of every format: matrix_few.h. Weights go straight to
 * registers, several loads in flight per lane; activations are read as f32 and rounded on the way. */
#include "cuda/matrix_few.h"

static const uint32_t FEW_TOKENS = 8;
/* Tiles of weights in flight per warp: 4 KiB, with two blocks per multiprocessor 64 KiB. 5 TB/s and 800 ns of latency
 * ask for 30 KiB of each of 132. */
static const int FEW_DEPTH = 8;
/* Bytes of shared memory; real models need 4 to 32 KiB for chunk sums, and 1 KiB per warp and token for what E4M3 keeps
 * there. sm_80 has room for one such block, later ones for two. */
static const size_t FEW_SHARED_MAX = 96 << 10;

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

template <bool IS_BF16> struct few_16 {
    static const uint32_t blocks = 1;

    static __device__ __host__ size_t stage_size(const struct weft_cuda_product *product, uint32_t row_tiles)
    {
        (void)product, (void)row_tiles;
        return 0;
    }

    template <int ROW_TILES>
    static __device__ __forceinline__ void chunk(const struct weft_cuda_product *product,
                                                 const struct weft_cuda_chunk *chunk, uint32_t row_tile,
                                                 unsigned char *stage, float sums[ROW_TILES][4])
    {
        uint32_t lane = threadIdx.x % WEFT_CUDA_WARP;
        uint32_t column = lane % 4 * 4;
        struct few_source source;

        (void)stage;
        source.weights = product->weights +
                         ((size_t)row_tile * product->tile_count + chunk->tile_begin) * WEFT_CUDA_TILE_SIZE +
                         lane * sizeof(uint4);
        source.row_tile_stride = few_row_tile_stride(product, row_tile, WEFT_CUDA_TILE_SIZE);
        source.x = product->x + (size_t)(lane / 4) * product->col_count + chunk->column_begin + column;
        source.column_count =
            lane / 4 < product->token_count && column < chunk->column_count ? chunk->column_count - column : 0;
        few_chunk<IS_BF16, ROW_TILES>(&source, chunk->tile_count, sums);
    }
};

const struct few_format *weft_cuda_few_16(bool is_bf16)
{
    static const struct few_format formats[] = {few_format_of<few_16<false>>(), few_format_of<few_16<true>>()};

    return &formats[is_bf16];
}

/* ---- launching ---- */

static const struct few_format *format_of(const struct weft_matrix *matrix)
{
    return matrix->dtype == WEFT_F8_E4M3 ? weft_cuda_few_f8() : weft_cuda_few_16(matrix->dtype == WEFT_BF16);
}

static uint32_t warps_of(const struct weft_matrix *matrix)
{
    return matrix->chunk_count < FEW_WARPS ? matrix->chunk_count : FEW_WARPS;
}

static size_t few_shared_size(const struct weft_matrix *matrix, const struct weft_cuda_product *product,
                              uint32_t row_tiles)
{
    return warps_of(matrix) * format_of(matrix)->stage_size(product, row_tiles) +
           (size_t)matrix->chunk_count * WEFT_CUDA_GROUP * row_tiles * WEFT_CUDA_TILE * sizeof(float);
}

/* Two of more than half the tokens, so that activations are read half as often, where there is room. */
static uint32_t row_tiles_of(const struct weft_matrix *matrix, const struct weft_cuda_product *product)
{
    return product->token_count > FEW_TOKENS / 2 && few_shared_size(matrix, product, 2) <= FEW_SHARED_MAX ? 2 : 1;
}

bool weft_cuda_is_few(const struct weft_matrix *matrix, const struct weft_cuda_product *product)
{
    return product->token_count <= FEW_TOKENS && matrix->is_aligned && (uintptr_t)product->x % sizeof(float4) == 0 &&
           few_shared_size(matrix, product, row_tiles_of(matrix, product)) <= FEW_SHARED_MAX;
}

/* Of the code, not of the GPU: what was compiled for compute_80 runs on later GPUs too, and does not wait for its
 * predecessor. */
static void find_early_start(struct weft_cuda_device *device)
{
    struct cudaFuncAttributes attributes = {};

    if (weft_cuda_check(device, cudaFuncGetAttributes(&attributes, weft_cuda_few_16(true)->kernels[0]),
                        "the matmul kernel's code")) {
        device->can_start_early = attributes.ptxVersion >= 90;
    }
}

void weft_cuda_few_init(struct weft_cuda_device *device)
{
    const struct few_format *formats[] = {weft_cuda_few_16(false), weft_cuda_few_16(true), weft_cuda_few_f8()};

    for (uint32_t i = 0; i < 6; i++) {
        cudaError_t error = cudaFuncSetAttribute(formats[i / 2]->kernels[i % 2],
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize, (int)FEW_SHARED_MAX);

        weft_cuda_check(device, error, "shared memory of the matmul kernel");
    }
    find_early_start(device);
}

void weft_cuda_multiply_few(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                            const struct weft_cuda_product *product)
{
    uint32_t row_tiles = row_tiles_of(matrix, product);
    few_kernel *kernel = format_of(matrix)->kernels[row_tiles - 1];
    uint32_t blocks = weft_cuda_divide_up(product->row_count, row_tiles * WEFT_CUDA_TILE);

    WEFT_CUDA_LAUNCH_EARLY(device->can_start_early && !device->has_fresh_weights, kernel, dim3(blocks),
                           dim3(warps_of(matrix) * WEFT_CUDA_WARP), few_shared_size(matrix, product, row_tiles),
                           device->stream, *product);
    device->has_fresh_weights = false;
    weft_cuda_launched(device, "matmul of a few tokens");
}
