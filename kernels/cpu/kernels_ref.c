/*
 * The reference level: the specification of every kernel, in C that runs anywhere. Slow where the CPU has no fused
 * multiply-add instruction in the baseline (libm's fmaf is exact, a call each).
 */
#include "cpu/elementwise.h"
#include "cpu/f8_pairs.h"
#include "cpu/quant_panel.h"

static float element_f32(const void *panel, uint32_t column, uint32_t lane)
{
    return ((const float *)panel)[(size_t)column * WEFT_LANES + lane];
}

static float element_f16(const void *panel, uint32_t column, uint32_t lane)
{
    return weft_f16_to_f32(((const uint16_t *)panel)[(size_t)column * WEFT_LANES + lane]);
}

static float element_bf16(const void *panel, uint32_t column, uint32_t lane)
{
    return weft_bf16_to_f32(((const uint16_t *)panel)[(size_t)column * WEFT_LANES + lane]);
}

static float element_bf16_pairs(const void *panel, uint32_t column, uint32_t lane)
{
    uint32_t pair = ((const uint32_t *)panel)[(size_t)(column / 2) * WEFT_LANES + lane];

    return weft_bf16_to_f32((uint16_t)(column % 2 == 0 ? pair : pair >> 16));
}

typedef float element_fn(const void *panel, uint32_t column, uint32_t lane);

static inline void dot(const struct weft_cpu_dot *args, element_fn *element)
{
    for (uint32_t v = 0; v < args->vector_count; v++) {
        for (uint32_t p = 0; p < args->panel_count; p++) {
            for (uint32_t i = 0; i < WEFT_LANES; i++) {
                float *out = args->out + v * args->out_stride + (size_t)p * WEFT_LANES + i;
                float sum = args->is_continued ? *out : 0.0f;

                for (uint32_t k = 0; k < args->col_count; k++) {
                    sum = __builtin_fmaf(element(args->panels[p], k, i), args->x[v][k], sum);
                }
                *out = sum;
            }
        }
    }
}

static void dot_f32_ref(const struct weft_cpu_dot *args)
{
    dot(args, element_f32);
}

static void dot_f16_ref(const struct weft_cpu_dot *args)
{
    dot(args, element_f16);
}

static void dot_bf16_ref(const struct weft_cpu_dot *args)
{
    dot(args, element_bf16);
}

static void dot_bf16_pairs_ref(const struct weft_cpu_dot *args)
{
    dot(args, element_bf16_pairs);
}

/* Value + offset of one weight; `values` is where its block begins. */
static int32_t value_q8_0(const uint8_t *values, uint32_t column, uint32_t lane)
{
    return values[column / WEFT_QUANT_QUAD * WEFT_QUANT_QUAD_SIZE + lane * WEFT_QUANT_QUAD + column % WEFT_QUANT_QUAD];
}

static int32_t value_q4_0(const uint8_t *values, uint32_t column, uint32_t lane)
{
    uint32_t quad = column / WEFT_QUANT_QUAD;
    uint8_t pair = values[quad / 2 * WEFT_QUANT_QUAD_SIZE + lane * WEFT_QUANT_QUAD + column % WEFT_QUANT_QUAD];

    return quad % 2 == 0 ? pair & 0xf : pair >> 4;
}

typedef int32_t value_fn(const uint8_t *values, uint32_t column, uint32_t lane);

/* One chunk of block_count blocks at `chunk`, for one row and one vector. */
static inline float dot_chunk(const uint8_t *chunk, uint32_t block_count, uint32_t lane,
                              const struct weft_cpu_quant_x *x, enum weft_dtype dtype, value_fn *value)
{
    const uint16_t *scales = (const uint16_t *)chunk;
    const uint8_t *values = chunk + weft_quant_scales_size(block_count);
    float sum = 0.0f;

    for (uint32_t b = 0; b < block_count; b++) {
        float scale = weft_f16_to_f32(scales[b * WEFT_LANES + lane]) * x[b].scale;
        int32_t dot = x[b].start;

        for (uint32_t k = 0; k < WEFT_QUANT_BLOCK; k++) {
            dot += value(values + b * weft_quant_block_size(dtype), k, lane) * x[b].values[k];
        }
        sum = __builtin_fmaf((float)dot, scale, sum);
    }
    return sum;
}

static inline float dot_leaf(const uint8_t *panel, uint32_t block_count, uint32_t lane,
                             const struct weft_cpu_quant_x *x, enum weft_dtype dtype, value_fn *value)
{
    float sum = 0.0f;

    for (uint32_t i = 0; i < weft_quant_chunk_count(block_count); i++) {
        uint32_t begin = weft_quant_chunk_begin(block_count, i);
        uint32_t count = weft_quant_chunk_begin(block_count, i + 1) - begin;
        float chunk = dot_chunk(panel, count, lane, x + begin, dtype, value);

        sum = i == 0 ? chunk : sum + chunk;
        panel += weft_quant_chunk_size(dtype, count);
    }
    return sum;
}

static inline void dot_quant(const struct weft_cpu_dot_quant *args, enum weft_dtype dtype, value_fn *value)
{
    for (uint32_t v = 0; v < args->vector_count; v++) {
        for (uint32_t i = 0; i < args->panel_count * WEFT_LANES; i++) {
            args->out[v * args->out_stride + i] =
                dot_leaf(args->panels[i / WEFT_LANES], args->block_count, i % WEFT_LANES, args->x[v], dtype, value);
        }
    }
}

static void dot_q8_0_ref(const struct weft_cpu_dot_quant *args)
{
    dot_quant(args, WEFT_Q8_0, value_q8_0);
}

static void dot_q4_0_ref(const struct weft_cpu_dot_quant *args)
{
    dot_quant(args, WEFT_Q4_0, value_q4_0);
}

static void unpack_f8_ref(const uint8_t *bytes, const float *scales, size_t pair_count, uint32_t *pairs)
{
    weft_cpu_f8_unpack_plain(bytes, scales, pair_count, pairs);
}

void weft_cpu_kernels_fill_ref(struct weft_cpu_kernels *kernels)
{
    kernels->dot_f32 = dot_f32_ref;
    kernels->dot_f16 = dot_f16_ref;
    kernels->dot_bf16 = dot_bf16_ref;
    kernels->dot_bf16_pairs = dot_bf16_pairs_ref;
    kernels->dot_q8_0 = dot_q8_0_ref;
    kernels->dot_q4_0 = dot_q4_0_ref;
    kernels->unpack_f8 = unpack_f8_ref;
    fill_elementwise(kernels);
}
