/* The paged KV cache: memory, and the table of sequences that kernels read. */
#include "cuda/kv_cache.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/attention.h"

static const uint32_t HEAD_ALIGNMENT = 8;

static uint32_t padded(uint32_t head_size)
{
    return (head_size + HEAD_ALIGNMENT - 1) / HEAD_ALIGNMENT * HEAD_ALIGNMENT;
}

static size_t key_size(const struct weft_kv_desc *desc)
{
    return (size_t)padded(desc->head_size) * WEFT_PAGE_POSITIONS * weft_dtype_size(desc->dtype);
}

size_t weft_cuda_kv_cache_size(const struct weft_device *device, const struct weft_kv_desc *desc)
{
    (void)device;
    return 2 * key_size(desc) * desc->layer_count * desc->page_count * desc->kv_head_count;
}

enum weft_status weft_cuda_kv_cache_open(struct weft_device *device, const struct weft_kv_desc *desc,
                                         struct weft_kv_cache **out)
{
    struct weft_cuda_device *cuda = weft_cuda_device(device);
    struct weft_kv_cache *cache;

    assert(desc->head_size % 2 == 0 && (desc->dtype == WEFT_F32 || desc->dtype == WEFT_BF16));
    if (desc->head_size > WEFT_CUDA_HEAD_SIZE_MAX) {
        weft_cuda_log(WEFT_LOG_ERROR, "KV cache: heads of %u elements, at most %u on a GPU", desc->head_size,
                      WEFT_CUDA_HEAD_SIZE_MAX);
        return WEFT_ERR_UNSUPPORTED;
    }
    cache = static_cast<struct weft_kv_cache *>(calloc(1, sizeof(*cache)));
    if (cache == NULL) {
        (void)weft_cuda_check(cuda, cudaErrorMemoryAllocation, "a KV cache");
        return WEFT_ERR_MEMORY;
    }
    cache->desc = *desc;
    cache->padded_head_size = padded(desc->head_size);
    cache->key_size = key_size(desc);
    cache->blocks = static_cast<unsigned char *>(weft_cuda_alloc(device, weft_cuda_kv_cache_size(device, desc)));
    if (cache->blocks == NULL) {
        free(cache);
        return WEFT_ERR_MEMORY;
    }
    weft_cuda_attend_init(cuda);
    *out = cache;
    return WEFT_OK;
}

void weft_cuda_kv_cache_close(struct weft_device *device, struct weft_kv_cache *cache)
{
    weft_cuda_free(device, cache->blocks);
    free(cache);
}

/* ---- sequences ---- */

struct weft_cuda_sequences weft_cuda_upload_sequences(struct weft_cuda_device *device, const struct weft_batch *batch)
{
    size_t table_size = batch->sequence_count * sizeof(struct weft_cuda_sequence);
    struct weft_cuda_sequences out = {NULL, NULL, batch->sequence_count};
    size_t page_count = 0;
    unsigned char *host;
    const unsigned char *uploaded;

    for (uint32_t i = 0; i < batch->sequence_count; i++) {
        page_count += batch->sequences[i].page_count;
    }
    host = static_cast<unsigned char *>(malloc(table_size + page_count * sizeof(uint32_t) + 1));
    if (host == NULL) {
        (void)weft_cuda_check(device, cudaErrorMemoryAllocation, "a table of sequences");
        return out;
    }
    page_count = 0;
    for (uint32_t i = 0; i < batch->sequence_count; i++) {
        const struct weft_batch_sequence *from = &batch->sequences[i];
        struct weft_cuda_sequence *to = reinterpret_cast<struct weft_cuda_sequence *>(host) + i;

        *to = {from->token_begin, from->token_count, from->position, static_cast<uint32_t>(page_count)};
        if (from->page_count > 0) {
            memcpy(host + table_size + page_count * sizeof(uint32_t), from->pages, from->page_count * sizeof(uint32_t));
        }
        page_count += from->page_count;
    }
    uploaded =
        static_cast<const unsigned char *>(weft_cuda_upload(device, host, table_size + page_count * sizeof(uint32_t)));
    free(host);
    out.sequences = reinterpret_cast<const struct weft_cuda_sequence *>(uploaded);
    out.pages = reinterpret_cast<const uint32_t *>(uploaded + table_size);
    return out;
}
