/* Quantised weights times many tokens: the format, and the kernels of matrix_tiles.h for it. */
#include "cuda/matrix_quant.h"
#include "cuda/matrix_tiles.h"

template <bool IS_Q4> struct format_quant : format_in_place {
    static const uint32_t stage_tiles = WEFT_CUDA_PAIR; /* 64 columns */
    static const uint32_t step_tiles = WEFT_CUDA_PAIR;
    static const uint32_t values_size = IS_Q4 ? 512 : 1024; /* bytes of a pair */
    static const uint32_t weight_size = (values_size + 64) / WEFT_CUDA_PAIR;
    static const uint32_t x_size = WEFT_CUDA_PAIR_X_SIZE / WEFT_CUDA_PAIR;

    /* 4 x 17.5 KiB and 6 x 13.5 KiB, the most of any shape, fit where a block gets 99 KiB; of few tokens two blocks
     * have 40 KiB and more of weights on their way. */
    static constexpr int stages(int)
    {
        return IS_Q4 ? 6 : 4;
    }

    template <int ROWS>
    static __device__ __forceinline__ void step(const unsigned char *weights, uint32_t tile, struct tiles_scale,
                                                const unsigned char *x, float sums[ROWS][WARP_GROUPS][4])
    {
        uint32_t lane = threadIdx.x % WEFT_CUDA_WARP;
        uint4 values[ROWS]; /* of the pair (Q4_0), or of a block (Q8_0) */

        (void)tile; /* a stage is a step */

#pragma unroll
        for (int block = 0; block < 2; block++) {
            uint32_t a[ROWS][4];
            float2 w_scales[ROWS];

#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const unsigned char *pair = weights + r * WEFT_CUDA_PAIR * weight_size;
                uint32_t scale = ((const uint32_t *)(pair + values_size))[lane / 4 * 2 + block];

                if (block == 0 || !IS_Q4) {
                    values[r] = ((const uint4 *)(pair + block * 512))[lane];
                }
                weft_cuda_quant_operand<IS_Q4>(values[r], block, a[r]);
                w_scales[r] = weft_ptx_unpack_f16(scale);
            }
#pragma unroll
            for (int g = 0; g < WARP_GROUPS; g++) {
                const unsigned char *pair = x + g * WEFT_CUDA_PAIR_X_SIZE;
                uint2 b = ((const uint2 *)(pair + block * 256))[lane];
                float2 x_scales = ((const float2 *)(pair + WEFT_CUDA_PAIR_X_VALUES + block * 32))[lane % 4];

#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    weft_cuda_quant_add<IS_Q4>(sums[r][g], a[r], b, w_scales[r], x_scales);
                }
            }
        }
    }

    static void prepare(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                        const struct weft_cuda_product *product, uint32_t group_count, unsigned char *to)
    {
        weft_cuda_quantise(device, matrix, product, group_count, to);
    }
};

const struct tiles_format *weft_cuda_tiles_quant(bool is_q4)
{
    static const struct tiles_format formats[] = {tiles_format_of<format_quant<false>>(),
                                                  tiles_format_of<format_quant<true>>()};

    return &formats[is_q4];
}
