/*
 * The border between device.c and the backends: what a backend implements, one function per operation of
 * weft/device.h with the same contract. A backend's struct begins with struct weft_device; its matrices and caches are
 * its own (weft_matrix and weft_kv_cache are defined once per backend and never looked into here).
 */
#ifndef WEFT_KERNELS_DEVICE_OPS_H
#define WEFT_KERNELS_DEVICE_OPS_H

#include "weft/device.h"

struct weft_device_ops {
    void (*close)(struct weft_device *device);
    enum weft_status (*sync)(struct weft_device *device);
    void (*id)(const struct weft_device *device, unsigned char id_out[WEFT_DEVICE_ID_SIZE]);
    void *(*alloc)(struct weft_device *device, size_t size);
    void (*free)(struct weft_device *device, void *memory);
    enum weft_status (*write)(struct weft_device *device, void *to, const void *from_host, size_t size);
    enum weft_status (*read)(struct weft_device *device, void *to_host, const void *from, size_t size);
    void *(*alloc_host)(struct weft_device *device, size_t size);
    void (*free_host)(struct weft_device *device, void *memory);
    void (*begin_read)(struct weft_device *device, void *to_host, const void *from, size_t size);
    void (*begin_write)(struct weft_device *device, void *to, const void *from_host, size_t size);
    void (*copy)(struct weft_device *device, void *to, const void *from, size_t size);
    void (*mark)(struct weft_device *device, uint32_t mark);
    enum weft_status (*wait)(struct weft_device *device, uint32_t mark, uint32_t timeout_ms);
    enum weft_status (*reserve)(struct weft_device *device, size_t size); /* NULL: nothing to do */
    size_t (*own_size)(const struct weft_device *device);                 /* NULL: 0 */

    /* NULL, all of them: memory that nobody else reaches. */
    void *(*alloc_shared)(struct weft_device *device, size_t size, struct weft_peer_handle *handle_out,
                          char *reason_out, size_t reason_size);
    void (*free_shared)(struct weft_device *device, void *memory);
    void *(*peer_open)(struct weft_device *device, const struct weft_peer_handle *handle, char *reason_out,
                       size_t reason_size);
    void (*peer_close)(struct weft_device *device, void *memory);
    void (*peer_sum)(struct weft_device *device, const struct weft_peer_sum_args *args);

    size_t (*matrix_size)(const struct weft_device *device, const struct weft_matrix_desc *desc);
    size_t (*matrix_scratch_size)(const struct weft_device *device, const struct weft_matrix_desc *desc); /* NULL: 0 */
    enum weft_status (*matrix_open)(struct weft_device *device, const struct weft_matrix_desc *desc,
                                    struct weft_matrix **out);
    void (*matrix_close)(struct weft_device *device, struct weft_matrix *matrix);
    enum weft_status (*matrix_write_rows)(struct weft_device *device, struct weft_matrix *matrix, uint32_t row_begin,
                                          uint32_t row_count, const void *rows, size_t row_stride);

    size_t (*kv_cache_size)(const struct weft_device *device, const struct weft_kv_desc *desc);
    size_t (*kv_cache_scratch_size)(const struct weft_device *device, const struct weft_kv_desc *desc); /* NULL: 0 */
    enum weft_status (*kv_cache_open)(struct weft_device *device, const struct weft_kv_desc *desc,
                                      struct weft_kv_cache **out);
    void (*kv_cache_close)(struct weft_device *device, struct weft_kv_cache *cache);

    /* NULL without graphs */
    size_t (*graphs_size)(const struct weft_device *device, const struct weft_graphs_desc *desc);
    enum weft_status (*graphs_open)(struct weft_device *device, const struct weft_graphs_desc *desc,
                                    struct weft_graphs **out);
    void (*graphs_close)(struct weft_device *device, struct weft_graphs *graphs);
    void (*graphs_seal)(struct weft_device *device, struct weft_graphs *graphs);
    void (*graphs_begin)(struct weft_device *device, struct weft_graphs *graphs, const struct weft_batch *batch);
    void (*graphs_pause)(struct weft_device *device, struct weft_graphs *graphs);
    void (*graphs_resume)(struct weft_device *device, struct weft_graphs *graphs);
    void (*graphs_end)(struct weft_device *device, struct weft_graphs *graphs, bool is_whole);

    void (*embed)(struct weft_device *device, const struct weft_matrix *matrix, const uint32_t *rows, uint32_t count,
                  float *out);
    void (*rms_norm)(struct weft_device *device, const float *x, const float *weight, uint32_t token_count,
                     uint32_t width, float eps, float *out);
    void (*matmul)(struct weft_device *device, const struct weft_matrix *matrix, const float *x, uint32_t token_count,
                   const float *bias, float *out);
    void (*rope_angles)(struct weft_device *device, const struct weft_batch *batch, const float *inv_freq,
                        uint32_t head_size, float scale, float *angles);
    void (*rope_append)(struct weft_device *device, struct weft_kv_cache *cache, const struct weft_batch *batch,
                        const struct weft_rope_args *args);
    void (*attention)(struct weft_device *device, const struct weft_kv_cache *cache, const struct weft_batch *batch,
                      const struct weft_attention_args *args);
    void (*add_norm)(struct weft_device *device, const struct weft_add_norm_args *args);
    void (*tree_add)(struct weft_device *device, const struct weft_tree_add_args *args);
    void (*select_rows)(struct weft_device *device, const float *x, const uint32_t *rows, uint32_t count,
                        uint32_t width, float *out);
    void (*penalize)(struct weft_device *device, float *logits, uint32_t width, const struct weft_penalty *penalties,
                     uint32_t count);
    void (*candidates)(struct weft_device *device, const struct weft_candidates_args *args);
    size_t (*candidates_scratch_size)(const struct weft_device *device,
                                      const struct weft_candidates_args *most); /* NULL: 0 */
};

struct weft_device {
    const struct weft_device_ops *ops;
    char name[96];
    bool is_host;
    void *stream;                  /* or NULL */
    enum weft_recording recording; /* set by who has graphs */
};

/* cpu/device_cpu.c */
WEFT_MUST_CHECK enum weft_status weft_device_open_cpu(const struct weft_device_options *options,
                                                      struct weft_device **out);

/* cuda_loader.c: GPU gpu_index, through the CUDA module. */
WEFT_MUST_CHECK enum weft_status weft_device_open_cuda(const struct weft_device_options *options, uint32_t gpu_index,
                                                       struct weft_device **out);

#endif
