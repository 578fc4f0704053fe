/* 16-bit weights times many tokens: the format, and the kernels of matrix_tiles.h for it. */
#include "cuda/matrix_tiles.h"

/* rounded [token group][tile][lane][4]: the B operand of one lane in 8 bytes. A block has one chunk of one group. */
template <bool IS_BF16>
static __global__ void round_activations(struct weft_cuda_product product, unsigned char *rounded)
{
    struct weft_cuda_chunk chunk = product.chunks[blockIdx.x];
    uint2 *to =
        (uint2 *)(rounded + ((size_t)blockIdx.y * product.tile_count + chunk.tile_begin) * WEFT_CUDA_GROUP_SIZE);

    for (uint32_t i = threadIdx.x; i < chunk.tile_count * WEFT_CUDA_WARP; i += blockDim.x) {
        uint32_t token = blockIdx.y * WEFT_CUDA_GROUP + i % WEFT_CUDA_WARP / 4;
        uint32_t column = i / WEFT_CUDA_WARP * WEFT_CUDA_TILE + i % 4 * 4;
        float4 four = make_float4(0, 0, 0, 0);

        if (token < product.token_count) {
            const float *x = product.x + (size_t)token * product.col_count + chunk.column_begin + column;

            four.x = column < chunk.column_count ? x[0] : 0;
            four.y = column + 1 < chunk.column_count ? x[1] : 0;
            four.z = column + 2 < chunk.column_count ? x[2] : 0;
            four.w = column + 3 < chunk.column_count ? x[3] : 0;
        }
        to[i] = weft_cuda_round_four<IS_BF16>(four);
    }
}

template <bool IS_BF16> struct format_16 : format_in_place {
    static const uint32_t stage_tiles = 4; /* 64 columns */
    static const uint32_t step_tiles = 1;
    static const uint32_t weight_size = WEFT_CUDA_TILE_SIZE;
    static const uint32_t x_size = WEFT_CUDA_GROUP_SIZE;

    /* 3 x 32 KiB, the most of any shape, fit where a block gets 99 KiB: every GPU since sm_80. */
    static constexpr int stages(int)
    {
        return 3;
    }

    template <int ROWS>
    static __device__ __forceinline__ void step(const unsigned char *weights, uint32_t tile, struct tiles_scale,
                                                const unsigned char *x, float sums[ROWS][WARP_GROUPS][4])
    {
        uint32_t lane = threadIdx.x % WEFT_CUDA_WARP;
        uint4 a[ROWS];

#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            a[r] = ((const uint4 *)(weights + (r * stage_tiles + tile) * weight_size))[lane];
        }
#pragma unroll
        for (int g = 0; g < WARP_GROUPS; g++) {
            uint2 b = ((const uint2 *)(x + (g * stage_tiles + tile) * x_size))[lane];

#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                weft_cuda_multiply_tile<IS_BF16>(sums[r][g], a[r], b);
            }
        }
    }

    /* Rounds. */
    static void prepare(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                        const struct weft_cuda_product *product, uint32_t group_count, unsigned char *to)
    {
        void (*kernel)(struct weft_cuda_product, unsigned char *) = round_activations<IS_BF16>;

        WEFT_CUDA_LAUNCH(kernel, dim3(matrix->chunk_count, group_count), dim3(TILES_THREADS), 0, device->stream,
                         *product, to);
    }
};

const struct tiles_format *weft_cuda_tiles_16(bool is_bf16)
{
    static const struct tiles_format formats[] = {tiles_format_of<format_16<false>>(),
                                                  tiles_format_of<format_16<true>>()};

    return &formats[is_bf16];
}
