/* The naive model of weft/quant.h. */
#include "model_quant.h"

#include <math.h>
#include <string.h>

#include "weft/numeric.h"

enum kind { PLAIN, EDGE, ZERO, NEGATIVE, TIES_127, TIES_8, EQUAL, SPARSE, DENORMAL, HUGE_VALUES, KIND_COUNT };

static float special(struct check *check, enum kind kind, uint32_t i)
{
    float value = check_value(check, kind == EDGE ? CHECK_EDGE : CHECK_PLAIN);
    float half = (float)((int32_t)check_below(check, 17) - 8) + 0.5f; /* -7.5 .. 8.5 */

    switch (kind) {
    case ZERO: return check_below(check, 2) == 0 ? 0.0f : -0.0f;
    case NEGATIVE: return -fabsf(value) - 0x1p-20f;
    case TIES_127: return i == 7 ? -127.0f * 0x1p-4f : half * 0x1p-4f; /* steps of 2^-4 */
    case TIES_8: return i == 7 ? -8.0f * 0x1p-3f : fminf(half, 7.5f) * 0x1p-3f;
    case EQUAL: return check_below(check, 2) == 0 ? 0.625f : -0.625f;
    case SPARSE: return i == 30 ? value : 0.0f;
    case DENORMAL: return value * 0x1p-126f;
    case HUGE_VALUES: return value * 0x1p+125f;
    case PLAIN:
    case EDGE:
    case KIND_COUNT: break;
    }
    return value;
}

void model_quant_fill(struct check *check, float *x, size_t count)
{
    enum kind kind = PLAIN;

    for (size_t i = 0; i < count; i++) {
        if (i % MODEL_BLOCK == 0) { /* special ones must not make all sums NaN */
            kind = check_below(check, 3) == 0 ? (enum kind)check_below(check, KIND_COUNT) : PLAIN;
            kind = kind == EDGE && check_below(check, 4) > 0 ? ZERO : kind;
        }
        x[i] = special(check, kind, i % MODEL_BLOCK);
    }
}

/* First element of largest magnitude; whether all are finite. */
static bool find_most(const float *x, uint32_t count, float *most_out)
{
    *most_out = count > 0 ? x[0] : 0.0f;
    for (uint32_t i = 0; i < count; i++) {
        if (!isfinite(x[i])) {
            return false;
        }
        *most_out = fabsf(x[i]) > fabsf(*most_out) ? x[i] : *most_out;
    }
    return true;
}

void model_quant_weights(enum weft_dtype dtype, const float *x, uint32_t count, int8_t *values, float *scale_out)
{
    double low = dtype == WEFT_Q8_0 ? -127 : -8;
    double high = dtype == WEFT_Q8_0 ? 127 : 7;
    float most;
    float scale;

    memset(values, 0, MODEL_BLOCK);
    *scale_out = NAN;
    if (!find_most(x, count, &most)) {
        return;
    }
    scale = weft_f16_to_f32(weft_f32_to_f16(dtype == WEFT_Q8_0 ? fabsf(most) / 127 : most / -8));
    *scale_out = isinf(scale) ? copysignf(65504, scale) : scale;
    for (uint32_t i = 0; i < count && *scale_out != 0; i++) {
        float quotient = x[i] / *scale_out;

        values[i] = (int8_t)rint(fmax(low, fmin(high, (double)quotient)));
    }
}

void model_quant_activations(const float *x, uint32_t count, int8_t *values, float *scale_out)
{
    float most;

    memset(values, 0, MODEL_BLOCK);
    *scale_out = NAN;
    if (!find_most(x, count, &most)) {
        return;
    }
    most = fabsf(most);
    *scale_out = 0;
    if (most < 0x1p-100f) {
        return;
    }
    *scale_out = most / 127;
    for (uint32_t i = 0; i < count; i++) {
        float product = x[i] * (127 / most);

        values[i] = (int8_t)rint((double)product);
    }
}

float model_quant_leaf(const int8_t *weights, const float *weight_scales, const int8_t *x, const float *x_scales,
                       uint32_t block_count)
{
    uint32_t chunk_count = block_count <= 16 ? 1 : (block_count + 15) / 16;
    float sum = 0;

    for (uint32_t chunk = 0; chunk < chunk_count; chunk++) {
        float part = 0;

        for (uint32_t b = block_count * chunk / chunk_count; b < block_count * (chunk + 1) / chunk_count; b++) {
            float scale = weight_scales[b] * x_scales[b];
            int dot = 0;

            for (uint32_t k = b * MODEL_BLOCK; k < (b + 1) * MODEL_BLOCK; k++) {
                dot += weights[k] * x[k];
            }
            part = fmaf((float)dot, scale, part);
        }
        sum = chunk == 0 ? part : sum + part;
    }
    return sum;
}
