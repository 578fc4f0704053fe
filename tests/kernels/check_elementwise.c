/* The kernels that are one loop: every length up to a few vectors, misaligned, edge values, and double precision. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "weft/numeric.h"

enum { LENGTH_MAX = 70, LONG_LENGTH = 517 };

typedef void length_check(struct check *check, enum check_values values, uint32_t count);

static void for_lengths(struct check *check, uint32_t shortest, length_check *run)
{
    for (uint32_t count = shortest; count <= LENGTH_MAX; count++) {
        run(check, CHECK_PLAIN, count);
        run(check, CHECK_EDGE, count);
    }
    run(check, CHECK_PLAIN, LONG_LENGTH);
}

/* Buffers of one comparison: inputs a, b, c, and what the level and the reference made. */
struct buffers {
    struct check_buffer a;
    struct check_buffer b;
    struct check_buffer c;
    struct check_buffer found;
    struct check_buffer expected;
};

static struct buffers buffers_begin(struct check *check, enum check_values values, size_t count)
{
    struct buffers buffers = {
        .a = check_floats(count, check_below(check, 16)),
        .b = check_floats(count, check_below(check, 16)),
        .c = check_floats(count, check_below(check, 16)),
        .found = check_floats(count, check_below(check, 16)),
        .expected = check_floats(count, 0),
    };

    check_fill(check, values, buffers.a.data, count);
    check_fill(check, values, buffers.b.data, count);
    check_fill(check, values, buffers.c.data, count);
    memcpy(buffers.found.data, buffers.a.data, count * sizeof(float));
    memcpy(buffers.expected.data, buffers.a.data, count * sizeof(float));
    return buffers;
}

static void buffers_end(struct check *check, struct buffers *buffers, const char *what)
{
    check_buffer_end(check, &buffers->a, what);
    check_buffer_end(check, &buffers->b, what);
    check_buffer_end(check, &buffers->c, what);
    check_buffer_end(check, &buffers->found, what);
    check_buffer_end(check, &buffers->expected, what);
}

/* The reference is compared with double precision once, when it is the level under test. */
static bool is_exact_check(const struct check *check, enum check_values values)
{
    return values == CHECK_PLAIN && check->ref == check->kernels;
}

static void rms_norm_case(struct check *check, enum check_values values, uint32_t count)
{
    struct buffers buffers = buffers_begin(check, values, count);
    const float *x = buffers.a.data;
    const float *weight = buffers.b.data;
    float *found = buffers.found.data;
    float eps = 1e-5f;
    double squares = 0;
    bool has_nan = false;

    check->ref->rms_norm(x, weight, count, eps, buffers.expected.data);
    check->kernels->rms_norm(x, weight, count, eps, found);
    check_same(check, found, buffers.expected.data, count, "rms_norm of %u", count);
    memcpy(found, x, count * sizeof(float));
    check->kernels->rms_norm(found, weight, count, eps, found);
    check_same(check, found, buffers.expected.data, count, "rms_norm in place of %u", count);
    for (uint32_t i = 0; i < count; i++) {
        squares += (double)x[i] * (double)x[i];
        has_nan = has_nan || isnan(x[i]);
    }
    for (uint32_t i = 0; i < count; i++) {
        double exact = (double)x[i] / sqrt(squares / count + (double)eps) * (double)weight[i];

        if (is_exact_check(check, values)) {
            check_near(check, found[i], exact, (count / 16.0 + 12) * CHECK_U * fabs(exact) + CHECK_TINY,
                       "rms_norm of %u", count);
        } else if (has_nan && !isnan(found[i])) {
            check_fail(check, "rms_norm of %u: a NaN is lost at %u", count, i);
        }
    }
    buffers_end(check, &buffers, "rms_norm");
}

void check_rms_norm(struct check *check)
{
    for_lengths(check, 1, rms_norm_case);
}

static void add_case(struct check *check, enum check_values values, uint32_t count)
{
    struct buffers buffers = buffers_begin(check, values, count);
    const float *x = buffers.a.data;
    const float *y = buffers.b.data;

    for (uint32_t i = 0; i < count; i++) { /* single additions: IEEE leaves no choice */
        ((float *)buffers.expected.data)[i] = x[i] + y[i];
    }
    check->kernels->add(buffers.found.data, y, count);
    check_same(check, buffers.found.data, buffers.expected.data, count, "add of %u", count);
    buffers_end(check, &buffers, "add");
}

void check_add(struct check *check)
{
    for_lengths(check, 0, add_case);
}

/* Additions leave IEEE no choice; after them it is the reference's rms_norm, which is checked above. */
static void add_norm_case(struct check *check, enum check_values values, uint32_t count)
{
    struct buffers buffers = buffers_begin(check, values, count);
    struct check_buffer x = check_floats(count, check_below(check, 16));
    const float *y = buffers.b.data;
    const float *weight = buffers.c.data;
    float *sum = buffers.a.data;
    float eps = 1e-5f;

    for (int has_bias = 0; has_bias < 2; has_bias++) {
        const float *bias = has_bias ? weight : NULL; /* what it holds does not matter */

        memcpy(x.data, sum, count * sizeof(float));
        for (uint32_t i = 0; i < count; i++) {
            sum[i] += has_bias ? y[i] + bias[i] : y[i];
        }
        check->ref->rms_norm(sum, weight, count, eps, buffers.expected.data);
        check->kernels->add_norm(x.data, y, bias, weight, count, eps, buffers.found.data);
        check_same(check, x.data, sum, count, "add_norm of %u: x, bias %d", count, has_bias);
        check_same(check, buffers.found.data, buffers.expected.data, count, "add_norm of %u, bias %d", count, has_bias);
    }
    check_buffer_end(check, &x, "add_norm x");
    buffers_end(check, &buffers, "add_norm");
}

void check_add_norm(struct check *check)
{
    for_lengths(check, 1, add_norm_case);
}

static void rope_case(struct check *check, enum check_values values, uint32_t half)
{
    struct buffers buffers = buffers_begin(check, values, 2 * (size_t)half);
    const float *x = buffers.a.data;
    const float *angles = buffers.b.data;
    const float *out = buffers.found.data;

    check->ref->rope(buffers.expected.data, angles, half);
    check->kernels->rope(buffers.found.data, angles, half);
    check_same(check, out, buffers.expected.data, 2 * (size_t)half, "rope of %u pairs", half);
    for (uint32_t i = 0; i < half && is_exact_check(check, values); i++) {
        double a = (double)x[i];
        double b = (double)x[i + half];
        double c = (double)angles[2 * i];
        double s = (double)angles[2 * i + 1];

        check_near(check, out[i], a * c - b * s, 2.01 * CHECK_U * (fabs(a * c) + fabs(b * s)) + 2 * CHECK_TINY,
                   "rope of %u pairs", half);
        check_near(check, out[i + half], b * c + a * s, 2.01 * CHECK_U * (fabs(b * c) + fabs(a * s)) + 2 * CHECK_TINY,
                   "rope of %u pairs", half);
    }
    buffers_end(check, &buffers, "rope");
}

void check_rope(struct check *check)
{
    for_lengths(check, 0, rope_case);
}

static void silu_mul_case(struct check *check, enum check_values values, uint32_t count)
{
    struct buffers buffers = buffers_begin(check, values, count);
    const float *gate = buffers.a.data;
    const float *up = buffers.b.data;
    const float *out = buffers.found.data;
    uint32_t rest = count % WEFT_LANES;
    uint32_t whole = count - rest;
    struct check_buffer pairs =
        check_floats(2 * (size_t)whole + (rest > 0 ? WEFT_LANES + rest : 0), check_below(check, 16));

    for (uint32_t i = 0; i < count; i++) {
        size_t place = (size_t)2 * (i - i % WEFT_LANES) + i % WEFT_LANES;

        ((float *)pairs.data)[place] = gate[i];
        ((float *)pairs.data)[place + WEFT_LANES] = up[i];
    }
    check->ref->silu_mul(pairs.data, count, buffers.expected.data);
    check->kernels->silu_mul(pairs.data, count, buffers.found.data);
    check_buffer_end(check, &pairs, "silu_mul pairs");
    check_same(check, out, buffers.expected.data, count, "silu_mul of %u", count);
    for (uint32_t i = 0; i < count; i++) {
        double exact = (double)gate[i] / (1 + exp(-(double)gate[i])) * (double)up[i];

        if (is_exact_check(check, values)) {
            check_near(check, out[i], exact, 7 * CHECK_U * fabs(exact) + CHECK_TINY, "silu_mul of %a, %a",
                       (double)gate[i], (double)up[i]);
        } else if ((isnan(gate[i]) || isnan(up[i])) && !isnan(out[i])) {
            check_fail(check, "silu_mul of %u: a NaN is lost at %u", count, i);
        }
    }
    buffers_end(check, &buffers, "silu_mul");
}

void check_silu_mul(struct check *check)
{
    for_lengths(check, 0, silu_mul_case);
}

static void softmax_exact(struct check *check, const float *scores, const float *weights, struct weft_range valid,
                          float scale, float max, float sum)
{
    double exact_max = -INFINITY;
    double exact_sum = 0;
    double bound = 0;

    for (uint32_t p = valid.begin; p < valid.end; p++) {
        exact_max = fmax(exact_max, (double)(scores[p] * scale));
    }
    for (uint32_t p = valid.begin; p < valid.end; p++) {
        double score = (double)scores[p] * (double)scale;
        double exact = exp(score - exact_max);
        /* the product and the difference are rounded, exp has 1.01 ulp (2.02 u) */
        double error = exact * CHECK_U * (1.01 * fabs(score) + 1.01 * fabs(score - exact_max) + 2.1) + CHECK_TINY;

        check_near(check, weights[p], exact, error, "softmax weight of score %a", (double)scores[p]);
        exact_sum += exact;
        bound += error;
    }
    check_near(check, max, exact_max, 0, "softmax maximum");
    check_near(check, sum, exact_sum, bound + exact_sum * CHECK_U * (weft_range_count(valid) / 16.0 + 6),
               "softmax sum of %u", weft_range_count(valid));
}

static void softmax_case(struct check *check, enum check_values values, struct weft_range valid)
{
    size_t count = (size_t)(valid.end + 15) / 16 * 16;
    struct buffers buffers = buffers_begin(check, values, count);
    const float *scores = buffers.a.data;
    float *found = buffers.found.data;
    float scale = 0.125f;
    float max[2];
    float sum[2];
    bool has_nan = false;

    check->ref->softmax(buffers.expected.data, valid, scale, &max[0], &sum[0]);
    check->kernels->softmax(found, valid, scale, &max[1], &sum[1]);
    check_same(check, found + valid.begin, (float *)buffers.expected.data + valid.begin, weft_range_count(valid),
               "softmax weights of [%u, %u)", valid.begin, valid.end);
    check_same(check, &max[1], &max[0], 1, "softmax maximum of [%u, %u)", valid.begin, valid.end);
    check_same(check, &sum[1], &sum[0], 1, "softmax sum of [%u, %u)", valid.begin, valid.end);
    if (is_exact_check(check, values)) {
        softmax_exact(check, scores, found, valid, scale, max[1], sum[1]);
    }
    for (uint32_t p = valid.begin; p < valid.end; p++) {
        has_nan = has_nan || isnan(scores[p]);
    }
    if (has_nan && !isnan(sum[1])) {
        check_fail(check, "softmax of [%u, %u): a NaN is lost", valid.begin, valid.end);
    }
    /* What lies outside the valid range does not matter. */
    memcpy(found, scores, count * sizeof(float));
    for (uint32_t p = 0; p < count; p++) {
        found[p] = p >= valid.begin && p < valid.end ? scores[p] : NAN;
    }
    check->kernels->softmax(found, valid, scale, &max[1], &sum[1]);
    check_same(check, &sum[1], &sum[0], 1, "softmax sum of [%u, %u) among NaN", valid.begin, valid.end);
    buffers_end(check, &buffers, "softmax");
}

void check_softmax(struct check *check)
{
    for (uint32_t begin = 0; begin <= 34; begin++) {
        for (uint32_t end = begin + 1; end <= LENGTH_MAX; end += 1 + check_below(check, 4)) {
            softmax_case(check, CHECK_PLAIN, (struct weft_range){begin, end});
            softmax_case(check, CHECK_EDGE, (struct weft_range){begin, end});
        }
    }
    softmax_case(check, CHECK_PLAIN, (struct weft_range){0, 256});
}

static void merge_case(struct check *check, enum check_values values, uint32_t count)
{
    struct buffers buffers = buffers_begin(check, values, count);
    const float *x = buffers.a.data;
    const float *piece = buffers.b.data;
    float a = check_value(check, values);
    float b = check_value(check, values);

    check->ref->merge(buffers.expected.data, piece, count, a, b);
    check->kernels->merge(buffers.found.data, piece, count, a, b);
    check_same(check, buffers.found.data, buffers.expected.data, count, "merge of %u", count);
    for (uint32_t i = 0; i < count && is_exact_check(check, values); i++) {
        double left = (double)x[i] * (double)a;
        double right = (double)piece[i] * (double)b;

        check_near(check, ((float *)buffers.found.data)[i], left + right,
                   2.01 * CHECK_U * (fabs(left) + fabs(right)) + 2 * CHECK_TINY, "merge of %u", count);
    }
    buffers_end(check, &buffers, "merge");
}

void check_merge(struct check *check)
{
    for_lengths(check, 0, merge_case);
}

static void divide_case(struct check *check, enum check_values values, uint32_t count)
{
    struct buffers buffers = buffers_begin(check, values, count);
    const float *x = buffers.a.data;
    float divisor = check_value(check, values);

    for (uint32_t i = 0; i < count; i++) { /* one division: IEEE leaves no choice */
        ((float *)buffers.expected.data)[i] = x[i] / divisor;
    }
    check->kernels->divide(x, count, divisor, buffers.found.data);
    check_same(check, buffers.found.data, buffers.expected.data, count, "divide of %u", count);
    buffers_end(check, &buffers, "divide");
}

void check_divide(struct check *check)
{
    for_lengths(check, 0, divide_case);
}

static void max_case(struct check *check, enum check_values values, uint32_t count)
{
    struct buffers buffers = buffers_begin(check, values, count);
    const float *x = buffers.a.data;
    float expected = check->ref->max(x, count);
    float found = check->kernels->max(x, count);
    float naive = -INFINITY;

    check_same(check, &found, &expected, 1, "max of %u", count);
    for (uint32_t i = 0; i < count; i++) {
        naive = isnan(naive) || isnan(x[i]) ? NAN : fmaxf(naive, x[i]);
    }
    if (isnan(found) ? !isnan(naive) : found != naive) {
        check_fail(check, "max of %u: %a, expected %a", count, (double)found, (double)naive);
    }
    buffers_end(check, &buffers, "max");
}

void check_max(struct check *check)
{
    for_lengths(check, 0, max_case);
    for (uint32_t count = 1; count <= LENGTH_MAX; count++) { /* a NaN anywhere wins */
        float x[LENGTH_MAX];
        float found;

        check_fill(check, CHECK_PLAIN, x, count);
        x[check_below(check, count)] = NAN;
        found = check->kernels->max(x, count);
        check_same(check, &found, &(float){NAN}, 1, "max of %u with a NaN", count);
    }
}

static void exp_sum_case(struct check *check, enum check_values values, uint32_t count)
{
    struct buffers buffers = buffers_begin(check, values, count);
    const float *x = buffers.a.data;
    float factor = 1.25f;
    float max = check->ref->max(x, count);
    float expected = check->ref->exp_sum(x, count, max, factor);
    float found = check->kernels->exp_sum(x, count, max, factor);
    double exact = 0;
    double bound = 0;

    check_same(check, &found, &expected, 1, "exp_sum of %u", count);
    if (is_exact_check(check, values)) {
        for (uint32_t i = 0; i < count; i++) {
            double power = ((double)x[i] - (double)max) * (double)factor;

            exact += exp(power);
            bound += exp(power) * CHECK_U * (2.01 * fabs(power) + 2.1);
        }
        check_near(check, found, exact, bound + exact * CHECK_U * (count / 16.0 + 6), "exp_sum of %u", count);
    } else if (isnan(max) && !isnan(found)) {
        check_fail(check, "exp_sum of %u: a NaN is lost", count);
    }
    buffers_end(check, &buffers, "exp_sum");
}

void check_exp_sum(struct check *check)
{
    for_lengths(check, 0, exp_sum_case);
}
