/*
 * E4M3 bytes with a scale that all rows of a panel share, at the levels from AVX2 on: weights by tables of 16 bytes.
 *
 * Products of ordinary numbers differ from those of another exponent by the exponent alone, rounded as they are. So a
 * table has what they are for exponents of 0 and 1, by the low four bits of the byte, and half of the byte's exponent
 * is added to the upper byte. `change` is what makes denormals of that: nothing for all others, whose index is
 * negative. Empty without these levels' flags.
 */
#ifndef WEFT_CPU_F8_TABLE_H
#define WEFT_CPU_F8_TABLE_H
#ifdef __AVX2__

#include <immintrin.h>

#include "cpu/f8_pairs.h"

#define F8_INLINE static inline __attribute__((always_inline))

struct f8_table {
    __m128i low; /* lower bytes of the weights */
    __m128i high;
    __m128i low_change;
    __m128i high_change;
    __m128i exponents; /* by a byte's upper four bits: half of its exponent, and the weight's sign */
};

/* f32 bits whose upper halves are the bf16 weights. */
F8_INLINE __m256i f8_weights(__m256 numbers, __m256 scales)
{
    __m256i products = _mm256_castps_si256(_mm256_mul_ps(numbers, scales));
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(products, 16), _mm256_set1_epi32(1));

    return _mm256_add_epi32(_mm256_add_epi32(products, _mm256_set1_epi32(0x7fff)), odd);
}

/* [8] weights. */
F8_INLINE __m128i f8_narrow(__m256i weights)
{
    __m256i halves = _mm256_srli_epi32(weights, 16);

    return _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}

F8_INLINE __m128i f8_lower(__m128i first, __m128i second)
{
    const __m128i mask = _mm_set1_epi16(0xff);

    return _mm_packus_epi16(_mm_and_si128(first, mask), _mm_and_si128(second, mask));
}

F8_INLINE __m128i f8_upper(__m128i first, __m128i second)
{
    return _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(second, 8));
}

/* Whether scales[16] are one scale, from 2^-119 on: no product of an ordinary number is denormal. */
F8_INLINE bool f8_has_table(const float *scales)
{
    const uint32_t least = (127 - 119) << 23;
    const __m256i first = _mm256_set1_epi32((int)weft_f32_bits(scales[0]));
    const __m256i *halves = (const __m256i *)scales;
    __m256i same = _mm256_and_si256(_mm256_cmpeq_epi32(_mm256_loadu_si256(halves), first),
                                    _mm256_cmpeq_epi32(_mm256_loadu_si256(halves + 1), first));

    return _mm256_movemask_epi8(same) == -1 && (weft_f32_bits(scales[0]) & 0x7fffffffU) >= least;
}

F8_INLINE struct f8_table f8_make_table(float scale)
{
    const __m128i zero = _mm_setzero_si128();
    const __m256 eighths = _mm256_setr_ps(0, 0x1p-9f, 0x2p-9f, 0x3p-9f, 0x4p-9f, 0x5p-9f, 0x6p-9f, 0x7p-9f);
    const __m256 numbers = _mm256_add_ps(eighths, _mm256_set1_ps(0x8p-9f));
    const __m256 scales = _mm256_set1_ps(scale < 0 ? -scale : scale);
    __m128i even = f8_narrow(f8_weights(_mm256_mul_ps(numbers, _mm256_set1_ps(0.5f)), scales));
    __m128i odd = f8_narrow(f8_weights(numbers, scales));
    __m128i change = _mm_xor_si128(even, f8_narrow(f8_weights(eighths, scales)));
    __m128i exponents = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -128, -127, -126, -125, -124, -123, -122, -121);

    return (struct f8_table){.low = f8_lower(even, odd),
                             .high = f8_upper(even, odd),
                             .low_change = f8_lower(zero, change),
                             .high_change = f8_upper(zero, change),
                             .exponents = _mm_xor_si128(exponents, _mm_set1_epi8(scale < 0 ? -128 : 0))};
}

/* The same table in both halves of each vector. */
struct f8_table_256 {
    __m256i low;
    __m256i high;
    __m256i low_change;
    __m256i high_change;
    __m256i exponents;
};

F8_INLINE struct f8_table_256 f8_widen_256(const struct f8_table *table)
{
    return (struct f8_table_256){_mm256_broadcastsi128_si256(table->low), _mm256_broadcastsi128_si256(table->high),
                                 _mm256_broadcastsi128_si256(table->low_change),
                                 _mm256_broadcastsi128_si256(table->high_change),
                                 _mm256_broadcastsi128_si256(table->exponents)};
}

/* pairs[16] <- one pair of columns, bytes[32]. */
F8_INLINE void f8_look_up_256(const struct f8_table_256 *table, const uint8_t *bytes, uint32_t *pairs)
{
    __m256i both = _mm256_loadu_si256((const __m256i *)bytes);
    __m256i index = _mm256_and_si256(both, _mm256_set1_epi8(0x7f));
    __m256i denormal = _mm256_add_epi8(index, _mm256_set1_epi8(0x78)); /* 8 to 15 in its low bits, or negative */
    __m256i upper = _mm256_and_si256(_mm256_srli_epi16(both, 4), _mm256_set1_epi8(0xf));
    __m256i low =
        _mm256_xor_si256(_mm256_shuffle_epi8(table->low, index), _mm256_shuffle_epi8(table->low_change, denormal));
    __m256i high =
        _mm256_xor_si256(_mm256_shuffle_epi8(table->high, index), _mm256_shuffle_epi8(table->high_change, denormal));

    high = _mm256_add_epi8(high, _mm256_shuffle_epi8(table->exponents, upper));
    _mm256_storeu_si256((__m256i *)pairs, _mm256_unpacklo_epi8(low, high));
    _mm256_storeu_si256((__m256i *)pairs + 1, _mm256_unpackhi_epi8(low, high));
}

#endif
#endif
