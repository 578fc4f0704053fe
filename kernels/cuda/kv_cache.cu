/* The paged KV cache: memory, and the table of sequences that kernels read. */
#include "cuda/kv_cache.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/attention.h"
#include "cuda/graph.h"

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
    cache->piece_max = weft_cuda_decode_pieces_max(cuda, desc);
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

size_t weft_cuda_sequences_size(const struct weft_batch *batch, uint32_t count)
{
    size_t page_count = 0;

    for (uint32_t i = 0; i < batch->sequence_count; i++) {
        page_count += batch->sequences[i].page_count;
    }
    return count * sizeof(struct weft_cuda_sequence) + page_count * sizeof(uint32_t);
}

void weft_cuda_sequences_fill(const struct weft_batch *batch, uint32_t count, void *host)
{
    struct weft_cuda_sequence *sequences = static_cast<struct weft_cuda_sequence *>(host);
    uint32_t *pages = reinterpret_cast<uint32_t *>(sequences + count);
    uint32_t page_count = 0;
    uint32_t piece_count = 0;

    for (uint32_t i = 0; i < batch->sequence_count; i++) {
        const struct weft_batch_sequence *from = &batch->sequences[i];

        sequences[i] = {from->token_begin, from->token_count, from->position, page_count, piece_count};
        if (from->page_count > 0) {
            memcpy(pages + page_count, from->pages, from->page_count * sizeof(*pages));
        }
        page_count += from->page_count;
        piece_count += from->token_count == 1 ? weft_cuda_divide_up(from->position + 1, WEFT_CUDA_PIECE) : 0;
    }
    for (uint32_t i = batch->sequence_count; i < count; i++) {
        sequences[i] = {batch->sequence_count, 0, 0, page_count, piece_count};
    }
}

struct weft_cuda_sequences weft_cuda_upload_sequences(struct weft_cuda_device *device, const struct weft_batch *batch)
{
    const uint32_t count = batch->sequence_count;
    const size_t size = weft_cuda_sequences_size(batch, count);
    struct weft_cuda_sequences out = {NULL, NULL, count};
    void *host;

    if (device->status != WEFT_OK) {
        return out;
    }
    if (device->graphs != NULL) {
        return weft_cuda_graphs_sequences(device->graphs);
    }
    host = malloc(size + 1);
    if (host == NULL) {
        (void)weft_cuda_check(device, cudaErrorMemoryAllocation, "a table of sequences");
        return out;
    }
    weft_cuda_sequences_fill(batch, count, host);
    out.sequences = static_cast<const struct weft_cuda_sequence *>(weft_cuda_upload(device, host, size));
    free(host);
    if (out.sequences != NULL) {
        out.pages = reinterpret_cast<const uint32_t *>(out.sequences + count);
    }
    return out;
}
