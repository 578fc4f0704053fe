/*
 * dot_q8_0 and dot_q4_0, written once and compiled once per level. A level's file says beforehand what its vectors are
 * and how many fit into its registers, then includes this:
 *
 *   quant_bytes, quant_ints, quant_floats     64 bytes; 16 int32; 16 f32
 *   QUANT_PANELS, QUANT_VECTORS               register tile for two vectors and more
 *   QUANT_PANELS_ONE                          panels of the tile for a single vector, which is a stream from memory
 *   quant_load(p), quant_low(b), quant_high(b)       bytes at p; their low nibbles; their high nibbles
 *   quant_set_int(i), quant_load_floats(p), quant_store_floats(p, f), quant_add_floats(a, b), quant_zero()
 *   quant_scale(p, scale)                     16 f16 at p times scale
 *   quant_add_quad(sum, w, x)                 sum + products of four columns: w unsigned bytes < 256, x int8_t[4]
 *   quant_add_nibbles(sum, even, odd, x)      the same for eight columns, w < 16, x int8_t[8]
 *   quant_fma(ints, scale, sum)               fma((float)ints, scale, sum)
 *
 * Whatever the tile, one output is computed in the order of weft/quant.h. Empty where no vectors were named.
 */
#ifndef WEFT_CPU_DOT_QUANT_H
#define WEFT_CPU_DOT_QUANT_H
#ifdef QUANT_VECTORS

#include "cpu/quant_panel.h"

enum {
    QUANT_STREAM_AHEAD = 1024, /* bytes ahead in each panel's stream; past the end of a panel it is harmless */
};

/* Where a tile is in each of its panels. */
struct quant_place {
    const unsigned char *scales;
    const unsigned char *values;
    const unsigned char *fetch; /* what comes a little later: here, or where the caller reads next */
};

/* One block of a tile: dots[p][v] are whole numbers, then sums[p][v] <- fma(dot, scales, sum). */
INLINE void quant_add_block(const struct quant_place *places, const struct weft_cpu_quant_x *const *x, uint32_t b,
                            uint32_t panels, uint32_t vectors, enum weft_dtype dtype, bool is_stream,
                            quant_floats sums[QUANT_TILE_PANELS][QUANT_VECTORS])
{
    const uint32_t steps = dtype == WEFT_Q8_0 ? WEFT_QUANT_QUADS : WEFT_QUANT_QUADS / 2;
    quant_ints dots[QUANT_TILE_PANELS][QUANT_VECTORS];

#pragma GCC unroll 8
    for (uint32_t v = 0; v < vectors; v++) {
#pragma GCC unroll 8
        for (uint32_t p = 0; p < panels; p++) {
            dots[p][v] = quant_set_int(x[v][b].start);
        }
    }
#pragma GCC unroll 8
    for (uint32_t i = 0; i < steps; i++) {
#pragma GCC unroll 8
        for (uint32_t p = 0; p < panels; p++) {
            const unsigned char *from = places[p].values + (size_t)i * WEFT_QUANT_QUAD_SIZE;
            quant_bytes bytes = quant_load(from);

            if (is_stream) {
                __builtin_prefetch(places[p].fetch + (size_t)i * WEFT_QUANT_QUAD_SIZE, 0, 3);
            }
#pragma GCC unroll 8
            for (uint32_t v = 0; v < vectors; v++) {
                if (dtype == WEFT_Q8_0) {
                    dots[p][v] = quant_add_quad(dots[p][v], bytes, x[v][b].values + (size_t)i * WEFT_QUANT_QUAD);
                } else {
                    dots[p][v] = quant_add_nibbles(dots[p][v], quant_low(bytes), quant_high(bytes),
                                                   x[v][b].values + (size_t)i * 2 * WEFT_QUANT_QUAD);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (uint32_t p = 0; p < panels; p++) {
#pragma GCC unroll 8
        for (uint32_t v = 0; v < vectors; v++) {
            sums[p][v] = quant_fma(dots[p][v], quant_scale(places[p].scales, x[v][b].scale), sums[p][v]);
        }
    }
}

INLINE float *quant_output(const struct weft_cpu_dot_quant *args, uint32_t panel, uint32_t vector)
{
    return args->out + vector * args->out_stride + (size_t)panel * WEFT_LANES;
}

/* Towards the end of a leaf, fetches from the beginnings of what is read next. */
INLINE void quant_fetch_next(const struct weft_cpu_dot_quant *args, struct quant_place *places, uint32_t panel,
                             uint32_t panels)
{
    for (uint32_t p = 0; p < panels; p++) {
        if (panel + p < args->ahead_count) {
            places[p].fetch = args->ahead[panel + p];
        }
    }
}

/* Blocks [begin, end), a chunk, of a tile; the first chunk is the output, the others are added to it. */
INLINE void quant_tile_chunk(const struct weft_cpu_dot_quant *args, struct weft_range blocks,
                             const unsigned char *const *chunks, uint32_t panel, uint32_t vector, uint32_t panels,
                             uint32_t vectors, enum weft_dtype dtype, bool is_stream)
{
    struct quant_place places[QUANT_TILE_PANELS];
    quant_floats sums[QUANT_TILE_PANELS][QUANT_VECTORS];

#pragma GCC unroll 8
    for (uint32_t p = 0; p < panels; p++) {
        places[p].scales = chunks[p];
        places[p].values = chunks[p] + weft_quant_scales_size(weft_range_count(blocks));
        places[p].fetch = places[p].values + QUANT_STREAM_AHEAD;
        if (is_stream) { /* what the chunk before has not fetched, because it had no loads for its scales */
            for (const unsigned char *from = chunks[p]; from < places[p].values; from += WEFT_QUANT_QUAD_SIZE) {
                __builtin_prefetch(from + QUANT_STREAM_AHEAD, 0, 3);
            }
        }
#pragma GCC unroll 8
        for (uint32_t v = 0; v < vectors; v++) {
            sums[p][v] = quant_zero();
        }
    }
    for (uint32_t b = blocks.begin; b < blocks.end; b++) {
        if (is_stream && args->block_count - b == QUANT_STREAM_AHEAD / weft_quant_block_size(dtype)) {
            quant_fetch_next(args, places, panel, panels);
        }
        quant_add_block(places, args->x + vector, b, panels, vectors, dtype, is_stream, sums);
#pragma GCC unroll 8
        for (uint32_t p = 0; p < panels; p++) {
            places[p].scales += WEFT_QUANT_BLOCK_SCALES_SIZE;
            places[p].values += weft_quant_block_size(dtype);
            places[p].fetch += weft_quant_block_size(dtype);
        }
    }
#pragma GCC unroll 8
    for (uint32_t p = 0; p < panels; p++) {
#pragma GCC unroll 8
        for (uint32_t v = 0; v < vectors; v++) {
            float *out = quant_output(args, panel + p, vector + v);

            if (blocks.begin > 0) {
                sums[p][v] = quant_add_floats(quant_load_floats(out), sums[p][v]);
            }
            quant_store_floats(out, sums[p][v]);
        }
    }
}

INLINE void quant_tile(const struct weft_cpu_dot_quant *args, uint32_t panel, uint32_t vector, uint32_t panels,
                       uint32_t vectors, enum weft_dtype dtype, bool is_stream)
{
    uint32_t chunk_count = weft_quant_chunk_count(args->block_count);
    const unsigned char *chunks[QUANT_TILE_PANELS];

    for (uint32_t p = 0; p < panels; p++) {
        chunks[p] = args->panels[panel + p];
    }
    for (uint32_t i = 0; i < chunk_count; i++) {
        struct weft_range blocks = {weft_quant_chunk_begin(args->block_count, i),
                                    weft_quant_chunk_begin(args->block_count, i + 1)};

        quant_tile_chunk(args, blocks, chunks, panel, vector, panels, vectors, dtype, is_stream);
        for (uint32_t p = 0; p < panels; p++) {
            chunks[p] += weft_quant_chunk_size(dtype, weft_range_count(blocks));
        }
    }
}

/* All panels for some vectors, `step` panels at a time. */
INLINE void quant_tiles(const struct weft_cpu_dot_quant *args, uint32_t vector, uint32_t step, uint32_t vectors,
                        enum weft_dtype dtype, bool is_stream)
{
    uint32_t p = 0;

    for (; p + step <= args->panel_count; p += step) {
        quant_tile(args, p, vector, step, vectors, dtype, is_stream);
    }
    for (; p < args->panel_count; p++) {
        quant_tile(args, p, vector, 1, vectors, dtype, is_stream);
    }
}

/* The first vectors' tiles are what waits for memory; the others find their panels in a cache. */
INLINE void quant_all_tiles(const struct weft_cpu_dot_quant *args, enum weft_dtype dtype)
{
    uint32_t v = 0;

    if (args->is_stream && args->vector_count >= QUANT_VECTORS) {
        quant_tiles(args, 0, QUANT_PANELS, QUANT_VECTORS, dtype, true);
        v = QUANT_VECTORS;
    }
    for (; v + QUANT_VECTORS <= args->vector_count; v += QUANT_VECTORS) {
        quant_tiles(args, v, QUANT_PANELS, QUANT_VECTORS, dtype, false);
    }
    switch (args->vector_count - v) { /* the compiler sees constants and keeps each tile in registers */
#if QUANT_VECTORS > 3
    case 3: quant_tiles(args, v, QUANT_PANELS, 3, dtype, true); break;
#endif
#if QUANT_VECTORS > 2
    case 2: quant_tiles(args, v, QUANT_PANELS, 2, dtype, true); break;
#endif
    case 1: quant_tiles(args, v, QUANT_PANELS_ONE, 1, dtype, true); break;
    default: break;
    }
}

static void dot_q8_0(const struct weft_cpu_dot_quant *args)
{
    quant_all_tiles(args, WEFT_Q8_0);
}

static void dot_q4_0(const struct weft_cpu_dot_quant *args)
{
    quant_all_tiles(args, WEFT_Q4_0);
}

#endif
#endif
