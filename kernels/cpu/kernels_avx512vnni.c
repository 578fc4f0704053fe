/* The AVX-512 level with VNNI: products of bytes in one instruction, without intermediate saturation. */
#include "cpu/dot_quant_avx512.h"

INLINE __m512i quant_add_quad(__m512i sum, __m512i weights, const int8_t *x)
{
    return _mm512_dpbusd_epi32(sum, weights, quant_set_quad(x));
}

INLINE __m512i quant_add_nibbles(__m512i sum, __m512i even, __m512i odd, const int8_t *x)
{
    sum = _mm512_dpbusd_epi32(sum, even, quant_set_quad(x));
    return _mm512_dpbusd_epi32(sum, odd, quant_set_quad(x + 4));
}

#include "cpu/dot_quant.h"

void weft_cpu_kernels_fill_avx512vnni(struct weft_cpu_kernels *kernels)
{
    kernels->dot_q8_0 = dot_q8_0;
    kernels->dot_q4_0 = dot_q4_0;
}
