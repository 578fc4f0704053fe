/*
 * The AVX2 level: a panel column is two vectors, lanes 0-7 and 8-15. Register tiles are up to 4 panels x 1 vector, 2
 * panels x 2 vectors or 1 panel x 4 vectors: 8 accumulators of 16 registers. The order of additions of one output is
 * that of the reference whatever the tile.
 */
#include <immintrin.h>

#include "cpu/elementwise.h"
#include "cpu/f8_table.h"

enum {
    TILE_SIZE = 4, /* panels x vectors */
    HALF_LANES = WEFT_LANES / 2,
    LINE_SIZE = 64,
    PREFETCH_SIZE = 1024, /* bytes ahead in each panel's stream; past the end of a panel it is harmless */
};

#define INLINE static inline __attribute__((always_inline))

/* One panel column. */
struct pair {
    __m256 low;
    __m256 high;
};

/* Element format of a panel with one column per step. */
enum format { FORMAT_F32, FORMAT_F16, FORMAT_BF16 };

INLINE __m256 load_half(const char *column, enum format format)
{
    __m128i bits;

    if (format == FORMAT_F32) {
        return _mm256_loadu_ps((const float *)column);
    }
    bits = _mm_loadu_si128((const __m128i *)column);
    if (format == FORMAT_F16) {
        return _mm256_cvtph_ps(bits);
    }
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

INLINE float *output(const struct weft_cpu_dot *args, uint32_t panel, uint32_t vector)
{
    return args->out + vector * args->out_stride + (size_t)panel * WEFT_LANES;
}

/* sums[p * vectors + v] */
INLINE void load_sums(const struct weft_cpu_dot *args, uint32_t panel, uint32_t vector, uint32_t panels,
                      uint32_t vectors, struct pair sums[TILE_SIZE])
{
#pragma GCC unroll 4
    for (uint32_t i = 0; i < panels * vectors; i++) {
        const float *out = output(args, panel + i / vectors, vector + i % vectors);

        sums[i].low = args->is_continued ? _mm256_loadu_ps(out) : _mm256_setzero_ps();
        sums[i].high = args->is_continued ? _mm256_loadu_ps(out + HALF_LANES) : _mm256_setzero_ps();
    }
}

INLINE void store_sums(const struct weft_cpu_dot *args, uint32_t panel, uint32_t vector, uint32_t panels,
                       uint32_t vectors, const struct pair sums[TILE_SIZE])
{
#pragma GCC unroll 4
    for (uint32_t i = 0; i < panels * vectors; i++) {
        float *out = output(args, panel + i / vectors, vector + i % vectors);

        _mm256_storeu_ps(out, sums[i].low);
        _mm256_storeu_ps(out + HALF_LANES, sums[i].high);
    }
}

/* sums[v] <- fma(weights, x[v][k], sums[v]) */
INLINE void add_column(struct pair weights, const float *const *x, size_t k, uint32_t vectors, struct pair *sums)
{
#pragma GCC unroll 4
    for (uint32_t v = 0; v < vectors; v++) {
        __m256 factor = _mm256_broadcast_ss(&x[v][k]);

        sums[v].low = _mm256_fmadd_ps(weights.low, factor, sums[v].low);
        sums[v].high = _mm256_fmadd_ps(weights.high, factor, sums[v].high);
    }
}

INLINE void tile_columns(const struct weft_cpu_dot *args, uint32_t panel, uint32_t vector, uint32_t panels,
                         uint32_t vectors, enum format format)
{
    const size_t column_size = format == FORMAT_F32 ? LINE_SIZE : LINE_SIZE / 2;
    struct pair sums[TILE_SIZE];

    load_sums(args, panel, vector, panels, vectors, sums);
    for (size_t k = 0; k < args->col_count; k++) {
#pragma GCC unroll 4
        for (uint32_t p = 0; p < panels; p++) {
            const char *column = (const char *)args->panels[panel + p] + k * column_size;
            struct pair weights = {load_half(column, format), load_half(column + column_size / 2, format)};

            _mm_prefetch(column + PREFETCH_SIZE, _MM_HINT_T0);
            add_column(weights, args->x + vector, k, vectors, sums + p * vectors);
        }
    }
    store_sums(args, panel, vector, panels, vectors, sums);
}

INLINE __m256i load_bits(const char *pair)
{
    return _mm256_loadu_si256((const __m256i *)pair);
}

INLINE struct pair even_column(const char *pair)
{
    return (struct pair){_mm256_castsi256_ps(_mm256_slli_epi32(load_bits(pair), 16)),
                         _mm256_castsi256_ps(_mm256_slli_epi32(load_bits(pair + LINE_SIZE / 2), 16))};
}

INLINE struct pair odd_column(const char *pair)
{
    const __m256i upper = _mm256_set1_epi32((int)0xffff0000U);

    return (struct pair){_mm256_castsi256_ps(_mm256_and_si256(load_bits(pair), upper)),
                         _mm256_castsi256_ps(_mm256_and_si256(load_bits(pair + LINE_SIZE / 2), upper))};
}

/* bf16 pairs: one line gives two columns; a bf16 number is the upper half of an f32. */
INLINE void tile_pairs(const struct weft_cpu_dot *args, uint32_t panel, uint32_t vector, uint32_t panels,
                       uint32_t vectors)
{
    size_t pair_count = args->col_count / 2;
    struct pair sums[TILE_SIZE];

    load_sums(args, panel, vector, panels, vectors, sums);
    for (size_t i = 0; i < pair_count; i++) {
#pragma GCC unroll 4
        for (uint32_t p = 0; p < panels; p++) {
            const char *pair = (const char *)args->panels[panel + p] + i * LINE_SIZE;

            _mm_prefetch(pair + PREFETCH_SIZE, _MM_HINT_T0);
            add_column(even_column(pair), args->x + vector, 2 * i, vectors, sums + p * vectors);
            add_column(odd_column(pair), args->x + vector, 2 * i + 1, vectors, sums + p * vectors);
        }
    }
    if (args->col_count % 2 != 0) {
#pragma GCC unroll 4
        for (uint32_t p = 0; p < panels; p++) {
            const char *pair = (const char *)args->panels[panel + p] + pair_count * LINE_SIZE;

            add_column(even_column(pair), args->x + vector, 2 * pair_count, vectors, sums + p * vectors);
        }
    }
    store_sums(args, panel, vector, panels, vectors, sums);
}

INLINE void tile(const struct weft_cpu_dot *args, uint32_t panel, uint32_t vector, uint32_t panels, uint32_t vectors,
                 bool is_pairs, enum format format)
{
    if (is_pairs) {
        tile_pairs(args, panel, vector, panels, vectors);
    } else {
        tile_columns(args, panel, vector, panels, vectors, format);
    }
}

/* Every panel of the call with `vectors` vectors; the compiler sees constants and keeps each tile in registers. */
INLINE void column_of_tiles(const struct weft_cpu_dot *args, uint32_t vector, uint32_t vectors, bool is_pairs,
                            enum format format)
{
    uint32_t p = 0;

    for (; vectors == 1 && p + 4 <= args->panel_count; p += 4) {
        tile(args, p, vector, 4, 1, is_pairs, format);
    }
    for (; vectors <= 2 && p + 2 <= args->panel_count; p += 2) {
        tile(args, p, vector, 2, vectors <= 2 ? vectors : 1, is_pairs, format);
    }
    for (; p < args->panel_count; p++) {
        tile(args, p, vector, 1, vectors, is_pairs, format);
    }
}

INLINE void all_tiles(const struct weft_cpu_dot *args, bool is_pairs, enum format format)
{
    uint32_t v = 0;

    for (; v + 4 <= args->vector_count; v += 4) {
        column_of_tiles(args, v, 4, is_pairs, format);
    }
    switch (args->vector_count - v) {
    case 3: column_of_tiles(args, v, 3, is_pairs, format); break;
    case 2: column_of_tiles(args, v, 2, is_pairs, format); break;
    case 1: column_of_tiles(args, v, 1, is_pairs, format); break;
    default: break;
    }
}

static void dot_f32_avx2(const struct weft_cpu_dot *args)
{
    all_tiles(args, false, FORMAT_F32);
}

static void dot_f16_avx2(const struct weft_cpu_dot *args)
{
    all_tiles(args, false, FORMAT_F16);
}

static void dot_bf16_avx2(const struct weft_cpu_dot *args)
{
    all_tiles(args, false, FORMAT_BF16);
}

static void dot_bf16_pairs_avx2(const struct weft_cpu_dot *args)
{
    all_tiles(args, true, FORMAT_BF16);
}

/* ---- the vectors of dot_quant.h: rows 0-7 and 8-15 ---- */

typedef struct {
    __m256i low;
    __m256i high;
} quant_bytes;
typedef quant_bytes quant_ints;
typedef struct pair quant_floats;

/* 4 integer and 4 f32 accumulators of 16 registers. */
#define QUANT_PANELS      1
#define QUANT_VECTORS     2
#define QUANT_PANELS_ONE  2
#define QUANT_TILE_PANELS 2 /* the larger of the two */

INLINE quant_bytes quant_load(const unsigned char *from)
{
    const __m256i *halves = (const __m256i *)from;

    return (quant_bytes){_mm256_load_si256(halves), _mm256_load_si256(halves + 1)};
}

INLINE quant_bytes quant_low(quant_bytes bytes)
{
    const __m256i mask = _mm256_set1_epi8(0xf);

    return (quant_bytes){_mm256_and_si256(bytes.low, mask), _mm256_and_si256(bytes.high, mask)};
}

INLINE quant_bytes quant_high(quant_bytes bytes)
{
    return quant_low((quant_bytes){_mm256_srli_epi16(bytes.low, 4), _mm256_srli_epi16(bytes.high, 4)});
}

INLINE quant_ints quant_set_int(int32_t value)
{
    return (quant_ints){_mm256_set1_epi32(value), _mm256_set1_epi32(value)};
}

/* Four activations in every lane. */
INLINE __m256i quant_set_quad(const int8_t *x)
{
    int32_t quad;

    memcpy(&quad, x, sizeof(quad));
    return _mm256_set1_epi32(quad);
}

INLINE quant_floats quant_zero(void)
{
    return (quant_floats){_mm256_setzero_ps(), _mm256_setzero_ps()};
}

INLINE quant_floats quant_load_floats(const float *from)
{
    return (quant_floats){_mm256_loadu_ps(from), _mm256_loadu_ps(from + HALF_LANES)};
}

INLINE void quant_store_floats(float *to, quant_floats value)
{
    _mm256_storeu_ps(to, value.low);
    _mm256_storeu_ps(to + HALF_LANES, value.high);
}

INLINE quant_floats quant_add_floats(quant_floats a, quant_floats b)
{
    return (quant_floats){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}

INLINE quant_floats quant_scale(const unsigned char *scales, float scale)
{
    const __m128i *halves = (const __m128i *)scales;
    __m256 factor = _mm256_set1_ps(scale);

    return (quant_floats){_mm256_mul_ps(_mm256_cvtph_ps(_mm_load_si128(halves)), factor),
                          _mm256_mul_ps(_mm256_cvtph_ps(_mm_load_si128(halves + 1)), factor)};
}

INLINE quant_floats quant_fma(quant_ints dots, quant_floats scale, quant_floats sum)
{
    return (quant_floats){_mm256_fmadd_ps(_mm256_cvtepi32_ps(dots.low), scale.low, sum.low),
                          _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots.high), scale.high, sum.high)};
}

/*
 * Products of bytes are added in pairs as 16-bit numbers. 8-bit weights could saturate there, so they are widened: even
 * and odd columns apart.
 */
INLINE __m256i add_quad(__m256i sum, __m256i weights, __m256i even, __m256i odd)
{
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_and_si256(weights, _mm256_set1_epi16(0xff)), even));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_srli_epi16(weights, 8), odd));
}

INLINE quant_ints quant_add_quad(quant_ints sum, quant_bytes weights, const int8_t *x)
{
    __m256i quad = quant_set_quad(x);
    __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(quad, 8), 8);
    __m256i odd = _mm256_srai_epi16(quad, 8);

    return (quant_ints){add_quad(sum.low, weights.low, even, odd), add_quad(sum.high, weights.high, even, odd)};
}

/* 4-bit weights cannot saturate: 4 * 15 * 127 < 2^15. */
INLINE __m256i add_nibbles(__m256i sum, __m256i even, __m256i odd, const int8_t *x)
{
    __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(even, quant_set_quad(x)),
                                     _mm256_maddubs_epi16(odd, quant_set_quad(x + 4)));

    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

INLINE quant_ints quant_add_nibbles(quant_ints sum, quant_bytes even, quant_bytes odd, const int8_t *x)
{
    return (quant_ints){add_nibbles(sum.low, even.low, odd.low, x), add_nibbles(sum.high, even.high, odd.high, x)};
}

#include "cpu/dot_quant.h"

/* ---- E4M3 ---- */

/* Pairs of 8 rows; numbers are f16, 2^8 too small, and scales as much too large. */
INLINE __m256i f8_pairs(__m128i even, __m128i odd, __m256 scales)
{
    return _mm256_blend_epi16(_mm256_srli_epi32(f8_weights(_mm256_cvtph_ps(even), scales), 16),
                              f8_weights(_mm256_cvtph_ps(odd), scales), 0xaa);
}

/*
 * Each weight computed. As f16, a byte is its sign, a bit of the exponent that is clear, then its other bits. Vectors
 * have rows in the order of f8 pairs: 0-3 and 8-11, 4-7 and 12-15.
 */
static void unpack_f8_compute(const uint8_t *bytes, const float *scales, size_t pair_count, uint32_t *pairs)
{
    const __m256i mask = _mm256_set1_epi16((short)0xbf80);
    const __m256 up = _mm256_set1_ps(256.0f); /* exact: scales are at most the largest f32 / 448 */
    const __m256 low = _mm256_mul_ps(_mm256_loadu_ps(scales), up);
    const __m256 high = _mm256_mul_ps(_mm256_loadu_ps(scales + HALF_LANES), up);
    const __m256 first = _mm256_permute2f128_ps(low, high, 0x20);
    const __m256 second = _mm256_permute2f128_ps(low, high, 0x31);

    for (size_t i = 0; i < pair_count; i++, bytes += 2 * WEFT_LANES, pairs += WEFT_LANES) {
        __m256i both = _mm256_loadu_si256((const __m256i *)bytes);
        __m256i even = _mm256_and_si256(_mm256_srai_epi16(_mm256_slli_epi16(both, 8), 1), mask);
        __m256i odd = _mm256_and_si256(_mm256_srai_epi16(both, 1), mask);
        __m256i a = f8_pairs(_mm256_castsi256_si128(even), _mm256_castsi256_si128(odd), first);
        __m256i b = f8_pairs(_mm256_extracti128_si256(even, 1), _mm256_extracti128_si256(odd, 1), second);

        _mm_prefetch((const char *)bytes + PREFETCH_SIZE, _MM_HINT_T0);
        _mm256_storeu_si256((__m256i *)pairs, _mm256_permute2x128_si256(a, b, 0x20));
        _mm256_storeu_si256((__m256i *)(pairs + HALF_LANES), _mm256_permute2x128_si256(a, b, 0x31));
    }
}

static void unpack_f8_avx2(const uint8_t *bytes, const float *scales, size_t pair_count, uint32_t *pairs)
{
    if (!f8_has_table(scales)) {
        unpack_f8_compute(bytes, scales, pair_count, pairs);
        return;
    }
    const struct f8_table narrow = f8_make_table(scales[0]);
    const struct f8_table_256 table = f8_widen_256(&narrow);

    for (size_t i = 0; i < pair_count; i++, bytes += 2 * WEFT_LANES, pairs += WEFT_LANES) {
        _mm_prefetch((const char *)bytes + PREFETCH_SIZE, _MM_HINT_T0);
        f8_look_up_256(&table, bytes, pairs);
    }
}

void weft_cpu_kernels_fill_avx2(struct weft_cpu_kernels *kernels)
{
    kernels->dot_f32 = dot_f32_avx2;
    kernels->dot_f16 = dot_f16_avx2;
    kernels->dot_bf16 = dot_bf16_avx2;
    kernels->dot_bf16_pairs = dot_bf16_pairs_avx2;
    kernels->dot_q8_0 = dot_q8_0;
    kernels->dot_q4_0 = dot_q4_0;
    kernels->unpack_f8 = unpack_f8_avx2;
    fill_elementwise(kernels);
}
