/* The paged KV cache: memory and appending. */
#include "cpu/kv_cache.h"

#include <assert.h>
#include <stdlib.h>

#include "weft/log.h"
#include "weft/numeric.h"

static uint32_t padded(uint32_t head_size)
{
    return weft_ceil_div(head_size, WEFT_LANES) * WEFT_LANES;
}

static size_t key_size(const struct weft_kv_desc *desc)
{
    /* Padded to 64 bytes by taking EP columns. */
    return (size_t)padded(desc->head_size) * WEFT_LANES * weft_dtype_size(desc->dtype);
}

size_t weft_cpu_kv_cache_size(const struct weft_device *device, const struct weft_kv_desc *desc)
{
    (void)device;
    return 2 * key_size(desc) * desc->layer_count * desc->page_count * desc->kv_head_count;
}

enum weft_status weft_cpu_kv_cache_open(struct weft_device *device, const struct weft_kv_desc *desc,
                                        struct weft_kv_cache **out)
{
    struct weft_kv_cache *cache = calloc(1, sizeof(*cache));

    assert(desc->head_size % 2 == 0 && desc->head_size <= WEFT_CPU_HEAD_SIZE_MAX);
    assert(desc->dtype == WEFT_F32 || desc->dtype == WEFT_BF16);
    if (cache == NULL) {
        weft_log(WEFT_LOG_ERROR, "kernels/cpu", "out of memory for a KV cache");
        return WEFT_ERR_MEMORY;
    }
    cache->desc = *desc;
    cache->padded_head_size = padded(desc->head_size);
    cache->key_size = key_size(desc);
    cache->block_size = 2 * cache->key_size;
    cache->blocks = weft_cpu_alloc(device, weft_cpu_kv_cache_size(device, desc));
    if (cache->blocks == NULL) {
        free(cache);
        return WEFT_ERR_MEMORY;
    }
    *out = cache;
    return WEFT_OK;
}

void weft_cpu_kv_cache_close(struct weft_device *device, struct weft_kv_cache *cache)
{
    weft_cpu_free(device, cache->blocks);
    free(cache);
}

static void store(const struct weft_kv_cache *cache, unsigned char *panel, size_t index, float x)
{
    if (cache->desc.dtype == WEFT_F32) {
        ((float *)panel)[index] = x;
    } else {
        ((uint16_t *)panel)[index] = weft_f32_to_bf16(x);
    }
}

static void append_head(const struct weft_kv_cache *cache, unsigned char *keys, unsigned char *values, uint32_t slot,
                        const float *key, const float *value)
{
    for (uint32_t e = 0; e < cache->desc.head_size; e++) {
        size_t block = (size_t)(e / WEFT_LANES) * WEFT_LANES + slot;

        store(cache, keys, (size_t)e * WEFT_LANES + slot, key[e]);
        store(cache, values, block * WEFT_LANES + e % WEFT_LANES, value[e]);
    }
}

struct append_job {
    const struct weft_kv_cache *cache;
    uint32_t layer;
    const struct weft_heads *heads;
    const struct weft_batch_sequence *sequence;
    const float *qkv;
};

/* Items are tokens of one sequence. */
static void append_task(void *context, uint32_t worker, uint32_t begin, uint32_t end)
{
    const struct append_job *job = context;
    const struct weft_heads *heads = job->heads;
    size_t row_width = ((size_t)heads->head_count + 2 * (size_t)heads->kv_head_count) * heads->head_size;

    (void)worker;
    for (uint32_t i = begin; i < end; i++) {
        uint32_t position = job->sequence->position + i;
        uint32_t page = job->sequence->pages[position / WEFT_PAGE_POSITIONS];
        const float *keys =
            job->qkv + (job->sequence->token_begin + i) * row_width + (size_t)heads->head_count * heads->head_size;
        const float *values = keys + (size_t)heads->kv_head_count * heads->head_size;

        assert(page < job->cache->desc.page_count);
        for (uint32_t g = 0; g < heads->kv_head_count; g++) {
            append_head(job->cache, weft_kv_keys(job->cache, job->layer, page, g),
                        weft_kv_values(job->cache, job->layer, page, g), position % WEFT_PAGE_POSITIONS,
                        keys + (size_t)g * heads->head_size, values + (size_t)g * heads->head_size);
        }
    }
}

void weft_cpu_kv_append(struct weft_device *device, struct weft_kv_cache *cache, uint32_t layer,
                        const struct weft_batch *batch, const struct weft_heads *heads, const float *qkv)
{
    assert(layer < cache->desc.layer_count && heads->kv_head_count == cache->desc.kv_head_count &&
           heads->head_size == cache->desc.head_size);
    if (heads->kv_head_count == 0) {
        return;
    }
    for (uint32_t s = 0; s < batch->sequence_count; s++) {
        const struct weft_batch_sequence *sequence = &batch->sequences[s];
        struct append_job job = {.cache = cache, .layer = layer, .heads = heads, .sequence = sequence, .qkv = qkv};

        assert(sequence->token_count == 0 ||
               (sequence->position + sequence->token_count - 1) / WEFT_PAGE_POSITIONS < sequence->page_count);
        weft_pool_run(weft_cpu_device(device)->pool, WEFT_POOL_STATIC, sequence->token_count, append_task, &job);
    }
}
