/* E4M3 times many tokens: the format, and the kernels of matrix_tiles.h for it. */
#include "cuda/matrix_f8.h"
#include "cuda/matrix_tiles.h"

struct format_f8 {
    static const uint32_t stage_tiles = 4; /* 64 columns */
    static const uint32_t step_tiles = WEFT_CUDA_F8_PAIR;
    static const uint32_t weight_size = WEFT_CUDA_F8_TILE_SIZE;
    /* That of the stage's first column and the next one: no block of columns is shorter than a stage. */
    static const uint32_t scales_size = 2 * WEFT_CUDA_F8_SCALES_SIZE;
    static const uint32_t x_size = WEFT_CUDA_GROUP_SIZE;

    /* 6 x 13 KiB, 5 x 17 KiB, 3 x 25 KiB and 16 KiB of bf16 fit where a block gets 99 KiB; of few tokens two blocks
     * have 80 and 64 KiB of weights on their way. */
    static constexpr int stages(int rows)
    {
        return rows == 1 ? 6 : rows == 2 ? 5 : 3;
    }

    static __device__ __forceinline__ void load_scales(const struct weft_cuda_product *product, uint32_t row_tile,
                                                       uint32_t tile, unsigned char *to)
    {
        uint32_t first = product->scales.columns[tile] >> product->scales.shift;
        const float *from = weft_cuda_f8_row_scales(&product->scales, row_tile) + weft_cuda_f8_scale_place(first, 0);
        uint32_t sets = first < product->scales.count ? 2 : 1; /* there is one behind the last */
        uint32_t lane = threadIdx.x % WEFT_CUDA_WARP;

        if (lane < sets * (WEFT_CUDA_F8_SCALES_SIZE / 16)) {
            weft_ptx_copy_async(to + lane * 16, (const unsigned char *)from + lane * 16);
        }
    }

    /* With 128 tokens four warps share a row tile, and unpacking it in each would take longer than multiplying. */
    static constexpr uint32_t ready_size(int rows)
    {
        return rows == 4 ? stage_tiles * WEFT_CUDA_TILE_SIZE : 0;
    }

    static __device__ __forceinline__ void make_ready(const struct weft_cuda_product *product,
                                                      const unsigned char *weights, uint32_t tile, uint32_t tile_end,
                                                      unsigned char *to)
    {
        uint32_t lane = threadIdx.x % WEFT_CUDA_WARP;
        uint32_t first = product->scales.columns[tile] >> product->scales.shift;
        const unsigned char *scales = weights + stage_tiles * weight_size + lane / 4 * sizeof(float2);

#pragma unroll
        for (uint32_t t = 0; t < stage_tiles; t++) {
            if (tile + t < tile_end) {
                uint32_t set = (product->scales.columns[tile + t] >> product->scales.shift) - first;
                uint4 pair = ((const uint4 *)(weights + t / 2 * 2 * weight_size))[lane];

                ((uint4 *)(to + t * WEFT_CUDA_TILE_SIZE))[lane] = weft_cuda_f8_operand(
                    weft_cuda_f8_of_pair(pair, t % 2), *(const float2 *)(scales + set * WEFT_CUDA_F8_SCALES_SIZE));
            }
        }
    }

    template <int ROWS>
    static __device__ __forceinline__ void step(const unsigned char *weights, uint32_t tile, struct tiles_scale scale,
                                                const unsigned char *x, float sums[ROWS][WARP_GROUPS][4])
    {
        static const uint32_t row_size = stage_tiles * weight_size + scales_size;
        uint32_t lane = threadIdx.x % WEFT_CUDA_WARP;
        static constexpr bool is_ready = tiles_shape<format_f8, ROWS>::ready_size > 0;
        uint4 pairs[ROWS];

#pragma unroll
        for (int r = 0; r < ROWS && !is_ready; r++) {
            pairs[r] = ((const uint4 *)(weights + r * row_size + tile * weight_size))[lane];
        }
#pragma unroll
        for (uint32_t t = 0; t < WEFT_CUDA_F8_PAIR; t++) {
            uint32_t set = ((scale.column + t * WEFT_CUDA_TILE) >> scale.shift) - scale.first;
            const unsigned char *scales =
                weights + stage_tiles * weight_size + set * WEFT_CUDA_F8_SCALES_SIZE + lane / 4 * sizeof(float2);
            uint4 a[ROWS];

#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                a[r] = is_ready ? ((const uint4 *)(weights + (r * stage_tiles + tile + t) * WEFT_CUDA_TILE_SIZE))[lane]
                                : weft_cuda_f8_operand(weft_cuda_f8_of_pair(pairs[r], t),
                                                       *(const float2 *)(scales + r * row_size));
            }
#pragma unroll
            for (int g = 0; g < WARP_GROUPS; g++) {
                uint2 b = ((const uint2 *)(x + (g * stage_tiles + tile + t) * x_size))[lane];

#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    weft_cuda_multiply_tile<true>(sums[r][g], a[r], b);
                }
            }
        }
    }

    /* Rounds, as for bf16. */
    static void prepare(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                        const struct weft_cuda_product *product, uint32_t group_count, unsigned char *to)
    {
        weft_cuda_tiles_16(true)->prepare(device, matrix, product, group_count, to);
    }
};

const struct tiles_format *weft_cuda_tiles_f8(void)
{
    static const struct tiles_format format = tiles_format_of<format_f8>();

    return &format;
}
