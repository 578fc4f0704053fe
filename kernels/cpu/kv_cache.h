/*
 * The paged KV cache. One block per (layer, page, KV head), keys first, then values, both as panels of 16 lanes:
 *   keys    [E][16 positions]           lanes are positions: q k^T is a dot over E columns
 *   values  [EP / 16][16 positions][16] lanes are 16 neighbouring elements of the head: w v is a dot over positions
 * EP is E rounded up to 16; the padding stays zero.
 */
#ifndef WEFT_CPU_KV_CACHE_H
#define WEFT_CPU_KV_CACHE_H

#include "cpu/device_cpu.h"

_Static_assert(WEFT_PAGE_POSITIONS == WEFT_LANES, "a page is one panel of keys");

struct weft_kv_cache {
    struct weft_kv_desc desc;
    uint32_t padded_head_size; /* EP */
    size_t key_size;           /* bytes of one block's keys */
    size_t block_size;         /* bytes of one block */
    unsigned char *blocks;     /* [L][page_count][G][block_size], owned */
};

static inline unsigned char *weft_kv_keys(const struct weft_kv_cache *cache, uint32_t layer, uint32_t page,
                                          uint32_t head)
{
    size_t index = ((size_t)layer * cache->desc.page_count + page) * cache->desc.kv_head_count + head;

    return cache->blocks + index * cache->block_size;
}

static inline unsigned char *weft_kv_values(const struct weft_kv_cache *cache, uint32_t layer, uint32_t page,
                                            uint32_t head)
{
    return weft_kv_keys(cache, layer, page, head) + cache->key_size;
}

/* Where one position lies in the blocks of all heads. */
struct weft_kv_place {
    uint32_t layer;
    uint32_t page;
    uint32_t slot; /* of the page's 16 */
};

/* key[E] and value[E] of KV head `head` go there, in the cache's dtype. */
void weft_kv_store(const struct weft_kv_cache *cache, const struct weft_kv_place *place, uint32_t head,
                   const float *key, const float *value);

#endif
