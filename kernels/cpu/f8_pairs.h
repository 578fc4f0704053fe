/*
 * f8 pairs, the layout of E4M3 panels (kernels.h): [column / 2][32] bytes, both columns of 16 rows. A row's two columns
 * are side by side, rows 0-3 and 8-11 before 4-7 and 12-15, so that interleaving 16 bytes with 16 others gives pairs of
 * rows in order, in vectors of 16 bytes and of 32.
 */
#ifndef WEFT_CPU_F8_PAIRS_H
#define WEFT_CPU_F8_PAIRS_H

#include "cpu/kernels.h"
#include "weft/f8.h"

/* Where a row's even column is in a pair; the odd one follows. */
static inline uint32_t weft_cpu_f8_place(uint32_t lane)
{
    return (lane / 4 % 2 * 8 + lane / 8 * 4 + lane % 4) * 2;
}

/* What unpack_f8 of kernels.h is to give, weight by weight. */
static inline void weft_cpu_f8_unpack_plain(const uint8_t *bytes, const float *scales, size_t pair_count,
                                            uint32_t *pairs)
{
    for (size_t i = 0; i < pair_count * WEFT_LANES; i++) {
        const uint8_t *row = bytes + i / WEFT_LANES * 2 * WEFT_LANES + weft_cpu_f8_place(i % WEFT_LANES);
        float scale = scales[i % WEFT_LANES];

        pairs[i] = weft_f8_weight(row[0], scale) | (uint32_t)weft_f8_weight(row[1], scale) << 16;
    }
}

#endif
