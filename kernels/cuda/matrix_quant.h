/*
 * Quantised weights and activations on the GPU (weft/quant.h): where they lie, and the one step that every product of
 * them is made of.
 *
 * A block of 32 columns is one mma.sync.m16n8k32, exact in 32 bits; its sum is then scaled into a chunk's f32. Blocks
 * lie in *pairs*, chunks are padded to whole pairs with zeros, which leave every sum as it is:
 *   weights      [row tile][pair] of values, then scales: 1088 bytes for Q8_0, 576 for Q4_0
 *     Q8_0 values  [block][lane][columns / 4][row / 8][4 bytes]: lane l has of rows l / 4 and l / 4 + 8 the eight
 *                  columns from 8 (l % 4) on, as mma has them
 *     Q4_0 values  [lane][block][row][4 bytes]: the same rows and columns; nibbles in two's complement, byte i has
 *                  column i below column 4 + i
 *     scales       [row % 8][block][row / 8] f16
 *   activations  [group of 8 tokens][pair] of values [block][token][32 bytes], then scales [block][token] f32: 576
 *                bytes; the same bytes are lane l's [8 bytes] of token l / 4
 * The tensor core's columns are permuted inside a block, for weights and activations alike.
 */
#ifndef WEFT_CUDA_MATRIX_QUANT_H
#define WEFT_CUDA_MATRIX_QUANT_H

#include "cuda/matrix.h"
#include "cuda/matrix_tensor.h"
#include "cuda/ptx.h"

/* Blocks of a pair, and bytes of its activations of 8 tokens: values, and all. */
static const uint32_t WEFT_CUDA_PAIR = 2;
static const uint32_t WEFT_CUDA_PAIR_X_VALUES = 512;
static const uint32_t WEFT_CUDA_PAIR_X_SIZE = 576;
/* Pairs of the longest chunk. */
static const uint32_t WEFT_CUDA_CHUNK_PAIRS = WEFT_QUANT_CHUNK_BLOCKS / 2;

/* Bytes of the values of a pair of one row tile, and of the pair. */
static __device__ __host__ __forceinline__ uint32_t weft_cuda_pair_values(bool is_q4)
{
    return is_q4 ? 512 : 1024;
}

static __device__ __host__ __forceinline__ uint32_t weft_cuda_pair_size(bool is_q4)
{
    return weft_cuda_pair_values(is_q4) + 64;
}

/* ---- weights ---- */

/* Bytes from the values of a pair to the word of one row and its block `block` that has the eight columns from 8 part
 * on (Q4_0), or of them the first four (Q8_0): the others are in the next word but one. */
static __device__ __forceinline__ uint32_t weft_cuda_pair_place(bool is_q4, uint32_t row, uint32_t block, uint32_t part)
{
    uint32_t lane = row % 8 * 4 + part;

    return lane * 16 + row / 8 * 4 + block * (is_q4 ? 8 : 512);
}

/* The same to its scale, from the beginning of the scales. */
static __device__ __forceinline__ uint32_t weft_cuda_pair_scale_place(uint32_t row, uint32_t block)
{
    return row % 8 * 8 + block * 4 + row / 8 * 2;
}

/* Element (row, column of the chunk) as f32; exact. */
static __device__ __forceinline__ float weft_cuda_quant_weight(const struct weft_cuda_product *product, bool is_q4,
                                                               const struct weft_cuda_chunk *chunk, uint32_t row,
                                                               uint32_t column)
{
    uint32_t tile = chunk->tile_begin + column / WEFT_QUANT_BLOCK;
    const unsigned char *pair = product->weights + ((size_t)(row / WEFT_CUDA_TILE) * product->tile_count + tile) /
                                                       WEFT_CUDA_PAIR * weft_cuda_pair_size(is_q4);
    uint32_t block = tile % WEFT_CUDA_PAIR;
    const unsigned char *word =
        pair + weft_cuda_pair_place(is_q4, row % WEFT_CUDA_TILE, block, column % WEFT_QUANT_BLOCK / 8);
    uint16_t scale = *(const uint16_t *)(pair + weft_cuda_pair_values(is_q4) +
                                         weft_cuda_pair_scale_place(row % WEFT_CUDA_TILE, block));
    int8_t value = (int8_t)word[column % 4 + (is_q4 || column % 8 < 4 ? 0 : 8)];

    if (is_q4) { /* the nibble into the upper half, and back with its sign */
        value = (int8_t)((int8_t)(column % 8 < 4 ? (uint8_t)value << 4 : value) >> 4);
    }
    return (float)value * weft_f16_to_f32(scale);
}

/* ---- activations ---- */

/*
 * Quantises a block of 32 activations: eight consecutive ones of each of four neighbouring lanes. The lane's eight
 * bytes, and the scale of the block in every lane. By the whole warp, eight blocks at a time.
 */
static __device__ __forceinline__ uint2 weft_cuda_quantise_eight(const float x[8], float *scale_out)
{
    uint32_t bytes[8];
    uint32_t most_bits = 0; /* as integers NaN is larger than infinity, and that larger than all others */
    float most;
    float factor;

#pragma unroll
    for (int i = 0; i < 8; i++) {
        most_bits = max(most_bits, __float_as_uint(x[i]) & 0x7fffffffU);
    }
    most_bits = max(most_bits, __shfl_xor_sync(0xffffffffU, most_bits, 1));
    most_bits = max(most_bits, __shfl_xor_sync(0xffffffffU, most_bits, 2));
    most = __uint_as_float(most_bits);
    *scale_out = weft_quant_x_scale(most);
    factor = weft_quant_x_factor(most);
    if (!weft_quant_is_finite(most)) {
        return make_uint2(0, 0);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) { /* weft_quant_round(): the integer is in the low bits before the constant is taken */
        bytes[i] = __float_as_uint(x[i] * factor + WEFT_QUANT_ROUND) & 0xffU;
    }
    return make_uint2(bytes[0] | bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24,
                      bytes[4] | bytes[5] << 8 | bytes[6] << 16 | bytes[7] << 24);
}

/*
 * The same for columns from `column` of a chunk on of one token; columns beyond the chunk's are zeros. `can_read`: the
 * token exists. `is_aligned`: x and every chunk begin at multiples of four columns, 16 bytes.
 */
static __device__ __forceinline__ uint2 weft_cuda_quantise_columns(const struct weft_cuda_product *product,
                                                                   const struct weft_cuda_chunk *chunk, uint32_t token,
                                                                   uint32_t column, bool can_read, bool is_aligned,
                                                                   float *scale_out)
{
    const float *from = product->x + (size_t)token * product->col_count + chunk->column_begin + column;
    uint32_t count = can_read && column < chunk->column_count ? chunk->column_count - column : 0;
    float x[8];

    if (is_aligned && count >= 8) {
        float4 low = ((const float4 *)from)[0];
        float4 high = ((const float4 *)from)[1];

        x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
        x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
    } else {
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            x[i] = i < count ? from[i] : 0;
        }
    }
    return weft_cuda_quantise_eight(x, scale_out);
}

/* Puts what a lane has of a block, and by its first lane the scale, into the activations of the block's pair. */
static __device__ __forceinline__ void weft_cuda_pair_store_x(unsigned char *pair, uint32_t block, uint32_t token,
                                                              uint32_t part, uint2 bytes, float scale)
{
    *(uint2 *)(pair + block * 256 + token * 32 + part * 8) = bytes;
    if (part == 0) {
        *(float *)(pair + WEFT_CUDA_PAIR_X_VALUES + block * 32 + token * 4) = scale;
    }
}

/* ---- the step ---- */

/* 1.5 * 2^23 as bits. A float of these bits + n is 1.5 * 2^23 + n, for |n| <= 2^22: no conversion is needed. */
static const int32_t WEFT_CUDA_DOT_BITS = 0x4b400000;

/* The A operand of a block from 16 bytes of one lane: the block's values of Q8_0; of Q4_0 the pair's, of which `block`,
 * a constant, is taken, and the integers become 16 times as large. */
template <bool IS_Q4>
static __device__ __forceinline__ void weft_cuda_quant_operand(uint4 values, int block, uint32_t a[4])
{
    if (IS_Q4) {
        uint32_t upper = block == 0 ? values.x : values.z; /* row l / 4 */
        uint32_t lower = block == 0 ? values.y : values.w; /* row l / 4 + 8 */

        a[0] = upper << 4 & 0xf0f0f0f0U;
        a[1] = lower << 4 & 0xf0f0f0f0U;
        a[2] = upper & 0xf0f0f0f0U;
        a[3] = lower & 0xf0f0f0f0U;
    } else {
        a[0] = values.x;
        a[1] = values.y;
        a[2] = values.z;
        a[3] = values.w;
    }
}

/*
 * sums <- fmaf(dot, scale of weights * scale of activations, sums) of one block: 16 rows and 8 tokens, by the whole
 * warp. A lane has w_scales of rows l / 4 and l / 4 + 8, x_scales of tokens 2 (l % 4) and the next; sums as mma has d.
 */
template <bool IS_Q4>
static __device__ __forceinline__ void weft_cuda_quant_add(float sums[4], const uint32_t a[4], uint2 x, float2 w_scales,
                                                           float2 x_scales)
{
    const uint32_t b[2] = {x.x, x.y};
    int32_t d[4];

    weft_ptx_mma_s8(d, a, b, WEFT_CUDA_DOT_BITS);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float biased = __int_as_float(d[i]);
        float dot = IS_Q4 ? fmaf(biased, 0x1p-4f, -0x1.8p+19f) : biased - 0x1.8p+23f; /* both exact */
        float scale = (i < 2 ? w_scales.x : w_scales.y) * (i % 2 == 0 ? x_scales.x : x_scales.y);

        sums[i] = fmaf(dot, scale, sums[i]);
    }
}

/* ---- quantise.cu ---- */

/* Activations of the product's tokens into group_count groups of 8 at `to`, group_count * tile_count / 2 *
 * WEFT_CUDA_PAIR_X_SIZE bytes; tokens that do not exist are zeros. The next kernel may start early. */
void weft_cuda_quantise(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                        const struct weft_cuda_product *product, uint32_t group_count, unsigned char *to);
/* Quantises rows of the matrix's source type, [row_count][col_count] in device memory, into their places. */
void weft_cuda_quantise_rows(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                             const struct weft_cuda_raw_rows *raw);

#endif
