/*
 * Quantised weights and activations: the specification that every device computes to the bit. Blocks of 32 columns, as
 * GGUF has them: Q8_0 is an f16 scale and 32 signed bytes, Q4_0 an f16 scale and 32 unsigned nibbles of value - 8.
 *
 * A matrix is cut into *blocks* of WEFT_QUANT_BLOCK columns, counted anew from the first column of each leaf (from
 * column 0 when it has none); the last block of a leaf may be short, which is the same as zeros. The activations of a
 * leaf are cut in the same way and quantised to signed bytes with one f32 scale per block; so they depend on the token
 * and the leaf alone.
 *
 * The sum of a leaf, for one row and one token, is
 *     chunk:  s <- fmaf((float)dot[b], scale_w[b] * scale_x[b], s) over its blocks b in ascending order, from +0.0
 *     leaf:   the first chunk, then + each other chunk, in ascending order; +0.0 when the leaf is empty
 * dot[b] is the exact integer sum of the products of weights and activations of block b, at most 2^19; the product of
 * the scales is rounded to f32. *Chunks* cut the blocks of a leaf as weft_quant_chunk() says: short enough for a GPU to
 * work on many at a time, and depending on the leaf alone. Leaves are then added along the tree, as for every matrix.
 *
 * A weight by itself, as an embedding has it, is (float)value * scale, which is exact; a zero has the scale's sign.
 */
#ifndef WEFT_QUANT_H
#define WEFT_QUANT_H

#include <stdint.h>

#include "weft/numeric.h"

#define WEFT_QUANT_BLOCK        32 /* columns */
#define WEFT_QUANT_CHUNK_BLOCKS 16 /* blocks of one chunk, at most */
/* Activations whose largest magnitude in a block is below this count as zeros; 127 divided by it is finite. */
#define WEFT_QUANT_TINY 0x1p-100f
/* Adding it to |x| < 2^22 and taking it away again rounds to the nearest integer, ties to even. */
#define WEFT_QUANT_ROUND 0x1.8p+23f

/* Chunks of a leaf of block_count blocks; 1 for an empty leaf. */
static inline uint32_t weft_quant_chunk_count(uint32_t block_count)
{
    uint32_t count = (block_count + WEFT_QUANT_CHUNK_BLOCKS - 1) / WEFT_QUANT_CHUNK_BLOCKS;

    return count > 0 ? count : 1;
}

/* First block of chunk `index` <= weft_quant_chunk_count(block_count); chunks differ by one block at most. */
static inline uint32_t weft_quant_chunk_begin(uint32_t block_count, uint32_t index)
{
    return (uint32_t)((uint64_t)block_count * index / weft_quant_chunk_count(block_count));
}

/* Nearest integer, ties to even; |x| < 2^22. */
static inline int32_t weft_quant_round(float x)
{
    return (int32_t)((x + WEFT_QUANT_ROUND) - WEFT_QUANT_ROUND);
}

/* Whether x is neither infinite nor NaN. */
static inline int weft_quant_is_finite(float x)
{
    return (weft_f32_bits(x) & 0x7f800000U) != 0x7f800000U;
}

/*
 * Activations. `most` is the largest magnitude in a block, infinity or NaN when any element is one of these. Byte i of
 * the block is weft_quant_round(x[i] * weft_quant_x_factor(most)), in [-127, 127]; when `most` is not finite every
 * byte is 0 and the scale is NaN, so that the sum is NaN.
 */
static inline float weft_quant_x_scale(float most)
{
    float scale = most < WEFT_QUANT_TINY ? 0.0f : most / 127.0f;

    return weft_quant_is_finite(most) ? scale : weft_f32_from_bits(0x7fc00000U);
}

static inline float weft_quant_x_factor(float most)
{
    float factor = most < WEFT_QUANT_TINY ? 0.0f : 127.0f / most;

    return weft_quant_is_finite(most) ? factor : 0.0f;
}

/*
 * Weights, from f32, f16 or bf16 elements as f32. `most` is what the scale of a block comes from: for Q8_0 the largest
 * magnitude, divided by 127; for Q4_0 the element of largest magnitude (of equal ones the first) with its sign, divided
 * by -8, because there is one more value on the negative side; infinity or NaN when any element is one of these. A
 * scale that overflows f16 becomes its largest value; of elements that are not finite the scale is NaN, and so is the
 * sum.
 */
static inline uint16_t weft_quant_w_scale(float most, float divisor)
{
    uint16_t scale = weft_f32_to_f16(most / divisor);

    if (!weft_quant_is_finite(most)) {
        return 0x7e00U;
    }
    return (scale & 0x7fffU) == 0x7c00U ? (uint16_t)(scale - 1) : scale;
}

/* Element x of a block as an integer in [low, high] ([-127, 127] or [-8, 7]) of the stored scale; 0 when that is 0 or
 * NaN. */
static inline int32_t weft_quant_w_value(float x, uint16_t scale, float low, float high)
{
    float step = weft_f16_to_f32(scale);
    float quotient;

    if (!(step < 0.0f || step > 0.0f)) {
        return 0;
    }
    quotient = x / step;
    quotient = quotient < low ? low : quotient;
    quotient = quotient > high ? high : quotient;
    return weft_quant_round(quotient);
}

#endif
