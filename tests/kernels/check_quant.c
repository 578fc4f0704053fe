/* The kernels of quantised weights: every shape of a call against the reference, the reference against the model. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/kernels.h"
#include "model_quant.h"
#include "weft/numeric.h"

/* ---- quantising ---- */

static float as_float(int32_t value)
{
    return (float)value;
}

/* Compares blocks as floats: values, scale, and what start must be. */
static void compare_x(struct check *check, const struct weft_cpu_quant_x *block, const float *x, uint32_t count,
                      int32_t offset, uint32_t column_count)
{
    int8_t values[MODEL_BLOCK];
    float scale;
    int32_t sum = 0;

    model_quant_activations(x, count, values, &scale);
    for (uint32_t i = 0; i < MODEL_BLOCK; i++) {
        float found = as_float(block->values[i]);
        float expected = as_float(values[i]);

        sum += values[i];
        check_same(check, &found, &expected, 1, "quantise_x: %u columns, value %u of a block", column_count, i);
    }
    check_same(check, &block->scale, &scale, 1, "quantise_x: %u columns, scale", column_count);
    check_same(check, &(float){as_float(block->start)}, &(float){as_float(-offset * sum)}, 1,
               "quantise_x: %u columns, start", column_count);
}

void check_quantise_x(struct check *check)
{
    for (uint32_t count = 0; count <= 300; count += 1 + count / 70) {
        uint32_t block_count = (count + MODEL_BLOCK - 1) / MODEL_BLOCK;
        int32_t offset = check_below(check, 2) == 0 ? 8 : 128;
        struct check_buffer x = check_floats(count, check_below(check, 16));
        struct check_buffer blocks =
            check_buffer(block_count * sizeof(struct weft_cpu_quant_x), 4 * (size_t)check_below(check, 16));

        model_quant_fill(check, x.data, count);
        check->kernels->quantise_x(x.data, count, offset, blocks.data);
        for (uint32_t b = 0; b < block_count; b++) {
            uint32_t rest = count - b * MODEL_BLOCK;

            compare_x(check, (struct weft_cpu_quant_x *)blocks.data + b, (float *)x.data + (size_t)b * MODEL_BLOCK,
                      rest < MODEL_BLOCK ? rest : MODEL_BLOCK, offset, count);
        }
        check_buffer_end(check, &x, "quantise_x in");
        check_buffer_end(check, &blocks, "quantise_x out");
    }
}

static void check_weights(struct check *check, enum weft_dtype dtype,
                          void (*quantise)(const float *x, int8_t *values, uint16_t *scale_out))
{
    for (uint32_t i = 0; i < 2000; i++) {
        struct check_buffer x = check_floats(MODEL_BLOCK, check_below(check, 16));
        struct check_buffer values = check_buffer(MODEL_BLOCK, check_below(check, 16));
        int8_t model_values[MODEL_BLOCK];
        float model_scale;
        uint16_t bits;
        float scale;

        model_quant_fill(check, x.data, MODEL_BLOCK);
        quantise(x.data, values.data, &bits);
        model_quant_weights(dtype, x.data, MODEL_BLOCK, model_values, &model_scale);
        scale = weft_f16_to_f32(bits);
        check_same(check, &scale, &model_scale, 1, "quantise_%s: scale of block %u", weft_dtype_name(dtype), i);
        for (uint32_t k = 0; k < MODEL_BLOCK; k++) {
            float found = as_float(((int8_t *)values.data)[k]);
            float expected = as_float(model_values[k]);

            check_same(check, &found, &expected, 1, "quantise_%s: value %u of block %u", weft_dtype_name(dtype), k, i);
        }
        check_buffer_end(check, &x, "quantise in");
        check_buffer_end(check, &values, "quantise out");
    }
}

void check_quantise_q8_0(struct check *check)
{
    check_weights(check, WEFT_Q8_0, check->kernels->quantise_q8_0);
}

void check_quantise_q4_0(struct check *check)
{
    check_weights(check, WEFT_Q4_0, check->kernels->quantise_q4_0);
}

/* ---- dot ---- */

/* The layout of kernels.h, in numbers of its own. */
enum { LANES = 16, CHUNK = 16 };

static size_t chunk_size(enum weft_dtype dtype, uint32_t block_count)
{
    return (block_count * 32 + 63) / 64 * 64 + (size_t)block_count * (dtype == WEFT_Q8_0 ? 512 : 256);
}

struct place {
    size_t chunk; /* bytes from the start of the leaf */
    uint32_t chunk_blocks;
    uint32_t block; /* inside the chunk */
};

/* Of block `index` of a leaf; index block_count: where the leaf ends. */
static struct place place_of(enum weft_dtype dtype, uint32_t block_count, uint32_t index)
{
    uint32_t chunk_count = block_count <= CHUNK ? 1 : (block_count + CHUNK - 1) / CHUNK;
    struct place place = {0};
    uint32_t begin = 0;

    for (uint32_t i = 0; i < chunk_count; i++) {
        uint32_t end = block_count * (i + 1) / chunk_count;

        place.chunk_blocks = end - begin;
        place.block = index - begin;
        if (index < end) {
            return place;
        }
        place.chunk += chunk_size(dtype, end - begin);
        begin = end;
    }
    return place;
}

static uint16_t *scale_at(unsigned char *panel, enum weft_dtype dtype, uint32_t block_count, uint32_t b, uint32_t lane)
{
    struct place place = place_of(dtype, block_count, b);

    return (uint16_t *)(panel + place.chunk) + (size_t)place.block * LANES + lane;
}

static int8_t value_at(const unsigned char *panel, enum weft_dtype dtype, uint32_t block_count, uint32_t column,
                       uint32_t lane)
{
    struct place place = place_of(dtype, block_count, column / MODEL_BLOCK);
    const unsigned char *values = panel + place.chunk + (place.chunk_blocks * 32 + 63) / 64 * 64;
    uint32_t k = column % MODEL_BLOCK;

    if (dtype == WEFT_Q8_0) {
        return (int8_t)(values[(size_t)place.block * 512 + k / 4 * 64 + lane * 4 + k % 4] - 128);
    }
    values += (size_t)place.block * 256 + k / 8 * 64 + lane * 4 + k % 4;
    return (int8_t)((k / 4 % 2 == 0 ? *values & 15 : *values >> 4) - 8);
}

static const uint16_t edge_scales[] = {0, 0x8000, 1, 0x8001, 0x3ff, 0x7bff, 0xfbff, 0x7e00};

static void fill_panel(struct check *check, enum weft_dtype dtype, struct check_buffer *panel, uint32_t block_count)
{
    for (size_t i = 0; i < panel->size; i++) {
        ((unsigned char *)panel->data)[i] = (unsigned char)check_below(check, 256);
    }
    for (uint32_t i = 0; i < block_count * LANES; i++) {
        float scale = check_value(check, CHECK_PLAIN) * 0x1p-4f;
        bool is_edge = check_below(check, 40) == 0;

        *scale_at(panel->data, dtype, block_count, i / LANES, i % LANES) =
            is_edge ? edge_scales[check_below(check, 8)] : weft_f32_to_f16(scale);
    }
}

/* Everything one call reads. */
struct call {
    struct weft_cpu_dot_quant args;
    struct check_buffer panel_buffers[WEFT_DOT_PANELS_MAX];
    struct check_buffer x_buffers[WEFT_DOT_VECTORS_MAX];
    const void *panels[WEFT_DOT_PANELS_MAX];
    const struct weft_cpu_quant_x *x[WEFT_DOT_VECTORS_MAX];
};

static void fill_x(struct check *check, int32_t offset, uint32_t block_count, struct weft_cpu_quant_x *blocks)
{
    float *x = malloc((size_t)block_count * MODEL_BLOCK * sizeof(*x) + 1);

    if (check_below(check, 3) == 0) {
        model_quant_fill(check, x, (size_t)block_count * MODEL_BLOCK);
    } else {
        check_fill(check, CHECK_PLAIN, x, (size_t)block_count * MODEL_BLOCK);
    }
    check->ref->quantise_x(x, block_count * MODEL_BLOCK, offset, blocks);
    for (uint32_t i = 0; i < MODEL_BLOCK && block_count > 0; i++) { /* the largest sums that there can be */
        blocks[0].values[i] = check_below(check, 30) == 0 ? blocks[0].values[i] : 127;
    }
    for (uint32_t b = 0; b < block_count; b++) {
        int32_t sum = 0;

        for (uint32_t i = 0; i < MODEL_BLOCK; i++) {
            sum += blocks[b].values[i];
        }
        blocks[b].start = -offset * sum;
    }
    free(x);
}

static void call_begin(struct check *check, enum weft_dtype dtype, struct call *call)
{
    uint32_t block_count = call->args.block_count;

    call->args.panels = call->panels;
    call->args.x = call->x;
    for (uint32_t p = 0; p < call->args.panel_count; p++) {
        call->panel_buffers[p] = check_buffer(place_of(dtype, block_count, block_count).chunk, 0);
        call->panels[p] = call->panel_buffers[p].data;
        fill_panel(check, dtype, &call->panel_buffers[p], block_count);
    }
    for (uint32_t v = 0; v < call->args.vector_count; v++) {
        call->x_buffers[v] =
            check_buffer(block_count * sizeof(struct weft_cpu_quant_x), 4 * (size_t)check_below(check, 16));
        call->x[v] = call->x_buffers[v].data;
        fill_x(check, dtype == WEFT_Q8_0 ? 128 : 8, block_count, call->x_buffers[v].data);
    }
}

static void call_end(struct check *check, struct call *call)
{
    for (uint32_t p = 0; p < call->args.panel_count; p++) {
        check_buffer_end(check, &call->panel_buffers[p], "quantised panel");
    }
    for (uint32_t v = 0; v < call->args.vector_count; v++) {
        check_buffer_end(check, &call->x_buffers[v], "quantised vector");
    }
}

/* One output from the panel's bytes. */
static float model_output(enum weft_dtype dtype, const struct call *call, uint32_t vector, uint32_t row)
{
    uint32_t block_count = call->args.block_count;
    unsigned char *panel = call->panel_buffers[row / LANES].data;
    int8_t *weights = malloc((size_t)block_count * MODEL_BLOCK + 1);
    int8_t *x = malloc((size_t)block_count * MODEL_BLOCK + 1);
    float *scales = malloc((size_t)block_count * sizeof(*scales) + 1);
    float *x_scales = malloc((size_t)block_count * sizeof(*scales) + 1);
    float sum;

    for (uint32_t k = 0; k < block_count * MODEL_BLOCK; k++) {
        weights[k] = value_at(panel, dtype, block_count, k, row % LANES);
        x[k] = call->x[vector][k / MODEL_BLOCK].values[k % MODEL_BLOCK];
    }
    for (uint32_t b = 0; b < block_count; b++) {
        scales[b] = weft_f16_to_f32(*scale_at(panel, dtype, block_count, b, row % LANES));
        x_scales[b] = call->x[vector][b].scale;
    }
    sum = model_quant_leaf(weights, scales, x, x_scales, block_count);
    free(weights);
    free(x);
    free(scales);
    free(x_scales);
    return sum;
}

static void check_call(struct check *check, enum weft_dtype dtype, weft_cpu_dot_quant_fn *ref,
                       weft_cpu_dot_quant_fn *dot, struct weft_cpu_dot_quant shape)
{
    struct call call = {.args = shape};
    size_t width = (size_t)shape.panel_count * LANES;
    size_t stride = width + check_below(check, 3);
    size_t count = stride * (shape.vector_count - 1) + width;
    struct check_buffer found = check_floats(count, check_below(check, 16));
    struct check_buffer expected = check_floats(count, 0);

    call.args.out_stride = stride;
    call_begin(check, dtype, &call);
    check_fill(check, CHECK_PLAIN, found.data, count);
    memcpy(expected.data, found.data, count * sizeof(float));
    call.args.out = expected.data;
    if (ref != dot) {
        ref(&call.args);
    } else {
        for (uint32_t i = 0; i < shape.vector_count * width; i++) {
            ((float *)expected.data)[i / width * stride + i % width] =
                model_output(dtype, &call, i / (uint32_t)width, i % (uint32_t)width);
        }
    }
    call.args.out = found.data;
    dot(&call.args);
    check_same(check, found.data, expected.data, count, "dot_%s: %u panels, %u vectors, %u blocks",
               weft_dtype_name(dtype), shape.panel_count, shape.vector_count, shape.block_count);
    call_end(check, &call);
    check_buffer_end(check, &found, "dot of a quantised panel");
    check_buffer_end(check, &expected, "dot of a quantised panel");
}

static void check_dot(struct check *check, enum weft_dtype dtype, weft_cpu_dot_quant_fn *ref,
                      weft_cpu_dot_quant_fn *dot)
{
    static const uint32_t counts[] = {0, 1, 2, 3, 16, 17, 31, 33, 50};
    struct weft_cpu_dot_quant shape = {0};

    for (shape.panel_count = 1; shape.panel_count <= WEFT_DOT_PANELS_MAX; shape.panel_count++) {
        for (shape.vector_count = 1; shape.vector_count <= WEFT_DOT_VECTORS_MAX; shape.vector_count++) {
            for (uint32_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
                shape.block_count = counts[i];
                shape.is_stream = i % 2 == 0;
                check_call(check, dtype, ref, dot, shape);
            }
        }
    }
}

void check_dot_q8_0(struct check *check)
{
    check_dot(check, WEFT_Q8_0, check->ref->dot_q8_0, check->kernels->dot_q8_0);
}

void check_dot_q4_0(struct check *check)
{
    check_dot(check, WEFT_Q4_0, check->ref->dot_q4_0, check->kernels->dot_q4_0);
}
