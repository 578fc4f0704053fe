/* Where things lie in a quantised panel; the layout is described in kernels.h. Pure arithmetic. */
#ifndef WEFT_CPU_QUANT_PANEL_H
#define WEFT_CPU_QUANT_PANEL_H

#include "cpu/kernels.h"
#include "weft/device.h"

enum {
    WEFT_QUANT_QUAD = 4,                                   /* columns */
    WEFT_QUANT_QUADS = WEFT_QUANT_BLOCK / WEFT_QUANT_QUAD, /* of a block */
    WEFT_QUANT_QUAD_SIZE = WEFT_LANES * WEFT_QUANT_QUAD,   /* bytes of one quad (q8_0) or two (q4_0): a cache line */
    WEFT_QUANT_BLOCK_SCALES_SIZE = WEFT_LANES * 2,         /* bytes of the scales of one block */
    WEFT_Q8_0_BLOCK_SIZE = WEFT_QUANT_QUADS * WEFT_QUANT_QUAD_SIZE, /* bytes of the values of one block */
    WEFT_Q4_0_BLOCK_SIZE = WEFT_Q8_0_BLOCK_SIZE / 2,
    WEFT_Q8_0_OFFSET = 128,
    WEFT_Q4_0_OFFSET = 8,
};

static inline size_t weft_quant_block_size(enum weft_dtype dtype)
{
    return dtype == WEFT_Q8_0 ? WEFT_Q8_0_BLOCK_SIZE : WEFT_Q4_0_BLOCK_SIZE;
}

static inline int32_t weft_quant_offset(enum weft_dtype dtype)
{
    return dtype == WEFT_Q8_0 ? WEFT_Q8_0_OFFSET : WEFT_Q4_0_OFFSET;
}

/* Blocks of col_count columns. */
static inline uint32_t weft_quant_block_count(uint32_t col_count)
{
    return col_count / WEFT_QUANT_BLOCK + (col_count % WEFT_QUANT_BLOCK != 0);
}

/* Bytes of the scales of a chunk of block_count blocks: whole cache lines, so that values are aligned. */
static inline size_t weft_quant_scales_size(uint32_t block_count)
{
    return ((size_t)block_count + block_count % 2) * WEFT_QUANT_BLOCK_SCALES_SIZE;
}

static inline size_t weft_quant_chunk_size(enum weft_dtype dtype, uint32_t block_count)
{
    return weft_quant_scales_size(block_count) + block_count * weft_quant_block_size(dtype);
}

/* Bytes of one leaf of block_count blocks in a panel. */
static inline size_t weft_quant_leaf_size(enum weft_dtype dtype, uint32_t block_count)
{
    size_t size = 0;

    for (uint32_t i = 0; i < weft_quant_chunk_count(block_count); i++) {
        size += weft_quant_chunk_size(dtype, weft_quant_chunk_begin(block_count, i + 1) -
                                                 weft_quant_chunk_begin(block_count, i));
    }
    return size;
}

#endif
