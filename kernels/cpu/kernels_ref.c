/*
 * The reference level: the specification of every kernel, in C that runs anywhere. Slow where the CPU has no fused
 * multiply-add instruction in the baseline (libm's fmaf is exact, a call each).
 */
#include "cpu/elementwise.h"

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

void weft_cpu_kernels_fill_ref(struct weft_cpu_kernels *kernels)
{
    kernels->dot_f32 = dot_f32_ref;
    kernels->dot_f16 = dot_f16_ref;
    kernels->dot_bf16 = dot_bf16_ref;
    kernels->dot_bf16_pairs = dot_bf16_pairs_ref;
    fill_elementwise(kernels);
}
