/* The paged KV cache: memory and storing. */
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

void weft_kv_store(const struct weft_kv_cache *cache, const struct weft_kv_place *place, uint32_t head,
                   const float *key, const float *value)
{
    unsigned char *keys = weft_kv_keys(cache, place->layer, place->page, head);
    unsigned char *values = weft_kv_values(cache, place->layer, place->page, head);

    for (uint32_t e = 0; e < cache->desc.head_size; e++) {
        size_t block = (size_t)(e / WEFT_LANES) * WEFT_LANES + place->slot;

        store(cache, keys, (size_t)e * WEFT_LANES + place->slot, key[e]);
        store(cache, values, block * WEFT_LANES + e % WEFT_LANES, value[e]);
    }
}
