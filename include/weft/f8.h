/*
 * Weights kept as FP8: E4M3 bytes (a sign, 4 bits of exponent biased by 7, 3 of fraction; no infinities) and f32
 * scales. A weight is its byte's value times its scale, rounded to f32 as one product, then to bf16, both to nearest
 * even; it is multiplied as that bf16, in the order of bf16 matrices. So a matrix has the bits of one that was
 * converted to bf16 beforehand, on every device. Bytes 0x7f and 0xff are NaN in a checkpoint and do not occur here: who
 * reads it refuses them.
 *
 * Scales: each row has its own, one for every `scale_cols` columns (0: one for all), of whose first `scale_phase` are
 * not the matrix's: a slice may begin inside a block. A row that is handed over is its scales, then its bytes.
 */
#ifndef WEFT_F8_H
#define WEFT_F8_H

#include <stddef.h>
#include <stdint.h>

#include "weft/numeric.h"

static inline float weft_f8_to_f32(uint8_t byte)
{
    /* The same number as f16, but for the bias of the exponent: 2^8 too small; denormals are denormals. */
    return weft_f16_to_f32((uint16_t)((byte & 0x80U) << 8 | (byte & 0x7fU) << 7)) * 256.0f;
}

/* bf16; |scale| at most the largest f32 / 448. */
static inline uint16_t weft_f8_weight(uint8_t byte, float scale)
{
    return weft_f32_to_bf16(weft_f8_to_f32(byte) * scale);
}

/* Scales of a row of col_count columns, at least 1; scale_phase < scale_cols unless that is 0. */
static inline uint32_t weft_f8_scale_count(uint32_t col_count, uint32_t scale_cols, uint32_t scale_phase)
{
    return scale_cols == 0 || col_count == 0
               ? 1
               : (uint32_t)(((uint64_t)scale_phase + col_count + scale_cols - 1) / scale_cols);
}

/* Bytes of a row as it is handed over. */
static inline size_t weft_f8_row_size(uint32_t col_count, uint32_t scale_cols, uint32_t scale_phase)
{
    return weft_f8_scale_count(col_count, scale_cols, scale_phase) * sizeof(float) + col_count;
}

/* Which scale a column has, and the first column that has the next one (col_count or beyond: none). */
static inline uint32_t weft_f8_scale_index(uint32_t column, uint32_t scale_cols, uint32_t scale_phase)
{
    return scale_cols == 0 ? 0 : (uint32_t)(((uint64_t)scale_phase + column) / scale_cols);
}

static inline uint64_t weft_f8_scale_end(uint32_t column, uint32_t scale_cols, uint32_t scale_phase)
{
    return scale_cols == 0
               ? UINT64_MAX
               : ((uint64_t)weft_f8_scale_index(column, scale_cols, scale_phase) + 1) * scale_cols - scale_phase;
}

#endif
