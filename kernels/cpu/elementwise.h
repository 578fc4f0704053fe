/*
 * The kernels that need no intrinsics: written once as plain C and compiled once per level with that level's flags, so
 * that the compiler vectorises the very operations of the reference. Included by the level files only.
 *
 * To keep: no operation order that depends on the vector width (16 explicit lanes), every fused multiply-add written
 * out, selections as `a > b ? a : b`.
 */
#ifndef WEFT_CPU_ELEMENTWISE_H
#define WEFT_CPU_ELEMENTWISE_H

#include <math.h>

#include "cpu/kernels.h"
#include "weft/numeric.h"
#include "weft/quant.h"

static float sum_lanes(float *lanes)
{
    for (uint32_t width = WEFT_LANES / 2; width > 0; width /= 2) {
        for (uint32_t i = 0; i < width; i++) {
            lanes[i] += lanes[i + width];
        }
    }
    return lanes[0];
}

static void rms_norm(const float *x, const float *weight, uint32_t width, float eps, float *out)
{
    float lanes[WEFT_LANES] = {0};
    uint32_t whole = width - width % WEFT_LANES;
    float factor;

    for (uint32_t i = 0; i < whole; i += WEFT_LANES) {
        for (uint32_t j = 0; j < WEFT_LANES; j++) {
            lanes[j] = __builtin_fmaf(x[i + j], x[i + j], lanes[j]);
        }
    }
    for (uint32_t j = 0; j < width - whole; j++) {
        lanes[j] = __builtin_fmaf(x[whole + j], x[whole + j], lanes[j]);
    }
    factor = 1.0f / sqrtf(sum_lanes(lanes) / (float)width + eps);
    for (uint32_t i = 0; i < width; i++) {
        out[i] = x[i] * factor * weight[i];
    }
}

static void add(float *x, const float *y, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        x[i] += y[i];
    }
}

static void add_norm(float *x, const float *y, const float *bias, const float *weight, uint32_t width, float eps,
                     float *out)
{
    if (bias == NULL) {
        add(x, y, width);
    } else {
        for (uint32_t i = 0; i < width; i++) {
            x[i] += y[i] + bias[i];
        }
    }
    rms_norm(x, weight, width, eps, out);
}

static void rope(float *x, const float *angles, uint32_t half)
{
    for (uint32_t i = 0; i < half; i++) {
        float a = x[i];
        float b = x[i + half];
        float c = angles[2 * i];
        float s = angles[2 * i + 1];

        x[i] = __builtin_fmaf(a, c, -(b * s));
        x[i + half] = __builtin_fmaf(b, c, a * s);
    }
}

static inline void silu_mul_lanes(const float *gate, const float *up, size_t count, float *out)
{
    for (size_t i = 0; i < count; i++) {
        out[i] = gate[i] / (1.0f + weft_exp(-gate[i])) * up[i];
    }
}

static void silu_mul(const float *pairs, size_t count, float *out)
{
    size_t i = 0;

    for (; i + WEFT_LANES <= count; i += WEFT_LANES) { /* a constant, of which the compiler makes vectors */
        silu_mul_lanes(pairs + 2 * i, pairs + 2 * i + WEFT_LANES, WEFT_LANES, out + i);
    }
    silu_mul_lanes(pairs + 2 * i, pairs + 2 * i + WEFT_LANES, count - i, out + i);
}

static void softmax(float *scores, struct weft_range valid, float scale, float *max_out, float *sum_out)
{
    float lanes[WEFT_LANES];
    uint32_t begin = valid.begin - valid.begin % WEFT_LANES;
    uint32_t end = (valid.end + WEFT_LANES - 1) / WEFT_LANES * WEFT_LANES;
    float max = -INFINITY;

    for (uint32_t p = begin; p < valid.begin; p++) {
        scores[p] = -INFINITY;
    }
    for (uint32_t p = valid.end; p < end; p++) {
        scores[p] = -INFINITY;
    }
    for (uint32_t p = valid.begin; p < valid.end; p++) {
        scores[p] *= scale;
    }
    for (uint32_t j = 0; j < WEFT_LANES; j++) {
        lanes[j] = -INFINITY;
    }
    for (uint32_t p = begin; p < end; p += WEFT_LANES) {
        for (uint32_t j = 0; j < WEFT_LANES; j++) { /* a NaN is passed over here and found again in the sum */
            lanes[j] = scores[p + j] > lanes[j] ? scores[p + j] : lanes[j];
        }
    }
    for (uint32_t j = 0; j < WEFT_LANES; j++) {
        max = lanes[j] > max ? lanes[j] : max;
        lanes[j] = 0;
    }
    for (uint32_t p = begin; p < end; p += WEFT_LANES) {
        for (uint32_t j = 0; j < WEFT_LANES; j++) {
            scores[p + j] = weft_exp(scores[p + j] - max);
            lanes[j] += scores[p + j];
        }
    }
    *max_out = max;
    *sum_out = sum_lanes(lanes);
}

static void merge(float *out, const float *piece, uint32_t count, float a, float b)
{
    for (uint32_t i = 0; i < count; i++) {
        out[i] = __builtin_fmaf(out[i], a, piece[i] * b);
    }
}

static void divide(const float *x, uint32_t count, float divisor, float *out)
{
    for (uint32_t i = 0; i < count; i++) {
        out[i] = x[i] / divisor;
    }
}

/* NaN wins and stays: no comparison with it is true. */
static inline float larger(float a, float b)
{
    a = b > a ? b : a;
    return b != b ? b : a;
}

static float max(const float *x, size_t count)
{
    float lanes[WEFT_LANES];
    size_t whole = count - count % WEFT_LANES;

    for (uint32_t j = 0; j < WEFT_LANES; j++) {
        lanes[j] = -INFINITY;
    }
    for (size_t i = 0; i < whole; i += WEFT_LANES) {
        for (uint32_t j = 0; j < WEFT_LANES; j++) {
            lanes[j] = larger(lanes[j], x[i + j]);
        }
    }
    for (size_t j = 0; j < count - whole; j++) {
        lanes[j] = larger(lanes[j], x[whole + j]);
    }
    for (uint32_t width = WEFT_LANES / 2; width > 0; width /= 2) {
        for (uint32_t j = 0; j < width; j++) {
            lanes[j] = larger(lanes[j], lanes[j + width]);
        }
    }
    return lanes[0];
}

static float exp_sum(const float *x, size_t count, float largest, float factor)
{
    float lanes[WEFT_LANES] = {0};
    size_t whole = count - count % WEFT_LANES;

    for (size_t i = 0; i < whole; i += WEFT_LANES) {
        for (uint32_t j = 0; j < WEFT_LANES; j++) {
            lanes[j] += weft_exp((x[i + j] - largest) * factor);
        }
    }
    for (size_t j = 0; j < count - whole; j++) {
        lanes[j] += weft_exp((x[whole + j] - largest) * factor);
    }
    return sum_lanes(lanes);
}

/* Largest magnitude of a block, infinity or NaN when any element is one: as integers, magnitudes order like that. */
static inline float largest_magnitude(const float *x)
{
    uint32_t most = 0;

    for (uint32_t i = 0; i < WEFT_QUANT_BLOCK; i++) {
        uint32_t magnitude = weft_f32_bits(x[i]) & 0x7fffffffU;

        most = magnitude > most ? magnitude : most;
    }
    return weft_f32_from_bits(most);
}

static inline void quantise_x_block(const float *x, int32_t offset, struct weft_cpu_quant_x *block)
{
    float most = largest_magnitude(x);
    float factor = weft_quant_x_factor(most);
    int32_t sum = 0;

    for (uint32_t i = 0; i < WEFT_QUANT_BLOCK; i++) {
        /* Selected by bits: a product with what is not finite has no integer. */
        float product = weft_quant_is_finite(x[i]) ? x[i] * factor : 0.0f;
        int32_t value = weft_quant_round(product);

        block->values[i] = (int8_t)value;
        sum += value;
    }
    block->scale = weft_quant_x_scale(most);
    block->start = -offset * sum;
}

static void quantise_x(const float *x, uint32_t count, int32_t offset, struct weft_cpu_quant_x *blocks)
{
    uint32_t whole = count / WEFT_QUANT_BLOCK;
    uint32_t rest = count % WEFT_QUANT_BLOCK;

    for (uint32_t b = 0; b < whole; b++) {
        quantise_x_block(x + (size_t)b * WEFT_QUANT_BLOCK, offset, &blocks[b]);
    }
    if (rest > 0) {
        float last[WEFT_QUANT_BLOCK] = {0};

        memcpy(last, x + (size_t)whole * WEFT_QUANT_BLOCK, rest * sizeof(*x));
        quantise_x_block(last, offset, &blocks[whole]);
    }
}

static inline void quantise_w(const float *x, float most, float divisor, float low, float high, int8_t *values,
                              uint16_t *scale_out)
{
    uint16_t scale = weft_quant_w_scale(most, divisor);

    for (uint32_t i = 0; i < WEFT_QUANT_BLOCK; i++) {
        values[i] = (int8_t)weft_quant_w_value(x[i], scale, low, high);
    }
    *scale_out = scale;
}

static void quantise_q8_0(const float *x, int8_t *values, uint16_t *scale_out)
{
    quantise_w(x, largest_magnitude(x), 127.0f, -127.0f, 127.0f, values, scale_out);
}

static void quantise_q4_0(const float *x, int8_t *values, uint16_t *scale_out)
{
    uint32_t magnitude = weft_f32_bits(largest_magnitude(x));
    uint32_t most = magnitude;

    for (uint32_t i = WEFT_QUANT_BLOCK; i-- > 0;) { /* the first of equal ones is looked at last */
        uint32_t bits = weft_f32_bits(x[i]);

        most = (bits & 0x7fffffffU) == magnitude ? bits : most;
    }
    quantise_w(x, weft_f32_from_bits(most), -8.0f, -8.0f, 7.0f, values, scale_out);
}

static inline void fill_elementwise(struct weft_cpu_kernels *kernels)
{
    kernels->rms_norm = rms_norm;
    kernels->add = add;
    kernels->add_norm = add_norm;
    kernels->rope = rope;
    kernels->silu_mul = silu_mul;
    kernels->softmax = softmax;
    kernels->merge = merge;
    kernels->divide = divide;
    kernels->max = max;
    kernels->exp_sum = exp_sum;
    kernels->quantise_x = quantise_x;
    kernels->quantise_q8_0 = quantise_q8_0;
    kernels->quantise_q4_0 = quantise_q4_0;
}

#endif
