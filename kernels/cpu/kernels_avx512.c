/*
 * The AVX-512 level: one vector is one panel column. A dot call is cut into register tiles of up to 4 panels x 4
 * vectors: 16 independent chains of fused multiply-adds, which covers latency 4 x 2 per cycle, and 16 accumulators of
 * 32 registers. The order of additions of one output is that of the reference whatever the tile.
 */
#include <immintrin.h>

#include "cpu/dot_quant_avx512.h"
#include "cpu/elementwise.h"
#include "cpu/f8_table.h"

enum {
    TILE_PANELS = 4,
    TILE_VECTORS = 4,
    LINE_SIZE = 64,
    STREAM_AHEAD = 1024, /* bytes ahead in each panel's stream; past the end of a panel it is harmless */
};

/* Element format of a panel with one column per step. */
enum format { FORMAT_F32, FORMAT_F16, FORMAT_BF16 };

INLINE __m512 load_column(const char *column, enum format format)
{
    if (format == FORMAT_F32) {
        return _mm512_loadu_ps(column);
    }
    if (format == FORMAT_F16) {
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)column));
    }
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)column)), 16));
}

INLINE void load_sums(const struct weft_cpu_dot *args, uint32_t panel, uint32_t vector, uint32_t panels,
                      uint32_t vectors, __m512 sums[TILE_PANELS][TILE_VECTORS])
{
#pragma GCC unroll 4
    for (uint32_t p = 0; p < panels; p++) {
#pragma GCC unroll 4
        for (uint32_t v = 0; v < vectors; v++) {
            const float *out = args->out + (vector + v) * args->out_stride + (size_t)(panel + p) * WEFT_LANES;

            sums[p][v] = args->is_continued ? _mm512_loadu_ps(out) : _mm512_setzero_ps();
        }
    }
}

INLINE void store_sums(const struct weft_cpu_dot *args, uint32_t panel, uint32_t vector, uint32_t panels,
                       uint32_t vectors, __m512 sums[TILE_PANELS][TILE_VECTORS])
{
#pragma GCC unroll 4
    for (uint32_t p = 0; p < panels; p++) {
#pragma GCC unroll 4
        for (uint32_t v = 0; v < vectors; v++) {
            _mm512_storeu_ps(args->out + (vector + v) * args->out_stride + (size_t)(panel + p) * WEFT_LANES,
                             sums[p][v]);
        }
    }
}

/* sums[p][v] <- fma(weights[p], x[v][k], sums[p][v]) */
INLINE void add_column(const __m512 *weights, const float *const *x, size_t k, uint32_t panels, uint32_t vectors,
                       __m512 sums[TILE_PANELS][TILE_VECTORS])
{
#pragma GCC unroll 4
    for (uint32_t v = 0; v < vectors; v++) {
        __m512 factor = _mm512_set1_ps(x[v][k]);

#pragma GCC unroll 4
        for (uint32_t p = 0; p < panels; p++) {
            sums[p][v] = _mm512_fmadd_ps(weights[p], factor, sums[p][v]);
        }
    }
}

/*
 * What one tile prefetches: with several tiles per call, panels come from memory in the first and from L2 in the
 * others, which would leave memory idle; so each tile fetches a part of what comes next.
 */
struct ahead {
    const char *first;
    const char *second;
    size_t step; /* bytes per column or pair; 0: both stay where they are, in L1 */
};

/* Of the call's blocks, tile number i of n takes numbers i and i + n. */
INLINE struct ahead ahead_of_tile(const struct weft_cpu_dot *args, uint32_t vector, size_t step)
{
    uint32_t tile_count = (args->vector_count + TILE_VECTORS - 1) / TILE_VECTORS;
    uint32_t i = vector / TILE_VECTORS;
    struct ahead ahead = {(const char *)args->x[vector], (const char *)args->x[vector], 0};

    if (i < args->ahead_count) {
        ahead.first = args->ahead[i];
        ahead.second = i + tile_count < args->ahead_count ? args->ahead[i + tile_count] : ahead.first;
        ahead.step = step;
    }
    return ahead;
}

/* One vector is a stream from memory; more have time to fetch ahead. */
INLINE void prefetch(struct ahead *ahead, const char *column, uint32_t vectors, uint32_t panel)
{
    if (vectors == 1) {
        _mm_prefetch(column + STREAM_AHEAD, _MM_HINT_T0);
    } else if (panel == 0) {
        _mm_prefetch(ahead->first, _MM_HINT_T1);
        _mm_prefetch(ahead->second, _MM_HINT_T1);
        ahead->first += ahead->step;
        ahead->second += ahead->step;
    }
}

INLINE void tile_columns(const struct weft_cpu_dot *args, uint32_t panel, uint32_t vector, uint32_t panels,
                         uint32_t vectors, enum format format)
{
    const size_t column_size = format == FORMAT_F32 ? LINE_SIZE : LINE_SIZE / 2;
    struct ahead ahead = ahead_of_tile(args, vector, column_size);
    __m512 sums[TILE_PANELS][TILE_VECTORS];
    __m512 weights[TILE_PANELS];

    load_sums(args, panel, vector, panels, vectors, sums);
    for (size_t k = 0; k < args->col_count; k++) {
#pragma GCC unroll 4
        for (uint32_t p = 0; p < panels; p++) {
            const char *column = (const char *)args->panels[panel + p] + k * column_size;

            prefetch(&ahead, column, vectors, p);
            weights[p] = load_column(column, format);
        }
        add_column(weights, args->x + vector, k, panels, vectors, sums);
    }
    store_sums(args, panel, vector, panels, vectors, sums);
}

/* bf16 pairs: one load gives two columns; a bf16 number is the upper half of an f32. */
INLINE void tile_pairs(const struct weft_cpu_dot *args, uint32_t panel, uint32_t vector, uint32_t panels,
                       uint32_t vectors)
{
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000U);
    size_t pair_count = args->col_count / 2;
    struct ahead ahead = ahead_of_tile(args, vector, LINE_SIZE);
    __m512 sums[TILE_PANELS][TILE_VECTORS];
    __m512 even[TILE_PANELS];
    __m512 odd[TILE_PANELS];

    load_sums(args, panel, vector, panels, vectors, sums);
    for (size_t i = 0; i < pair_count; i++) {
#pragma GCC unroll 4
        for (uint32_t p = 0; p < panels; p++) {
            const char *pair = (const char *)args->panels[panel + p] + i * LINE_SIZE;
            __m512i bits = _mm512_loadu_si512(pair);

            prefetch(&ahead, pair, vectors, p);
            even[p] = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
            odd[p] = _mm512_castsi512_ps(_mm512_and_si512(bits, upper));
        }
        add_column(even, args->x + vector, 2 * i, panels, vectors, sums);
        add_column(odd, args->x + vector, 2 * i + 1, panels, vectors, sums);
    }
    if (args->col_count % 2 != 0) {
#pragma GCC unroll 4
        for (uint32_t p = 0; p < panels; p++) {
            const char *pair = (const char *)args->panels[panel + p] + pair_count * LINE_SIZE;

            even[p] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(pair), 16));
        }
        add_column(even, args->x + vector, 2 * pair_count, panels, vectors, sums);
    }
    store_sums(args, panel, vector, panels, vectors, sums);
}

/* What a dot kernel is made of; is_pairs, then format does not matter. */
INLINE void tile(const struct weft_cpu_dot *args, uint32_t panel, uint32_t vector, uint32_t panels, uint32_t vectors,
                 bool is_pairs, enum format format)
{
    if (is_pairs) {
        tile_pairs(args, panel, vector, panels, vectors);
    } else {
        tile_columns(args, panel, vector, panels, vectors, format);
    }
}

/* All vectors over `panels` panels; the compiler sees constants and keeps each tile in registers. */
INLINE void row_of_tiles(const struct weft_cpu_dot *args, uint32_t panel, uint32_t panels, bool is_pairs,
                         enum format format)
{
    uint32_t v = 0;

    for (; v + 4 <= args->vector_count; v += 4) {
        tile(args, panel, v, panels, 4, is_pairs, format);
    }
    switch (args->vector_count - v) {
    case 3: tile(args, panel, v, panels, 3, is_pairs, format); break;
    case 2: tile(args, panel, v, panels, 2, is_pairs, format); break;
    case 1: tile(args, panel, v, panels, 1, is_pairs, format); break;
    default: break;
    }
}

INLINE void all_tiles(const struct weft_cpu_dot *args, bool is_pairs, enum format format)
{
    switch (args->panel_count) {
    case 4: row_of_tiles(args, 0, 4, is_pairs, format); break;
    case 3: row_of_tiles(args, 0, 3, is_pairs, format); break;
    case 2: row_of_tiles(args, 0, 2, is_pairs, format); break;
    default: row_of_tiles(args, 0, 1, is_pairs, format); break;
    }
}

_Static_assert((int)TILE_PANELS == (int)WEFT_DOT_PANELS_MAX, "one row of tiles takes every panel of a call");

static void dot_f32_avx512(const struct weft_cpu_dot *args)
{
    all_tiles(args, false, FORMAT_F32);
}

static void dot_f16_avx512(const struct weft_cpu_dot *args)
{
    all_tiles(args, false, FORMAT_F16);
}

static void dot_bf16_avx512(const struct weft_cpu_dot *args)
{
    all_tiles(args, false, FORMAT_BF16);
}

static void dot_bf16_pairs_avx512(const struct weft_cpu_dot *args)
{
    all_tiles(args, true, FORMAT_BF16);
}

/*
 * Without VNNI, products of bytes are added in pairs as 16-bit numbers. 8-bit weights could saturate there, so they are
 * widened: even and odd columns apart.
 */
INLINE __m512i quant_add_quad(__m512i sum, __m512i weights, const int8_t *x)
{
    __m512i quad = quant_set_quad(x);
    __m512i even = _mm512_madd_epi16(_mm512_and_si512(weights, _mm512_set1_epi16(0xff)),
                                     _mm512_srai_epi16(_mm512_slli_epi16(quad, 8), 8));
    __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(weights, 8), _mm512_srai_epi16(quad, 8));

    return _mm512_add_epi32(_mm512_add_epi32(sum, even), odd);
}

/* 4-bit weights cannot: 4 * 15 * 127 < 2^15. */
INLINE __m512i quant_add_nibbles(__m512i sum, __m512i even, __m512i odd, const int8_t *x)
{
    __m512i pairs = _mm512_add_epi16(_mm512_maddubs_epi16(even, quant_set_quad(x)),
                                     _mm512_maddubs_epi16(odd, quant_set_quad(x + 4)));

    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}

#include "cpu/dot_quant.h"

/* ---- E4M3 ---- */

/* f32 bits whose upper halves are the bf16 weights: 16 bytes as f16 (2^8 too small, the scales as much too large). */
INLINE __m512i f8_weights_512(__m256i halves, __m512 scales)
{
    __m512i bits = _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtph_ps(halves), scales));
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));

    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
}

/* The factors of 32 bytes, 16 and 16. */
struct f8_factors {
    __m512 low;
    __m512 high;
};

/*
 * 32 bytes as weights in the same order: as f16 they are the sign, a bit of the exponent that is clear, then the byte's
 * other bits.
 */
INLINE __m512i f8_compute(__m256i bytes, struct f8_factors factors)
{
    const __m512i mask = _mm512_set1_epi16((short)0xbfff);
    __m512i halves = _mm512_and_si512(_mm512_slli_epi16(_mm512_cvtepi8_epi16(bytes), 7), mask);
    __m512i low = f8_weights_512(_mm512_castsi512_si256(halves), factors.low);
    __m512i high = f8_weights_512(_mm512_extracti64x4_epi64(halves, 1), factors.high);

    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(_mm512_srli_epi32(low, 16))),
                              _mm512_cvtepi32_epi16(_mm512_srli_epi32(high, 16)), 1);
}

/* The table of f8_table.h in all quarters of each vector. */
struct f8_table_512 {
    __m512i low;
    __m512i high;
    __m512i low_change;
    __m512i high_change;
    __m512i exponents;
};

INLINE struct f8_table_512 f8_widen_512(const struct f8_table *table)
{
    return (struct f8_table_512){_mm512_broadcast_i32x4(table->low), _mm512_broadcast_i32x4(table->high),
                                 _mm512_broadcast_i32x4(table->low_change), _mm512_broadcast_i32x4(table->high_change),
                                 _mm512_broadcast_i32x4(table->exponents)};
}

/* f8_look_up_256() of two pairs of columns, bytes[2][32]. */
INLINE void f8_look_up_512(const struct f8_table_512 *table, const uint8_t *bytes, uint32_t *pairs)
{
    __m512i both = _mm512_loadu_si512(bytes);
    __m512i index = _mm512_and_si512(both, _mm512_set1_epi8(0x7f));
    __m512i denormal = _mm512_add_epi8(index, _mm512_set1_epi8(0x78));
    __m512i upper = _mm512_and_si512(_mm512_srli_epi16(both, 4), _mm512_set1_epi8(0xf));
    __m512i low =
        _mm512_xor_si512(_mm512_shuffle_epi8(table->low, index), _mm512_shuffle_epi8(table->low_change, denormal));
    __m512i high =
        _mm512_xor_si512(_mm512_shuffle_epi8(table->high, index), _mm512_shuffle_epi8(table->high_change, denormal));

    high = _mm512_add_epi8(high, _mm512_shuffle_epi8(table->exponents, upper));
    __m512i first = _mm512_unpacklo_epi8(low, high); /* rows 0-7 of both pairs */
    __m512i second = _mm512_unpackhi_epi8(low, high);
    _mm512_storeu_si512(pairs, _mm512_shuffle_i64x2(first, second, 0x44));
    _mm512_storeu_si512(pairs + WEFT_LANES, _mm512_shuffle_i64x2(first, second, 0xee));
}

static void unpack_f8_table(const uint8_t *bytes, float scale, size_t pair_count, uint32_t *pairs)
{
    const struct f8_table narrow = f8_make_table(scale);
    const struct f8_table_512 table = f8_widen_512(&narrow);

    for (; pair_count >= 2; pair_count -= 2, bytes += 4 * WEFT_LANES, pairs += 2 * WEFT_LANES) {
        _mm_prefetch((const char *)bytes + STREAM_AHEAD, _MM_HINT_T0);
        f8_look_up_512(&table, bytes, pairs);
    }
    if (pair_count > 0) {
        const struct f8_table_256 last = f8_widen_256(&narrow);

        f8_look_up_256(&last, bytes, pairs);
    }
}

/* The two columns of a row have its scale, and rows are where weft_cpu_f8_place() has them. */
INLINE struct f8_factors f8_factors_of(const float *scales)
{
    const __m512i low = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 8, 8, 9, 9, 10, 10, 11, 11);
    __m512 factors = _mm512_mul_ps(_mm512_loadu_ps(scales), _mm512_set1_ps(256.0f)); /* exact: at most max / 448 */

    return (struct f8_factors){_mm512_permutexvar_ps(low, factors),
                               _mm512_permutexvar_ps(_mm512_add_epi32(low, _mm512_set1_epi32(4)), factors)};
}

INLINE void f8_store(__m512i weights, uint32_t *pairs)
{
    _mm512_storeu_si512(pairs, _mm512_shuffle_i32x4(weights, weights, 0xd8)); /* rows 0-3, 4-7, 8-11, 12-15 */
}

static void unpack_f8_avx512(const uint8_t *bytes, const float *scales, size_t pair_count, uint32_t *pairs)
{
    if (f8_has_table(scales)) {
        unpack_f8_table(bytes, scales[0], pair_count, pairs);
        return;
    }
    const struct f8_factors factors = f8_factors_of(scales);

    for (size_t i = 0; i < pair_count; i++, bytes += 2 * WEFT_LANES, pairs += WEFT_LANES) {
        _mm_prefetch((const char *)bytes + STREAM_AHEAD, _MM_HINT_T0);
        f8_store(f8_compute(_mm256_loadu_si256((const __m256i *)bytes), factors), pairs);
    }
}

void weft_cpu_kernels_fill_avx512(struct weft_cpu_kernels *kernels)
{
    kernels->dot_f32 = dot_f32_avx512;
    kernels->dot_f16 = dot_f16_avx512;
    kernels->dot_bf16 = dot_bf16_avx512;
    kernels->dot_bf16_pairs = dot_bf16_pairs_avx512;
    kernels->dot_q8_0 = dot_q8_0;
    kernels->dot_q4_0 = dot_q4_0;
    kernels->unpack_f8 = unpack_f8_avx512;
    fill_elementwise(kernels);
}
