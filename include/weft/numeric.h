/*
 * Scalar arithmetic of the numerics contract: exp, cos and sin, and the 16-bit float formats, as every module must
 * compute them.
 *
 * Only IEEE operations and fused multiply-adds that are written out: the same bits on every CPU and compiler as long as
 * -ffp-contract=off holds and denormals are kept. Vector versions (kernels/cpu) repeat these operations lane by lane.
 * The payload and sign of a NaN are not part of the contract; that it is a NaN is.
 */
#ifndef WEFT_NUMERIC_H
#define WEFT_NUMERIC_H

#include <stdint.h>
#include <string.h>

static inline uint32_t weft_f32_bits(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static inline float weft_f32_from_bits(uint32_t bits)
{
    float x;

    memcpy(&x, &bits, sizeof(x));
    return x;
}

/*
 * Constants of weft_exp(). x = n ln 2 + r, |r| <= ln(2)/2, exp(r) = 1 + r + r^2 q(r); q is a minimax polynomial of
 * degree 4, relative error 3.1e-9 (own fit by reweighted least squares, coefficients rounded to f32).
 */
#define WEFT_EXP_MAX    89.0f     /* exp(89) overflows to +inf by the final scaling */
#define WEFT_EXP_MIN    (-104.0f) /* exp(-104) rounds to +0 by the final scaling */
#define WEFT_EXP_LOG2E  0x1.715476p+0f
#define WEFT_EXP_LN2_HI 0x1.62e430p-1f
#define WEFT_EXP_LN2_LO (-0x1.05c610p-29f)
#define WEFT_EXP_ROUND  0x1.8p+23f /* adding it leaves the nearest integer in the low bits */
#define WEFT_EXP_Q0     0x1.fffffcp-2f
#define WEFT_EXP_Q1     0x1.555492p-3f
#define WEFT_EXP_Q2     0x1.5558f2p-5f
#define WEFT_EXP_Q3     0x1.123a20p-7f
#define WEFT_EXP_Q4     0x1.6a23ccp-10f

/*
 * e^x within 1.01 ulp: +inf from 88.73 up, denormal results correct, +0 below -103.98, NaN for NaN. The scaling by 2^n
 * is done in two exact halves and one rounding, so that neither 2^128 nor denormals need a special case.
 */
static inline float weft_exp(float x)
{
    float rounded;
    float n;
    float r;
    float q;
    uint32_t exponent;
    uint32_t half;

    x = x > WEFT_EXP_MAX ? WEFT_EXP_MAX : x;
    x = x < WEFT_EXP_MIN ? WEFT_EXP_MIN : x;
    rounded = __builtin_fmaf(x, WEFT_EXP_LOG2E, WEFT_EXP_ROUND);
    n = rounded - WEFT_EXP_ROUND;
    r = __builtin_fmaf(n, -WEFT_EXP_LN2_HI, x);
    r = __builtin_fmaf(n, -WEFT_EXP_LN2_LO, r);
    q = __builtin_fmaf(WEFT_EXP_Q4, r, WEFT_EXP_Q3);
    q = __builtin_fmaf(q, r, WEFT_EXP_Q2);
    q = __builtin_fmaf(q, r, WEFT_EXP_Q1);
    q = __builtin_fmaf(q, r, WEFT_EXP_Q0);
    q = __builtin_fmaf(q, r * r, r) + 1.0f;
    exponent = weft_f32_bits(rounded) - weft_f32_bits(WEFT_EXP_ROUND); /* n as two's complement; garbage for NaN */
    half = (uint32_t)((int32_t)exponent >> 1);
    q *= weft_f32_from_bits((half + 127U) << 23);
    q *= weft_f32_from_bits((exponent - half + 127U) << 23);
    return q;
}

/*
 * pi/2 in three parts, for weft_cos_sin(). k < 2^20 for angles below 1.6e6: with fused multiply-adds the reduced angle
 * is good to about 1e-19 absolute; beyond, the error grows as k * 2^-161 and stays far below f32.
 */
#define WEFT_HALF_PI_0 0x1.921fb54442d18p+0
#define WEFT_HALF_PI_1 0x1.1a62633145c07p-54
#define WEFT_HALF_PI_2 (-0x1.f1976b7ed8fbcp-110)

/* Taylor series to r^15: |r| <= pi/4 leaves 5e-17. */
static inline double weft_sin_series(double r)
{
    double r2 = r * r;
    double sum = -1.0 / 1307674368000;

    sum = __builtin_fma(sum, r2, 1.0 / 6227020800);
    sum = __builtin_fma(sum, r2, -1.0 / 39916800);
    sum = __builtin_fma(sum, r2, 1.0 / 362880);
    sum = __builtin_fma(sum, r2, -1.0 / 5040);
    sum = __builtin_fma(sum, r2, 1.0 / 120);
    sum = __builtin_fma(sum, r2, -1.0 / 6);
    return __builtin_fma(sum * r2, r, r);
}

/* To r^16. */
static inline double weft_cos_series(double r)
{
    double r2 = r * r;
    double sum = 1.0 / 20922789888000.0;

    sum = __builtin_fma(sum, r2, -1.0 / 87178291200.0);
    sum = __builtin_fma(sum, r2, 1.0 / 479001600);
    sum = __builtin_fma(sum, r2, -1.0 / 3628800);
    sum = __builtin_fma(sum, r2, 1.0 / 40320);
    sum = __builtin_fma(sum, r2, -1.0 / 720);
    sum = __builtin_fma(sum, r2, 1.0 / 24);
    sum = __builtin_fma(sum, r2, -1.0 / 2);
    return __builtin_fma(sum, r2, 1.0);
}

/* cos and sin of an f32 angle, |angle| < 2^31, correctly rounded to f32 in all but about one case in 10^8. */
static inline void weft_cos_sin(float angle, float *cos_out, float *sin_out)
{
    const double round = 0x1.8p+52; /* adding it leaves the nearest integer in the low bits */
    double shifted = __builtin_fma((double)angle, 0x1.45f306dc9c883p-1, round);
    double k = shifted - round;
    double r = __builtin_fma(-k, WEFT_HALF_PI_0, (double)angle);
    double s;
    double c;
    uint64_t bits;

    r = __builtin_fma(-k, WEFT_HALF_PI_1, r);
    r = __builtin_fma(-k, WEFT_HALF_PI_2, r);
    s = weft_sin_series(r);
    c = weft_cos_series(r);
    memcpy(&bits, &shifted, sizeof(bits));
    *cos_out = (float)((bits & 1) != 0 ? ((bits & 2) != 0 ? s : -s) : ((bits & 2) != 0 ? -c : c));
    *sin_out = (float)((bits & 1) != 0 ? ((bits & 2) != 0 ? -c : c) : ((bits & 2) != 0 ? -s : s));
}

static inline float weft_bf16_to_f32(uint16_t x)
{
    return weft_f32_from_bits((uint32_t)x << 16);
}

/* Round to nearest even; NaN stays NaN (quiet). */
static inline uint16_t weft_f32_to_bf16(float x)
{
    uint32_t bits = weft_f32_bits(x);
    uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    uint32_t quiet = (bits >> 16) | 0x40U;

    return (uint16_t)((bits & 0x7fffffffU) > 0x7f800000U ? quiet : rounded);
}

/* Exact. The multiplication by 2^112 moves the exponent bias; denormals become normal by it. */
static inline float weft_f16_to_f32(uint16_t x)
{
    uint32_t sign = (uint32_t)(x & 0x8000U) << 16;
    uint32_t magnitude = (uint32_t)(x & 0x7fffU) << 13;
    uint32_t bits = weft_f32_bits(weft_f32_from_bits(magnitude) * 0x1p+112f);

    bits = magnitude >= 0x0f800000U ? magnitude | 0x7f800000U : bits; /* infinity and NaN */
    return weft_f32_from_bits(bits | sign);
}

/* Round to nearest even; overflow gives infinity, NaN stays NaN (quiet), denormals are kept. */
static inline uint16_t weft_f32_to_f16(float x)
{
    uint32_t bits = weft_f32_bits(x);
    uint32_t sign = (bits >> 16) & 0x8000U;
    uint32_t magnitude = bits & 0x7fffffffU;
    uint32_t result;

    if (magnitude > 0x7f800000U) {
        result = 0x7e00U;
    } else if (magnitude >= 0x477ff000U) { /* 65520: rounds to infinity */
        result = 0x7c00U;
    } else if (magnitude < 0x38800000U) { /* below 2^-14: the addition rounds at the denormal step 2^-24 */
        result = weft_f32_bits(weft_f32_from_bits(magnitude) + 0.5f) - weft_f32_bits(0.5f);
    } else {
        result = (magnitude - 0x38000000U + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
    }
    return (uint16_t)(result | sign);
}

#endif
