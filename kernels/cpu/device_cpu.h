/* The CPU backend's own state, shared by its files. */
#ifndef WEFT_CPU_DEVICE_CPU_H
#define WEFT_CPU_DEVICE_CPU_H

#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "device_ops.h"

enum {
    WEFT_CPU_THREAD_MAX = 1024,
    WEFT_CPU_HEAD_SIZE_MAX = 1024,       /* E; sizes the scratch of attention */
    WEFT_CPU_SCRATCH_FLOATS = 32 * 1024, /* 128 KiB per worker: stays in L2 beside the weights that stream through */
    /* 5 MiB of quantised activations: 512 tokens of 8192 columns before weights are read once more, and no row of a
     * matrix has 4 million columns. */
    WEFT_CPU_QUANT_BLOCKS = 128 * 1024,
};

struct weft_cpu_device {
    struct weft_device base;
    struct weft_cpu_kernels kernels;
    uint32_t thread_count;
    struct weft_pool *pool;           /* owned */
    float *scratch;                   /* [thread_count][WEFT_CPU_SCRATCH_FLOATS], owned */
    struct weft_cpu_quant_x *quant_x; /* [WEFT_CPU_QUANT_BLOCKS] of the multiplication in progress, owned */
};

static inline struct weft_cpu_device *weft_cpu_device(struct weft_device *device)
{
    return (struct weft_cpu_device *)device; /* base is its first member */
}

static inline float *weft_cpu_scratch(struct weft_cpu_device *device, uint32_t worker)
{
    return device->scratch + (size_t)worker * WEFT_CPU_SCRATCH_FLOATS;
}

static inline uint32_t weft_ceil_div(uint32_t a, uint32_t b)
{
    return a / b + (a % b != 0);
}

static inline uint32_t weft_min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* memory.c */
void *weft_cpu_alloc(struct weft_device *device, size_t size);
void weft_cpu_free(struct weft_device *device, void *memory);

/* matrix.c */
size_t weft_cpu_matrix_size(const struct weft_device *device, const struct weft_matrix_desc *desc);
size_t weft_cpu_matrix_scratch_size(const struct weft_device *device, const struct weft_matrix_desc *desc);
enum weft_status weft_cpu_matrix_open(struct weft_device *device, const struct weft_matrix_desc *desc,
                                      struct weft_matrix **out);
void weft_cpu_matrix_close(struct weft_device *device, struct weft_matrix *matrix);
enum weft_status weft_cpu_matrix_write_rows(struct weft_device *device, struct weft_matrix *matrix, uint32_t row_begin,
                                            uint32_t row_count, const void *rows, size_t row_stride);
void weft_cpu_embed(struct weft_device *device, const struct weft_matrix *matrix, const uint32_t *rows, uint32_t count,
                    float *out);

/* matmul.c */
void weft_cpu_matmul(struct weft_device *device, const struct weft_matrix *matrix, const float *x, uint32_t token_count,
                     const float *bias, float *out);

/* kv_cache.c */
size_t weft_cpu_kv_cache_size(const struct weft_device *device, const struct weft_kv_desc *desc);
enum weft_status weft_cpu_kv_cache_open(struct weft_device *device, const struct weft_kv_desc *desc,
                                        struct weft_kv_cache **out);
void weft_cpu_kv_cache_close(struct weft_device *device, struct weft_kv_cache *cache);

/* attention.c */
void weft_cpu_attention(struct weft_device *device, const struct weft_kv_cache *cache, const struct weft_batch *batch,
                        const struct weft_attention_args *args);

/* rope.c */
void weft_cpu_rope_angles(struct weft_device *device, const struct weft_batch *batch, const float *inv_freq,
                          uint32_t head_size, float scale, float *angles);
void weft_cpu_rope_append(struct weft_device *device, struct weft_kv_cache *cache, const struct weft_batch *batch,
                          const struct weft_rope_args *args);

/* candidates.c */
void weft_cpu_penalize(struct weft_device *device, float *logits, uint32_t width, const struct weft_penalty *penalties,
                       uint32_t count);
void weft_cpu_candidates(struct weft_device *device, const struct weft_candidates_args *args);

#endif
