/* weft/device.h: chooses the backend and forwards to it. */
#include "device_ops.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weft/gpu.h"
#include "weft/log.h"

size_t weft_dtype_size(enum weft_dtype dtype)
{
    assert(!weft_dtype_is_quantised(dtype));
    return dtype == WEFT_F32 ? 4 : dtype == WEFT_F8_E4M3 ? 1 : 2;
}

bool weft_dtype_is_quantised(enum weft_dtype dtype)
{
    return dtype == WEFT_Q8_0 || dtype == WEFT_Q4_0;
}

const char *weft_dtype_name(enum weft_dtype dtype)
{
    switch (dtype) {
    case WEFT_F32: return "f32";
    case WEFT_F16: return "f16";
    case WEFT_BF16: return "bf16";
    case WEFT_Q8_0: return "q8_0";
    case WEFT_Q4_0: return "q4_0";
    case WEFT_F8_E4M3: return "f8_e4m3";
    }
    return "unknown";
}

/* "cuda:3" -> 3; false: no number of a GPU. */
static bool gpu_index_parse(const char *text, uint32_t *out)
{
    char *end;

    if (*text < '0' || *text > '9') {
        return false;
    }
    unsigned long index = strtoul(text, &end, 10);
    *out = (uint32_t)index;
    return *end == '\0' && index < WEFT_GPU_COUNT_MAX;
}

enum weft_status weft_device_kind_parse(const char *kind, enum weft_device_kind *kind_out, uint32_t *gpu_index_out)
{
    static const char *const names[] = {
        [WEFT_DEVICE_AUTO] = "auto", [WEFT_DEVICE_CPU] = "cpu", [WEFT_DEVICE_CUDA] = "cuda"};

    for (int i = 0; i < 3; i++) {
        if (strcmp(kind == NULL ? "auto" : kind, names[i]) == 0) {
            *kind_out = (enum weft_device_kind)i;
            return WEFT_OK;
        }
    }
    if (strncmp(kind, "cuda:", 5) == 0 && gpu_index_parse(kind + 5, gpu_index_out)) {
        *kind_out = WEFT_DEVICE_CUDA_INDEX;
        return WEFT_OK;
    }
    weft_log(WEFT_LOG_ERROR, "kernels", "device \"%s\": expected auto, cpu, cuda or cuda:0 to cuda:%d", kind,
             WEFT_GPU_COUNT_MAX - 1);
    return WEFT_ERR_ARGUMENT;
}

/* Not an error: most hosts have no GPU. */
static bool has_gpu(const struct weft_device_options *options)
{
    struct weft_gpu gpus[WEFT_GPU_COUNT_MAX];
    char reason[256];

    if (weft_gpu_list(options->module, gpus, reason, sizeof(reason)) > 0) {
        return true;
    }
    weft_log(WEFT_LOG_DEBUG, "kernels", "no GPU is used: %s", reason);
    return false;
}

enum weft_status weft_device_open(const struct weft_device_options *options, struct weft_device **out)
{
    uint32_t gpu_index = options->gpu_index;
    enum weft_device_kind kind;

    WEFT_TRY(weft_device_kind_parse(options->kind, &kind, &gpu_index));
    if (kind == WEFT_DEVICE_CPU || (kind == WEFT_DEVICE_AUTO && !has_gpu(options))) {
        return weft_device_open_cpu(options, out);
    }
    return weft_device_open_cuda(options, gpu_index, out);
}

void weft_device_close(struct weft_device **device)
{
    if (*device != NULL) {
        (*device)->ops->close(*device);
        *device = NULL;
    }
}

const char *weft_device_name(const struct weft_device *device)
{
    return device->name;
}

enum weft_status weft_device_sync(struct weft_device *device)
{
    return device->ops->sync(device);
}

void *weft_device_alloc(struct weft_device *device, size_t size)
{
    return device->ops->alloc(device, size);
}

void weft_device_free(struct weft_device *device, void *memory)
{
    if (memory != NULL) {
        device->ops->free(device, memory);
    }
}

enum weft_status weft_device_write(struct weft_device *device, void *to, const void *from_host, size_t size)
{
    return device->ops->write(device, to, from_host, size);
}

enum weft_status weft_device_read(struct weft_device *device, void *to_host, const void *from, size_t size)
{
    return device->ops->read(device, to_host, from, size);
}

bool weft_device_is_host(const struct weft_device *device)
{
    return device->is_host;
}

void *weft_device_stream(const struct weft_device *device)
{
    return device->stream;
}

void weft_device_id(const struct weft_device *device, unsigned char id_out[WEFT_DEVICE_ID_SIZE])
{
    device->ops->id(device, id_out);
}

void *weft_device_alloc_host(struct weft_device *device, size_t size)
{
    return device->ops->alloc_host(device, size);
}

void weft_device_free_host(struct weft_device *device, void *memory)
{
    if (memory != NULL) {
        device->ops->free_host(device, memory);
    }
}

void weft_device_begin_read(struct weft_device *device, void *to_host, const void *from, size_t size)
{
    device->ops->begin_read(device, to_host, from, size);
}

void weft_device_begin_write(struct weft_device *device, void *to, const void *from_host, size_t size)
{
    device->ops->begin_write(device, to, from_host, size);
}

void weft_device_copy(struct weft_device *device, void *to, const void *from, size_t size)
{
    device->ops->copy(device, to, from, size);
}

void weft_device_mark(struct weft_device *device, uint32_t mark)
{
    assert(mark < WEFT_DEVICE_MARK_COUNT);
    device->ops->mark(device, mark);
}

enum weft_status weft_device_wait(struct weft_device *device, uint32_t mark, uint32_t timeout_ms)
{
    assert(mark < WEFT_DEVICE_MARK_COUNT);
    return device->ops->wait(device, mark, timeout_ms);
}

enum weft_status weft_device_reserve(struct weft_device *device, size_t size)
{
    return device->ops->reserve == NULL ? WEFT_OK : device->ops->reserve(device, size);
}

size_t weft_device_own_size(const struct weft_device *device)
{
    return device->ops->own_size == NULL ? 0 : device->ops->own_size(device);
}

size_t weft_matrix_size(const struct weft_device *device, const struct weft_matrix_desc *desc)
{
    return device->ops->matrix_size(device, desc);
}

size_t weft_matrix_scratch_size(const struct weft_device *device, const struct weft_matrix_desc *desc)
{
    return device->ops->matrix_scratch_size == NULL ? 0 : device->ops->matrix_scratch_size(device, desc);
}

enum weft_status weft_matrix_open(struct weft_device *device, const struct weft_matrix_desc *desc,
                                  struct weft_matrix **out)
{
    return device->ops->matrix_open(device, desc, out);
}

void weft_matrix_close(struct weft_device *device, struct weft_matrix **matrix)
{
    if (*matrix != NULL) {
        device->ops->matrix_close(device, *matrix);
        *matrix = NULL;
    }
}

enum weft_status weft_matrix_write_rows(struct weft_device *device, struct weft_matrix *matrix, uint32_t row_begin,
                                        uint32_t row_count, const void *rows, size_t row_stride)
{
    return device->ops->matrix_write_rows(device, matrix, row_begin, row_count, rows, row_stride);
}

size_t weft_kv_cache_size(const struct weft_device *device, const struct weft_kv_desc *desc)
{
    return device->ops->kv_cache_size(device, desc);
}

size_t weft_kv_cache_scratch_size(const struct weft_device *device, const struct weft_kv_desc *desc)
{
    assert(desc->token_max > 0 && desc->sequence_max > 0 && desc->position_max > 0);
    return device->ops->kv_cache_scratch_size == NULL ? 0 : device->ops->kv_cache_scratch_size(device, desc);
}

enum weft_status weft_kv_cache_open(struct weft_device *device, const struct weft_kv_desc *desc,
                                    struct weft_kv_cache **out)
{
    return device->ops->kv_cache_open(device, desc, out);
}

void weft_kv_cache_close(struct weft_device *device, struct weft_kv_cache **cache)
{
    if (*cache != NULL) {
        device->ops->kv_cache_close(device, *cache);
        *cache = NULL;
    }
}

size_t weft_graphs_size(const struct weft_device *device, const struct weft_graphs_desc *desc)
{
    return device->ops->graphs_open == NULL ? 0 : device->ops->graphs_size(device, desc);
}

enum weft_status weft_graphs_open(struct weft_device *device, const struct weft_graphs_desc *desc,
                                  struct weft_graphs **out)
{
    *out = NULL;
    return device->ops->graphs_open == NULL ? WEFT_OK : device->ops->graphs_open(device, desc, out);
}

void weft_graphs_close(struct weft_device *device, struct weft_graphs **graphs)
{
    if (*graphs != NULL) {
        device->ops->graphs_close(device, *graphs);
        *graphs = NULL;
    }
}

void weft_graphs_seal(struct weft_device *device, struct weft_graphs *graphs)
{
    if (graphs != NULL) {
        device->ops->graphs_seal(device, graphs);
    }
}

void weft_graphs_begin(struct weft_device *device, struct weft_graphs *graphs, const struct weft_batch *batch)
{
    if (graphs != NULL) {
        device->ops->graphs_begin(device, graphs, batch);
    }
}

void weft_graphs_pause(struct weft_device *device, struct weft_graphs *graphs)
{
    if (graphs != NULL) {
        device->ops->graphs_pause(device, graphs);
    }
}

void weft_graphs_resume(struct weft_device *device, struct weft_graphs *graphs)
{
    if (graphs != NULL) {
        device->ops->graphs_resume(device, graphs);
    }
}

void weft_graphs_end(struct weft_device *device, struct weft_graphs *graphs, bool is_whole)
{
    if (graphs != NULL) {
        device->ops->graphs_end(device, graphs, is_whole);
    }
}

enum weft_recording weft_device_recording(const struct weft_device *device)
{
    return device->recording;
}

void weft_device_embed(struct weft_device *device, const struct weft_matrix *matrix, const uint32_t *rows,
                       uint32_t count, float *out)
{
    device->ops->embed(device, matrix, rows, count, out);
}

void weft_device_rms_norm(struct weft_device *device, const float *x, const float *weight, uint32_t token_count,
                          uint32_t width, float eps, float *out)
{
    device->ops->rms_norm(device, x, weight, token_count, width, eps, out);
}

void weft_device_matmul(struct weft_device *device, const struct weft_matrix *matrix, const float *x,
                        uint32_t token_count, const float *bias, float *out)
{
    device->ops->matmul(device, matrix, x, token_count, bias, out);
}

void weft_device_rope_angles(struct weft_device *device, const struct weft_batch *batch, const float *inv_freq,
                             uint32_t head_size, float scale, float *angles)
{
    device->ops->rope_angles(device, batch, inv_freq, head_size, scale, angles);
}

void weft_device_rope_append(struct weft_device *device, struct weft_kv_cache *cache, const struct weft_batch *batch,
                             const struct weft_rope_args *args)
{
    device->ops->rope_append(device, cache, batch, args);
}

void weft_device_attention(struct weft_device *device, const struct weft_kv_cache *cache,
                           const struct weft_batch *batch, const struct weft_attention_args *args)
{
    device->ops->attention(device, cache, batch, args);
}

/* What is made before is the one input. */
static void assert_before(const struct weft_device *device, const struct weft_tree_add_args *args)
{
    assert(args->before == NULL || (device->ops->peer_sum != NULL && args->input_count == 1 &&
                                    args->inputs[0] == args->before->out && args->count == args->before->count));
}

void weft_device_add_norm(struct weft_device *device, const struct weft_add_norm_args *args)
{
    assert(args->y->input_count >= 1 && args->y->input_count <= WEFT_LEAF_COUNT_MAX);
    assert(args->y->count == (size_t)args->token_count * args->width);
    assert_before(device, args->y);
    device->ops->add_norm(device, args);
}

void weft_device_tree_add(struct weft_device *device, const struct weft_tree_add_args *args)
{
    assert(args->input_count >= 1 && args->input_count <= WEFT_LEAF_COUNT_MAX);
    assert_before(device, args);
    if (args->before != NULL) {
        assert(args->out == args->before->out);
        weft_device_peer_sum(device, args->before);
        return;
    }
    device->ops->tree_add(device, args);
}

/* ---- the memory of peers ---- */

void *weft_device_alloc_shared(struct weft_device *device, size_t size, struct weft_peer_handle *handle_out,
                               char *reason_out, size_t reason_size)
{
    if (device->ops->alloc_shared == NULL) {
        snprintf(reason_out, reason_size, "%s shares no memory", device->name);
        return NULL;
    }
    return device->ops->alloc_shared(device, size, handle_out, reason_out, reason_size);
}

void weft_device_free_shared(struct weft_device *device, void *memory)
{
    device->ops->free_shared(device, memory);
}

void *weft_device_peer_open(struct weft_device *device, const struct weft_peer_handle *handle, char *reason_out,
                            size_t reason_size)
{
    return device->ops->peer_open(device, handle, reason_out, reason_size);
}

void weft_device_peer_close(struct weft_device *device, void *memory)
{
    device->ops->peer_close(device, memory);
}

void weft_device_peer_sum(struct weft_device *device, const struct weft_peer_sum_args *args)
{
    assert(args->rank < args->rank_count && args->count <= args->room_count && args->room_count % 4 == 0);
    device->ops->peer_sum(device, args);
}

void weft_device_select_rows(struct weft_device *device, const float *x, const uint32_t *rows, uint32_t count,
                             uint32_t width, float *out)
{
    device->ops->select_rows(device, x, rows, count, width, out);
}

void weft_device_penalize(struct weft_device *device, float *logits, uint32_t width,
                          const struct weft_penalty *penalties, uint32_t count)
{
    device->ops->penalize(device, logits, width, penalties, count);
}

size_t weft_candidates_scratch_size(const struct weft_device *device, const struct weft_candidates_args *most)
{
    return device->ops->candidates_scratch_size == NULL ? 0 : device->ops->candidates_scratch_size(device, most);
}

void weft_device_candidates(struct weft_device *device, const struct weft_candidates_args *args)
{
    device->ops->candidates(device, args);
}
