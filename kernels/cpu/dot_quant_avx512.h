/* The vectors of dot_quant.h at the AVX-512 levels, all but the products of bytes. Empty without these levels' flags.
 */
#ifndef WEFT_CPU_DOT_QUANT_AVX512_H
#define WEFT_CPU_DOT_QUANT_AVX512_H

#ifdef __AVX512BW__

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef __m512i quant_bytes;
typedef __m512i quant_ints;
typedef __m512 quant_floats;

/* 16 integer and 8 f32 accumulators of 32 registers: 8 chains of products cover latency 4 x 2 per cycle. */
#define QUANT_PANELS      2
#define QUANT_VECTORS     4
#define QUANT_PANELS_ONE  4
#define QUANT_TILE_PANELS 4 /* the larger of the two */

INLINE __m512i quant_load(const unsigned char *from)
{
    return _mm512_load_si512(from);
}

INLINE __m512i quant_low(__m512i bytes)
{
    return _mm512_and_si512(bytes, _mm512_set1_epi8(0xf));
}

INLINE __m512i quant_high(__m512i bytes)
{
    return _mm512_and_si512(_mm512_srli_epi16(bytes, 4), _mm512_set1_epi8(0xf));
}

INLINE __m512i quant_set_int(int32_t value)
{
    return _mm512_set1_epi32(value);
}

/* Four activations in every lane. */
INLINE __m512i quant_set_quad(const int8_t *x)
{
    int32_t quad;

    memcpy(&quad, x, sizeof(quad));
    return _mm512_set1_epi32(quad);
}

INLINE __m512 quant_zero(void)
{
    return _mm512_setzero_ps();
}

INLINE __m512 quant_load_floats(const float *from)
{
    return _mm512_loadu_ps(from);
}

INLINE void quant_store_floats(float *to, __m512 value)
{
    _mm512_storeu_ps(to, value);
}

INLINE __m512 quant_add_floats(__m512 a, __m512 b)
{
    return _mm512_add_ps(a, b);
}

INLINE __m512 quant_scale(const unsigned char *scales, float scale)
{
    return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_load_si256((const __m256i *)scales)), _mm512_set1_ps(scale));
}

INLINE __m512 quant_fma(__m512i dots, __m512 scale, __m512 sum)
{
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), scale, sum);
}

#endif
#endif
