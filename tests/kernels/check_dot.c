/* The dot kernels: every shape of a call, every tail, misaligned inputs, against the reference and double precision. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "weft/numeric.h"

/* How a panel format stores one element. */
struct format {
    const char *name;
    size_t column_size; /* bytes per column */
    bool is_pairs;
    void (*put)(void *panel, uint32_t column, uint32_t lane, float value);
    float (*get)(const void *panel, uint32_t column, uint32_t lane);
};

static void put_f32(void *panel, uint32_t column, uint32_t lane, float value)
{
    ((float *)panel)[column * WEFT_LANES + lane] = value;
}

static float get_f32(const void *panel, uint32_t column, uint32_t lane)
{
    return ((const float *)panel)[column * WEFT_LANES + lane];
}

static void put_f16(void *panel, uint32_t column, uint32_t lane, float value)
{
    ((uint16_t *)panel)[column * WEFT_LANES + lane] = weft_f32_to_f16(value);
}

static float get_f16(const void *panel, uint32_t column, uint32_t lane)
{
    return weft_f16_to_f32(((const uint16_t *)panel)[column * WEFT_LANES + lane]);
}

static void put_bf16(void *panel, uint32_t column, uint32_t lane, float value)
{
    ((uint16_t *)panel)[column * WEFT_LANES + lane] = weft_f32_to_bf16(value);
}

static float get_bf16(const void *panel, uint32_t column, uint32_t lane)
{
    return weft_bf16_to_f32(((const uint16_t *)panel)[column * WEFT_LANES + lane]);
}

static void put_pairs(void *panel, uint32_t column, uint32_t lane, float value)
{
    ((uint16_t *)panel)[(column / 2 * WEFT_LANES + lane) * 2 + column % 2] = weft_f32_to_bf16(value);
}

static float get_pairs(const void *panel, uint32_t column, uint32_t lane)
{
    return weft_bf16_to_f32(((const uint16_t *)panel)[(column / 2 * WEFT_LANES + lane) * 2 + column % 2]);
}

static const struct format f32_format = {"dot_f32", 64, false, put_f32, get_f32};
static const struct format f16_format = {"dot_f16", 32, false, put_f16, get_f16};
static const struct format bf16_format = {"dot_bf16", 32, false, put_bf16, get_bf16};
static const struct format pairs_format = {"dot_bf16_pairs", 32, true, put_pairs, get_pairs};

/* One call: inputs in buffers of exactly the size the contract grants. */
struct call {
    struct weft_cpu_dot args;
    const void *panels[WEFT_DOT_PANELS_MAX];
    const float *x[WEFT_DOT_VECTORS_MAX];
    struct check_buffer panel_buffers[WEFT_DOT_PANELS_MAX];
    struct check_buffer x_buffers[WEFT_DOT_VECTORS_MAX];
};

/* The unused half of an odd last pair is NaN: whoever uses it is found out. */
static void poison_last_pair(const struct format *format, struct call *call, uint32_t col_count)
{
    for (uint32_t p = 0; format->is_pairs && col_count % 2 != 0 && p < call->args.panel_count; p++) {
        for (uint32_t i = 0; i < WEFT_LANES; i++) {
            format->put(call->panel_buffers[p].data, col_count, i, NAN);
        }
    }
}

static void call_begin(struct check *check, const struct format *format, enum check_values values, struct call *call)
{
    uint32_t col_count = call->args.col_count;
    uint32_t stored_count = format->is_pairs ? col_count + col_count % 2 : col_count;

    call->args.panels = call->panels;
    call->args.x = call->x;
    for (uint32_t p = 0; p < call->args.panel_count; p++) {
        call->panel_buffers[p] = check_buffer(stored_count * format->column_size, 4 * (size_t)check_below(check, 16));
        call->panels[p] = call->panel_buffers[p].data;
        for (uint32_t i = 0; i < col_count * WEFT_LANES; i++) {
            format->put(call->panel_buffers[p].data, i / WEFT_LANES, i % WEFT_LANES, check_value(check, values));
        }
    }
    poison_last_pair(format, call, col_count);
    for (uint32_t v = 0; v < call->args.vector_count; v++) {
        call->x_buffers[v] = check_floats(col_count, check_below(check, 16));
        call->x[v] = call->x_buffers[v].data;
        check_fill(check, values, call->x_buffers[v].data, col_count);
    }
}

static void call_end(struct check *check, struct call *call)
{
    for (uint32_t p = 0; p < call->args.panel_count; p++) {
        check_buffer_end(check, &call->panel_buffers[p], "dot panel");
    }
    for (uint32_t v = 0; v < call->args.vector_count; v++) {
        check_buffer_end(check, &call->x_buffers[v], "dot vector");
    }
}

/* Recursive summation with one rounding per step: |error| <= n u sum |w x|, plus what denormal results round away. */
static void check_exact(struct check *check, const struct format *format, const struct call *call, const float *out,
                        const float *start)
{
    const struct weft_cpu_dot *args = &call->args;

    for (uint32_t i = 0; i < args->vector_count * args->panel_count * WEFT_LANES; i++) {
        uint32_t v = i / (args->panel_count * WEFT_LANES);
        uint32_t row = i % (args->panel_count * WEFT_LANES);
        double exact = args->is_continued ? (double)start[v * args->out_stride + row] : 0.0;
        double size = fabs(exact);

        for (uint32_t k = 0; k < args->col_count; k++) {
            double product =
                (double)format->get(call->panels[row / WEFT_LANES], k, row % WEFT_LANES) * (double)call->x[v][k];

            exact += product;
            size += fabs(product);
        }
        check_near(check, out[v * args->out_stride + row], exact,
                   args->col_count * (CHECK_U * 1.0001 * size + CHECK_TINY), "%s against double, %u columns",
                   format->name, args->col_count);
    }
}

static void check_call(struct check *check, const struct format *format, weft_cpu_dot_fn *ref, weft_cpu_dot_fn *dot,
                       enum check_values values, struct weft_cpu_dot shape)
{
    struct call call = {.args = shape};
    size_t width = (size_t)shape.panel_count * WEFT_LANES;
    size_t count;
    struct check_buffer start;
    struct check_buffer found;
    struct check_buffer expected;

    call.args.out_stride = width + check_below(check, 3);
    count = call.args.out_stride * (shape.vector_count - 1) + width;
    start = check_floats(count, 0);
    found = check_floats(count, check_below(check, 16));
    expected = check_floats(count, 0);
    call_begin(check, format, values, &call);
    check_fill(check, values, start.data, count);
    memcpy(found.data, start.data, count * sizeof(float));
    memcpy(expected.data, start.data, count * sizeof(float));
    call.args.out = expected.data;
    ref(&call.args);
    call.args.out = found.data;
    dot(&call.args);
    check_same(check, found.data, expected.data, count, "%s: %u panels, %u vectors, %u columns, continued %d",
               format->name, shape.panel_count, shape.vector_count, shape.col_count, shape.is_continued);
    if (values == CHECK_PLAIN && ref == dot) {
        check_exact(check, format, &call, expected.data, start.data);
    }
    call_end(check, &call);
    check_buffer_end(check, &start, format->name);
    check_buffer_end(check, &found, format->name);
    check_buffer_end(check, &expected, format->name);
}

/* A NaN in a vector reaches every row of that vector, a NaN in a panel every vector of that row, and nothing else. */
static void check_nan(struct check *check, const struct format *format, weft_cpu_dot_fn *dot, uint32_t col_count)
{
    struct call call = {.args = {.panel_count = 2, .vector_count = 3, .col_count = col_count, .out_stride = 32}};
    float out[3 * 32];

    call_begin(check, format, CHECK_PLAIN, &call);
    ((float *)call.x_buffers[1].data)[col_count - 1] = NAN;
    format->put(call.panel_buffers[1].data, 0, 5, NAN);
    call.args.out = out;
    dot(&call.args);
    for (uint32_t i = 0; i < 3 * 32; i++) {
        check->compared_count++;
        if (isnan(out[i]) != (i / 32 == 1 || i % 32 == 21)) {
            check_fail(check, "%s: NaN %s output %u, %u columns", format->name, isnan(out[i]) ? "in" : "missing in", i,
                       col_count);
        }
    }
    call_end(check, &call);
}

static void check_dot(struct check *check, const struct format *format, weft_cpu_dot_fn *ref, weft_cpu_dot_fn *dot)
{
    static const uint32_t long_counts[] = {64, 127, 130, 513};
    struct weft_cpu_dot shape = {0};

    for (shape.panel_count = 1; shape.panel_count <= WEFT_DOT_PANELS_MAX; shape.panel_count++) {
        for (shape.vector_count = 1; shape.vector_count <= WEFT_DOT_VECTORS_MAX; shape.vector_count++) {
            for (shape.col_count = 0; shape.col_count <= 18; shape.col_count++) {
                shape.is_continued = check_below(check, 2) == 0;
                check_call(check, format, ref, dot, CHECK_PLAIN, shape);
                check_call(check, format, ref, dot, CHECK_EDGE, shape);
            }
        }
    }
    for (uint32_t i = 0; i < 4; i++) {
        shape = (struct weft_cpu_dot){.panel_count = 1 + check_below(check, WEFT_DOT_PANELS_MAX),
                                      .vector_count = 1 + check_below(check, WEFT_DOT_VECTORS_MAX),
                                      .col_count = long_counts[i]};
        check_call(check, format, ref, dot, CHECK_PLAIN, shape);
    }
    check_nan(check, format, dot, 1);
    check_nan(check, format, dot, 16);
    check_nan(check, format, dot, 33);
}

void check_dot_f32(struct check *check)
{
    check_dot(check, &f32_format, check->ref->dot_f32, check->kernels->dot_f32);
}

void check_dot_f16(struct check *check)
{
    check_dot(check, &f16_format, check->ref->dot_f16, check->kernels->dot_f16);
}

void check_dot_bf16(struct check *check)
{
    check_dot(check, &bf16_format, check->ref->dot_bf16, check->kernels->dot_bf16);
}

void check_dot_bf16_pairs(struct check *check)
{
    check_dot(check, &pairs_format, check->ref->dot_bf16_pairs, check->kernels->dot_bf16_pairs);
}
